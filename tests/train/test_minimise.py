"""Descent in one program against the loop written out, over starts and batches, and through its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_gradient

from physml.train import minimise


def quadratic(x):
    return 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * (x["a"] - 2.0) ** 2)


def test_gradient_descent_is_the_closed_form():
    found = minimise(quadratic, {"a": jnp.array([0.0, 5.0]), "n": 3}, optax.sgd(0.1), steps=7, history=True).check()
    expected = 2 + np.array([-2.0, 3.0])[None] * (1 - 0.1 * np.array([1.0, 3.0])[None]) ** np.arange(1, 8)[:, None]
    np.testing.assert_allclose(found.history["a"], expected, rtol=1e-5)
    np.testing.assert_allclose(found.x["a"], expected[-1], rtol=1e-5)
    assert found.x["n"] == 3
    assert found.losses.shape == (7,) and abs(found.losses[0] - (2.0 + 13.5)) < 1e-4


def test_batches_and_starts():
    loss = lambda x, row: jnp.sum((x - row) ** 2)
    rows = jax.random.normal(jax.random.key(0), (5, 3))
    starts = jax.random.normal(jax.random.key(1), (4, 3))
    found = jax.vmap(lambda x: minimise(loss, x, optax.sgd(0.25), batches=rows))(starts)
    x = np.asarray(starts)
    for row in np.asarray(rows):
        x = 0.5 * x + 0.5 * row
    np.testing.assert_allclose(found.x, x, rtol=1e-5, atol=1e-6)


def test_a_line_search_finds_the_valley():
    rosenbrock = lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    found = minimise(rosenbrock, jnp.array([-1.2, 1.0]), optax.lbfgs(), steps=60).check()
    np.testing.assert_allclose(found.x, 1.0, atol=1e-3)


def test_gradient_through_the_descent():
    run = lambda c: jnp.sum(minimise(lambda x: jnp.sum(jnp.cosh(c * x)), jnp.ones(2), optax.sgd(0.1), steps=5).x ** 2)
    assert_gradient(run, jnp.array(0.7))


def test_a_loss_that_is_not_finite_is_a_status():
    found = minimise(lambda x: jnp.sum(jnp.sqrt(x)), jnp.full(2, 0.25), optax.sgd(0.2), steps=4)
    assert int(found.status.step) == 2 and not bool(found.status.ok)
    with pytest.raises(RuntimeError, match="minimise"):
        found.check()


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "steps"),
        ({"steps": 3, "batches": jnp.ones(4)}, "one row"),
        ({"steps": 0}, "steps"),
        ({"batches": 1.0}, "row"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        minimise(quadratic, {"a": jnp.ones(2)}, optax.sgd(0.1), **options)
