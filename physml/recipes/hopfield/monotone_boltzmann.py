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
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml.core._fixed_point import Anderson
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.data import digits
from physml.hopfield.learning.boltzmann import monotone_boltzmann, softmax
from physml.recipes._result import Info, Result, at_least, at_most

INFO = Info(
    paper="Feng, Winston and Kolter, Monotone deep Boltzmann machines (2023)",
    claim="one mean-field solution from every start; one machine classifies digits and fills in missing pixels",
    time="1 min, smoke 10 s",
)
PIXELS, CLASSES = 64, 10


@dataclasses.dataclass(frozen=True)
class Config:
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


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Train, classify, complete."""
    data = digits()
    binary = lambda x: (np.asarray(x).reshape(len(x), -1) >= data.levels // 2).astype(int)
    images, labels = binary(data.train_x)[: config.train], np.asarray(data.train_y, int)[: config.train]
    test, truth = binary(data.test_x)[: config.test], np.asarray(data.test_y, int)[: config.test]
    machine, losses = _train(config, _one_hot(config, images, labels), key, progress)
    values = _one_hot(config, test, truth)
    pixel = np.arange(PIXELS + 1 + config.hidden) < PIXELS
    below = np.arange(PIXELS) >= PIXELS // 2
    missing = np.asarray(jax.random.uniform(jax.random.fold_in(key, 4), test.shape)) < config.missing
    upper = pixel & (np.arange(len(pixel)) < PIXELS // 2)
    same = lambda mask: np.broadcast_to(mask, (len(test), len(pixel)))
    scattered = np.pad(~missing, ((0, 0), (0, len(pixel) - PIXELS)))
    found = {name: np.asarray(_read(machine, jnp.asarray(mask), values))
             for name, mask in (("whole", same(pixel)), ("half", same(upper)), ("scattered", scattered))}  # fmt: skip
    guess = {name: q[:, 1 : 2 * PIXELS : 2] for name, q in found.items()}
    label = {name: q[:, 2 * PIXELS : 2 * PIXELS + CLASSES] for name, q in found.items()}
    right = {name: float(np.mean(p.argmax(1) == truth)) for name, p in label.items()}

    mean = np.broadcast_to(images.mean(0), test.shape)
    of_class = np.stack([images[labels == c].mean(0) for c in range(CLASSES)])[truth]
    lower = np.broadcast_to(below, test.shape)
    error = lambda p, where: float(np.mean((p - test)[where] ** 2))
    halves = error(guess["half"], lower) / error(mean, lower)
    fills = error(guess["scattered"], missing) / error(mean, missing)
    gaussian = error(_gaussian_fill(images, test, missing), missing) / error(mean, missing)

    logits = 4 * jax.random.normal(jax.random.fold_in(key, 3), (config.starts, values.shape[1]))
    starts = jax.vmap(lambda y: softmax(machine.sizes, y))(logits)
    solved = [_solve(machine, jnp.asarray(upper), values[0], s).check() for s in starts]
    apart = max(float(jnp.max(jnp.abs(s.q - solved[0].q))) for s in solved)
    linear = _logistic(images, labels, test, truth)
    claims = (
        at_most("largest distance between solutions from random starts", apart, config.same, "uniqueness"),
        at_least(
            "accuracy from whole images", right["whole"], linear - config.below_logistic, "logistic regression, less"
        ),
        at_least("accuracy from upper halves", right["half"], config.half_accuracy, "chance is .1"),
        at_most("square error of lower halves over that of the mean image", halves, config.half, "mean image"),
        at_most("square error of missing pixels over that of the mean image", fills, config.scattered, "mean image"),
    )
    metrics = {c.quantity: c.value for c in claims} | {
        "accuracy of logistic regression": linear,
        "accuracy with missing pixels": right["scattered"],
        "error of lower halves, mean of the true class": error(of_class, lower) / error(mean, lower),
        "error of missing pixels, conditional mean of a Gaussian": gaussian,
        "steps of the slowest start": max(int(s.status.step) for s in solved),
        "largest eigenvalue": float(jnp.linalg.eigvalsh(machine.couplings())[-1]),
    }
    shown = slice(0, 10)
    arrays = {
        "losses": losses, "images": test[shown], "guess": guess["half"][shown], "truth": truth[shown],
        "labels": label["half"][shown], "couplings": np.asarray(machine.couplings()),
    }  # fmt: skip
    return Result(claims, metrics, arrays)


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


def _train(config, values, key, progress):
    sizes = (2,) * PIXELS + (CLASSES,) + (2,) * config.hidden
    machine_key, key = jax.random.split(key)
    machine = monotone_boltzmann(sizes, key=machine_key, margin=config.margin, scale=config.scale)
    # Without couplings the machine knows the mean image: it starts there.
    shares = (jnp.sum(values, 0) + 0.5) / (len(values) + 1.0)
    machine = eqx.tree_at(lambda m: m.bias, machine, jnp.log(shares))
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    visible = jnp.asarray(owner <= PIXELS)

    def loss(machine, batch, clamp):
        def one(v, clamp):
            q = machine.mean_field(clamp, v, method=Anderson(), tol=1e-4, max_steps=100).q
            free = visible & ~clamp[owner]
            nats = -jnp.where(free, v * jnp.log(jnp.where(free, q, 1.0) + 1e-6), 0.0)
            is_label = jnp.asarray(owner == PIXELS)
            return jnp.sum(jnp.where(is_label, nats, config.pixels * nats / PIXELS))

        return jnp.mean(jax.vmap(one)(batch, clamp))

    @eqx.filter_jit
    def step(machine, state, k):
        rows, kind, share, hide = jax.random.split(k, 4)
        batch = values[jax.random.randint(rows, (config.batch,), 0, len(values))]
        variables = len(sizes)
        # A third of the images are seen whole, a third by their upper rows, as many as chance has it, and of a third
        # every pixel with a probability of its own image.
        rate = jax.random.uniform(share, (config.batch, 1))
        kinds = jax.random.randint(kind, (config.batch, 1), 0, 3)
        scattered = jax.random.uniform(hide, (config.batch, variables)) < rate
        rows_seen = (np.arange(variables) // 8)[None, :].astype(np.float32) < jnp.floor(9 * rate)
        clamp = jnp.where(kinds == 0, True, jnp.where(kinds == 1, rows_seen, scattered))
        clamp = clamp & (jnp.arange(variables) < PIXELS)[None, :]
        value, slope = jax.value_and_grad(loss)(machine, batch, clamp)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            move, state = optimizer.update(slope, state)
        return eqx.apply_updates(machine, move), state, value

    state = optimizer.init(machine)
    losses = []
    with progress_bar(config.steps, "monotone Boltzmann machine", "step", show=progress) as bar:
        for i in range(config.steps):
            machine, state, value = step(machine, state, jax.random.fold_in(key, i))
            losses.append(value)
            bar.update()
    return machine, np.asarray(losses, np.float64)


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


def plot(result: Result) -> Any:
    """Loss, completed digits, couplings."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained", width_ratios=(1, 2, 1.2))
    axes[0].plot(a["losses"], "0.8", lw=0.8)
    width = max(1, len(a["losses"]) // 12)
    axes[0].plot(
        np.arange(width - 1, len(a["losses"])), np.convolve(a["losses"], np.ones(width) / width, "valid"), "C0"
    )
    axes[0].set(xlabel="step", ylabel="nats", title="cross entropy of what is hidden")
    tile = lambda rows: np.concatenate([np.pad(r.reshape(8, 8).astype(float), 1, constant_values=0.5) for r in rows], 1)
    half = a["images"].astype(float).copy()
    half[:, 32:] = 0.5
    axes[1].imshow(np.concatenate([tile(a["images"]), tile(half), tile(a["guess"])]), cmap="gray", vmin=0, vmax=1)
    for i, (label, truth) in enumerate(zip(a["labels"].argmax(1), a["truth"], strict=True)):
        axes[1].text(10 * i + 4.5, 33.5, f"{label}", ha="center", color="k" if label == truth else "C3")
    axes[1].set(title="image, what is shown, solution and its label", xticks=[], yticks=[])
    axes[1].set_ylim(36, -0.5)
    top = np.quantile(np.abs(a["couplings"]), 0.999)
    image = axes[2].imshow(a["couplings"], cmap="coolwarm", vmin=-top, vmax=top)
    axes[2].set(title=r"$\Phi$: pixels, label, hidden")
    figure.colorbar(image, ax=axes[2], shrink=0.8)
    return figure
