r"""What a kernel is: a deterministic map of (state, noise) that leaves a law invariant, nearly or exactly.

A kernel moves ONE chain, whose position is any pytree of floating arrays. With `lanes=1` it moves many at once and
they go last on every array, where a CPU vectorises over them; only the energy is then mapped. `run_chains` switches
this on by itself.
"""

import abc
import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from physml.core import noise
from physml.core.check import known, number
from physml.core.program import program
from physml.core.tree import plus as plus, total as total
from physml.core.types import Energy, Key, Scalar

K = TypeVar("K", bound="AbstractKernel")


class Info(NamedTuple):
    """What a move tells: the probability with which it was accepted, 1 for kernels that accept everything."""

    acceptance: Array


class Position(NamedTuple):
    """The state of a kernel that remembers nothing else."""

    position: PyTree


class Evaluated(NamedTuple):
    """A position with its energy and gradient."""

    position: PyTree
    energy: Array
    gradient: PyTree


class AbstractKernel(eqx.Module):
    """A Markov kernel: `init(position)`, `draw(key, position, lanes)`, `move(state, noise)`.

    `step(rng_key, state) -> (state, info)` is derived from them, so that the kernel runs in any loop that takes an
    `(init, step)` pair; `run` moves with the noise of `fold_in(key, k)` at step k. Every state has a `position`.
    """

    @abc.abstractmethod
    def init(self, position: PyTree) -> Any:
        """The state at a position."""

    @abc.abstractmethod
    def draw(self, key: Key, position: PyTree, lanes: Any) -> PyTree:
        """The noise of one move: entry j of lane c depends on (key, c, j) alone, lanes go last.

        `position`: of ONE chain, or its shapes and dtypes.
        """

    @abc.abstractmethod
    def move(self, state: Any, noise: PyTree) -> tuple[Any, Info]:
        """The next state, and what is to be known about the move."""

    def step(self, rng_key: Key, state: Any) -> tuple[Any, Info]:
        """One move of one chain with fresh noise."""
        return self.move(state, self.draw(rng_key, state.position, 0))


def over_lanes(kernel: K) -> K:
    """The same kernel for many chains, on the last axis."""
    return dataclasses.replace(kernel, lanes=1)


def normals(key: Key, position: PyTree, lanes: Any) -> PyTree:
    """Standard normals like a position; stream 0 of a key."""
    return noise.normal(key, 0, position, lanes)


def uniforms(key: Key, position: PyTree, lanes: Any) -> Array:
    """One uniform number for each lane, in the dtype of the position; stream 1 of a key."""
    dtype = jnp.result_type(jax.tree.leaves(position)[0])
    return noise.uniform(key, 1, jax.ShapeDtypeStruct((), dtype), lanes)


# ---- an energy on one chain or on lanes of them


@program
def gradient(energy: Energy, x: PyTree, lanes: int) -> PyTree:
    """Its gradient."""
    grad = jax.grad(energy)
    return grad(x) if lanes == 0 else jax.vmap(grad, in_axes=-1, out_axes=-1)(x)


@program
def value_and_gradient(energy: Energy, x: PyTree, lanes: int) -> tuple[Array, PyTree]:
    """Energy and gradient."""
    both = jax.value_and_grad(energy)
    return both(x) if lanes == 0 else jax.vmap(both, in_axes=-1, out_axes=-1)(x)


def check_energy(energy: Energy, position: PyTree, lanes: int, scale: PyTree | None = None) -> None:
    """Raise a `ValueError` unless the energy of one position is a real scalar, finite where it can be known."""
    if not callable(energy):
        raise ValueError(f"energy must be a function of the position, got {type(energy).__name__}")
    check_position(position)
    check_scale(scale, position, lanes)
    one = position if lanes == 0 else jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf[..., 0], x), position)
    out = jax.eval_shape(energy, one)
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"energy must return a real scalar of shape (); got {out}")


_starts: contextvars.ContextVar[list[Array] | None] = contextvars.ContextVar("starts", default=None)


@contextlib.contextmanager
def starts() -> Iterator[list[Array]]:
    """The energies that `check_start` is given inside, while they are traced: for the caller to judge outside."""
    token = _starts.set([])
    try:
        yield _starts.get()  # type: ignore[misc]
    finally:
        _starts.reset(token)


def check_start(energy: Array) -> None:
    """Raise a `ValueError` for a start of infinite or undefined energy, where that can be known."""
    values, waiting = known(energy), _starts.get()
    if values is None:
        if waiting is not None:
            waiting.append(energy)
    elif not np.isfinite(values).all():
        bad = np.sum(~np.isfinite(values))
        many = "" if energy.ndim == 0 else f" for {bad} of {energy.size} chains"
        raise ValueError(f"the energy of the start is not finite{many}: start where exp(-energy) is positive")


def check_position(position: PyTree) -> None:
    """Raise a `ValueError` unless a position is made of real floating arrays."""
    leaves = jax.tree.leaves(position)
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    if not leaves or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(f"a position is a pytree of real floating arrays; got dtypes {dtypes or 'none'}")


# ---- arithmetic on pytrees whose leaves end in lanes


def scaled(factor: Any, tree: PyTree) -> PyTree:
    """factor * tree; the factor is one number, or one for each lane."""

    def one(leaf):
        c = jnp.asarray(factor, leaf.dtype)
        return (c if c.ndim == 0 else jnp.expand_dims(c, tuple(range(leaf.ndim - c.ndim)))) * leaf

    return jax.tree.map(one, tree)


def choose(accept: Array, new: PyTree, old: PyTree) -> PyTree:
    """The new state where a lane accepts, the old elsewhere."""
    pick = lambda a, b: jnp.where(jnp.expand_dims(accept, tuple(range(a.ndim - accept.ndim))), a, b)
    return jax.tree.map(pick, new, old)


def metropolis(log_ratio: Array, uniform: Array, new: Any, old: Any) -> tuple[Any, Info]:
    """Accept `new` with probability min(1, e^log_ratio); a ratio that is not a number rejects."""
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    accept = jnp.log(uniform) < log_ratio
    return choose(accept, new, old), Info(jnp.exp(jnp.minimum(log_ratio, 0)))


def accepted(tree: PyTree, lanes: int) -> Info:
    """The info of a kernel that accepts everything: one for each chain."""
    leaf = jax.tree.leaves(tree)[0]
    return Info(jnp.ones(leaf.shape[leaf.ndim - lanes :], leaf.dtype))


# ---- preconditioning


def push(scale: PyTree | None, v: PyTree, lanes: int) -> PyTree:
    """L v: v itself without a scale, entry by entry, or the product with a matrix (d, d) for a vector (d,)."""
    return v if scale is None else jax.tree.map(lambda s, leaf: _multiply(s, leaf, lanes), scale, v)


def pull(scale: PyTree | None, g: PyTree, lanes: int) -> PyTree:
    """L^T g."""
    transposed = lambda s, leaf: _multiply(s.T if s.ndim == leaf.ndim - lanes + 1 else s, leaf, lanes)
    return g if scale is None else jax.tree.map(transposed, scale, g)


def _multiply(scale, leaf, lanes):
    scale, event = scale.astype(leaf.dtype), leaf.ndim - lanes
    if scale.ndim == event + 1:
        return jnp.tensordot(scale, leaf, event)
    return jnp.expand_dims(scale, tuple(range(scale.ndim, leaf.ndim))) * leaf


def as_scale(scale: PyTree | None) -> PyTree | None:
    """Arrays for leaves."""
    return None if scale is None else jax.tree.map(jnp.asarray, scale)


def check_scale(scale: PyTree | None, position: PyTree, lanes: int) -> None:
    """Raise a `ValueError` unless a scale is one factor for each entry, one for all, or a matrix for a vector."""
    if scale is None:
        return
    if jax.tree.structure(scale) != jax.tree.structure(position):
        raise ValueError("scale must be a pytree like the position")
    for s, leaf in zip(jax.tree.leaves(scale), jax.tree.leaves(position), strict=True):
        event = jnp.shape(leaf)[: jnp.ndim(leaf) - lanes]
        if s.shape not in ((), event) and not (len(event) == 1 and s.shape == event * 2):
            raise ValueError(f"scale must have the shape of the position, {event}, or be a matrix; got {s.shape}")


# ---- parameters


def positive(value: Scalar, name: str, *, or_zero: bool = False) -> Array:
    """A parameter as an array, so that another value does not compile again; a `ValueError` if it is negative."""
    return number(value, name, least=0) if or_zero else number(value, name, above=0)
