"""One compiled program for a call outside jit, and the same program for the next equal call."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

F = TypeVar("F", bound=Callable[..., Any])


def program(function: F) -> F:
    """Decorator: `function` is compiled, as by `equinox.filter_jit`, and found again by an equal call.

    Arrays are traced; Modules are equal when their types and static fields are. Python's floats become (weakly typed)
    arrays, so that another value of a parameter does not compile again; those inside a Module stay what they are.
    Everything else is static: integers, words, functions by identity. So a lambda written anew in the call compiles
    anew; define it once, or make it a Module with arrays for fields. Inside jit, grad and vmap the function is part of
    what is being traced.

    Checks of values belong outside: in here all of them are traced.
    """
    compiled = eqx.filter_jit(function)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        # Not those inside a Module: it may read its numbers, as whether a degree of freedom is infinite.
        closed = lambda leaf: isinstance(leaf, eqx.Module)
        numbers = lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf
        args, kwargs = jax.tree.map(numbers, (args, kwargs), is_leaf=closed)
        return compiled(*args, **kwargs)

    return wrapped  # type: ignore[return-value]
