"""The step and the loop against closed forms and against themselves."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from physml import train
from physml.train._fit import _run

OPTIMIZER = optax.sgd(0.1)


class Line(eqx.Module):
    """A linear model with what training must leave alone: a function, a string, an integer buffer."""

    weight: jax.Array
    counts: jax.Array
    activation: object
    name: str = "line"

    def __call__(self, x):
        return self.activation(x @ self.weight)


def identity(x):
    return x


def line(dtype=jnp.float32):
    return Line(jnp.zeros(3, dtype), jnp.arange(3), identity)


def squares(model, batch, *, key):
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def table(rows=64, dtype=np.float32, noise=0.3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3))
    y = x @ np.array([1.0, -2.0, 0.5]) + noise * rng.normal(size=rows)
    return x.astype(dtype), y.astype(dtype)


def test_linear_regression_reaches_least_squares(key):
    x, y = table()
    result = train.fit(squares, line(), (x, y), optimizer=OPTIMIZER, steps=300, key=key)
    exact, residual, *_ = np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64))
    np.testing.assert_allclose(result.model.weight, exact, atol=1e-5)
    np.testing.assert_allclose(result.history.loss[-1], residual[0] / 64, rtol=1e-5)
    assert result.ema is None
    assert result.history.loss.shape == result.history.grad_norm.shape == (300,)
    np.testing.assert_array_equal(result.model.counts, [0, 1, 2])
    assert result.model.activation is identity


def test_first_step_by_hand(key):
    x, y = table()
    result = train.fit(squares, line(), (x, y), optimizer=OPTIMIZER, steps=1, key=key)
    grad = -2 * x.T @ y / 64
    np.testing.assert_allclose(result.model.weight, -0.1 * grad, rtol=1e-5)
    np.testing.assert_allclose(result.history.grad_norm, [np.linalg.norm(grad)], rtol=1e-5)
    np.testing.assert_allclose(result.history.loss, [np.mean(y**2)], rtol=1e-5)


@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_clip_bounds_the_update_and_reports_the_norm_before(key, clip):
    x, y = table()
    result = train.fit(squares, line(), (x, y), optimizer=OPTIMIZER, steps=1, clip_norm=clip, key=key)
    norm = np.linalg.norm(2 * x.T @ y / 64)
    np.testing.assert_allclose(np.linalg.norm(result.model.weight), 0.1 * min(norm, clip), rtol=1e-5)
    np.testing.assert_allclose(result.history.grad_norm[0], norm, rtol=1e-5)


def test_clip_of_a_zero_gradient_is_zero(key):
    def flat(model, batch, *, key):
        return 0.0 * jnp.sum(model)

    result = train.fit(flat, jnp.ones(3), optimizer=OPTIMIZER, steps=1, clip_norm=1.0, key=key)
    np.testing.assert_array_equal(result.model, 1.0)


def test_accumulation_equals_the_big_batch(key):
    data = table()
    options = dict(optimizer=OPTIMIZER, steps=5, batch_size=32, key=key)
    big = train.fit(squares, line(), data, **options)
    for n in (2, 4):
        small = train.fit(squares, line(), data, accumulate=n, **options)
        np.testing.assert_allclose(small.model.weight, big.model.weight, rtol=1e-5)
        np.testing.assert_allclose(small.history.loss, big.history.loss, rtol=1e-5)
        np.testing.assert_allclose(small.history.grad_norm, big.history.grad_norm, rtol=1e-5)


def test_accumulation_without_data_averages_independent_draws(key):
    def noisy(model, batch, *, key):
        assert batch is None
        return jnp.sum(model) * jax.random.normal(key)

    result = train.fit(noisy, jnp.ones(1), optimizer=OPTIMIZER, steps=1, accumulate=4, key=key)
    loss_key = jax.random.split(jax.random.fold_in(key, 0))[1]
    draws = [jax.random.normal(jax.random.fold_in(loss_key, i)) for i in range(4)]
    np.testing.assert_allclose(result.history.loss[0], np.mean(draws), rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_ema_is_the_normalised_average(key, decay):
    data, path = table(), []
    result = train.fit(
        squares,
        line(),
        data,
        optimizer=OPTIMIZER,
        steps=7,
        batch_size=8,
        ema_decay=decay,
        key=key,
        callbacks=[lambda step, so_far, metrics: path.append(np.asarray(so_far.model.weight))],
        callback_every=1,
    )
    weights = decay ** np.arange(6, -1, -1.0)
    expected = np.tensordot(weights / weights.sum(), np.stack(path), axes=1)
    np.testing.assert_allclose(result.ema.weight, expected, rtol=1e-5)
    assert result.ema.activation is identity and result.ema.weight.dtype == jnp.float32


def test_callbacks_see_what_a_stop_would_return(key):
    data, seen = table(), []
    result = train.fit(
        squares,
        line(),
        data,
        optimizer=OPTIMIZER,
        steps=25,
        key=key,
        chunk=7,
        callbacks=[lambda *args: seen.append(args)],
        callback_every=10,
    )
    assert [step for step, _, _ in seen] == [10, 20, 25]
    for step, so_far, metrics in seen:  # kept models stay alive after later chunks
        assert len(so_far.history.loss) == step
        assert metrics["loss"] == result.history.loss[step - 1]
        short = train.fit(squares, line(), data, optimizer=OPTIMIZER, steps=step, key=key, chunk=50)
        np.testing.assert_array_equal(so_far.model.weight, short.model.weight)


def test_auxiliary_values_join_history_and_log(key, tmp_path):
    def loss(model, batch, *, key):
        value = squares(model, batch, key=key)
        return value, {"weight": model.weight, "bad": jnp.float32(jnp.nan)}

    log = tmp_path / "deep" / "log.jsonl"
    options = dict(optimizer=OPTIMIZER, has_aux=True, batch_size=16, log=log, chunk=4, key=key)
    for accumulate in (1, 2):
        result = train.fit(loss, line(), table(), steps=10, accumulate=accumulate, **options)
        lines = [json.loads(text) for text in log.read_text().splitlines()]
        assert [entry["step"] for entry in lines] == list(range(10))
        np.testing.assert_array_equal(np.float32([entry["loss"] for entry in lines]), result.history.loss)
        np.testing.assert_array_equal(np.float32([e["weight"] for e in lines]), result.history.aux["weight"])
        assert lines[0]["bad"] is None


def test_sampler_is_called_with_the_key_of_the_step(key):
    def sampler(key):
        return jax.random.normal(key, (4,))

    def loss(model, batch, *, key):
        return jnp.mean((model - batch) ** 2) + 0 * jax.random.normal(key)

    start = jnp.zeros(())
    result = train.fit(loss, start, sampler, optimizer=optax.sgd(0.0), steps=3, key=key)
    for k in range(3):
        batch = sampler(jax.random.split(jax.random.fold_in(key, k))[0])
        np.testing.assert_allclose(result.history.loss[k], np.mean(batch**2), rtol=1e-6)
    assert not start.is_deleted()


def test_trainable_selects(key):
    model = {"a": jnp.ones(2), "b": jnp.ones(2)}

    def loss(model, batch, *, key):
        return jnp.sum(model["a"] ** 2) + jnp.sum(model["b"] ** 2)

    result = train.fit(loss, model, steps=3, optimizer=OPTIMIZER, trainable={"a": True, "b": False}, key=key)
    np.testing.assert_allclose(result.model["a"], 0.8**3, rtol=1e-6)
    np.testing.assert_array_equal(result.model["b"], 1.0)


def test_float64_and_mixed_dtypes(key):
    with jax.enable_x64(True):
        x, y = table(dtype=np.float64)
        optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 500))
        result = train.fit(squares, line(jnp.float64), (x, y), optimizer=optimizer, steps=500, key=key)
        assert result.model.weight.dtype == jnp.float64 == result.history.loss.dtype
        np.testing.assert_allclose(result.model.weight, np.linalg.lstsq(x, y)[0], atol=1e-6)

        def loss(model, batch, *, key):
            return jnp.sum(model["a"] ** 2) + jnp.sum(model["b"].astype(jnp.float64) ** 2)

        for replace in (False, True):
            rows = dict(batch_size=8, replace=replace, accumulate=2, steps=3, key=key)
            assert np.all(np.isfinite(train.fit(squares, line(jnp.float64), (x, y), **rows).model.weight))
        mixed = {"a": jnp.ones(2, jnp.float64), "b": jnp.ones(2, jnp.bfloat16)}
        result = train.fit(
            loss,
            mixed,
            steps=2,
            optimizer=optax.adam(0.1),
            ema_decay=0.5,
            clip_norm=1.0,
            accumulate=2,
            key=key,
        )
        assert result.model["a"].dtype == result.ema["a"].dtype == jnp.float64
        assert result.model["b"].dtype == result.ema["b"].dtype == jnp.bfloat16


def test_nothing_recompiles_between_chunks_or_calls(key):
    traced = []

    def loss(model, batch, *, key):
        traced.append(1)
        return squares(model, batch, key=key)

    def go(steps, seed):
        options = dict(optimizer=OPTIMIZER, batch_size=8, chunk=10, ema_decay=0.9)
        return train.fit(loss, line(), table(), steps=steps, key=jax.random.key(seed), **options)

    before = _run._cached._cache_size()
    go(33, 0)
    count = len(traced)
    go(57, 1)
    assert len(traced) == count
    assert _run._cached._cache_size() == before + 1


def test_optimisers_that_ask_for_the_value(key):
    data = table()
    for optimizer in (optax.lbfgs(), optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())):
        result = train.fit(squares, line(), data, optimizer=optimizer, steps=30, key=key)
        np.testing.assert_allclose(result.model.weight, np.linalg.lstsq(*data)[0], atol=2e-2)


@pytest.mark.parametrize("bad_step", [0, 7, 49, 50, 63])
def test_stop_names_the_step_exactly(key, bad_step, tmp_path):
    def loss(model, batch, *, key):
        # The loss of step k sees k updates of size one.
        return jnp.where(model > bad_step - 0.5, jnp.nan, -model)

    log = tmp_path / "log.jsonl"
    with pytest.raises(train.NonFiniteError, match=rf"nan at step {bad_step} .*no checkpoint") as info:
        train.fit(loss, jnp.zeros(()), optimizer=optax.sgd(1.0), steps=100, log=log, key=key)
    assert (info.value.step, info.value.what, info.value.checkpoint) == (bad_step, "loss", None)
    assert len(log.read_text().splitlines()) == bad_step


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_stop_at_a_gradient_and_at_an_update_that_are_not_finite(key):
    def root(model, batch, *, key):
        return jnp.sqrt(model)

    with pytest.raises(train.NonFiniteError, match="gradient norm is inf at step 0"):
        train.fit(root, jnp.zeros(()), optimizer=OPTIMIZER, steps=3, key=key)

    def plain(model, batch, *, key):
        return model

    with pytest.raises(train.NonFiniteError, match=r"updated parameters .* at step 0"):
        train.fit(plain, jnp.zeros(()), optimizer=optax.sgd(1e39), steps=1, key=key)


def test_a_bad_step_leaves_the_state_as_it_was(key):
    state, frozen = train.init_state(line(), OPTIMIZER, ema_decay=0.5)
    x, y = table()
    options = dict(key=key, loss=squares, optimizer=OPTIMIZER, ema_decay=0.5)
    state, metrics = train.train_step(state, frozen, (x, y), **options)
    assert metrics["finite"] and state.step == 1
    after, metrics = train.train_step(state, frozen, (x, np.full_like(y, np.nan)), **options)
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 97, 256])
def test_shuffled_is_a_permutation(key, n):
    order = np.asarray(train.shuffled(jnp.arange(n), n, key=key))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(train.shuffled(jnp.arange(n)[::2], n, key=key), order[::2])


def test_shuffled_pairs_are_uniform(key):
    # Where rows 0 and 1 land, over many keys: 30 cells, chi squared with 29 degrees of freedom, z < 5.
    keys = jax.random.split(key, 6000)
    pairs = np.asarray(jax.vmap(lambda k: train.shuffled(jnp.arange(2), 6, key=k))(keys))
    counts = np.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36).reshape(6, 6)
    assert np.all(np.diag(counts) == 0)
    cells = counts[~np.eye(6, dtype=bool)]
    chi = np.sum((cells - 200.0) ** 2 / 200.0)
    assert abs(chi - 29) < 5 * np.sqrt(2 * 29)


def test_an_epoch_draws_every_row_once(key):
    seen = [np.asarray(train.row_indices(20, 6, step=k, key=key)) for k in range(6)]
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    assert len(set(first)) == len(set(second)) == 18
    assert not np.array_equal(first, second)
    free = [np.asarray(train.row_indices(20, 20, step=k, key=key, replace=True)) for k in range(5)]
    assert len(set(free[0])) < 20 and set(np.concatenate(free)) <= set(range(20))


def test_a_step_sees_the_rows_of_its_index(key):
    def mean(model, batch, *, key):
        return jnp.mean(batch["i"]) + 0.0 * model

    data = {"i": np.arange(20.0, dtype=np.float32)}
    for replace in (False, True):
        options = dict(optimizer=OPTIMIZER, steps=9, chunk=4, batch_size=6, replace=replace, key=key)
        result = train.fit(mean, jnp.zeros(()), data, **options)
        rows = [train.row_indices(20, 6, step=k, key=key, replace=replace) for k in range(9)]
        np.testing.assert_allclose(result.history.loss, np.mean(rows, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(batch_size=0), "batch_size must be an integer of at least 1, got 0"),
        (dict(batch_size=65), "between 1 and 64"),
        (dict(batch_size=9, accumulate=2), "equal microbatches"),
        (dict(accumulate=3), "64 rows do not split"),
        (dict(clip_norm=0), "clip_norm .* must be positive, got 0"),
        (dict(ema_decay=1.0), "ema_decay .* below 1, got 1"),
        (dict(steps=-1), "steps must be an integer of at least 0, got -1"),
        (dict(chunk=0), "chunk must be an integer of at least 1, got 0"),
        (dict(model={"n": 3}), "no trainable leaf"),
        (dict(data=None, batch_size=4), "batch_size=4 has no meaning"),
        (dict(data=(np.zeros(3), np.zeros(4))), "common leading axis"),
        (dict(loss=lambda m, b, *, key: b[1]), "real scalar"),
        (dict(loss=lambda m, b, *, key: (jnp.sum(m.weight), {})), "has_aux=True"),
        (dict(loss=lambda m, b, *, key: jnp.sum(m.weight), has_aux=True), "returns .scalar, dict"),
    ],
)
def test_mistakes_are_named(key, change, match):
    call = dict(loss=squares, model=line(), data=table(), steps=2, key=key, optimizer=OPTIMIZER) | change
    with pytest.raises(ValueError, match=match):
        train.fit(**call)


def test_no_steps_return_the_model(key):
    result = train.fit(squares, line(), table(), steps=0, ema_decay=0.9, key=key)
    np.testing.assert_array_equal(result.ema.weight, result.model.weight)
    assert result.history.loss.shape == (0,)


def test_progress_bar_counts_steps(key, capsys):
    train.fit(squares, line(), table(), optimizer=OPTIMIZER, steps=20, progress=True, key=key)
    assert "20/20" in capsys.readouterr().err
