"""The training loop: chunks of steps in one compiled program, everything else on the host between chunks."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from physml.core import check
from physml.core._status import Failure
from physml.core.noise import check_key
from physml.core.progress import progress_bar
from physml.core.types import Key, Scalar
from physml.train.checkpoint import Checkpoint, CheckpointError, Store, describe_key, hold_interrupts
from physml.train.mesh import replicate, row_shards
from physml.train.report import History, Recorder
from physml.train.rows import check_data, index_table, next_batch
from physml.train.step import State, init_state, train_step
from physml.train.validation import Validator

# One object, so that calls without an optimizer share a compiled program.
_ADAM = optax.adam(1e-3)


class Fit(NamedTuple):
    """What `fit` returns: the trained model, its average (`None` without `ema_decay`), the history."""

    model: PyTree
    ema: PyTree
    history: History


class NonFiniteError(Failure):
    """Training stopped at step `step` because `what` was `value`.

    `checkpoint` is the folder of the last good checkpoint, or `None`. The parameters were not updated there.
    """

    def __init__(self, step: int, what: str, value: float, checkpoint: str | None):
        self.step, self.what, self.value, self.checkpoint = step, what, value, checkpoint
        saved = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint"
        super().__init__(
            f"fit: the {what} is {value} at step {step} (counted from 0), and the run stopped there; "
            f"{saved}. Lower the learning rate, set clip_norm, or look at the loss on that step's batch"
        )


class _Static(NamedTuple):
    """The numbers that select a compiled program."""

    chunk: int
    batch_size: int | None
    replace: bool
    accumulate: int
    clip_norm: float | None
    ema_decay: float | None
    has_aux: bool


def fit(
    loss: Callable,
    model: PyTree,
    data: PyTree = None,
    *,
    key: Key,
    validation: PyTree = None,
    patience: int | None = None,
    optimizer: optax.GradientTransformation = _ADAM,
    steps: int = 1000,
    batch_size: int | None = None,
    replace: bool = False,
    accumulate: int = 1,
    clip_norm: Scalar | None = None,
    ema_decay: Scalar | None = None,
    has_aux: bool = False,
    trainable: Callable | PyTree = eqx.is_inexact_array,
    callbacks: Sequence[Callable] = (),
    callback_every: int | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = True,
    log: Any = None,
    progress: bool | None = None,
    chunk: int = 100,
    sharding: jax.sharding.Sharding | None = None,
) -> Fit:
    r"""Minimise a loss by stochastic gradients, for steps k = 0, 1, ..., steps - 1.

    $$\theta_{k+1} = \theta_k + \mathrm{update}\big(\nabla L(\theta_k; B_k)\big)$$

    Step k depends on the state, on `key` and on k alone, so a run resumed from a checkpoint equals the
    uninterrupted one bit for bit (on the same machine and devices). Its draws come from `fold_in(key, k)`,
    split into the key of the sampler and the key of the loss.

    **Arguments.**
    `loss`: `loss(model, batch, *, key) -> scalar`, a mean over the rows of the batch; `(scalar, dict)` with
    `has_aux=True`, whose dict joins the history. `model`: any pytree; its floating-point arrays are trained,
    or what `trainable` (a predicate or a pytree of booleans) selects; the rest is passed through.
    `data`: arrays with a common leading axis, of which each step takes `batch_size` rows (all of them when
    `None`) in a new random order each epoch, or independently with `replace=True`; or a sampler `data(key) ->
    batch` that compiles; or `None`, and the loss draws its own from `key`.
    `optimizer`: any optax transformation. `steps`: in total, counting those done before a resume.
    `accumulate`: microbatches per step, averaged. `clip_norm`: bound on the global gradient norm.
    `ema_decay`: keep the bias-free average of `train_step`.
    `validation`: rows like the data that are held out. The loss on them, of the average where there is one, is taken
    after every `callback_every` steps and at the end (`history.validation`), `batch_size` rows at a time and always
    with the same key; model and average returned are those of its lowest value. `patience`: stop after so many
    evaluations without a lower one; a resumed run counts from its resumption.
    `callbacks`: called as `callback(step, so_far, metrics)` after every `callback_every` steps (default:
    every chunk) and at the end; `step` counts the steps done, `so_far` is the `Fit` that a stop here would
    return, `metrics` are the last step's numbers. An exception raised in a callback ends the training.
    `checkpoint`: a `Checkpoint(path, every=, keep=)`. With `resume=True` the newest one in `path` is
    continued; the call must have the same arguments (`steps` may grow). Loss, optimiser and the values of the
    data cannot be compared with those of the checkpoint: that they are the same is up to you. `resume=False`
    insists on a new run.
    `log`: path of a file with one JSON object per step, written anew (a resumed run writes its past, too).
    `progress`: a tqdm bar; `None` shows it on terminals. `chunk`: steps per compiled call, after which the
    host sees the losses; lower it when a step takes a second, raise it when a step takes a microsecond.
    `sharding`: from `data_parallel()`, rows over devices.

    **Returns.** `Fit(model, ema, history)`.

    **Cost.** Compiled once per (loss, optimizer, shapes): define them outside the call, since a new `lambda`
    or a new `optax.adam(...)` object compiles again. The state's buffers are donated between chunks.

    **Fails.** `NonFiniteError` at the first loss or gradient norm that is not finite, with the exact step.
    `CheckpointError` for a checkpoint that is damaged or from another run, which stays untouched.
    `ValueError` for static mistakes. Ctrl-C writes a checkpoint of the last completed chunk and is raised
    again.

    **Example.**
    ```python
    def loss(model, batch, *, key):
        x, y = batch
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    result = fit(loss, model, (x, y), optimizer=optax.adam(1e-3), batch_size=64, key=jax.random.key(0))
    ```
    """
    _check_objects(loss, optimizer, callbacks, checkpoint, key)
    steps = check.count(steps, "steps", least=0, most=2**31 - 1)
    static = _static(chunk, batch_size, replace, accumulate, clip_norm, ema_decay, has_aux)
    callback_every = None if callback_every is None else check.count(callback_every, "callback_every")
    _check_rows(static, data, sharding)
    options: dict[str, Any] = {"key": key, "batch_size": static.batch_size, "has_aux": has_aux}
    if validation is None and patience is not None:
        raise ValueError("patience counts evaluations on held-out rows: give validation=")
    validator = None if validation is None else Validator(loss, validation, patience, **options)
    state, frozen = init_state(model, optimizer, ema_decay=ema_decay, trainable=trainable)
    state, frozen, key = replicate((state, frozen, key), sharding)
    data = data if data is None or callable(data) else replicate(jax.tree.map(jnp.asarray, data), sharding)
    recorder = Recorder(steps, log)

    with contextlib.ExitStack() as stack:
        store, past = None, {}
        if checkpoint is not None:
            store = Store(checkpoint, _about(static, data, key))
            stack.callback(store.close)
            state, past = _resume(store, state, steps, resume)
        recorder.begin(past)
        bar = stack.enter_context(progress_bar(steps, "fit", "step", show=progress, initial=recorder.done))

        every = callback_every if callback_every is not None else chunk
        watched = bool(callbacks) or validator is not None
        bounds = [steps, *([every] if watched else []), *([checkpoint.every] if checkpoint else [])]
        healthy = True
        try:
            while (done := recorder.done) < steps:
                count = min(chunk, *(b - done % b for b in bounds))
                with hold_interrupts():
                    constants = (loss, optimizer, frozen, data, key, jnp.int32(count), static, sharding)
                    state, rows, ran, healthy = _run(constants, state)
                    last, healthy = _record(recorder, rows, ran, healthy, past)
                bar.set_postfix_str(f"loss {float(last['loss']):.4g}", refresh=False)
                bar.update(recorder.done - done)
                _raise_if_not_finite(recorder.done, last, healthy, store)
                done = recorder.done
                if store is not None and (done % store.every == 0 or done == steps):
                    with hold_interrupts():
                        store.save(state, recorder.rows())
                if watched and (done % every == 0 or done == steps):
                    for callback in callbacks:
                        callback(done, _so_far(state, frozen, recorder), recorder.last())
                    if validator is not None and validator(done, _so_far(state, frozen, recorder)):
                        break
        except KeyboardInterrupt:
            if store is not None and recorder.done and healthy:
                with hold_interrupts():
                    store.save(state, recorder.rows())
            raise
        result = _so_far(state, frozen, recorder)
        return result if validator is None else validator.choose(result)


def _so_far(state, frozen, recorder):
    """What a stop here would return. Copies: the next chunk takes over the state's buffers."""
    params, ema = jax.tree.map(jnp.copy, (state.params, state.ema))
    if ema is not None:
        ema = eqx.combine(jax.tree.map(lambda e, p: e.astype(p.dtype), ema, params), frozen)
    return Fit(eqx.combine(params, frozen), ema, recorder.history())


@eqx.filter_jit(donate="all-except-first")
def _run(constants: tuple, state: State):
    """`count` steps from `state`, fewer if one is not finite: the state, the stacked metrics, how many ran.

    A while loop with a traced bound and not a scan: one program serves chunks of every length, so the
    boundaries between chunks change neither the compilation nor a single bit of the result, and a bad step
    ends the loop.
    """
    loss, optimizer, frozen, data, key, count, static, sharding = constants

    table = index_table(data, static.batch_size, start=state.step, steps=static.chunk, key=key, replace=static.replace)

    def one(state, i):
        step_key = jax.random.fold_in(key, state.step)
        batch_key, loss_key = jax.random.split(step_key)
        batch = next_batch(data, None if table is None else table[i], batch_key=batch_key)
        return train_step(
            state,
            frozen,
            batch,
            key=loss_key,
            loss=loss,
            optimizer=optimizer,
            accumulate=static.accumulate,
            clip_norm=static.clip_norm,
            ema_decay=static.ema_decay,
            has_aux=static.has_aux,
            sharding=sharding,
        )

    def advance(carry):
        state, rows, i, _ = carry
        state, metrics = one(state, i)
        rows = jax.tree.map(lambda r, m: r.at[i].set(m), rows, metrics)
        return state, rows, i + 1, metrics["finite"]

    shapes = jax.eval_shape(one, state, jnp.int32(0))[1]
    rows = jax.tree.map(lambda s: jnp.zeros((static.chunk, *s.shape), s.dtype), shapes)
    start = (state, rows, jnp.int32(0), jnp.bool_(True))
    state, rows, ran, _ = jax.lax.while_loop(lambda c: (c[2] < count) & c[3], advance, start)
    # An optimiser can overflow on a finite gradient; such parameters must not reach a checkpoint.
    healthy = jnp.all(jnp.stack([jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(state.params)]))
    return state, rows, ran, healthy


def _record(recorder, rows, ran, healthy, past):
    """Writes down the steps of a chunk that were finite: the last step's numbers, and whether the parameters are."""
    rows, ran, healthy = jax.device_get((rows, ran, healthy))
    finite = rows.pop("finite")[ran - 1]
    if past and set(past) != set(rows):
        raise CheckpointError(
            f"the loss reports {sorted(rows)}, but the checkpoint's history {sorted(past)}: "
            "call fit with the loss that it was made with, or give Checkpoint another path"
        )
    recorder.add(rows, int(ran) if finite else int(ran) - 1)
    return {name: x[ran - 1] for name, x in rows.items()}, bool(healthy)


def _resume(store, state, steps, resume):
    """The newest checkpoint in the store, or the state as it is when there is none."""
    if store.latest is None:
        return state, {}
    if not resume:
        raise CheckpointError(
            f"{store.path} holds a checkpoint of step {store.latest} and resume=False asks for a new run: "
            "give Checkpoint another path, or remove the folder"
        )
    if store.latest > steps:
        raise CheckpointError(
            f"{store.path} holds a checkpoint of step {store.latest}, beyond steps={steps}: raise steps "
            "(they count from the start of the run), or give Checkpoint another path"
        )
    return store.restore(state)


def _raise_if_not_finite(step, last, healthy, store):
    saved = None if store is None or store.latest is None else str(store.path / str(store.latest))
    for name, what in (("loss", "loss"), ("grad_norm", "gradient norm")):
        if not np.isfinite(last[name]):
            raise NonFiniteError(step, what, float(last[name]), saved)
    if not healthy:
        raise NonFiniteError(step - 1, "updated parameters", float("nan"), saved)


def _about(static, data, key):
    """What a run and its continuation must have in common, as JSON."""
    shapes = None if data is None else "a callable"
    if data is not None and not callable(data):
        shapes = [[list(x.shape), str(x.dtype)] for x in jax.tree.leaves(data)]
    named = static._asdict() | {"key": describe_key(key), "data": shapes}
    del named["chunk"]  # changes nothing but the host's view
    return named


def _static(chunk, batch_size, replace, accumulate, clip_norm, ema_decay, has_aux):
    if clip_norm is not None:
        check.number(clip_norm, "clip_norm (None for no clipping)", above=0, finite=False)
        clip_norm = float(clip_norm)
    if ema_decay is not None:
        check.number(ema_decay, "ema_decay (None for no average)", least=0, below=1)
        ema_decay = float(ema_decay)
    batch_size = None if batch_size is None else check.count(batch_size, "batch_size")
    chunk, accumulate = check.count(chunk, "chunk"), check.count(accumulate, "accumulate")
    return _Static(chunk, batch_size, replace, accumulate, clip_norm, ema_decay, has_aux)


def _check_objects(loss, optimizer, callbacks, checkpoint, key):
    check_key(key)
    check.function(loss, "loss", "(model, batch, *, key)")
    check.instance(optimizer, "optimizer", optax.GradientTransformation, "an optax optimizer, such as optax.adam(1e-3)")
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise ValueError(f"callbacks must be a list of functions, got {type(callbacks).__name__}: write [callback]")
    for callback in callbacks:
        check.function(callback, "each of the callbacks", "(step, so_far, metrics)")
    if checkpoint is not None:
        check.instance(checkpoint, "checkpoint", Checkpoint, "a Checkpoint(path, every=, keep=)")


def _check_rows(static, data, sharding):
    check_data(data, static.batch_size)
    if static.batch_size is not None and static.batch_size % static.accumulate:
        raise ValueError(
            f"batch_size={static.batch_size} does not split into accumulate={static.accumulate} equal microbatches"
        )
    if sharding is not None:
        row_shards(sharding)
