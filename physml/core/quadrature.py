r"""Gaussian averages $\int Dz\, f(z)$ by Gauss-Hermite quadrature."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


@functools.lru_cache(maxsize=64)
def _rule(n: int) -> tuple[np.ndarray, np.ndarray]:
    # scipy's asymptotic nodes stay accurate for hundreds of points, where numpy's weights underflow.
    from scipy.special import roots_hermitenorm

    nodes, weights = roots_hermitenorm(n)
    return nodes, weights / weights.sum()


def gauss_hermite(n: int, dtype: Any = None) -> tuple[Array, Array]:
    r"""Nodes $z_i$ and weights $w_i$, $\sum_i w_i = 1$, with $\sum_i w_i f(z_i) = \int Dz\, f(z)$ exact for
    polynomials of degree 2n - 1; $Dz$ is the standard normal measure.

    Computed once on the host in float64. `dtype`: of the returned arrays, jax's default float if None.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"gauss_hermite needs n >= 1 nodes, an integer; got {n!r}")
    nodes, weights = _rule(n)
    return jnp.asarray(nodes, dtype or float), jnp.asarray(weights, dtype or float)


def gaussian_average(f: Callable[..., PyTree], n: int = 64, *, dims: int = 1, dtype: Any = None) -> PyTree:
    r"""$\int Dz_1 \cdots Dz_k\, f(z_1, \dots, z_k)$ on a product grid of $n^k$ nodes.

    `f` takes `dims` numbers and returns a pytree; it is mapped over the grid. Converges geometrically for
    analytic f and slowly across kinks: use more nodes, or an exact split, for tanh at low temperature and for
    ReLU.
    """
    if dims < 1:
        raise ValueError(f"gaussian_average needs dims >= 1 numbers, got dims={dims}")
    nodes, weights = gauss_hermite(n, dtype)
    axes = jnp.meshgrid(*[nodes] * dims, indexing="ij")
    weight = functools.reduce(jnp.multiply, jnp.meshgrid(*[weights] * dims, indexing="ij")).ravel()
    values = jax.vmap(f)(*[axis.ravel() for axis in axes])

    def average(v):
        v = v if jnp.issubdtype(v.dtype, jnp.inexact) else v.astype(weight.dtype)
        return jnp.tensordot(weight.astype(v.dtype), v, 1)

    return jax.tree.map(average, values)
