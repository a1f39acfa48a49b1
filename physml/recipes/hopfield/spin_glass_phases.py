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
import sys
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml.hopfield import Pairwise, glauber
from physml.hopfield.theory import SpinGlassPhase, parisi, sherrington_kirkpatrick
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Single-replica spin-glass detection (2024); Sherrington and Kirkpatrick (1978)",
    claim="local fields of one configuration: mean, variance and histogram as predicted, phases named from them",
    time="3 min, smoke 25 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Samples, temperatures, and what the claims ask for."""

    spins: int = 768
    samples: int = 16  # of the couplings; half of them train the classifier
    means: tuple[float, ...] = setting((0.0, 0.4, 0.8, 1.2, 1.4, 1.6, 2.0), least=0.0)
    hottest: float = 2.2
    coldest: float = setting(0.3, least=0.05)  # which the theory of the glass needs
    temperatures: int = setting(14, least=2.0)
    sweeps: int = 150  # at every temperature
    shown: tuple[float, float] = setting((0.3, 0.0), least=0.0)  # (T, J_0) of the histogram
    # the bounds of the claims
    deviation: float = 0.04
    histogram: float = 0.02  # of distribution functions; the symmetric law is .028 away
    accuracy: float = 0.9

    @property
    def margin(self) -> float:
        """In T and J_0, around the lines of transition: twice the width of the critical region."""
        return 2 * self.spins ** (-1 / 3)

    def rules(self):
        return ((self.samples % 2 == 0, "an even number of samples, half of which train the classifier"),)


PAPER = Config()
SMOKE = Config(
    spins=96, samples=4, means=(0.0, 2.0), temperatures=5, sweeps=40, deviation=0.15, histogram=0.15, accuracy=0.7
)

SABOTAGE = Sabotage(
    "a bath half as hot again as it should be", sys.modules[__name__], "glauber",
    lambda exact: lambda *a, temperature, **options: exact(*a, temperature=1.5 * temperature, **options),
)  # fmt: skip


@experiment
def run(study, config, key):
    _exact(study)
    temperatures = np.linspace(config.hottest, config.coldest, config.temperatures)
    theory = _moments(temperatures, config.means)
    fields = [
        _anneal(config, temperatures, j0, jax.random.fold_in(key, i))
        for i, j0 in study.each(enumerate(config.means), "J_0")
    ]
    fields = np.asarray(fields, np.float64)  # (J_0, samples, T, N)
    # A magnetised configuration and its mirror image are one state.
    mean, variance = np.abs(fields.mean(-1)), fields.var(-1)
    away = _away(config, temperatures)
    study.keep(temperatures=temperatures, means=config.means, theory=theory, mean=mean, variance=variance)
    _compare(study, config, theory, fields, mean, variance, away)
    _histogram(study, config, temperatures, fields)
    _detect(study, config, mean, variance, theory.phase, away)


def _exact(study):
    """What is known of Parisi's solution."""
    with jax.enable_x64(True):
        cold, warm = parisi(0.05).check(), parisi(0.5).check()
        c, weights = warm.cavity_fields, warm.cavity_weights
        from_fields = -0.5 * (weights @ (c * jnp.tanh(c / warm.temperature)) + (1 - warm.q) / warm.temperature)
        mean = warm.weights @ warm.overlaps
    study.near("energy at T = .05", cold.energy, -0.76317, "ground state of the literature", atol=1e-4)
    study.near("mean overlap at T = .5", mean, 0.5, "1 - T, because the susceptibility is 1", atol=1e-4)
    study.near("energy from the fields, T = .5", from_fields, warm.energy, "energy from the overlaps", atol=1e-6)


class Moments(NamedTuple):
    """Mean and variance of the fields, and the phase, each (J_0, T)."""

    mean: np.ndarray
    variance: np.ndarray
    phase: np.ndarray


def _moments(temperatures, means):
    """Of theory; replica symmetry serves for the mixed phase."""
    plane = jax.vmap(jax.vmap(sherrington_kirkpatrick, (0, None)), (None, 0))
    state = jax.jit(plane)(jnp.asarray(temperatures, jnp.float32), jnp.asarray(means, jnp.float32)).check()
    glass = np.array([_glass(float(t)) for t in temperatures])
    variance = np.where(state.phase == SpinGlassPhase.glass, glass, state.field_variance)
    return Moments(np.asarray(state.field_mean, np.float64), variance.astype(np.float64), np.asarray(state.phase))


@functools.lru_cache
def _glass(t):
    return float(parisi(t, levels=8).field_variance)


@eqx.filter_jit
def _fields(couplings, spins, sweeps, temperature, key):
    """One configuration after `sweeps` more, and its fields."""
    after = glauber(
        Pairwise(couplings),
        spins[None, :],
        sweeps,
        temperature=temperature,
        key=key,
        save_every=sweeps,
        order="typewriter",
    )
    spins = after.spins[0]
    return spins, couplings @ spins


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
    found = np.stack([_moments(np.maximum(temperatures + dt, 0.05), means + dj).phase for dt, dj in around])
    return (found == found[0]).all(0)


def _compare(study, config, theory, fields, mean, variance, away):
    """Mean and variance, averaged over the samples, against theory."""
    # Without magnetisation the sign is noise too.
    signed = np.where(theory.mean > 0, mean.mean(1), fields.mean((1, 3)))
    rms = lambda x: np.sqrt(np.mean(x[away] ** 2))
    here = "theory, away from the lines of transition"
    study.at_most("error of the mean field (rms)", rms(signed - theory.mean), config.deviation, here)
    off = variance.mean(1) / theory.variance - 1
    study.at_most("relative error of the variance of fields (rms)", rms(off), config.deviation, here)
    noise = np.mean(variance.std(1) / variance.mean(1))
    study.metrics["relative scatter of the variance of one configuration"] = noise


def _histogram(study, config, temperatures, fields):
    """All fields at the nearest T and J_0, beside Parisi's law and the symmetric one."""
    t, j0 = config.shown
    i, k = np.argmin(np.abs(np.asarray(config.means) - j0)), np.argmin(np.abs(temperatures - t))
    found = np.sort(fields[i, :, k].ravel())
    h = np.linspace(-6, 6, 601)
    density = np.asarray(parisi(temperatures[k]).field_density(jnp.asarray(h)))
    symmetric = np.asarray(sherrington_kirkpatrick(temperatures[k], config.means[i]).field_density(jnp.asarray(h)))
    cumulative = np.cumsum(density) * (h[1] - h[0])
    distance = np.abs(np.searchsorted(found, h + 0.5 * (h[1] - h[0])) / len(found) - cumulative).max()
    name = "largest distance of distribution functions of fields"
    study.at_most(name, distance, config.histogram, "Parisi's solution")
    study.keep(fields=found, h=h, density=density, symmetric=symmetric)


def _detect(study, config, mean, variance, phases, away):
    """Share of configurations whose phase is named right, by theory and by a classifier."""
    named, learned = _by_theory(config, mean, variance), _by_training(config, mean, variance, phases)
    test = slice(config.samples // 2, None)
    for who, name, found in (("the theory", "theory", named), ("the trained classifier", "classifier", learned)):
        right = np.mean((found == phases[:, None])[:, test], axis=1)
        study.at_least(f"accuracy of {who}", right[away].mean(), config.accuracy, "one configuration")
        study.metrics[f"accuracy of the {name}, lines included"] = right.mean()


def _by_theory(config, mean, variance):
    """Phases (J_0, samples, T) by Bayes' rule."""
    table = _moments(np.linspace(0.1, config.hottest + 0.2, 60), np.linspace(0.0, 2.4, 61))
    table = Moments(*(column.ravel() for column in table))
    mean_error = 2 * np.sqrt(table.variance / config.spins)
    variance_error = 2 * table.variance * np.sqrt(2 / config.spins)
    # The mirror image of a state without magnetisation is the state itself: |mean| is twice as likely.
    prior = np.where(table.mean > 0, 0.0, np.log(2)) - np.log(mean_error * variance_error)
    x, y = mean[..., None], variance[..., None]
    log = prior - 0.5 * ((x - table.mean) / mean_error) ** 2 - 0.5 * ((y - table.variance) / variance_error) ** 2
    weight = np.exp(log - log.max(-1, keepdims=True))
    return np.argmax(weight @ (table.phase[:, None] == np.array(list(SpinGlassPhase))), -1)


def _by_training(config, mean, variance, phases):
    """Phases (J_0, samples, T) by the five nearest of the first half of the samples."""
    from sklearn.neighbors import KNeighborsClassifier

    points = np.stack([mean, variance], -1)
    labels = np.broadcast_to(phases[:, None], mean.shape)
    train = slice(0, config.samples // 2)
    classifier = KNeighborsClassifier(5).fit(points[:, train].reshape(-1, 2), labels[:, train].ravel())
    return classifier.predict(points.reshape(-1, 2)).reshape(labels.shape)


def plot(result):
    """Variance over temperature, one histogram, and the plane of mean and variance."""
    d = result.data
    figure, (cooling, law, plane) = draw.panels(1, 3)
    for i, j0 in enumerate(d.means):
        if j0 in (0.0, 1.2, 1.6, 2.0):
            draw.theory(cooling, d.temperatures, d.theory.variance[i], f"C{i}", lw=1)
            cooling.plot(d.temperatures, d.variance[i].mean(0), f"C{i}o", ms=4, label=f"$J_0$ = {j0:g}")
    t = np.linspace(0.65, d.temperatures.max(), 100)
    draw.theory(cooling, t, 1 + 1 / t**2, "k:", lw=0.8, label=r"paramagnet, $1 + \beta^2$")
    draw.label(cooling, "one configuration, mean of samples", "T", "variance of the fields", ylim=(1, 3.5))
    draw.histogram(law, d.fields, np.linspace(-6, 6, 91), color="0.6", label="single configurations")
    draw.theory(law, d.h, d.density, "C3", label="Parisi")
    draw.theory(law, d.h, d.symmetric, "k--", lw=0.8, label="replica symmetric")
    draw.label(
        law, "law of the fields in the glass", "field h", "density", ylim=(0, 0.36), legend={"loc": "upper right"}
    )
    for phase in SpinGlassPhase:
        mine = np.broadcast_to((d.theory.phase == phase)[:, None], d.mean.shape)
        plane.plot(d.mean[mine], d.variance[mine], f"C{phase.value}.", ms=3, label=phase.name)
    draw.label(plane, "every point one configuration", "mean of the fields", "variance")
    return figure
