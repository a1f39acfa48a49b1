r"""Transport between many laws through the simplex, along an edge or along a learned curve.

Between a wide Gaussian and two mixtures the means $g_k(a, x) = E[x_k | \sum_j a_j x_j = x]$ are learned from samples by one
regression over the whole simplex, and stand beside their closed form. Then, with no more training:

1. *Every pair*: the flow along each of the edges carries one law to the other.
2. *A curve of less energy*: between two laws a way through the interior of the simplex is found by gradients. Its energy
   $\int E|v|^2 dt$ lies below that of the edge at its best speed, and above the bound $W_2^2$.

**See** Albergo, Boffi, Lindsey and Vanden-Eijnden, Multimarginal generative modeling with stochastic interpolants (2023).
"""

import dataclasses
import itertools
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml import matching, metrics, nn, train
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.recipes._distances import floor_distance, mean_distance
from physml.recipes._result import Info, Result, at_least, at_most

INFO = Info(
    paper="Albergo, Boffi, Lindsey and Vanden-Eijnden, Multimarginal generative modeling (2023)",
    claim="one regression on the simplex gives the flow between every pair of laws; a learned curve lowers the energy",
    time="3 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    laws: tuple[str, ...] = ("noise", "ring", "cross")
    train_steps: int = 15_000
    batch_size: int = 512
    width: int = 128
    samples: int = 1000
    repeats: int = 6
    ode_steps: int = 60
    modes: int = 4
    curve_steps: int = 200
    curve: tuple[str, str] = ("ring", "cross")
    # the bounds of the claims
    floor_ratio: float = 2.0
    exact_ratio: float = 2.0
    saving: float = 0.1

    def __post_init__(self):
        unknown = set(self.laws) - set(LAWS)
        if unknown or len(self.laws) < 2:
            raise ValueError(
                f"config.laws must be two or more of {', '.join(LAWS)}; got {', '.join(self.laws) or 'none'}"
            )
        if len(set(self.curve)) != 2 or not set(self.curve) <= set(self.laws):
            raise ValueError(f"config.curve must be two of config.laws, {', '.join(self.laws)}; got {self.curve}")


def _mixture(means, variance):
    means = np.asarray(means, np.float64)
    return np.full(len(means), 1 / len(means)), means, np.broadcast_to(variance * np.eye(2), (len(means), 2, 2))


LAWS = {
    "noise": _mixture([[0.0, 0.0]], 9.0),
    "ring": _mixture([[2 * np.cos(a), 2 * np.sin(a)] for a in np.arange(5) * 2 * np.pi / 5], 0.05),
    "cross": _mixture([[1.5, 1.5], [-1.5, 1.5], [1.5, -1.5], [-1.5, -1.5]], 0.08),
    "pair": _mixture([[-1.2, 0.4], [1.2, -0.4]], 0.2),
}
PAPER = Config()
SMOKE = Config(laws=("noise", "cross", "pair"), curve=("cross", "pair"), train_steps=800, batch_size=128, width=48, samples=300, repeats=2, ode_steps=20, curve_steps=80, floor_ratio=15.0, exact_ratio=3.0, saving=0.0)  # fmt: skip


def _law(name):
    return tuple(jnp.asarray(part, jnp.float32) for part in LAWS[name])


def _draw(names, n, key):
    keys = jax.random.split(key, len(names))
    return jnp.stack([matching.mixture_sample(_law(name), n, key=k) for name, k in zip(names, keys, strict=True)])


class Means(eqx.Module):
    """All g_k from one perceptron of (a, x)."""

    net: nn.MLP
    laws: int = eqx.field(static=True)

    def __call__(self, a, x, args=None):
        return self.net(0.0, jnp.concatenate([x, a])).reshape(self.laws, -1)


def _loss(model, xs, *, key):
    return matching.simplex_match(model, xs, key=key)


@eqx.filter_jit
def _carry(field, curve, x0, steps):
    velocity = matching.along(field, curve)
    return jax.vmap(lambda x: matching.sample(velocity, x, steps=steps))(x0)


@eqx.filter_jit
def _energy(field, curve, xs):
    return matching.transport_energy(field, curve, xs)


@eqx.filter_jit
def _length(field, curve, xs):
    """The square of the length: the energy at the best speed along the same curve, from the speed at even times."""

    def speed(t):
        velocity = matching.along(field, curve)
        x = jnp.tensordot(curve(t), xs, 1)
        return jnp.sqrt(jnp.mean(jnp.sum(jax.vmap(lambda x: velocity(t, x))(x) ** 2, axis=-1)))

    return jnp.mean(jax.lax.map(speed, (jnp.arange(64, dtype=xs.dtype) + 0.5) / 64)) ** 2


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Learn the means, walk every edge, then learn a curve with the exact and with the learned means."""
    keys = jax.random.split(key, 8)
    names, laws = config.laws, len(config.laws)
    draw = partial(_draw, names, config.batch_size)
    net = nn.MLP(2 + laws, out_dim=2 * laws, width=config.width, depth=3, frequencies=None, key=keys[0])
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, config.train_steps))
    fit = train.fit(
        _loss,
        Means(net, laws),
        draw,
        optimizer=optimizer,
        steps=config.train_steps,
        ema_decay=0.999,
        key=keys[1],
        progress=progress,
    )
    fields = {"exact": matching.exact_means([_law(name) for name in names]), "learned": fit.ema}
    xs = _draw(names, config.repeats * config.samples, keys[2])
    fresh = _draw(names, config.repeats * config.samples, keys[3]).reshape(laws, config.repeats, config.samples, 2)
    floors = [
        floor_distance(lambda key, name=name: matching.mixture_sample(_law(name), config.samples, key=key), key=keys[4])
        for name in names
    ]

    claims, numbers, arrays = [], {}, {}
    pairs = list(itertools.permutations(range(laws), 2))
    with progress_bar(2 * len(pairs), "multimarginal", "edge", show=progress) as bar:
        for kind, field in fields.items():
            worst, where = 0.0, ""
            for i, j in pairs:
                x = _carry(field, matching.edge(laws, i, j), xs[i], config.ode_steps)
                ratio = mean_distance(x, fresh[j]) / floors[j]
                numbers[f"{kind}_{names[i]}_{names[j]}"] = ratio
                arrays[f"{kind}_{names[i]}_{names[j]}"] = np.asarray(x[: config.samples])
                worst, where = max((worst, where), (ratio, f"{names[i]} to {names[j]}"))
                bar.update()
            bound = config.exact_ratio if kind == "exact" else config.floor_ratio
            claims.append(
                at_most(
                    f"{kind} means, worst edge of {len(pairs)}: energy distance",
                    worst,
                    bound,
                    f"x two exact samples; {where}",
                )
            )
    i, j = (names.index(name) for name in config.curve)
    sampler = partial(_draw, names, config.batch_size)
    transport = float(metrics.wasserstein2(fresh[i, 0], fresh[j, 0])) ** 2
    for kind, field in fields.items():
        curve = matching.learn_curve(
            field, sampler, i, j, key=keys[5], modes=config.modes, steps=config.curve_steps, progress=progress
        )
        edge = matching.edge(laws, i, j)
        best = float(_length(field, edge, xs[:, :1000]))
        learned, plain = float(_energy(field, curve, xs)), float(_energy(field, edge, xs))
        x = _carry(field, curve, xs[i], config.ode_steps)
        ratio = mean_distance(x, fresh[j]) / floors[j]
        source = f"{1 - config.saving:g} x the edge's, {plain:.3g}"
        claims += [
            at_most(f"{kind}: energy of the learned curve", learned, (1 - config.saving) * plain, source),
            at_most(f"{kind}: the same against the edge at its best speed", learned, best, "the squared length of the edge"),
            at_least(f"{kind}: the same against the transport bound", learned, 0.95 * transport, "squared W2 of samples, less 5% for their noise"),
            at_most(f"{kind}: energy distance along the curve", ratio, config.exact_ratio if kind == "exact" else config.floor_ratio, "x two exact samples"),
        ]  # fmt: skip
        numbers |= {f"energy_{kind}_curve": learned, f"energy_{kind}_edge": plain, f"energy_{kind}_length": best}
        arrays[f"curve_{kind}"] = np.asarray(jax.vmap(curve)(jnp.linspace(0.0, 1.0, 101)))
        arrays[f"carried_{kind}"] = np.asarray(x[: config.samples])
    numbers["transport"] = transport
    return Result(
        tuple(claims), numbers, arrays | {"start": np.asarray(xs[i, : config.samples]), "end": np.asarray(fresh[j, 0])}
    )


def plot(result: Result) -> Any:
    """The edges from the first law, the learned curve as weights over time, its end, and the energies."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    edges = [k for k in arrays if k.startswith("learned_noise_")]
    figure, axes = plt.subplots(1, len(edges) + 3, figsize=(3.3 * (len(edges) + 3), 3.4), layout="constrained")
    for axis, name in zip(axes, edges, strict=False):
        axis.plot(*arrays[name].T, ".", ms=2)
        axis.set(
            title=f"noise to {name.split('_')[-1]}: {numbers[name]:.2f} x floor",
            aspect="equal",
            xlim=(-3.5, 3.5),
            ylim=(-3.5, 3.5),
        )
    weights, carried, energies = axes[-3:]
    for kind, style in (("exact", "-"), ("learned", "--")):
        for k, w in enumerate(arrays[f"curve_{kind}"].T):
            weights.plot(
                np.linspace(0, 1, len(w)), w, style, color=f"C{k}", label=f"law {k + 1}" if kind == "exact" else None
            )
    weights.set(xlabel="t", ylabel="weight", title="learned curve (dashed: learned means)")
    weights.legend(fontsize=8)
    carried.plot(*arrays["end"].T, ".", color="0.8", ms=2, label="target")
    carried.plot(*arrays["carried_learned"].T, ".", color="C0", ms=2, label="carried along the curve")
    carried.set(aspect="equal", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))
    carried.legend(fontsize=8, markerscale=4)
    labels = ["edge", "length", "curve"]
    for k, kind in enumerate(("exact", "learned")):
        energies.bar(
            np.arange(3) + 0.4 * k - 0.2,
            [numbers[f"energy_{kind}_{label}"] for label in labels],
            0.38,
            label=f"{kind} means",
        )
    energies.axhline(numbers["transport"], color="k", lw=1, label="squared W2")
    energies.set_xticks(range(3), ["edge", "best speed", "curve"])
    energies.set(ylabel="energy")
    energies.legend(fontsize=8)
    return figure
