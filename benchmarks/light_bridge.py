"""The light bridge beside the paper's protocol written in PyTorch: seconds to one quality, and cost against dimension.

Both fit the same arrays of 200,000 samples from a known plan. The peer follows the paper: K = 50, diagonal S, Adam,
batches of 128, 10,000 steps. physml runs with more and more steps until its cBW-UVP is no worse than the peer's.
Needs `torch` beside physml.

python benchmarks/light_bridge.py                      # two cores
python benchmarks/light_bridge.py --quick              # fewer steps, for a look
python benchmarks/light_bridge.py --scaling light_bridge_cost.png
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from timing import table

from physml.matching import LightBridge, bridge_loss, light_bridge
from physml.recipes.matching import light_bridge as recipe

COMPONENTS, POOL = 50, 200_000


def pair(dim, epsilon, key):
    """A known plan and unpaired samples of its two ends."""
    keys = jax.random.split(key, 4)
    truth = recipe._truth(dim, epsilon, 5, keys[0])
    x0 = jax.random.normal(keys[1], (POOL, dim))
    x1 = recipe.drawn(truth, jax.random.normal(keys[2], (POOL, dim)), keys[3])
    return truth, x0, x1


def uvp(plan, truth, x1, points=1000, samples=1000):
    """cBW-UVP in %, as in the recipe."""
    x = jax.random.normal(jax.random.key(11), (points, x1.shape[1]))
    gaps = recipe.bures_gaps(plan, truth, x, jax.random.key(12), samples=samples)
    return 200 * float(gaps.mean()) / float(x1.var(0).sum())


def peer(x0, x1, epsilon, steps, rate, seed=0):
    """The paper's fit in PyTorch: ln a, r, ln S by Adam; r starts at data points, S at 0.1. Plan, seconds."""
    import torch

    torch.manual_seed(seed)
    x0, x1 = torch.from_numpy(np.array(x0)), torch.from_numpy(np.array(x1))
    log_a = torch.zeros(COMPONENTS, requires_grad=True)
    r = x1[torch.randint(len(x1), (COMPONENTS,))].clone().requires_grad_()
    log_s = torch.full(r.shape, float(np.log(0.1)), requires_grad=True)
    optimizer = torch.optim.Adam([log_a, r, log_s], lr=rate)
    started = time.perf_counter()
    for _ in range(steps):
        a, b = (x[torch.randint(len(x), (128,))] for x in (x0, x1))
        s = log_s.exp()
        log_c = log_a + (0.5 * (a * a) @ s.T + a @ r.T) / epsilon
        precision = 1 / (epsilon * s)
        norm = log_a - 0.5 * (r * r * precision - torch.log(precision / (2 * np.pi))).sum(1)
        log_v = norm - 0.5 * (b * b) @ precision.T + b @ (r * precision).T
        loss = torch.logsumexp(log_c, 1).mean() - torch.logsumexp(log_v, 1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - started
    numbers = (jnp.asarray(p.detach().numpy()) for p in (log_a, r, log_s))
    return LightBridge(*numbers, jnp.float32(epsilon)), seconds


def ours(x0, x1, epsilon, steps, seed=0):
    """Plan, seconds of the first call, which compiles, and of the second."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        plan = light_bridge(
            x0, x1, epsilon=epsilon, components=COMPONENTS, key=jax.random.key(seed), steps=steps, batch_size=128
        )
        jax.block_until_ready(plan)
        seconds.append(time.perf_counter() - started)
    return plan, *seconds


def to_equal_quality(quick):
    rows = []
    for dim in (2, 64):
        for epsilon, rate in ((0.1, 1e-3), (1.0, 3e-3), (10.0, 6e-2)):
            truth, x0, x1 = pair(dim, epsilon, jax.random.key(dim))
            plan, theirs = peer(x0, x1, epsilon, 1000 if quick else 10_000, rate)
            aim, floor = uvp(plan, truth, x1), uvp(truth, truth, x1)
            for steps in (25, 50, 100, 200, 400, 800, 1600, 3200):
                plan, first, second = ours(x0, x1, epsilon, steps)
                reached = uvp(plan, truth, x1)
                if reached <= aim:
                    break
            quality = [f"{value:.4f}" for value in (floor, aim, reached)]
            times = [f"{theirs:.1f}", f"{first:.1f}", f"{second:.1f}"]
            met = f"{theirs / first:.1f}, {theirs / second:.1f}" if reached <= aim else "not reached"
            rows.append((str(dim), f"{epsilon:g}", *quality, str(steps), *times, met))
            print(*rows[-1], flush=True)
    header = (
        "D", "eps", "floor (%)", "PyTorch (%)", "physml (%)", "physml steps", "PyTorch s", "physml s, first",
        "again", "ratios",
    )  # fmt: skip
    table("Time to equal cBW-UVP", rows, header)


def scaling(path):
    """Seconds of one gradient of the loss, 4096 rows, against D; the exponent fitted to the upper half."""
    dims, seconds = np.array([16, 32, 64, 128, 256]), []
    gradient = jax.jit(jax.grad(lambda plan, batch: bridge_loss(plan, batch)))
    for dim in dims:
        r, x0, x1 = (jax.random.normal(k, (n, dim)) for k, n in zip(
            jax.random.split(jax.random.key(0), 3), (COMPONENTS, 4096, 4096), strict=True
        ))  # fmt: skip
        plan = LightBridge(jnp.zeros(COMPONENTS), r, jnp.zeros(r.shape), jnp.float32(1.0))
        best = float("inf")
        for _ in range(30):
            started = time.perf_counter()
            jax.block_until_ready(gradient(plan, (x0, x1)))
            best = min(best, time.perf_counter() - started)
        seconds.append(best)
    slope, offset = np.polyfit(np.log(dims[2:]), np.log(seconds[2:]), 1)
    rows = [(str(d), f"{1e3 * s:.2f}") for d, s in zip(dims, seconds, strict=True)]
    table(f"One gradient, 4096 rows, K = {COMPONENTS}: exponent {slope:.2f} from D = 64", rows, ("D", "ms"))
    if path:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(4.5, 3.5), layout="constrained")
        axis.loglog(dims, 1e3 * np.array(seconds), "o", label="measured")
        axis.loglog(dims, 1e3 * np.exp(offset) * dims**slope, "k--", lw=1, label=f"$D^{{{slope:.2f}}}$")
        axis.set_xticks(dims, dims)
        axis.minorticks_off()
        axis.set(xlabel="dimension D", ylabel="ms a gradient", title=f"4096 rows, K = {COMPONENTS}")
        axis.legend()
        figure.savefig(path, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scaling", metavar="PNG", help="only the cost against the dimension, drawn to PNG")
    options = parser.parse_args()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    scaling(options.scaling)
    if options.scaling is None:
        to_equal_quality(options.quick)
