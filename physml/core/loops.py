"""Loops over steps: noise drawn a chunk ahead, thinning, and gradients with memory O(sqrt steps).

`march` advances a state by `step(state, k, noise_k)` for k = first, ..., first + steps - 1 and records every
`save_every`-th state. Noise comes from `draw(k)` and is drawn for a chunk of steps in one call: a CPU draws
many small vectors at the price of one. Because noise is indexed by step, chunks change no number.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from physml.core import noise


def scan_range(body: Callable, carry: PyTree, length: int, block: int | None = None) -> tuple[PyTree, PyTree]:
    """`lax.scan` of `body(carry, i) -> (carry, y)` over i = 0, ..., length - 1.

    With `block`, blocks of that many iterations are recomputed in the backward pass, so a gradient keeps
    length / block carries and the residuals of one block: O(sqrt(length)) for block near sqrt(length), at the
    price of one more forward pass.
    """
    if block is None or block >= length:
        return lax.scan(body, carry, jnp.arange(length, dtype=jnp.int32))

    def blocks(carry, first, count, size):
        @jax.checkpoint
        def one(carry, b):
            offsets = first + b * size + jnp.arange(size, dtype=jnp.int32)
            return lax.scan(body, carry, offsets)

        carry, ys = lax.scan(one, carry, jnp.arange(count, dtype=jnp.int32))
        return carry, jax.tree.map(lambda y: y.reshape(count * size, *y.shape[2:]), ys)

    count, tail = divmod(length, block)
    carry, ys = blocks(carry, 0, count, block)
    if tail:
        carry, last = blocks(carry, count * block, 1, tail)
        ys = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, last)
    return carry, ys


def _chunk_of(length: int, most: int) -> int:
    """The chunk: at most `most`, and one that divides `length` if that costs at most half of it.

    A shorter chunk at the end is a second copy of the step to compile.
    """
    most = min(most, length)
    return next((size for size in range(most, most // 2, -1) if length % size == 0), most)


def march(
    step: Callable[[PyTree, Any, PyTree], PyTree],
    state: PyTree,
    steps: int,
    *,
    draw: Callable[[Any], PyTree] | None = None,
    first: ArrayLike = 0,
    save_every: int = 1,
    observe: Callable[[PyTree], PyTree] = lambda state: state,
    chunk: int | None = None,
    checkpoint: bool = False,
) -> tuple[PyTree, PyTree]:
    """Advance `state` by `steps` steps; return it and what `observe` sees after every `save_every`-th.

    **Arguments.** `step(state, k, noise)`: one step. `draw(k)`: the noise of step k, any pytree (None
    for a deterministic step). `first`: index of the first step, may be traced. `save_every`: must divide
    `steps`. `chunk`: steps of noise drawn at once; by default from the size of one draw. `checkpoint`:
    recompute blocks of about sqrt(steps) steps in the backward pass instead of storing them.

    **Returns** the last state, and the observations stacked on a new leading axis of length steps /
    save_every.
    """
    if save_every < 1 or steps % save_every:
        raise ValueError(f"save_every must divide the number of steps; got save_every={save_every}, steps={steps}")
    first = jnp.asarray(first, jnp.int32)
    if draw is None:
        chunk = 1 if chunk is None else chunk
    elif chunk is None:
        leaves = jax.tree.leaves(jax.eval_shape(draw, first))
        chunk = noise.chunk_length(sum(math.prod(leaf.shape) for leaf in leaves))
    block = max(1, math.isqrt(steps)) if checkpoint else None

    def advance(state, k, length, record):
        """`length` steps from step k, their noise drawn together."""
        ahead = None if draw is None else jax.vmap(draw)(k + jnp.arange(length, dtype=jnp.int32))

        def one(state, i_noise):
            i, ahead = i_noise
            state = step(state, k + i, ahead)
            return state, (observe(state) if record else None)

        return lax.scan(one, state, (jnp.arange(length, dtype=jnp.int32), ahead))

    def stretch(state, k, length, block, record=False):
        """`length` steps from step k in chunks, with a shorter chunk at the end where they do not divide."""
        size = _chunk_of(length, chunk)
        count, tail = divmod(length, size)
        in_block = None if block is None else max(1, block // size)
        state, ys = scan_range(lambda s, i: advance(s, k + i * size, size, record), state, count, in_block)
        ys = jax.tree.map(lambda y: y.reshape(count * size, *y.shape[2:]), ys)
        if tail:
            state, last = advance(state, k + count * size, tail, record)
            ys = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, last)
        return state, ys

    if steps == 0:
        empty = jax.eval_shape(observe, state)
        return state, jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), empty)
    if save_every == 1:
        return stretch(state, first, steps, block, record=True)

    # One save interval at a time; the blocks to recompute lie inside an interval or gather several of them.
    inner, outer = (block, None) if block is None or block <= save_every else (None, block // save_every)

    def interval(state, i):
        state, _ = stretch(state, first + i * save_every, save_every, inner)
        return state, observe(state)

    return scan_range(interval, state, steps // save_every, outer)
