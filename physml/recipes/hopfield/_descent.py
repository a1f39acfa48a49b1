"""Training inside one compiled program, for models that are small and for many of them at once."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import optax


def descend(optimizer: optax.GradientTransformation, loss: Callable, model: Any, batches: Any) -> tuple[Any, jax.Array]:
    """`model` after one step along the gradient of `loss(model, batch)` for each of the batches, along their leading
    axis; and the losses on the way."""
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def step(carry, batch):
        params, state = carry
        value, slope = jax.value_and_grad(lambda p: loss(eqx.combine(p, rest), batch))(params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            update, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, update), state), value

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), batches)
    return eqx.combine(params, rest), losses
