r"""Games between laws: three particle dynamics on games whose mixed equilibrium is known.

$$\min_\mu \max_\nu\ \int\!\!\int \ell(x, y)\,\mu(dx)\,\nu(dy) + T\,\mathrm{KL}(\mu | e^{-r_x}) - T\,\mathrm{KL}(\nu | e^{-r_y})$$

1. *Gaussian*: $\ell = x^\top B y$ with quadratic confinements $a|x|^2/2$ and $c|y|^2/2$: the equilibrium is
   $N(0, T/a) \otimes N(0, T/c)$.
2. *Nonconvex*: a payoff on the line with no pure equilibrium; the mixed one from the Gibbs iteration on a grid.

Descent-ascent, descent-ascent on two time scales, averaged gradients (MFL-AG) and anchored best responses (MFL-ABR) start
far away. Reported: the distance to equilibrium, and Nikaido and Isoda's exploitability of the time-averaged laws, which is
zero at the equilibrium alone. The exploitability of the starting laws says what they began with.

**See** Kim, Yamamoto, Oko, Yang and Suzuki, Symmetric mean-field Langevin dynamics for distributional minimax problems
(2024); Lu, Two-scale gradient descent ascent dynamics finds mixed Nash equilibria of continuous games (2023).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml import particles
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.particles import Game, Histogram, Players
from physml.recipes._result import Info, Result, at_least, at_most

INFO = Info(
    paper="Kim et al., Symmetric mean-field Langevin dynamics (2024); Lu, Two-scale gradient descent ascent (2023)",
    claim="three dynamics reach the mixed equilibrium of a Gaussian and of a nonconvex game",
    time="1 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    particles: int = 1000
    moves: int = 1500
    step_size: float = 0.02
    ratio: float = 4.0  # of the speeds on two time scales
    slots: int = 12
    inner: int = 10
    rate: float = 0.1
    temperature: float = 0.3
    a: float = 1.0
    c: float = 1.5
    coupling: float = 1.2
    grid: int = 161
    # the bounds of the claims
    variance_tolerance: float = 0.06  # relative, beyond the exact effect of the step
    exploit_left: float = 0.02  # of the exploitability of the start

    def __post_init__(self):
        if min(self.particles, self.moves, self.slots, self.inner, self.grid) < 1 or self.step_size <= 0:
            raise ValueError(f"sizes and the step must be positive, got {self}")


PAPER = Config()
SMOKE = Config(particles=200, moves=250, step_size=0.05, slots=4, grid=81, variance_tolerance=0.2, exploit_left=0.15)


def _kernels(config, game):
    h = config.step_size
    return {
        "descent-ascent": particles.descent_ascent(game, h),
        "two scales": particles.descent_ascent(game, h, config.ratio),
        "averaged gradient": particles.averaged_gradient(game, h, slots=config.slots),
        "best response": particles.anchored_best_response(game, h, config.rate, config.inner),
    }


def gaussian_game(config: Config) -> Game:
    """x B y between quadratic confinements."""
    T = config.temperature
    quadratic = lambda k: lambda z: 0.5 * k * jnp.sum(z**2) / T
    payoff = lambda mu, nu: config.coupling * jnp.sum(mu.mean * nu.mean)
    return Game(payoff, quadratic(config.a), quadratic(config.c), T)


def nonconvex_game(config: Config) -> Game:
    r"""$\ell = \cos(2x - 3y) + xy/2$ with weak confinement: neither player has a best point."""
    T = config.temperature

    def payoff(mu, nu):
        cos = lambda m, k: m.expect(lambda z: jnp.sum(jnp.cos(k * z)))
        sin = lambda m, k: m.expect(lambda z: jnp.sum(jnp.sin(k * z)))
        waves = cos(mu, 2.0) * cos(nu, 3.0) + sin(mu, 2.0) * sin(nu, 3.0)
        return waves + 0.5 * jnp.sum(mu.mean * nu.mean)

    confine = lambda z: 0.15 * jnp.sum(z**4) / T
    return Game(payoff, confine, confine, T)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Play both games with every kernel."""
    claims: list = []
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    edges = np.linspace(-3.5, 3.5, config.grid + 1)
    grid = jnp.asarray((edges[1:] + edges[:-1])[:, None] / 2, jnp.float32)
    arrays["grid"] = np.asarray(grid[:, 0])
    x_key, y_key, run_key = jax.random.split(key, 3)
    n = config.particles
    start = Players(1.5 + 0.3 * jax.random.normal(x_key, (n, 1)), -1.0 + 0.3 * jax.random.normal(y_key, (n, 1)))
    with progress_bar(8, "games", "play", show=progress) as bar:
        for g, (title, game) in enumerate((("Gaussian", gaussian_game(config)), ("nonconvex", nonconvex_game(config)))):
            mu, nu = particles.gibbs_equilibrium(game, grid, grid)
            arrays |= {f"{title} mu": np.asarray(mu.p), f"{title} nu": np.asarray(nu.p)}
            initial = _exploit(game, grid, edges, start.x[None], start.y[None])
            at_equilibrium = float(particles.exploitability(game, mu, nu))
            metrics |= {f"{title} start": initial, f"{title} equilibrium": at_equilibrium}
            for i, (name, kernel) in enumerate(_kernels(config, game).items()):
                moves = (
                    config.moves
                    // (config.inner if name == "best response" else 1)
                    * (4 if name == "best response" else 1)
                )
                out = particles.run(
                    kernel, start, moves, key=jax.random.fold_in(run_key, 10 * g + i), stats=False
                ).check()
                later = jax.tree.map(lambda s, m=moves: np.asarray(s[m // 2 :]), out.samples)
                left = _exploit(game, grid, edges, later.x, later.y)
                metrics[f"{title} {name}"] = left
                claims.append(
                    at_most(
                        f"{title}, {name}: exploitability over that of the start", left / initial,
                        config.exploit_left, "0 at the equilibrium",
                    )
                )  # fmt: skip
                if title == "Gaussian":
                    for player, samples, k in (("x", later.x, config.a), ("y", later.y, config.c)):
                        h = config.step_size * (config.ratio if name == "two scales" and player == "y" else 1)
                        # Deviations from the players' mean follow a discrete Ornstein-Uhlenbeck process.
                        exact = config.temperature / (k * (1 - k * h / 2)) * (1 - 1 / n)
                        value = float(np.mean(np.var(samples, axis=1)))
                        claims.append(
                            at_most(
                                f"{title}, {name}: variance of {player}, relative error", abs(value / exact - 1),
                                config.variance_tolerance, "T / (k (1 - k h / 2))",
                            )
                        )  # fmt: skip
                trace = jax.tree.map(lambda s: np.asarray(s).mean((1, 2)), out.samples)
                arrays |= {f"{title} {name} mean x": trace.x, f"{title} {name} mean y": trace.y}
                arrays |= {
                    f"{title} {name} mu": _histogram(later.x, edges),
                    f"{title} {name} nu": _histogram(later.y, edges),
                }
                bar.update()
    claims.append(
        at_least("nonconvex: exploitability of the start", metrics["nonconvex start"], 0.3, "far from equilibrium")
    )
    return Result(tuple(claims), metrics, arrays)


def _histogram(samples, edges):
    counts, _ = np.histogram(np.clip(samples, edges[0], edges[-1]), edges)
    return counts / counts.sum()


def _exploit(game, grid, edges, xs, ys):
    """Exploitability of the laws averaged over particles and moves, on the grid."""
    laws = [Histogram(jnp.asarray(_histogram(np.asarray(s), edges), jnp.float32), grid) for s in (xs, ys)]
    return float(particles.exploitability(game, *laws))


def plot(result: Result) -> Any:
    """Means of the players, and the laws they settle in beside the equilibrium."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
    names = ("descent-ascent", "two scales", "averaged gradient", "best response")
    for row, title in zip(axes, ("Gaussian", "nonconvex"), strict=True):
        for i, name in enumerate(names):
            row[0].plot(a[f"{title} {name} mean x"], a[f"{title} {name} mean y"], color=f"C{i}", lw=0.8, label=name)
            for axis, player in ((row[1], "mu"), (row[2], "nu")):
                axis.plot(a["grid"], a[f"{title} {name} {player}"], color=f"C{i}", lw=1)
        for axis, player in ((row[1], "mu"), (row[2], "nu")):
            axis.plot(a["grid"], a[f"{title} {player}"], "k--", lw=1.5)
            axis.set(title=rf"{title}: $\{player}$, dashed the equilibrium", xlabel="x" if player == "mu" else "y")
        row[0].set(xlabel="mean of x", ylabel="mean of y", title=f"{title}: paths of the means")
        row[0].legend(fontsize=7)
    return figure
