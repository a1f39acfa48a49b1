"""What several processes compute together; writes what it found to a file for each process.

The arguments: a folder, and what happens to process 1 on the way (`run`, or `die`).
"""

import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml import integrate, particles, train

rank = train.start_processes(timeout=10)
folder, fate = Path(sys.argv[1]), sys.argv[2]
rows = train.data_parallel()


def spread(x):
    """The same array on all devices, rows over them."""
    x = np.asarray(x, np.float32)
    return jax.make_array_from_callback(x.shape, rows, lambda index: x[index])


def loss(w, batch, *, key):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2)


def well(x):
    return jnp.sum((x**2 - 1) ** 2)


rng = np.random.default_rng(0)
x = rng.normal(size=(64, 3)).astype(np.float32)
y = x @ np.float32([1.0, -2.0, 0.5])


def watch(step, so_far, metrics):
    if fate == "die" and step == 40 and rank == jax.process_count() - 1:
        os.kill(os.getpid(), signal.SIGKILL)


fitted = train.fit(
    loss,
    jnp.zeros(3),
    (x, y),
    optimizer=optax.adam(0.05),
    steps=60,
    batch_size=16,
    key=jax.random.key(0),
    sharding=rows,
    checkpoint=train.Checkpoint(folder / "checkpoints", every=20),
    callbacks=[watch],
    callback_every=20,
    progress=False,
)
starts = rng.normal(size=(8, 2))
chains = particles.run_chains(particles.mala(well, 0.1), spread(starts), 20, key=jax.random.key(1)).check()
dynamics = integrate.Dynamics(lambda t, x, args: -x, lambda t, x, args: jnp.ones((), x.dtype))
paths = integrate.ensemble(dynamics, spread(starts), jnp.linspace(0.0, 1.0, 11), key=jax.random.key(2)).check()
every = jax.jit(lambda tree: tree, out_shardings=jax.NamedSharding(rows.mesh, jax.P()))
found = {
    "model": fitted.model,
    "loss": fitted.history.loss,
    "mean": chains.stats.mean,
    "position": every(chains.state.position),
    "end": every(paths.xs[-1]),
    "devices": len(jax.devices()),
}
np.savez(folder / f"found{rank}.npz", **{name: np.asarray(value) for name, value in found.items()})
