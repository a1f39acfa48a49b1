r"""Consensus-based optimisation of Rastrigin's and Ackley's functions in 20 dimensions, on both sides of stability.

A run succeeds if the *consensus point*, not the best point ever seen, ends within a radius of the minimum in every
coordinate. Rates over 100 runs have Wilson intervals. The swarm contracts in mean square when
$(1 - \lambda h)^2 + \sigma^2 h \kappa < 1$, with $\kappa = 1$ for anisotropic and d for isotropic noise; for small h
that is $2\lambda > \sigma^2\kappa$. What is seen: on the stable side the swarm contracts before it has found a
minimum, and the rate is low; beyond the line, where the second moment of the swarm grows without bound, almost every
path still contracts (the mean of $\ln |1 - \lambda h + \sigma \sqrt h\,\xi|$ is what decides), and the consensus finds
it. With $\sigma \sqrt h$ near 1 the multiplier of a distance is $1 - \lambda h + \xi$, a random search on all scales:
published rates of 100% are reached there, and depend on the step as much as on $\sigma$. Truncated noise keeps the
moments finite at the same rate.

Also *as descent*: on a quadratic the consensus point of a Gaussian swarm is $(I + \alpha S H)^{-1} m$, a preconditioned
implicit gradient step from its mean; the measured one must agree with it.

**See** Riedl, Klock, Geldhauser and Fornasier, Gradient is all you need? (2023); Carrillo, Jin, Li and Zhu (2021).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binomtest

from physml import particles
from physml.metrics import mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Riedl, Klock, Geldhauser and Fornasier, Gradient is all you need? (2023)",
    claim="the consensus point finds Ackley's and Rastrigin's minimum in 20 dimensions beyond the mean-square line",
    time="3 min, smoke 10 s",
)


def rastrigin(x: jax.Array) -> jax.Array:
    r"""$\sum_k [x_k^2 - 10 \cos 2\pi x_k + 10]/d$, minimum 0 at 0."""
    return jnp.mean(x**2 - 10 * jnp.cos(2 * jnp.pi * x) + 10)


def ackley(x: jax.Array) -> jax.Array:
    r"""Ackley's function, minimum 0 at 0."""
    radius = jnp.sqrt(jnp.mean(x**2) + 1e-12)
    return -20 * jnp.exp(-0.2 * radius) - jnp.exp(jnp.mean(jnp.cos(2 * jnp.pi * x))) + 20 + math.e


FUNCTIONS = {"Ackley": ackley, "Rastrigin": rastrigin}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    dim: int = 20
    particles: int = 200
    runs: int = 100
    moves: int = 2000
    step_size: float = 0.01
    alpha: float = 1e5
    spread: float = 3.0  # of the start, uniform on a cube about the point (1, ..., 1)
    radius: float = 0.25  # of success, in every coordinate
    diffusions: tuple[float, ...] = (0.7, 1.2, 5.0, 9.0, 12.0)  # sigma; the line is at sqrt((2 - h) lambda)
    truncation: float = 10.0
    functions: tuple[str, ...] = setting(tuple(FUNCTIONS), choices=FUNCTIONS)
    # the bounds of the claims
    success: float = 0.9  # lower end of the interval, at the best diffusion beyond the line
    contracted: float = 1e-2  # of the spread of the start, on the stable side


PAPER = Config()
SMOKE = Config(
    dim=5, runs=20, moves=1000, particles=60, functions=("Ackley",), diffusions=(0.7, 5.0, 12.0), success=0.7,
    contracted=0.1,
)  # fmt: skip

SABOTAGE = (
    Sabotage(
        "the consensus point weighs by half the energies", particles, "consensus_point",
        lambda exact: lambda x, energies, alpha: exact(x, energies, alpha / 2),
    ),
    Sabotage(
        "nothing truncates the noise", particles, "consensus",
        lambda exact: lambda *settings, truncation, **options: exact(*settings, **options),
    ),
)  # fmt: skip


@experiment
def run(study, config, key):
    start_key, run_key, swarm_key = jax.random.split(key, 3)
    _descent(study, swarm_key)
    shape = (config.runs, config.particles, config.dim)
    x0 = 1.0 + config.spread * jax.random.uniform(start_key, shape, minval=-1.0, maxval=1.0)
    noises = {f"{sigma:g}": (sigma, float("inf")) for sigma in config.diffusions}
    noises["truncated"] = (max(config.diffusions), config.truncation)
    kernel = lambda name, function: particles.consensus(
        FUNCTIONS[function], config.step_size, config.alpha, diffusion=noises[name][0], truncation=noises[name][1],
    )  # fmt: skip
    rates = {name: float(particles.mean_square_rate(kernel(name, "Ackley"), config.dim)) for name in noises}
    tables = {function: {} for function in config.functions}
    for function, (i, name) in study.each([(f, row) for f in tables for row in enumerate(noises)], "run"):
        end = particles.run_chains(
            kernel(name, function), x0, config.moves, key=jax.random.fold_in(run_key, i), save_every=config.moves, keep=False,
            stats=False,
        ).state  # fmt: skip
        hits = int(np.sum(np.max(np.abs(end.consensus), axis=1) < config.radius))
        spread = np.sqrt(np.mean(np.var(np.asarray(end.position, np.float64), axis=1)))
        # What is left of the spread of the start, a uniform law.
        left = float(spread) / (config.spread / math.sqrt(3))
        interval = binomtest(hits, config.runs).proportion_ci(method="wilson")
        tables[function][name] = (hits / config.runs, interval.low, interval.high, left)
    for function, table in tables.items():
        _claims(study, config, function, table, rates)
    study.metrics |= {f"sigma {name}: mean-square rate": rate for name, rate in rates.items()}
    study.keep(sigma=config.diffusions, tables={f: np.asarray(list(table.values())) for f, table in tables.items()})


def _claims(study, config, function, table, rates):
    """Success beyond the mean-square line, contraction before it."""
    best = max(list(table)[:-1], key=lambda name: table[name][1])
    quantity = f"{function}: rate of success at sigma = {best}, lower end of its interval"
    study.at_least(quantity, table[best][1], config.success, f"{config.runs} runs")
    study.at_least(f"{function}: mean-square rate at that sigma", rates[best], 1, "beyond the line")
    for name in (name for name in table if rates[name] < 1):
        study.at_most(f"{function}: spread left at sigma = {name}", table[name][3], config.contracted, "stable side")
    wild = f"{max(config.diffusions):g}"
    quantity = f"{function}: spread at sigma = {wild}"
    study.at_least(quantity, table[wild][3], 100, "moments grow beyond the line")
    study.at_most(f"{quantity}, truncated", table["truncated"][3], 100, "bounded noise")
    study.metrics |= {f"{function} sigma {name}: rate of success": row[0] for name, row in table.items()}
    study.metrics |= {f"{function} sigma {name}: spread": row[3] for name, row in table.items()}


def _descent(study, key, n=20_000, alpha=2.0, copies=50):
    """Consensus points of Gaussian swarms against the closed form."""
    mean, hessian = jnp.asarray([0.8, -0.5, 0.3]), jnp.diag(jnp.asarray([1.0, 0.4, 2.0]))
    root = jnp.asarray([[0.6, 0.0, 0.0], [0.2, 0.5, 0.0], [0.0, -0.1, 0.4]])

    def point(key):
        x = mean[None, :] + jax.random.normal(key, (n, 3)) @ root.T
        return particles.consensus_point(x, 0.5 * jnp.einsum("ni,ij,nj->n", x, hessian, x), alpha)

    points = mean_and_error(jax.lax.map(point, jax.random.split(key, copies)))
    z = points.z(np.asarray(particles.consensus_point_gaussian(mean, root @ root.T, hessian, alpha)))
    study.at_most("consensus point of a Gaussian swarm: largest |z|", np.max(np.abs(z)), 5, "the implicit step")


def plot(result):
    """Rates of success with their intervals, and the spread of the swarm, over the diffusion."""
    sigma = result.data.sigma
    figure, (success, spread) = draw.panels(1, 2, width=4.5)
    for i, (function, table) in enumerate(result.data.tables.items()):
        rate, low, high, left = table.T
        bars = np.maximum([rate - low, high - rate], 0)[:, :-1]
        draw.measured(success, sigma, rate[:-1], bars, sigmas=1.0, fmt="o-", color=f"C{i}", label=function)
        spread.plot(sigma, left[:-1], "o-", color=f"C{i}", ms=4)
        spread.plot(sigma[-1:], left[-1:], "x", color=f"C{i}")
    for axis in (success, spread):
        axis.axvline(2**0.5, color="0.5", lw=1, ls="--")
    x = r"$\sigma$, dashed the mean-square line"
    draw.label(success, "consensus point within the radius", x, "rate of success", log="x")
    draw.label(spread, "crosses: truncated noise", x, "spread / that of the start", log="xy")
    return figure
