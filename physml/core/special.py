r"""Functions of one number that keep full relative accuracy everywhere, and cheap derivatives."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array


@jax.custom_jvp
def tanh_family(x: Array) -> tuple[Array, Array, Array]:
    r"""$\tanh x$, $1/\cosh^2 x$ and $\ln 2\cosh x$ without overflow, to full relative accuracy."""
    size = jnp.abs(x)
    e = jnp.exp(-2 * size)
    return jnp.tanh(x), 4 * e / (1 + e) ** 2, size + jnp.log1p(e)


@tanh_family.defjvp
def _(primals, tangents):
    # Derivatives are products of the values: programs with second derivatives compile several times faster.
    tanh, slope, log = tanh_family(*primals)
    (v,) = tangents
    return (tanh, slope, log), (slope * v, -2 * tanh * slope * v, tanh * v)


def sech2(x: Array) -> Array:
    r"""$1/\cosh^2 x$, the slope of tanh."""
    return tanh_family(x)[1]


def log_2cosh(x: Array) -> Array:
    r"""$\ln(2\cosh x) = |x| + \ln(1 + e^{-2|x|})$, with slope tanh x everywhere."""
    return tanh_family(jnp.asarray(x))[2]


@jax.custom_jvp
def normal_tail(x: Array) -> tuple[Array, Array]:
    r"""$\ln\Phi(x)$ and its slope $g = \Phi'(x)/\Phi(x)$, for every x."""
    log = log_ndtr(x)
    return log, jnp.exp(-0.5 * x**2 - 0.5 * math.log(2 * math.pi) - log)


@normal_tail.defjvp
def _(primals, tangents):
    # Products of the values again.
    log, g = normal_tail(*primals)
    return (log, g), (g * tangents[0], -g * (g + primals[0]) * tangents[0])


def mills(x: Array) -> Array:
    r"""$\Phi'(x)/\Phi(x)$, for every x: the inverse of Mills' ratio at -x."""
    return normal_tail(x)[1]


def normalise_log_weights(log_w: Array, axis: int = -1) -> tuple[Array, Array]:
    """Self-normalised weights, and how many log-weights were not numbers or +inf.

    Those become -inf, weight zero, and are counted: put the count into a status, never drop it. Where no weight is left
    all of them are zero.
    """
    bad = jnp.isnan(log_w) | (log_w == jnp.inf)
    log_w = jnp.where(bad, -jnp.inf, log_w)
    some = jnp.max(log_w, axis=axis, keepdims=True) > -jnp.inf
    return jnp.where(some, jax.nn.softmax(jnp.where(some, log_w, 0.0), axis=axis), 0.0), bad.sum(axis)
