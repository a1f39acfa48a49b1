r"""What a kernel is: a deterministic map of (state, noise) that leaves a law invariant, nearly or exactly.

A kernel moves ONE chain, whose position is any pytree of floating arrays. With `lanes=1` it moves many at once and
they go last on every array, where a CPU vectorises over them; only the energy is then mapped. `run_chains` switches
this on by itself.
"""

import abc
import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check, noise
from physml.core.program import program
from physml.core.tree import plus as plus, total as total
from physml.core.types import Energy, Key, Scalar, shape_of
from physml.particles.kernels.precondition import check_scale

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

    `rejects`: whether a move may leave the state where it was, by chance; such a move is no linear map.
    `starts_with_key`: whether `init` is random, and `run` must give it a key.
    """

    rejects: ClassVar[bool] = False
    starts_with_key: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, position: PyTree, rng_key: Key | None = None) -> PyTree:
        """The state at a position. No kernel of ours needs a key for it; loops that give one may."""

    @abc.abstractmethod
    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        """The noise of one move: entry j of lane c depends on (key, c, j) alone, lanes go last.

        `position`: of ONE chain, or its shapes and dtypes.
        """

    @abc.abstractmethod
    def move(self, state: PyTree, noise: PyTree) -> tuple[Any, Info]:
        """The next state, and what is to be known about the move."""

    def step(self, rng_key: Key, state: PyTree) -> tuple[Any, Info]:
        """One move of one chain with fresh noise; outside jit one program."""
        return _step(self, rng_key, state)


@program
def _step(kernel, key, state):
    return kernel.move(state, kernel.draw(key, state.position, 0))


class Attempt(NamedTuple):
    """What a move tried, for `tune`; all but the position and the velocity are one number for each chain.

    `position`: that was proposed. `log_ratio`: ln of the ratio that decides on it, minus the error that the step made
    in the energy over T. `energy`: over T at the start, whose rounding such an error has. `gradients`: how many were
    taken. `velocity` at the end and `duration` of the way, in coordinates $L^{-1}x$; None without a trajectory.
    """

    position: PyTree
    log_ratio: Array
    energy: Array
    gradients: Array
    velocity: PyTree = None
    duration: Array | None = None


class AbstractTunable(AbstractKernel):
    """A kernel with a `step_size` and a `scale` that `tune` can set: its `move` is the outcome of an `attempt`.

    `target`: the acceptance to tune a kernel that `rejects` to.
    """

    target: ClassVar[float] = 0.0

    @abc.abstractmethod
    def attempt(self, state: PyTree, noise: PyTree) -> tuple[Any, Info, Attempt]:
        """The next state, what is to be known about the move, and what was tried."""

    def move(self, state: PyTree, noise: PyTree) -> tuple[Any, Info]:
        new, info, _ = self.attempt(state, noise)
        return new, info


def check_kernel(kernel: Any) -> None:
    """Raise a `ValueError` for what is no kernel."""
    check.instance(kernel, "kernel", AbstractKernel, "a kernel, such as overdamped(energy, step_size)")


def over_lanes(kernel: K) -> K:
    """The same kernel for many chains, on the last axis; a `ValueError` for one that is written for a single chain."""
    check_kernel(kernel)
    if "lanes" not in {field.name for field in dataclasses.fields(kernel)}:
        raise ValueError(
            f"{type(kernel).__name__} moves one chain: give it a field `lanes`, an integer, static, 0 by default, "
            "and let it move arrays that end in so many axes of chains; or map `run` with jax.vmap"
        )
    return dataclasses.replace(kernel, lanes=1)


def normals(key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
    """Standard normals like a position; stream 0 of a key."""
    return noise.normal(key, 0, position, lanes)


def uniforms(key: Key, position: PyTree, lanes: ArrayLike) -> Array:
    """One uniform number for each lane, in the dtype of the position; stream 1 of a key."""
    dtype = jnp.result_type(jax.tree.leaves(position)[0])
    return noise.uniform(key, 1, jax.ShapeDtypeStruct((), dtype), lanes)


# ---- an energy on one chain or on lanes of them


class Bound(eqx.Module):
    """`energy(x, args)` with its arguments, which are leaves: other values of them compile nothing again."""

    energy: Callable
    args: PyTree

    def __call__(self, x: PyTree) -> Array:
        return self.energy(x, self.args)


def bind(energy: Callable, args: PyTree) -> Energy:
    """The energy of a position alone; numbers among the arguments become arrays."""
    if args is None:
        return energy
    check.function(energy, "energy", "(x, args)")
    return Bound(energy, jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf, args))


def _array(energy):
    """The energy, as an array also where it is a constant of Python."""

    def of(x):
        value = energy(x)
        return value if isinstance(value, jax.Array) else jnp.asarray(value, jnp.result_type(jax.tree.leaves(x)[0]))

    return of


@program
def gradient(energy: Energy, x: PyTree, lanes: int) -> PyTree:
    """Its gradient."""
    grad = jax.grad(_array(energy))
    return grad(x) if lanes == 0 else jax.vmap(grad, in_axes=-1, out_axes=-1)(x)


@program
def value_and_gradient(energy: Energy, x: PyTree, lanes: int) -> tuple[Array, PyTree]:
    """Energy and gradient."""
    both = jax.value_and_grad(_array(energy))
    return both(x) if lanes == 0 else jax.vmap(both, in_axes=-1, out_axes=-1)(x)


def check_energy(energy: Energy, position: PyTree, lanes: int, scale: PyTree | None = None) -> None:
    """Raise a `ValueError` unless the energy of one position is a real scalar, finite where it can be known."""
    check.function(energy, "energy", "of the position")
    check_position(position)
    check_scale(scale, position, lanes)
    one = position if lanes == 0 else jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf[..., 0], x), position)
    try:
        out = shape_of(energy, one)
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError("energy must return an array of JAX; it asks for the value of one, as float() does") from error
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"energy must return a real scalar of shape (); got {out}")


_starts: contextvars.ContextVar[list[tuple[Array, str]] | None] = contextvars.ContextVar("starts", default=None)
_ENERGY = "the energy of the start is not finite{}: start where exp(-energy) is positive"


@contextlib.contextmanager
def starts() -> Iterator[list[tuple[Array, str]]]:
    """What `check_start` is given inside, while it is traced: for the caller to judge outside."""
    token = _starts.set([])
    try:
        yield _starts.get()  # type: ignore[misc]
    finally:
        _starts.reset(token)


def check_start(values: Array, message: str = _ENERGY) -> None:
    """Raise a `ValueError` for a start of infinite or undefined energy, where that can be known.

    Or of other values, one for each chain, with a `message` in which {} stands for how many chains are concerned.
    """
    seen, waiting = check.known(values), _starts.get()
    if seen is None:
        if waiting is not None:
            waiting.append((values, message))
    elif not np.isfinite(seen).all():
        bad = np.sum(~np.isfinite(seen))
        raise ValueError(message.format("" if seen.ndim == 0 else f" for {bad} of {seen.size} chains"))


def evaluated(energy: Energy, position: PyTree, lanes: int, scale: PyTree | None) -> Evaluated:
    """Where a kernel that knows its energy starts, with everything checked that can be."""
    check_energy(energy, position, lanes, scale)
    value, grad = value_and_gradient(energy, position, lanes)
    check_start(value)
    return Evaluated(position, value, grad)


def check_position(position: PyTree) -> None:
    """Raise a `ValueError` unless a position is made of real floating arrays."""
    leaves = jax.tree.leaves(position)
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    if not leaves or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(f"a position is a pytree of real floating arrays; got dtypes {dtypes or 'none'}")


# ---- arithmetic on pytrees whose leaves end in lanes


def scaled(factor: Scalar, tree: PyTree) -> PyTree:
    """factor * tree; the factor is one number, or one for each lane."""

    def one(leaf):
        c = jnp.asarray(factor, leaf.dtype)
        return (c if c.ndim == 0 else jnp.expand_dims(c, tuple(range(leaf.ndim - c.ndim)))) * leaf

    return jax.tree.map(one, tree)


def choose(accept: Array, new: PyTree, old: PyTree) -> PyTree:
    """The new state where a lane accepts, the old elsewhere."""
    pick = lambda a, b: jnp.where(jnp.expand_dims(accept, tuple(range(a.ndim - accept.ndim))), a, b)
    return jax.tree.map(pick, new, old)


def metropolis(log_ratio: Array, uniform: Array, new: PyTree, old: PyTree) -> tuple[Any, Info]:
    """Accept `new` with probability min(1, e^log_ratio); a ratio that is not a number rejects."""
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    accept = jnp.log(uniform) < log_ratio
    return choose(accept, new, old), Info(jnp.exp(jnp.minimum(log_ratio, 0)))


def accepted(tree: PyTree, lanes: int) -> Info:
    """The info of a kernel that accepts everything: one for each chain."""
    leaf = jax.tree.leaves(tree)[0]
    return Info(jnp.ones(leaf.shape[leaf.ndim - lanes :], leaf.dtype))
