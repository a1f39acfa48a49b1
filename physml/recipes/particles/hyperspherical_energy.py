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
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml import data, nn, train
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.particles.matter.hypersphere import hyperspherical_energy, thomson
from physml.recipes._result import Info, Result, at_least, close_to

INFO = Info(
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
class Config:
    """Sizes, and what the claims ask for."""

    sizes: tuple[int, ...] = tuple(MINIMA)
    starts: int = 16
    examples: int = 400
    networks: int = 8  # of each kind, from the same initial weights
    width: int = 48
    steps: int = 1500
    batch_size: int = 64
    strength: float = 1.0  # of the mean energy over pairs, beside the cross-entropy
    accuracy: float = 0.005  # how much of it may be lost

    def __post_init__(self):
        if not set(self.sizes) <= set(MINIMA):
            raise ValueError(f"config.sizes must be between 2 and 12, whose minima are known; got {self.sizes}")
        for name in ("starts", "networks", "width", "steps", "batch_size"):
            if getattr(self, name) < 2:
                raise ValueError(f"config.{name} must be at least 2, got {getattr(self, name)}")
        if not self.batch_size <= self.examples <= 1437 or self.strength < 0:
            raise ValueError(f"expected batch_size <= examples <= 1437, strength >= 0; got {self}")


PAPER = Config()
SMOKE = Config(sizes=(5,), examples=300, networks=2, width=24, steps=200, accuracy=0.03)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Thomson's minima, then the networks."""
    charge_key, net_key = jax.random.split(key)
    claims, numbers, arrays = [], {}, {}
    with progress_bar(len(config.sizes) + 1, "hyperspherical_energy", "problem", show=progress) as bar:
        for n in config.sizes:
            x, energy = thomson(n, key=jax.random.fold_in(charge_key, n), chains=config.starts)
            # Again from the points, outside of the descent.
            best = _energy(np.asarray(x[jnp.argmin(energy)], np.float64))
            source = "known minimum"
            claims.append(close_to(f"Thomson, {n} charges: least energy", best, MINIMA[n], 1e-5, source))
            numbers[f"thomson_{n}"] = best
            numbers[f"thomson_{n}_found"] = float(jnp.mean(energy < MINIMA[n] + 1e-4))
            arrays["charges"] = np.asarray(x[jnp.argmin(energy)])
            bar.update()
        found = _networks(config, net_key)
        bar.update()
    energies, accuracies = found["energies"], found["accuracies"]
    for i, group in enumerate(GROUPS[1:], 1):
        less = energies[0, :, i - 1] - energies[i, :, i - 1]  # each kind by its own energy
        gain = accuracies[i] - accuracies[0]
        error = lambda a: a.std(ddof=1) / len(a) ** 0.5
        claims += [
            at_least(f"{group}: energy saved over none, in standard errors", less.mean() / error(less), 5, "paired"),
            at_least(
                f"{group}: accuracy gained", gain.mean(), -config.accuracy, "paired, held-out digits", error(gain)
            ),
        ]
        numbers |= {f"energy_saved_{group}": less.mean(), f"accuracy_gained_{group}": gain.mean()}
    numbers |= {f"accuracy_{group}": accuracies[i].mean() for i, group in enumerate(GROUPS)}
    claims.append(at_least("accuracy without a regulariser", accuracies[0].mean(), 0.85, "a network that learned"))
    return Result(tuple(claims), numbers, arrays | found)


def _energy(x):
    i, j = np.triu_indices(len(x), 1)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return float(np.sum(1 / np.linalg.norm(x[i] - x[j], axis=1)))


def _spread(net, half_space):
    """The mean over pairs of the energy of neurons, over hidden layers."""
    layers = [net.first.T, *(weights.T for weights in net.hidden)]
    pairs = net.first.shape[1] * (net.first.shape[1] - 1) / 2
    return sum(hyperspherical_energy(w, 2.0, half_space=half_space) for w in layers) / (pairs * len(layers))


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

        group = lambda i: jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, nets)
        repelled = sum(
            eqx.filter_vmap(lambda net, h=h: _spread(net, h))(group(i)).sum() for i, h in ((1, False), (2, True))
        )
        return each(entropy, nets).sum() + config.strength * repelled

    rows = (scale(digits.train_x[: config.examples]), jnp.asarray(digits.train_y[: config.examples]))
    fit = train.fit(
        loss, nets, rows, optimizer=optax.adam(2e-3), steps=config.steps, batch_size=config.batch_size, key=fit_key,
        progress=False,
    )  # fmt: skip
    test_x, test_y = scale(digits.test_x), jnp.asarray(digits.test_y)

    def judge(net):
        right = jnp.argmax(jax.vmap(lambda x: net(0.0, x))(test_x), axis=1) == test_y
        first = net.first / jnp.linalg.norm(net.first, axis=0, keepdims=True)
        cosines = (first.T @ first)[jnp.triu_indices(config.width, 1)]
        return jnp.mean(right), jnp.stack([_spread(net, False), _spread(net, True)]), cosines

    accuracies, energies, cosines = (np.asarray(a, np.float64) for a in eqx.filter_jit(each)(judge, fit.model))
    return {"accuracies": accuracies, "energies": energies, "cosines": cosines}


def plot(result: Result) -> Any:
    """The charges of the largest problem, errors of the minima, angles between neurons, energies and accuracies."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    figure = plt.figure(figsize=(15, 3.7), layout="constrained")
    axis = figure.add_subplot(1, 4, 1, projection="3d")
    x = arrays["charges"]
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 40), np.linspace(0, np.pi, 20))
    sphere = (np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v))
    axis.plot_surface(*sphere, color="0.9", alpha=0.3, linewidth=0)
    gaps = np.linalg.norm(x[:, None] - x[None], axis=-1)
    nearest = np.min(gaps + 9 * np.eye(len(x)))
    for i, j in zip(*np.nonzero(np.triu(gaps < 1.1 * nearest, 1)), strict=True):
        axis.plot(*np.stack([x[i], x[j]], -1), color="C0", lw=1)
    axis.plot(*x.T, "o", color="C3")
    axis.set(title=f"{len(x)} charges", box_aspect=(1, 1, 1))
    axis.set_axis_off()
    axes = [figure.add_subplot(1, 4, k) for k in (2, 3, 4)]
    sizes = [n for n in MINIMA if f"thomson_{n}" in numbers]
    errors = [abs(numbers[f"thomson_{n}"] - MINIMA[n]) for n in sizes]
    axes[0].semilogy(sizes, np.maximum(errors, 1e-10), "o")
    axes[0].axhline(1e-5, color="k", lw=1, label="claimed")
    axes[0].set(xlabel="charges", ylabel="distance from the known minimum", title="Thomson's problem")
    axes[0].legend(fontsize=8)
    for i, group in enumerate(GROUPS):
        axes[1].hist(arrays["cosines"][i].ravel(), bins=60, histtype="step", density=True, color=f"C{i}", label=group)
    axes[1].set(xlabel="cosine between neurons", ylabel="density", title="first layer, trained")
    axes[1].legend(fontsize=8)
    for i, group in enumerate(GROUPS):
        axes[2].plot(arrays["energies"][i, :, 0], arrays["accuracies"][i], "o", color=f"C{i}", label=group)
    axes[2].set(xlabel="energy of a pair of neurons", ylabel="accuracy, held-out digits", title="trained networks")
    axes[2].legend(fontsize=8)
    return figure
