r"""Boltzmann machines with one mean-field solution: digits classified and completed by the same machine.

$$q_i = \operatorname{softmax}\bigl((\Phi q + b)_i\bigr), \qquad I - \Phi \succeq m$$

Pixels, hidden units and the label are variables of one machine (`physml.hopfield.MonotoneBoltzmann`). Whatever is
known is clamped, and the rest is read off the unique solution. Training draws at random what is clamped and lowers the cross
entropy of what is not, with the derivative of the solution by one linear solve.

1. All starts lead to one solution in some ten steps, also after training.
2. The label from whole images, from their upper halves, and with pixels missing at random.
3. Missing pixels, better than the mean image tells them.
4. Uniqueness has its price, which is reported: attractive couplings are bounded, so logistic regression and the
   conditional mean of a Gaussian, each made for one of the tasks, are better at it.

**See** Feng, Winston and Kolter, Monotone deep Boltzmann machines (2023).
"""

import dataclasses
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml.core.iterations import Anderson
from physml.data import digits
from physml.hopfield.learning.boltzmann import monotone_boltzmann, softmax
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment
from physml.train import minimise

INFO = RecipeInfo(
    paper="Feng, Winston and Kolter, Monotone deep Boltzmann machines (2023)",
    claim="one mean-field solution from every start; one machine classifies digits and fills in missing pixels",
    time="1 min, smoke 10 s",
)
PIXELS, CLASSES = 64, 10


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    hidden: int = 32
    margin: float = 0.1
    scale: float = 0.3  # of the weights at the start
    train: int = 1400
    batch: int = 64
    steps: int = 400
    learning_rate: float = 1e-2
    pixels: float = 48.0  # what all pixels together count in the loss, beside the label
    missing: float = 0.4  # share of the pixels, at random
    test: int = 300
    starts: int = 8
    # the bounds of the claims
    same: float = 1e-3
    below_logistic: float = 0.05
    half_accuracy: float = 0.6
    half: float = 0.95  # square errors over those of the mean image
    scattered: float = 0.95


PAPER = Config()
SMOKE = Config(
    hidden=4, train=300, batch=32, steps=120, learning_rate=3e-2, test=100, starts=3, below_logistic=0.3, half_accuracy=0.3, half=1.05,
    scattered=1.05,
)  # fmt: skip


def _upside_down(exact):
    """Training on images whose rows are in reversed order."""

    def train(config, values, key):
        pixels = values[:, : 2 * PIXELS].reshape(-1, 8, 16)[:, ::-1].reshape(-1, 2 * PIXELS)
        return exact(config, values.at[:, : 2 * PIXELS].set(pixels), key)

    return train


SABOTAGE = Sabotage("the machine learns from images upside down", sys.modules[__name__], "_train", _upside_down)


@experiment
def run(study, config, key):
    data = digits()
    binary = lambda x: (np.asarray(x).reshape(len(x), -1) >= data.levels // 2).astype(int)
    images, labels = binary(data.train_x)[: config.train], np.asarray(data.train_y, int)[: config.train]
    test, truth = binary(data.test_x)[: config.test], np.asarray(data.test_y, int)[: config.test]
    machine, losses = _train(config, _one_hot(config, images, labels), key)
    values = _one_hot(config, test, truth)
    study.keep(losses=losses, couplings=np.asarray(machine.couplings()))
    study.metrics["largest eigenvalue"] = jnp.linalg.eigvalsh(machine.couplings())[-1]
    _unique(study, config, machine, values[0], jax.random.fold_in(key, 3))
    hidden = np.asarray(jax.random.uniform(jax.random.fold_in(key, 4), test.shape)) < config.missing
    _tasks(study, config, machine, (images, labels), (test, truth, values), hidden)


@eqx.filter_jit
def _read(machine, clamped, values):
    """q of every image, with what it shows clamped."""
    one = lambda c, v: machine.mean_field(c, v, method=Anderson(), tol=1e-4).q
    return jax.vmap(one)(clamped, values)


@eqx.filter_jit
def _solve(machine, clamped, values, start):
    return machine.mean_field(clamped, values, start=start, method=Anderson(), tol=1e-5)


def _one_hot(config, images, labels):
    """(n, states): pixels, label, hidden units at one half, which are never clamped."""
    pixels = np.stack([1 - images, images], -1).reshape(len(images), -1)
    label = np.eye(CLASSES)[labels]
    hidden = np.full((len(images), 2 * config.hidden), 0.5)
    return jnp.asarray(np.concatenate([pixels, label, hidden], 1), jnp.float32)


def _train(config, values, key):
    """The machine after training, and the losses."""
    sizes = (2,) * PIXELS + (CLASSES,) + (2,) * config.hidden
    machine_key, key = jax.random.split(key)
    machine = monotone_boltzmann(sizes, key=machine_key, margin=config.margin, scale=config.scale)
    # Without couplings the machine knows the mean image: it starts there.
    shares = (jnp.sum(values, 0) + 0.5) / (len(values) + 1.0)
    machine = eqx.tree_at(lambda m: m.bias, machine, jnp.log(shares))
    variables, owner = len(sizes), np.repeat(np.arange(len(sizes)), sizes)
    weight = jnp.asarray(np.select([owner < PIXELS, owner == PIXELS], [config.pixels / PIXELS, 1.0], 0.0), jnp.float32)

    def nats(machine, v, clamp):
        """Cross entropy of the pixels and the label that are not clamped."""
        q = machine.mean_field(clamp, v, method=Anderson(), tol=1e-4, max_steps=100).q
        free = (weight > 0) & ~clamp[owner]
        return -jnp.sum(jnp.where(free, weight * v * jnp.log(jnp.where(free, q, 1.0) + 1e-6), 0.0))

    def loss(machine, k):
        rows, kind, share, hide = jax.random.split(k, 4)
        batch = values[jax.random.randint(rows, (config.batch,), 0, len(values))]
        # A third of the images are seen whole, a third by their upper rows, as many as chance has it, and of a third
        # every pixel with a probability of its own image.
        rate = jax.random.uniform(share, (config.batch, 1))
        kinds = jax.random.randint(kind, (config.batch, 1), 0, 3)
        scattered = jax.random.uniform(hide, (config.batch, variables)) < rate
        upper = (np.arange(variables) // 8)[None, :].astype(np.float32) < jnp.floor(9 * rate)
        clamp = jnp.where(kinds == 0, True, jnp.where(kinds == 1, upper, scattered))
        clamp = clamp & (jnp.arange(variables) < PIXELS)[None, :]
        return jnp.mean(jax.vmap(nats, (None, 0, 0))(machine, batch, clamp))

    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(config.steps))
    found = minimise(loss, machine, optimizer, batches=keys).check()
    return found.x, np.asarray(found.losses, np.float64)


def _unique(study, config, machine, values, key):
    """Solutions from random starts, with the upper half of an image clamped."""
    upper = jnp.arange(len(machine.sizes)) < PIXELS // 2
    logits = 4 * jax.random.normal(key, (config.starts, len(values)))
    solved = [_solve(machine, upper, values, softmax(machine.sizes, y)).check() for y in logits]
    apart = max(float(jnp.max(jnp.abs(s.q - solved[0].q))) for s in solved)
    study.at_most("largest distance between solutions from random starts", apart, config.same, "uniqueness")
    study.metrics["steps of the slowest start"] = max(int(s.status.step) for s in solved)


def _tasks(study, config, machine, known, asked, missing):
    """Labels and pixels from whole images, from upper halves, and with pixels missing at random."""
    (images, labels), (test, truth, values) = known, asked
    pixel = np.arange(len(machine.sizes)) < PIXELS
    upper = np.arange(len(machine.sizes)) < PIXELS // 2
    scattered = np.pad(~missing, ((0, 0), (0, len(pixel) - PIXELS)))
    guess, label, right = {}, {}, {}
    for name, mask in (("whole", pixel), ("half", upper), ("scattered", scattered)):
        clamped = jnp.asarray(np.broadcast_to(mask, (len(test), len(pixel))))
        q = np.asarray(_read(machine, clamped, values))
        guess[name] = q[:, 1 : 2 * PIXELS : 2]
        label[name] = q[:, 2 * PIXELS : 2 * PIXELS + CLASSES].argmax(1)
        right[name] = float(np.mean(label[name] == truth))
    # Square errors over those of the mean image.
    mean = images.mean(0)
    lower = np.broadcast_to(~upper[:PIXELS], test.shape)
    error = lambda p, where: np.mean((p - test)[where] ** 2) / np.mean((mean - test)[where] ** 2)
    of_class = np.stack([images[labels == c].mean(0) for c in range(CLASSES)])[truth]
    linear, gaussian = _logistic(images, labels, test, truth), _gaussian_fill(images, test, missing)
    halves, fills = error(guess["half"], lower), error(guess["scattered"], missing)
    bound = linear - config.below_logistic
    study.at_least("accuracy from whole images", right["whole"], bound, "logistic regression, less")
    study.at_least("accuracy from upper halves", right["half"], config.half_accuracy, "chance is .1")
    quantity = "square error of {} over that of the mean image".format
    study.at_most(quantity("lower halves"), halves, config.half, "mean image")
    study.at_most(quantity("missing pixels"), fills, config.scattered, "mean image")
    study.metrics |= {
        "accuracy of logistic regression": linear,
        "accuracy with missing pixels": right["scattered"],
        "error of lower halves, mean of the true class": error(of_class, lower),
        "error of missing pixels, conditional mean of a Gaussian": error(gaussian, missing),
    }
    study.keep(images=test[:10], guess=guess["half"][:10], labels=label["half"][:10], truth=truth[:10])


def _gaussian_fill(images, test, missing):
    """Missing pixels from the others, by a Gaussian with the images' mean and covariance."""
    mean, covariance = images.mean(0), np.cov(images.T) + 0.03 * np.eye(PIXELS)
    out = test.astype(float)
    for row, m in zip(out, missing, strict=True):
        row[m] = mean[m] + covariance[np.ix_(m, ~m)] @ np.linalg.solve(covariance[np.ix_(~m, ~m)], row[~m] - mean[~m])
    return np.clip(out, 0, 1)


def _logistic(images, labels, test, truth):
    from sklearn.linear_model import LogisticRegression

    return float(LogisticRegression(max_iter=500).fit(images, labels).score(test, truth))


def plot(result):
    """Loss, completed digits, couplings."""
    d = result.data
    figure, (loss, pictures, matrix) = draw.panels(1, 3, width_ratios=(1, 2, 1.2))
    width = max(1, len(d.losses) // 12)
    loss.plot(d.losses, "0.8", lw=0.8)
    loss.plot(np.arange(width - 1, len(d.losses)), np.convolve(d.losses, np.ones(width) / width, "valid"), "C0")
    draw.label(loss, "cross entropy of what is hidden", "step", "nats")
    half = np.where(np.arange(PIXELS) < PIXELS // 2, d.images, 0.5)
    tiles = np.concatenate([d.images, half, d.guess]).reshape(-1, 8, 8)
    pictures.imshow(draw.mosaic(tiles, 10, gap=2, fill=0.5), cmap="gray", vmin=0, vmax=1)
    for i, (label, truth) in enumerate(zip(d.labels, d.truth, strict=True)):
        pictures.text(10 * i + 3.5, 32, f"{label}", ha="center", color="k" if label == truth else "C3")
    draw.label(pictures, "image, what is shown, solution and its label", xticks=[], yticks=[], ylim=(34, -0.5))
    top = np.quantile(np.abs(d.couplings), 0.999)
    shown = matrix.imshow(d.couplings, cmap="coolwarm", vmin=-top, vmax=top)
    draw.label(matrix, r"$\Phi$: pixels, label, hidden")
    figure.colorbar(shown, ax=matrix, shrink=0.8)
    return figure
