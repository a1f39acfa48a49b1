"""Which rows a step sees: a function of the key and the step alone, so a resumed run draws what it would have
drawn.

An epoch's order is never stored. Row j of epoch e is found by pushing j through a keyed permutation of
0..N-1, the swap-or-not shuffle of Hoang, Morris and Rogaway (2012): in each round an index x is paired with K
- x mod N and a hash bit of the pair decides whether the two change places. It costs O(rounds) per row, for
any N.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Key, Scalar

# After r rounds a row has not moved with probability 2^-r.
_ROUNDS = 24
# A fold that no step reaches: steps are int32.
_ORDER = np.uint32(2**32 - 1)


def shuffled(positions: Array, n: int, *, key: Key) -> Array:
    """The images of `positions` (integers in 0..n-1, any shape) under a random permutation of 0..n-1.

    Equal keys give the same permutation, of which any part can be asked for.
    **Cost.** 24 rounds of integer arithmetic per position; no memory of size n.
    """
    check_key(key)
    return _shuffled(positions, check.count(n, "n, the number of rows,", most=2**31 - 1), key)


@program
def _shuffled(positions, n, key):
    size = jnp.uint32(n)
    words = jax.random.bits(key, (2, _ROUNDS), jnp.uint32)
    pivots, salts = words[0] % size, words[1]

    def swapped(r, x):
        partner = pivots[r] + (size - x)
        partner = jnp.where(partner >= size, partner - size, partner)
        swap = _mix(jnp.maximum(x, partner) ^ salts[r]) >> 31
        return jnp.where(swap == 1, partner, x)

    # A loop: written out, the rounds compile and run slower.
    return jax.lax.fori_loop(0, _ROUNDS, swapped, positions.astype(jnp.uint32)).astype(jnp.int32)


def row_indices(n: int, batch_size: int, *, step: Scalar, key: Key, replace: bool = False) -> Array:
    """The `batch_size` rows, of n, that step `step` sees.

    Without replacement, step k takes the next `batch_size` rows of epoch k // (n // batch_size), each epoch
    in an order of its own; the n mod batch_size rows left over at its end differ from epoch to epoch. With
    replacement, rows are independent and uniform.
    **Errors.** ValueError for a batch larger than n that is drawn without replacement.
    """
    check_key(key)
    n = check.count(n, "n, the number of rows,", most=2**31 - 1)
    check.count(batch_size, "batch_size", most=None if replace else n)
    check.within(step, "step", least=0)
    return _row_indices(n, batch_size, step, key, replace)


@program
def _row_indices(n, batch_size, step, key, replace):
    step = jnp.asarray(step, jnp.int32)
    order = jax.random.fold_in(key, _ORDER)
    if replace:
        return jax.random.randint(jax.random.fold_in(order, step), (batch_size,), 0, n)
    per_epoch = n // batch_size
    start = (step % per_epoch) * batch_size
    return shuffled(
        start + jnp.arange(batch_size, dtype=jnp.int32), n, key=jax.random.fold_in(order, step // per_epoch)
    )


def index_table(
    data: PyTree, batch_size: int | None, *, start: Scalar, steps: int, key: Key, replace: bool
) -> Array | None:
    """`row_indices` of `steps` steps from `start` on, (steps, batch_size); `None` where none are drawn.

    One vectorised computation for a chunk: within a step, the rounds of the shuffle would cost more in
    launches than in arithmetic.
    """
    if data is None or callable(data) or batch_size is None:
        return None
    n = jax.tree.leaves(data)[0].shape[0]
    return jax.vmap(lambda k: _row_indices(n, batch_size, k, key, replace))(start + jnp.arange(steps, dtype=jnp.int32))


def next_batch(data: PyTree, index: Array | None, *, batch_key: Key) -> Any:
    """The batch for the three kinds of data: `None`, a sampler `data(key)`, or arrays (whole or `index`)."""
    if data is None:
        return None
    if callable(data):
        return data(batch_key)
    return data if index is None else jax.tree.map(lambda x: jnp.take(x, index, axis=0), data)


def check_data(data: PyTree, batch_size: int | None) -> None:
    """Raise `ValueError` when the leading axes of the data differ, or the batch size does not fit them."""
    if data is None or callable(data):
        if batch_size is not None:
            kind = "None: the loss draws its own" if data is None else "a callable: it decides on the rows"
            raise ValueError(f"batch_size={batch_size} has no meaning when data is {kind}. Leave it out")
        return
    shapes = [np.shape(x) for x in jax.tree.leaves(data)]
    if not shapes or any(len(s) == 0 for s in shapes) or len({s[0] for s in shapes}) != 1:
        raise ValueError(
            f"data must be arrays with a common leading axis, got shapes {shapes}: stack the rows first, or "
            "pass a callable data(key) -> batch"
        )
    n = shapes[0][0]
    if n == 0:
        raise ValueError(f"data has no rows: shapes {shapes}")
    if batch_size is not None and not 1 <= batch_size <= n:
        raise ValueError(f"batch_size={batch_size} for {n} rows: choose one between 1 and {n}")


def _mix(x):
    """An avalanche of 32 bits (the lowbias32 finaliser)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
