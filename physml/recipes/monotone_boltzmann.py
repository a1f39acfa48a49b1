r"""Boltzmann machines with one mean-field solution: digits classified and completed by the same machine.

$$q_i = \operatorname{softmax}\bigl((\Phi q + b)_i\bigr), \qquad I - \Phi \succeq m$$

Pixels, hidden units and the label are variables of one machine (`physml.hopfield.MonotoneBoltzmann`). Whatever is known is clamped,
and the rest is read off the unique solution. Training draws at random what is clamped and lowers the cross entropy of what is
not, with the derivative of the solution by one linear solve.

1. All starts lead to one solution, in some tens of steps, also after training.
2. The label from whole images; the lower half of images from the upper half, together with the label.
3. The baselines know as much: logistic regression for labels, the mean of the training images (of the true class, which is more
   than the machine is told) for pixels.

**See** Feng, Winston and Kolter, Monotone deep Boltzmann machines (2023).
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.data import digits
from physml.hopfield.boltzmann import monotone_boltzmann, softmax
from physml.recipes._result import Info, Result, at_least, at_most

INFO = Info(
    paper="Feng, Winston and Kolter, Monotone deep Boltzmann machines (2023)",
    claim="one mean-field solution from every start; one machine classifies digits and completes their lower halves",
    time="3 min",
)
PIXELS, CLASSES = 64, 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    hidden: int = 32
    rank: int = 64
    margin: float = 0.1
    train: int = 1400
    batch: int = 64
    steps: int = 600
    learning_rate: float = 1e-2
    test: int = 300
    starts: int = 8
    # the bounds of the claims
    same: float = 1e-3
    accuracy: float = 0.9
    half_accuracy: float = 0.6
    pixels: float = 1.0  # of the error of the mean image


PAPER = Config()
SMOKE = Config(
    hidden=4, rank=16, train=200, batch=16, steps=30, test=100, starts=3, accuracy=0.22, half_accuracy=0.0, pixels=2.0
)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Train, classify, complete."""
    data = digits()
    binary = lambda x: (np.asarray(x).reshape(len(x), -1) >= data.levels // 2).astype(int)
    images, labels = binary(data.train_x)[: config.train], np.asarray(data.train_y, int)[: config.train]
    test, truth = binary(data.test_x)[: config.test], np.asarray(data.test_y, int)[: config.test]
    machine, losses = _train(config, _one_hot(config, images, labels), key, progress)
    values = _one_hot(config, test, truth)
    whole, upper = _clamps(config)
    read = eqx.filter_jit(lambda m, clamp, v: jax.vmap(lambda v: m.mean_field(clamp, v, tol=1e-4).q)(v))
    label = lambda q: np.asarray(q)[:, 2 * PIXELS : 2 * PIXELS + CLASSES]
    all_seen, half_seen = read(machine, whole, values), read(machine, upper, values)
    accuracy, half = (np.mean(label(q).argmax(1) == truth) for q in (all_seen, half_seen))
    guess = np.asarray(half_seen)[:, 1 : 2 * PIXELS : 2]
    below = np.arange(PIXELS) >= PIXELS // 2
    means = np.stack([images[labels == c].mean(0) for c in range(CLASSES)])
    error = lambda p: np.mean((p - test)[:, below] ** 2)
    ours, mean, of_class = error(guess), error(images.mean(0)[None]), error(means[truth])

    logits = 4 * jax.random.normal(jax.random.fold_in(key, 3), (config.starts, values.shape[1]))
    starts = jax.vmap(lambda y: softmax(machine.sizes, y))(logits)
    solve = eqx.filter_jit(lambda m, s, v: m.mean_field(upper, v, start=s, tol=1e-5))
    solved = [solve(machine, s, values[0]).check() for s in starts]
    apart = max(float(jnp.max(jnp.abs(s.q - solved[0].q))) for s in solved)
    steps = max(int(s.status.step) for s in solved)
    linear = _logistic(images, labels, test, truth)
    claims = (
        at_most("largest distance between solutions from random starts", apart, config.same, "uniqueness"),
        at_most("steps of the slowest start", steps, 500, "rate 1 - m / |I - Phi|"),
        at_least(f"accuracy from whole images (logistic regression {linear:.3f})", accuracy, config.accuracy, "test images"),
        at_least("accuracy from upper halves", half, config.half_accuracy, "chance is .1"),
        at_most(f"square error of lower halves over that of the mean image (of the mean of the true class {of_class / mean:.2f})", ours / mean, config.pixels, "mean image"),
    )  # fmt: skip
    metrics = {c.quantity: c.value for c in claims} | {"smallest eigenvalue": float(_lowest(machine))}
    shown = slice(0, 10)
    arrays = {
        "losses": np.asarray(losses), "images": test[shown], "guess": guess[shown], "truth": truth[shown],
        "labels": label(half_seen)[shown], "couplings": np.asarray(machine.couplings()),
    }  # fmt: skip
    return Result(claims, metrics, arrays)


def _lowest(machine):
    return 1 - jnp.linalg.eigvalsh(machine.couplings())[-1]


def _one_hot(config, images, labels):
    """(n, states): pixels, label, hidden units at one half, which are never clamped."""
    pixels = np.stack([1 - images, images], -1).reshape(len(images), -1)
    label = np.eye(CLASSES)[labels]
    hidden = np.full((len(images), 2 * config.hidden), 0.5)
    return jnp.asarray(np.concatenate([pixels, label, hidden], 1), jnp.float32)


def _clamps(config):
    """All pixels, and their upper half."""
    variables = PIXELS + 1 + config.hidden
    whole = np.arange(variables) < PIXELS
    return jnp.asarray(whole), jnp.asarray(np.arange(variables) < PIXELS // 2)


def _train(config, values, key, progress):
    sizes = (2,) * PIXELS + (CLASSES,) + (2,) * config.hidden
    machine_key, key = jax.random.split(key)
    machine = monotone_boltzmann(sizes, rank=config.rank, key=machine_key, margin=config.margin)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    visible = jnp.asarray(owner <= PIXELS)

    def loss(machine, batch, clamp):
        def one(v, clamp):
            q = machine.mean_field(clamp, v, tol=1e-4, max_steps=60).q
            free = visible & ~clamp[owner]
            nats = -jnp.where(free, v * jnp.log(jnp.where(free, q, 1.0) + 1e-6), 0.0)
            # The label counts as much as all pixels together.
            is_label = jnp.asarray(owner == PIXELS)
            return jnp.sum(jnp.where(is_label, nats, nats / PIXELS))

        return jnp.mean(jax.vmap(one)(batch, clamp))

    @eqx.filter_jit
    def step(machine, state, k):
        rows, kind, share, hide = jax.random.split(k, 4)
        batch = values[jax.random.randint(rows, (config.batch,), 0, len(values))]
        variables = len(sizes)
        # Half of the images are seen whole; of the others every pixel with a probability of its own image.
        rate = jnp.where(
            jax.random.uniform(kind, (config.batch, 1)) < 0.5, 1.0, jax.random.uniform(share, (config.batch, 1))
        )
        clamp = (jax.random.uniform(hide, (config.batch, variables)) < rate) & (jnp.arange(variables) < PIXELS)[None, :]
        value, slope = jax.value_and_grad(loss)(machine, batch, clamp)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            move, state = optimizer.update(slope, state)
        return optax.apply_updates(machine, move), state, value

    state = optimizer.init(machine)
    losses = []
    with progress_bar(config.steps, "monotone Boltzmann machine", "step", show=progress) as bar:
        for i in range(config.steps):
            machine, state, value = step(machine, state, jax.random.fold_in(key, i))
            losses.append(value)
            bar.update()
    return machine, np.asarray(losses, np.float64)


def _logistic(images, labels, test, truth):
    from sklearn.linear_model import LogisticRegression

    return float(LogisticRegression(max_iter=500).fit(images, labels).score(test, truth))


def plot(result: Result) -> Any:
    """Loss, completed digits, couplings."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained", width_ratios=(1, 2, 1.2))
    axes[0].plot(a["losses"], lw=0.8)
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
