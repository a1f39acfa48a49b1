"""Programs that calls of `train` compile: none in an equal second."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import assert_compiles_once

from physml import matching, train

KEY, ADAM = jax.random.key(0), optax.adam(1e-2)


def _loss(model, batch, *, key):
    return jnp.mean((batch @ model) ** 2)


def _start():
    return jax.device_put(np.ones(2, np.float32)), jax.device_put(np.ones((8, 2), np.float32))


def _fit():
    model, data = _start()
    return lambda: train.fit(_loss, model, data, optimizer=ADAM, steps=3, batch_size=4, key=KEY).model


def _sampler(key):
    return jax.random.normal(key, (2, 8, 2))


def _weighted(weights, x, args=None):
    return weights[:, None] * x[None, :]


def test_fit():
    # Its optimiser's state, its rows and its history are programs of their own.
    assert_compiles_once(_fit, first=12)


def test_learn_curve():
    call = lambda: matching.learn_curve(_weighted, _sampler, 0, 1, key=KEY, modes=2, nodes=3, steps=3).coefficients
    assert_compiles_once(lambda: call, first=40)


def _square(x):
    return jnp.sum(x**2)


def test_minimise():
    assert_compiles_once(lambda: lambda: train.minimise(_square, _start()[0], ADAM, steps=3), first=3)
