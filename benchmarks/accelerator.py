"""Every kind of work on an accelerator, in one go: right, and how near to the machine's limits.

python benchmarks/accelerator.py               # tests of the ground, then each kernel at three sizes; six minutes
python benchmarks/accelerator.py --small       # a minute on a CPU: that everything here runs
python benchmarks/accelerator.py --out FOLDER  # where accelerator.md and accelerator.json go

Each kernel runs on the accelerator and on the CPU of the same machine, with the same noise. *Limit* is the larger of
the shares of memory bandwidth (by a copy of 256 MB) and of arithmetic (by a product of matrices in float32) that its
count of bytes and operations reaches; for kernels that mostly draw noise, the share that drawing it alone takes.
*Difference* is the largest between both devices over the largest number, to be below what the kernel states. The end
says what misses a quarter of its limit.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml import core, dmft, hopfield, matching, nn, particles
from physml.core import noise
from physml.integrate import Dynamics, ensemble
from physml.train import init_state, train_step

KEY = jax.random.key(0)


class Case(NamedTuple):
    """Work of one size: a function of arrays, its counts, and how far two devices may be apart."""

    call: Callable
    arrays: tuple
    flops: float = 0.0
    bytes: float = 0.0
    normals: int = 0
    tolerance: float = 1e-4
    peer: Callable | None = None  # arrays -> a call of torch on the same device, or None


def rough(x):
    return jnp.sum((x**2 - 1) ** 2) / 4


def _drift(t, x, args):
    return -x


def _unit(t, x, args):
    return jnp.ones((), x.dtype)


def ensembles(n):
    ts = jnp.linspace(0.0, 1.0, 101)
    call = lambda x0: ensemble(Dynamics(_drift, _unit), x0, ts, key=KEY, save_every=100).xs[-1]
    return Case(call, (jnp.ones((n, 8)),), normals=n * 800)


def chains(kernel, n):
    call = lambda x0: particles.run_chains(kernel, x0, 50, key=KEY, keep=False, stats=False).state.position
    # An acceptance that rounding decides differently parts two chains for good: most must agree, see `compare`.
    return Case(call, (jnp.ones((n, 16)),), normals=n * 50 * 17, tolerance=1e-2)


def pair_sums(n):
    force = lambda x, y: (x - y) / (jnp.sum((x - y) ** 2) + 0.1)
    call = lambda x: particles.PairSum(force)(x, particles.Particles(x))
    return Case(call, (jax.random.normal(KEY, (n, 3)),), flops=n * n * 20.0, tolerance=1e-4, peer=_torch_pairs)


def _torch_pairs(torch, x):
    def call():
        d = x[:, None] - x[None]
        return (d / ((d**2).sum(-1, keepdim=True) + 0.1)).sum(1)

    return call


def matching_step(n):
    field = nn.MLP(2, width=512, depth=3, key=KEY)
    optimizer, path = optax.adam(1e-3), matching.linear()
    state, frozen = init_state(field, optimizer)

    def loss(model, batch, *, key):
        x0 = jax.random.normal(key, batch.shape)
        return matching.match(model, path, x0, batch, key=key)

    def call(x1):
        _, metrics = train_step(state, frozen, x1, key=KEY, loss=loss, optimizer=optimizer)
        return jnp.stack([metrics["loss"], metrics["grad_norm"]])

    weights = sum(x.size for x in jax.tree.leaves(state.params))
    return Case(call, (jax.random.normal(KEY, (n, 2)),), flops=6.0 * n * weights, tolerance=1e-4)


def retrieval(n):
    query, memory = jax.random.normal(KEY, (n, 64)), jax.random.normal(jax.random.key(1), (4 * n, 64))
    call = lambda q, m: hopfield.retrieve(q, m, beta=0.125, steps=1, return_weights=False).x
    peer = lambda torch, q, m: lambda: torch.nn.functional.scaled_dot_product_attention(q, m, m)
    return Case(call, (query, memory), flops=4.0 * n * 4 * n * 64, tolerance=1e-4, peer=peer)


def glauber(n):
    patterns = jax.random.rademacher(KEY, (n // 20, n), jnp.float32)
    energy = hopfield.Pairwise(hopfield.hebbian(patterns))
    spins = jnp.broadcast_to(patterns[0], (64, n))
    call = lambda s: hopfield.glauber(energy, s, 5, temperature=0.5, key=KEY).spins
    return Case(call, (spins,), bytes=5.0 * 4 * n * n, flops=5.0 * 2 * 64 * n * n, tolerance=0.05)


def p_spin(n):
    call = lambda T: dmft.solve(dmft.SphericalPSpin(p=3, temperature=T, t_max=n * 0.1, dt=0.1)).order.energy
    # Two integrals of the past for each pair of times.
    return Case(call, (jnp.asarray(0.7),), flops=4.0 * n**3 / 3, tolerance=1e-3)


def wide_network(n):
    x = jax.random.normal(KEY, (4, 8)) / 8**0.5
    model = lambda y: dmft.WideNetwork(x @ x.T, y, 2, 1.0, jnp.tanh, 0.05 * n, 0.05)
    call = lambda y: dmft.solve(model(y), key=KEY).order.loss
    return Case(call, (jnp.array([1.0, -1.0, 1.0, -1.0]),), tolerance=1e-2)


def fixed_points(n):
    f = lambda J, h: core.fixed_point(lambda m: jnp.tanh(J @ m + h), jnp.zeros(64), max_steps=100).value
    J = jax.random.normal(KEY, (64, 64)) / 16
    h = jax.random.normal(KEY, (n, 64))
    return Case(jax.vmap(partial(f, J)), (h,), flops=2.0 * n * 64 * 64 * 30, tolerance=1e-3)


KINDS: dict[str, tuple[Callable, tuple[int, int, int]]] = {
    "ensemble, 100 steps, 8 numbers a path": (ensembles, (1_000, 10_000, 100_000)),
    "MALA, 50 moves, d = 16": (lambda n: chains(particles.mala(rough, 0.05), n), (1_000, 10_000, 100_000)),
    "HMC, 50 moves of 8, d = 16": (lambda n: chains(particles.hmc(rough, 0.1, 8), n), (1_000, 10_000, 100_000)),
    "pair sum": (pair_sums, (2_000, 10_000, 50_000)),
    "matching step, width 512": (matching_step, (1_000, 10_000, 100_000)),
    "retrieval from 4 n patterns, d = 64": (retrieval, (1_000, 4_000, 16_000)),
    "Glauber, 5 sweeps of 64 replicas": (glauber, (200, 1_000, 4_000)),
    "p-spin filling, n times": (p_spin, (100, 200, 400)),
    "wide network, n steps": (wide_network, (10, 20, 40)),
    "fixed points of 64 unknowns": (fixed_points, (100, 1_000, 10_000)),
}


def seconds(call, arrays, rounds=5, limit=3.0):
    """Of the fastest call, after one that compiles; and the outcome."""
    out = jax.block_until_ready(call(*arrays))
    best, spent = math.inf, 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call(*arrays))
        best = min(best, time.perf_counter() - start)
        spent += time.perf_counter() - start
        if spent > limit:
            break
    return best, out


def limits(device, small):
    """Bytes and operations a second of this device, and normals."""
    n, d = (2**20, 1024) if small else (2**25, 4096)
    x, a = jax.device_put((jnp.ones(n), jnp.ones((d, d))), device)
    copy, _ = seconds(jax.jit(lambda x: x + 1), (x,))
    product, _ = seconds(jax.jit(lambda a: a @ a), (a,))
    lanes = jax.device_put(noise.lanes(0, n // 16), device)
    like = jax.ShapeDtypeStruct((16,), jnp.float32)
    draw, _ = seconds(jax.jit(lambda lanes: noise.normal(KEY, 0, like, lanes)), (lanes,))
    return {"bytes": 8 * n / copy, "flops": 2 * d**3 / product, "normals": n / draw}


def compare(here, there):
    """The largest difference over the largest number; of chains, that of all but the hundredth that is apart most."""
    here, there = (np.asarray(x, np.float64) for x in (here, there))
    gap = np.abs(here - there).reshape(len(here), -1).max(1) if here.ndim > 1 else np.abs(here - there).ravel()
    return float(np.quantile(gap, 0.99) / max(np.abs(there).max(), 1e-30))


def torch_seconds(case, device):
    """Of the hand-written peer on the same kind of device, None without torch."""
    try:
        import torch
    except ImportError:
        return None
    if case.peer is None:
        return None
    where = "cpu" if device.platform == "cpu" else "cuda"
    arrays = [torch.tensor(np.asarray(a), device=where) for a in case.arrays]
    call, wait = case.peer(torch, *arrays), (lambda: None) if where == "cpu" else torch.cuda.synchronize
    call(), wait()
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


def measure(kind, make, n, device, cpu, limit) -> dict[str, Any]:
    row: dict[str, Any] = {"kernel": kind, "n": n}
    try:
        case = make(n)
        call = jax.jit(case.call)
        took, out = seconds(call, jax.device_put(case.arrays, device))
        slow, reference = (took, out) if device == cpu else seconds(call, jax.device_put(case.arrays, cpu), rounds=1)
    except Exception as error:  # what an accelerator cannot do is a row, not the end
        return row | {"error": f"{type(error).__name__}: {error}"[:200]}
    needed = max(case.bytes / limit["bytes"], case.flops / limit["flops"], case.normals / limit["normals"])
    peer = torch_seconds(case, device)
    gap = compare(out, reference)
    return row | {
        "milliseconds": 1e3 * took, "limit": needed / took if needed else None, "cpu / device": slow / took,
        "difference": gap, "agrees": gap <= case.tolerance, "torch / ours": None if peer is None else peer / took,
    }  # fmt: skip


def ground(small):
    """The tests of the ground on this device: how many passed, and the last line."""
    rooms = ["tests/core/test_noise.py"] if small else ["tests/core", "tests/integrate", "tests/particles"]
    options = ["-m", "not slow and not recipes", "-n", "0", "-v", "-x", "--timeout", "60", "-p", "no:cacheprovider"]
    if not small:
        options += ["-k", "noise or fixed_point or langevin or interaction or simulate or loops"]
    command = [sys.executable, "-m", "pytest", *rooms, *options]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=150)
    except subprocess.TimeoutExpired:
        return "not finished after 150 seconds"
    return next(
        (line for line in reversed(done.stdout.splitlines()) if "passed" in line or "failed" in line), "none ran"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    start, limit = time.perf_counter(), limits(device, arguments.small)
    title = f"{device.device_kind}, jax {jax.__version__}" + (", small" if arguments.small else "")
    bandwidth, peak, draws = limit["bytes"] / 1e9, limit["flops"] / 1e12, limit["normals"] / 1e9
    speeds = f"{bandwidth:,.0f} GB/s, {peak:.2f} Tflop/s, {draws:.2f} normals/ns"
    print(f"## {title}\n\n{speeds}; tests of the ground: {ground(arguments.small)}\n")
    rows = []
    header = ("kernel", "n", "milliseconds", "limit", "cpu / device", "difference", "agrees", "torch / ours")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    print("\n".join(lines))
    for kind, (make, sizes) in KINDS.items():
        for n in dict.fromkeys((max(1, sizes[0] // 10),) if arguments.small else sizes):
            row = measure(kind, make, n, device, cpu, limit)
            rows.append(row)
            shown = lambda v: "" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v)
            lines.append("| " + " | ".join(shown(row.get(name)) for name in header) + " |")
            print(lines[-1] + (f" {row['error']}" if "error" in row else ""), flush=True)
    far = [f"{r['kernel']}, n = {r['n']}" for r in rows if (r.get("limit") or 1) < 0.25]
    wrong = [f"{r['kernel']}, n = {r['n']}" for r in rows if not r.get("agrees")]
    end = f"\nBelow a quarter of their limit: {'; '.join(far) or 'none'}."
    end += f"\nNot in agreement, or failed: {'; '.join(wrong) or 'none'}."
    print(end, f"\n{time.perf_counter() - start:.0f} seconds")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "accelerator.md").write_text(f"## {title}\n\n{speeds}\n\n" + "\n".join(lines) + f"\n{end}\n")
    found = {"device": title, "limits": limit, "rows": rows}
    (arguments.out / "accelerator.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
