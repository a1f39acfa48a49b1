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
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial import KDTree
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf

from physml import data, matching, metrics, nn, train
from physml.integrate import Dynamics, Heun, integrate
from physml.metrics import mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, digits_kit, draw, experiment, setting
from physml.recipes.digits_kit import CLASSES, DIM, LEVELS, binomial, image
from physml.recipes.distances import energy_distance

INFO = RecipeInfo(
    paper="Lipman et al., Flow matching for generative modeling (2022), on the digits of Alpaydin and Kaynak (1998)",
    claim="samples, likelihoods and diversity of a digit model match held-out digits and beat a Gaussian per class",
    time="2 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Training, sampling, and what the claims ask for."""

    steps: int = 6000
    batch_size: int = 128
    width: int = 320
    depth: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = setting(2.0, least=0.0)
    ema_decay: float = setting(0.999, least=0.0, below=1.0)
    ode_steps: int = 50
    sde_steps: int = 200
    epsilon: float = setting(0.5, least=0.0)
    likelihood_steps: int = 20
    likelihood_images: int = 360
    permutations: int = 999
    draws: int = 10  # samples for each test digit where the excess is measured
    # the bounds of the claims
    energy_ratio: float = 2.0
    excess_ratio: float = 0.5
    agreement: float = 0.97
    bits: float = 2.5
    bits_gain: float = setting(0.1, least=-math.inf)
    copies: float = 0.03
    distance_ratio: float = 0.9


PAPER = Config()
# Seconds instead of minutes: a small net, half trained; its bounds say what that can reach.
SMOKE = Config(
    steps=1200, width=96, depth=2, ode_steps=20, sde_steps=100, likelihood_steps=8, likelihood_images=60,
    permutations=199, draws=2, energy_ratio=4.0, excess_ratio=3.5, agreement=0.8, bits=3.3, bits_gain=-0.6,
)  # fmt: skip

PATH = matching.linear()

SABOTAGE = (
    Sabotage(
        "the diffusion has its noise and no score", matching, "convert",
        lambda exact: lambda *field: lambda t, x, args: jnp.zeros_like(x),
    ),
    Sabotage(
        "the network is told wrong classes", matching, "match",
        lambda exact: lambda *rest, args, **options: exact(*rest, args=(args + 1) % CLASSES, **options),
    ),
)  # fmt: skip


def _loss(model, batch, *, key):
    """Flow matching on freshly dequantised digits, given their class."""
    levels, label = batch
    noise_key, source_key, match_key = jax.random.split(key, 3)
    x1 = digits_kit.numbers(levels, noise_key)
    x0 = jax.random.normal(source_key, x1.shape)
    return matching.match(model, PATH, x0, x1, key=match_key, args=label)


@experiment
def run(study, config, key):
    keys, digits = jax.random.split(key, 9), data.digits()
    test, seen = digits_kit.numbers(digits.test_x, keys[0]), digits_kit.numbers(digits.train_x, keys[1])
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, min(100, config.steps // 2), config.steps)
    fit = train.fit(
        _loss, nn.ResidualMLP(DIM, classes=CLASSES, width=config.width, depth=config.depth, key=keys[2]),
        (digits.train_x, digits.train_y), optimizer=optax.adamw(schedule, weight_decay=config.weight_decay),
        steps=config.steps, batch_size=config.batch_size, ema_decay=config.ema_decay, key=keys[3],
        progress=study.progress,
    )  # fmt: skip
    gaussians = _gaussians(seen, digits.train_y)
    _samples(study, config, fit.ema, gaussians, (test, seen), digits, keys[4:])
    _likelihoods(study, config, fit.ema, gaussians, (test, seen), digits)

    # Twelve samples of each class, and four ways from noise to digit, at thirteen times.
    noise = lambda i, n: jax.random.normal(jax.random.fold_in(key, i), (n, DIM))
    gallery = _by_ode(fit.ema, noise(1, 12 * CLASSES), jnp.repeat(jnp.arange(CLASSES), 12), config.ode_steps)
    times = jnp.linspace(0.0, 1.0, 49)
    one = lambda x, y: integrate(Dynamics(fit.ema), x, times, args=y, method=Heun(), save_every=4).xs
    study.keep(loss=fit.history.loss, gallery=gallery, walk=jax.vmap(one)(noise(2, 4), jnp.asarray([2, 3, 5, 8])))


def _samples(study, config, model, gaussians, real, digits, keys):
    """Samples by both processes against held-out digits, the Gaussians and the training set."""
    (test, seen), label = real, digits.test_y
    # Many samples for each test digit take their share out of the noise of the excess; the first set is judged alone.
    many_label = np.tile(label, config.draws)
    many = _by_ode(model, jax.random.normal(keys[0], (len(many_label), DIM)), jnp.asarray(many_label), config.ode_steps)
    ode, start = many[: len(test)], jax.random.normal(keys[1], test.shape)
    sde = _by_sde(model, start, jnp.asarray(label), config.epsilon, config.sde_steps, keys[2])
    same = metrics.permutation_test(ode, sde, key=keys[4], permutations=config.permutations)
    source = "permutation test of the energy distance"
    study.at_least("p-value, ODE against SDE samples", same.p_value, 0.01, source)

    images, held, known = image(ode), image(test), image(seen)
    floor = digits_kit.resplits(energy_distance, jnp.concatenate([held, known]), len(held), keys[4], 20).mean()
    bound = config.energy_ratio * floor
    source = f"{config.energy_ratio} x mean over 20 equal-size re-splits of real digits"
    study.at_most("energy distance, samples to test", energy_distance(images, held), bound, source)
    z = np.asarray(jax.random.normal(keys[3], (len(many_label), DIM)), np.float64)
    roots = [np.linalg.cholesky(law.cov) for law in gaussians]
    rivals = [gaussians[c].mean + roots[c] @ row for c, row in zip(many_label, z, strict=True)]
    rivals = image(jnp.asarray(np.stack(rivals), jnp.float32))
    excess, rival = (_excess(x, many_label, held, label) for x in (image(many), rivals))
    bound, source = config.excess_ratio * rival, f"{config.excess_ratio} x a Gaussian per class"
    study.at_most("its unbiased excess", excess, bound, source)

    judge = digits_kit.classifier(known, digits.train_y)
    agree, source = judge.score(images, label), "SVM trained on real digits"
    quantity, error = "classifier agrees with the requested class", binomial(agree, len(test))
    study.at_least(quantity, agree, config.agreement, source, error=error)
    near, near_test = (KDTree(np.asarray(known)).query(np.asarray(x))[0] for x in (images, held))
    copies, source = np.mean(near < np.percentile(near_test, 1)), "no copying"
    quantity, error = "samples nearer to the training set than 99% of test digits", binomial(copies, len(test))
    study.at_most(quantity, copies, config.copies, source, error=error)
    quantity = "median distance to the training set over that of test digits"
    study.at_least(quantity, np.median(near) / np.median(near_test), config.distance_ratio, source)
    study.measure(floor=floor, excess_gaussian=rival, accuracy=judge.score(held, label))
    study.measure(agreement_gaussian=judge.score(rivals[: len(test)], label))
    study.keep(near={"held-out digits": near_test, "samples": near})


def _likelihoods(study, config, model, gaussians, real, digits):
    """Bits per dimension of held-out digits, beside the Gaussians'."""
    count = min(config.likelihood_images, len(digits.test_y))
    (test, seen), label = (x[:count] for x in real), jnp.asarray(digits.test_y[:count])
    bits = lambda x, y, steps=config.likelihood_steps: np.asarray(_bits(model, x, y, steps), np.float64)
    log_p = [gaussians[c].logpdf(row) for c, row in zip(digits.test_y, np.asarray(test, np.float64), strict=False)]
    found = {
        "training digits": bits(seen, jnp.asarray(digits.train_y[:count])),
        "held-out digits": bits(test, label),
        "held-out, Gaussian per class": np.asarray(data.bits_per_dim(jnp.asarray(log_p, jnp.float32), LEVELS, DIM)),
    }
    ours, rival = found["held-out digits"], found["held-out, Gaussian per class"]
    source = "17 levels, given the class"
    study.at_most("bits per dimension, held-out digits", mean_and_error(ours), config.bits, source)
    gain = mean_and_error(rival - ours)
    study.at_least("bits gained on a Gaussian per class", gain, config.bits_gain, "Ledoit-Wolf covariance")
    change = abs(bits(test[:40], label[:40], 2 * config.likelihood_steps).mean() - ours[:40].mean())
    study.at_most("change of the bits with half the step", change, 0.02, "integration error")
    study.metrics |= {f"bits, {name}": x.mean() for name, x in found.items()}
    study.keep(bits=found)


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
    return data.bits_per_dim(jax.lax.map(one, (x, label), batch_size=30), LEVELS, DIM)


def _gaussians(x, y):
    """A Gaussian of each class."""
    fits = [LedoitWolf().fit(np.asarray(x, np.float64)[y == c]) for c in range(CLASSES)]
    return [multivariate_normal(fit.location_, fit.covariance_) for fit in fits]


def _excess(x, x_label, y, y_label):
    """Unbiased energy distance of two mixtures sampled class by class with the classes' weights.

    The plain U-statistic is negative for equal laws here: leaving self-pairs out thins the pairs of one class but not
    those of two. So each class drops its own self-pairs, with the weight p_c^2 that its pairs have.
    """
    weights = np.bincount(y_label, minlength=CLASSES) / len(y_label)
    plain = float(energy_distance(x, y))
    for c, p in enumerate(weights):
        pair = x[x_label == c], y[y_label == c]
        plain -= p**2 * float(metrics.energy_distance(*pair) - metrics.energy_distance(*pair, unbiased=True))
    return plain


def plot(result):
    """Samples by class, the way from noise to digit, the loss, likelihoods and distances."""
    import matplotlib.pyplot as plt

    d = result.data
    figure = plt.figure(figsize=(12, 8.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.05, 1))
    top, bottom = left.subplots(2, 1, height_ratios=(10, 4.2))
    digits_kit.mosaic(top, d.gallery, 12, "samples by requested class (probability-flow ODE)")
    digits_kit.mosaic(bottom, d.walk, 13, "from noise (t = 0) to digit (t = 1)")
    curve, bits, distance = right.subplots(3, 1)
    width = max(1, len(d.loss) // 100)
    smooth = d.loss[: len(d.loss) // width * width].reshape(-1, width).mean(1)
    curve.plot(d.loss, color="0.85", lw=0.5)
    curve.plot(width * (np.arange(len(smooth)) + 0.5), smooth, color="C0")
    draw.label(curve, "flow-matching loss per dimension", "step", "loss", log="y")
    for name, x in d.bits.items():
        draw.histogram(bits, x, np.linspace(0, 5, 41), label=f"{name}: {x.mean():.2f}")
    draw.label(bits, "exact negative log-likelihood", "bits per dimension", "density")
    for name, x in d.near.items():
        draw.histogram(distance, x, np.linspace(0, 5, 41), label=name)
    draw.label(distance, "no copying", "distance to the nearest training digit", "density")
    return figure
