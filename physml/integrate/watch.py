"""What is seen of a path while it runs: a function of the state instead of the state, and an event that stops it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.types import shape_of


class Watched(NamedTuple):
    """A state, the value of `until` there, and the time at which it stopped, infinite while it goes on."""

    x: PyTree
    value: Array
    stopped: Array


def check_watch(observe: Any, until: Any, x0: PyTree, t: Array, args: PyTree) -> None:
    """Raise a `ValueError` unless `observe` and `until` are functions (t, x, args), the latter to one real number."""
    for name, function in (("observe", observe), ("until", until)):
        if function is not None:
            check.function(function, name, "(t, x, args)")
    if until is not None:
        out = shape_of(until, t, x0, args)
        if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
            raise ValueError(f"until must return one real number, positive until the event; got {out}")


def start(until: Callable | None, x0: PyTree, t: Array, args: PyTree, batched: bool) -> PyTree:
    """The state to march: x0 itself, or watched."""
    if until is None:
        return x0
    of = lambda x: until(t, x, args)
    value = jax.vmap(of)(x0) if batched else of(x0)
    return Watched(x0, value, jnp.where(value > 0, jnp.inf, jnp.broadcast_to(t, value.shape)))


def stopping(advance: Callable, until: Callable, state: Watched, t: Array, h: Array, args: PyTree) -> Watched:
    """One step of a path that stops where `until` reaches zero, on the straight line between both ends of the step."""
    new = advance(state.x)
    value = until(t + h, new, args)
    going = state.value > 0
    hit = going & ~(value > 0)
    share = jnp.where(hit, state.value / jnp.where(hit, state.value - value, 1), jnp.where(going, 1, 0))
    mixed = lambda old, new: jnp.where(going, old + share.astype(old.dtype) * (new - old), old)
    x = jax.tree.map(lambda old, new: jnp.where(hit | ~going, mixed(old, new), new), state.x, new)
    stopped = jnp.where(hit, (t + share * h).astype(state.stopped.dtype), state.stopped)
    return Watched(x, jnp.where(going, value, state.value), stopped)
