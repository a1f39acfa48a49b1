r"""Charges on a sphere: Thomson's problem, and the same energy keeping the neurons of a network apart.

1. *Thomson.* $\sum_{i<j} 1/|x_i - x_j|$ of n points on the sphere, annealed by Langevin dynamics and descended: the least of
   several starts is held against the known minima.
2. *Neurons.* A small network learns digits from few examples, with and without the hyperspherical energy
   $|w_i/|w_i| - w_j/|w_j||^{-2}$ of the neurons of each hidden layer, plain or with every direction taken as a line.
   The regulariser must leave them further apart, and the accuracy on held-out digits must not suffer.

**See** Thomson (1904); the energies are those of Wales and Ulker (2006), as tabulated by the Cambridge cluster database; Liu
et al., Learning towards minimum hyperspherical energy (2018).
"""

import dataclasses
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial.distance import pdist, squareform

from physml import data, nn, train
from physml.metrics import mean_and_error
from physml.particles.matter import hypersphere
from physml.particles.matter.hypersphere import hyperspherical_energy, thomson
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Liu et al., Learning towards minimum hyperspherical energy (2018); Thomson (1904)",
    claim="the minima of Thomson's problem to five digits; a network with its neurons apart is no worse on digits",
    time="1 min, smoke 10 s",
)
# Least energies of n charges on the unit sphere.
MINIMA = {
    2: 0.5, 3: 1.732050808, 4: 3.674234614, 5: 6.474691495, 6: 9.985281374, 7: 14.452977414, 8: 19.675287861,
    9: 25.759986531, 10: 32.716949460, 11: 40.596450510, 12: 49.165253058,
}  # fmt: skip
GROUPS = ("none", "plain", "half-space")


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    sizes: tuple[int, ...] = setting(tuple(MINIMA), least=2.0, most=12.0)
    starts: int = setting(16, least=2.0)
    examples: int = setting(400, most=1437.0)
    networks: int = setting(8, least=2.0)  # of each kind, from the same initial weights
    width: int = setting(48, least=2.0)
    steps: int = setting(1500, least=2.0)
    batch_size: int = setting(64, least=2.0)
    strength: float = setting(1.0, least=0.0)  # of the mean energy over pairs, beside the cross-entropy
    accuracy: float = 0.005  # how much of it may be lost

    def rules(self):
        return ((self.batch_size <= self.examples, "batch_size is at most examples"),)


PAPER = Config()
SMOKE = Config(sizes=(5,), examples=300, networks=2, width=24, steps=200, accuracy=0.03)

SABOTAGE = (
    Sabotage(
        "the charges are annealed but not descended", hypersphere, "_descend",
        lambda exact: lambda x, s, most: (x, jax.vmap(hyperspherical_energy)(x), *jnp.ones((2, len(x)), int)),
    ),
    Sabotage(
        "the neurons attract", sys.modules[__name__], "_repulsion", lambda exact: lambda nets: -exact(nets)
    ),
)  # fmt: skip


@experiment
def run(study, config, key):
    charge_key, net_key = jax.random.split(key)
    for n in study.each(config.sizes, "size"):
        x, energy = thomson(n, key=jax.random.fold_in(charge_key, n), chains=config.starts).check()
        best = np.asarray(x[jnp.argmin(energy)], np.float64)
        # Again from the points, outside of the descent.
        least = np.sum(1 / pdist(best / np.linalg.norm(best, axis=1, keepdims=True)))
        study.near(f"Thomson, {n} charges: least energy", least, MINIMA[n], "known minimum", atol=1e-5)
        study.metrics[f"thomson_{n}_found"] = jnp.mean(energy < MINIMA[n] + 1e-4)
        study.keep(charges=best)
    study.keep(sizes=config.sizes, distances=[abs(claim.value - claim.reference) for claim in study.claims])
    accuracies, energies, cosines = _networks(config, net_key)
    for i, group in enumerate(GROUPS[1:], 1):
        saved = mean_and_error(energies[0, :, i - 1] - energies[i, :, i - 1])  # each kind by its own energy
        gained = mean_and_error(accuracies[i] - accuracies[0])
        study.at_least(f"{group}: energy saved over none, in standard errors", saved.z(0), 5, "paired")
        study.at_least(f"{group}: accuracy gained", gained, -config.accuracy, "paired, held-out digits")
        study.metrics |= {f"energy_saved_{group}": saved.value, f"accuracy_{group}": accuracies[i].mean()}
    study.at_least("accuracy without a regulariser", accuracies[0].mean(), 0.85, "a network that learned")
    study.keep(accuracies=accuracies, energies=energies, cosines=cosines)


def _spread(net, half_space):
    """The mean over pairs of the energy of neurons, over hidden layers."""
    layers = [net.first.T, *(weights.T for weights in net.hidden)]
    pairs = net.first.shape[1] * (net.first.shape[1] - 1) / 2
    return sum(hyperspherical_energy(w, 2.0, half_space=half_space) for w in layers) / (pairs * len(layers))


def _repulsion(nets):
    """Of networks (groups, networks, ...): the sum of their energies, each group's own."""
    group = lambda i: jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, nets)
    return sum(eqx.filter_vmap(lambda net, h=h: _spread(net, h))(group(i)).sum() for i, h in ((1, False), (2, True)))


def _networks(config, key):
    """All networks in one fit: the gradients of a sum are those of its members."""
    init, fit_key = jax.random.split(key)
    digits = data.digits()
    scale = lambda x: jnp.asarray(x) / 8 - 1
    make = lambda key: nn.MLP(64, width=config.width, depth=2, out_dim=10, frequencies=None, key=key)
    nets = eqx.filter_vmap(make)(jax.random.split(init, config.networks))
    nets = jax.tree.map(lambda a: jnp.stack([a] * 3) if eqx.is_array(a) else a, nets)  # (groups, networks, ...)
    each = lambda f, nets: eqx.filter_vmap(eqx.filter_vmap(f))(nets)

    def loss(nets, batch, *, key):
        x, y = batch

        def entropy(net):
            logits = jax.vmap(lambda x: net(0.0, x))(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return each(entropy, nets).sum() + config.strength * _repulsion(nets)

    rows = (scale(digits.train_x[: config.examples]), jnp.asarray(digits.train_y[: config.examples]))
    options = {"optimizer": optax.adam(2e-3), "steps": config.steps, "batch_size": config.batch_size}
    fit = train.fit(loss, nets, rows, **options, key=fit_key, progress=False)
    test_x, test_y = scale(digits.test_x), jnp.asarray(digits.test_y)

    def judge(net):
        right = jnp.argmax(jax.vmap(lambda x: net(0.0, x))(test_x), axis=1) == test_y
        first = net.first / jnp.linalg.norm(net.first, axis=0, keepdims=True)
        cosines = (first.T @ first)[jnp.triu_indices(config.width, 1)]
        return jnp.mean(right), jnp.stack([_spread(net, False), _spread(net, True)]), cosines

    return [np.asarray(a, np.float64) for a in eqx.filter_jit(each)(judge, fit.model)]


def plot(result):
    """The charges of the largest problem, errors of the minima, angles between neurons, energies and accuracies."""
    d = result.data
    figure, (place, minima, angles, scores) = draw.panels(1, 4, width=3.75)
    place.remove()
    sphere = figure.add_subplot(1, 4, 1, projection="3d")
    gaps = squareform(pdist(d.charges))
    nearest = pdist(d.charges).min()
    for pair in np.argwhere(np.triu(gaps < 1.1 * nearest, 1)):
        sphere.plot(*d.charges[pair].T, color="C0", lw=1)
    sphere.plot(*d.charges.T, "o", color="C3")
    sphere.set(title=f"{len(d.charges)} charges", box_aspect=(1, 1, 1))
    sphere.set_axis_off()
    minima.plot(d.sizes, np.maximum(d.distances, 1e-10), "o")
    minima.axhline(1e-5, color="k", lw=1, label="claimed")
    draw.label(minima, "Thomson's problem", "charges", "distance from the known minimum", log="y")
    for i, group in enumerate(GROUPS):
        draw.histogram(angles, d.cosines[i], 60, histtype="step", alpha=1, color=f"C{i}", label=group)
        scores.plot(d.energies[i, :, 0], d.accuracies[i], "o", color=f"C{i}", label=group)
    draw.label(angles, "first layer, trained", "cosine between neurons", "density")
    draw.label(scores, "trained networks", "energy of a pair of neurons", "accuracy, held-out digits")
    return figure
