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
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from physml import data, hopfield
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.recipes._result import Info, Result, at_least

INFO = Info(
    paper="Ramsauer et al., Hopfield networks is all you need (2021); Ilse et al. (2018)",
    claim="Hopfield pooling finds the nines in bags of digits, as well as attention; tables within an SVM's reach",
    time="2 min",
)

POOLINGS = ("hopfield", "hopfield, 3 steps", "attention", "mean", "max")
TARGET = 9


@dataclasses.dataclass(frozen=True)
class Config:
    """Bags, training, tables, and what the claims ask for."""

    bags: int = 400
    test_bags: int = 1000
    sizes: tuple[int, int] = (16, 24)  # of a bag
    repeats: int = 3
    steps: int = 150
    width: int = 64
    poolings: tuple[str, ...] = POOLINGS
    tables: tuple[str, ...] = ("iris", "wine", "breast_cancer")
    splits: int = 10
    table_steps: int = 150
    rate: float = 1e-3
    # the bounds of the claims
    auc: float = 0.9
    against_attention: float = 0.03
    against_mean: float = 0.04
    key_instance: float = 0.92
    table_gap: float = 0.03

    def __post_init__(self):
        if not set(self.poolings) <= set(POOLINGS) or self.poolings[0] != "hopfield" or self.sizes[0] < 2:
            raise ValueError(f"poolings among {POOLINGS}, hopfield first, and bags of at least 2; got {self}")


PAPER = Config()
SMOKE = Config(
    bags=60, test_bags=200, sizes=(4, 6), repeats=1, steps=60, width=32, rate=3e-3, poolings=("hopfield", "mean"),
    tables=("iris",), splits=2, table_steps=60, auc=0.8, against_mean=-0.1, key_instance=0.8, table_gap=0.1,
)  # fmt: skip


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
        self.last, self.bias = jnp.zeros(half), jnp.zeros(())
        if kind.startswith("hopfield"):
            steps = 3 if "3" in kind else 1
            self.pool = hopfield.HopfieldPooling(half, 1, steps=steps, learn_beta=True, key=keys[2])
        elif kind == "attention":
            self.pool = tuple(dense(k, (half, n)) for k, n in zip(keys[2:], (half, half, 1), strict=True))
        else:
            self.pool = None

    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
        """The logit, and how much every instance counts."""
        h = jax.nn.relu(jax.nn.relu(x @ self.first) @ self.second)
        if isinstance(self.pool, hopfield.HopfieldPooling):
            pooled, weights = self.pool(h, mask=mask, return_weights=True)
            pooled, weights = pooled[0], jnp.mean(weights, (0, 1))
        elif self.kind == "attention":
            tanh, gate, score = self.pool
            logits = ((jnp.tanh(h @ tanh) * jax.nn.sigmoid(h @ gate)) @ score)[:, 0]
            weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))
            pooled = weights @ h
        elif self.kind == "mean":
            weights = mask.astype(h.dtype) / jnp.sum(mask).astype(h.dtype)
            pooled = weights @ h
        else:
            weights = mask.astype(h.dtype) / jnp.sum(mask).astype(h.dtype)
            pooled = jnp.max(jnp.where(mask[:, None], h, 0.0), 0)
        return pooled @ self.last + self.bias, weights


def make_bags(x: np.ndarray, y: np.ndarray, count: int, sizes: tuple[int, int], rng: Any) -> tuple[np.ndarray, ...]:
    """Bags (count, size, 64), masks, labels and where the targets are; half hold one or two targets, half none."""
    size = rng.integers(sizes[0], sizes[1] + 1, count)
    mask = np.arange(sizes[1])[None] < size[:, None]
    index = rng.choice(np.flatnonzero(y != TARGET), (count, sizes[1]))
    label = np.arange(count) % 2
    hits = np.where(label, rng.integers(1, 3, count), 0)
    index = np.where(
        np.arange(sizes[1])[None] < hits[:, None], rng.choice(np.flatnonzero(y == TARGET), index.shape), index
    )
    return (x[index] / 8 - 1).astype(np.float32), mask, label.astype(np.float32), (y[index] == TARGET) & mask


@partial(jax.jit, static_argnames=("loss", "steps", "rate", "decay"))
def _train(models, batches, loss, steps, rate, decay):
    """Adam on all data at once, for several models with data of their own."""
    optimizer = optax.adamw(rate, weight_decay=decay)

    def one(model, batch):
        params, rest = eqx.partition(model, eqx.is_inexact_array)

        def step(carry, _):
            params, state = carry
            value, slope = jax.value_and_grad(lambda p: loss(eqx.combine(p, rest), batch))(params)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
                update, state = optimizer.update(slope, state, params)
            return (optax.apply_updates(params, update), state), value

        (params, _), history = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
        return eqx.combine(params, rest), history

    return jax.lax.map(lambda pair: one(*pair), (models, batches))


def _bag_loss(model, batch):
    x, mask, label = batch
    logit, _ = jax.vmap(model)(x, mask)
    return jnp.mean(jax.nn.softplus(jnp.where(label > 0, -logit, logit)))


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive has the larger score, ties counted half."""
    from scipy.stats import rankdata

    n = positive.sum()
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def _bags(config, key, rng, claims, metrics):
    images = data.digits()
    draws = [make_bags(images.train_x, images.train_y, config.bags, config.sizes, rng) for _ in range(config.repeats)]
    batches = tuple(np.stack(parts) for parts in zip(*draws, strict=True))[:3]
    tests = make_bags(images.test_x, images.test_y, config.test_bags, config.sizes, rng)
    evaluate = eqx.filter_jit(jax.vmap(jax.vmap(lambda m, x, mask: m(x, mask), (None, 0, 0)), (0, None, None)))
    scores, losses, found, example = {}, {}, {}, ()
    for kind in config.poolings:
        models = jax.vmap(lambda k, kind=kind: Bag(kind, config.width, key=k))(jax.random.split(key, config.repeats))
        trained, history = _train(models, batches, _bag_loss, config.steps, config.rate, 1e-2)
        logits, weights = (np.asarray(a) for a in evaluate(trained, tests[0], tests[1]))
        scores[kind] = np.array([auc(row, tests[2] > 0) for row in logits])
        losses[kind] = np.asarray(history).mean(0)
        # Instances of positive bags: does the weight find the target?
        among = tests[1] & (tests[2] > 0)[:, None]
        found[kind] = np.mean([auc(w[among], tests[3][among]) for w in weights])
        if kind == "hopfield":
            shown = np.flatnonzero(tests[2] > 0)[:4]
            example = tests[0][shown].reshape(len(shown), -1, 8, 8), weights[0, shown], tests[3][shown]
    mean = {kind: float(s.mean()) for kind, s in scores.items()}
    spread = {kind: float(s.std() / np.sqrt(max(len(s) - 1, 1))) for kind, s in scores.items()}
    for kind in config.poolings:
        metrics[f"AUC, {kind}"], metrics[f"weights on nines, {kind}"] = mean[kind], float(found[kind])
    own = mean["hopfield"]
    claims.append(at_least("AUC of bags", own, config.auc, "asked for", spread["hopfield"]))
    if "attention" in mean:
        gap = own - mean["attention"]
        claims.append(at_least("AUC less attention pooling's", gap, -config.against_attention, "as good"))
    claims.append(at_least("AUC less the mean's", own - mean["mean"], config.against_mean, "better than no choice"))
    claims.append(at_least("weights find the nines", found["hopfield"], config.key_instance, "AUC over instances"))
    arrays = {f"loss {kind}": value for kind, value in losses.items()} | {
        f"auc {kind}": s for kind, s in scores.items()
    }
    return arrays | {"example": example[0], "example weights": example[1], "example targets": example[2]}


def _table_loss(model, batch):
    x, y = batch
    others = ~jnp.eye(len(x), dtype=bool)
    p = model(x, x, y, mask=others)
    return -jnp.mean(jnp.sum(y * jnp.log(p + 1e-6), -1))


@jax.jit
@jax.vmap
def _predict(model, x, stored, labels):
    return jnp.argmax(model(x, stored, labels), -1)


def _tables(config, key, rng, claims, metrics):
    from sklearn import datasets
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    rivals = {"SVM": lambda: SVC(), "logistic regression": lambda: LogisticRegression(max_iter=1000)}
    table = {}
    for name in config.tables:
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        classes = int(y.max()) + 1
        split = StratifiedShuffleSplit(config.splits, test_size=0.2, random_state=int(rng.integers(2**31)))
        folds = list(split.split(x, y))
        scaled = [StandardScaler().fit(x[train]) for train, _ in folds]
        take = lambda which, folds=folds, scaled=scaled, x=x: np.stack(
            [scale.transform(x[f[which]]) for scale, f in zip(scaled, folds, strict=True)]
        ).astype(np.float32)  # fmt: skip
        labels = np.eye(classes, dtype=np.float32)[np.stack([y[train] for train, _ in folds])]

        def start(k, d=x.shape[1], classes=classes):
            layer = hopfield.Hopfield(
                d, 1, head_dim=16, beta=1.0, learn_beta=True, projection_dim=classes, static=("projection",),
                normalise=(), normalise_space=True, out_projection=False, key=k,
            )  # fmt: skip
            # On a sphere overlaps are distances; to begin with in one projection, since both sides are of one kind.
            bias = jax.random.normal(jax.random.fold_in(k, 1), (16,))
            where = lambda tree: (tree.stored.weight, tree.state.bias, tree.stored.bias)
            return eqx.tree_at(where, layer, (layer.state.weight, bias, bias))

        models = jax.vmap(start)(jax.random.split(key, config.splits))
        trained, _ = _train(models, (take(0), labels), _table_loss, config.table_steps, 1e-2, 1e-2)
        guess = np.asarray(_predict(trained, take(1), take(0), labels))
        right = {"Hopfield": np.array([np.mean(g == y[test]) for g, (_, test) in zip(guess, folds, strict=True)])}
        for rival, make in rivals.items():
            fits = [make_pipeline(StandardScaler(), make()).fit(x[a], y[a]) for a, _ in folds]
            right[rival] = np.array([m.score(x[b], y[b]) for m, (_, b) in zip(fits, folds, strict=True)])
        table[name] = np.stack(list(right.values()))
        for model, share in right.items():
            metrics[f"{name}, {model}"] = float(share.mean())
        gap = right["Hopfield"] - right["SVM"]
        error = gap.std() / np.sqrt(max(len(gap) - 1, 1))
        claims.append(at_least(f"{name}: accuracy less the SVM's", gap.mean(), -config.table_gap, "same splits", error))
    return {f"table {name}": rows for name, rows in table.items()}


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """A minute and a half with `PAPER`."""
    claims: list = []
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(int(jax.random.randint(key, (), 0, 2**31 - 1)))
    with progress_bar(2, "multiple instances", "part", show=progress) as bar:
        for part in (_bags, _tables):
            arrays |= part(config, key, rng, claims, metrics)
            bar.update()
    return Result(tuple(claims), metrics | {c.quantity: c.value for c in claims}, arrays)


def plot(result: Result) -> Any:
    """Training losses, AUC by pooling, bags with the weights of their digits, accuracies on the tables."""
    import matplotlib.pyplot as plt

    a = result.arrays
    panels: Any = [["loss", "score", "tables"], ["bags"] * 3]
    figure, axes = plt.subplot_mosaic(panels, figsize=(13, 6.5), layout="constrained", height_ratios=(1.3, 1))
    loss, score, tables, bags = (axes[name] for name in ("loss", "score", "tables", "bags"))
    kinds = [k.removeprefix("loss ") for k in a if k.startswith("loss ")]
    for kind in kinds:
        loss.semilogy(a[f"loss {kind}"], lw=1, label=kind)
    loss.set(xlabel="step", ylabel="loss", title="training on bags")
    loss.legend(fontsize=8)
    for i, kind in enumerate(kinds):
        score.plot(np.full(len(a[f"auc {kind}"]), i), a[f"auc {kind}"], "o", color=f"C{i}")
    score.set(xticks=range(len(kinds)), ylabel="AUC on bags of unseen digits", title="poolings, each repeat a point")
    score.set_xticklabels(kinds, fontsize=8, rotation=15)
    example, weights, targets = a["example"], a["example weights"], a["example targets"]
    size = example.shape[1]
    picture = np.concatenate([np.concatenate([np.pad(x, 1, constant_values=-1) for x in row], 1) for row in example], 0)
    bags.imshow(picture, cmap="gray", alpha=0.9)
    for i in range(len(example)):
        for j in range(size):
            if weights[i, j] > 0.02:
                bags.text(10 * j + 4.5, 10 * i + 9, f"{weights[i, j]:.2f}", fontsize=8, color="C1", ha="center")
            if targets[i, j]:
                bags.add_patch(plt.Rectangle((10 * j, 10 * i), 9, 9, fill=False, color="C2", lw=1.2))
    bags.set(
        xticks=[], yticks=[], title="positive bags: nines framed (put first), weights above 0.02 of the association"
    )
    names = [k.removeprefix("table ") for k in a if k.startswith("table ")]
    for j, model in enumerate(("Hopfield", "SVM", "logistic regression")):
        rows = [a[f"table {name}"][j] for name in names]
        errors = [r.std() / np.sqrt(max(len(r) - 1, 1)) for r in rows]
        tables.errorbar(np.arange(len(names)) + 0.15 * (j - 1), [r.mean() for r in rows], errors, fmt="o", label=model)
    tables.set(xticks=range(len(names)), xticklabels=names, ylabel="accuracy", title="small tables, same splits")
    tables.legend(fontsize=8)
    return figure
