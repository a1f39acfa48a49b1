r"""The phase of a spin glass read off one configuration: the fields on its spins, and nothing else.

Couplings of mean $J_0/N$ and variance $1/N$. In one equilibrium configuration the fields $h_i = \sum_jJ_{ij}s_j$
have over the sites a law that theory knows (`physml.hopfield.theory.spin_glass`). In the paramagnet its variance is
$1 + \beta^2$, which keeps growing as the temperature falls; in the glass, where the law of the cavity fields is that of
Parisi's solution, it stops near 2.9; a mean tells of magnetisation. (mean, variance) thus maps onto (T, J_0).

1. Parisi's solution: its ground-state energy, the exact mean overlap 1 - T, two independent energies.
2. Annealed by Glauber dynamics, single configurations scatter around the theory, with one over the root of N,
   and the whole histogram of fields is the predicted one.
3. Theory and Bayes' rule name the phase of a configuration, with no training: every point of the diagram as likely as
   any other, mean and variance with the errors of N independent numbers, doubled. A nearest-neighbour classifier trained
   on other samples is a few in a hundred better. Both err next to the lines of transition, within some $N^{-1/3}$.

**See** arXiv:2411.04567 (2024) on detection from a single replica; Sherrington and Kirkpatrick (1978); Parisi (1980).
"""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.hopfield.spins.glauber import Pairwise, glauber
from physml.hopfield.theory import SpinGlassPhase, parisi, sherrington_kirkpatrick
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Single-replica spin-glass detection (2024); Sherrington and Kirkpatrick (1978)",
    claim="local fields of one configuration: mean, variance and histogram as predicted, phases named from them",
    time="3 min, smoke 25 s",
)
PHASES = tuple(phase.name for phase in SpinGlassPhase)


@dataclasses.dataclass(frozen=True)
class Config:
    """Samples, temperatures, and what the claims ask for."""

    spins: int = 768
    samples: int = 16  # of the couplings; half of them train the classifier
    means: tuple[float, ...] = (0.0, 0.4, 0.8, 1.2, 1.4, 1.6, 2.0)
    hottest: float = 2.2
    coldest: float = 0.3
    temperatures: int = 14
    sweeps: int = 150  # at every temperature
    shown: tuple[float, float] = (0.3, 0.0)  # (T, J_0) of the histogram
    # the bounds of the claims
    deviation: float = 0.04
    histogram: float = 0.02  # of distribution functions; the symmetric law is .028 away
    accuracy: float = 0.9

    @property
    def margin(self) -> float:
        """In T and J_0, around the lines of transition: twice the width of the critical region."""
        return 2 * self.spins ** (-1 / 3)

    def __post_init__(self):
        if self.samples < 2 or self.samples % 2:
            raise ValueError(
                f"samples must be even and positive, half of them train the classifier; got {self.samples}"
            )
        if self.coldest < 0.05 or self.temperatures < 2:
            raise ValueError("the theory of the glass needs coldest >= 0.05, a schedule two temperatures or more")


PAPER = Config()
SMOKE = Config(
    spins=96, samples=4, means=(0.0, 2.0), temperatures=5, sweeps=40, deviation=0.15, histogram=0.15, accuracy=0.7
)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Theory, annealed samples, detection."""
    temperatures = np.linspace(config.hottest, config.coldest, config.temperatures)
    claims = _exact()
    theory = _moments(temperatures, config.means)
    with progress_bar(len(config.means), "spin-glass phases", "J_0", show=progress) as bar:
        fields = []
        for i, j0 in enumerate(config.means):
            fields.append(_anneal(config, temperatures, j0, jax.random.fold_in(key, i)))
            bar.update()
    fields = np.asarray(fields, np.float64)  # (J_0, samples, T, N)
    measured = np.stack([fields.mean(-1), fields.var(-1)], -1)
    # A magnetised configuration and its mirror image are one state.
    measured[..., 0] = np.abs(measured[..., 0])
    away = _away(config, temperatures)
    means = measured.mean(1)
    # Without magnetisation the sign is noise too.
    signed = np.where(theory[..., 0] > 0, means[..., 0], fields.mean((1, 3)))
    rms = lambda x: np.sqrt(np.mean(x[away] ** 2))
    here = "theory, away from the lines of transition"
    claims += [
        at_most("error of the mean field (rms)", rms(signed - theory[..., 0]), config.deviation, here),
        at_most(
            "relative error of the variance of fields (rms)",
            rms(means[..., 1] / theory[..., 1] - 1),
            config.deviation,
            here,
        ),
    ]
    noise = measured[..., 1].std(1) / means[..., 1]
    phases = theory[..., 2].astype(int)
    histogram = _histogram(config, temperatures, fields)
    claims.append(
        at_most(
            "largest distance of distribution functions of fields", histogram[3], config.histogram, "Parisi's solution"
        )
    )
    named, trained = _name(config, measured, phases)
    test = slice(config.samples // 2, None)
    right, learned = (np.mean((g == phases[:, None, :])[:, test], axis=1) for g in (named, trained))
    claims += [
        at_least("accuracy of the theory", right[away].mean(), config.accuracy, "one configuration"),
        at_least("accuracy of the trained classifier", learned[away].mean(), config.accuracy, "one configuration"),
    ]
    metrics = {c.quantity: c.value for c in claims} | {
        "relative scatter of the variance of one configuration": float(noise.mean()),
        "accuracy of the theory, lines included": float(right.mean()),
        "accuracy of the classifier, lines included": float(learned.mean()),
    }
    arrays = {
        "T": temperatures, "J0": np.asarray(config.means), "theory": theory, "measured": measured,
        "right": right, "learned": learned, "fields": histogram[0], "density": histogram[1], "symmetric": histogram[2],
        "sample": histogram[4],
    }  # fmt: skip
    return Result(tuple(claims), metrics, arrays)


def _exact():
    """What is known of Parisi's solution."""
    with jax.enable_x64(True):
        cold, warm = parisi(0.05).check(), parisi(0.5).check()
        c, weights = warm.cavity_fields, warm.cavity_weights
        from_fields = -0.5 * (weights @ (c * jnp.tanh(c / warm.temperature)) + (1 - warm.q) / warm.temperature)
        mean = warm.weights @ warm.overlaps
    return [
        close_to("energy at T = .05", cold.energy, -0.76317, 1e-4, "ground state of the literature"),
        close_to("mean overlap at T = .5", mean, 0.5, 1e-4, "1 - T, because the susceptibility is 1"),
        close_to("energy from the fields, T = .5", from_fields, warm.energy, 1e-6, "energy from the overlaps"),
    ]


def _moments(temperatures, means):
    """(J_0, T, 3): mean and variance of the fields, and the phase; replica symmetry serves for the mixed phase."""
    plane = jax.vmap(jax.vmap(sherrington_kirkpatrick, (0, None)), (None, 0))
    state = jax.jit(plane)(jnp.asarray(temperatures, jnp.float32), jnp.asarray(means, jnp.float32))
    glass = np.array([_glass(float(t)) for t in temperatures])
    variance = np.where(state.phase == SpinGlassPhase.glass, glass[None, :], state.field_variance)
    return np.stack([state.field_mean, variance, state.phase], -1).astype(np.float64)


@functools.lru_cache
def _glass(t):
    return float(parisi(t, levels=8).field_variance)


@eqx.filter_jit
def _fields(couplings, spins, sweeps, temperature, key):
    """One configuration after `sweeps` more, and its fields."""
    run = glauber(
        Pairwise(couplings),
        spins[:, None],
        sweeps,
        temperature=temperature,
        key=key,
        save_every=sweeps,
        order="typewriter",
    )
    return run.spins[:, 0], couplings @ run.spins[:, 0]


def _anneal(config, temperatures, j0, key):
    """Fields (samples, T, N): one replica of every sample, cooled from one temperature to the next."""
    n = config.spins

    def couplings(k):
        upper = jnp.triu(jax.random.normal(k, (n, n)), 1) / n**0.5
        return (upper + upper.T + j0 / n) * (1 - jnp.eye(n))

    sample_key, spin_key, noise_key = jax.random.split(key, 3)
    keys = lambda k: jax.random.split(k, config.samples)
    couplings = jax.jit(jax.vmap(couplings))(keys(sample_key))
    spins = jax.random.rademacher(spin_key, (config.samples, n), jnp.float32)
    rows = []
    for i, t in enumerate(temperatures):
        step = lambda J, s, k, t=t: _fields(J, s, config.sweeps, jnp.float32(t), k)
        spins, fields = jax.vmap(step)(couplings, spins, keys(jax.random.fold_in(noise_key, i)))
        rows.append(np.asarray(fields))
    return np.stack(rows, 1)


def _away(config, temperatures):
    """True (J_0, T) where the phase is the same all around."""
    means, d = np.asarray(config.means), config.margin
    around = [(0, 0), (d, 0), (-d, 0), (0, d), (0, -d)]
    found = np.stack([_moments(np.maximum(temperatures + dt, 0.05), means + dj)[..., 2] for dt, dj in around])
    return (found == found[0]).all(0)


def _histogram(config, temperatures, fields):
    """Bins, both theories, the largest distance of distribution functions, and all fields at the nearest T and J_0."""
    t, j0 = config.shown
    i, k = np.argmin(np.abs(np.asarray(config.means) - j0)), np.argmin(np.abs(temperatures - t))
    found = np.sort(fields[i, :, k].ravel())
    h = np.linspace(-6, 6, 601)
    density = np.asarray(parisi(temperatures[k]).field_density(jnp.asarray(h)))
    symmetric = np.asarray(sherrington_kirkpatrick(temperatures[k], config.means[i]).field_density(jnp.asarray(h)))
    cumulative = np.cumsum(density) * (h[1] - h[0])
    distance = np.abs(np.searchsorted(found, h + 0.5 * (h[1] - h[0])) / len(found) - cumulative).max()
    return h, density, symmetric, distance, found


def _name(config, measured, phases):
    """Phases (J_0, samples, T) by Bayes' rule and theory, and by a classifier trained on the first half."""
    from sklearn.neighbors import KNeighborsClassifier

    table = _moments(np.linspace(0.1, config.hottest + 0.2, 60), np.linspace(0.0, 2.4, 61)).reshape(-1, 3)
    mean, variance = 2 * np.sqrt(table[:, 1] / config.spins), 2 * table[:, 1] * np.sqrt(2 / config.spins)
    # The mirror image of a state without magnetisation is the state itself: |mean| is twice as likely.
    prior = np.where(table[:, 0] > 0, 0.0, np.log(2)) - np.log(mean * variance)

    def posterior(x):
        log = prior - 0.5 * ((x[0] - table[:, 0]) / mean) ** 2 - 0.5 * ((x[1] - table[:, 1]) / variance) ** 2
        weight = np.exp(log - log.max())
        return np.argmax([weight[table[:, 2] == phase].sum() for phase in SpinGlassPhase])

    theory = np.array([posterior(x) for x in measured.reshape(-1, 2)]).reshape(measured.shape[:-1])
    train = slice(0, config.samples // 2)
    labels = np.broadcast_to(phases[:, None, :], measured.shape[:-1])
    learned = KNeighborsClassifier(5).fit(measured[:, train].reshape(-1, 2), labels[:, train].ravel())
    return theory, learned.predict(measured.reshape(-1, 2)).reshape(labels.shape)


def plot(result: Result) -> Any:
    """Variance over temperature, one histogram, and the plane of mean and variance."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for i, j0 in enumerate(a["J0"]):
        if j0 in (0.0, 1.2, 1.6, 2.0):
            axes[0].plot(a["T"], a["theory"][i, :, 1], f"C{i}", lw=1)
            axes[0].plot(a["T"], a["measured"][i, :, :, 1].mean(0), f"C{i}o", ms=4, label=f"$J_0$ = {j0:g}")
    t = np.linspace(0.65, a["T"].max(), 100)
    axes[0].plot(t, 1 + 1 / t**2, "k:", lw=0.8, label=r"paramagnet, $1 + \beta^2$")
    axes[0].set(xlabel="T", ylabel="variance of the fields", ylim=(1, 3.5), title="one configuration, mean of samples")
    axes[0].legend(fontsize=8)
    axes[1].hist(a["sample"], bins=90, range=(-6, 6), density=True, color="0.8", label="single configurations")
    axes[1].plot(a["fields"], a["density"], "C3", label="Parisi")
    axes[1].plot(a["fields"], a["symmetric"], "k--", lw=0.8, label="replica symmetric")
    axes[1].set(xlabel="field h", ylabel="density", title="law of the fields in the glass", ylim=(0, 0.36))
    axes[1].legend(fontsize=8, loc="upper right")
    for phase, name in enumerate(PHASES):
        mine = a["theory"][..., 2] == phase
        points = np.moveaxis(a["measured"], 1, 2)[mine].reshape(-1, 2)
        axes[2].plot(points[:, 0], points[:, 1], f"C{phase}.", ms=3, label=name)
    axes[2].set(xlabel="mean of the fields", ylabel="variance", title="every point one configuration")
    axes[2].legend(fontsize=8)
    return figure
