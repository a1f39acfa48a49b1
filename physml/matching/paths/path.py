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

    def coefficients(self, t: Any) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
        """(alpha, beta, gamma) and their time derivatives at t."""
        t = jnp.asarray(t)
        t = t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)
        t = jnp.clip(t, 1e-6, 1 - 1e-6) if self.cut > 0 else t
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

    return Path(lambda t: 1.0 - t, lambda t: t, lambda t: sigma * jnp.sqrt(t * (1.0 - t)), cut=1e-3)


def mirror(sigma: Scalar = 1.0) -> Path:
    r"""$x_t = x_1 + \sigma \sqrt{t(1 - t)}\, z$: from the data back to the data; its score is that of noised data."""
    _check_positive(sigma=sigma)
    return Path(lambda t: 0.0 * t, lambda t: 1.0 + 0.0 * t, lambda t: sigma * jnp.sqrt(t * (1.0 - t)), cut=1e-3)


def variance_preserving(beta_min: Scalar = 0.1, beta_max: Scalar = 20.0) -> Path:
    r"""$\alpha^2 + \beta^2 = 1$ with $\ln\beta = -\tfrac14 s^2 (b_{max} - b_{min}) - \tfrac12 s\, b_{min}$, s = 1 - t.

    The law of DDPM and the VP-SDE run backwards: t = 1 is data. **See** Song et al. (2021), eq. 33.
    """
    _check_positive(beta_min=beta_min, beta_max=beta_max)
    log_beta = _vp_log_mean(beta_min, beta_max)
    return Path(lambda t: jnp.sqrt(-jnp.expm1(2 * log_beta(t))), lambda t: jnp.exp(log_beta(t)), cut=1e-3)


def sub_variance_preserving(beta_min: Scalar = 0.1, beta_max: Scalar = 20.0) -> Path:
    r"""The sub-VP law: $\beta$ of `variance_preserving` and $\alpha = 1 - \beta^2$.

    **See** Song et al. (2021), eq. 32.
    """
    _check_positive(beta_min=beta_min, beta_max=beta_max)
    log_beta = _vp_log_mean(beta_min, beta_max)
    return Path(lambda t: -jnp.expm1(2 * log_beta(t)), lambda t: jnp.exp(log_beta(t)))


def variance_exploding(sigma_min: Scalar = 0.01, sigma_max: Scalar = 50.0) -> Path:
    r"""$x_t = x_1 + \sigma_{min}^t \sigma_{max}^{1-t} x_0$. **See** Song et al. (2021), eq. 31."""
    _check_order(sigma_min, sigma_max)
    return Path(lambda t: sigma_max * (sigma_min / sigma_max) ** t, lambda t: 1.0 + 0.0 * t)


def edm(sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0, rho: Scalar = 7.0) -> Path:
    r"""$x_t = x_1 + \sigma(t) x_0$ with $\sigma(t)^{1/\rho}$ linear in t, from `sigma_max` to `sigma_min`.

    Equal steps in t are the noise levels of Karras et al. (2022), eq. 5.
    """
    _check_order(sigma_min, sigma_max)
    _check_positive(rho=rho)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return Path(lambda t: (top + t * (bottom - top)) ** rho, lambda t: 1.0 + 0.0 * t)


def _vp_log_mean(beta_min, beta_max):
    return lambda t: -0.25 * (1.0 - t) ** 2 * (beta_max - beta_min) - 0.5 * (1.0 - t) * beta_min


def _check_positive(**values):
    for name, value in values.items():
        if isinstance(value, int | float) and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


def _check_order(sigma_min, sigma_max):
    _check_positive(sigma_min=sigma_min, sigma_max=sigma_max)
    if isinstance(sigma_min, int | float) and isinstance(sigma_max, int | float) and sigma_min >= sigma_max:
        raise ValueError(f"sigma_min must be below sigma_max, got {sigma_min} and {sigma_max}")
