"""Independent chains on two devices against one: what a mesh brings on a machine with two cores.

python benchmarks/devices.py    # one device pinned to one core, then two devices on two; the rounds alternate
"""

import os
import subprocess
import sys

CODE = """
import sys, time
import jax, jax.numpy as jnp
from physml import particles, train

x0s = jax.device_put(jnp.ones((4096, 10)), train.data_parallel())
kernel = particles.hmc(lambda x: jnp.sum((x**2 - 1) ** 2), 0.05, 8)
run = lambda: particles.run_chains(kernel, x0s, 500, key=jax.random.key(0), keep=False, stats=False).state.position
jax.block_until_ready(run())
best = 1e9
for _ in range(3):
    start = time.perf_counter()
    jax.block_until_ready(run())
    best = min(best, time.perf_counter() - start)
print(best)
"""


def seconds(devices):
    """Of 500 moves of HMC, 4,096 chains in ten dimensions, on as many cores as devices."""
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    cores = ",".join(str(core) for core in range(devices))
    command = ["taskset", "-c", cores, sys.executable, "-c", CODE]
    return float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()[-1])


if __name__ == "__main__":
    rounds = [(seconds(1), seconds(2)) for _ in range(3)]
    one, two = (min(times) for times in zip(*rounds, strict=True))
    print(
        f"| devices | seconds | speed |\n|---|---|---|\n| 1 | {one:.3f} | 1.00 |\n| 2 | {two:.3f} | {one / two:.2f} |"
    )
