"""`run` one chain, `run_chains` many with one key: the loop around a kernel's move."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check, noise
from physml.core._status import Checked, Code, Status, status
from physml.core.loops import march
from physml.core.program import program
from physml.core.progress import progress_bar
from physml.core.renamed import renamed
from physml.core.types import Key, is_traced
from physml.particles.chains import statistics
from physml.particles.kernels.base import (
    AbstractKernel,
    Info,
    check_kernel,
    check_position,
    check_start,
    over_lanes,
    starts,
)
from physml.particles.kernels.precondition import check_scale


class Run(Checked):
    """What a run saw.

    `state`: the last state of the kernel. `samples`: a pytree like the position (or what `observe` makes of it), leaves
    (saved, ...) of one chain and (saved, chains, ...) of many; None if not kept. `info`: of the moves, averaged between
    saves, (saved,) or (saved, chains). `stats`: streamed over all saved draws, see `Stats`; None if switched off.
    `status`: `diverged`, for each chain, with the step by which its position was no longer finite.
    """

    state: PyTree
    samples: PyTree
    info: Info
    stats: Any  # Stats | None
    status: Status


@renamed(n_steps="steps", thin="save_every")
def run(
    kernel: AbstractKernel,
    x0: PyTree,
    steps: int,
    *,
    key: Key,
    save_every: int = 1,
    observe: Callable[[PyTree], PyTree] | None = None,
    keep: bool = True,
    stats: bool = True,
    lane: ArrayLike = 0,
    first: ArrayLike = 0,
    checkpoint: bool = False,
    progress: bool = False,
) -> Run:
    """Move one chain `steps` times and record every `save_every`-th position.

    - `kernel`: any of this room, or `from_blackjax`.
    - `x0`: the start, any pytree, or a state of the kernel (`Run.state`, to go on).
    - `save_every`: must divide steps.
    - `observe`: position -> what to record and to average, the position by default.
    - `keep`: False returns no samples, only statistics. `stats`: False saves their cost.
    - `lane`: which chain of `run_chains` this is.
    - `first`: number of the first step. A run that goes on from `out.state` with the same key has `first=steps`,
      and then continues `out` as if it had not stopped; from 0 it would see the same noise again.
    - `checkpoint`: gradients keep O(sqrt steps) states and redraw the noise.
    - `progress`: show a bar (not inside jit).

    Step k, from `first` on, moves with the noise of `jax.random.fold_in(key, k)`: the numbers are those of a loop
    `state, info = kernel.step(jax.random.fold_in(key, k), state)`.

    **Returns** `Run`. **Cost.** That of the moves; statistics add a few operations for each recorded number. Compiled
    once for each kernel, shapes and functions: an energy written anew as a lambda compiles anew, one that is defined
    once, or an `eqx.Module` with arrays for its numbers, does not. Numbers of the kernel may change freely.
    **Errors.** `ValueError` for a save_every that does not divide steps, a start of infinite energy and what the kernel
    rejects; a chain that leaves the finite numbers has the status `diverged`.

    **Example.**
    ```python
    kernel = mala(lambda x: jnp.sum(x**2) / 2, step_size=0.5)
    out = run(kernel, jnp.zeros(3), 10_000, key=jax.random.key(0), save_every=10).check()
    ```
    """
    loop = _Loop(save_every, observe or _position, keep, stats, checkpoint, _first(first))
    return _start(kernel, x0, steps, key, noise.lanes(lane), loop, progress)


@renamed(steps="steps", thin="save_every")
def run_chains(
    kernel: AbstractKernel,
    x0s: PyTree,
    steps: int,
    *,
    key: Key,
    save_every: int = 1,
    observe: Callable[[PyTree], PyTree] | None = None,
    keep: bool = True,
    stats: bool = True,
    first_lane: ArrayLike = 0,
    first: ArrayLike = 0,
    checkpoint: bool = False,
    progress: bool = False,
) -> Run:
    """Move many independent chains with one key: x0s (chains, ...) to samples (saved, chains, ...).

    Chain c sees the noise of lane `first_lane + c`, whatever runs beside it: its numbers are those of
    `run(..., lane=c)`, of any part of the chains, and of chains sharded over devices along their first axis. Inside,
    chains are the last axis, where noise and arithmetic vectorise. `stats` pools all chains: `.mean`, `.cov`, `.r_hat`,
    `.ess`. Arguments and errors are those of `run`; `observe` sees one position.
    """
    kernel = over_lanes(kernel)
    loop = _Loop(save_every, observe or _position, keep, stats, checkpoint, _first(first))
    return _start(kernel, x0s, steps, key, noise.lanes(first_lane, count_chains(x0s)), loop, progress)


def count_chains(x0s: PyTree) -> int:
    """How many chains the leading axes tell; a `ValueError` where they do not."""
    leaves = jax.tree.leaves(x0s)
    sizes = {jnp.shape(leaf)[:1] for leaf in leaves}
    if not leaves or len(sizes) != 1 or sizes & {(), (0,)}:
        shapes = [jnp.shape(leaf) for leaf in leaves]
        raise ValueError(f"many chains need a leading axis `chains` on every leaf of x0s; got shapes {shapes}")
    return sizes.pop()[0]


class _Loop(eqx.Module):
    """How to record."""

    save_every: int = eqx.field(static=True)
    observe: Callable
    keep: bool = eqx.field(static=True)
    stats: bool = eqx.field(static=True)
    checkpoint: bool = eqx.field(static=True)
    first: Array


def _first(step):
    check.within(step, "first", least=0)
    return jnp.asarray(step, jnp.int32)


def _position(x):
    return x


def _lanes_last(tree):
    return jax.tree.map(lambda leaf: jnp.moveaxis(jnp.asarray(leaf), 0, -1), tree)


def lanes_first(tree: PyTree, axis: int = 0) -> PyTree:
    """Chains from the last axis, where kernels move them, to where users have them."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, axis), tree)


def _start(kernel, x0, steps, key, lanes, loop, progress):
    check_kernel(kernel)
    noise.check_key(key)
    steps = check.count(steps, "steps", least=0)
    check.count(loop.save_every, "save_every", divides=steps)
    check.function(loop.observe, "observe", "of a position")
    x0 = checked(kernel, x0, lanes)
    draws = steps // loop.save_every
    carry, seen = _prepare(kernel, x0, key, lanes, loop, draws)
    for values, message in seen:
        check_start(values, message)
    if not progress:
        return _all(kernel, carry, key, lanes, loop, draws)
    step = lambda carry, first, count: _advance(kernel, carry, first, count, key, lanes, loop, draws)
    return _finish(*_in_pieces(step, carry, draws, loop), lanes, loop, draws)


def checked(kernel: AbstractKernel, x0: PyTree, lanes: Array) -> PyTree:
    """A start of real floating arrays that the scale of the kernel fits; or a state as it is."""
    if hasattr(x0, "position"):
        return x0
    x0 = jax.tree.map(jnp.asarray, x0)
    check_position(x0)
    one = jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf[0], x) if lanes.ndim else x, x0)
    check_scale(getattr(kernel, "scale", None), one, 0)
    return x0


def begin(kernel: AbstractKernel, x0: PyTree, key: Key, lanes: Array) -> tuple[PyTree, list]:
    """The kernel's state at x0, lanes last; and the energies of the start, to be judged by `check_start` outside."""
    x0 = _lanes_last(x0) if lanes.ndim else x0
    with starts() as energies:
        state = x0 if hasattr(x0, "position") else kernel.init(x0, *_start_key(kernel, key, lanes))
    return state, energies


@program
def _prepare(kernel, x0, key, lanes, loop, draws):
    """The state of the kernel at x0, no sums yet, no chain lost; and energies of the start, judged outside."""
    batched = lanes.ndim
    state, energies = begin(kernel, x0, key, lanes)
    view = jax.eval_shape(lambda s: _observed(loop, s, batched), state)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), view)
    sums = statistics.begin(empty, batched, draws) if loop.stats and draws else None
    return (state, sums, jnp.full(lanes.shape, -1, jnp.int32)), energies


def _start_key(kernel, key, lanes):
    """A key for each chain to start with, which no step uses; nothing for the kernels that need none."""
    if not kernel.starts_with_key:
        return ()
    fresh = lambda lane: jax.random.fold_in(jax.random.fold_in(key, np.uint32(2**32 - 1)), lane)
    return (jax.vmap(fresh)(lanes) if lanes.ndim else fresh(lanes),)


@program
def _all(kernel, carry, key, lanes, loop, draws):
    """All intervals and what is made of them."""
    carry, out = _advance(kernel, carry, jnp.int32(0), draws, key, lanes, loop, draws)
    return _finish(carry, out, lanes, loop, draws)


@program
def _finish(carry, out, lanes, loop, draws):
    (state, sums, bad), (samples, info) = carry, out
    result = None if sums is None else statistics.finish(sums, lanes.ndim, draws)
    if lanes.ndim:
        state, samples, info = lanes_first(state), lanes_first(samples, 1), lanes_first(info, 1)
    code = jnp.where(bad >= 0, Code.diverged, Code.ok)
    last = loop.first + draws * loop.save_every
    outcome = status(code, jnp.where(bad >= 0, bad, last))
    return Run(state=state, samples=samples, info=info, stats=result, status=outcome)


def _observed(loop, state, batched):
    observe = jax.vmap(loop.observe, in_axes=-1, out_axes=-1) if batched else loop.observe
    return observe(state.position)


@program
def _advance(kernel, carry, first, saves, key, lanes, loop, draws):
    """`saves` intervals of `save_every` moves from interval `first`."""
    state, sums, bad = carry
    batched, every = lanes.ndim, loop.save_every
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[: x.ndim - batched], x.dtype), state.position)
    draw = lambda k: kernel.draw(jax.random.fold_in(key, loop.first + k), one, lanes)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(draw, jnp.int32(0))))
    chunk = noise.chunk_length(numbers)

    def move(state_info, k, xi):
        state, so_far = state_info
        new, info = kernel.move(state, xi)
        new = jax.tree.map(lambda a, b: a.astype(b.dtype), new, state)
        return new, jax.tree.map(lambda a, b: a + b / every, so_far, info)

    nothing = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda s, k: kernel.move(s, draw(k))[1], state, 0),
    )

    # Noise is drawn ahead for a chunk of moves: several intervals where they are short, a part of one where it is long.
    if every < chunk:
        ahead = lambda i: jax.vmap(draw)(i * every + jnp.arange(every, dtype=jnp.int32))
        body = lambda carry, xi: (move(carry, None, xi), None)
        moves = lambda state, i, xis: lax.scan(body, (state, nothing), xis)[0]
    else:
        ahead = None
        options = {"draw": draw, "save_every": every, "chunk": chunk}
        moves = lambda state, i, _: march(move, (state, nothing), every, first=i * every, **options)[0]

    def interval(carry, i, xis):
        (state, sums, bad), _ = carry
        state, info = moves(state, i, xis)
        seen = _observed(loop, state, batched)
        if sums is not None:
            sums = statistics.update(sums, seen, batched, draws)
        finite = [jnp.isfinite(leaf).all(tuple(range(leaf.ndim - batched))) for leaf in jax.tree.leaves(state.position)]
        lost = ~jnp.stack(finite).all(0)
        bad = jnp.where(lost & (bad < 0), loop.first + (i + 1) * every, bad)
        return (state, sums, bad), (seen if loop.keep else None, info)

    first_out = (_observed(loop, state, batched) if loop.keep else None, nothing)
    carry = ((state, sums, bad), first_out)
    (carry, _), out = march(
        interval, carry, saves, draw=ahead, first=first, observe=lambda carry: carry[1],
        chunk=max(1, chunk // every) if ahead else 1, checkpoint=loop.checkpoint,
    )  # fmt: skip
    return carry, out


def _in_pieces(step, carry, draws, loop, pieces=50):
    """All intervals in pieces, with a progress bar between them."""
    if is_traced(carry):
        raise ValueError("progress=True needs concrete arrays: call it outside jit, or drop the bar")
    size, parts = max(1, draws // pieces), []
    with progress_bar(draws * loop.save_every, "run", "step") as bar:
        for first in range(0, draws, size):
            count = min(size, draws - first)
            carry, out = step(carry, jnp.int32(first), count)
            parts.append(jax.tree.map(np.asarray, jax.block_until_ready(out)))
            bar.update(count * loop.save_every)
    return carry, jax.tree.map(lambda *xs: jnp.asarray(np.concatenate(xs)), *parts)
