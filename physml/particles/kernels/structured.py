"""Blocks of parameters that feel each other only on average: structured stochastic gradients."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check, noise as streams
from physml.core.types import Key, Scalar
from physml.particles.kernels.base import (
    AbstractKernel,
    Info,
    accepted,
    check_position,
    normals,
    plus,
    scaled,
)
from physml.particles.kernels.minibatch import MinibatchEnergy, batch_gradient, check_data, draw_batch


class Remembering(NamedTuple):
    """A position, past positions (memory, ...), and how many moves were made."""

    position: PyTree
    memory: PyTree
    moves: Array


class Structured(AbstractKernel):
    """See `structured`."""

    energy: MinibatchEnergy
    labels: PyTree
    step_size: Array
    temperature: Array
    blocks: int = eqx.field(static=True)
    memory: int = eqx.field(static=True)
    every: int = eqx.field(static=True)
    keep: float | None = eqx.field(static=True)
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Remembering:
        check_position(position)
        past = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (self.memory, *x.shape)), position)
        return Remembering(position, past, jnp.zeros_like(accepted(position, self.lanes).acceptance))

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        u = streams.uniform(key, 2, jax.ShapeDtypeStruct((self.blocks + 1,), jnp.float32), lanes)
        slot = jnp.minimum((u[-1] * self.memory).astype(jnp.int32), self.memory - 1)
        if self.keep is not None:
            mask = u[:-1] <= self.keep
        else:
            mask = jnp.arange(self.blocks).reshape(-1, *(1,) * (u.ndim - 1)) == jnp.minimum(
                (u[:1] * self.blocks).astype(jnp.int32), self.blocks - 1
            )
        return normals(key, position, lanes), draw_batch(key, self.energy, lanes), mask, slot

    def move(self, state: Remembering, noise: PyTree) -> tuple[Remembering, Info]:
        xi, batch, mask, slot = noise
        x, h = state.position, self.step_size
        chosen = jax.tree.map(lambda label, leaf: mask[label].astype(leaf.dtype), self.labels, x)

        def recall(past):
            index = slot.reshape((1,) * (past.ndim - slot.ndim) + slot.shape)
            return jnp.take_along_axis(past, jnp.broadcast_to(index, (1, *past.shape[1:])), axis=0)[0]

        mixed = jax.tree.map(lambda r, a, past: r * a + (1 - r) * recall(past), chosen, x, state.memory)
        weight = self.blocks if self.keep is None else 1 / self.keep
        grad = jax.tree.map(lambda r, g: weight * r * g, chosen, batch_gradient(self.energy, mixed, batch, self.lanes))
        x = plus(x, scaled(-h, grad), scaled(jnp.sqrt(2 * self.temperature * h), xi))
        place = jnp.mod(jnp.floor(state.moves / self.every), self.memory)

        def write(past, leaf):
            at = place.reshape((1,) * (leaf.ndim + 1 - place.ndim) + place.shape)
            here = jnp.arange(self.memory, dtype=place.dtype).reshape(-1, *(1,) * leaf.ndim) == at
            return jnp.where(here, leaf[None], past)

        return Remembering(x, jax.tree.map(write, state.memory, x), state.moves + 1), accepted(xi, self.lanes)


def structured(
    energy: MinibatchEnergy,
    labels: PyTree,
    step_size: Scalar,
    temperature: Scalar = 1.0,
    *,
    memory: int = 100,
    every: int = 1,
    keep: float | None = None,
) -> Structured:
    r"""Structured SGLD: blocks of parameters that feel each other only on average, $q(x) = \prod_b q_b(x_b)$ with

    $$q_b(x_b) \propto \exp\Bigl(-\tfrac1T E_{x_{-b} \sim q_{-b}}\, E(x_b, x_{-b})\Bigr),$$

    the fixed point of mean-field variational inference without a parametric form. The other blocks come from the past
    of the chain. Each move takes the gradient of one random block; for a Gaussian of precision $\Lambda$ the blocks
    tend to independent Gaussians of precision $\Lambda_{bb}$ with the right mean as $h \to 0$ and the memory grows
    long.
    **Arguments.** `labels`: a pytree like the position of integers, the block of each entry, from 0. `memory`: how many
    past positions, one `every` so many moves; they must span many correlation times. `keep`: the dropout version,
    in which each block is at its present value with this probability and else at a past one: cheaper for many blocks,
    and between the two laws (1 is SGLD).
    **Cost.** One batch gradient. **Errors.** `ValueError` for labels or probabilities out of range.
    **See** Alexos, Boyd and Mandt, Structured stochastic gradient MCMC (2022).
    """
    check_data(energy)
    known = [check.known(leaf) for leaf in jax.tree.leaves(labels)]
    if not known or any(leaf is None or leaf.dtype.kind not in "iu" for leaf in known):
        raise ValueError("labels must be integers like the position, known outside jit")
    for leaf in jax.tree.leaves(labels):
        check.within(leaf, "labels", least=0)
    labels = jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), labels)
    blocks = 1 + max(int(leaf.max()) for leaf in known if leaf is not None)
    if keep is not None:
        check.within(keep, "keep", above=0, most=1)
    memory, every = check.count(memory, "memory"), check.count(every, "every")
    parts = {
        "step_size": check.number(step_size, "step_size", above=0),
        "blocks": blocks,
        "memory": memory,
        "every": every,
    }
    T = check.number(temperature, "temperature", least=0)
    return Structured(energy=energy, labels=labels, temperature=T, keep=keep, **parts)
