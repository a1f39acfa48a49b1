"""Mean-field equations: the p-spin glass beside NumPy and against the number of times, gradients, other solvers.

taskset -c 0 python benchmarks/dmft.py                          # one core
python benchmarks/dmft.py --scaling dmft_cost.png               # only cost against times and samples, drawn
python benchmarks/dmft.py --peer theory_nonlin_utils.py         # beside another solver of the theory of wide networks

The peer is a public script with the function `DMFT_Theory_Cross_Term` (thebuckleylab/jpc, experiments/dmft, MIT), a JAX
version of the solver of Bordelon and Pehlevan (2022): damped iterations with new samples in each, Euler steps, the
response of every time to every time by fixed-point iteration of the full Jacobian. Where it takes the number of times
from a global variable it must take it from its arguments.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from timing import race, table, temp_bytes

from physml import dmft


def numpy_p_spin(n, dt):
    """Energies of the T = 0, p = 3 quench in float64: the same scheme and vectorised rows, by NumPy and BLAS."""
    C, R, energy = np.zeros((n + 1, n + 1)), np.zeros((n + 1, n + 1)), np.zeros(n + 1)
    C[0, 0] = R[0, 0] = 1.0

    def weights(k):
        w = np.full(k + 1, dt)
        w[0] *= 0.5
        w[-1] *= 0.5
        return w

    def rates(c, r, k, m):
        """Derivatives at the times up to m of a row at t_k, c and r (k + 1,)."""
        w = weights(k)
        sigma, noise = 3 * c * r, 1.5 * c**2
        s = (w * sigma)[: m + 1]
        Cm, Rm = C[: m + 1, : m + 1], R[: m + 1, : m + 1]
        drift = Cm @ s + s @ Cm - np.diagonal(Cm) * s
        d = noise[: m + 1]
        drift += dt * (Rm @ d) - dt / 2 * (d * np.diagonal(Rm) + d[0] * Rm[:, 0])
        at = w[: m + 1] - dt / 2 * (np.arange(m + 1) < k)
        response = s @ Rm - at * sigma[: m + 1] * np.diagonal(Rm)
        if k > m:
            drift += w[k] * sigma[k] * c[: m + 1]
            response += w[k] * sigma[k] * r[: m + 1]
        e = -np.sum(w * noise * r)
        return 3 * e * c[: m + 1] + drift, 3 * e * r[: m + 1] + response

    for k in range(n):
        c, r = C[k, : k + 1], R[k, : k + 1]
        a = rates(c, r, k, k) if k else (-0.0 * c, -0.0 * r)
        b = rates(np.append(c + dt * a[0], 1.0), np.append(r + dt * a[1], 1.0), k + 1, k)
        C[k + 1, : k + 1], R[k + 1, : k + 1] = c + dt / 2 * (a[0] + b[0]), r + dt / 2 * (a[1] + b[1])
        C[k + 1, k + 1] = R[k + 1, k + 1] = 1.0
        w = weights(k + 1)
        energy[k + 1] = -np.sum(w * 1.5 * C[k + 1, : k + 2] ** 2 * R[k + 1, : k + 2])
    return energy


def p_spin(n, dt=0.02):
    return lambda T: dmft.solve(dmft.SphericalPSpin(p=3, temperature=T, t_max=n * dt, dt=dt)).order.energy


def glass(sizes, rounds):
    rows = []
    for n in sizes:
        forward = jax.jit(p_spin(n))
        gradient = jax.jit(jax.grad(lambda T, f=p_spin(n): f(T)[-1]))
        ours = np.asarray(forward(0.0))
        start = time.perf_counter()
        theirs = numpy_p_spin(n, 0.02)
        host = time.perf_counter() - start
        assert np.max(np.abs(ours - theirs)) < 1e-5
        seconds = race({"forward": lambda f=forward: f(0.0), "gradient": lambda g=gradient: g(0.1)}, rounds)
        memory = [temp_bytes(f, 0.1) / 2**20 for f in (p_spin(n), jax.grad(lambda T, f=p_spin(n): f(T)[-1]))]
        rows.append((n, seconds["forward"], seconds["gradient"], host, *memory))
    table(
        "Spherical p-spin glass, float64, T = 0: seconds and MiB for n times",
        [(str(n), *(f"{x:.3g}" for x in rest), f"{rest[2] / rest[0]:.1f}") for n, *rest in rows],
        ("n", "solve", "gradient", "NumPy", "MiB: solve", "gradient", "NumPy / solve"),
    )
    return np.asarray(rows)


def wide(sizes, rounds):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 8))
    kernel, y = jnp.asarray(x @ x.T / 8, jnp.float32), jnp.asarray([1.0, -1.0, 0.5, 0.2])
    rows = []
    for steps in sizes:
        model = dmft.WideNetwork(kernel, y, 2, 1.0, jnp.tanh, 0.05 * steps, 0.05)
        noise = dmft.MonteCarlo(2000).draw(model.noise_shape(), jax.random.key(0), jnp.float32)
        update = jax.jit(lambda order, noise, model=model: model.update(order, noise))
        order = model.init()
        seconds = race({"update": lambda u=update, o=order, z=noise: u(o, z)}, rounds)["update"]
        rows.append(
            (4 * (steps + 1), seconds, temp_bytes(lambda o, z, model=model: model.update(o, z), order, noise) / 2**20)
        )
    table(
        "Two hidden tanh layers, 2,000 samples: one iteration with m = inputs x times",
        [(str(m), f"{s:.3f}", f"{b:.0f}") for m, s, b in rows],
        ("m", "seconds", "MiB"),
    )
    return np.asarray(rows)


def others(rounds):
    models = {
        "random network, g = 1.5": dmft.RandomNetwork(g=1.5),
        "Lotka-Volterra": dmft.LotkaVolterra(4.0, 0.8, 0.5),
        "Bethe lattice, U = 2, beta = 50": dmft.BetheHubbard(U=2.0, beta=50.0),
    }
    solvers = {name: jax.jit(lambda m=m: dmft.solve(m).order) for name, m in models.items()}
    seconds = race(solvers, rounds)
    table("Whole solutions", [(n, f"{1e3 * s:.2f}") for n, s in seconds.items()], ("", "ms"))


PEER = {"gamma": 1.0, "depth": 2, "t_max": 2.0}


def _task():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6))
    return jnp.asarray(x @ x.T / 6, jnp.float32), jnp.asarray([1.0, -1.0, 0.5], jnp.float32)


def _errors(loss, Phi, dt):
    """Distance of loss and kernels at t = 0, 0.2, ... from wide networks, whose own error is .1 of what is measured."""
    truth = np.load("wide_networks.npz")
    every = round(0.2 / dt)
    loss, Phi = np.asarray(loss)[::every], np.asarray(Phi)[:, ::every, :, ::every]
    n = len(loss)
    far = lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)
    return far(loss, truth["loss"][:n]), max(far(a, b[:n, :, :n]) for a, b in zip(Phi, truth["Phi"], strict=True))


def truth(width=4096, nets=16):
    """Loss and kernels of wide networks, averaged."""
    kernel, y = _task()
    model = dmft.WideNetwork(kernel, y, PEER["depth"], PEER["gamma"], jnp.tanh, PEER["t_max"], 0.1)
    train = jax.jit(lambda k: model.finite_n(width, key=k))
    runs = [train(jax.random.key(i)) for i in range(nets)]
    mean = lambda name: np.mean([np.asarray(getattr(r, name), np.float64) for r in runs], 0)
    np.savez("wide_networks.npz", loss=mean("loss")[::2], Phi=mean("Phi")[:, ::2, :, ::2])


def one(who, path, dt, samples):
    """One solver in its own process: seconds of a second call, error, memory beyond that of the imports."""
    import importlib.util
    import json
    from pathlib import Path

    kernel, y = _task()
    P, steps = len(y), round(PEER["t_max"] / dt)
    jax.block_until_ready(kernel @ kernel)
    # The peak of this process; what getrusage tells begins with that of its parent.
    peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    before = peak()
    if who == "ours":
        model = dmft.WideNetwork(kernel, y, PEER["depth"], PEER["gamma"], jnp.tanh, PEER["t_max"], dt)
        call = jax.jit(lambda key: dmft.solve(model, noise=dmft.MonteCarlo(samples), key=key).order)
        solve = lambda: (lambda o: (o.loss, o.Phi))(jax.block_until_ready(call(jax.random.key(0))))
    else:
        spec = importlib.util.spec_from_file_location("peer", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        def solve():
            eta = dt * P
            Phi, G, _, _ = module.DMFT_Theory_Cross_Term(
                kernel, y, PEER["depth"], steps + 1, eta, PEER["gamma"], samples=samples, nonlin="tanh"
            )
            delta = module.solve_Delta(kernel, y, Phi, G, eta)
            return 0.5 * np.sum(delta**2, 1), np.stack([np.asarray(a) for a in Phi])

    found = solve()
    start = time.perf_counter()
    found = jax.block_until_ready(solve())
    seconds = time.perf_counter() - start
    memory = (peak() - before) / 1024
    print(json.dumps([who, dt, samples, seconds, *map(float, _errors(*found, dt)), memory]))


def beside(path):
    """Both solvers at several steps and numbers of samples."""
    import json
    import os
    import subprocess
    import sys

    if not os.path.exists("wide_networks.npz"):
        truth()
    runs = [("peer", dt, n) for dt, n in ((0.1, 250), (0.1, 1000))]
    runs += [("ours", dt, n) for dt, n in ((0.2, 250), (0.2, 1000), (0.1, 1000), (0.1, 4000))]
    rows = []
    for who, dt, n in runs:
        line = [sys.executable, __file__, "--peer", path, "--one", who, str(dt), str(n)]
        rows.append(json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout.split("\n")[-2]))
    table(
        "Two hidden tanh layers, 3 inputs, gamma = 1, t = 2: error against networks of width 4096",
        [(w, f"{dt:g}", str(n), f"{s:.2f}", f"{a:.4f}", f"{b:.4f}", f"{m:.0f}") for w, dt, n, s, a, b, m in rows],
        ("solver", "dt", "samples", "seconds", "error of the loss", "of Phi", "MiB"),
    )


def draw(path, glass_rows, wide_rows):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    lines = [
        (axes[0], glass_rows[:, 0], glass_rows[:, i], name) for i, name in ((1, "solve"), (2, "gradient"), (3, "NumPy"))
    ]
    lines.append((axes[1], wide_rows[:, 0], wide_rows[:, 1], "one iteration"))
    for axis, n, seconds, name in lines:
        # The exponent of the larger half, where fixed costs have gone.
        fit = np.polyfit(np.log(n[-2:]), np.log(seconds[-2:]), 1)
        axis.loglog(n, seconds, "o-", label=f"{name}: $n^{{{fit[0]:.2f}}}$")
        print(f"{name}: exponent {fit[0]:.2f}")
    axes[0].set(xlabel="times n", ylabel="seconds", title="p-spin glass, float64")
    axes[1].set(xlabel="inputs x times", title="two-layer tanh network, 2,000 samples")
    for axis in axes:
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scaling", metavar="PNG", help="only cost against times and samples, drawn to PNG")
    parser.add_argument("--peer", metavar="PY", help="beside the solver in this file")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], options.peer, float(options.one[1]), int(options.one[2]))
        raise SystemExit
    if options.peer:
        beside(options.peer)
        raise SystemExit
    rounds = 2 if options.quick else 5
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    glass_rows = glass([125, 250, 500, 1000] if options.quick else [125, 250, 500, 1000, 2000], rounds)
    wide_rows = wide([10, 20, 40, 80], rounds)
    if options.scaling:
        draw(options.scaling, glass_rows, wide_rows)
    else:
        others(rounds)
