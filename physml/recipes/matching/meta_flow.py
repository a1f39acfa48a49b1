r"""Meta flow matching: the flow of a population that it has never seen.

Populations are letters: points in the plane, turned by a random angle, and their source is the same letter blurred by noise, so
that which way a point should go depends on the letter, and the points around it tell which. Three models learn to sharpen:
one that sees the point alone, one that is told the number of the population (one-hot), and one that gets a code of the source
population from an encoder blind to order. Training turns the populations, except for the model whose number names one.
On letters seen in training the last two know enough; on letters that were held out only the encoder has something to say. Judged by $W_2$ between the carried and the true population, beside the floor of two
samples of the same letter.

**See** Atanackovic et al., Meta flow matching: integrating vector fields on the Wasserstein manifold (2025), section 5.1.
"""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml import matching, nn
from physml.metrics import mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment
from physml.recipes.distances import batchwise, wasserstein2
from physml.recipes.matching._fit import fit

INFO = RecipeInfo(
    paper="Atanackovic et al., Meta flow matching (2025)",
    claim="on letters it has not seen a field given a code of the population is better than unconditional and one-hot fields",
    time="4 min, smoke 20 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
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

    def rules(self):
        apart = self.seen and self.held_out and not set(self.seen) & set(self.held_out)
        return ((bool(apart), "seen and held_out must be letters without overlap"),)


PAPER = Config()
SMOKE = Config(
    seen="ABCDEFGH", turns=6, points=64, train_steps=400, populations=8, width=64, code=16, ode_steps=10, judged=6,
    better=1.05, significance=None,
)  # fmt: skip
PATH = matching.linear()
# What each model knows of the population.
KINDS = {"none": "no code", "number": "number", "population": "population code"}

SABOTAGE = Sabotage(
    "the field learns to blur letters instead of sharpening them", matching, "match_populations",
    lambda exact: lambda model, path, sources, targets, **options: exact(model, path, targets, sources, **options),
)  # fmt: skip


def _letter(character, n, rng):
    """n points uniform on the shape of a letter, centred, two high."""
    from matplotlib.path import Path
    from matplotlib.textpath import TextPath

    # All holes and strokes of the glyph are one compound path.
    glyph = TextPath((0, 0), character, size=1)
    outlines = [Path(polygon) for polygon in Path(glyph.vertices, glyph.codes).to_polygons()]
    low, high = glyph.vertices.min(0), glyph.vertices.max(0)
    points = np.empty((0, 2))
    while len(points) < n:
        draws = rng.uniform(low, high, (8 * n, 2))
        # A point is in the letter if it is in an odd number of its outlines.
        inside = sum(outline.contains_points(draws).astype(int) for outline in outlines) % 2 == 1
        points = np.concatenate([points, draws[inside]])
    return (points[:n] - 0.5 * (low + high)) * (2.0 / (high[1] - low[1]))


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


@experiment
def run(study, config, key):
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint64))
    targets, sources = _populations(config.seen, config, rng)
    new_targets, new_sources = _populations(config.held_out, config, rng)
    which = rng.permutation(len(targets))[: config.judged]
    fresh = targets[which] + config.blur * rng.standard_normal(targets[which].shape).astype(np.float32)
    pick = rng.permutation(len(new_targets))[: config.judged]
    new_targets, new_sources = new_targets[pick], new_sources[pick]
    apart = partial(batchwise, wasserstein2)

    data = targets, sources, np.arange(len(targets), dtype=np.int32)
    rows, seen, held = min(config.populations, len(targets)), {}, {}
    study.keep(letters={"source": new_sources})
    for i, (kind, label) in study.each(enumerate(KINDS.items()), "field"):
        model_key, fit_key = jax.random.split(jax.random.fold_in(key, i), 2)
        model = fit(
            _loss(max(config.points // 2, 1), kind != "number"), _model(kind, len(targets), config, model_key), data,
            rate=1e-3, clip_norm=1.0, steps=config.train_steps, batch_size=rows, key=fit_key,
        ).ema  # fmt: skip
        seen[kind] = apart(_carry(model, jnp.asarray(fresh), jnp.asarray(which), config.ode_steps), targets[which])
        # A held-out population has no number: that model gets none.
        carried = _carry(model, jnp.asarray(new_sources), None, config.ode_steps)
        held[kind] = apart(carried, new_targets)
        study.metrics |= {f"seen letters: W2, {label}": seen[kind].mean()}
        study.data.letters[label] = carried[:4]
    # Pairs of samples of held-out letters, not turned: the floor of W2.
    pairs = [
        (_letter(c, config.points, rng), _letter(c, config.points, rng)) for c in config.held_out for _ in range(3)
    ]
    floor = apart(*np.stack(pairs, axis=1).astype(np.float32)).mean()
    blurred, ours = apart(new_sources, new_targets).mean(), mean_and_error(held["population"])
    quantity = "held-out letters: W2, population code"
    beside = lambda label: f"{config.better:g} x that of the field {label}"
    study.at_most(quantity, ours, config.better * held["none"].mean(), beside("without code"))
    bound, source = config.better * held["number"].mean(), beside("given the number, here none")
    study.at_most(f"{quantity}, against the number", ours, bound, source)
    study.at_most(f"{quantity}, against the source itself", ours.value, blurred, "W2 of the blurred letters")
    ours, bound = seen["population"].mean(), config.better * seen["none"].mean()
    study.at_most("seen letters: W2, population code", ours, bound, beside("without code"))
    if config.significance is not None:
        gain = mean_and_error(held["none"] - held["population"])
        quantity, source = "held-out letters, paired gain on the field without code", "standard errors over populations"
        study.at_least(quantity, gain.z(0.0), config.significance, source)
    study.measure(floor=floor)
    study.data.letters["truth"] = new_targets[:4]
    study.keep(seen=seen, held=held, floor=floor, blurred=blurred)


def plot(result):
    """Held-out letters: blurred, sharpened by each model, and true; and the distances."""
    import matplotlib.pyplot as plt

    d = result.data
    figure = plt.figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    axes = left.subplots(len(d.letters["truth"]), len(d.letters), squeeze=False)
    for column, (label, letters) in zip(axes.T, d.letters.items(), strict=True):
        for axis, letter in zip(column, letters, strict=False):
            draw.cloud(axis, letter, reach=1.8)
        column[0].set_title(label, fontsize=9)
    axis = right.subplots()
    for k, (kind, label) in enumerate(KINDS.items()):
        axis.bar(np.arange(2) + 0.27 * (k - 1), [d.seen[kind].mean(), d.held[kind].mean()], 0.25, label=label)
    axis.axhline(d.floor, color="k", lw=1, label="two samples of a letter")
    axis.axhline(d.blurred, color="0.6", lw=1, ls="--", label="the source")
    axis.set_xticks(range(2), ["seen letters", "held-out letters"])
    draw.label(axis, y="$W_2$ to the truth", ylim=(0, 1.4 * d.blurred))
    return figure
