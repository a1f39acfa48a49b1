"""Hopfield retrieval: attention, several steps and other libraries side by side, and memory against the patterns.

taskset -c 0 python benchmarks/hopfield.py
PYTHONPATH=hopfield-layers taskset -c 0 python benchmarks/hopfield.py   # with a clone of ml-jku/hopfield-layers
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
from timing import race, table, temp_bytes

from physml import hopfield

BATCH, HEADS, QUERIES, STORED, DIM = 8, 4, 128, 1024, 64


def by_sample(function):
    """Heads of one sample together, samples one after another: their associations stay in the cache."""
    return lambda *arrays: jax.lax.map(lambda x: function(*x), arrays)


def ours(steps, edge, **options):
    """k associations in all; the last one reads the values."""

    def head(q, k, v):
        out = hopfield.retrieve(q, k, beta=DIM**-0.5, steps=steps, values=v, return_weights=False, **options)
        return out.value

    return jax.jit(edge(jax.vmap(head)))


def attention(edge):
    """softmax(q k^T) v as jax.nn writes it, for arrays (heads, tokens, d)."""
    first = lambda x: jnp.moveaxis(x, 0, 1)
    return jax.jit(edge(lambda q, k, v: first(jax.nn.dot_product_attention(first(q), first(k), first(v)))))


def torch_contenders(q, k, v, steps):
    """What torch offers, if it is installed: its attention, a loop around it, and hopfield-layers."""
    try:
        import torch
        import torch.nn.functional as F
    except ImportError:
        return {}
    torch.set_num_threads(1)
    tq, tk, tv = (torch.tensor(np.asarray(x)) for x in (q, k, v))

    def loop(n):
        state = tq
        for _ in range(n - 1):
            state = F.scaled_dot_product_attention(state, tk, tk)
        return F.scaled_dot_product_attention(state, tk, tv)

    contenders = {("torch sdpa", n): (lambda n=n: loop(n)) for n in steps}
    try:
        import torch.nn.modules.linear as linear

        # Their import of a name that torch has renamed since.
        linear._LinearWithBias = linear.NonDynamicallyQuantizableLinear
        from hflayers import Hopfield
    except ImportError:
        return contenders

    # Nothing learned: static patterns, where one head in a batch of batch x heads does the same work.
    flat = [x.reshape(-1, *x.shape[2:]) for x in (tk, tq, tv)]
    for n in steps:
        layer = Hopfield(
            scaling=DIM**-0.5, update_steps_max=n - 1, update_steps_eps=1e-30, num_heads=1, batch_first=True,
            normalize_stored_pattern=False, normalize_stored_pattern_affine=False, normalize_state_pattern=False,
            normalize_state_pattern_affine=False, normalize_pattern_projection=False,
            normalize_pattern_projection_affine=False, stored_pattern_as_static=True, state_pattern_as_static=True,
            pattern_projection_as_static=True, disable_out_projection=True,
        )  # fmt: skip

        def forward(layer=layer):
            with torch.no_grad():
                return layer(tuple(flat)).reshape(tq.shape)

        contenders["hopfield-layers", n] = forward
    return contenders


def attention_table(steps, rounds):
    rng = np.random.default_rng(0)
    draw = lambda n: jnp.asarray(rng.normal(size=(BATCH, HEADS, n, DIM)), jnp.float32)
    q, k, v = draw(QUERIES), draw(STORED), draw(STORED)
    contenders = {}
    for n in steps:
        for name, edge in (("ours, lax.map over samples", by_sample), ("ours, vmap over samples", jax.vmap)):
            contenders[name, n] = lambda f=ours(n, edge): f(q, k, v)
    for name, edge in (("jax.nn, lax.map", by_sample), ("jax.nn, vmap", jax.vmap)):
        contenders[name, 1] = lambda f=attention(edge): f(q, k, v)
    contenders |= torch_contenders(q, k, v, steps)
    reference = {n: np.asarray(contenders["ours, vmap over samples", n]()) for n in steps}
    for (_, n), call in contenders.items():
        assert np.abs(np.asarray(call()) - reference[n]).max() < 1e-4
    seconds = race(contenders, rounds)
    rows = []
    for name in dict.fromkeys(name for name, _ in contenders):
        own = [seconds.get((name, n)) for n in steps]
        rows.append(
            (
                name,
                *("" if s is None else f"{1e3 * s:.1f}" for s in own),
                *("" if s is None else f"{s / (n * own[0]):.2f}" for s, n in zip(own[1:], steps[1:], strict=True)),
                f"{own[0] / seconds['torch sdpa', 1]:.2f}" if ("torch sdpa", 1) in seconds else "",
            )
        )
    table(
        f"B{BATCH} H{HEADS} L{QUERIES} S{STORED} d{DIM}, float32: ms for k associations",
        rows,
        ("", *(f"k = {n}" for n in steps), *(f"time({n}) / {n} time(1)" for n in steps[1:]), "k = 1 / torch sdpa"),
    )


def gradients(rounds):
    """The gradient of one association with respect to everything."""
    rng = np.random.default_rng(0)
    draw = lambda n: jnp.asarray(rng.normal(size=(BATCH, HEADS, n, DIM)), jnp.float32)
    arrays = draw(QUERIES), draw(STORED), draw(STORED)
    grad = lambda f: jax.jit(jax.grad(lambda *a: jnp.sum(f(*a) ** 2), (0, 1, 2)))
    contenders = {
        "ours, vmap": lambda f=grad(ours(1, jax.vmap)): f(*arrays),
        "ours, lax.map, rematerialised": lambda f=grad(by_sample(jax.checkpoint(ours(1, lambda f: f)))): f(*arrays),
        "jax.nn, vmap": lambda f=grad(attention(jax.vmap)): f(*arrays),
    }
    try:
        import torch
        import torch.nn.functional as F

        def theirs():
            a = [torch.tensor(np.asarray(x), requires_grad=True) for x in arrays]
            (F.scaled_dot_product_attention(*a) ** 2).sum().backward()
            return a[0].grad

        contenders["torch sdpa"] = theirs
    except ImportError:
        pass
    seconds = race(contenders, rounds)
    base = seconds.get("torch sdpa", seconds["jax.nn, vmap"])
    rows = [(name, f"{1e3 * s:.1f}", f"{s / base:.2f}") for name, s in seconds.items()]
    table("Value and gradient of one association", rows, ("", "ms", "ratio to the last"))


def separations(rounds):
    rng = np.random.default_rng(0)
    q, m = (jnp.asarray(rng.normal(size=(n, DIM)), jnp.float32) for n in (512, 4096))
    names = ("softmax", "softmax1", "sparsemax", "polynomial")
    step = lambda name, chunk: jax.jit(
        lambda q, m: hopfield.retrieve(
            q, m, beta=DIM**-0.5, separation=name, chunk=chunk, return_weights=False
        ).x
    )  # fmt: skip
    contenders = {(s, c): (lambda f=step(s, c): f(q, m)) for s in names for c in (None, 512)}
    seconds = race(contenders, rounds)
    rows = [(s, *(f"{1e3 * seconds[s, c]:.1f}" for c in (None, 512))) for s in names]
    table("512 queries, 4096 patterns, d = 64: ms for one step", rows, ("", "whole", "chunks of 512"))


def memory(sizes, rounds, path=None):
    """Temporary bytes and seconds for 64 queries against the number of patterns."""
    q = jnp.asarray(np.random.default_rng(0).normal(size=(64, DIM)), jnp.float32)
    f = lambda chunk: lambda q, m: jnp.sum(
        hopfield.retrieve(q, m, beta=1.0, steps=2, chunk=chunk, return_weights=False).x
    )  # fmt: skip
    rows = []
    for n in sizes:
        m = jnp.asarray(np.random.default_rng(1).normal(size=(n, DIM)), jnp.float32)
        row = [n, n * DIM * 4]
        for function in (f(None), f(1024), jax.grad(f(None)), jax.grad(f(1024))):
            row.append(temp_bytes(function, q, m))
        calls = {c: (lambda g=jax.jit(f(c)), m=m: g(q, m)) for c in (None, 1024)}
        seconds = race(calls, rounds)
        rows.append((*row, seconds[None], seconds[1024]))
    table(
        "64 queries, two steps: MiB of temporary memory, seconds",
        [(str(n), *(f"{b / 2**20:.2f}" for b in rest[:5]), *(f"{s:.4f}" for s in rest[5:])) for n, *rest in rows],
        ("N", "memories", "whole", "chunks of 1024", "gradient, whole", "gradient, chunks", "s, whole", "s, chunks"),
    )
    rows = np.asarray(rows, float)
    half = len(rows) // 2
    for name, column in (("whole", 6), ("chunks", 7)):
        fit = np.polyfit(np.log(rows[half:, 0]), np.log(rows[half:, column]), 1)[0]
        print(f"seconds, {name}: exponent {fit:.2f} in N")
    if path:
        draw_scaling(rows, path)


def draw_scaling(rows, path):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for column, name in ((2, "whole"), (3, "chunks"), (4, "gradient, whole"), (5, "gradient, chunks")):
        axes[0].loglog(rows[:, 0], rows[:, column] / 2**20, "o-", label=name)
    axes[0].set(xlabel="patterns N", ylabel="MiB", title="temporary memory, 64 queries")
    half = len(rows) // 2
    for column, name in ((6, "whole"), (7, "chunks")):
        fit = np.polyfit(np.log(rows[half:, 0]), np.log(rows[half:, column]), 1)[0]
        axes[1].loglog(rows[:, 0], rows[:, column], "o-", label=f"{name}: $N^{{{fit:.2f}}}$")
    axes[1].set(xlabel="patterns N", ylabel="seconds", title="two steps")
    for axis in axes:
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scaling", metavar="PNG", help="only memory and time against the patterns, drawn to PNG")
    options = parser.parse_args()
    rounds = 2 if options.quick else 7
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    if not options.scaling:
        attention_table((1, 3, 10), rounds)
        gradients(rounds)
        separations(rounds)
    memory([2**k for k in range(12, 16 if options.quick else 19)], min(rounds, 3), options.scaling)
