r"""Outlier-efficient Hopfield layers: a transformer with softmax beside one with softmax_1, before and after 8 bits.

$$\mathrm{softmax}_1(z)_i = \frac{e^{z_i}}{1 + \sum_j e^{z_j}}$$

can associate with nothing. A head of softmax that has nothing to add must look somewhere, and the first token is always
there; softmax_1 has a slot that holds nothing. Where such sinks grow outliers, a quantisation to few bits has to cover
their range.

Task: sequences from a chain $p(x_{t+1} | x_t)$ that every sequence shares, with triggers: after a trigger comes the
token *before* the trigger. The chain needs no attention, a trigger does; so the head must be at rest most of the time.
Both transformers have the same weights at the start, the same data and the same optimiser. The loss is held against
the entropy of the task, and measured again with weights and activations rounded to few bits for each tensor.

**Not shown.** Outliers: three blocks of width 32 trained for 2000 steps grow none. Kurtosis (5.1 to 7.2 at three seeds)
and the largest state are the same for both within an eighth, and eight bits cost either less than 0.001 nats, so nothing
is left for softmax_1 to save; at four bits it lost as much as softmax or a quarter less. That it quantises better, the
finding for large models, is therefore reported as numbers and not claimed.

**See** Hu et al., Outlier-efficient Hopfield layers for large transformer-based models (2024); Guo et al.,
Active-dormant attention heads (2024), for the task.
"""

import dataclasses
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from physml.core.types import Key
from physml.hopfield import Hopfield
from physml.nn import adaptive_layer_norm
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting
from physml.train import minimise

INFO = RecipeInfo(
    paper="Hu et al., Outlier-efficient Hopfield layers for large transformer-based models (2024)",
    claim="softmax_1 rests on its empty slot where softmax looks at the first token, at the same loss, also in 8 bits",
    time="2 min, smoke 12 s",
)

KINDS = ("softmax", "softmax1")


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """The task, the transformer, its training, and what the claims ask for."""

    vocabulary: int = 24  # token 0 begins every sequence
    triggers: int = 3
    length: int = setting(32, least=4.0)
    width: int = 32
    depth: int = 3
    heads: int = 1
    steps: int = 2000
    batch: int = 32
    rate: float = 5e-3
    test: int = 256
    bits: tuple[int, ...] = (8, 6, 5, 4)
    # the bounds of the claims
    excess: float = 0.05
    apart: float = 0.02
    rest: float = 0.4
    sink_ratio: float = 1.0
    rise: float = 0.01

    def rules(self):
        return ((self.vocabulary >= self.triggers + 3, "three tokens that are no triggers"),)


PAPER = Config()
SMOKE = Config(vocabulary=12, triggers=2, length=16, width=16, depth=1, heads=1, steps=150, batch=16, test=64, bits=(8, 4),
    excess=0.6, apart=0.3, rest=0.05, rise=0.05)  # fmt: skip

SABOTAGE = Sabotage(
    "softmax in place of softmax_1", sys.modules[__name__], "Hopfield",
    lambda exact: lambda *a, separation, **options: exact(*a, separation="softmax", **options),
)  # fmt: skip


class Task(eqx.Module):
    """A Markov chain whose triggers copy, but for one at the very start; tokens 1 to `triggers` are the triggers."""

    chain: Array  # (vocabulary, vocabulary) log-probabilities, nothing ever returns to token 0
    triggers: int = eqx.field(static=True)

    def __init__(self, vocabulary: int, triggers: int, *, key: Key):
        logits = 1.5 * jax.random.normal(key, (vocabulary, vocabulary))
        self.chain = jax.nn.log_softmax(logits.at[:, 0].set(-jnp.inf))
        self.triggers = triggers

    def draw(self, count: int, length: int, key: Key) -> tuple[Array, Array, Array]:
        """Tokens (count, length), the entropy of what follows each, and whether a copy follows."""

        def step(carry, key):
            before, now = carry
            copy = (now >= 1) & (now <= self.triggers) & (before > 0)
            free = jax.random.categorical(key, self.chain[now]).astype(jnp.int32)
            p = jnp.exp(self.chain[now])
            entropy = jnp.where(copy, 0.0, -jnp.sum(jnp.where(p > 0, p * self.chain[now], 0.0)))
            return (now, jnp.where(copy, before, free)), (now, entropy, copy)

        start = (jnp.int32(0), jnp.int32(0))
        one = lambda key: jax.lax.scan(step, start, jax.random.split(key, length))[1]
        return jax.vmap(one)(jax.random.split(key, count))


def rounded(x: Array, levels: Any) -> Array:
    """x on a grid of 2 levels + 1 points, symmetric up to its largest entry: one scale for the tensor; 0 leaves x."""
    if levels is None:
        return x
    scale = jnp.max(jnp.abs(x)) / jnp.maximum(levels, 1.0)
    coarse = jnp.round(x / jnp.where(scale == 0, 1.0, scale)) * scale
    return jnp.where(levels > 0, coarse, x)


class Transformer(eqx.Module):
    """Tokens and positions in, then blocks of a causal Hopfield layer and a perceptron, then logits."""

    tokens: Array
    positions: Array
    attention: tuple[Hopfield, ...]
    up: tuple[Array, ...]
    down: tuple[Array, ...]
    last: Array

    def __init__(self, config: Config, separation: str, *, key: Key):
        keys = jax.random.split(key, 3 + 3 * config.depth)
        d, dense = config.width, jax.nn.initializers.lecun_normal()
        self.tokens = 0.5 * jax.random.normal(keys[0], (config.vocabulary, d))
        self.positions = 0.5 * jax.random.normal(keys[1], (config.length, d))
        self.last = dense(keys[2], (d, config.vocabulary))
        layer = partial(Hopfield, d, config.heads, separation=separation)
        self.attention = tuple(layer(key=k) for k in keys[3::3])
        self.up = tuple(dense(k, (d, 4 * d)) for k in keys[4::3])
        self.down = tuple(dense(k, (4 * d, d)) for k in keys[5::3])

    def __call__(self, x: Array, levels: Array | None = None) -> tuple[Array, Array, Array]:
        """Logits (length, vocabulary), residual states (depth, length, width), associations (depth, heads, L, L).

        With `levels` what enters and leaves every block is rounded, on one scale for the whole sequence.
        """
        q = partial(rounded, levels=levels)
        flat = jnp.zeros(self.tokens.shape[1])
        h = self.tokens[x] + self.positions[: len(x)]
        causal = jnp.tril(jnp.ones((len(x), len(x)), bool))
        states, maps = [], []
        for attention, up, down in zip(self.attention, self.up, self.down, strict=True):
            change, weights = attention(q(h), mask=causal, return_weights=True)
            h = h + q(change)
            inner = jax.nn.relu(q(adaptive_layer_norm(q(h), flat, flat)) @ up)
            h = h + q(q(inner) @ down)
            states.append(h)
            maps.append(weights)
        return adaptive_layer_norm(q(h), flat, flat) @ self.last, jnp.stack(states), jnp.stack(maps)


def _loss(model, x, levels=None):
    """Cross-entropy of what follows, (batch, length - 1) by token, in nats; states and associations."""
    logits, states, maps = jax.vmap(lambda x: model(x, levels))(x)
    log_p = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(log_p, x[:, 1:, None], axis=-1)[..., 0], states, maps


@partial(jax.jit, static_argnames=("rate",))
def _train(model, batches, rate):
    """Adam over batches (steps, batch, length)."""
    steps = len(batches)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps, 0.1 * rate)
    found = minimise(lambda model, x: jnp.mean(_loss(model, x)[0]), model, optax.adam(schedule), batches=batches)
    return found.x, found.losses


@jax.jit
def _rounded_losses(model, x, levels):
    """For every number of levels the losses, states and associations, with matrices and activations rounded."""

    def one(levels):
        matrix = lambda w: rounded(w, levels) if eqx.is_inexact_array(w) and w.ndim == 2 else w
        return _loss(jax.tree.map(matrix, model), x, levels)

    return jax.lax.map(one, levels)


@experiment
def run(study, config, key):
    task_key, weight_key, data_key = jax.random.split(key, 3)
    task = jax.jit(lambda key: Task(config.vocabulary, config.triggers, key=key))(task_key)
    sample = jax.jit(lambda task, key: task.draw(config.test + config.steps * config.batch, config.length, key))
    tokens, *about = sample(task, data_key)
    x, (entropy, copy) = tokens[: config.test], (np.asarray(a[: config.test]) for a in about)
    batches = tokens[config.test :].reshape(config.steps, config.batch, config.length)
    shown = int(np.argmax(copy.sum(1)))  # the sequence of the figure, with the most triggers
    # One program for both, which share every draw.
    starts = jax.jit(lambda key: tuple(Transformer(config, kind, key=key) for kind in KINDS))(weight_key)
    found = {}
    for kind, start in study.each(zip(KINDS, starts, strict=True), "model"):
        model, history = _train(start, batches, config.rate)
        found[kind] = _measure(study, config, kind, model, np.asarray(history), x, entropy, copy, shown)
    study.metrics["entropy of the task"] = entropy[:, :-1].mean()
    soft, one = (found[kind] for kind in KINDS)
    study.at_most("softmax: weight on nothing, largest layer", soft.null.max(), 1e-5, "its weights add up to one")
    study.at_most("softmax_1's loss less softmax's", one.loss - soft.loss, config.apart, "same seed and data")
    study.at_least("softmax_1: weight on nothing, largest layer", one.null.max(), config.rest, "heads are at rest")
    quantity, ratio = "weight on the first token, softmax_1 / softmax", one.sink.mean() / soft.sink.mean()
    study.at_most(quantity, ratio, config.sink_ratio, "sink of softmax")
    for kind in KINDS:
        quantity, excess = f"{kind}: loss above the entropy", found[kind].excess
        study.at_most(quantity, excess, config.excess, "entropy of the task, exact")
        study.at_most(f"{kind}: rise of the loss at 8 bits", found[kind].rises[0], config.rise, "before rounding")
    study.keep(found=found, copies=copy[shown], bits=config.bits, entropy=study.metrics["entropy of the task"])


def _measure(study, config, kind, model, history, x, entropy, copy, shown):
    """Losses before and after rounding, the states, and where the weight goes."""
    levels = np.array([0, *(2.0 ** (b - 1) - 1 for b in config.bits)], np.float32)
    losses, states, maps = (np.asarray(a) for a in _rounded_losses(model, x, levels))
    loss, states, maps = losses[0], states[0], maps[0]
    rises = losses[1:].mean((1, 2)) - loss.mean()
    centred = states - states.mean()
    largest, square = np.abs(states).max(), np.mean(centred**2)
    numbers = {
        "loss": loss.mean(),
        "copy": loss[copy[:, :-1]].mean(),
        "kurtosis": np.mean(centred**4) / square**2,
        "largest": largest,
        "largest over rms": largest / np.sqrt(square),
    } | {f"rise at {b} bits": rise for b, rise in zip(config.bits, rises, strict=True)}
    study.metrics |= {f"{kind}: {name}": value for name, value in numbers.items()}
    later = maps[:, :, :, 1:]  # the first token has nowhere else to look
    return SimpleNamespace(
        history=history,
        loss=loss.mean(),
        excess=np.mean(loss - entropy[:, :-1]),
        sink=later[..., 0].mean((0, 2, 3)),  # weight on the first token, by layer
        null=1 - later.sum(-1).mean((0, 2, 3)),  # weight on nothing, by layer
        rises=rises,  # of the loss, by number of bits
        size=np.abs(states).max(-1).mean(0),  # by layer and position
        maps=maps[shown, :, 0],  # associations of one sequence, by layer
    )


def plot(result):
    """Losses, where the weight goes, associations of one sequence, sizes by position, rise of the loss over bits."""
    d = result.data
    figure, axes = draw.panels(2, 3)
    loss, share, size, left, right, rise = axes.flat
    for (kind, found), color in zip(d.found.items(), ("C3", "C0"), strict=True):
        block, layers = max(1, len(found.history) // 100), np.arange(len(found.sink))
        smooth = found.history[: len(found.history) // block * block].reshape(-1, block).mean(1)
        loss.plot(block * np.arange(len(smooth)), smooth, color=color, lw=1, label=kind)
        share.plot(layers, found.sink, "o-", color=color, label=f"{kind}: on the first token")
        size.plot(found.size[-1], color=color, lw=1, label=f"{kind}, last layer")
        size.plot(found.size[0], color=color, lw=1, ls=":", label=f"{kind}, first layer")
        rise.plot(d.bits, np.maximum(found.rises, 1e-6), "o-", color=color, label=kind)
    share.plot(layers, d.found["softmax1"].null, "s--", color="C0", label="softmax1: on nothing")
    loss.axhline(d.entropy, color="k", lw=0.6, ls=":", label="entropy")
    draw.label(loss, "training", "step", "loss / nats")
    draw.label(share, "where a head at rest looks", "layer", "mean weight", xticks=layers, ylim=(0, 1))
    draw.label(size, "size of the states", "position", "mean of max |state|")
    draw.label(rise, "weights and activations rounded", "bits", "rise of the loss", log="y")
    for panel, (kind, found) in zip((left, right), d.found.items(), strict=True):
        layer = int(np.argmax(found.sink if kind == "softmax" else found.null))
        panel.imshow(found.maps[layer], cmap="magma", vmin=0, vmax=1)
        rows = np.flatnonzero(d.copies)
        panel.plot(np.full(len(rows), -1.0), rows, "g>", ms=4)
        title = f"{kind}, layer {layer}; triggers marked"
        draw.label(panel, title, "stored", "state", xlim=(-1.6, found.maps.shape[-1] - 0.5))
    return figure
