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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml import particles
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.recipes._result import Claim, Info, Result, at_least, at_most

INFO = Info(
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
class Config:
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
    functions: tuple[str, ...] = tuple(FUNCTIONS)
    # the bounds of the claims
    success: float = 0.9  # lower end of the interval, at the best diffusion beyond the line
    contracted: float = 1e-2  # of the spread of the start, on the stable side

    def __post_init__(self):
        if min(self.dim, self.particles, self.runs, self.moves) < 1 or self.step_size <= 0 or self.radius <= 0:
            raise ValueError(f"sizes, the step and the radius must be positive, got {self}")
        if unknown := set(self.functions) - set(FUNCTIONS):
            raise ValueError(f"config.functions must be among {', '.join(FUNCTIONS)}; got {', '.join(unknown)}")


PAPER = Config()
SMOKE = Config(
    dim=5, runs=20, moves=1000, particles=60, functions=("Ackley",), diffusions=(0.7, 5.0, 12.0), success=0.7,
    contracted=0.1,
)  # fmt: skip


def wilson(successes: int, runs: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a rate."""
    rate = successes / runs
    centre = (rate + z**2 / (2 * runs)) / (1 + z**2 / runs)
    half = z / (1 + z**2 / runs) * math.sqrt(rate * (1 - rate) / runs + z**2 / (4 * runs**2))
    return centre - half, centre + half


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Optimise every function at every diffusion."""
    claims: list[Claim] = []
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {"diffusions": np.asarray(config.diffusions)}
    start_key, run_key, swarm_key = jax.random.split(key, 3)
    shape = (config.runs, config.particles, config.dim)
    x0 = 1.0 + config.spread * jax.random.uniform(start_key, shape, minval=-1.0, maxval=1.0)
    begin = config.spread / math.sqrt(3)
    kernels = {f"{s:g}": _kernel(config, s) for s in config.diffusions}
    kernels["truncated"] = _kernel(config, max(config.diffusions), config.truncation)
    rates = {name: float(particles.mean_square_rate(kernel(rastrigin), config.dim)) for name, kernel in kernels.items()}
    stable = [name for name in kernels if rates[name] < 1]
    with progress_bar(len(config.functions) * len(kernels), "consensus", "run", show=progress) as bar:
        for function in config.functions:
            rows = {}
            for i, (name, kernel) in enumerate(kernels.items()):
                out = particles.run_chains(
                    kernel(FUNCTIONS[function]), x0, config.moves, key=jax.random.fold_in(run_key, i),
                    thin=config.moves, keep=False, stats=False,
                )  # fmt: skip
                point, x = np.asarray(out.state.consensus), np.asarray(out.state.position, np.float64)
                hits = int(np.sum(np.max(np.abs(point), axis=1) < config.radius))
                spread = float(np.sqrt(np.mean(np.var(x, axis=1))))
                rows[name] = (hits / config.runs, *wilson(hits, config.runs), spread / begin)
                bar.update()
            table = np.asarray(list(rows.values()))
            arrays[function] = table
            best = int(np.argmax(table[: len(config.diffusions), 1]))
            sigma = config.diffusions[best]
            claims += [
                at_least(
                    f"{function}: rate of success at sigma = {sigma:g}, lower end of its interval", table[best, 1],
                    config.success, f"{config.runs} runs",
                ),
                at_least(f"{function}: mean-square rate at that sigma", rates[f"{sigma:g}"], 1, "beyond the line"),
            ]  # fmt: skip
            for name in stable:
                claims.append(
                    at_most(
                        f"{function}: spread left at sigma = {name}", rows[name][3], config.contracted, "stable side"
                    )
                )
            wild = f"{max(config.diffusions):g}"
            claims += [
                at_least(f"{function}: spread at sigma = {wild}", rows[wild][3], 100, "moments grow beyond the line"),
                at_most(f"{function}: spread at sigma = {wild}, truncated", rows["truncated"][3], 100, "bounded noise"),
            ]  # fmt: skip
            metrics |= {f"{function} sigma {name}: rate of success": row[0] for name, row in rows.items()}
            metrics |= {f"{function} sigma {name}: spread": row[3] for name, row in rows.items()}
    claims.append(
        at_most("consensus point of a Gaussian swarm: largest |z|", _descent(swarm_key), 5, "the implicit step")
    )
    metrics |= {f"sigma {name}: mean-square rate": rate for name, rate in rates.items()}
    return Result(tuple(claims), metrics, arrays)


def _kernel(config, sigma, truncation=float("inf")):
    return lambda f: particles.consensus(
        f, config.step_size, config.alpha, diffusion=sigma, truncation=truncation, memory=0.0
    )


def _descent(key, n=20_000, alpha=2.0, copies=50):
    """Consensus points of Gaussian swarms against the closed form, as the largest z over coordinates."""
    mean, hessian = jnp.asarray([0.8, -0.5, 0.3]), jnp.diag(jnp.asarray([1.0, 0.4, 2.0]))
    root = jnp.asarray([[0.6, 0.0, 0.0], [0.2, 0.5, 0.0], [0.0, -0.1, 0.4]])

    def point(key):
        x = mean[None, :] + jax.random.normal(key, (n, 3)) @ root.T
        return particles.consensus_point(x, 0.5 * jnp.einsum("ni,ij,nj->n", x, hessian, x), alpha)

    points = np.asarray(jax.lax.map(point, jax.random.split(key, copies)), np.float64)
    exact = np.asarray(particles.consensus_point_gaussian(mean, root @ root.T, hessian, alpha))
    return np.max(np.abs(points.mean(0) - exact) / (points.std(0, ddof=1) / np.sqrt(copies)))


def plot(result: Result) -> Any:
    """Rates of success with their intervals, and the spread of the swarm, over the diffusion."""
    import matplotlib.pyplot as plt

    sigma = result.arrays["diffusions"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for i, function in enumerate(f for f in FUNCTIONS if f in result.arrays):
        table = result.arrays[function][: len(sigma)]
        bars = np.stack([table[:, 0] - table[:, 1], table[:, 2] - table[:, 0]])
        axes[0].errorbar(sigma, table[:, 0], np.maximum(bars, 0), fmt="o-", color=f"C{i}", ms=4, label=function)
        axes[1].semilogy(sigma, table[:, 3], "o-", color=f"C{i}", ms=4)
        axes[1].semilogy(sigma[-1:], result.arrays[function][-1:, 3], "x", color=f"C{i}")
    for axis in axes:
        axis.axvline(2**0.5, color="0.5", lw=1, ls="--")
        axis.set(xlabel=r"$\sigma$, dashed the mean-square line", xscale="log")
    axes[0].set(ylabel="rate of success", title="consensus point within the radius")
    axes[1].set(ylabel="spread / that of the start", title="crosses: truncated noise")
    axes[0].legend(fontsize=8)
    return figure
