"""What every distance between samples is given."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml.core import check


def real(x: Any) -> Array:
    """An array of real numbers in floating point: integers would round whatever is computed of them."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"samples must be real numbers, got {x.dtype}")
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def pair(x: Any, y: Any, least: int = 1) -> tuple[Array, Array]:
    """Two samples (n, d) and (m, d) of at least so many rows, small enough for the squares of their differences.

    What is not finite passes, and makes the distance NaN: a sample that diverged has none.
    """
    x, y = real(x), real(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x has shape {x.shape}, y {y.shape}: expected (n, d) and (m, d)")
    if min(len(x), len(y)) < least:
        raise ValueError(f"{len(x)} and {len(y)} samples: expected at least {least} of each")
    for name, sample in (("x", x), ("y", y)):
        entries = check.known(sample)
        bound = float(jnp.finfo(sample.dtype).max) ** 0.5 / (4 * max(1, x.shape[1]) ** 0.5)
        if entries is not None and np.any((np.abs(entries) > bound) & np.isfinite(entries)):
            raise ValueError(f"{name} holds numbers beyond {bound:.3g}, whose squares overflow {sample.dtype}: rescale")
    return x, y
