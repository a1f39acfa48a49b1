r"""Hopfield layers at work: bags of real digits with one label a bag, and small tables with the training set as memory.

1. *Multiple-instance learning.* A bag of digits is positive if it holds at least one nine. An encoder maps every digit
   to h; a pooling makes one vector of the bag and a linear map the logit. `HopfieldPooling` pools by

$$q \leftarrow p(\beta q K^T) K, \qquad o = p(\beta q K^T) V, \qquad K = hW_k,\ V = hW_v$$

   from a learned q, with one step and with three; beside it gated attention pooling, the mean and the maximum. Bags of
   the test are made of digits that no bag of the training holds. What the association looks at in positive bags is held
   against where the nines are, which training never sees. Three steps are reported, not claimed: they train as fast and
   end no better, as does the maximum, which needs no weights for a label that one digit decides.
2. *Tables.* Samples of scikit-learn's small data sets are stored patterns and their labels are what is read: the
   prediction is $\sum_i p_i(\beta\,W x \cdot W' x_i)\,y_i$, fitted by predicting each training sample from the others.
   Beside it a support vector machine and logistic regression, on the same splits.

**See** Ramsauer et al., Hopfield networks is all you need (2021); Ilse, Tomczak and Welling, Attention-based deep
multiple instance learning (2018), for bags of digits and gated attention.
"""

import dataclasses
import sys
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from physml import data, hopfield
from physml.core.types import Key
from physml.metrics import Estimate, mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting
from physml.train import minimise

INFO = RecipeInfo(
    paper="Ramsauer et al., Hopfield networks is all you need (2021); Ilse et al. (2018)",
    claim="Hopfield pooling finds the nines in bags of digits, as well as attention; tables within an SVM's reach",
    time="2 min",
)

POOLINGS = ("hopfield", "hopfield, 3 steps", "attention", "mean", "max")
TARGET = 9


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Bags, training, tables, and what the claims ask for."""

    bags: int = 400
    test_bags: int = 1000
    sizes: tuple[int, int] = setting((16, 24), least=2.0)  # of a bag
    repeats: int = 3
    steps: int = 150
    width: int = 64
    poolings: tuple[str, ...] = setting(POOLINGS, choices=POOLINGS)
    tables: tuple[str, ...] = ("iris", "wine", "breast_cancer")
    splits: int = setting(10, least=2.0)
    table_steps: int = 150
    rate: float = 1e-3
    # the bounds of the claims
    auc: float = 0.9
    against_attention: float = 0.03
    against_mean: float = setting(0.04, least=-1.0)
    key_instance: float = 0.92
    table_gap: float = 0.03

    def rules(self):
        return ((self.poolings[0] == "hopfield" and "mean" in self.poolings, "poolings with hopfield first, and mean"),)


PAPER = Config()
SMOKE = Config(
    bags=60, test_bags=200, sizes=(4, 6), repeats=1, steps=60, width=32, rate=3e-3, poolings=("hopfield", "mean"),
    tables=("iris",), splits=2, table_steps=60, auc=0.8, against_mean=-0.1, key_instance=0.8, table_gap=0.1,
)  # fmt: skip

SABOTAGE = Sabotage(
    "bags without a nine left out of the loss", sys.modules[__name__], "_nats",
    lambda exact: lambda logit, label: label * exact(logit, label),
)  # fmt: skip


@experiment
def run(study, config, key):
    rng = np.random.default_rng(int(jax.random.randint(key, (), 0, 2**31 - 1)))
    for part in study.each((_bags, _tables), "part"):
        part(study, config, key, rng)


class Bag(eqx.Module):
    """An encoder, a pooling by name, and the logit of a bag (size, 64) with its mask."""

    first: Array
    second: Array
    pool: Any
    last: Array
    bias: Array
    kind: str = eqx.field(static=True)

    def __init__(self, kind: str, width: int, *, key: Key):
        keys = jax.random.split(key, 5)
        dense = jax.nn.initializers.lecun_normal()
        half = width // 2
        self.kind = kind
        self.first, self.second = dense(keys[0], (64, width)), dense(keys[1], (width, half))
        self.last, self.bias, self.pool = jnp.zeros(half), jnp.zeros(()), None
        if kind.startswith("hopfield"):
            steps = 3 if "3" in kind else 1
            self.pool = hopfield.HopfieldPooling(half, 1, steps=steps, learn_beta=True, key=keys[2])
        elif kind == "attention":
            self.pool = tuple(dense(k, (half, n)) for k, n in zip(keys[2:], (half, half, 1), strict=True))

    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
        """The logit, and how much every instance counts."""
        h = jax.nn.relu(jax.nn.relu(x @ self.first) @ self.second)
        weights = mask.astype(h.dtype) / jnp.sum(mask).astype(h.dtype)
        if isinstance(self.pool, hopfield.HopfieldPooling):
            pooled, weights = self.pool(h, mask=mask, return_weights=True)
            pooled, weights = pooled[0], jnp.mean(weights, (0, 1))
        elif self.kind == "attention":
            tanh, gate, score = self.pool
            logits = ((jnp.tanh(h @ tanh) * jax.nn.sigmoid(h @ gate)) @ score)[:, 0]
            weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))
            pooled = weights @ h
        elif self.kind == "mean":
            pooled = weights @ h
        else:
            pooled = jnp.max(jnp.where(mask[:, None], h, 0.0), 0)
        return pooled @ self.last + self.bias, weights


def make_bags(x: np.ndarray, y: np.ndarray, count: int, sizes: tuple[int, int], rng: Any) -> tuple[np.ndarray, ...]:
    """Bags (count, size, 64), masks, labels and where the targets are; half hold one or two targets, half none."""
    size = rng.integers(sizes[0], sizes[1] + 1, count)
    place = np.arange(sizes[1])[None]
    mask = place < size[:, None]
    index = rng.choice(np.flatnonzero(y != TARGET), (count, sizes[1]))
    label = np.arange(count) % 2
    hits = np.where(label, rng.integers(1, 3, count), 0)
    index = np.where(place < hits[:, None], rng.choice(np.flatnonzero(y == TARGET), index.shape), index)
    return (x[index] / 8 - 1).astype(np.float32), mask, label.astype(np.float32), (y[index] == TARGET) & mask


@partial(jax.jit, static_argnames=("loss", "steps", "rate"))
def _train(models, batches, loss, steps, rate):
    """Adam on all data at once, for several models with data of their own."""
    optimizer = optax.adamw(rate, weight_decay=1e-2)
    one = lambda pair: minimise(lambda model: loss(model, pair[1]), pair[0], optimizer, steps=steps)
    found = jax.lax.map(one, (models, batches))
    return found.x, found.losses


def _nats(logit, label):
    """Cross entropy of labels 0 and 1."""
    return jax.nn.softplus(jnp.where(label > 0, -logit, logit))


def _bag_loss(model, batch):
    x, mask, label = batch
    return jnp.mean(_nats(jax.vmap(model)(x, mask)[0], label))


def _bags(study, config, key, rng):
    """Every pooling, trained on bags and tested on bags of other digits."""
    from sklearn.metrics import roc_auc_score

    images = data.digits()
    draws = [make_bags(images.train_x, images.train_y, config.bags, config.sizes, rng) for _ in range(config.repeats)]
    batches = tuple(np.stack(parts) for parts in zip(*draws, strict=True))[:3]
    x, mask, label, nines = make_bags(images.test_x, images.test_y, config.test_bags, config.sizes, rng)
    evaluate = eqx.filter_jit(jax.vmap(jax.vmap(lambda m, x, mask: m(x, mask), (None, 0, 0)), (0, None, None)))
    positive = label > 0
    among = mask & positive[:, None]  # instances of positive bags: does the weight find the target?
    scores, losses, found = {}, {}, {}
    for kind in config.poolings:
        models = jax.vmap(lambda k, kind=kind: Bag(kind, config.width, key=k))(jax.random.split(key, config.repeats))
        trained, history = _train(models, batches, _bag_loss, config.steps, config.rate)
        logits, weights = (np.asarray(a) for a in evaluate(trained, x, mask))
        scores[kind] = np.array([roc_auc_score(positive, row) for row in logits])
        losses[kind] = np.asarray(history).mean(0)
        found[kind] = np.mean([roc_auc_score(nines[among], w[among]) for w in weights])
        study.metrics |= {f"AUC, {kind}": scores[kind].mean(), f"weights on nines, {kind}": found[kind]}
        if kind == "hopfield":
            shown = np.flatnonzero(positive)[:4]
            study.keep(example=(x[shown].reshape(len(shown), -1, 8, 8), weights[0, shown], nines[shown]))
    own = mean_and_error(scores["hopfield"]) if config.repeats > 1 else Estimate(scores["hopfield"][0], 0.0)
    over = {kind: own.value - score.mean() for kind, score in scores.items()}
    study.at_least("AUC of bags", own, config.auc, "asked for")
    if "attention" in over:
        study.at_least("AUC less attention pooling's", over["attention"], -config.against_attention, "as good")
    study.at_least("AUC less the mean's", over["mean"], config.against_mean, "better than no choice")
    study.at_least("weights find the nines", found["hopfield"], config.key_instance, "AUC over instances")
    study.keep(scores=scores, losses=losses)


def _table_loss(model, batch):
    x, y = batch
    others = ~jnp.eye(len(x), dtype=bool)
    p = model(x, x, y, mask=others)
    return -jnp.mean(jnp.sum(y * jnp.log(p + 1e-6), -1))


@jax.jit
@jax.vmap
def _predict(model, x, stored, labels):
    return jnp.argmax(model(x, stored, labels), -1)


def _associations(features, classes, keys):
    """Layers that read the labels of stored samples (features,), one for every split."""

    def start(k):
        layer = hopfield.Hopfield(
            features, 1, head_dim=16, beta=1.0, learn_beta=True, projection_dim=classes, static=("projection",),
            normalise=(), normalise_space=True, out_projection=False, key=k,
        )  # fmt: skip
        # On a sphere overlaps are distances; to begin with in one projection, since both sides are of one kind.
        bias = jax.random.normal(jax.random.fold_in(k, 1), (16,))
        where = lambda tree: (tree.stored.weight, tree.state.bias, tree.stored.bias)
        return eqx.tree_at(where, layer, (layer.state.weight, bias, bias))

    return jax.vmap(start)(keys)


def _tables(study, config, key, rng):
    """Association with the training set beside its rivals, on the same splits of every table."""
    from sklearn import datasets
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    rivals = {"SVM": SVC(), "logistic regression": LogisticRegression(max_iter=1000)}
    tables = {}
    for name in config.tables:
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        split = StratifiedShuffleSplit(config.splits, test_size=0.2, random_state=int(rng.integers(2**31)))
        folds = list(split.split(x, y))
        scaled = [np.asarray(StandardScaler().fit(x[train]).transform(x), np.float32) for train, _ in folds]
        stored, asked = (np.stack([s[fold[i]] for s, fold in zip(scaled, folds, strict=True)]) for i in (0, 1))
        labels = np.eye(y.max() + 1, dtype=np.float32)[np.stack([y[train] for train, _ in folds])]
        models = _associations(x.shape[1], int(y.max()) + 1, jax.random.split(key, config.splits))
        trained, _ = _train(models, (stored, labels), _table_loss, config.table_steps, 1e-2)
        guess = np.asarray(_predict(trained, asked, stored, labels))
        right = {"Hopfield": np.mean(guess == np.stack([y[test] for _, test in folds]), 1)}
        for rival, make in rivals.items():
            fits = [make_pipeline(StandardScaler(), make).fit(x[a], y[a]).score(x[b], y[b]) for a, b in folds]
            right[rival] = np.array(fits)
        study.metrics |= {f"{name}, {model}": share.mean() for model, share in right.items()}
        gap = mean_and_error(right["Hopfield"] - right["SVM"])
        study.at_least(f"{name}: accuracy less the SVM's", gap, -config.table_gap, "same splits")
        tables[name] = {model: mean_and_error(share) for model, share in right.items()}
    study.keep(tables=tables)


def plot(result):
    """Training losses, AUC by pooling, bags with the weights of their digits, accuracies on the tables."""
    import matplotlib.pyplot as plt

    d = result.data
    layout: Any = [["loss", "score", "tables"], ["bags"] * 3]
    figure, axes = plt.subplot_mosaic(layout, figsize=(13, 6.5), layout="constrained", height_ratios=(1.3, 1))
    for i, (kind, score) in enumerate(d.scores.items()):
        axes["loss"].plot(d.losses[kind], lw=1, label=kind)
        axes["score"].plot(np.full(len(score), i), score, "o", color=f"C{i}")
    draw.label(axes["loss"], "training on bags", "step", "loss", log="y")
    draw.label(axes["score"], "poolings, each repeat a point", y="AUC on bags of unseen digits")
    axes["score"].set_xticks(range(len(d.scores)), list(d.scores), fontsize=8, rotation=15)
    images, weights, nines = d.example
    size = images.shape[1]
    axes["bags"].imshow(draw.mosaic(images.reshape(-1, 8, 8), size, gap=4, fill=-1.0), cmap="gray", alpha=0.9)
    for i, j in np.ndindex(nines.shape):
        if weights[i, j] > 0.02:
            axes["bags"].text(12 * j + 3.5, 12 * i + 11, f"{weights[i, j]:.2f}", fontsize=8, color="C1", ha="center")
        if nines[i, j]:
            axes["bags"].add_patch(plt.Rectangle((12 * j - 0.5, 12 * i - 0.5), 8, 8, fill=False, color="C2", lw=1.2))
    title = "positive bags: nines framed (put first), weights above 0.02 of the association"
    draw.label(axes["bags"], title, xticks=[], yticks=[], ylim=(12 * len(images) - 0.5, -0.5))
    for j, model in enumerate(("Hopfield", "SVM", "logistic regression")):
        value, error = np.transpose([table[model] for table in d.tables.values()])
        draw.measured(axes["tables"], np.arange(len(value)) + 0.15 * (j - 1), value, error, sigmas=1.0, label=model)
    draw.label(axes["tables"], "small tables, same splits", y="accuracy")
    axes["tables"].set_xticks(range(len(d.tables)), list(d.tables))
    return figure
