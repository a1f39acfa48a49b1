"""The linear assignment of a matrix of costs, on the host: SciPy's solver, led by entropic potentials."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.buffer_callback import buffer_callback

from physml.core.types import is_traced

# Temperatures of the potentials over the mean cost, and updates of the scalings at each. The second pays from some
# 2000 rows on, where the search costs more than the exponentials.
_TEMPERATURES = (0.03, 0.003)
_LARGE = 2000
_SCALINGS = 20


def assign(cost: np.ndarray) -> np.ndarray:
    r"""The permutation $\sigma$ of least $\sum_i C_{i\sigma(i)}$, exactly: the column of every row.

    What is taken off a row or a column of C leaves the optimum where it is. Potentials f, g of the entropic plan make
    $C_{ij} - f_i - g_j$ nearly zero on the optimum, and the search of shortest augmenting paths short. An infinite cost
    forbids a pair; a cost that is not a number counts as zero, because a diverged sample has no optimum.
    """
    from scipy.optimize import linear_sum_assignment

    # In float64: in float32 the rounding of the potentials could move the optimum.
    cost = np.where(np.isnan(cost), 0.0, cost).astype(np.float64, copy=False)
    if len(cost) > 1:
        g = _potential(cost)
        cost = cost - g[None, :]
        cost -= cost.min(1, keepdims=True)
    return linear_sum_assignment(cost)[1].astype(np.int32)


def on_host(function: Callable[..., np.ndarray], like: jax.ShapeDtypeStruct, *args: Any) -> jax.Array:
    """`function` of numpy arrays, inside jit and out, mapped by vmap one after the other.

    The host's own device hands its memory over: `pure_callback` makes arrays of it by a copy that may wait for the
    thread it is called from, and on one core it waits forever. For the same reason values that are known go straight to
    the function.
    """
    if not is_traced(args):
        return jnp.asarray(function(*map(np.asarray, args)), like.dtype)

    def in_place(_, out, *buffers):
        np.asarray(out)[...] = function(*map(np.asarray, buffers))

    copied = lambda *xs: jax.pure_callback(
        lambda *xs: function(*map(np.asarray, xs)), like, *xs, vmap_method="sequential"
    )
    return lax.platform_dependent(*args, cpu=buffer_callback(in_place, like, vmap_method="sequential"), default=copied)


def _potential(cost: np.ndarray) -> np.ndarray:
    """Nearly optimal duals of the columns, by alternating scalings; in float32, for any duals serve."""
    mean = np.mean(cost, where=np.isfinite(cost))
    if not 0 < mean < np.inf:
        return np.zeros(len(cost))
    scaled = (cost / mean).astype(np.float32)
    g = np.zeros(len(cost), np.float32)
    # Scalings of float32: a sum that underflows must not turn into an infinite one.
    inverse = lambda total: 1 / np.maximum(total, 1e-20)
    for temperature in np.asarray(_TEMPERATURES[: 1 + (len(cost) > _LARGE)], np.float32):
        kernel = g[None, :] - scaled
        # About its largest entry no row underflows.
        kernel -= kernel.max(1, keepdims=True)
        np.exp(np.divide(kernel, temperature, out=kernel), out=kernel)
        b = np.ones_like(g)
        for _ in range(_SCALINGS):
            b = inverse(inverse(kernel @ b) @ kernel)
        g += temperature * np.log(b)
    return mean * g.astype(np.float64)
