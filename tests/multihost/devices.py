"""What is spread over several devices has the numbers of one: chains, paths, pair sums, particles, retrieval."""

import jax
import jax.numpy as jnp
import numpy as np

from physml import hopfield, integrate, particles, train

count = len(jax.devices())
rows, alone = train.data_parallel(), train.data_parallel(jax.devices()[:1])
rng = np.random.default_rng(0)
starts = rng.normal(size=(16, 2)).astype(np.float32)


def well(x):
    return jnp.sum((x**2 - 1) ** 2)


def spring(x, y):
    return (y - x) / (1 + jnp.sum((x - y) ** 2))


def mean_drift(x, measure, key):
    return measure.mean[None, :] - 2 * x


def both(name, call, exact=True):
    """A function of rows that are spread, and that are not."""
    here, there = (jax.tree.leaves(call(jax.device_put(starts, sharding))) for sharding in (alone, rows))
    assert any(len(leaf.sharding.device_set) == count for leaf in there), name
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-4, err_msg=name)


key, ts = jax.random.key(0), jnp.linspace(0.0, 1.0, 11)
dynamics = integrate.Dynamics(lambda t, x, args: -x, lambda t, x, args: jnp.ones((), x.dtype))
memory = jnp.asarray(rng.normal(size=(32, 2)), jnp.float32)
for name, kernel in {
    "mala": particles.mala(well, 0.1),
    "hmc": particles.hmc(well, 0.1, 4, duration="quasirandom"),
    "microcanonical": particles.microcanonical(well, 0.2),
    "tempered": particles.tempered(particles.mala(well, 0.1), (1.0, 3.0)),
}.items():
    both(name, lambda x, kernel=kernel: particles.run_chains(kernel, x, 20, key=key, stats=False).samples)
both("statistics", lambda x: particles.run_chains(particles.mala(well, 0.1), x, 20, key=key).stats.mean, exact=False)
both("ensemble", lambda x: integrate.ensemble(dynamics, x, ts, key=key).xs)
both("event", lambda x: integrate.ensemble(dynamics, x, ts, key=key, until=lambda t, x, args: 2 - x[0]).stopped)
both("tune", lambda x: particles.tune(particles.hmc(well, 0.1), x, 60, key=key).kernel.step_size, exact=False)
both("pair sum", lambda x: particles.PairSum(spring)(x, particles.Particles(x)), exact=False)
both("retrieval", lambda x: hopfield.retrieve(x, memory, beta=1.0).x, exact=False)
kernel = particles.interacting(mean_drift, 0.1)
both("particles", lambda x: particles.run(kernel, x, 10, key=key, stats=False).samples, exact=False)
print(f"{count} devices agree with one")
