"""Divergences of vector fields."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array


def divergence(f: Callable[[Array], Array], x: Array, probe: Array | None = None) -> tuple[Array, Array]:
    r"""f(x) and $\sum_i \partial_i f_i$ at x: exactly, by as many forward passes as x has entries, or estimated by
    $\xi^\top (\partial f)\, \xi$ with a `probe` $\xi$ of unit covariance (Hutchinson), by one.

    f maps an array to one of the same shape.
    """
    if probe is not None:
        value, slope = jax.jvp(f, (x,), (probe,))
        return value, jnp.sum(probe * slope)
    value, tangent = jax.linearize(f, x)
    basis = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    return value, jnp.trace(jax.vmap(tangent)(basis).reshape(x.size, x.size))
