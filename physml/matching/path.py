r"""Probability paths $x_t = \alpha(t) x_0 + \beta(t) x_1 + \gamma(t) z$ from a source at t = 0 to data at t = 1."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from physml.core.types import Scalar

Schedule = Callable[[Any], Any]


class Record(NamedTuple):
    """One sample of a path: t, the state x_t, its velocity dx_t/dt, and what it was made of."""

    t: Array
    x: Array
    velocity: Array
    z: Array
    x0: Array
    x1: Array


class Path(eqx.Module):
    r"""The interpolant $x_t = \alpha(t) x_0 + \beta(t) x_1 + \gamma(t) z$, $z \sim N(0, I)$.

    **Arguments.** `alpha`, `beta`, `gamma`: functions of time, derivatives by forward differentiation. `gamma` None:
    no extra noise. A path without `gamma` is *one-sided* when its source is N(0, I): x0 is then the noise, and
    velocity, score, denoiser and noise determine each other (`convert`). `cut`: training draws t from [cut, 1 - cut]
    because the velocity of this path is not square-integrable up to the ends.

    **See** Albergo, Boffi and Vanden-Eijnden, Stochastic interpolants (2023), eq. 2.1.
    """

    alpha: Schedule
    beta: Schedule
    gamma: Schedule | None = None
    cut: float = eqx.field(static=True, default=0.0)

    @property
    def one_sided(self) -> bool:
        """True when the source itself is the noise of the path."""
        return self.gamma is None

    def coefficients(self, t: Any) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
        """(alpha, beta, gamma) and their time derivatives at t."""
        t = jnp.asarray(t)
        t = t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)
        schedules = (self.alpha, self.beta, self.gamma or (lambda t: 0.0 * t))
        values = lambda t: tuple(jnp.asarray(s(t), t.dtype) for s in schedules)
        return jax.jvp(values, (t,), (jnp.ones_like(t),))

    def at(self, t: Any, x0: PyTree, x1: PyTree, z: PyTree) -> Record:
        """The record of one sample; z is unused on a path without gamma."""
        (a, b, c), (da, db, dc) = self.coefficients(t)
        mix = lambda a, b, c: a * x0 + b * x1 + (0.0 if self.gamma is None else c * z)
        return Record(jnp.asarray(t), mix(a, b, c), mix(da, db, dc), x0 if self.one_sided else z, x0, x1)

    def start(self, x0: PyTree) -> PyTree:
        """The state at t = 0 of a source sample: alpha(0) x0 (a path from N(0, s^2 I) scales N(0, I) up)."""
        (a, _, _), _ = self.coefficients(jnp.zeros((), x0.dtype))
        return a * x0


def linear() -> Path:
    r"""$x_t = (1 - t) x_0 + t x_1$: rectified flow, flow matching with the straight path."""
    return Path(lambda t: 1.0 - t, lambda t: t)


def trigonometric() -> Path:
    r"""$x_t = \cos(\pi t/2)\, x_0 + \sin(\pi t/2)\, x_1$: keeps the variance of uncorrelated unit-variance ends."""
    return Path(lambda t: jnp.cos(0.5 * jnp.pi * t), lambda t: jnp.sin(0.5 * jnp.pi * t))


def brownian_bridge(sigma: Scalar = 1.0) -> Path:
    r"""$x_t = (1 - t) x_0 + t x_1 + \sigma \sqrt{t(1 - t)}\, z$: a two-sided path, a bridge of temperature sigma^2."""
    if isinstance(sigma, int | float) and sigma < 0:
        raise ValueError(f"sigma must not be negative, got {sigma}")

    def gamma(t):
        # The square root has no slope at the ends: a floor far below resolution keeps it finite there.
        return sigma * jnp.sqrt(jnp.maximum(t * (1.0 - t), 1e-12))

    return Path(lambda t: 1.0 - t, lambda t: t, gamma, cut=1e-3)
