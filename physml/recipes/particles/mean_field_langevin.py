r"""Mean-field Langevin dynamics: particles against their limit, and networks and samples as particles.

1. *Propagation of chaos.* $F(\mu) = \tfrac a2 E|x|^2 + \tfrac\kappa4 E|x - x'|^2$: the variance of one particle is
   $T[1/(Na) + (1 - 1/N)/(a + \kappa)]$ at any N, so it leaves its limit as 1/N. Measured for several N against the exact
   law of the discrete kernel, bias of the step included; the slope of the gap in N is to be -1.
2. *N-ULA.* Underdamped, with the exact integration of its linear part: positions and momenta against the fixed point of
   their covariance recursion.
3. *Maximum mean discrepancy.* Particles minimise $\tfrac12 \mathrm{MMD}^2(\mu, \nu)$ with a Gaussian kernel, for samples of a
   ring: beside it, what a fresh sample of that size scores.
4. *A two-layer network* $f(z) = E_\mu[r_3 \tanh(w \cdot z + b)]$ as N particles (w, b, c) that minimise the regularised loss
   of a regression; the free energy falls, and the loss it ends at depends on N as 1/N.

**See** Fu and Wilson, Mean-field underdamped Langevin dynamics and its spacetime discretization (2024); Nitanda, Wu and
Suzuki, Convex analysis of the mean field Langevin dynamics (2022); Chen, Ren and Wang, Uniform-in-time propagation of chaos
for mean field Langevin dynamics (2022).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml import metrics, particles
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Fu and Wilson, Mean-field underdamped Langevin dynamics and its spacetime discretization (2024)",
    claim="particles leave their mean-field limit as 1/N, by the exact discrete law; MMD and a two-layer network descend",
    time="1 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    sizes: tuple[int, ...] = (4, 8, 16, 32, 64)
    copies: int = 4096  # independent systems
    moves: int = 2000
    step_size: float = 0.05
    a: float = 0.5
    kappa: float = 2.0
    temperature: float = 0.7
    mmd_particles: int = 500
    mmd_moves: int = 4000
    width: int = 400
    network_moves: int = 4000
    network_points: int = 200
    # the bounds of the claims
    slope_tolerance: float = 0.1
    mmd_ratio: float = 2.0
    loss_left: float = 0.1

    def __post_init__(self):
        if len(self.sizes) < 2 or min(*self.sizes, self.copies, self.moves, self.width) < 2 or self.step_size <= 0:
            raise ValueError(f"config needs two sizes of at least 2 particles and positive steps, got {self}")


PAPER = Config()
SMOKE = Config(
    sizes=(4, 16), copies=1024, moves=300, mmd_particles=100, mmd_moves=800, width=50, network_moves=800,
    network_points=50, slope_tolerance=0.4, mmd_ratio=3.0, loss_left=0.4,
)  # fmt: skip


def quadratic(config: Config):
    """The functional of part 1, of any measure."""

    def functional(measure):
        square, mean = measure.expect(lambda x: jnp.sum(x**2)), measure.expect(lambda x: x)
        return 0.5 * config.a * square + 0.5 * config.kappa * (square - jnp.sum(mean**2))

    return functional


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """All four parts."""
    keys = jax.random.split(key, 4)
    claims, metrics_, arrays = [], {}, {}
    with progress_bar(2 * len(config.sizes) + 2, "mean field", "system", show=progress) as bar:
        for kind in ("overdamped", "underdamped"):
            rows = []
            for i, n in enumerate(config.sizes):
                rows.append(_chaos(config, kind, n, jax.random.fold_in(keys[0], i)))
                bar.update()
            table = {column: np.asarray([row[column] for row in rows]) for column in rows[0]}
            arrays |= {f"{kind} {column}": value for column, value in table.items()}
            worst = np.max(np.abs(table["value"] - table["exact"]) / table["error"])
            claims.append(at_most(f"{kind}: largest |z| of a variance over N", worst, 5, "the exact discrete law"))
            slope, error = _slope(np.asarray(config.sizes), table["value"] - table["limit"], table["error"])
            claims.append(
                close_to(f"{kind}: power of N in the gap to the limit", slope, -1, config.slope_tolerance, "1/N", error)
            )
            told = np.max((table["value"] - table["limit"]) / table["error"])
            claims.append(at_least(f"{kind}: gap over its error", told, 5, "resolved"))
        arrays["sizes"] = np.asarray(config.sizes)
        arrays |= (ring := _ring(config, keys[1]))
        claims.append(
            at_most("MMD^2 of the particles over that of a fresh sample", ring["ratio"], config.mmd_ratio, "a sample")
        )
        bar.update()
        arrays |= (net := _network(config, keys[2]))
        left = net["loss"][-1] / net["loss"][0]
        claims.append(at_most("two-layer network: loss left", left, config.loss_left, "of that at the start"))
        bar.update()
    metrics_ |= {c.quantity: c.value for c in claims}
    return Result(tuple(claims), metrics_, {k: np.asarray(v) for k, v in arrays.items()})


def _chaos(config, kind, n, key):
    """Variance of one of n particles over many copies of the system, and its exact values."""
    functional, h, T = quadratic(config), config.step_size, config.temperature
    if kind == "overdamped":
        kernel = particles.mean_field_langevin(functional, h, T)
    else:
        kernel = particles.underdamped_mean_field(functional, h, 1.0, T)
    # Burn in for fifteen relaxation times of the slowest mode, the mean.
    burn = int(15 / (config.a * h))
    square = lambda x: jnp.mean(x**2)
    start = jnp.zeros((config.copies, n, 1))
    warm = particles.run_chains(kernel, start, burn, key=key, thin=burn, stats=False).state
    again = particles.run_chains(
        kernel, warm, config.moves, key=jax.random.fold_in(key, 1), keep=False, observe=square
    ).check()
    value = float(again.stats.mean)
    error = float(jnp.sqrt(again.stats.variance / again.stats.ess))
    with jax.enable_x64(True):
        wide = dataclasses.replace(kernel, step_size=jnp.float64(h), temperature=jnp.float64(T))
        exact = float(particles.stationary_covariance(wide, jnp.zeros((n, 1)))[0, 0])
        # One particle that feels the limit's mean, zero: the same kernel with the interaction as a confinement.
        alone = lambda x: 0.5 * (config.a + config.kappa) * jnp.sum(x**2)
        wide = dataclasses.replace(wide, energy=alone)
        limit = float(particles.stationary_covariance(wide, jnp.zeros(1))[0, 0])
    return {"value": value, "error": error, "exact": exact, "limit": limit}


def _slope(n, gap, error):
    weight = np.abs(gap) / error
    design = np.stack([np.log(n), np.ones(len(n))], 1) * weight[:, None]
    cov = np.linalg.inv(design.T @ design)
    return (cov @ design.T @ (np.log(np.abs(gap)) * weight))[0], np.sqrt(cov[0, 0])


def _ring(config, key):
    """Particles that minimise the squared MMD to samples of a ring."""
    data_key, start_key, run_key, fresh_key = jax.random.split(key, 4)
    n = config.mmd_particles

    def draw(key, n):
        angle_key, width_key = jax.random.split(key)
        angle = 2 * jnp.pi * jax.random.uniform(angle_key, (n,))
        return (2 + 0.2 * jax.random.normal(width_key, (n,)))[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)

    target = particles.Particles(draw(data_key, 2000))
    attract = particles.PairSum(lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2) / 2))

    def functional(mu):
        x, w = mu.nodes()
        return jnp.sum(w * (0.5 * attract(x, mu) - attract(x, target)))

    temperature = 1e-4
    kernel = particles.mean_field_langevin(functional, 0.5, temperature)
    start = 0.3 * jax.random.normal(start_key, (n, 2)) + jnp.asarray([[1.0, 0.0]])
    out = particles.run(kernel, start, config.mmd_moves, key=run_key, thin=config.mmd_moves // 20, stats=False).check()
    check = draw(fresh_key, 4000)
    score = lambda x: float(metrics.mmd(x, check, bandwidths=1.0))
    floor = np.mean([score(draw(jax.random.fold_in(fresh_key, i), n)) for i in range(10)])
    scores = np.asarray([score(x) for x in out.samples])
    return {"ring": out.samples, "ring target": check, "mmd": scores, "ratio": scores[-1] / floor, "mmd floor": floor}


def _network(config, key):
    """Two-layer regression by particles (w, b, c); the trace of the loss."""
    data_key, start_key, run_key = jax.random.split(key, 3)
    z = jax.random.uniform(data_key, (config.network_points, 1), minval=-2.0, maxval=2.0)
    y = jnp.sin(3 * z[:, 0]) * jnp.exp(-jnp.abs(z[:, 0]))
    unit = lambda p: 10.0 * jnp.tanh(p[2]) * jnp.tanh(z @ p[:1] + p[1])

    def loss(measure):
        return 0.5 * jnp.mean((measure.expect(unit) - y) ** 2)

    functional = lambda measure: loss(measure) + 1e-4 * measure.expect(lambda p: jnp.sum(p**2))
    kernel = particles.mean_field_langevin(functional, 0.05, 1e-5)
    start = 1.5 * jax.random.normal(start_key, (config.width, 3))
    observe = lambda x: {"loss": loss(particles.Particles(x)), "fit": particles.Particles(x).expect(unit)}
    out = particles.run(
        kernel, start, config.network_moves, key=run_key, thin=config.network_moves // 50, observe=observe, stats=False
    ).check()
    first = loss(particles.Particles(start))
    order = jnp.argsort(z[:, 0])
    losses = jnp.concatenate([first[None], out.samples["loss"]])
    return {"loss": losses, "inputs": z[order, 0], "targets": y[order], "fit": out.samples["fit"][-1][order]}


def plot(result: Result) -> Any:
    """The gap to the limit over N, the ring, and the network."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.7), layout="constrained")
    for i, kind in enumerate(("overdamped", "underdamped")):
        gap = a[f"{kind} value"] - a[f"{kind} limit"]
        axes[0].errorbar(a["sizes"], gap, 3 * a[f"{kind} error"], fmt="o", color=f"C{i}", ms=4, label=kind)
        axes[0].plot(a["sizes"], a[f"{kind} exact"] - a[f"{kind} limit"], "-", color=f"C{i}", lw=1)
    axes[0].set(
        xscale="log", yscale="log", xlabel="N", ylabel="variance - limit", title="lines: the exact discrete law"
    )
    axes[0].legend(fontsize=8)
    axes[1].plot(*a["ring target"].T, ".", color="0.8", ms=2)
    axes[1].plot(*a["ring"][-1].T, ".", color="C3", ms=3)
    axes[1].set(title="MMD flow to a ring", aspect="equal")
    axes[2].semilogy(a["mmd"], color="C0")
    axes[2].axhline(a["mmd floor"], color="0.5", ls="--")
    axes[2].set(xlabel="saved moves", title="MMD², dashed a fresh sample")
    axes[3].plot(a["inputs"], a["targets"], "k.", ms=3)
    axes[3].plot(a["inputs"], a["fit"], color="C0")
    axes[3].set(title="two-layer network", xlabel="z")
    return figure
