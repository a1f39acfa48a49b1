r"""Meta flow matching: the flow of a population that it has never seen.

Populations are letters: points in the plane, turned by a random angle, and their source is the same letter blurred by noise, so
that which way a point should go depends on the letter, and the points around it tell which. Three models learn to sharpen:
one that sees the point alone, one that is told the number of the population (one-hot), and one that gets a code of the source
population from an encoder blind to order. Training turns the populations, except for the model whose number names one. On letters seen in training the last two know enough; on letters that were held out
only the encoder has something to say. Judged by $W_2$ between the carried and the true population, beside the floor of two
samples of the same letter.

**See** Atanackovic et al., Meta flow matching: integrating vector fields on the Wasserstein manifold (2025), section 5.1.
"""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml import matching, metrics, nn, train
from physml.core.types import Key
from physml.recipes._result import Info, Result, at_least, at_most

INFO = Info(
    paper="Atanackovic et al., Meta flow matching (2025)",
    claim="on letters it has not seen a field given a code of the population is better than unconditional and one-hot fields",
    time="4 min, smoke 20 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    seen: str = "ABCDEFGHIJKLMNOPQRSTUVW"
    held_out: str = "XYZ"
    turns: int = 10  # random orientations of each letter
    points: int = 200
    blur: float = 0.35  # standard deviation of the source's noise; a letter is about two high
    train_steps: int = 5000
    populations: int = 16  # in a batch
    width: int = 160
    code: int = 32
    ode_steps: int = 40
    judged: int = 24  # populations of each kind that are carried
    # the bounds of the claims
    better: float = 0.95
    # None: not asked; a few hundred steps on eight letters decide nothing between the fields
    significance: float | None = 2.0

    def __post_init__(self):
        if not self.seen or not self.held_out or set(self.seen) & set(self.held_out):
            raise ValueError(
                f"config.seen and config.held_out must be letters without overlap; got {self.seen!r}, {self.held_out!r}"
            )
        for name in ("turns", "points", "train_steps", "populations", "width", "code", "ode_steps", "judged"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} must be at least 1, got {getattr(self, name)}")


PAPER = Config()
SMOKE = Config(seen="ABCDEFGH", held_out="XYZ", turns=6, points=64, train_steps=400, populations=8, width=64, code=16, ode_steps=10, judged=6, better=1.05, significance=None)  # fmt: skip
PATH = matching.linear()
# Compiled once for all populations.
_wasserstein2 = jax.jit(metrics.wasserstein2)


def _letter(character: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """n points uniform on the shape of a letter, centred, two high."""
    from matplotlib.path import Path
    from matplotlib.textpath import TextPath

    # All holes and strokes of the glyph are one compound path.
    glyph = TextPath((0, 0), character, size=1)
    outline = Path(glyph.vertices, glyph.codes)
    low, high = glyph.vertices.min(0), glyph.vertices.max(0)
    points = np.empty((0, 2))
    while len(points) < n:
        draws = rng.uniform(low, high, (8 * n, 2))
        # A point is in the letter if it is in an odd number of its outlines.
        inside = sum(polygon.contains_points(draws).astype(int) for polygon in _polygons(outline)) % 2 == 1
        points = np.concatenate([points, draws[inside]])
    height = high[1] - low[1]
    return (points[:n] - 0.5 * (low + high)) * (2.0 / height)


def _polygons(outline):
    from matplotlib.path import Path

    return [Path(polygon) for polygon in outline.to_polygons()]


def _populations(letters, config, rng):
    """(targets, sources), each (letters * turns, points, 2)."""
    targets = []
    for character in letters:
        for _ in range(config.turns):
            angle = rng.uniform(0, 2 * np.pi)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            targets.append(_letter(character, config.points, rng) @ turn.T)
    targets = np.stack(targets).astype(np.float32)
    return targets, targets + config.blur * rng.standard_normal(targets.shape).astype(np.float32)


class Codes(eqx.Module):
    """How a model knows the population: nothing, its number, or a code of its points."""

    kind: str = eqx.field(static=True)
    sets: nn.DeepSets
    table: jax.Array

    def __call__(self, points, number=None):
        if self.kind == "population":
            return self.sets(points)
        if self.kind == "number" and number is not None:
            return self.table[number]
        return jnp.zeros_like(self.table[0])


def _model(kind, count, config, key):
    field_key, set_key, table_key = jax.random.split(key, 3)
    sets = nn.DeepSets(2, config.code, width=config.width, depth=3, key=set_key)
    table = jax.random.normal(table_key, (count, config.code))
    field = nn.MLP(2, width=config.width, depth=4, cond_dim=config.code, key=field_key)
    return matching.MetaField(field, Codes(kind, sets, table))


def _loss(size, turn):
    def loss(model, batch, *, key):
        targets, sources, numbers = batch
        if turn:
            key, angle_key = jax.random.split(key)
            a = jax.random.uniform(angle_key, (len(targets),), maxval=2 * jnp.pi)
            turns = jnp.stack([jnp.stack([jnp.cos(a), -jnp.sin(a)]), jnp.stack([jnp.sin(a), jnp.cos(a)])])
            targets, sources = (jnp.einsum("dep,pne->pnd", turns, x) for x in (targets, sources))

        def one(source, target, number, key):
            known = eqx.tree_at(lambda m: m.encoder, model, partial(model.encoder, number=number))
            return matching.match_populations(known, PATH, source[None], target[None], key=key, batch_size=size)

        return jnp.mean(jax.vmap(one)(sources, targets, numbers, jax.random.split(key, len(targets))))

    return loss


@eqx.filter_jit
def _carry(model, sources, numbers, steps):
    code = lambda source, number: model.encoder(source, number)
    return jax.vmap(lambda x, k: model.transport(x, steps=steps, code=code(x, k)))(sources, numbers)


def _distances(x, y):
    return np.array([float(_wasserstein2(a, b)) for a, b in zip(x, y, strict=True)])


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Train three models on the seen letters; carry seen and held-out letters from fresh noise."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint64))
    targets, sources = _populations(config.seen, config, rng)
    new_targets, new_sources = _populations(config.held_out, config, rng)
    which = rng.permutation(len(targets))[: config.judged]
    fresh = targets[which] + config.blur * rng.standard_normal(targets[which].shape).astype(np.float32)
    new = slice(0, min(config.judged, len(new_targets)))
    pick = rng.permutation(len(new_targets))[new]
    new_targets, new_sources = new_targets[pick], new_sources[pick]

    numbers, arrays, values = {}, {}, {}
    for i, kind in enumerate(("none", "number", "population")):
        keys = jax.random.split(jax.random.fold_in(key, i), 2)
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-3, config.train_steps))
        )
        fit = train.fit(
            _loss(max(config.points // 2, 1), kind != "number"), _model(kind, len(targets), config, keys[0]), (targets, sources, np.arange(len(targets), dtype=np.int32)),
            optimizer=optimizer, steps=config.train_steps, batch_size=min(config.populations, len(targets)), ema_decay=0.999, key=keys[1], progress=progress,
        )  # fmt: skip
        seen = _carry(fit.ema, jnp.asarray(fresh), jnp.asarray(which), config.ode_steps)
        # A held-out population has no number: that model gets none.
        held = _carry(fit.ema, jnp.asarray(new_sources), None, config.ode_steps)
        values[kind] = {"seen": _distances(seen, targets[which]), "held out": _distances(held, new_targets)}
        numbers |= {f"{kind}_{k}": v.mean() for k, v in values[kind].items()}
        arrays[f"held_{kind}"], arrays[f"seen_{kind}"] = np.asarray(held[:4]), np.asarray(seen[:4])
    blurred = _distances(new_sources, new_targets)
    floor = _distances(*_resampled(config, rng))
    numbers |= {"blurred": blurred.mean(), "floor": floor.mean()}
    ours, error = values["population"]["held out"], lambda a: a.std(ddof=1) / np.sqrt(len(a))
    claims = [
        at_most("held-out letters: W2, population code", ours.mean(), config.better * values[other]["held out"].mean(), f"{config.better:g} x that of the {label}", error(ours))
        for other, label in (("none", "field without code"), ("number", "field given the number, here none"))
    ] + [
        at_most("held-out letters: W2, population code, against the source itself", ours.mean(), blurred.mean(), "W2 of the blurred letters"),
        at_most("seen letters: W2, population code", values["population"]["seen"].mean(), config.better * values["none"]["seen"].mean(), f"{config.better:g} x that of the field without code"),
    ]  # fmt: skip
    if config.significance is not None:
        gain = values["none"]["held out"] - ours
        claims.append(at_least("held-out letters, paired gain on the field without code", gain.mean() / error(gain), config.significance, "standard errors over populations"))  # fmt: skip
    arrays |= {"new": new_targets[:4], "blurred": new_sources[:4]}
    return Result(tuple(claims), numbers, arrays)


def _resampled(config, rng):
    """Pairs of independent samples of held-out letters, not turned: the floor of W2."""
    pairs = [
        (_letter(c, config.points, rng), _letter(c, config.points, rng)) for c in config.held_out for _ in range(3)
    ]
    a, b = (np.stack(side).astype(np.float32) for side in zip(*pairs, strict=True))
    return a, b


def plot(result: Result) -> Any:
    """Held-out letters: blurred, sharpened by each model, and true; and the distances."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    rows = [
        ("blurred", "source"),
        ("held_none", "no code"),
        ("held_number", "number"),
        ("held_population", "population code"),
        ("new", "truth"),
    ]
    figure = plt.figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    axes = left.subplots(len(arrays["new"]), len(rows), squeeze=False)
    for row, line in enumerate(axes):
        for axis, (name, title) in zip(line, rows, strict=True):
            axis.plot(*arrays[name][row].T, ".", ms=1.5)
            axis.set(aspect="equal", xlim=(-1.8, 1.8), ylim=(-1.8, 1.8), xticks=[], yticks=[])
            if row == 0:
                axis.set_title(title, fontsize=9)
    axis = right.subplots()
    for k, kind in enumerate(("none", "number", "population")):
        axis.bar(
            np.arange(2) + 0.27 * (k - 1),
            [numbers[f"{kind}_seen"], numbers[f"{kind}_held out"]],
            0.25,
            label={"none": "no code", "number": "number"}.get(kind, "population code"),
        )
    axis.axhline(numbers["floor"], color="k", lw=1, label="two samples of a letter")
    axis.axhline(numbers["blurred"], color="0.6", lw=1, ls="--", label="the source")
    axis.set_xticks(range(2), ["seen letters", "held-out letters"])
    axis.set(ylabel="$W_2$ to the truth")
    axis.legend(fontsize=8)
    return figure
