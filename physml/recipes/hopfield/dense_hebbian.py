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
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from physml import data
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.hopfield.spins.glauber import Dense, glauber
from physml.hopfield.spins.patterns import examples, random_patterns
from physml.hopfield.theory.data_sets import data_set, entropy
from physml.recipes._result import Info, Result, at_least, close_to

INFO = Info(
    paper="Agliari et al., Dense Hebbian neural networks, supervised and unsupervised (2023)",
    claim="overlaps learned from noisy examples extrapolate to replica theory; thresholds in M; retrieval of digits",
    time="2 min, smoke 6 s",
)


@dataclasses.dataclass(frozen=True)
class Task:
    """One simulated setting: K = load N^2 / 2 patterns."""

    learning: Literal["supervised", "unsupervised"]
    quality: float
    count: int
    load: float
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Config:
    """The simulated settings, and the diagrams."""

    tasks: tuple[Task, ...] = (
        Task("supervised", 0.5, 30, 0.04, (120, 180, 270)),
        Task("unsupervised", 0.8, 10, 0.04, (64, 96, 144)),
    )
    temperature: float = 0.25
    networks: int = 12
    replicas: int = 32
    sweeps: int = 60  # of which the first third is left out
    counts: int = 14  # points of the curves over M; 0 leaves them and the digits out
    digits: int = 40  # examples of every class

    def __post_init__(self):
        if any(len(task.sizes) < 3 for task in self.tasks) or self.networks < 4 or self.sweeps % 3:
            raise ValueError(f"three sizes, four networks and sweeps divisible by 3 at least, got {self}")


PAPER = Config()
SMOKE = Config(tasks=(Task("supervised", 0.5, 30, 0.04, (40, 60, 90)),), networks=6, sweeps=30, counts=0)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """`key` is that of the patterns, the examples and the dynamics."""
    claims: list = []
    arrays: dict[str, np.ndarray] = {}
    with progress_bar(len(config.tasks) + 2, "dense Hebbian networks", "part", show=progress) as bar:
        for i, task in enumerate(config.tasks):
            arrays |= _monte_carlo(config, task, claims, jax.random.fold_in(key, i))
            bar.update()
        if config.counts:
            arrays |= _thresholds(config, claims)
            bar.update()
            arrays |= _digits(config, claims, jax.random.fold_in(key, 99))
    return Result(tuple(claims), {c.quantity: c.value for c in claims}, arrays)


def network(noisy, learning: str, quality: float) -> Dense:
    """The energy of examples (M, K, N)."""
    count, _, n = noisy.shape
    if learning == "supervised":
        rho = entropy(quality, count)
        return Dense(jnp.mean(noisy, 0) / (quality * (1 + rho) ** 0.5), 3, "distinct")
    return Dense(noisy.reshape(-1, n), 3, "distinct", strength=1 / (count * quality**3))


def _own_overlap(targets, spins):
    return jnp.mean(targets * spins, 0)


def _overlap(config, task, size, key):
    """Mean overlap of one network with the patterns that it never saw, over replicas and time."""
    pattern_key, example_key, run_key = jax.random.split(key, 3)
    patterns = random_patterns(round(task.load * size**2 / 2), size, key=pattern_key)
    noisy = examples(patterns, task.count, quality=task.quality, key=example_key)
    start = patterns[jnp.arange(config.replicas) % len(patterns)].T
    energy, observe = network(noisy, task.learning, task.quality), jax.tree_util.Partial(_own_overlap, start)
    out = glauber(energy, start, config.sweeps, temperature=config.temperature, key=run_key, observe=observe)
    return float(jnp.mean(out.observed[config.sweeps // 3 :]))


def _monte_carlo(config, task, claims, key):
    """Three sizes, a straight line in 1/N by weighted least squares, and the theory at its end."""
    rows = []
    for i, size in enumerate(task.sizes):
        keys = jax.random.split(jax.random.fold_in(key, i), config.networks)
        rows.append([_overlap(config, task, size, k) for k in keys])
    rows = np.asarray(rows)
    mean, error = rows.mean(1), rows.std(1, ddof=1) / config.networks**0.5
    design = np.stack([np.ones(len(task.sizes)), 1 / np.asarray(task.sizes)], 1) / error[:, None]
    covariance = np.linalg.inv(design.T @ design)
    limit, slope = covariance @ design.T @ (mean / error)
    width = covariance[0, 0] ** 0.5
    options: dict[str, Any] = dict(quality=task.quality, count=task.count, learning=task.learning)
    theory = float(data_set(3, task.load, config.temperature, law="binomial", **options).check().m)
    name = f"{task.learning} overlap, r = {task.quality}, M = {task.count}, N to infinity"
    claims.append(close_to(name, limit, theory, 5 * width, "replica theory, 5 standard errors", width))
    fit = np.array([limit, slope, width, theory])
    return {
        f"sizes {task.learning}": np.asarray(task.sizes), f"m {task.learning}": mean,
        f"error {task.learning}": error, f"fit {task.learning}": fit,
    }  # fmt: skip


def _thresholds(config, claims):
    """Examples needed at T = 0 for m = .9, over the quality: powers -2 with a teacher and -6 without."""
    qualities, arrays = np.array([0.1, 0.14, 0.2]), {}
    powers: dict[Literal["supervised", "unsupervised"], int] = {"supervised": -2, "unsupervised": -6}
    for learning, power in powers.items():
        needed = []
        for r in qualities:
            # Bisection on log M, which the Gaussian law takes as a real number.
            low, high = np.log(1.0), np.log(1e7)
            for _ in range(40):
                middle = 0.5 * (low + high)
                count = max(1, round(float(np.exp(middle))))
                m = float(data_set(3, 0.02, 0.0, quality=float(r), count=count, learning=learning).m)
                low, high = (low, middle) if m > 0.9 else (middle, high)
            needed.append(np.exp(high))
        slope = np.polyfit(np.log(qualities), np.log(needed), 1)[0]
        claims.append(close_to(f"{learning}: power of r in the examples needed", slope, power, 0.25, "rho, rho_3"))
        arrays[f"needed {learning}"] = np.asarray(needed)
        ms = np.unique(np.geomspace(2, 3000, config.counts).round().astype(int))
        curve = [float(data_set(3, 0.02, 0.1, quality=0.3, count=int(m), learning=learning).m) for m in ms]
        arrays |= {"M": ms, f"curve {learning}": np.asarray(curve)}
    return arrays | {"qualities": qualities}


def _digits(config, claims, key):
    """Test images of digits, one bit a pixel, retrieved by p = 2 and by p = 3 and 6 from class means."""
    images = data.digits()
    side = int(np.prod(images.shape))
    flat = np.asarray(images.train_x).reshape(-1, side)
    middle = np.median(flat, 0)
    live = flat.std(0) > 1e-3
    sign = lambda x: np.where(np.asarray(x).reshape(-1, side)[:, live] > middle[live], 1.0, -1.0).astype(np.float32)
    train, labels = sign(images.train_x), np.asarray(images.train_y)
    test, truth = sign(images.test_x), np.asarray(images.test_y)
    classes = np.arange(10)
    mean = np.stack([train[labels == c][: config.digits].mean(0) for c in classes])
    # The images share a mean, which every class would retrieve: it is taken out, and the rest has unit size.
    mean = mean - mean.mean(0)
    stored = jnp.asarray(mean / np.sqrt((mean**2).mean(1, keepdims=True)), jnp.float32)
    arrays, right = {}, {}
    for p in (2, 3, 6):
        out = glauber(
            Dense(stored, p, "raw"), jnp.asarray(test.T), 6, temperature=0.05, key=key, order="typewriter", save_every=6
        )
        named = np.asarray(jnp.argmax(stored @ out.spins, 0))
        right[p] = float(np.mean(named == truth))
        arrays[f"retrieved {p}"] = np.asarray(out.spins[:, :8].T)
    arrays |= {"shown": test[:8], "live": live, "right": np.array([right[p] for p in (2, 3, 6)])}
    chance = 5 * (0.25 / len(truth)) ** 0.5
    claims.append(at_least("digits: share named by p = 6 over that by p = 2", right[6] - right[2], 0.05, "dense wells"))
    claims.append(at_least("digits: share named right by p = 6", right[6], 0.1 + chance, "guessing, 5 standard errors"))
    return arrays


def plot(result: Result) -> Any:
    """The extrapolations, the curves over M, the examples needed, and digits before and after."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7.5), layout="constrained")
    sizes, curve, needed, images = axes.ravel()
    for i, learning in enumerate(("supervised", "unsupervised")):
        if f"fit {learning}" in a:
            limit, slope, width, theory = a[f"fit {learning}"]
            inverse = 1 / a[f"sizes {learning}"]
            sizes.errorbar(inverse, a[f"m {learning}"], a[f"error {learning}"], fmt=f"C{i}o", ms=4, label=learning)
            ends = np.array([0, inverse.max()])
            sizes.plot(ends, limit + slope * ends, f"C{i}-", lw=1)
            sizes.errorbar([0], [limit], [width], fmt=f"C{i}.", capsize=3)
            sizes.plot([0], [theory], "k_", ms=14)
        if f"curve {learning}" in a:
            curve.semilogx(a["M"], a[f"curve {learning}"], f"C{i}.-", label=learning)
            needed.loglog(a["qualities"], a[f"needed {learning}"], f"C{i}o-", label=learning)
    sizes.set(xlabel="1/N", ylabel="overlap m", title="T = 0.25; bars at 1/N = 0: theory")
    sizes.legend(fontsize=8)
    if "M" in a:
        curve.set(xlabel="examples M", ylabel="overlap m", title="r = 0.3, T = 0.1")
        needed.set(xlabel="quality r", ylabel="examples for m = 0.9", title="T = 0")
        for axis in (curve, needed):
            axis.legend(fontsize=8)
        side = int(len(a["live"]) ** 0.5)
        rows = []
        for name in ("shown", "retrieved 2", "retrieved 3", "retrieved 6"):
            full = np.zeros((8, len(a["live"])))
            full[:, a["live"]] = a[name]
            tiles = np.pad(full.reshape(8, side, side), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
            rows.append(np.concatenate(tiles, 1))
        images.imshow(np.concatenate(rows), cmap="gray")
        middle = (side + 2) * (np.arange(4) + 0.5)
        images.set(title="test digits, above or below the median of each pixel", xticks=[])
        images.set_yticks(middle, ["shown", "p = 2", "p = 3", "p = 6"])
    return figure
