r"""Preconditioning: a kernel that moves $y = L^{-1} x$ in place of x, where L is its `scale`.

An L with $L L^\top$ near the covariance of the target makes all directions alike. It is one factor for each entry of
the position, or for each leaf, a matrix for a vector, or a `Preconditioner` of the flattened position.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from physml.core import check
from physml.core.tree import flat, unflat


class Preconditioner(eqx.Module):
    r"""$L = D\,(I + U\,\mathrm{diag}(s - 1)\,U^\top)$ on the entries of a position, whatever pytree it is.

    **Fields.** `deviations` D (d,): the size of each entry. `vectors` U (d, r), orthonormal columns, and `stretches` s
    (r,): directions in which the entries, in units of D, have the standard deviation s and not 1. r is 0 for a diagonal
    scale, d for a dense one. **Cost** of a product: d (1 + 4 r).
    """

    deviations: Float[Array, " d"]
    vectors: Float[Array, "d r"]
    stretches: Float[Array, " r"]

    def push(self, v: PyTree, lanes: int = 0) -> PyTree:
        """L v."""
        y = flat(v, lanes)
        return unflat(_rows(self.deviations, y) * self._stretch(y, self.stretches), v)

    def pull(self, g: PyTree, lanes: int = 0) -> PyTree:
        """L^T g."""
        y = flat(g, lanes)
        return unflat(self._stretch(_rows(self.deviations, y) * y, self.stretches), g)

    def whiten(self, x: Array) -> Array:
        """L^{-1} x, of flat positions (d, ...)."""
        return self._stretch(x / _rows(self.deviations, x), 1 / self.stretches)

    @property
    def covariance(self) -> Array:
        """L L^T, (d, d)."""
        root = self.push(jnp.eye(len(self.deviations), dtype=self.deviations.dtype), 1)
        return root @ root.T

    def _stretch(self, y, factors):
        if self.stretches.shape == (0,):
            return y
        U = self.vectors.astype(y.dtype)
        return y + U @ (_rows(factors - 1, y) * (U.T @ y))


def _rows(factors, x):
    return jnp.expand_dims(factors.astype(x.dtype), tuple(range(1, x.ndim)))


def push(scale: PyTree | None, v: PyTree, lanes: int) -> PyTree:
    """L v: v itself without a scale, entry by entry, or the product with a matrix (d, d) for a vector (d,)."""
    if isinstance(scale, Preconditioner):
        return scale.push(v, lanes)
    return v if scale is None else jax.tree.map(lambda s, leaf: _multiply(s, leaf, lanes), scale, v)


def pull(scale: PyTree | None, g: PyTree, lanes: int) -> PyTree:
    """L^T g."""
    if isinstance(scale, Preconditioner):
        return scale.pull(g, lanes)
    transposed = lambda s, leaf: _multiply(s.T if s.ndim == leaf.ndim - lanes + 1 else s, leaf, lanes)
    return g if scale is None else jax.tree.map(transposed, scale, g)


def _multiply(scale, leaf, lanes):
    scale, event = scale.astype(leaf.dtype), leaf.ndim - lanes
    if scale.ndim == event + 1:
        return jnp.tensordot(scale, leaf, event)
    return jnp.expand_dims(scale, tuple(range(scale.ndim, leaf.ndim))) * leaf


def as_scale(scale: PyTree | None) -> PyTree | None:
    """Arrays for leaves, all of them finite."""
    for leaf in jax.tree.leaves(scale):
        check.within(leaf, "scale")
    return None if scale is None else jax.tree.map(jnp.asarray, scale)


def check_scale(scale: PyTree | None, position: PyTree, lanes: int) -> None:
    """Raise a `ValueError` unless a scale is one factor for each entry, one for all, or a matrix for a vector.

    And unless it is regular, where that can be known: what it maps to zero would never move.
    """
    if scale is None:
        return
    if isinstance(scale, Preconditioner):
        size = sum(np.prod(jnp.shape(leaf)[: jnp.ndim(leaf) - lanes], dtype=int) for leaf in jax.tree.leaves(position))
        if scale.deviations.shape != (size,):
            raise ValueError(f"scale is of {len(scale.deviations)} entries, and the position has {size}")
        check.within(scale.deviations, "the scale's deviations", above=0)
        check.within(scale.stretches, "the scale's stretches", above=0)
        return
    if jax.tree.structure(scale) != jax.tree.structure(position):
        raise ValueError("scale must be a pytree like the position, or a Preconditioner")
    for s, leaf in zip(jax.tree.leaves(scale), jax.tree.leaves(position), strict=True):
        event = jnp.shape(leaf)[: jnp.ndim(leaf) - lanes]
        if s.shape not in ((), event) and not (len(event) == 1 and s.shape == event * 2):
            raise ValueError(f"scale must have the shape of the position, {event}, or be a matrix; got {s.shape}")
        entries = check.known(s)
        if entries is not None and not _regular(entries.astype(np.float64), len(event)):
            raise ValueError("scale must be regular: a zero factor, or a matrix without full rank, freezes a direction")


def _regular(scale, event):
    if scale.ndim != event + 1:
        return bool(np.all(scale != 0))
    sizes = np.linalg.svd(scale, compute_uv=False)
    return bool(sizes[-1] > 1e-7 * sizes[0])
