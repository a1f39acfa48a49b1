"""Langevin kernels beside blackjax and beside a scan written by hand; pair sums; what statistics cost.

taskset -c 0 python benchmarks/particles.py            # one core; needs blackjax beside physml
python benchmarks/particles.py --scaling pair_cost.png # only the cost of pairs against N, drawn
"""

import argparse

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from timing import compile_seconds, race, table

from physml import metrics, particles
from physml.core import noise

CHAINS, DIM, STEPS, THIN = 1024, 10, 1000, 10


def gaussian(x):
    return 0.5 * jnp.sum(x**2)


def logistic():
    """Posterior of a logistic regression: 24 features of the breast-cancer data and an intercept, prior N(0, 1)."""
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    features = features[:, :24]
    features = (features - features.mean(0)) / features.std(0)
    design = jnp.asarray(np.concatenate([features, np.ones((len(features), 1))], 1), jnp.float32)
    sign = jnp.asarray(2.0 * labels - 1.0, jnp.float32)
    return lambda w: jnp.sum(jax.nn.softplus(-sign * (design @ w))) + 0.5 * jnp.sum(w**2)


KERNELS = {
    "ULA": (
        lambda E, h: particles.overdamped(E, h),
        # blackjax's unadjusted kernel: SGLD with the whole gradient; its step is h as well.
        lambda E, h: _sgld(E, h),
    ),
    "MALA": (lambda E, h: particles.mala(E, h), lambda E, h: blackjax.mala(lambda x: -E(x), h)),
    "HMC, 8 leaps": (
        lambda E, h: particles.hmc(E, h, 8),
        lambda E, h: blackjax.hmc(
            lambda x: -E(x), step_size=h, inverse_mass_matrix=jnp.ones(DIM), num_integration_steps=8
        ),
    ),
}


def _sgld(energy, h):
    sampler = blackjax.sgld(lambda x, _: -jax.grad(energy)(x))
    step = lambda key, state: (sampler.step(key, state, None, h), None)
    return blackjax.base.SamplingAlgorithm(lambda x, *_: x, step)


def ours(kernel, x0, stats=False, save_every=THIN, steps=STEPS):
    @jax.jit
    def run(x0, key):
        out = particles.run_chains(kernel, x0, steps, key=key, save_every=save_every, stats=stats)
        return out.samples, (out.stats.ess if stats else None)

    return lambda: jax.block_until_ready(run(x0, jax.random.key(0)))[0]


def theirs(sampler, x0, save_every=THIN, steps=STEPS):
    """blackjax's kernel, mapped over chains with a key each, in a scan; every `save_every`-th position is kept."""
    position = lambda state: getattr(state, "position", state)

    @jax.jit
    def run(key, x0):
        state = jax.vmap(sampler.init)(x0)
        many = jax.vmap(lambda k, s: sampler.step(k, s)[0])

        def interval(state, k):
            inner = lambda i, s: many(jax.random.split(jax.random.fold_in(k, i), len(x0)), s)
            state = lax.fori_loop(0, save_every, inner, state)
            return state, position(state)

        return lax.scan(interval, state, jax.random.split(key, steps // save_every))[1]

    return lambda: jax.block_until_ready(run(jax.random.key(0), x0))


def by_hand(x0, h):
    """ULA as a scan over (d, chains), the same generator, drawn eight steps ahead."""
    lanes = jnp.arange(x0.shape[0])
    like = jax.ShapeDtypeStruct(x0.shape[1:], x0.dtype)

    @jax.jit
    def run(key, x):
        draw = lambda k: noise.normal(key, k, like, lanes)

        def chunk(x, i):
            xis = jax.vmap(draw)(THIN * i + jnp.arange(THIN))
            x, _ = lax.scan(lambda x, xi: (x - h * x + jnp.sqrt(2 * h) * xi, None), x, xis)
            return x, x

        return lax.scan(chunk, x.T, jnp.arange(STEPS // THIN))[1]

    return lambda: jax.block_until_ready(run(jax.random.key(0), x0))


def samplers(rounds):
    x0 = jnp.zeros((CHAINS, DIM))
    rows = []
    for name, (mine, peer) in KERNELS.items():
        h = {"ULA": 0.2, "MALA": 0.5}.get(name, 0.5)
        contenders = {"physml": ours(mine(gaussian, h), x0), "blackjax": theirs(peer(gaussian, h), x0)}
        if name == "ULA":
            contenders["by hand"] = by_hand(x0, h)
        best = race(contenders, rounds)
        for who, seconds in best.items():
            draws = np.asarray(contenders[who]())
            draws = draws.transpose(0, 2, 1) if who == "by hand" else draws
            ess = float(jnp.min(metrics.ess(jnp.asarray(draws[20:]))))
            number = 1e9 * seconds / (CHAINS * DIM * STEPS)
            rows.append((name, who, f"{number:.2f}", f"{best['blackjax'] / seconds:.2f}", f"{ess / seconds:.3g}"))
    header = ("", "", "ns per number and step", "speed over blackjax", "effective samples a second")
    table(f"{CHAINS} chains, d = {DIM} Gaussian, every {THIN}th kept", rows, header)


def one_chain(rounds):
    rows = []
    for name, (mine, peer) in KERNELS.items():
        kernel, x0 = mine(gaussian, 0.3), jnp.zeros(DIM)
        run = jax.jit(
            lambda key, k=kernel, x0=x0: particles.run(k, x0, 20_000, key=key, save_every=THIN, stats=False).samples
        )
        single = theirs(peer(gaussian, 0.3), x0[None], steps=20_000)
        best = race({"physml": lambda r=run: jax.block_until_ready(r(jax.random.key(0))), "blackjax": single}, rounds)
        micro = [f"{1e6 * best[who] / 20_000:.2f}" for who in best]
        rows.append((name, *micro, f"{best['blackjax'] / best['physml']:.2f}"))
    table("One chain, d = 10", rows, ("", "physml, us a step", "blackjax", "ratio"))


def regression(rounds):
    """A likelihood that dominates, and its share of a step."""
    energy, chains = logistic(), 256
    x0 = jnp.zeros((chains, 25))
    likelihood = jax.jit(jax.vmap(jax.value_and_grad(energy)))
    rows = []
    for name, mine, peer, cost in (
        ("MALA", particles.mala(energy, 0.005), blackjax.mala(lambda x: -energy(x), 0.005), 1),
        (
            "HMC, 8 leaps", particles.hmc(energy, 0.05, 8),
            blackjax.hmc(
                lambda x: -energy(x), step_size=0.05, inverse_mass_matrix=jnp.ones(25), num_integration_steps=8
            ),
            8,
        ),
    ):  # fmt: skip
        best = race(
            {"physml": ours(mine, x0, steps=100), "blackjax": theirs(peer, x0, steps=100),
             "likelihood": lambda: jax.block_until_ready(likelihood(x0))}, rounds,
        )  # fmt: skip
        share = 100 * cost * best["likelihood"] / best["physml"]
        rows.append(
            (name, f"{1e3 * best['physml'] / 100:.2f}", f"{1e3 * best['blackjax'] / 100:.2f}",
             f"{best['blackjax'] / best['physml']:.2f}", f"{100 * share:.0f}%")
        )  # fmt: skip
    table(
        f"Logistic regression, {chains} chains, d = 25, 569 rows", rows,
        ("", "physml, ms a move", "blackjax", "ratio", "likelihood alone, mapped"),
    )  # fmt: skip


def statistics(rounds):
    x0, rows = jnp.zeros((CHAINS, DIM)), []
    for save_every in (1, 10):
        plain = ours(particles.overdamped(gaussian, 0.2), x0, save_every=save_every)
        full = ours(particles.overdamped(gaussian, 0.2), x0, stats=True, save_every=save_every)
        best = race({"without": plain, "with": full}, rounds)
        rows.append((str(save_every), f"{100 * (best['with'] / best['without'] - 1):.0f}%"))
    table("Streamed statistics: what they add to ULA", rows, ("save_every", "added"))


FORCES = {
    "(x - y) / (r^2 + c)": lambda x, y: (x - y) / (jnp.sum((x - y) ** 2) + 0.01),
    "(x - y) exp(-r^2/2)": lambda x, y: (x - y) * jnp.exp(-jnp.sum((x - y) ** 2) / 2),
    "Coulomb": lambda x, y: (x - y) / jnp.sum((x - y) ** 2),
}


def pairs(rounds, n=4096):
    x, rows = jax.random.normal(jax.random.key(0), (n, 2)), []
    for name, kernel in FORCES.items():
        force = particles.PairSum(kernel)
        forward = jax.jit(lambda x, f=force: f(x, particles.Particles(x)))
        gradient = jax.jit(jax.grad(lambda x, f=force: jnp.sum(f(x, particles.Particles(x)) ** 2)))
        naive = jax.jit(lambda x, k=kernel: jnp.nansum(jax.vmap(jax.vmap(k, (None, 0)), (0, None))(x, x), 1) / n)
        memory = [f.lower(x).compile().memory_analysis().temp_size_in_bytes / 2**20 for f in (forward, gradient, naive)]
        best = race(
            {who: lambda f=f: jax.block_until_ready(f(x)) for who, f in
             (("sum", forward), ("gradient", gradient), ("all at once", naive))}, rounds,
        )  # fmt: skip
        per_pair = [f"{1e9 * best[who] / n**2:.2f}" for who in best]
        rows.append((name, *per_pair, f"{best['gradient'] / best['sum']:.2f}", *[f"{m:.1f}" for m in memory]))
    table(
        f"Pair sums, N = {n}, d = 2: ns a pair, MiB", rows,
        ("", "sum", "gradient", "(N, N, d) at once", "gradient / sum", "MiB: sum", "gradient", "at once"),
    )  # fmt: skip
    energy = particles.PairEnergy(lambda x, y: -0.5 * jnp.log(jnp.sum((x - y) ** 2)))
    value, slope = jax.jit(energy), jax.jit(jax.grad(energy))
    best = race(
        {"value": lambda: jax.block_until_ready(value(x)), "gradient": lambda: jax.block_until_ready(slope(x))}, rounds
    )
    cost = [f"{1e9 * best[who] / n**2:.2f}" for who in best]
    table("Pair energy -ln r", [(*cost, f"{best['gradient'] / best['value']:.2f}")], ("ns a pair", "gradient", "ratio"))
    many = jax.random.normal(jax.random.key(0), (65536, 2))
    batch = particles.PairSum(FORCES["Coulomb"], particles.RandomBatch(8))
    step = jax.jit(lambda x, key: batch(x, particles.Particles(x), key=key))
    best = race({"random batch": lambda: jax.block_until_ready(step(many, jax.random.key(0)))}, rounds)
    print(f"\nrandom batches of 8 among 65,536: {best['random batch']:.3f} s a step")


def scaling(path, rounds):
    """Seconds of a pair sum and of its gradient against N, with the fitted exponents."""
    sizes, rows, kernel = np.array([512, 1024, 2048, 4096, 8192]), [], FORCES["Coulomb"]
    force = particles.PairSum(kernel)
    forward = jax.jit(lambda x: force(x, particles.Particles(x)))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(force(x, particles.Particles(x)) ** 2)))
    for n in sizes:
        x = jax.random.normal(jax.random.key(0), (int(n), 2))
        best = race(
            {
                "sum": lambda x=x: jax.block_until_ready(forward(x)),
                "gradient": lambda x=x: jax.block_until_ready(gradient(x)),
            },
            rounds,
        )
        rows.append([best["sum"], best["gradient"]])
    seconds = np.asarray(rows)
    fits = [np.polyfit(np.log(sizes), np.log(column), 1) for column in seconds.T]
    cells = [(str(n), *(f"{1e3 * s:.2f}" for s in row)) for n, row in zip(sizes, seconds, strict=True)]
    table(
        "Pair sums against N", cells,
        ("N", f"sum, ms: N^{fits[0][0]:.2f}", f"gradient, ms: N^{fits[1][0]:.2f}"),
    )  # fmt: skip
    if path:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(4.5, 3.5), layout="constrained")
        for i, (name, column, fit) in enumerate(zip(("sum", "gradient"), seconds.T, fits, strict=True)):
            axis.loglog(sizes, 1e3 * column, "o", color=f"C{i}", label=name)
            axis.loglog(
                sizes, 1e3 * np.exp(np.polyval(fit, np.log(sizes))), "--", color=f"C{i}", label=f"$N^{{{fit[0]:.2f}}}$"
            )
        axis.set(xlabel="particles N", ylabel="ms", title="pair sums, d = 2, float32")
        axis.set_xticks(sizes, sizes)
        axis.minorticks_off()
        axis.legend(fontsize=8)
        figure.savefig(path, dpi=100)


def compile_times():
    rows = []
    for name, (mine, peer) in KERNELS.items():
        x0, kernel, sampler = jnp.zeros((CHAINS, DIM)), mine(gaussian, 0.2), peer(gaussian, 0.2)
        seconds = [
            compile_seconds(
                lambda x, k=kernel, s=s: particles.run_chains(k, x, 100, key=jax.random.key(0), stats=s).samples, x0
            )
            for s in (False, True)
        ]
        loop = lambda x, s=sampler: lax.scan(
            lambda state, key: (jax.vmap(lambda k, z: s.step(k, z)[0])(jax.random.split(key, CHAINS), state), None),
            jax.vmap(s.init)(x), jax.random.split(jax.random.key(0), 100),
        )  # fmt: skip
        rows.append((name, *(f"{s:.2f}" for s in (*seconds, compile_seconds(loop, x0)))))
    table("Trace and compile (seconds)", rows, ("", "run_chains", "with statistics", "blackjax in a scan"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scaling", metavar="PNG", help="only the cost of pairs against N, drawn to PNG")
    options = parser.parse_args()
    rounds = 3 if options.quick else 7
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, blackjax {blackjax.__version__}")
    scaling(options.scaling, rounds)
    if options.scaling is None:
        samplers(rounds)
        one_chain(rounds)
        regression(rounds)
        statistics(rounds)
        pairs(rounds)
        compile_times()
