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

import jax
import jax.numpy as jnp
import numpy as np

from physml import particles
from physml.particles import Game, Histogram, Players
from physml.particles.kernels.game import AbstractPlay
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment

INFO = RecipeInfo(
    paper="Kim et al., Symmetric mean-field Langevin dynamics (2024); Lu, Two-scale gradient descent ascent (2023)",
    claim="three dynamics reach the mixed equilibrium of a Gaussian and of a nonconvex game",
    time="1 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
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


PAPER = Config()
SMOKE = Config(particles=200, moves=250, step_size=0.05, slots=4, grid=81, variance_tolerance=0.2, exploit_left=0.15)

SABOTAGE = Sabotage(
    "on two time scales the noise of the fast player does not know of its speed", AbstractPlay, "_langevin",
    lambda exact: lambda self, at, drift, xi, ratio=1.0: exact(self, at, drift, Players(xi.x, xi.y / ratio**0.5), ratio),
)  # fmt: skip


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


@experiment
def run(study, config, key):
    x_key, y_key, run_key = jax.random.split(key, 3)
    cloud = lambda key, centre: centre + 0.3 * jax.random.normal(key, (config.particles, 1))
    start = Players(cloud(x_key, 1.5), cloud(y_key, -1.0))
    games = {"Gaussian": gaussian_game(config), "nonconvex": nonconvex_game(config)}
    study.keep(equilibria={}, means={}, laws={})
    for g, (title, game) in enumerate(study.each(games.items(), "game")):
        _play(study, config, title, game, start, [jax.random.fold_in(run_key, 10 * g + i) for i in range(4)])
    initial = study.metrics["nonconvex start"]
    study.at_least("nonconvex: exploitability of the start", initial, 0.3, "far from equilibrium")


def _play(study, config, title, game, start, keys):
    """One game with every kernel."""
    edges = np.linspace(-3.5, 3.5, config.grid + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    grid = jnp.asarray(middles[:, None], jnp.float32)

    def laws(x, y):
        """The laws of both players on the grid, all particles and moves together."""
        counts = [np.histogram(np.clip(z, edges[0], edges[-1]), edges)[0] for z in (x, y)]
        return [Histogram(jnp.asarray(c / c.sum(), jnp.float32), grid) for c in counts]

    equilibrium = particles.gibbs_equilibrium(game, grid, grid).check()
    initial = float(particles.exploitability(game, *laws(start.x, start.y)))
    at_equilibrium = particles.exploitability(game, *equilibrium)
    study.metrics |= {f"{title} start": initial, f"{title} equilibrium": at_equilibrium}
    study.keep(grid=middles)
    study.data.equilibria[title] = equilibrium
    for key, (name, kernel) in zip(keys, _kernels(config, game).items(), strict=True):
        # A best response moves as often as four times its gradients allow.
        moves = 4 * (config.moves // config.inner) if name == "best response" else config.moves
        out = particles.run(kernel, start, moves, key=key, stats=False).check()
        later = jax.tree.map(lambda s, m=moves: np.asarray(s[m // 2 :]), out.samples)
        found = laws(later.x, later.y)
        left = float(particles.exploitability(game, *found))
        study.metrics[f"{title} {name}"] = left
        quantity = f"{title}, {name}: exploitability over that of the start"
        study.at_most(quantity, left / initial, config.exploit_left, "0 at the equilibrium")
        if title == "Gaussian":
            _variances(study, config, name, later)
        study.data.means[title, name] = jax.tree.map(lambda s: np.asarray(s).mean((1, 2)), out.samples)
        study.data.laws[title, name] = found


def _variances(study, config, name, later):
    """Deviations from the players' mean follow a discrete Ornstein-Uhlenbeck process."""
    for player, samples, k in (("x", later.x, config.a), ("y", later.y, config.c)):
        h = config.step_size * (config.ratio if name == "two scales" and player == "y" else 1)
        exact = config.temperature / (k * (1 - k * h / 2)) * (1 - 1 / config.particles)
        off = abs(float(np.mean(np.var(samples, axis=1))) / exact - 1)
        quantity = f"Gaussian, {name}: variance of {player}, relative error"
        study.at_most(quantity, off, config.variance_tolerance, "T / (k (1 - k h / 2))")


def plot(result):
    """Means of the players, and the laws they settle in beside the equilibrium."""
    d = result.data
    figure, axes = draw.panels(2, 3, width=4.0, height=3.2)
    for row, (title, equilibrium) in zip(axes, d.equilibria.items(), strict=True):
        names = [name for game, name in d.means if game == title]
        for i, name in enumerate(names):
            row[0].plot(*d.means[title, name], color=f"C{i}", lw=0.8, label=name)
            for axis, law in zip(row[1:], d.laws[title, name], strict=True):
                axis.plot(d.grid, law.p, color=f"C{i}", lw=1)
        draw.label(row[0], f"{title}: paths of the means", "mean of x", "mean of y")
        for axis, law, player, x in zip(row[1:], equilibrium, ("mu", "nu"), "xy", strict=True):
            draw.theory(axis, d.grid, law.p, "k--")
            draw.label(axis, rf"{title}: $\{player}$, dashed the equilibrium", x, "probability of a cell")
    return figure
