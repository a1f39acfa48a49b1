r"""PFGM++: a Poisson flow in D extra dimensions is the EDM path with heavy-tailed noise.

The kernel of a charge at y seen from (x, r) in N + D dimensions is $p_r(x | y) \propto (|x - y|^2 + r^2)^{-(N+D)/2}$.
With $r = \sigma\sqrt D$ this is $x = y + \sigma x_0$ with $x_0$ Student's t in N dimensions with D degrees of freedom,

$$x_0 = \frac{z}{\sqrt{\chi^2_D / D}},\quad z \sim N(0, I),$$

equivalently $|x_0| = \sqrt{D\, B/(1 - B)}$, B ~ Beta(N/2, D/2), in a uniform direction. So every tool for the path
`edm()` applies with this source: the loss, the ODE $dx/d\sigma = (x - E[x_1 | x])/\sigma$, the conversions between
velocity and denoiser. D to infinity is EDM; small D is robust and heavy-tailed.

**See** Xu, Liu, Tian, Tong, Tegmark and Jaakkola, PFGM++ (2023), eqs. 4 and 6.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.types import Field, Key, Scalar
from physml.matching.paths.path import Path


class StudentNoise(eqx.Module):
    r"""Multivariate Student noise with `degrees` = D degrees of freedom; `math.inf` is the Gaussian.

    $$\ln p(x) = \ln\Gamma\tfrac{N+D}2 - \ln\Gamma\tfrac D2 - \tfrac N2 \ln(\pi D) - \tfrac{N+D}2 \ln(1 + |x|^2/D)$$
    """

    degrees: Scalar

    def __check_init__(self):
        check.within(self.degrees, "degrees", above=0, finite=False)  # math.inf is Gaussian noise

    @property
    def gaussian(self) -> bool:
        """True for D = infinity."""
        return isinstance(self.degrees, int | float) and math.isinf(self.degrees)

    def sample(self, shape: tuple[int, ...], *, key: Key, dtype: DTypeLike = jnp.float32) -> Array:
        """Noise (n, *event): one Student vector for each of the n samples."""
        normal_key, scale_key = jax.random.split(key)
        z = jax.random.normal(normal_key, shape, dtype)
        if self.gaussian:
            return z
        half = 0.5 * jnp.asarray(self.degrees, dtype)
        # chi^2_D / D = Gamma(D/2) / (D/2); one scale for all entries of a sample is what makes it Student's.
        scale = jax.random.gamma(scale_key, half, shape[:1], dtype) / half
        return z / jnp.sqrt(scale).reshape(-1, *(1,) * (len(shape) - 1))

    def log_prob(self, x: Array) -> Array:
        """Log-density at one sample x."""
        n, square = x.size, jnp.sum(x * x)
        if self.gaussian:
            return -0.5 * square - 0.5 * n * math.log(2 * math.pi)
        d = jnp.asarray(self.degrees, x.dtype)
        constant = gammaln(0.5 * (n + d)) - gammaln(0.5 * d) - 0.5 * n * jnp.log(math.pi * d)
        return constant - 0.5 * (n + d) * jnp.log1p(square / d)


def empirical_denoiser(path: Path, points: Array, noise: StudentNoise) -> Field:
    r"""The exact denoiser $E[x_1 | x_t] = \sum_i w_i y_i$ of data that are points $y_i$ (n, ...), for Student noise.

    $\ln w_i = \ln p_0((x - \beta y_i)/\alpha)$ up to a constant: what a perfectly trained PFGM++ (or, for D infinite,
    EDM) model is. **Errors** `ValueError` for a path with gamma. **Cost** n N an evaluation.
    """
    if not path.one_sided:
        raise ValueError("empirical_denoiser needs a path without gamma, whose source is the noise")
    return _EmpiricalDenoiser(path, jnp.asarray(points), noise)


class _EmpiricalDenoiser(eqx.Module):
    path: Path
    points: Array
    noise: StudentNoise

    def __call__(self, t: Scalar, x: Array, args: PyTree = None) -> Array:
        y = self.points.astype(x.dtype)
        (a, b, _), _ = self.path.coefficients(jnp.asarray(t, x.dtype))
        log_w = jax.vmap(lambda y: self.noise.log_prob((x - b * y) / a))(y)
        return jnp.tensordot(jax.nn.softmax(log_w), y, 1)
