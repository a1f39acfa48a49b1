r"""How pairs are enumerated: all of them in blocks of rows, a few random ones, or those of neighbouring cells.

The (N, N, d) array is never built: rows go in blocks, coordinates are separate arrays whose last axis runs over the
particles, and the backward pass recomputes a block at a time. Pairs at zero distance count if the kernel and its
derivative are finite there, and contribute nothing if they are not.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.entries import by_entries, objects
from physml.core.types import Key, shape_of


class Force(Checked):
    """The force on each particle, and `overflow` with the number of particles that miss a pair."""

    computation: ClassVar[str] = "pair sum"
    counted: ClassVar[str] = "number of particles that miss a pair:"

    value: Array
    status: Status


class AbstractBackend(eqx.Module):
    """How the pairs are enumerated."""

    @abc.abstractmethod
    def sum(self, kernel: Callable, x: Array, y: Array, weights: Array, key: Key | None) -> Force:
        """sum_j w_j kernel(x_i, y_j) for every i."""


class AllPairs(AbstractBackend):
    """All pairs, `block` rows at a time: O(N M) time, O(block M) memory."""

    block: int = eqx.field(static=True, default=8)

    def __post_init__(self):
        check.count(self.block, "block")

    def sum(self, kernel, x, y, weights, key):
        return Force(value=_by_rows(kernel, x, y, weights, self.block), status=status())


class RandomBatch(AbstractBackend):
    r"""Each particle meets the others of a random batch of `size`, drawn anew for every key.

    A random partition into batches; inside one, $f_i = w_i k(x_i, x_i) + \frac{1 - w_i}{\sum_{j \ne i} w_j}
    \sum_{j \ne i} w_j k(x_i, x_j)$, unbiased for equal weights. O(N size) time; the strong error of a simulation
    with steps $\tau$ is $O(\sqrt\tau)$. Needs the measure to sit on the particles themselves, and size to divide their
    number.
    **See** Jin, Li and Liu (2020), algorithm 1.
    """

    size: int = eqx.field(static=True, default=2)

    def __post_init__(self):
        check.count(self.size, "size", least=2)

    def sum(self, kernel, x, y, weights, key):
        if key is None:
            raise ValueError("RandomBatch needs a key: force(x, measure, key=...)")
        if x.shape != y.shape or len(x) % self.size:
            raise ValueError(f"{len(x)} particles, {len(y)} sources: expected equally many, in batches of {self.size}")
        n, p = len(x), self.size
        order = jax.random.permutation(key, n)
        split = lambda a: a[order].reshape(n // p, p, *a.shape[1:])
        keep = jax.vmap(lambda z: _finite_on_diagonal(kernel, z))(x)
        pair = _of_coordinates(kernel, x[0], y[0])
        # Each coordinate and the numbers, (batches, size).
        xs, ys = ((*jnp.moveaxis(split(a), 2, 0), split(k)) for a, k in zip((x, y), _numbers(x, y), strict=True))
        inside = jax.vmap(jax.vmap(jax.vmap(pair, (None, None, 0)), (0, 0, None)))
        w = split(weights.astype(x.dtype))
        itself = jnp.eye(p, dtype=bool)[None]
        others = jnp.where(itself, 0, w[:, None, :])
        # The rest of the mass, (1 - w_i), is spread over the partners by their weights.
        total = jnp.sum(others, axis=2, keepdims=True)
        share = jnp.where(itself, w[:, None, :], others * (1 - w[:, :, None]) / jnp.where(total > 0, total, 1))
        entries = [jnp.sum(v * share.astype(v.dtype), axis=2).reshape(n) for v in inside(xs, split(keep), ys)]
        shape = shape_of(kernel, x[0], y[0]).shape
        back = jnp.argsort(order)
        return Force(value=jnp.stack(entries, axis=-1).reshape(n, *shape)[back], status=status())


class Cells(AbstractBackend):
    r"""Pairs closer than `cutoff` alone, by a list of cells at least that wide: O(N) at fixed density.

    Pairs at or beyond `cutoff` contribute nothing, whatever the kernel says there. `box` (d,) the domain, from the
    origin: particles outside it count into its outermost cells; with `periodic` the kernel is given the nearest image
    of y. `capacity`: particles a cell can hold; more is the status `overflow`, and the forces that miss a pair are NaN.
    """

    cutoff: float = eqx.field(static=True)
    box: tuple[float, ...] = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    periodic: bool = eqx.field(static=True)

    def __init__(self, cutoff: float, box: Any, capacity: int = 32, periodic: bool = False):
        sides, reach = check.known(box), check.known(cutoff)
        if sides is None or reach is None or sides.ndim != 1 or not len(sides):
            raise ValueError(f"box must be the sides (d,) of the domain, known outside jit, got {box}")
        check.within(sides, "box", above=0)
        check.number(cutoff, "cutoff", above=0)
        self.cutoff, self.box = float(reach), tuple(map(float, sides))
        self.capacity, self.periodic = check.count(capacity, "capacity"), periodic
        if self.periodic and min(self.box) < 3 * self.cutoff:
            raise ValueError(f"a periodic box {self.box} must hold three cells of {self.cutoff} in each direction")

    def sum(self, kernel, x, y, weights, key):
        d = x.shape[1]
        if len(self.box) != d:
            raise ValueError(f"box has {len(self.box)} sides for points in {d} dimensions")
        counts = np.maximum(1, np.floor(np.asarray(self.box) / self.cutoff)).astype(int)
        side = jnp.asarray(np.asarray(self.box) / counts, x.dtype)
        wrap = lambda z: z - jnp.floor(z / self._box(z)) * self._box(z) if self.periodic else z
        place = lambda z: jnp.clip(
            jnp.floor(wrap(z) / side[None, :]).astype(jnp.int32), 0, jnp.asarray(counts - 1)[None, :]
        )
        strides = np.concatenate([np.cumprod(counts[::-1])[::-1][1:], [1]])
        number = lambda cell: cell @ jnp.asarray(strides, jnp.int32)
        cells = int(np.prod(counts))
        home = number(place(y))
        # Rank within the cell, from the sorted order; what does not fit is dropped and counted.
        order = jnp.argsort(home, stable=True)
        first = jnp.searchsorted(home[order], jnp.arange(cells))
        rank = jnp.arange(len(y)) - first[home[order]]
        slots = jnp.full((cells + 1, self.capacity), -1, jnp.int32)
        slots = slots.at[home[order], rank].set(order.astype(jnp.int32), mode="drop")
        full = jnp.zeros(cells + 1, bool).at[home[order]].max(rank >= self.capacity)
        around, inside = self._around(place(x), counts)
        near = jnp.where(inside, number(around), cells)  # (N, 3^d); `cells` is empty
        partners = slots[near].reshape(len(x), -1)
        value = self._over(kernel, x, y, weights, partners)
        lost = full[near].any(axis=1)
        value = jnp.where(jnp.expand_dims(lost, tuple(range(1, value.ndim))), jnp.nan, value)
        over = full.any()
        return Force(value=value, status=status(jnp.where(over, Code.overflow, Code.ok), jnp.sum(lost)))

    def _box(self, z):
        return jnp.asarray(self.box, z.dtype)[None, :]

    def _around(self, cell, counts):
        d = len(counts)
        steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * d, indexing="ij"), -1).reshape(-1, d)
        around = cell[:, None, :] + jnp.asarray(steps, jnp.int32)[None]
        limit = jnp.asarray(counts, jnp.int32)[None, None, :]
        if self.periodic:
            return around % limit, jnp.ones(around.shape[:2], bool)
        return around, ((around >= 0) & (around < limit)).all(-1)

    def _over(self, kernel, x, y, weights, partners):
        keep = jax.vmap(lambda z: _finite_on_diagonal(kernel, z))(x)
        pair, shape = _of_coordinates(kernel, x[0], y[0]), shape_of(kernel, x[0], y[0]).shape
        limit, (mine, theirs) = self.cutoff**2, _numbers(x, y)

        @jax.checkpoint
        def entries(x, keep, y, weights):
            there = y[partners]  # (N, candidates, d)
            if self.periodic:
                box = jnp.asarray(self.box, x.dtype)[None, None, :]
                there = there - box * jnp.round(lax.stop_gradient(there - x[:, None, :]) / box)
            near = (partners >= 0) & (jnp.sum((there - x[:, None, :]) ** 2, axis=-1) < limit)
            # An absent partner is moved to where the kernel is harmless: one cutoff away, then masked.
            apart = x[:, None, :] + self.cutoff
            there = jnp.where(near[..., None], there, apart)
            w = jnp.where(near, weights.astype(x.dtype)[partners], 0)
            there = (*jnp.moveaxis(there, 2, 0), theirs[partners])
            values = jax.vmap(jax.vmap(pair, (None, None, 0)))((*x.T, mine), keep, there)
            return [jnp.sum(v * w.astype(v.dtype), axis=1) for v in values]

        return jnp.stack(entries(x, keep, y, weights), axis=-1).reshape(len(x), *shape)


def _by_rows(kernel, x, y, weights, block):
    """Blocks of rows of x against all of y; only x, y and the sums are kept for the backward pass."""
    n, size = len(x), min(block, len(x))
    keep = jax.vmap(lambda z: _finite_on_diagonal(kernel, z))(x)
    shape = shape_of(kernel, x[0], y[0]).shape
    pair, columns, w = _of_coordinates(kernel, x[0], y[0]), tuple(y.T), weights.astype(x.dtype)

    mine, theirs = _numbers(x, y)
    columns = (*columns, theirs)

    @jax.checkpoint
    def rows(xs, keep, columns, w):
        """d arrays (size,) and their numbers -> the entries of the force, (size,) each."""
        over_columns = jax.vmap(pair, (None, None, 0))
        values = jax.vmap(over_columns, (0, 0, None))(xs, keep, columns)  # (size, M) each
        return [jnp.sum(value * w[None, :].astype(value.dtype), axis=1) for value in values]

    count, tail = divmod(n, size)
    blocked = lambda a: a[: count * size].reshape(count, size)
    out = lax.map(lambda row: rows(*row, columns, w), (tuple(map(blocked, (*x.T, mine))), blocked(keep)))
    out = [value.reshape(-1) for value in out]
    if tail:
        last = rows((*x[count * size :].T, mine[count * size :]), keep[count * size :], columns, w)
        out = [jnp.concatenate(both) for both in zip(out, last, strict=True)]
    return jnp.stack(out, axis=-1).reshape(n, *shape)


def _numbers(x, y):
    """Numbers that rows and columns share where they are the same particles.

    A distance of zero does not tell: a compiler may compute the coordinates twice, with different rounding.
    """
    mine = jnp.arange(len(x), dtype=jnp.int32)
    return mine, mine if y is x else jnp.full(len(y), -1, jnp.int32)


def _of_coordinates(kernel, x, y):
    """The guarded kernel as a function of coordinates: (x_1, ..., number), ok, (y_1, ..., number) -> its entries."""
    unrolled = by_entries(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(y.shape, y.dtype))

    def pair(a, ok, b):
        (*a, i), (*b, j) = a, b
        # Both branches of a `where` must be finite for its derivative to be: a pair without a value is moved apart.
        touching = (sum(jnp.abs(s - t) for s, t in zip(a, b, strict=True)) == 0) | (i == j)
        absent = touching & ~ok
        b = [b[0] + jnp.where(absent, jnp.ones((), b[0].dtype), 0), *b[1:]]
        if unrolled is None:
            values = list(kernel(jnp.stack(a), jnp.stack(b)).ravel())
        else:
            values = list(unrolled(objects(a, x.shape), objects(b, y.shape)).ravel())
        return [jnp.where(absent, jnp.zeros((), v.dtype), v) for v in values]

    return pair


def _finite_on_diagonal(kernel, z):
    """Whether the kernel and its derivative exist at zero distance, found by trying; so nothing flows back from it.

    In reverse mode: forward mode does not see what a `where` hides.
    """
    z = lax.stop_gradient(z)
    value, back = jax.vjp(kernel, z, z)
    slopes = back(jnp.ones_like(value))
    return lax.stop_gradient(jnp.isfinite(value).all() & jnp.isfinite(jnp.stack(slopes)).all())
