"""The types that signatures share."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

# A number, written by hand or traced.
Scalar: TypeAlias = float | int | Array | np.ndarray | np.floating | np.integer

# Several numbers, also as a list.
Numbers: TypeAlias = Scalar | np.generic | Sequence[Any]

# A field f(t, x, args) acts on one sample; batches are jax.vmap at the edge.
Field: TypeAlias = Callable[..., PyTree]

# An energy x -> scalar; the law is exp(-energy / temperature), with k_B = 1.
Energy: TypeAlias = Callable[[PyTree], Any]

Key: TypeAlias = PRNGKeyArray


def is_traced(tree: PyTree) -> bool:
    """Whether any array of `tree` has no value yet (inside jit, grad, vmap or scan)."""

    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def widest(*dtypes: Any) -> Any:
    """The dtype that holds them all, also where the caller forbids implicit promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def shape_of(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Shapes and dtypes of what a function returns. Not `jax.eval_shape` itself, which would look the function up by
    equality: that of a Module with traced arrays has no outcome."""
    return jax.eval_shape(lambda *args: function(*args), *args)
