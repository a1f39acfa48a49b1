"""A blackjax kernel in a loop of ours. The other direction needs nothing: our kernels have `init` and `step`."""

import inspect
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import PyTree

from physml.core.types import Key
from physml.particles.kernels.base import AbstractKernel, Info


class Blackjax(AbstractKernel):
    """See `from_blackjax`."""

    rejects: ClassVar[bool] = True
    starts_with_key: ClassVar[bool] = True

    algorithm: Any
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Any = None) -> PyTree:  # a key, or one for each chain
        start = self.algorithm.init
        try:
            takes_key = len(inspect.signature(start).parameters) > 1
        except ValueError:  # a callable without a signature
            takes_key = False
        if not takes_key or rng_key is None:
            return (jax.vmap(start, -1, -1) if self.lanes else start)(position)
        return (jax.vmap(start, (-1, -1), -1) if self.lanes else start)(position, rng_key)

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        # A chain's own key; `step` alone, which has no lane, keeps the key it is given, so that it is the algorithm's.
        if isinstance(lanes, int):
            return key
        fresh = lambda lane: jax.random.fold_in(key, lane)
        return jax.vmap(fresh)(lanes) if jnp.ndim(lanes) else fresh(lanes)

    def move(self, state: PyTree, noise: PyTree) -> tuple[Any, Info]:
        step = jax.vmap(self.algorithm.step, (-1, -1), -1) if self.lanes else self.algorithm.step
        state, info = step(noise, state)
        dtype = jnp.result_type(jax.tree.leaves(state.position)[0])
        shape = jax.tree.leaves(state.position)[0].shape[-1:] if self.lanes else ()
        rate = getattr(info, "acceptance_rate", None)
        return state, Info(jnp.ones(shape, dtype) if rate is None else rate)


def from_blackjax(algorithm: Any) -> Blackjax:
    """A kernel that moves as a blackjax `SamplingAlgorithm` does, for `run` and `run_chains`.

    **Arguments.** `algorithm`: has `init(position)`, or `init(position, rng_key)`, and `step(rng_key, state)`, and its
    state a `position`, such as `blackjax.nuts(logdensity, step_size, inverse_mass_matrix)`. **Returns** a kernel; it
    draws its own randomness from keys, so it does not share the speed of kernels that are handed their noise.
    **Errors.** `ValueError` for what has no `init` and `step`.
    """
    if not (callable(getattr(algorithm, "init", None)) and callable(getattr(algorithm, "step", None))):
        raise ValueError(f"algorithm must have init and step, as blackjax's do; got {type(algorithm).__name__}")
    return Blackjax(algorithm)
