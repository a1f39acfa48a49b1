"""Held-out rows: their loss by hand, the best model returned, an early stop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_refused

from physml import train

OPTIMIZER = optax.sgd(0.05)


def squares(weight, batch, *, key):
    x, y = batch
    return jnp.mean((x @ weight - y) ** 2)


def table(rows, noise, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 8)).astype(np.float32)
    return x, (x[:, 0] + noise * rng.normal(size=rows)).astype(np.float32)


def run(**options):
    return train.fit(
        squares, jnp.zeros(8), table(12, 1.0, 0), optimizer=OPTIMIZER, key=jax.random.key(0), progress=False, **options
    )


@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_best_model_is_returned(batch_size):
    """Few noisy rows are overfitted: the held-out loss falls and rises again."""
    held_out = table(203, 0.0, 1)
    seen = {}
    keep = lambda step, so_far, metrics: seen.update({step: np.asarray(so_far.model)})
    result = run(
        steps=1000, validation=held_out, callbacks=[keep], callback_every=10, batch_size=batch_size, replace=True
    )
    steps, losses = result.history.validation
    assert steps.tolist() == list(range(10, 1001, 10)) and len(result.history.loss) == 1000
    by_hand = [np.mean((held_out[0] @ seen[step] - held_out[1]) ** 2) for step in steps]
    np.testing.assert_allclose(losses, by_hand, rtol=1e-4)
    best = int(np.argmin(losses))
    assert best < len(losses) - 5 and losses[best] < 0.95 * losses[-1]
    np.testing.assert_array_equal(result.model, seen[steps[best]])


def test_patience_stops_the_run():
    full = run(steps=1000, validation=table(200, 0.0, 1), callback_every=10)
    result = run(steps=1000, validation=table(200, 0.0, 1), callback_every=10, patience=3)
    steps, losses = result.history.validation
    best = int(np.argmin(losses))
    assert len(losses) == best + 4 and steps[-1] == len(result.history.loss) < 1000
    np.testing.assert_array_equal(losses, full.history.validation[1][: len(losses)])


def test_the_average_is_judged_where_there_is_one():
    result = run(steps=60, validation=table(50, 0.0, 1), ema_decay=0.9)
    _, losses = result.history.validation
    x, y = table(50, 0.0, 1)
    np.testing.assert_allclose(min(losses), np.mean((x @ np.asarray(result.ema) - y) ** 2), rtol=1e-4)


def test_mistakes():
    assert_refused(lambda: run(steps=2, patience=2), "validation")
    assert_refused(lambda: run(steps=2, validation=table(5, 0.0, 1), patience=0), "patience")
    assert_refused(lambda: run(steps=2, validation=lambda key: key), "arrays")
    assert_refused(lambda: run(steps=2, validation=(np.ones((3, 8)), np.ones(2))), "leading")
