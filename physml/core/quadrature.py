r"""Nodes and weights: Gauss and Hermite for Gaussian averages, Gauss and Legendre, the trapezoid rule."""

import functools

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from physml.core.check import count
from physml.core.types import Scalar


@functools.lru_cache(maxsize=64)
def _rule(n: int) -> tuple[np.ndarray, np.ndarray]:
    # scipy's asymptotic nodes stay accurate for hundreds of points, where numpy's weights underflow.
    from scipy.special import roots_hermitenorm

    nodes, weights = roots_hermitenorm(n)
    return nodes, weights / weights.sum()


def gauss_hermite(n: int, dtype: DTypeLike | None = None) -> tuple[Array, Array]:
    r"""Nodes $z_i$ and weights $w_i$, $\sum_i w_i = 1$, with $\sum_i w_i f(z_i) = \int Dz\, f(z)$ exact for
    polynomials of degree 2n - 1; $Dz$ is the standard normal measure.

    Computed once on the host in float64. `dtype`: of the returned arrays, jax's default float if None.
    """
    nodes, weights = _rule(count(n, "n"))
    return jnp.asarray(nodes, dtype or float), jnp.asarray(weights, dtype or float)


def gauss_hermite_grid(n: int, dims: int, dtype: DTypeLike | None = None) -> tuple[Array, Array]:
    r"""The product rule of $n^k$ nodes (n^k, k) and weights (n^k,) for $\int Dz_1 \cdots Dz_k$, k = `dims`."""
    count(dims, "dims")
    z, w = gauss_hermite(n, dtype)
    product = lambda v: jnp.stack(jnp.meshgrid(*[v] * dims, indexing="ij"), -1).reshape(-1, dims)
    return product(z), jnp.prod(product(w), axis=-1)


def gauss_legendre(n: int, low: float = 0.0, high: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    r"""Nodes and weights of $\int_a^b f(x)\,dx$, exact for polynomials of degree 2n - 1: NumPy arrays (n,)."""
    x, w = np.polynomial.legendre.leggauss(count(n, "n"))
    return low + (high - low) * (x + 1) / 2, (high - low) * w / 2


def gauss_legendre_panels(edges: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`gauss_legendre` on each of the panels between neighbouring edges (m + 1,): arrays (m n,)."""
    x, w = gauss_legendre(n)
    length = np.diff(edges)[:, None]
    return (edges[:-1, None] + length * x).ravel(), (length * w).ravel()


def trapezoid_weights(k: Scalar, size: int, h: Scalar, dtype: DTypeLike) -> Array:
    """Weights (size,) of an integral from node 0 to node k of a grid of step h; 0 beyond it. k may be traced."""
    index = jnp.arange(size, dtype=jnp.int32)
    inner = jnp.where((index == 0) | (index == k), 0.5, 1.0)
    return jnp.where((index <= k) & (k > 0), h * inner, 0.0).astype(dtype)


def trapezoid_matrix(steps: int, h: float, dtype: DTypeLike) -> Array:
    """(steps + 1, steps + 1): row k holds `trapezoid_weights` of an integral from node 0 to node k."""
    index = np.arange(steps + 1)
    inner = np.where((index[None, :] == 0) | (index[None, :] == index[:, None]), 0.5, 1.0)
    causal = (index[None, :] <= index[:, None]) & (index[:, None] > 0)
    return jnp.asarray(np.where(causal, h * inner, 0.0), dtype)
