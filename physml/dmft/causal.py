r"""Causal time-stepping: row k + 1 of the order parameters from the rows up to k.

The equations of a memory kernel are solved by filling arrays of fixed length once, row by row. Since no row is ever
written twice, the derivative needs no record of the filling: the rows are revisited from the last to the first, each
on the finished arrays, so a gradient costs the memory of the arrays themselves instead of a copy for every step.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree


def fill(
    row: Callable[[Any, PyTree, Array], PyTree], args: Any, order: PyTree, steps: int, *, forward: bool = False
) -> PyTree:
    """`order` with `leaf[k + 1] = row(args, order, k)` for k = 0, ..., steps - 1.

    **Arguments.** `row(args, order, k)`: row k + 1 of every leaf of `order`; it may read rows up to k only, for
    which later rows count as zero times whatever they hold (mask, do not slice). `args`: a pytree; its arrays
    are differentiated. `order`: arrays with a leading axis of at least steps + 1, whose row 0 is the start.
    `forward`: a plain loop, which has forward-mode derivatives and whose reverse mode stores `order` at every step.

    **Cost.** `steps` calls; the gradient (reverse mode) some ten times that, since every row has a cotangent as
    large as `order`, and two more copies of `order`.
    """
    dynamic, static = eqx.partition(args, eqx.is_inexact_array)
    one = lambda dynamic, order, k: row(eqx.combine(dynamic, static), order, k)
    ks = np.arange(steps, dtype=np.int32)

    x64 = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]

    def loop(dynamic, order):
        write = lambda order, k: (jax.tree.map(lambda a, r: a.at[k + 1].set(r), order, one(dynamic, order, k)), None)
        return lax.scan(write, order, ks)[0]

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
        def unwrite(carry, k):
            to_order, to_args = carry
            _, pull = jax.vjp(lambda d, o: one(d, o, k), dynamic, order)
            more_args, more_order = pull(jax.tree.map(lambda c: c[k + 1], to_order))
            to_order = jax.tree.map(lambda c, m: c.at[k + 1].set(0) + m, to_order, more_order)
            return (to_order, jax.tree.map(jnp.add, to_args, more_args)), None

        start = (cotangent, jax.tree.map(jnp.zeros_like, dynamic))
        (to_order, to_args), _ = lax.scan(unwrite, start, ks, reverse=True)
        return to_args, to_order

    run.defvjp(kept, backward)
    return run(dynamic, order)
