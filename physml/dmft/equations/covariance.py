"""Square roots of covariances that were estimated: singular up to rounding, differentiable."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from physml.core.float64 import in_float64


@jax.custom_jvp
def root(covariance: Array) -> Array:
    """Lower triangular square root of a covariance that may be singular up to rounding in float32.

    Factorised in float64; the derivative is written out, because rules applied to the factorisation would leave
    float64.
    """
    return _cholesky(covariance + _jitter(covariance))


_cholesky = in_float64(jnp.linalg.cholesky)


def _jitter(covariance):
    """Of the mean variance 1e-5, or what rounding takes from the smallest eigenvalue: it grows with the largest."""
    size, dtype = len(covariance), covariance.dtype
    share = max(1e-5, size * float(jnp.finfo(dtype).eps))
    return share * jnp.mean(jnp.diag(covariance)) * jnp.eye(size, dtype=dtype)


@root.defjvp
def _root_jvp(primals, tangents):
    L, move = root(*primals), tangents[0]
    move = move + _jitter(move)
    solve = lambda b: jax.scipy.linalg.solve_triangular(L, b, lower=True)
    inner = jnp.tril(solve(solve(move).T))
    return L, L @ (inner - 0.5 * jnp.diag(jnp.diag(inner)))
