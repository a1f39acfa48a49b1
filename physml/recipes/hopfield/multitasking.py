r"""Parallel learning with diluted patterns: one state that serves several patterns, in a hierarchy or as equals.

An entry of a pattern is blank with probability d. Spins that the strongest pattern leaves free serve the next,

$$m_\mu = \Bigl\langle\xi^\mu\tanh\beta\sum_\nu\xi^\nu m_\nu\Bigr\rangle,$$

at T = 0 in the hierarchy $m_k = (1-d)d^{k-1}$ while $1 - d > d(1 - d^{K-1})$. Order begins at $T_c = 1 - d$, with
patterns, with a teacher's mean examples, and with the bare examples of a network without teacher, if its energy is
scaled by 1 + rho, $\rho = (1 - r^2)/(Mr^2)$. All three are simulated at one large size beside the theory.

**See** Agliari, Alessandrelli, Barra and Ricci-Tersenghi, Parallel learning by multitasking neural networks, J. Stat.
Mech. (2023).
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np

from physml.hopfield import Dense, dilute, examples, glauber, random_patterns
from physml.hopfield.theory import multitasking
from physml.hopfield.theory.data_sets import entropy
from physml.metrics import mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Agliari, Alessandrelli, Barra and Ricci-Tersenghi, Parallel learning by multitasking neural networks (2023)",
    claim="the hierarchy of overlaps and its end, T_c = 1 - d with patterns and examples, Monte Carlo beside the theory",
    time="30 s, smoke 6 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Three patterns; dilution, temperature, and the simulated networks."""

    blank: float = setting(0.4, below=0.5)
    temperature: float = 0.05  # where the third overlap does not change its sign in a run
    size: int = 2000
    networks: int = setting(12, least=4.0)
    replicas: int = 16
    sweeps: int = 60  # of which the first third is left out
    quality: float = 0.8  # noisier examples let some networks leave the hierarchy
    count: int = 20
    points: int = setting(40, least=0.0)  # of the curves; 0 leaves them out

    def rules(self):
        return ((self.sweeps % 3 == 0, "sweeps divisible by 3"),)


PAPER = Config()
SMOKE = Config(size=600, networks=6, sweeps=30, points=0)
WAYS = ("patterns", "supervised", "unsupervised")

SABOTAGE = (
    Sabotage(
        "patterns a fifth more blank than the theory's", sys.modules[__name__], "dilute",
        lambda exact: lambda xi, blank, **options: exact(xi, 1.2 * blank, **options),
    ),
    Sabotage(
        "energies of a tenth of the strength", sys.modules[__name__], "_energy",
        lambda exact: lambda *a: (lambda energy: dataclasses.replace(energy, strength=0.1 * energy.strength))(exact(*a)),
    ),
)  # fmt: skip


@experiment
def run(study, config, key):
    for part in study.each(("theory", *WAYS), "part"):
        if part == "theory":
            _theory(study, config)
        else:
            _monte_carlo(study, config, part, key)


def _theory(study, config):
    """Overlaps at T = 0, the transition, and the curves."""
    with jax.enable_x64(True):
        d = config.blank
        for i, m in enumerate(multitasking(3, d, 0.0).check().m):
            study.near(f"m_{i + 1} at T = 0", m, (1 - d) * d**i, "(1 - d) d^(k-1)", atol=1e-9)
        for rho in (0.0, 0.3):
            # The eigenvalue of the map at n = 0 is 1 at the transition; it is measured on the disordered side.
            warm = float(multitasking(3, d, 1.2 * (1 - d), rho=rho).check().stability)
            study.near(f"T_c by the eigenvalue, rho = {rho}", 1.2 * (1 - d) * warm, 1 - d, "1 - d", atol=1e-6)
        study.keep(curves=_curves(study, config) if config.points else None)


def _curves(study, config):
    """Overlaps over the dilution at T = 0, and over the temperature."""
    # The hierarchy ends where the first pattern no longer outvotes the others together, d^3 - 2 d + 1 = 0.
    half = config.points // 2
    ds = np.append(np.linspace(0.02, 0.6, half), np.linspace(0.605, 0.95, half))
    ms = np.asarray(jax.vmap(lambda d: multitasking(3, d, 0.0).m)(jnp.asarray(ds)))
    hierarchy = (1 - ds)[:, None] * ds[:, None] ** np.arange(3)
    off = np.max(np.abs(ms - hierarchy), 1)
    step = ds[-1] - ds[-2]
    end = ds[np.argmax(off > 1e-3)] - step / 2
    study.near("d where the hierarchy ends, K = 3", end, (5**0.5 - 1) / 2, "1 - d = d - d^3", atol=step)
    ts = np.linspace(0.01, 0.75, config.points)
    over = np.asarray(jax.vmap(lambda t: multitasking(3, config.blank, t).m)(jnp.asarray(ts)))
    return ds, ms, hierarchy, ts, over


def _overlaps(xi, spins):
    """Overlaps with the patterns, averaged over replicas, (3,)."""
    return jnp.mean(spins @ xi.T, 0) / xi.shape[1]


def _energy(config, way, xi, key):
    """Blank entries stay blank in the examples."""
    if way == "patterns":
        return Dense(xi)
    noisy = examples(xi, config.count, quality=config.quality, key=key)
    rho = entropy(config.quality, config.count)
    if way == "supervised":
        return Dense(jnp.mean(noisy, 0) / (config.quality * (1 + rho) ** 0.5))
    return Dense(noisy.reshape(-1, xi.shape[1]), strength=1 / (config.count * config.quality**2 * (1 + rho)))


def _monte_carlo(study, config, way, key):
    """Overlaps of simulated networks beside the theory."""
    rows = []
    for i in range(config.networks):
        keys = jax.random.split(jax.random.fold_in(key, 10 * i + WAYS.index(way)), 4)
        xi = dilute(random_patterns(3, config.size, key=keys[0]), config.blank, key=keys[1])
        # Each spin starts along the first pattern that is not blank there.
        start = jnp.sign(xi[0] + 0.5 * xi[1] + 0.25 * xi[2] + 0.1)
        out = glauber(
            _energy(config, way, xi, keys[2]), jnp.broadcast_to(start[None, :], (config.replicas, config.size)),
            config.sweeps, temperature=config.temperature, key=keys[3], observe=jax.tree_util.Partial(_overlaps, xi),
        )  # fmt: skip
        rows.append(np.asarray(out.observed[config.sweeps // 3 :]).mean(0))
    found = mean_and_error(rows)
    rho = 0.0 if way == "patterns" else entropy(config.quality, config.count)
    theory = np.asarray(multitasking(3, config.blank, config.temperature, rho=rho).check().m)
    z = np.max(np.abs(found.z(theory)))
    study.at_most(f"{way}: largest distance of an overlap, in standard errors", z, 5, "simulation and theory")
    study.keep(**{way: (found, theory)})


def plot(result):
    """Overlaps over the dilution and over T, and the simulated ones beside the theory."""
    d = result.data
    figure, axes = draw.panels(1, 3 if d.curves else 1, squeeze=False)
    *curves, simulated = axes.flat
    if d.curves:
        over_d, over_t = curves
        ds, ms, hierarchy, ts, warm = d.curves
        for k in range(3):
            draw.theory(over_d, ds, ms[:, k], f"C{k}", label=f"$m_{k + 1}$")
            draw.theory(over_d, ds, hierarchy[:, k], f"C{k}:", lw=1)
            draw.theory(over_t, ts, warm[:, k], f"C{k}")
        over_d.axvline((5**0.5 - 1) / 2, color="k", lw=0.6)
        draw.label(over_d, "T = 0; dotted: hierarchy", "dilution d", "overlap")
        draw.label(over_t, "d = 0.4, order below 1 - d", "T", "overlap")
    for i, way in enumerate(WAYS):
        found, theory = getattr(d, way)
        x = np.arange(1, 4) + 0.15 * (i - 1)
        draw.measured(simulated, x, *found, sigmas=5.0, color=f"C{i}", capsize=2, label=way)
        simulated.plot(x, theory, "k_", ms=12)
    draw.label(simulated, "simulated, five standard errors; bars: theory", "pattern", "overlap", xticks=[1, 2, 3])
    return figure
