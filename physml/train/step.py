"""One training step: gradient, clipping, update, average. Everything else in this room only calls it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.types import Key, Scalar
from physml.train.mesh import constrain


class State(NamedTuple):
    """What a step changes: the number of steps done, the trained arrays, the optimiser's state, the average.

    `params` and `ema` are the trained half of the model (`None` at the other leaves); the other half stays
    fixed and travels beside the state. `ema` is `None` when no average is kept.
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    ema: PyTree


def init_state(
    model: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: Scalar | None = None,
    trainable: Callable | PyTree = eqx.is_inexact_array,
) -> tuple[State, PyTree]:
    """Split a model into the state that training changes and the half that it leaves alone.

    **Arguments.** `model`: any pytree. `trainable`: what is trained, a predicate on leaves or a pytree of
    booleans that is a prefix of the model; by default every floating-point array.
    **Returns.** `(state, frozen)`; `eqx.combine(state.params, frozen)` is the model. The state owns copies,
    so its buffers can be donated while the model stays usable.
    **Fails** with `ValueError` when nothing is trainable.
    """
    check.instance(optimizer, "optimizer", optax.GradientTransformation, "an optax optimizer, such as optax.adam(1e-3)")
    params, frozen = eqx.partition(model, trainable)
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError(
            "the model has no trainable leaf: expected at least one floating-point array. Integers and Python numbers "
            "are not trained; make a number trainable with jnp.asarray"
        )
    for leaf in leaves:
        if not eqx.is_inexact_array(leaf):
            raise ValueError(f"trainable selects {leaf!r}, which has no gradient: select floating-point arrays only")
    params = _own(params)
    ema = None if ema_decay is None else _own(jax.tree.map(lambda p: p.astype(_wide(p.dtype)), params))
    return State(jnp.zeros((), jnp.int32), params, _own(optimizer.init(params)), ema), frozen


def train_step(
    state: State,
    frozen: PyTree,
    batch: PyTree,
    *,
    key: Key,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    clip_norm: Scalar | None = None,
    ema_decay: Scalar | None = None,
    has_aux: bool = False,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[State, dict]:
    r"""One step of gradient descent on a batch, as a pure function.

    $$g = \frac1n \sum_{i<n} \nabla L_i(\theta), \qquad
      g \leftarrow g \min\big(1, c/\|g\|\big), \qquad
      \theta \leftarrow \theta + \mathrm{update}(g), \qquad
      \bar\theta \leftarrow \bar\theta + \frac{1-d}{1-d^k} (\theta - \bar\theta)$$

    The average after k steps weighs $\theta_j$ by $d^{k-j}$, normalised: the initial parameters have no
    weight, so there is no bias to correct. When the loss or $\|g\|$ is not finite, the state is returned as
    it was.

    **Arguments.** `state, frozen`: from `init_state`. `batch`: rows on the leading axis, or `None`. `key`:
    goes to the loss; microbatch i of several receives `fold_in(key, i)`. `loss`: `loss(model, batch, *, key)
    -> scalar`, a mean over rows, or `(scalar, dict)` with `has_aux`. `accumulate`: microbatches n, which must
    divide the rows; microbatch i holds rows i, i + n, ... `clip_norm`: c > 0. `ema_decay`: 0 <= d < 1.
    `sharding`: rows over a device mesh, see `data_parallel`.
    **Returns.** `(state, metrics)`, metrics with `loss`, `grad_norm` (before clipping), `finite` and the
    entries of the auxiliary dict, averaged over microbatches.
    **Cost.** n gradients, and the memory of one of them.
    **Fails** with `ValueError` for a loss that is not a scalar and for rows that n does not divide.
    """

    def objective(params, rows, loss_key):
        out = loss(eqx.combine(params, frozen), constrain(rows, sharding), key=loss_key)
        return _check_loss(out, has_aux)

    (value, aux), grads = _mean_gradient(objective, state.params, batch, key, accumulate)
    norm = _global_norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    if clip_norm is not None:
        shrink = jnp.minimum(1.0, jnp.asarray(clip_norm, norm.dtype) / jnp.maximum(norm, _tiny(norm.dtype)))
        grads = jax.tree.map(lambda g: g * shrink.astype(_real(g.dtype)), grads)

    # Optax mixes dtypes (a power of an integer count), so a caller's strict promotion is lifted for it. Line
    # searches and plateau schedules ask for the value; other optimisers drop these arguments.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            grads,
            state.opt_state,
            state.params,
            value=value,
            grad=grads,
            value_fn=lambda p: _mean_value(objective, p, batch, key, accumulate),
        )
    params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state.params, updates)
    step = state.step + 1
    ema = None if ema_decay is None else _average(state.ema, params, step, float(ema_decay))
    new = State(step, params, opt_state, ema)
    # A select, not a cond: it fuses with the update, and costs nothing.
    new = jax.tree.map(lambda a, b: jnp.where(finite, a.astype(b.dtype), b), new, state)
    return new, {"loss": value, "grad_norm": norm, "finite": finite, **aux}


def _mean_gradient(objective, params, batch, key, n):
    """Value, auxiliary dict and gradient, averaged over n microbatches, one at a time in memory."""
    gradient = jax.value_and_grad(objective, has_aux=True)
    if n == 1:
        return gradient(params, batch, key)

    def add(total, indexed):
        index, rows = indexed
        (value, aux), grads = gradient(params, rows, jax.random.fold_in(key, index))
        total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads)
        return total, (value, aux)

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p.dtype)), params)
    total, (values, auxes) = jax.lax.scan(add, zeros, (jnp.arange(n), _microbatches(batch, n)))
    grads = jax.tree.map(lambda t, p: (t / n).astype(p.dtype), total, params)
    return (values.mean(), jax.tree.map(lambda a: a.mean(axis=0), auxes)), grads


def _mean_value(objective, params, batch, key, n):
    if n == 1:
        return objective(params, batch, key)[0]

    def one(_, indexed):
        return None, objective(params, indexed[1], jax.random.fold_in(key, indexed[0]))[0]

    return jax.lax.scan(one, None, (jnp.arange(n), _microbatches(batch, n)))[1].mean()


def _microbatches(batch, n):
    # Strided, so that a batch whose rows lie in blocks on several devices is split without moving rows.
    def split(x):
        if x.shape[0] % n:
            raise ValueError(f"{x.shape[0]} rows do not split into accumulate={n} microbatches of equal size")
        return jnp.swapaxes(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def _check_loss(out, has_aux):
    if has_aux:
        if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)):
            raise ValueError(f"with has_aux=True the loss returns (scalar, dict), got {out!r}")
        value, aux = out[0], {name: jnp.asarray(entry) for name, entry in out[1].items()}
        if taken := {"loss", "grad_norm", "finite", "step"} & set(aux):
            raise ValueError(f"the auxiliary names {sorted(taken)} are taken: rename them")
    else:
        value, aux = out, {}
    if isinstance(value, tuple):
        raise ValueError("the loss returned a tuple: pass has_aux=True for (scalar, dict)")
    value = jnp.asarray(value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"the loss must be a real scalar, got shape {value.shape} of {value.dtype}: take a mean")
    return value, aux


def _average(ema, params, step, decay):
    # 1 - d^k without cancellation when d is close to 1.
    log_decay = math.log(decay) if decay > 0 else -math.inf

    def mix(e, p):
        real = _real(e.dtype)
        rate = jnp.asarray(1 - decay, real) / -jnp.expm1(step.astype(real) * jnp.asarray(log_decay, real))
        return e + rate * (p.astype(e.dtype) - e)

    return jax.tree.map(mix, ema, params)


def _global_norm(tree):
    leaves = [leaf.astype(_wide(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
    squares = [jnp.sum(jnp.abs(leaf) ** 2) for leaf in leaves]
    widest = max((s.dtype for s in squares), key=lambda d: d.itemsize)
    return jnp.sqrt(sum(s.astype(widest) for s in squares))


def _wide(dtype):
    """The dtype to sum in: float32 at least."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def _real(dtype):
    return jnp.finfo(dtype).dtype


def _tiny(dtype):
    return jnp.finfo(dtype).tiny


def _own(tree):
    # A copy of every leaf, with a dtype that no later arithmetic changes: donating one buffer twice is an
    # error, and a weak type would change within the loop.
    def own(x):
        return x.copy() if jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.extended) else jnp.array(x, x.dtype)

    return jax.tree.map(lambda x: own(x if hasattr(x, "dtype") else jnp.asarray(x)), tree)
