"""Rows over devices: the same numbers as on one device."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from physml import train

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, optax
from physml import train

assert len(jax.devices()) == 4
layouts = []

def loss(w, batch, *, key):
    x, y = batch
    jax.debug.inspect_array_sharding(x, callback=layouts.append)
    return jnp.mean((x @ w - y) ** 2)

rng = np.random.default_rng(0)
x = rng.normal(size=(64, 3)).astype(np.float32)
y = x @ np.float32([1.0, -2.0, 0.5])
call = dict(optimizer=optax.adam(0.05), steps=40, batch_size=16, ema_decay=0.9, key=jax.random.key(0))
one = train.fit(loss, jnp.zeros(3), (x, y), **call)
layouts.clear()
for n in (1, 2):
    four = train.fit(loss, jnp.zeros(3), (x, y), sharding=train.data_parallel(), accumulate=n, **call)
    np.testing.assert_allclose(four.model, one.model, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(four.ema, one.ema, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(four.history.loss, one.history.loss, rtol=1e-4, atol=1e-5)
    assert len(four.model.sharding.device_set) == 4
    assert layouts and all(s.shard_shape((16 // n, 3)) == (4 // n, 3) for s in layouts), layouts
    layouts.clear()

import tempfile
with tempfile.TemporaryDirectory() as folder:
    checkpoint = train.Checkpoint(folder, every=20)
    call.pop("steps")
    call["sharding"] = train.data_parallel()
    train.fit(loss, jnp.zeros(3), (x, y), steps=20, checkpoint=checkpoint, **call)
    resumed = train.fit(loss, jnp.zeros(3), (x, y), steps=40, checkpoint=checkpoint, **call)
    whole = train.fit(loss, jnp.zeros(3), (x, y), steps=40, **call)
    np.testing.assert_array_equal(resumed.model, whole.model)
print("done")
"""


@pytest.mark.slow
def test_four_devices_agree_with_one():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=300)
    assert run.stdout.strip().endswith("done"), run.stderr[-3000:]


def loss(w, batch, *, key):
    return jnp.mean((batch @ w) ** 2)


def test_one_device_is_bitwise_the_plain_run(key):
    x = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    call = dict(optimizer=optax.sgd(0.1), steps=10, batch_size=8, key=key)
    plain = train.fit(loss, jnp.ones(3), x, **call)
    mesh = train.fit(loss, jnp.ones(3), x, sharding=train.data_parallel(jax.devices()[:1]), **call)
    np.testing.assert_array_equal(mesh.model, plain.model)


def test_mistakes_are_named(key):
    with pytest.raises(ValueError, match="at least one device"):
        train.data_parallel([])
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(ValueError, match="NamedSharding"):
        train.fit(loss, jnp.ones(3), np.ones((4, 3), np.float32), sharding=single, key=key)
