"""Descent inside one compiled program, for small models and for many of them at once."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.program import program


class Minimum(Checked):
    """What `minimise` returns: the last `x`, the loss before each step, and x after each step if asked for.

    Status `diverged` at the first step before which the loss was not finite; x is what came of it.
    """

    computation: ClassVar[str] = "minimise"

    x: PyTree
    losses: Float[Array, " steps"]
    history: PyTree
    status: Status


def minimise(
    loss: Callable,
    x: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    steps: int | None = None,
    batches: PyTree = None,
    history: bool = False,
) -> Minimum:
    r"""`steps` of an optimiser from x, in one scan: compiles, vmaps over starts, and differentiates.

    $$x_{k+1} = x_k + \mathrm{update}\big(\nabla L(x_k; B_k)\big)$$

    **Arguments.** `loss`: `loss(x) -> scalar`, or `loss(x, batch)` when there are `batches`, arrays (steps, ...) of
    which each step takes one row. `x`: any pytree; its floating-point arrays move. `optimizer`: any optax
    transformation, `optax.lbfgs()` among them. `steps`: how many, or those of the batches. `history`: keep x after each
    step.
    **Returns** a `Minimum`. **Cost.** A gradient a step; memory of one x without `history`. `fit` is for what takes
    minutes: it reports, saves and resumes. **Errors.** `ValueError` for steps that disagree with the batches.

    ```python
    starts = jax.random.normal(jax.random.key(0), (8, 2))
    ends = jax.vmap(lambda x: minimise(rosenbrock, x, optax.adam(0.01), steps=2000).x)(starts)
    ```
    """
    check.function(loss, "loss", "(x) or (x, batch)")
    check.instance(optimizer, "optimizer", optax.GradientTransformation, "an optax optimizer, such as optax.adam(1e-3)")
    rows = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(batches)}
    if steps is None and not rows:
        raise ValueError("give steps, or batches with one row a step")
    if None in rows or rows - {steps if steps is not None else next(iter(rows))}:
        raise ValueError(f"batches with {rows} rows do not make {steps} steps: each step takes one row of every array")
    steps = check.count(next(iter(rows)) if steps is None else steps, "steps")
    return _minimise(loss, x, optimizer, steps, batches, history)


@program
def _minimise(loss, x, optimizer, steps, batches, history):
    moving, rest = eqx.partition(x, eqx.is_inexact_array)
    # Line searches ask for more than the gradient.
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, batch):
        x, state = carry
        given = () if batch is None else (batch,)
        of = lambda x: loss(eqx.combine(x, rest), *given)
        value, slope = jax.value_and_grad(of)(x)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its counter with floats
            update, state = optimizer.update(slope, state, x, value=value, grad=slope, value_fn=of)
        x = optax.apply_updates(x, update)
        return (x, state), (value, x if history else None)

    (x, _), (losses, path) = lax.scan(step, (moving, optimizer.init(moving)), batches, length=steps)
    bad = ~jnp.isfinite(losses)
    code = jnp.where(jnp.any(bad), Code.diverged, Code.ok)
    return Minimum(eqx.combine(x, rest), losses, path, status(code, jnp.argmax(bad)))
