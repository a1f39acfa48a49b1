"""Arithmetic on pytrees, leaf by leaf in the dtype of the first."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def add(x: PyTree, *terms: tuple[Any, PyTree]) -> PyTree:
    """x + sum of scale * y over the pairs (scale, y)."""

    def one(leaf, *ys):
        for (scale, _), y in zip(terms, ys, strict=True):
            leaf = leaf + jnp.asarray(scale, leaf.dtype) * jnp.asarray(y, leaf.dtype)
        return leaf

    return jax.tree.map(one, x, *[y for _, y in terms])


def plus(x: PyTree, *others: PyTree) -> PyTree:
    """The sum of pytrees like x."""
    return jax.tree.map(lambda a, *bs: sum((jnp.asarray(b, a.dtype) for b in bs), start=a), x, *others)


def total(tree: PyTree, lanes: int = 0) -> Array:
    """The sum over all entries; apart for each lane where the last `lanes` axes are lanes."""
    leaves = jax.tree.leaves(tree)
    return sum(jnp.sum(leaf, axis=tuple(range(leaf.ndim - lanes))) for leaf in leaves)  # type: ignore[return-value]
