"""The float64 rule: theory and sums of log-weights compute in float64 and return the caller's dtype."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from physml.core.types import widest

F = TypeVar("F", bound=Callable[..., Any])

_UP = {"float16": "float64", "bfloat16": "float64", "float32": "float64", "complex64": "complex128"}


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _cast_up(leaf):
    name = str(leaf.dtype) if _is_number(leaf) else ""
    return jnp.asarray(leaf).astype(_UP[name]) if name in _UP else leaf


def in_float64(function: F) -> F:
    """Decorator: compute in float64, return the caller's dtype, leave the global x64 flag as it is.

    Floating arrays among the arguments are cast up inside `jax.enable_x64(True)` and results are cast down
    before leaving it, because a float64 array that leaks out silently becomes float32 later. The caller's
    dtype is the widest floating dtype among the array arguments, or jax's default (float32 unless x64 is on)
    when there are none. Static leaves, integers and typed keys pass through; integer results come back as the
    default integer.

    Holds inside jit, grad, vmap and scan. More than 7 digits in the result need x64 switched on, or float64
    input.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        leaves = [leaf for leaf in jax.tree.leaves((args, kwargs)) if _is_number(leaf)]
        floats = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        down = jax.dtypes.canonicalize_dtype(jnp.finfo(widest(*floats)).dtype if floats else float)
        integer = jax.dtypes.canonicalize_dtype(int)
        with jax.enable_x64(True):
            args, kwargs = jax.tree.map(_cast_up, (args, kwargs))
            out = function(*args, **kwargs)

            def cast_down(leaf):
                if not _is_number(leaf):
                    return leaf
                if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                    return jnp.asarray(leaf).astype(widest(down, jnp.complex64))
                if jnp.issubdtype(leaf.dtype, jnp.floating):
                    return jnp.asarray(leaf).astype(down)
                if jnp.issubdtype(leaf.dtype, jnp.signedinteger):
                    return jnp.asarray(leaf).astype(integer)
                return leaf

            return jax.tree.map(cast_down, out)

    return wrapped  # type: ignore[return-value]
