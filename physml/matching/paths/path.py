r"""Probability paths $x_t = \alpha(t) x_0 + \beta(t) x_1 + \gamma(t) z$ from a source at t = 0 to data at t = 1."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from physml.core.check import known, number
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
    velocity, score, denoiser and noise determine each other (`convert`). `cut`: for schedules with infinite slope at
    an end; training draws t from [cut, 1 - cut] because the velocity is not square-integrable up to there, and
    coefficients are taken no nearer to an end than 1e-6, so that nothing is NaN at t = 0 or 1.

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

    def coefficients(self, t: Scalar) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
        """(alpha, beta, gamma) and their time derivatives at t."""
        t = jnp.asarray(t)
        t = t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)
        t = jnp.clip(t, 1e-6, 1 - 1e-6) if self.cut > 0 else t
        schedules = (self.alpha, self.beta, self.gamma or _nothing)
        values = lambda t: tuple(jnp.asarray(s(t), t.dtype) for s in schedules)
        return jax.jvp(values, (t,), (jnp.ones_like(t),))

    def at(self, t: Scalar, x0: PyTree, x1: PyTree, z: PyTree) -> Record:
        """The record of one sample; z is unused on a path without gamma."""
        (a, b, c), (da, db, dc) = self.coefficients(t)
        mix = lambda a, b, c: a * x0 + b * x1 + (0.0 if self.gamma is None else c * z)
        return Record(jnp.asarray(t), mix(a, b, c), mix(da, db, dc), x0 if self.one_sided else z, x0, x1)

    def start(self, x0: PyTree) -> PyTree:
        """The state at t = 0 of a source sample: alpha(0) x0 (a path from N(0, s^2 I) scales N(0, I) up)."""
        (a, _, _), _ = self.coefficients(jnp.zeros((), x0.dtype))
        return a * x0


# Schedules are functions of this module, parameters bound as leaves: an equal path compiles nothing again.


def linear() -> Path:
    r"""$x_t = (1 - t) x_0 + t x_1$: rectified flow, flow matching with the straight path."""
    return Path(_fall, _rise)


def trigonometric() -> Path:
    r"""$x_t = \cos(\pi t/2)\, x_0 + \sin(\pi t/2)\, x_1$: keeps the variance of uncorrelated unit-variance ends."""
    return Path(_quarter_cos, _quarter_sin)


def brownian_bridge(sigma: Scalar = 1.0) -> Path:
    r"""$x_t = (1 - t) x_0 + t x_1 + \sigma \sqrt{t(1 - t)}\, z$: a two-sided path, a bridge of temperature sigma^2."""
    return Path(_fall, _rise, Partial(_bridge, _parameter(sigma, "sigma", least=0)), cut=1e-3)


def mirror_interpolant(sigma: Scalar = 1.0) -> Path:
    r"""$x_t = x_1 + \sigma \sqrt{t(1 - t)}\, z$: from the data back to the data; its score is that of noised data."""
    return Path(_nothing, _one, Partial(_bridge, _parameter(sigma, "sigma", above=0)), cut=1e-3)


def variance_preserving(beta_min: Scalar = 0.1, beta_max: Scalar = 20.0) -> Path:
    r"""$\alpha^2 + \beta^2 = 1$ with $\ln\beta = -\tfrac14 s^2 (b_{max} - b_{min}) - \tfrac12 s\, b_{min}$, s = 1 - t.

    The law of DDPM and the VP-SDE run backwards: t = 1 is data. **See** Song et al. (2021), eq. 33.
    """
    ends = _ordered("beta_min", beta_min, "beta_max", beta_max)
    return Path(Partial(_vp_noise, *ends), Partial(_vp_signal, *ends), cut=1e-3)


def sub_variance_preserving(beta_min: Scalar = 0.1, beta_max: Scalar = 20.0) -> Path:
    r"""The sub-VP law: $\beta$ of `variance_preserving` and $\alpha = 1 - \beta^2$.

    **See** Song et al. (2021), eq. 32.
    """
    ends = _ordered("beta_min", beta_min, "beta_max", beta_max)
    return Path(Partial(_sub_vp_noise, *ends), Partial(_vp_signal, *ends))


def variance_exploding(sigma_min: Scalar = 0.01, sigma_max: Scalar = 50.0) -> Path:
    r"""$x_t = x_1 + \sigma_{min}^t \sigma_{max}^{1-t} x_0$. **See** Song et al. (2021), eq. 31."""
    return Path(Partial(_geometric, *_ordered("sigma_min", sigma_min, "sigma_max", sigma_max)), _one)


def edm(sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0, rho: Scalar = 7.0) -> Path:
    r"""$x_t = x_1 + \sigma(t) x_0$ with $\sigma(t)^{1/\rho}$ linear in t, from `sigma_max` to `sigma_min`.

    Equal steps in t are the noise levels of Karras et al. (2022), eq. 5.
    """
    ends = _ordered("sigma_min", sigma_min, "sigma_max", sigma_max)
    return Path(Partial(_power, *ends, _parameter(rho, "rho", above=0)), _one)


def _rise(t):
    return t


def _fall(t):
    return 1.0 - t


def _one(t):
    return 1.0 + 0.0 * t


def _nothing(t):
    return 0.0 * t


def _quarter_cos(t):
    return jnp.cos(0.5 * jnp.pi * t)


def _quarter_sin(t):
    return jnp.sin(0.5 * jnp.pi * t)


def _bridge(sigma, t):
    return jnp.asarray(sigma, t.dtype) * jnp.sqrt(t * (1.0 - t))


def _log_signal(low, high, t):
    low, high = jnp.asarray(low, t.dtype), jnp.asarray(high, t.dtype)
    return -0.25 * (1.0 - t) ** 2 * (high - low) - 0.5 * (1.0 - t) * low


def _vp_signal(low, high, t):
    return jnp.exp(_log_signal(low, high, t))


def _vp_noise(low, high, t):
    return jnp.sqrt(-jnp.expm1(2 * _log_signal(low, high, t)))


def _sub_vp_noise(low, high, t):
    return -jnp.expm1(2 * _log_signal(low, high, t))


def _geometric(low, high, t):
    return jnp.asarray(high, t.dtype) * jnp.asarray(low / high, t.dtype) ** t


def _power(low, high, rho, t):
    top, bottom = jnp.asarray(high ** (1 / rho), t.dtype), jnp.asarray(low ** (1 / rho), t.dtype)
    return (top + t * (bottom - top)) ** jnp.asarray(rho, t.dtype)


def _parameter(value, name, **bounds):
    """A number of a schedule, checked. One of Python's stays one: a path inside a model must not be trained with it."""
    number(value, name, **bounds)
    return value if isinstance(value, jax.Array) else float(value)


def _ordered(low_name, low, high_name, high):
    """Two positive numbers, the first below the second."""
    low, high = _parameter(low, low_name, above=0), _parameter(high, high_name, above=0)
    bottom, top = known(low), known(high)
    if bottom is not None and top is not None and not bottom < top:
        raise ValueError(f"{low_name} must be below {high_name}, got {low} and {high}")
    return low, high
