"""A blackjax kernel in a loop of ours. The other direction needs nothing: our kernels have `init` and `step`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from physml.core.types import Key
from physml.particles.kernels.base import AbstractKernel, Info


class Blackjax(AbstractKernel):
    """See `from_blackjax`."""

    algorithm: Any
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree) -> Any:
        return (jax.vmap(self.algorithm.init, -1, -1) if self.lanes else self.algorithm.init)(position)

    def draw(self, key: Key, position: PyTree, lanes: Any) -> PyTree:
        # A chain's own key; lane 0 alone keeps the key it is given, so that `step` is the algorithm's.
        return jax.vmap(lambda lane: jax.random.fold_in(key, lane))(lanes) if jnp.ndim(lanes) else key

    def move(self, state: Any, noise: PyTree) -> tuple[Any, Info]:
        step = jax.vmap(self.algorithm.step, (-1, -1), -1) if self.lanes else self.algorithm.step
        state, info = step(noise, state)
        dtype = jnp.result_type(jax.tree.leaves(state.position)[0])
        shape = jax.tree.leaves(state.position)[0].shape[-1:] if self.lanes else ()
        rate = getattr(info, "acceptance_rate", None)
        return state, Info(jnp.ones(shape, dtype) if rate is None else rate)


def from_blackjax(algorithm: Any) -> Blackjax:
    """A kernel that moves as a blackjax `SamplingAlgorithm` does, for `run` and `run_chains`.

    **Arguments.** `algorithm`: has `init(position)` and `step(rng_key, state)`, and its state a `position`, such as
    `blackjax.nuts(logdensity, step_size, inverse_mass_matrix)`. **Returns** a kernel; it draws its own randomness from
    keys, so it does not share the speed of kernels that are handed their noise.
    """
    if not (callable(getattr(algorithm, "init", None)) and callable(getattr(algorithm, "step", None))):
        raise ValueError(f"algorithm must have init and step, as blackjax's do; got {type(algorithm).__name__}")
    return Blackjax(algorithm)
