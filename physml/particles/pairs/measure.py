r"""Measures: what a mean-field interaction sees of the particles. Each knows `expect(f)` $= \int f\,d\mu$.

The same drift(x, measure) is simulated with `Particles`, and solved in closed form with a `Gaussian` or a `Histogram`.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from physml.core.quadrature import gauss_hermite_grid
from physml.core.types import is_traced


class AbstractMeasure(eqx.Module):
    """A probability measure on R^d (or on finitely many points): nodes and weights that sum to one."""

    @abc.abstractmethod
    def nodes(self) -> tuple[Array, Array]:
        """Points (n, d) and weights (n,): `expect` is their sum."""

    def expect(self, f: Callable[[Array], PyTree]) -> PyTree:
        r"""$\int f\,d\mu$, for f of one point; any pytree."""
        x, w = self.nodes()
        average = lambda y: jnp.tensordot(w.astype(y.dtype), y, 1)
        return jax.tree.map(average, jax.vmap(f)(x))

    @property
    def mean(self) -> Array:
        """Its mean, (d,)."""
        return self.expect(lambda x: x)


class Particles(AbstractMeasure):
    r"""The empirical measure $\sum_i w_i \delta_{x_i}$: `x` (N, d), `weights` (N,) summing to one, by default equal."""

    x: Array
    weights: Array

    def __init__(self, x: Any, weights: Any = None):
        self.x = jnp.asarray(x)
        if self.x.ndim < 1:
            raise ValueError(f"Particles needs x of shape (N, d), got {self.x.shape}")
        n = self.x.shape[0]
        self.weights = jnp.full(n, 1 / n, self.x.dtype) if weights is None else jnp.asarray(weights)
        if self.weights.shape != (n,):
            raise ValueError(f"Particles needs one weight for each of {n} particles, got shape {self.weights.shape}")

    def nodes(self) -> tuple[Array, Array]:
        return self.x, self.weights


class Gaussian(AbstractMeasure):
    r"""$N(m, C)$: `mean` (d,), `cov` (d, d). Expectations by Gauss and Hermite's rule with `order`^d nodes.

    The rule is exact for polynomials of degree 2 `order` - 1; meant for d up to 3 or so.
    """

    centre: Array
    cov: Array
    order: int = eqx.field(static=True, default=20)

    def __init__(self, mean: Any, cov: Any, order: int = 20):
        self.centre, self.cov, self.order = jnp.asarray(mean), jnp.asarray(cov), order
        if self.centre.ndim != 1 or self.cov.shape != self.centre.shape * 2:
            raise ValueError(f"Gaussian needs mean (d,) and cov (d, d), got {self.centre.shape} and {self.cov.shape}")
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")

    @property
    def mean(self) -> Array:
        return self.centre

    def nodes(self) -> tuple[Array, Array]:
        grid, weight = gauss_hermite_grid(self.order, self.centre.size, self.centre.dtype)
        return self.centre[None, :] + grid @ jnp.linalg.cholesky(self.cov).T, weight


class Histogram(AbstractMeasure):
    r"""$\sum_k p_k \delta_{y_k}$ on fixed points: `p` (K,) summing to 1; `points` (K, d), by default 0, ..., K - 1."""

    p: Array
    points: Array

    def __init__(self, p: Any, points: Any = None):
        self.p = jnp.asarray(p)
        if self.p.ndim != 1:
            raise ValueError(f"Histogram needs probabilities (K,), got shape {self.p.shape}")
        self.points = jnp.arange(len(self.p), dtype=self.p.dtype)[:, None] if points is None else jnp.asarray(points)
        if self.points.shape[:1] != self.p.shape:
            raise ValueError(f"{len(self.p)} probabilities for points of shape {self.points.shape}")
        if not is_traced(self.p):
            total = float(jnp.sum(self.p))
            if not abs(total - 1) < 1e-3 or float(jnp.min(self.p)) < 0:
                raise ValueError(f"probabilities must be nonnegative and sum to 1, got a sum of {total:g}")

    def nodes(self) -> tuple[Array, Array]:
        return self.points, self.p


Measure = AbstractMeasure
