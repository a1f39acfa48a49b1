r"""Dense Hebbian networks that learn from examples, with a teacher and without: theory, Monte Carlo, digits.

Three spins interact; the network sees M noisy copies $\eta^a = \xi\chi^a$, <chi> = r, of every pattern. With a teacher
it stores their means, $H = -\frac{N}{3}\sum_\mu\hat n_\mu^3$; without, every example,
$H = -\frac{N}{3Mr^3}\sum_{\mu,a}n_{\mu a}^3$. With $\rho = (1-r^2)/(Mr^2)$ and $\rho_3 = (1-r^6)/(Mr^6)$ the retrieved
pattern sees

$$V = \rho s^2 + aq^2 \ \text{(supervised)}, \qquad V = \rho\nu^4 + a(1 + \rho_3)q^2\ \text{(unsupervised)}$$

so the examples needed grow as $r^{-2}$ with a teacher and as $r^{-6}$ without. Simulated overlaps of three sizes, at
finite T and with the binomial law of M signs, are extrapolated in 1/N. On real digits of one bit per pixel the
examples are images, and what is retrieved from a test image names its class.

**See** Agliari, Albanese, Alemanno et al., Dense Hebbian neural networks, supervised and unsupervised, Physica A (2023).
"""

import dataclasses
import sys
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from physml import data
from physml.hopfield import Dense, examples, glauber, random_patterns
from physml.hopfield.theory.data_sets import data_set, entropy
from physml.metrics import power_law
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting
from physml.recipes.hopfield._finite_size import draw_extrapolation, extrapolate, mean_overlap

INFO = RecipeInfo(
    paper="Agliari et al., Dense Hebbian neural networks, supervised and unsupervised (2023)",
    claim="overlaps learned from noisy examples extrapolate to replica theory; thresholds in M; retrieval of digits",
    time="2 min, smoke 6 s",
)


@dataclasses.dataclass(frozen=True)
class Task(Settings):
    """One simulated setting: K = load N^2 / 2 patterns."""

    learning: Literal["supervised", "unsupervised"]
    quality: float
    count: int
    load: float
    sizes: tuple[int, ...] = setting((), length=3)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """The simulated settings, and the diagrams."""

    tasks: tuple[Task, ...] = (
        Task("supervised", 0.5, 30, 0.04, (120, 180, 270)),
        Task("unsupervised", 0.8, 10, 0.04, (64, 96, 144)),
    )
    temperature: float = 0.25
    networks: int = setting(12, least=4.0)
    replicas: int = 32
    sweeps: int = 60  # of which the first third is left out
    counts: int = setting(14, least=0.0)  # points of the curves over M; 0 leaves them and the digits out
    digits: int = 40  # examples of every class

    def rules(self):
        return ((self.sweeps % 3 == 0, "sweeps divisible by 3"),)


PAPER = Config()
SMOKE = Config(tasks=(Task("supervised", 0.5, 30, 0.04, (40, 60, 90)),), networks=6, sweeps=30, counts=0)

SABOTAGE = Sabotage(
    "means of the examples a fifth too small", sys.modules[__name__], "network",
    lambda exact: lambda *a: (lambda energy: dataclasses.replace(energy, patterns=0.8 * energy.patterns))(exact(*a)),
)  # fmt: skip


@experiment
def run(study, config, key):
    found = {}
    for i, task in study.each(enumerate(config.tasks), "task"):
        found[task.learning] = _monte_carlo(study, config, task, jax.random.fold_in(key, i))
    study.keep(found=found, temperature=config.temperature, curves=None)
    if config.counts:
        _thresholds(study, config)
        _digits(study, config, jax.random.fold_in(key, 99))


def network(noisy, learning, quality) -> Dense:
    """The energy of examples (M, K, N)."""
    count, _, n = noisy.shape
    if learning == "supervised":
        rho = entropy(quality, count)
        return Dense(jnp.mean(noisy, 0) / (quality * (1 + rho) ** 0.5), 3, "distinct")
    return Dense(noisy.reshape(-1, n), 3, "distinct", strength=1 / (count * quality**3))


def _overlap(config, task, size, key):
    """Mean overlap of one network with the patterns that it never saw, over replicas and time."""
    pattern_key, example_key, run_key = jax.random.split(key, 3)
    patterns = random_patterns(round(task.load * size**2 / 2), size, key=pattern_key)
    noisy = examples(patterns, task.count, quality=task.quality, key=example_key)
    return mean_overlap(config, network(noisy, task.learning, task.quality), patterns, run_key)


def _monte_carlo(study, config, task, key):
    """The sizes, a straight line in 1/N, and the theory at its end."""
    rows = []
    for i, size in enumerate(task.sizes):
        keys = jax.random.split(jax.random.fold_in(key, i), config.networks)
        rows.append([_overlap(config, task, size, k) for k in keys])
    options: dict[str, Any] = dict(quality=task.quality, count=task.count, learning=task.learning)
    theory = data_set(3, task.load, config.temperature, law="binomial", **options).check().m
    found = extrapolate(task.sizes, rows, float(theory))
    name = f"{task.learning} overlap, r = {task.quality}, M = {task.count}, N to infinity"
    study.near(name, found.limit, found.theory, "replica theory, 5 standard errors", sigmas=5.0)
    return found


def _thresholds(study, config):
    """Examples needed at T = 0 for m = .9, over the quality: powers -2 with a teacher and -6 without."""
    qualities = np.array([0.1, 0.14, 0.2])
    counts = np.unique(np.geomspace(2, 3000, config.counts).round().astype(int))
    needed, curves = {}, {}
    for learning, power in (("supervised", -2), ("unsupervised", -6)):
        needed[learning] = [_examples_needed(learning, quality) for quality in qualities]
        slope = power_law(qualities, needed[learning])[0].value
        study.near(f"{learning}: power of r in the examples needed", slope, power, "rho, rho_3", atol=0.25)
        curves[learning] = [_learned(learning, 0.3, count, 0.1) for count in counts]
    study.keep(qualities=qualities, needed=needed, counts=counts, curves=curves)


def _learned(learning, quality, count, temperature):
    return float(data_set(3, 0.02, temperature, quality=float(quality), count=int(count), learning=learning).m)


def _examples_needed(learning, quality):
    """Where the overlap reaches .9 at T = 0, by bisection on log M."""
    low, high = np.log(1.0), np.log(1e7)
    for _ in range(40):
        middle = 0.5 * (low + high)
        enough = _learned(learning, quality, max(1, round(np.exp(middle))), 0.0) > 0.9
        low, high = (low, middle) if enough else (middle, high)
    return np.exp(high)


def _digits(study, config, key):
    """Test images of digits, one bit a pixel, retrieved by p = 2 and by p = 3 and 6 from class means."""
    images = data.digits()
    side = int(np.prod(images.shape))
    flat = np.asarray(images.train_x).reshape(-1, side)
    middle = np.median(flat, 0)
    live = flat.std(0) > 1e-3
    sign = lambda x: np.where(np.asarray(x).reshape(-1, side)[:, live] > middle[live], 1.0, -1.0).astype(np.float32)
    train, labels = sign(images.train_x), np.asarray(images.train_y)
    test, truth = sign(images.test_x), np.asarray(images.test_y)
    mean = np.stack([train[labels == c][: config.digits].mean(0) for c in range(10)])
    # The images share a mean, which every class would retrieve: it is taken out, and the rest has unit size.
    mean = mean - mean.mean(0)
    stored = jnp.asarray(mean / np.sqrt((mean**2).mean(1, keepdims=True)), jnp.float32)
    shown, right = {"shown": test[:8]}, {}
    for p in (2, 3, 6):
        out = glauber(
            Dense(stored, p, "raw"), jnp.asarray(test), 6, temperature=0.05, key=key, order="typewriter", save_every=6
        )
        right[p] = np.mean(np.asarray(jnp.argmax(out.spins @ stored.T, 1)) == truth)
        shown[f"p = {p}"] = np.asarray(out.spins[:8])
    chance = 5 * (0.25 / len(truth)) ** 0.5
    study.at_least("digits: share named by p = 6 over that by p = 2", right[6] - right[2], 0.05, "dense wells")
    study.at_least("digits: share named right by p = 6", right[6], 0.1 + chance, "guessing, 5 standard errors")
    study.keep(images=shown, live=live, shape=images.shape)


def plot(result):
    """The extrapolations, the curves over M, the examples needed, and digits before and after."""
    d = result.data
    rows = 2 if d.curves else 1
    figure, axes = draw.panels(rows, rows, squeeze=False, width=5.2)
    sizes, *others = axes.flat
    for i, (learning, found) in enumerate(d.found.items()):
        draw_extrapolation(sizes, found, f"C{i}", learning)
    draw.label(sizes, f"T = {d.temperature}; bars at 1/N = 0: theory", "1/N", "overlap m")
    if not d.curves:
        return figure
    curve, needed, images = others
    for learning in d.curves:
        curve.plot(d.counts, d.curves[learning], ".-", label=learning)
        needed.plot(d.qualities, d.needed[learning], "o-", label=learning)
    draw.label(curve, "r = 0.3, T = 0.1", "examples M", "overlap m", log="x")
    draw.label(needed, "T = 0", "quality r", "examples for m = 0.9", log="xy")
    tiles = []
    for spins in d.images.values():
        full = np.zeros((8, len(d.live)))
        full[:, d.live] = spins
        tiles.extend(full.reshape(8, *d.shape))
    images.imshow(draw.mosaic(tiles, 8, gap=2, fill=np.nan), cmap="gray")
    middle = (d.shape[0] + 2) * np.arange(len(d.images)) + d.shape[0] / 2
    draw.label(images, "test digits, above or below the median of each pixel", xticks=[])
    images.set_yticks(middle, list(d.images))
    return figure
