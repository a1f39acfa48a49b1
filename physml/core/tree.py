"""Arithmetic on pytrees, leaf by leaf in the dtype of the first."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


def flat(tree: PyTree, lanes: int = 0) -> Array:
    """All entries in one vector (d,), or (d, lanes), in the dtype of the first leaf."""
    parts = [jnp.reshape(leaf, (-1, *leaf.shape[leaf.ndim - lanes :])) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([part.astype(parts[0].dtype) for part in parts])


def unflat(x: Array, like: PyTree) -> PyTree:
    """The entries of `flat` where they were in a pytree like this one, lanes included."""
    leaves, structure = jax.tree.flatten(like)
    events = [leaf.size // max(math.prod(x.shape[1:]), 1) for leaf in leaves]
    parts = jnp.split(x, np.cumsum(events)[:-1]) if len(leaves) > 1 else [x]
    shaped = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def total(tree: PyTree, lanes: int = 0) -> Array:
    """The sum over all entries; apart for each lane where the last `lanes` axes are lanes."""
    leaves = jax.tree.leaves(tree)
    return sum(jnp.sum(leaf, axis=tuple(range(leaf.ndim - lanes))) for leaf in leaves)  # type: ignore[return-value]
