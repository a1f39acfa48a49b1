"""Ensembles of Ornstein-Uhlenbeck paths: physml beside hand-written scans and diffrax, as ratios.

taskset -c 0 python benchmarks/integrate.py            # one core: the table of the documentation
python benchmarks/integrate.py --quick                 # smaller, for a look
"""

import argparse

import jax
import jax.numpy as jnp
from jax import lax
from timing import compile_seconds, race, table, temp_bytes

from physml.core import noise
from physml.integrate import Diffrax, Dynamics, ensemble, integrate

RATE, DIM = 1.5, 2
dynamics = Dynamics(drift=lambda t, x, a: -a * x, noise=lambda t, x, a: jnp.sqrt(2.0))


def hand_shared(x0, ts, key, rate):
    """The best we can write by hand with the same generator: lanes last, four steps of noise at once."""
    lanes, h = jnp.arange(len(x0), dtype=jnp.uint32), ts[1] - ts[0]
    like, ahead = jax.ShapeDtypeStruct((DIM,), jnp.float32), 4

    def chunk(x, i):
        z = jax.vmap(lambda k: noise.normal(key, k, like, lanes))(ahead * i + jnp.arange(ahead))

        def step(x, z):
            return x - rate * h * x + jnp.sqrt(2 * h) * z, None

        return lax.scan(step, x, z)[0], None

    return lax.scan(chunk, x0.T, jnp.arange((len(ts) - 1) // ahead))[0].T


def hand_jax(x0, ts, key, rate):
    """The plain scan: jax.random.normal of shape (paths, d) in the body."""
    h = ts[1] - ts[0]

    def step(x, k):
        z = jax.random.normal(jax.random.fold_in(key, k), x.shape)
        return x - rate * h * x + jnp.sqrt(2 * h) * z, None

    return lax.scan(step, x0, jnp.arange(len(ts) - 1))[0]


def hand_vmap(x0, ts, key, rate):
    """The usual way: vmap of one path over a key per path."""
    return jax.vmap(lambda x, key: hand_jax(x, ts, key, rate))(x0, jax.random.split(key, len(x0)))


def ours(x0, ts, key, rate, checkpoint=False):
    steps = len(ts) - 1
    return ensemble(dynamics, x0, ts, key=key, args=rate, save_every=steps, checkpoint=checkpoint).xs[-1]


def ours_vmap(x0, ts, key, rate):
    steps = len(ts) - 1
    one = lambda x, key: integrate(dynamics, x, ts, key=key, args=rate, save_every=steps).xs[-1]
    return jax.vmap(one)(x0, jax.random.split(key, len(x0)))


def forward(paths, steps):
    x0, ts, key = jnp.ones((paths, DIM)), jnp.linspace(0.0, 1.0, steps + 1), jax.random.key(0)
    calls = {
        "hand-written, same generator": hand_shared,
        "ensemble": ours,
        "hand-written, jax.random.normal (paths, d)": hand_jax,
        "hand-written, vmap over keys": hand_vmap,
        "vmap(integrate)": ours_vmap,
    }
    jitted = {name: jax.jit(call) for name, call in calls.items()}
    best = race({name: (lambda f=f: f(x0, ts, key, RATE)) for name, f in jitted.items()})
    base, per = best["hand-written, same generator"], 1e9 / (paths * steps * DIM)
    rows = [(name, f"{t * per:.2f}", f"{t / base:.2f}") for name, t in best.items()]
    table(f"{paths} paths x {steps} steps, d = {DIM}", rows, ("", "ns per number", "ratio"))


def one_system(steps):
    shape, ts, key = (4096, DIM), jnp.linspace(0.0, 1.0, steps + 1), jax.random.key(0)
    x0 = jnp.ones(shape)

    def by_hand(x0, ts, key, rate):
        h, like, ahead = ts[1] - ts[0], jax.ShapeDtypeStruct(shape, jnp.float32), 4

        def chunk(x, i):
            z = jax.vmap(lambda k: noise.normal(key, k, like))(ahead * i + jnp.arange(ahead))
            return lax.scan(lambda x, z: (x - rate * h * x + jnp.sqrt(2 * h) * z, None), x, z)[0], None

        return lax.scan(chunk, x0, jnp.arange((len(ts) - 1) // ahead))[0]

    def ours_one(x0, ts, key, rate):
        return integrate(dynamics, x0, ts, key=key, args=rate, save_every=len(ts) - 1).xs[-1]

    f, g = jax.jit(by_hand), jax.jit(ours_one)
    best = race({"hand-written": lambda: f(x0, ts, key, RATE), "integrate": lambda: g(x0, ts, key, RATE)})
    rows = [(n, f"{t * 1e9 / (steps * x0.size):.2f}", f"{t / best['hand-written']:.2f}") for n, t in best.items()]
    table(f"One system of 4096 x {DIM}, {steps} steps", rows, ("", "ns per number", "ratio"))


def gradients(paths, steps):
    x0, ts, key = jnp.ones((paths, DIM)), jnp.linspace(0.0, 1.0, steps + 1), jax.random.key(0)
    fwd = jax.jit(hand_shared)
    contenders = {"hand-written forward": lambda: fwd(x0, ts, key, RATE)}
    memory = {}
    for name, checkpoint in (("gradient, stored", False), ("gradient, checkpointed", True)):
        loss = lambda rate, x0, c=checkpoint: jnp.mean(ours(x0, ts, key, rate, c) ** 2)
        grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
        contenders[name] = lambda g=grad: g(RATE, x0)
        memory[name] = temp_bytes(jax.grad(loss, argnums=(0, 1)), RATE, x0)
    best = race(contenders)
    base = best["hand-written forward"]
    rows = [(n, f"{t / base:.2f}", f"{memory.get(n, 0) / 2**20:.1f}") for n, t in best.items()]
    table(f"Gradient, {paths} paths x {steps} steps", rows, ("", "ratio", "temporary MiB"))

    rows = []
    for n in (100, 400, 1600, 6400):
        grid = jnp.linspace(0.0, 1.0, n + 1)
        sizes = [
            temp_bytes(jax.grad(lambda r, c=c, grid=grid: jnp.mean(ours(x0, grid, key, r, c) ** 2)), RATE)
            for c in (False, True)
        ]
        rows.append((str(n), *(f"{s / 2**20:.1f}" for s in sizes)))
    table(f"Gradient memory against steps, {paths} paths (MiB)", rows, ("steps", "stored", "checkpointed"))


def compile_times(paths, steps):
    x0, ts, key = jnp.ones((paths, DIM)), jnp.linspace(0.0, 1.0, steps + 1), jax.random.key(0)
    base = compile_seconds(hand_shared, x0, ts, key, RATE)
    rows = [
        (name, f"{s:.3f}", f"{s / base:.2f}")
        for name, s in (("hand-written", base), ("ensemble", compile_seconds(ours, x0, ts, key, RATE)))
    ]
    table("Trace and compile", rows, ("", "seconds", "ratio"))


def against_diffrax(paths, steps):
    import diffrax
    import lineax

    x0, ts, key = jnp.ones((paths, DIM)), jnp.linspace(0.0, 1.0, steps + 1), jax.random.key(0)
    keys = jax.random.split(key, paths)
    terms = lambda path: diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, x, a: -a * x),
        diffrax.ControlTerm(lambda t, x, a: lineax.DiagonalLinearOperator(jnp.full(DIM, jnp.sqrt(2.0))), path),
    )

    def solve(x, path):
        return diffrax.diffeqsolve(
            terms(path), diffrax.Euler(), 0.0, 1.0, 1.0 / steps, x, RATE, max_steps=steps + 1,
            saveat=diffrax.SaveAt(t1=True), adjoint=diffrax.ForwardMode(),
        ).ys[0]  # fmt: skip

    like = jax.ShapeDtypeStruct((DIM,), jnp.float32)
    unsafe = lambda x, k: solve(x, diffrax.UnsafeBrownianPath(like, k))
    tree = lambda x, k: solve(x, diffrax.VirtualBrownianTree(0.0, 1.0, 0.5 / steps, like, k))
    driven = Diffrax(diffrax.Euler())
    calls = {
        "ensemble": jax.jit(lambda x: ours(x, ts, key, RATE)),
        "diffrax, our noise": jax.jit(
            lambda x: ensemble(dynamics, x, ts, key=key, args=RATE, method=driven, save_every=steps).xs[-1]
        ),
        "diffrax, UnsafeBrownianPath": jax.jit(lambda x: jax.vmap(unsafe)(x, keys)),
        "diffrax, VirtualBrownianTree": jax.jit(lambda x: jax.vmap(tree)(x, keys)),
    }
    best = race({name: (lambda f=f: f(x0)) for name, f in calls.items()}, rounds=3)
    rows = [(n, f"{t * 1e9 / (paths * steps * DIM):.1f}", f"{t / best['ensemble']:.1f}") for n, t in best.items()]
    table(f"Against diffrax, {paths} paths x {steps} steps", rows, ("", "ns per number", "ratio"))


def floor(lanes=10_000, steps=1000):
    """One standard normal and one multiply-add, in nanoseconds."""
    x0, key = jnp.ones((DIM, lanes)), jax.random.key(0)
    grid = jnp.arange(lanes, dtype=jnp.uint32)
    like = jax.ShapeDtypeStruct((DIM,), jnp.float32)

    @jax.jit
    def alone(x):
        return lax.scan(lambda x, k: (0.9 * x + noise.normal(key, k, like, grid), None), x, jnp.arange(steps))[0]

    @jax.jit
    def jax_normal(x):
        step = lambda x, k: (0.9 * x + jax.random.normal(jax.random.fold_in(key, k), x.shape), None)
        return lax.scan(step, x, jnp.arange(steps))[0]

    best = race({"physml.core.noise.normal": lambda: alone(x0),
                 "jax.random.normal (d, lanes)": lambda: jax_normal(x0)})  # fmt: skip
    rows = [(n, f"{t * 1e9 / (DIM * lanes * steps):.2f}") for n, t in best.items()]
    table("Floor: one normal and one multiply-add", rows, ("", "ns"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    paths, steps = (2_000, 200) if quick else (10_000, 1_000)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    floor(steps=100 if quick else 1000)
    forward(paths, steps)
    one_system(steps)
    gradients(paths, steps)
    compile_times(paths, steps)
    against_diffrax(1_000, 200 if quick else 500)
