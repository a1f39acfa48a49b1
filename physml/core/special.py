"""Partition functions, weights and Gaussian tails in the log domain."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, logsumexp
from jaxtyping import Array


def log_erfc(x: Any) -> Array:
    r"""$\ln \operatorname{erfc}(x)$, finite for every x: $-x^2 - \ln(x\sqrt\pi)$ in the upper tail."""
    return math.log(2.0) + log_ndtr(-math.sqrt(2.0) * jnp.asarray(x))


def log_gaussian_tail(x: Any) -> Array:
    r"""$\ln H(x)$ with $H(x) = \int_x^\infty \frac{dz}{\sqrt{2\pi}} e^{-z^2/2}$, Gardner's function."""
    return log_ndtr(-jnp.asarray(x))


def log_2cosh(x: Any) -> Array:
    r"""$\ln(2\cosh x) = |x| + \ln(1 + e^{-2|x|})$, with slope tanh x everywhere."""
    x = jnp.asarray(x)
    # logaddexp is smooth at 0, where a derivative through |x| would be taken from one side.
    return jnp.logaddexp(x, -x)


def log_mean_exp(log_w: Any, axis: int | tuple[int, ...] | None = None, where: Any = None) -> Array:
    r"""$\ln \frac1n \sum_i e^{\ell_i}$ over `axis`, over the entries where `where` holds if it is given.

    `-inf` entries are zeros and count in n. An empty mean is `-inf`.
    """
    log_w = jnp.asarray(log_w)
    if where is None:
        count = log_w.size if axis is None else math.prod(log_w.shape[a] for a in _axes(axis))
        return logsumexp(log_w, axis=axis) - math.log(max(count, 1))
    where = jnp.broadcast_to(where, log_w.shape)
    count = where.sum(axis).astype(log_w.dtype)
    return logsumexp(log_w, axis=axis, where=where) - jnp.log(jnp.maximum(count, 1.0))


def _axes(axis):
    return (axis,) if isinstance(axis, int) else axis


def log_sub_exp(a: Any, b: Any) -> Array:
    r"""$\ln(e^a - e^b)$ for $a \ge b$; `-inf` where they are equal, NaN where a < b."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    gap = jnp.where((a == b) & jnp.isinf(a), 0.0, a - b)  # two zeros differ by zero
    # ln(1 - e^{-gap}) two ways, each where it loses no digits; the inner `where` keeps gradients finite.
    small = gap < math.log(2.0)
    near = jnp.log(-jnp.expm1(-jnp.where(small, gap, 1.0)))
    far = jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, gap)))
    return a + jnp.where(small, near, far)


def normalise_log_weights(log_w: Array, axis: int = -1) -> tuple[Array, Array]:
    """Self-normalised weights, and how many log-weights were not numbers or +inf.

    Those become -inf, weight zero, and are counted: put the count into a status, never drop it.
    """
    bad = jnp.isnan(log_w) | (log_w == jnp.inf)
    return jax.nn.softmax(jnp.where(bad, -jnp.inf, log_w), axis=axis), bad.sum(axis)
