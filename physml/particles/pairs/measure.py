r"""Measures: what a mean-field interaction sees of the particles. Each knows `expect(f)` $= \int f\,d\mu$.

The same drift(x, measure) is simulated with `Particles`, and solved in closed form with a `Gaussian` or a `Histogram`.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.quadrature import gauss_hermite_grid


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
        self.x = _floating(x)
        if self.x.ndim < 1 or self.x.shape[0] < 1:
            raise ValueError(f"Particles needs x of shape (N, d) with N >= 1, got {self.x.shape}")
        n = self.x.shape[0]
        if weights is None:
            self.weights = jnp.full(n, 1 / n, self.x.dtype)
            return
        self.weights = _floating(weights)
        if self.weights.shape != (n,):
            raise ValueError(f"Particles needs one weight for each of {n} particles, got shape {self.weights.shape}")
        _check_weights(weights, "weights")

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
        self.centre, self.cov, self.order = _floating(mean), _floating(cov), check.count(order, "order")
        if self.centre.ndim != 1 or self.cov.shape != self.centre.shape * 2:
            raise ValueError(f"Gaussian needs mean (d,) and cov (d, d), got {self.centre.shape} and {self.cov.shape}")
        C = check.known(cov)
        if C is not None and C.size and not _positive_definite(C.astype(np.float64)):
            raise ValueError("cov must be symmetric and positive definite: with a zero variance the law has no density")

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
        self.p = _floating(p)
        if self.p.ndim != 1:
            raise ValueError(f"Histogram needs probabilities (K,), got shape {self.p.shape}")
        self.points = jnp.arange(len(self.p), dtype=self.p.dtype)[:, None] if points is None else jnp.asarray(points)
        if self.points.shape[:1] != self.p.shape:
            raise ValueError(f"{len(self.p)} probabilities for points of shape {self.points.shape}")
        _check_weights(p, "probabilities")

    def nodes(self) -> tuple[Array, Array]:
        return self.points, self.p


def _floating(x: Any) -> Array:
    """An array of real numbers: weights of integers would round to zero."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def _check_weights(weights: Any, name: str) -> None:
    w = check.known(weights)
    if w is not None:
        total = float(np.sum(w, dtype=np.float64))
        if not abs(total - 1) < 1e-3 or float(np.min(w)) < 0:
            raise ValueError(f"{name} must be nonnegative and sum to 1, got a sum of {total:g}")


def _positive_definite(C: np.ndarray) -> bool:
    alike = np.allclose(C, C.T, rtol=1e-4, atol=1e-5 * np.abs(np.diag(C)).max())
    return bool(alike and np.isfinite(C).all() and np.linalg.eigvalsh(C)[0] > 0)


Measure = AbstractMeasure
