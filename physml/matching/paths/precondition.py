r"""Preconditioning: a denoiser made of a network whose input and target have unit variance at every noise level.

On $x_t = \alpha x_0 + \beta x_1$ with data of standard deviation $\rho$ the linear estimate of $x_1$ is the skip, and
the network learns the rest in units of the linear estimate's error,

$$D(t, x) = \frac{\beta\rho^2}{V} x + \frac{\alpha\rho}{\sqrt V} F(t, x/\sqrt V), \quad V = \alpha^2 + \beta^2\rho^2 .$$

At $\beta = 1$, $\alpha = \sigma$ these are the coefficients of Karras, Aittala, Aila and Laine, Elucidating the
design space of diffusion-based generative models (2022), table 1; the formula holds on every one-sided path. Student
noise of D degrees of freedom is Gaussian noise of a random width. Seen from x in N dimensions its mean square is
$\alpha^2 (D + |x|^2/V)/(D + N)$, which takes the place of $\alpha^2$: far out the network sees a bounded input, and
the skip vanishes, as the denoiser of heavy tails does.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.types import Field, Scalar
from physml.matching.paths.path import Path


class Preconditioned(eqx.Module):
    r"""The denoiser $E[x_1|x_t]$ around a network F, a field; `weight` makes its loss that of F.

    **Arguments.** `net`: F(t, x, args) on one sample. `path`: one-sided. `scale`: $\rho$, the standard deviation of the
    data. `degrees`: D of the noise, infinite for Gaussian. Train with `match(model, path, x0, x1, target="denoiser",
    weight=model.weight, key=key)`; sample with `convert(model, path, "denoiser", "velocity")`. **Errors**
    `ValueError` for a path with gamma or a scale <= 0.
    """

    net: Field
    path: Path
    scale: Scalar = 1.0
    degrees: Scalar = math.inf

    def __check_init__(self):
        if not self.path.one_sided:
            raise ValueError("preconditioning needs a one-sided path (no gamma)")
        check.within(self.scale, "scale", above=0)
        check.within(self.degrees, "degrees", above=0, finite=False)

    def coefficients(self, t: Scalar, x: Array | None = None) -> tuple[Array, Array, Array]:
        """The factors (skip, out, in), for the noise seen from x if it is given."""
        (a, b, _), _ = self.path.coefficients(t)
        scale = jnp.asarray(self.scale, a.dtype)
        width = jnp.sqrt(a**2 + (b * scale) ** 2)
        if x is not None and not (isinstance(self.degrees, int | float) and math.isinf(self.degrees)):
            degrees = jnp.asarray(self.degrees, a.dtype)
            a = a * jnp.sqrt((degrees + jnp.sum(x * x) / width**2) / (degrees + x.size))
            width = jnp.sqrt(a**2 + (b * scale) ** 2)
        return b * scale**2 / width**2, a * scale / width, 1.0 / width

    def __call__(self, t: Any, x: Array, args: PyTree = None) -> Array:
        skip, out, into = self.coefficients(jnp.asarray(t, x.dtype), x)
        return skip * x + out * self.net(t, into * x, args)

    def weight(self, t: Array) -> Array:
        r"""$1/\text{out}^2$: with it every noise level counts alike."""
        _, out, _ = self.coefficients(t)
        # Where the path ends at the data exactly the target has no scale; that end is bounded, not dropped.
        return 1.0 / jnp.maximum(out, jnp.asarray(1e-3, out.dtype)) ** 2
