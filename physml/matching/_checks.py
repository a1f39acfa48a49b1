"""What every loss asks of its batches and its field."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def check_batch(x0: Array, x1: Array, args: PyTree) -> int:
    """The number of rows, if all share it."""
    if jnp.ndim(x0) == 0 or jnp.shape(x0) != jnp.shape(x1) or len(x0) == 0:
        raise ValueError(
            f"x0 and x1 must be batches of one shape (n, ...), n > 0; got {jnp.shape(x0)} and {jnp.shape(x1)}"
        )
    dtypes = [jnp.result_type(x) for x in (x0, x1)]
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(f"x0 and x1 must be real floating arrays, got {dtypes[0]} and {dtypes[1]}: x.astype(float)")
    lengths = [jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(args)]
    if any(length != (len(x0),) for length in lengths):
        raise ValueError(f"args must have a leading axis of the batch, {len(x0)}; got leaves with {lengths}")
    return len(x0)


def shaped(name: str, value: Any, x: Array) -> Array:
    """What a field returned, if it is shaped like its sample."""
    if jnp.shape(value) != x.shape:
        raise ValueError(f"the {name} must return the shape of one sample, {x.shape}; got {jnp.shape(value)}")
    return value
