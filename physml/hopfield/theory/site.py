r"""One spin in a Gaussian field: the averages that every replica-symmetric theory of this room needs.

$$\langle f\rangle = \int Dz\, f\bigl(\beta(h + \sqrt V z)\bigr), \qquad Dz = \frac{dz}{\sqrt{2\pi}} e^{-z^2/2}$$

At low temperature tanh is a step of width $T/\sqrt V$ at $z_0 = -h/\sqrt V$. With $z = c + w\sinh u$, c near $z_0$ and
$w = \min(T/\sqrt V, 1)$, the integrand is analytic in a strip around the real u axis whose width does not depend on T,
so the trapezoidal rule converges geometrically with one number of nodes for every temperature down to $10^{-6}$, where
what is left of T is of relative order $10^{-12}$: a site at T = 0 is computed there.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from physml.core.special import tanh_family

COLDEST = 1e-6  # of one site: T enters elsewhere as it is
NODES = 321


class Site(eqx.Module):
    r"""`m` $= \langle\tanh\rangle$, `q` $= \langle\tanh^2\rangle$, `chi` $= \beta\langle\mathrm{sech}^2\rangle$,
    `kappa` $= \beta^2\langle\mathrm{sech}^4\rangle$, `log` $= T\langle\ln 2\cosh\rangle$, and the derivatives of chi
    with respect to the mean field, `chi1` and `chi2`. Because a Gaussian diffuses, $\partial_V = \frac12\partial_h^2$:
    those of m are $\partial_h m = \chi$ and $\partial_V m = \chi_1/2$."""

    m: Array
    q: Array
    chi: Array
    kappa: Array
    log: Array
    chi1: Array
    chi2: Array


def nodes(centre: Array, width: Array, n: int = NODES) -> tuple[Array, Array]:
    r"""z and weights of $\int Dz$ for integrands that change over `width` near z = `centre`; n points each."""
    c = jnp.clip(centre, -6.5, 6.5)
    w = jnp.clip(width, COLDEST, 1.0)
    far = (9.0 + jnp.abs(c)) / w
    edge = jnp.log(far + jnp.sqrt(far**2 + 1))
    up = jnp.exp(edge * np.linspace(-1.0, 1.0, n))
    down = up[::-1]
    z = c + 0.5 * w * (up - down)
    return z, 0.5 * w * (up + down) * jnp.exp(-0.5 * z**2) * (2 * edge / (n - 1) / math.sqrt(2 * math.pi))


@jax.jit
def site(mean: Array, variance: Array, temperature: Array) -> Site:
    """Averages over a Gaussian field of this mean and variance: float64 scalars; smooth in all three, and at T = 0."""
    t = jnp.maximum(temperature, COLDEST)
    # The root has an infinite slope at 0, where every average is smooth in the variance.
    spread = jnp.sqrt(variance + 1e-20)
    z, w = lax.stop_gradient(nodes(-mean / spread, t / spread))
    # Derivatives go through whichever is the smoother: the density of the field at fixed nodes, or, where the noise is
    # narrower than the step of the tanh, the field at fixed noise.
    moves = lax.stop_gradient(spread < t)
    held = lambda v: jnp.where(moves, v, lax.stop_gradient(v))
    field = held(mean + spread * z)
    moved = jnp.where(moves, z, (field - mean) / spread)
    w = w * jnp.exp(0.5 * (z - moved) * (z + moved)) * held(spread) / spread
    tanh, slope, log = tanh_family(field / t)
    slope = slope / t
    # Derivatives by parts, on the Gaussian: those of the step are not resolved at low temperature.
    chi1, chi2 = (w * slope) @ moved / spread, (w * slope) @ (moved**2 - 1) / spread**2
    return Site(w @ tanh, w @ tanh**2, w @ slope, w @ slope**2, t * (w @ log), chi1, chi2)
