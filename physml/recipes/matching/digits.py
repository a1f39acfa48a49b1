r"""Class-conditional flow matching on 1797 real handwritten digits, judged on digits it has not seen.

A residual MLP learns the velocity of the straight path $x_t = (1 - t) x_0 + t x_1$ from N(0, I) to dequantised 8 x 8
digits, given the class. Then: samples by the probability-flow ODE and by an SDE with the same marginals,

$$\dot x = v(t, x), \qquad dx = [v + \epsilon s]\,dt + \sqrt{2\epsilon}\,dW, \quad \epsilon(t) = \epsilon_0 (1 - t),
\quad s = -\frac{x - t v}{1 - t},$$

and the exact likelihood $\ln p_1(x) = \ln p_0(x_0) - \int_0^1 \nabla\!\cdot v\,dt$ of held-out digits in bits per
dimension. Everything is held against the test set and beside one Gaussian per class (Ledoit-Wolf covariance), the
best that two moments can do. Samples are compared as images, rounded to the 17 levels. The excess is the
energy distance less the self-pairs, class by class, because test set and samples have fixed numbers of each class.

**See** Lipman, Chen, Ben-Hamu, Nickel and Le, Flow matching for generative modeling (2022); Albergo, Boffi and
Vanden-Eijnden, Stochastic interpolants (2023).
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from physml import data, matching, metrics, nn, train
from physml.core.types import Key
from physml.integrate import Dynamics, Heun, integrate
from physml.recipes import Info, Result, at_least, at_most

INFO = Info(
    paper="Lipman et al., Flow matching for generative modeling (2022), on the digits of Alpaydin and Kaynak (1998)",
    claim="samples, likelihoods and diversity of a digit model match held-out digits and beat a Gaussian per class",
    time="2 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Training, sampling, and what the claims ask for."""

    steps: int = 6000
    batch_size: int = 128
    width: int = 320
    depth: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 2.0
    ema_decay: float = 0.999
    ode_steps: int = 50
    sde_steps: int = 200
    epsilon: float = 0.5
    likelihood_steps: int = 20
    likelihood_images: int = 360
    permutations: int = 999
    draws: int = 10  # samples for each test digit where the excess is measured
    # the bounds of the claims
    energy_ratio: float = 2.0
    excess_ratio: float = 0.5
    agreement: float = 0.97
    bits: float = 2.5
    bits_gain: float = 0.1
    copies: float = 0.03
    distance_ratio: float = 0.9

    def __post_init__(self):
        counts = ("steps", "batch_size", "width", "depth", "ode_steps", "sde_steps", "likelihood_steps")
        for name in (*counts, "likelihood_images", "permutations", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} must be at least 1, got {getattr(self, name)}")
        if self.epsilon < 0 or self.learning_rate <= 0:
            raise ValueError(f"config.epsilon >= 0, learning_rate > 0; got {self.epsilon}, {self.learning_rate}")


PAPER = Config()
# Seconds instead of minutes: a small net, half trained; its bounds say what that can reach.
SMOKE = Config(
    steps=1200, width=96, depth=2, ode_steps=20, sde_steps=100, likelihood_steps=8, likelihood_images=60,
    permutations=199, draws=2, energy_ratio=4.0, excess_ratio=3.5, agreement=0.8, bits=3.3, bits_gain=-0.6,
)  # fmt: skip

DIM, PATH = 64, matching.linear()


def loss(model: Any, batch: tuple[Array, Array], *, key: Key) -> Array:
    """Flow matching on freshly dequantised digits, given their class."""
    levels, label = batch
    noise_key, source_key, match_key = jax.random.split(key, 3)
    x1 = data.scale(data.dequantise(levels, 17, key=noise_key))
    x0 = jax.random.normal(source_key, x1.shape)
    return matching.match(model, PATH, x0, x1, key=match_key, args=label)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Train, sample, measure; about two minutes with `PAPER`."""
    keys = jax.random.split(key, 9)
    digits = data.digits()
    real = lambda x, key: data.scale(data.dequantise(jnp.asarray(x), 17, key=key))
    test, seen = real(digits.test_x, keys[0]), real(digits.train_x, keys[1])
    label = jnp.asarray(digits.test_y)

    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, min(100, config.steps // 2), config.steps)
    fit = train.fit(
        loss,
        nn.ResidualMLP(DIM, classes=10, width=config.width, depth=config.depth, key=keys[2]),
        (digits.train_x, digits.train_y),
        optimizer=optax.adamw(schedule, weight_decay=config.weight_decay),
        steps=config.steps,
        batch_size=config.batch_size,
        ema_decay=config.ema_decay,
        key=keys[3],
        progress=progress,
    )
    model = fit.ema

    # Many samples for each test digit take their share out of the noise of the excess; the first set is judged alone.
    many_label = np.tile(digits.test_y, config.draws)
    many = _by_ode(model, jax.random.normal(keys[4], (len(many_label), DIM)), jnp.asarray(many_label), config.ode_steps)
    ode = many[: len(test)]
    sde = _by_sde(model, jax.random.normal(keys[5], test.shape), label, config.epsilon, config.sde_steps, keys[6])
    gaussians = _fit_gaussians(seen, digits.train_y)
    rivals = _image(_sample_gaussians(gaussians, many_label, keys[7]))

    count = min(config.likelihood_images, len(test))
    bits = lambda x, y, steps: np.asarray(_bits(model, x, y, steps))
    test_bits = bits(test[:count], label[:count], config.likelihood_steps)
    few = slice(0, min(count, 40))
    finer = bits(test[few], label[few], 2 * config.likelihood_steps)
    train_bits = bits(seen[:count], jnp.asarray(digits.train_y[:count]), config.likelihood_steps)
    rival_bits = _gaussian_bits(gaussians, test[:count], digits.test_y[:count])

    same = metrics.permutation_test(ode, sde, key=keys[8], permutations=config.permutations)
    images, rival, held, known = _image(ode), rivals[: len(test)], _image(test), _image(seen)
    gain = rival_bits - test_bits
    floor = _resplit_distances(jnp.concatenate([held, known]), len(held), keys[8])
    distance = metrics.energy_distance(images, held)
    excess, rival_excess = (_excess(x, many_label, held, digits.test_y) for x in (_image(many), rivals))
    judge = _classifier(known, digits.train_y)
    agree, rival_agree = judge.score(images, digits.test_y), judge.score(rival, digits.test_y)
    near, near_test = _nearest(images, known), _nearest(held, known)
    copies = np.mean(near < np.percentile(near_test, 1))

    binomial = lambda p: np.sqrt(max(p * (1 - p), 1 / len(test)) / len(test))
    stderr = lambda x: np.std(x, ddof=1) / np.sqrt(len(x))
    splits = "mean over 20 equal-size re-splits of real digits"
    claims = (
        at_most("energy distance, samples to test", distance, config.energy_ratio * floor.mean(), f"{config.energy_ratio} x {splits}"),
        at_most("its unbiased excess", excess, config.excess_ratio * rival_excess, f"{config.excess_ratio} x a Gaussian per class"),
        at_least("classifier agrees with the requested class", agree, config.agreement, "SVM trained on real digits", binomial(agree)),
        at_most("bits per dimension, held-out digits", test_bits.mean(), config.bits, "17 levels, given the class", stderr(test_bits)),
        at_least("bits gained on a Gaussian per class", gain.mean(), config.bits_gain, "Ledoit-Wolf covariance", stderr(gain)),
        at_most("change of the bits with half the step", abs(finer.mean() - test_bits[few].mean()), 0.02, "integration error"),
        at_least("p-value, ODE against SDE samples", same.p_value, 0.01, "permutation test of the energy distance"),
        at_most("samples nearer to the training set than 99% of test digits", copies, config.copies, "no copying", binomial(copies)),
        at_least("median distance to the training set over that of test digits", np.median(near) / np.median(near_test), config.distance_ratio, "no copying"),
    )  # fmt: skip
    numbers = {
        "energy_distance": distance, "energy_distance_resplits": floor.mean(), "excess": excess,
        "excess_gaussian": rival_excess, "agreement": agree, "agreement_gaussian": rival_agree,
        "classifier_accuracy_test": judge.score(held, digits.test_y), "bits_test": test_bits.mean(),
        "bits_train": train_bits.mean(), "bits_gaussian": rival_bits.mean(), "p_ode_sde": same.p_value,
        "copies": copies, "distance_ratio": np.median(near) / np.median(near_test),
        "loss_last": fit.history.loss[-200:].mean(),
    }  # fmt: skip
    arrays = {
        "loss": fit.history.loss,
        "samples": _gallery(model, jax.random.fold_in(key, 1), config),
        "walk": _walk(model, jax.random.fold_in(key, 2), config),
        "near": near, "near_test": near_test, "bits_test": test_bits, "bits_train": train_bits,
        "bits_gaussian": rival_bits,
    }  # fmt: skip
    return Result(claims, {k: float(v) for k, v in numbers.items()}, {k: np.asarray(v) for k, v in arrays.items()})


@partial(jax.jit, static_argnums=3)
def _by_ode(model, x0, label, steps):
    return jax.vmap(lambda x, y: matching.sample(model, x, steps=steps, args=y))(x0, label)


@partial(jax.jit, static_argnums=4)
def _by_sde(model, x0, label, epsilon, steps, key):
    score = matching.convert(model, PATH, "velocity", "score")
    one = lambda x, y, key: matching.sample_sde(
        model, score, x, epsilon=lambda t: epsilon * (1.0 - t), steps=steps, key=key, args=y
    )
    return jax.vmap(one)(x0, label, jax.random.split(key, len(x0)))


@partial(jax.jit, static_argnums=3)
def _bits(model, x, label, steps):
    normal = lambda x: jax.scipy.stats.norm.logpdf(x).sum()
    one = lambda xy: matching.log_prob(model, xy[0], normal, steps=steps, args=xy[1])
    # 30 images at a time: 30 x 64 tangents fill a matrix product and stay in the cache.
    return data.bits_per_dim(jax.lax.map(one, (x, label), batch_size=30), 17, DIM)


def _fit_gaussians(x: Array, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.covariance import LedoitWolf

    fits = [LedoitWolf().fit(np.asarray(x, np.float64)[y == c]) for c in range(10)]
    return [(fit.location_, fit.covariance_) for fit in fits]


def _sample_gaussians(gaussians: list, y: np.ndarray, key: Key) -> Array:
    z = np.asarray(jax.random.normal(key, (len(y), DIM)), np.float64)
    factors = [np.linalg.cholesky(cov) for _, cov in gaussians]
    return jnp.asarray(np.stack([gaussians[c][0] + factors[c] @ row for c, row in zip(y, z, strict=True)]), jnp.float32)


def _gaussian_bits(gaussians: list, x: Array, y: np.ndarray) -> np.ndarray:
    from scipy.stats import multivariate_normal

    laws = [multivariate_normal(mean, cov) for mean, cov in gaussians]
    log_p = np.array([laws[c].logpdf(row) for c, row in zip(y, np.asarray(x, np.float64), strict=True)])
    return np.asarray(data.bits_per_dim(jnp.asarray(log_p, jnp.float32), 17, DIM))


def _image(x: Array) -> Array:
    """Samples as digits: rounded to the 17 levels, which also cuts a Gaussian's tails, in [-1, 1]."""
    return data.quantise(data.unscale(x), 17).astype(x.dtype) / 8 - 1


def _excess(x: Array, x_label: np.ndarray, y: Array, y_label: np.ndarray) -> float:
    """Unbiased energy distance of two mixtures sampled class by class with the classes' weights.

    The plain U-statistic is negative for equal laws here: leaving self-pairs out thins the pairs of one class but not
    those of two. So each class drops its own self-pairs, with the weight p_c^2 that its pairs have.
    """
    weights = np.bincount(y_label, minlength=10) / len(y_label)
    plain = float(metrics.energy_distance(x, y))
    for c, p in enumerate(weights):
        pair = x[x_label == c], y[y_label == c]
        plain -= p**2 * float(metrics.energy_distance(*pair) - metrics.energy_distance(*pair, unbiased=True))
    return plain


def _resplit_distances(pool: Array, n: int, key: Key) -> np.ndarray:
    """Energy distances of two random halves of real digits, n each: what no model can beat on average."""

    @jax.jit
    def one(key):
        both = jax.random.permutation(key, pool)[: 2 * n]
        return metrics.energy_distance(both[:n], both[n:])

    return np.array([one(k) for k in jax.random.split(key, 20)])


def _classifier(x: Array, y: np.ndarray) -> Any:
    from sklearn.svm import SVC

    return SVC(C=10.0, gamma="scale").fit(np.asarray(x), y)


def _nearest(x: Array, to: Array) -> np.ndarray:
    from scipy.spatial import KDTree

    return KDTree(np.asarray(to)).query(np.asarray(x))[0]


def _gallery(model: Any, key: Key, config: Config) -> Array:
    """Twelve samples of each class, (10, 12, 64)."""
    label = jnp.repeat(jnp.arange(10), 12)
    return _by_ode(model, jax.random.normal(key, (120, DIM)), label, config.ode_steps).reshape(10, 12, DIM)


def _walk(model: Any, key: Key, config: Config) -> Array:
    """From noise to digit at twelve times, (4, 13, 64)."""
    label, x0 = jnp.asarray([2, 3, 5, 8]), jax.random.normal(key, (4, DIM))
    grid = jnp.linspace(0.0, 1.0, 49)
    one = lambda x, y: integrate(Dynamics(model), x, grid, args=y, method=Heun(), save_every=4).xs
    return jax.jit(jax.vmap(one))(x0, label)


def plot(result: Result) -> Any:
    """Samples by class, the way from noise to digit, the loss, likelihoods and distances."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(12, 8.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.05, 1))
    arrays = result.arrays

    def mosaic(axis, rows, title):
        tiles = rows.reshape(*rows.shape[:2], 8, 8).transpose(0, 2, 1, 3)
        padded = np.pad(tiles, ((0, 0), (0, 1), (0, 0), (0, 1)), constant_values=np.nan)
        axis.imshow(padded.reshape(rows.shape[0] * 9, -1), cmap="gray_r", vmin=-1, vmax=1)
        axis.set_title(title, fontsize=11)
        axis.set_xticks([])
        axis.set_yticks(9 * np.arange(len(rows)) + 3.5, range(len(rows)) if len(rows) == 10 else "2358")

    axes = left.subplots(2, 1, height_ratios=(10, 4.2))
    mosaic(axes[0], arrays["samples"], "samples by requested class (probability-flow ODE)")
    mosaic(axes[1], arrays["walk"], "from noise (t = 0) to digit (t = 1)")

    curve, bits, distance = right.subplots(3, 1)
    loss = arrays["loss"]
    width = max(1, len(loss) // 100)
    smooth = loss[: len(loss) // width * width].reshape(-1, width).mean(1)
    curve.plot(loss, color="0.85", lw=0.5)
    curve.plot(width * (np.arange(len(smooth)) + 0.5), smooth, color="C0")
    curve.set(xlabel="step", ylabel="loss", yscale="log", title="flow-matching loss per dimension")
    for name, label in (
        ("bits_train", "training digits"),
        ("bits_test", "held-out digits"),
        ("bits_gaussian", "held-out, Gaussian per class"),
    ):
        bits.hist(
            arrays[name],
            bins=40,
            range=(0, 5),
            alpha=0.5,
            density=True,
            label=f"{label}: {arrays[name].mean():.2f}",
        )
    bits.set(xlabel="bits per dimension", ylabel="density", title="exact negative log-likelihood")
    bits.legend(fontsize=8)
    for name, label in (("near_test", "held-out digits"), ("near", "samples")):
        distance.hist(arrays[name], bins=40, range=(0, 5), alpha=0.5, density=True, label=label)
    distance.set(xlabel="distance to the nearest training digit", ylabel="density", title="no copying")
    distance.legend(fontsize=8)
    return figure
