r"""Causal time-stepping: row k + 1 of the order parameters from the rows up to k.

The equations of a memory kernel are solved by filling arrays of fixed length once, row by row. Since no row is ever
written twice, the derivative needs no record of the filling: the rows are revisited from the last to the first, each
on the finished arrays, so a gradient costs the memory of the arrays themselves instead of a copy for every step.

Shapes are static: a long filling goes through segments, each on arrays just long enough for its rows.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

SEGMENTS = 8  # at most: products with two axes of times do a fifth more than on arrays of the rows' own length
LENGTH = 250  # steps that are worth a segment's compile time


def fill(
    row: Callable[[Any, PyTree, Array], PyTree],
    args: PyTree,
    order: PyTree,
    steps: int,
    *,
    forward: bool = False,
    corner: Callable[[PyTree, int], PyTree] | None = None,
) -> PyTree:
    """`order` with `leaf[k + 1] = row(args, order, k)` for k = 0, ..., steps - 1.

    **Arguments.** `row(args, order, k)`: row k + 1 of every leaf of `order`; it may read rows up to k only, for
    which later rows count as zero times whatever they hold (mask, do not slice). `args`: a pytree; its arrays
    are differentiated. `order`: arrays with a leading axis of at least steps + 1, whose row 0 is the start.
    `forward`: a plain loop, which has forward-mode derivatives and whose reverse mode stores `order` at every step.
    `corner(order, m)`: the leading entries that rows up to m - 1 read and write, which then is the `order` that `row`
    is called with; None where that is all of it.

    **Cost.** `steps` calls; the gradient (reverse mode) four times that with `product`, else some ten times, since
    every row has a cotangent as large as `order`, and two more copies of `order`.
    """
    parts = 1 if corner is None else min(max(steps // LENGTH, 1), SEGMENTS)
    ends = [round(steps * j / parts) for j in range(parts + 1)]
    segments = [np.arange(a, b, dtype=np.int32) for a, b in itertools.pairwise(ends)]
    leading = (lambda order, ks: order) if corner is None else (lambda order, ks: corner(order, int(ks[-1]) + 2))
    dynamic, static = eqx.partition(args, eqx.is_inexact_array)
    one = lambda dynamic, order, k: row(eqx.combine(dynamic, static), order, k)

    x64 = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]

    def loop(dynamic, order):
        def step(carry, k):
            # The row of the step before is written first: written as soon as it is known, it would be fused with the
            # reading it comes from, on a copy of the arrays.
            order, last = carry
            order = write(order, last, k)
            return (order, one(dynamic, order, k)), None

        for ks in segments:
            part = leading(order, ks)
            start = jax.tree.map(lambda a, k=ks[0]: a[k], part)
            (part, last), _ = lax.scan(step, (part, start), ks)
            order = put(order, write(part, last, int(ks[-1]) + 1))
        return order

    if forward:
        return loop(dynamic, order)
    run = jax.custom_vjp(loop)

    def kept(dynamic, order):
        with jax.enable_x64(x64):
            out = run(dynamic, order)
        return out, (dynamic, out)

    def backward(saved, cotangent):
        # Derivatives are taken after the caller's float64 context has closed.
        with jax.enable_x64(x64):
            return revisit(saved[0], saved[1], cotangent)

    def revisit(dynamic, order, cotangent):
        def unwrite(order, carry, k):
            to_order, to_args = carry
            _, pull = jax.vjp(lambda d, o: one(d, o, k), dynamic, order)
            more_args, more_order = pull(jax.tree.map(lambda c: c[k + 1], to_order))
            return jax.tree.map(jnp.add, (to_order, to_args), (more_order, more_args)), None

        to_args = jax.tree.map(jnp.zeros_like, dynamic)
        for ks in reversed(segments):
            step = functools.partial(unwrite, leading(order, ks))
            (part, to_args), _ = lax.scan(step, (leading(cotangent, ks), to_args), ks, reverse=True)
            cotangent = put(cotangent, part)
        # What was filled in does not depend on what stood there.
        return to_args, jax.tree.map(lambda c: c.at[1 : steps + 1].set(0), cotangent)

    run.defvjp(kept, backward)
    return run(dynamic, order)


def write(order: PyTree, row: PyTree, k: Array | int) -> PyTree:
    """`order` with `row` as row k of its arrays."""
    return jax.tree.map(lambda a, r: lax.dynamic_update_index_in_dim(a, r, k, 0), order, row)


def put(order: PyTree, part: PyTree) -> PyTree:
    """`order` with its leading entries replaced by `part`."""
    return jax.tree.map(lambda a, p: a.at[tuple(slice(size) for size in p.shape)].set(p), order, part)


def product(a: Array, b: Array) -> Array:
    """`a @ b` of a matrix and a vector, in either order, for a row of `fill`: with a faster derivative.

    By the matrix it is an outer product, for each entry of which XLA would compute both factors anew from what they
    are made of. Nothing fuses with a product, so another one on either side makes them finished vectors.
    """
    pairs = jnp.eye(2, dtype=a.dtype)
    finished = lambda v: (jnp.pad(v, (0, len(v) % 2)).reshape(-1, 2) @ pairs).reshape(-1)[: len(v)]
    return finished(a @ finished(b) if a.ndim == 2 else finished(a) @ b)
