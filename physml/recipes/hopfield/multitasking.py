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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.hopfield.spins.glauber import Dense, glauber
from physml.hopfield.spins.patterns import dilute, examples, random_patterns
from physml.hopfield.theory._multitasking import multitasking
from physml.hopfield.theory.data_sets import entropy
from physml.recipes._result import Info, Result, at_most, close_to

INFO = Info(
    paper="Agliari, Alessandrelli, Barra and Ricci-Tersenghi, Parallel learning by multitasking neural networks (2023)",
    claim="the hierarchy of overlaps and its end, T_c = 1 - d with patterns and examples, Monte Carlo beside the theory",
    time="30 s, smoke 6 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Three patterns; dilution, temperature, and the simulated networks."""

    blank: float = 0.4
    temperature: float = 0.05  # where the third overlap does not change its sign in a run
    size: int = 2000
    networks: int = 12
    replicas: int = 16
    sweeps: int = 60  # of which the first third is left out
    quality: float = 0.8  # noisier examples let some networks leave the hierarchy
    count: int = 20
    points: int = 40  # of the curves; 0 leaves them out

    def __post_init__(self):
        if self.networks < 4 or self.sweeps % 3 or not 0 < self.blank < 0.5:
            raise ValueError(f"four networks, sweeps divisible by 3 and blank in (0, .5) are needed, got {self}")


PAPER = Config()
SMOKE = Config(size=600, networks=6, sweeps=30, points=0)
WAYS = ("patterns", "supervised", "unsupervised")


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """`key` is that of the patterns, the examples and the dynamics."""
    claims: list = []
    arrays: dict[str, np.ndarray] = {}
    with progress_bar(len(WAYS) + 1, "multitasking", "part", show=progress) as bar:
        with jax.enable_x64(True):
            arrays |= _theory(config, claims)
        bar.update()
        for way in WAYS:
            arrays |= _monte_carlo(config, way, claims, key)
            bar.update()
    return Result(tuple(claims), {c.quantity: c.value for c in claims}, arrays)


def _theory(config, claims):
    d = config.blank
    for i, m in enumerate(multitasking(3, d, 0.0).check().m):
        claims.append(close_to(f"m_{i + 1} at T = 0", m, (1 - d) * d**i, 1e-9, "(1 - d) d^(k-1)"))
    for rho in (0.0, 0.3):
        # The eigenvalue of the map at n = 0 is 1 at the transition; it is measured on the disordered side.
        warm = float(multitasking(3, d, 1.2 * (1 - d), rho=rho).check().stability)
        claims.append(close_to(f"T_c by the eigenvalue, rho = {rho}", 1.2 * (1 - d) * warm, 1 - d, 1e-6, "1 - d"))
    if not config.points:
        return {}
    # The hierarchy ends where the first pattern no longer outvotes the others together, d^3 - 2 d + 1 = 0.
    ds = np.append(np.linspace(0.02, 0.6, config.points // 2), np.linspace(0.605, 0.95, config.points // 2))
    ms = np.asarray(jax.vmap(lambda d: multitasking(3, d, 0.0).m)(jnp.asarray(ds)))
    off = np.max(np.abs(ms - (1 - ds)[:, None] * ds[:, None] ** np.arange(3)), 1)
    step = ds[-1] - ds[-2]
    end = ds[np.argmax(off > 1e-3)] - step / 2
    golden = (5**0.5 - 1) / 2
    claims.append(close_to("d where the hierarchy ends, K = 3", end, golden, step, "1 - d = d - d^3"))
    ts = np.linspace(0.01, 0.75, config.points)
    over = np.asarray(jax.vmap(lambda t: multitasking(3, d, t).m)(jnp.asarray(ts)))
    return {"d": ds, "m over d": ms, "T": ts, "m over T": over}


def _overlaps(xi, spins):
    """Overlaps with the patterns, averaged over replicas, (3,)."""
    return jnp.mean(xi @ spins, 1) / xi.shape[1]


def _energy(config, way, xi, key):
    """Blank entries stay blank in the examples."""
    if way == "patterns":
        return Dense(xi)
    noisy = examples(xi, config.count, quality=config.quality, key=key)
    rho = entropy(config.quality, config.count)
    if way == "supervised":
        return Dense(jnp.mean(noisy, 0) / (config.quality * (1 + rho) ** 0.5))
    return Dense(noisy.reshape(-1, xi.shape[1]), strength=1 / (config.count * config.quality**2 * (1 + rho)))


def _monte_carlo(config, way, claims, key):
    rows = []
    for i in range(config.networks):
        keys = jax.random.split(jax.random.fold_in(key, 10 * i + WAYS.index(way)), 4)
        xi = dilute(random_patterns(3, config.size, key=keys[0]), config.blank, key=keys[1])
        # Each spin starts along the first pattern that is not blank there.
        start = jnp.sign(xi[0] + 0.5 * xi[1] + 0.25 * xi[2] + 0.1)
        out = glauber(
            _energy(config, way, xi, keys[2]), jnp.broadcast_to(start[:, None], (config.size, config.replicas)),
            config.sweeps, temperature=config.temperature, key=keys[3], observe=jax.tree_util.Partial(_overlaps, xi),
        )  # fmt: skip
        rows.append(np.asarray(out.observed[config.sweeps // 3 :]).mean(0))
    rows = np.asarray(rows)
    mean, error = rows.mean(0), rows.std(0, ddof=1) / config.networks**0.5
    rho = 0.0 if way == "patterns" else entropy(config.quality, config.count)
    theory = np.asarray(multitasking(3, config.blank, config.temperature, rho=rho).check().m)
    z = np.max(np.abs(mean - theory) / error)
    claims.append(at_most(f"{way}: largest distance of an overlap, in standard errors", z, 5, "simulation and theory"))
    return {f"mean {way}": mean, f"error {way}": error, f"theory {way}": theory}


def plot(result: Result) -> Any:
    """Overlaps over the dilution and over T, and the simulated ones beside the theory."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    if "d" in a:
        for k in range(3):
            axes[0].plot(a["d"], a["m over d"][:, k], f"C{k}", label=f"$m_{k + 1}$")
            axes[0].plot(a["d"], (1 - a["d"]) * a["d"] ** k, f"C{k}:", lw=1)
            axes[1].plot(a["T"], a["m over T"][:, k], f"C{k}", label=f"$m_{k + 1}$")
        axes[0].axvline((5**0.5 - 1) / 2, color="k", lw=0.6)
        axes[0].set(xlabel="dilution d", ylabel="overlap", title="T = 0; dotted: hierarchy")
        axes[1].set(xlabel="T", ylabel="overlap", title="d = 0.4, order below 1 - d")
        axes[0].legend(fontsize=8)
    for i, way in enumerate(WAYS):
        x = np.arange(1, 4) + 0.15 * (i - 1)
        axes[2].errorbar(x, a[f"mean {way}"], 5 * a[f"error {way}"], fmt=f"C{i}o", ms=4, capsize=2, label=way)
        axes[2].plot(x, a[f"theory {way}"], "k_", ms=12)
    axes[2].set(
        xlabel="pattern", ylabel="overlap", title="simulated, five standard errors; bars: theory", xticks=[1, 2, 3]
    )
    axes[2].legend(fontsize=8)
    return figure
