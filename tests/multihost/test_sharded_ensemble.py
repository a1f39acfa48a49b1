"""An ensemble laid over four devices: the same bits as on one, and nothing communicated."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from physml.integrate import Dynamics, EulerMaruyama, Heun, Matrix, Milstein, ensemble

assert jax.device_count() == 4
kind = getattr(jax.sharding.AxisType, sys.argv[1])
mesh = jax.make_mesh((4,), ("paths",), axis_types=(kind,))
rng = np.random.default_rng(0)
x0 = jnp.asarray(rng.normal(size=(64, 2)), jnp.float32)
spread = jax.device_put(x0, NamedSharding(mesh, P("paths")))
ts, key = jnp.linspace(0.0, 1.0, 13), jax.random.key(3)
drift = lambda t, x, a: -a * jnp.sin(x)
for noise, method in [
    (lambda t, x, a: 0.3 + 0.1 * jnp.cos(x), Milstein()),
    (Matrix(lambda t, x, a: jnp.array([[1.0, 0.2, 0.0], [0.0, 0.5, 1.0]])), Heun()),
]:
    run = lambda x: ensemble(Dynamics(drift, noise), x, ts, key=key, args=1.5, method=method, save_every=4)
    plain, sharded = run(x0), run(spread)
    assert np.ptp(np.asarray(plain.xs[-1])) > 1
    np.testing.assert_array_equal(plain.xs, sharded.xs)
    np.testing.assert_array_equal(plain.status.code, sharded.status.code)
    assert len(sharded.xs.sharding.device_set) == 4 and not sharded.xs.sharding.is_fully_replicated
    assert {s.data.shape for s in sharded.xs.addressable_shards} == {(4, 16, 2)}
    if sys.argv[1] == "Explicit":
        continue  # inside jit such axes are the caller's to lay out
    text = jax.jit(lambda x: run(x).xs).lower(spread).compile().as_text()
    found = re.findall(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", text)
    assert not found, found
    assert "[4,16,2]" in text  # the program of one device holds its own paths only
    # The search can fail: a mean over paths does communicate.
    mean = jax.jit(lambda x: run(x).xs.mean(1)).lower(spread).compile().as_text()
    assert "all-reduce" in mean
print("agreed")
"""


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_ensemble_agrees_bit_for_bit_without_collectives(axis_type):
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, axis_type], env=env, capture_output=True, text=True, timeout=300
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert out.stdout.strip() == "agreed"
