r"""What `tune` learns from many chains at once: a step size, a length of trajectories, a preconditioner.

**Step size**, by dual averaging of a signal g that is positive where the step is too long:

$$\bar g_m = \Bigl(1 - \tfrac1{m + 10}\Bigr)\bar g_{m-1} + \tfrac{g_m}{m + 10}, \qquad
  \ln h_m = \mu - 20\sqrt m\,\bar g_m, \qquad \ln\bar h_m = m^{-3/4}\ln h_m + (1 - m^{-3/4})\ln\bar h_{m-1}$$

**Length** $\ell$, by ascent of the change of the squared radius for a unit of work,
$C = \frac14\langle(|y' - \bar y'|^2 - |y - \bar y|^2)^2\rangle/\ell$ in coordinates $y = L^{-1}x$ (ChEES).

**Preconditioner**, from the pooled covariance of a window of draws: dense, or diagonal with the leading directions.
Of m draws in d dimensions a direction of variance s shows the variance $\lambda = s(1 + \gamma/(s - 1))$, $\gamma =
d/m$, if it shows at all, $\lambda > (1 + \sqrt\gamma)^2$; what is kept is s.

**See** Hoffman and Gelman, The no-U-turn sampler (2014), section 3.2; Hoffman, Radul and Sountsov, An adaptive MCMC
scheme for setting trajectory lengths (2021), algorithm 1; Baik and Silverstein (2006) for the variances that show.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from physml.particles.kernels.precondition import Preconditioner

DENSE = 100  # entries up to which correlations are kept in full
DIRECTIONS = 10  # leading ones beyond


class Average(NamedTuple):
    """A number on its way, in logarithms, and the average that forgets its beginning."""

    now: Array
    signal: Array
    average: Array
    count: Array
    start: Array

    @classmethod
    def begin(cls, value: Array) -> "Average":
        log = jnp.log(value)
        zero = jnp.zeros_like(log)
        return cls(log, zero, log, zero, log)

    def moved(self, now: Array, signal: Array) -> "Average":
        """The average with one more number."""
        m = self.count + 1
        weight = m**-0.75
        return Average(now, signal, weight * now + (1 - weight) * self.average, m, self.start)

    def dual(self, g: Array) -> "Average":
        """One step of dual averaging."""
        m = self.count + 1
        signal = self.signal + (g - self.signal) / (m + 10)
        return self.moved(self.start - 20 * jnp.sqrt(m) * signal, signal)

    def ascend(self, slope: Array, most: Array) -> "Average":
        """One step of Adam, without momentum, along the slope in the logarithm."""
        m = self.count + 1
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        square = 0.95 * self.signal + 0.05 * slope**2
        rate = 0.1 / jnp.sqrt(1 + m / 20)
        step = rate * slope / jnp.sqrt(jnp.maximum(square / (1 - 0.95**m), 1e-30))
        return self.moved(jnp.minimum(self.now + step, jnp.log(most)), square)


def acceptance(log_ratio: Array) -> Array:
    """min(1, e^log_ratio), 0 for what is not a number."""
    return jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))


def square_error(log_ratio: Array, energy: Array, size: int) -> Array:
    """Mean over chains of the squared error in energy for each dimension, less what rounding of the energy makes."""
    rounding = 4 * jnp.finfo(log_ratio.dtype).eps * jnp.abs(energy)
    square = jnp.maximum(log_ratio**2 - rounding**2, 0)
    return jnp.mean(jnp.where(jnp.isfinite(square), jnp.minimum(square, 1e6), 1e6)) / size


def too_large(error: Array, target: Array) -> Array:
    """The signal of a step whose error grows as h^6 or, overdamped, as h^3."""
    return jnp.clip(jnp.log(jnp.maximum(error, 1e-30) / target) / 6, -0.5, 0.5)


def length_slope(x: Array, y: Array, velocity: Array, duration: Array, log_ratio: Array) -> Array:
    r"""$\ell\,d C/d\ln\ell$, from whitened positions before and after (d, chains), velocities there and durations."""
    weight = acceptance(log_ratio)
    y = jnp.where(weight[None] > 0, y, 0)
    velocity = jnp.where(weight[None] > 0, velocity, 0)
    share = weight / jnp.maximum(jnp.sum(weight), 1e-30)
    x, y = x - jnp.mean(x, 1, keepdims=True), y - y @ share[:, None]
    change = jnp.sum(y**2, 0) - jnp.sum(x**2, 0)
    way = duration[None] * velocity
    slope = change * jnp.sum(y * (way - way @ share[:, None]), 0)
    return jnp.sum(share * (slope - change**2 / 4))


class Moments(NamedTuple):
    """Of the draws of a window: how many, their mean (d,), sums of squares (d,) or products (d, d) about it; and some
    of the draws, (few, d, chains), from which leading directions are taken where products are not kept."""

    count: Array
    mean: Array
    square: Array
    kept: Array

    @classmethod
    def begin(cls, x: Array, products: bool, few: int = 8) -> "Moments":
        d, chains = x.shape
        kept = jnp.zeros((0 if products else few, d, chains), x.dtype)
        return cls(jnp.zeros((), x.dtype), jnp.zeros(d, x.dtype), jnp.zeros((d, d)[: 1 + products], x.dtype), kept)

    def plus(self, x: Array, place: Array) -> "Moments":
        """With the chains' positions (d, chains); the share `place` of the window has passed."""
        chains = x.shape[1]
        mean = jnp.mean(x, 1)
        shift, rest, count = mean - self.mean, x - mean[:, None], self.count + chains
        if self.square.ndim == 2:
            square = rest @ rest.T + shift[:, None] * shift[None, :] * (self.count * chains / count)
        else:
            square = jnp.sum(rest**2, 1) + shift**2 * (self.count * chains / count)
        few = len(self.kept)
        kept = self.kept.at[jnp.minimum((place * few).astype(jnp.int32), few - 1)].set(x) if few else self.kept
        return Moments(count, self.mean + shift * chains / count, self.square + square, kept)

    @property
    def covariance(self) -> Array:
        """(d,) or (d, d)."""
        return self.square / jnp.maximum(self.count, 1)


def preconditioner(moments: Moments, kind: str) -> tuple[Preconditioner, Array]:
    """What whitens the draws of a window, and the largest variance that is left."""
    covariance, dtype = moments.covariance, moments.mean.dtype
    variance = jnp.diag(covariance) if covariance.ndim == 2 else covariance
    deviations = jnp.sqrt(jnp.maximum(variance, jnp.finfo(dtype).tiny))
    d, one = len(deviations), jnp.ones((), dtype)
    nothing = Preconditioner(deviations, jnp.zeros((d, 0), dtype), jnp.zeros(0, dtype))
    if covariance.ndim == 2:
        correlation = covariance / (deviations[:, None] * deviations[None, :])
        # As if d more draws had shown no correlation.
        trust = moments.count / (moments.count + d)
        values, vectors = jnp.linalg.eigh(trust * correlation + (1 - trust) * jnp.eye(d, dtype=dtype))
        if kind == "diagonal":
            return nothing, jnp.maximum(values[-1], one)
        return Preconditioner(deviations, vectors, jnp.sqrt(jnp.maximum(values, 1e-6))), one
    draws = jnp.moveaxis(moments.kept, 1, 0).reshape(d, -1)
    y = (draws - moments.mean[:, None]) / deviations[:, None]
    vectors, sizes, _ = jnp.linalg.svd(y / jnp.sqrt(jnp.asarray(y.shape[1], dtype)), full_matrices=False)
    spikes = true_variance(sizes**2, d / y.shape[1])
    if kind == "diagonal":
        return nothing, jnp.maximum(spikes[0], one)
    r = min(DIRECTIONS, len(spikes))
    return Preconditioner(deviations, vectors[:, :r], jnp.sqrt(spikes[:r])), one


def true_variance(shown: Array, ratio: float) -> Array:
    r"""s from $\lambda = s(1 + \gamma/(s - 1))$; 1 below the edge $(1 + \sqrt\gamma)^2$ of what noise alone shows."""
    b = shown + 1 - ratio
    s = (b + jnp.sqrt(jnp.maximum(b**2 - 4 * shown, 0))) / 2
    return jnp.where(shown > (1 + ratio**0.5) ** 2, s, 1)


def departure(moments: Moments, scale: Preconditioner, mean: Array) -> tuple[Array, Array, Array]:
    """How a window differs from the one before: least and largest standard deviation of whitened draws, shift of the
    mean in standard deviations."""
    covariance = moments.covariance
    if covariance.ndim == 2:
        sizes = jnp.linalg.eigvalsh(scale.whiten(scale.whiten(covariance).T))
        variance = jnp.diag(covariance)
    else:
        sizes = covariance / scale.deviations**2
        variance = covariance
    shift = jnp.max(jnp.abs(moments.mean - mean) / jnp.sqrt(jnp.maximum(variance, jnp.finfo(mean.dtype).tiny)))
    root = lambda v: jnp.sqrt(jnp.maximum(v, 1e-12))
    return root(jnp.min(sizes)), root(jnp.max(sizes)), shift


def identity(x: Array, kind: str) -> Preconditioner:
    """No preconditioning, with the shapes that the kind will have."""
    d = len(x)
    r = 0 if kind == "diagonal" else d if d <= DENSE else min(DIRECTIONS, d, 8 * x.shape[1])
    eye = jnp.eye(d, r, dtype=x.dtype)
    return Preconditioner(jnp.ones(d, x.dtype), eye, jnp.ones(r, x.dtype))
