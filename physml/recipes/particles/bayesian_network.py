r"""A Bayesian neural network on tabular data: full-batch and minibatch samplers against a deep ensemble.

A network of one hidden layer has the posterior $e^{-E(\theta)}$, $E = \frac12|\theta|^2 - \sum_i \ln p(y_i | x_i, \theta)$. It is
sampled by HMC with all data, and by SGHMC and SGLD with minibatches; their predictions average over draws. A deep ensemble
averages networks trained to maximal likelihood from random starts; the mode of E, a single network with weight decay, is
shown too. On every random split of the data the test set gives the negative log-likelihood and the calibration error
of each; splits are paired, and their scatter is the error bar.

**See** Chen, Fox and Guestrin (2014) for SGHMC; Lakshminarayanan, Pritzel and Blundell (2017) for deep ensembles; Guo et
al. (2017) for the calibration error. Data: Wolberg et al. (1995), breast cancer, as scikit-learn ships it. They are
easily separated: the posterior is far better in likelihood than networks without a prior, and less confident than need
be, so that the mode beats it. The calibration error does not see how wrong the confident errors of the ensemble are.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml import particles, train
from physml.metrics import mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Bayesian computation in deep learning; Chen, Fox and Guestrin, Stochastic gradient HMC (2014)",
    claim="minibatch samplers predict as HMC does, and beat a single network; beside a deep ensemble",
    time="30 s, smoke 10 s",
)
METHODS = ("single", "ensemble", "mode", "HMC", "SGHMC", "SGLD")


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    splits: int = setting(8, least=2.0)
    train: int = setting(150, least=20.0, most=500.0)  # few data, so that the posterior is wide
    hidden: int = 10
    chains: int = 8
    batch_size: int = 30
    hmc_moves: int = 120
    moves: int = 2400
    members: int = 10
    train_steps: int = 1000
    # the bounds of the claims
    difference: float = 0.03
    margin: float = 0.01  # between the calibration errors of two samplers of one posterior

    def rules(self):
        return (
            (self.batch_size <= self.train, "batch_size is at most train"),
            (self.moves % 40 == 0 and self.hmc_moves % 4 == 0, "40 divides moves and 4 divides hmc_moves"),
        )


PAPER = Config()
SMOKE = Config(splits=3, hmc_moves=60, moves=1200, members=5, train_steps=300, difference=0.03, margin=0.03)

SABOTAGE = Sabotage(
    "SGHMC samples at ten times the temperature", particles, "sghmc",
    lambda exact: lambda energy, step_size, friction: exact(energy, step_size, friction, 10.0),
)  # fmt: skip


def logit(theta, x):
    """Of the second class, for one row x."""
    hidden = jnp.tanh(theta["w"].T @ x / np.sqrt(len(x)) * 2 + theta["b"])
    return 3 * theta["v"] @ hidden / np.sqrt(len(hidden)) + theta["c"]


def prior(theta):
    """Standard normal."""
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(theta)) / 2


def term(theta, row):
    """Minus the log-likelihood of one row; y is 0 or 1."""
    x, y = row
    z = logit(theta, x)
    return jax.nn.softplus(z) - y * z


def start(key, inputs, hidden):
    """Parameters drawn from the prior, a tenth of its width."""
    shapes = {"w": (inputs, hidden), "b": (hidden,), "v": (hidden,), "c": ()}
    keys = jax.random.split(key, len(shapes))
    return {name: 0.1 * jax.random.normal(k, shape) for (name, shape), k in zip(shapes.items(), keys, strict=True)}


@partial(jax.jit, static_argnames=("steps",))
def _modes(thetas, data, weight, steps):
    """Adam on weight x |theta|^2/2 minus the log-likelihood of all data, from every start."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))
    energy = particles.MinibatchEnergy(term, data, 1, lambda theta: weight * prior(theta))

    fit = lambda theta: train.minimise(lambda x: energy(x), theta, optimizer, steps=steps).x
    return jax.vmap(fit)(thetas)


@jax.jit
def _probability(thetas, x):
    """Mean over parameters (draws, ...) of the probability of the second class, for rows x."""
    return jax.vmap(lambda row: jnp.mean(jax.nn.sigmoid(jax.vmap(lambda t: logit(t, row))(thetas))))(x)


def negative_log_likelihood(p, y):
    """Mean over the test set."""
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def calibration_error(p, y, bins=10):
    """Mean over test rows of |frequency - mean probability| in bins of probability."""
    index = np.minimum((p * bins).astype(int), bins - 1)
    return float(sum(abs(np.sum((y - p)[index == b])) for b in range(bins)) / len(y))


def _data(config, key):
    """Rows and labels to learn from, and those to test on."""
    from sklearn.datasets import load_breast_cancer

    x, y = (np.asarray(a) for a in load_breast_cancer(return_X_y=True))
    order = np.asarray(jax.random.permutation(key, len(x)))
    train, test = order[: config.train], order[config.train :]
    x = (x - x[train].mean(0)) / x[train].std(0)
    cast = lambda a: np.asarray(a, np.float32)
    return (cast(x[train]), cast(y[train])), (cast(x[test]), cast(y[test]))


def _split(config, key):
    """Probabilities of every method on the test rows of one split, (networks or 1, rows), and the labels."""
    keys = jax.random.split(key, 6)
    data, (x, y) = _data(config, keys[0])
    energy = particles.MinibatchEnergy(term, data, config.batch_size, prior)
    starts = jax.vmap(lambda k: start(k, x.shape[1], config.hidden))(jax.random.split(keys[1], config.members))
    trained, modes = (_modes(starts, data, jnp.float32(weight), config.train_steps) for weight in (0, 1))
    pick = lambda thetas, rows: jax.tree.map(lambda leaf: leaf[rows], thetas)
    p = {"single": np.stack([_probability(pick(trained, slice(m, m + 1)), x) for m in range(3)])}
    p["ensemble"] = np.asarray(_probability(trained, x))[None]
    p["mode"] = np.asarray(_probability(pick(modes, slice(1)), x))[None]
    some = pick(modes, jnp.arange(config.chains) % config.members)
    kernels = {
        "HMC": (particles.hmc(energy, 0.08, 20), config.hmc_moves, 4),
        "SGHMC": (particles.sghmc(energy, 0.03, 3.0), config.moves, 40),
        "SGLD": (particles.sgld(energy, 0.002), config.moves, 40),
    }
    for k, (name, (kernel, moves, thin)) in zip(keys[2:], kernels.items(), strict=False):
        out = particles.run_chains(kernel, some, moves, key=k, save_every=thin, stats=False).check()
        keep = lambda leaf: leaf[len(leaf) // 5 :].reshape(-1, *leaf.shape[2:])
        p[name] = np.asarray(_probability(jax.tree.map(keep, out.samples), x))[None]
    return p, y


@experiment
def run(study, config, key):
    splits = [_split(config, jax.random.fold_in(key, s)) for s in study.each(range(config.splits), "split")]
    score = lambda measure, name: np.asarray([np.mean([measure(q, y) for q in p[name]]) for p, y in splits])
    nll = {name: score(negative_log_likelihood, name) for name in METHODS}
    calibration = {name: score(calibration_error, name) for name in METHODS}
    for name in ("SGHMC", "SGLD"):
        gap = mean_and_error([np.mean(np.abs(p[name] - p["HMC"])) for p, _ in splits])
        quantity = f"{name}: mean difference of its probabilities from those of HMC"
        study.at_most(quantity, gap, config.difference, "splits")
    for name, other in (("single", "a single network"), ("ensemble", "the deep ensemble")):
        gap = mean_and_error(nll["SGHMC"] - nll[name])
        study.at_most(f"SGHMC: NLL less that of {other}", gap, 0.0, "nats, paired over splits")
    # Against the ensemble the calibration error may turn out either way; against the mode it is higher.
    gap = mean_and_error(calibration["SGHMC"] - calibration["HMC"])
    study.near("SGHMC: calibration error less that of HMC", gap, 0.0, "same posterior", atol=config.margin)
    study.metrics |= {f"nll_{name}": nll[name].mean() for name in METHODS}
    study.metrics |= {f"calibration_{name}": calibration[name].mean() for name in METHODS}
    first = lambda name: [np.concatenate([(p[name][0], y)[i] for p, y in splits]) for i in range(2)]
    study.keep(scores={"negative log-likelihood": nll, "calibration error": calibration})
    study.keep(predictions={name: first(name) for name in METHODS})


def plot(result):
    """Log-likelihood and calibration error of every method, and reliability of the predictions."""
    figure, (*axes, reliability) = draw.panels(1, 3, width=4.4, height=3.9)
    for axis, (title, scores) in zip(axes, result.data.scores.items(), strict=True):
        for i, values in enumerate(scores.values()):
            axis.plot(np.full(len(values), i), values, ".", color=f"C{i}", alpha=0.5)
            draw.measured(axis, i + 0.2, *mean_and_error(values), sigmas=1.0, color=f"C{i}", capsize=3)
        draw.label(axis, f"{title} on test data", y=title, ylim=(0, None))
        axis.set_xticks(range(len(METHODS)), METHODS, rotation=20)
    for name, (p, y) in result.data.predictions.items():
        index = np.minimum((p * 10).astype(int), 9)
        filled = [b for b in range(10) if np.sum(index == b) >= 10]
        points = [(p[index == b].mean(), y[index == b].mean()) for b in filled]
        reliability.plot(*np.transpose(points), "o-", ms=4, label=name)
    reliability.plot([0, 1], [0, 1], color="0.6", lw=1)
    draw.label(reliability, "reliability, all splits", "predicted probability", "frequency")
    return figure
