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

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml import matching, nn
from physml.recipes import RecipeInfo, Sabotage, Settings, distances, draw, experiment, setting
from physml.recipes.matching._fit import fit

INFO = RecipeInfo(
    paper="Albergo, Boffi, Lindsey and Vanden-Eijnden, Multimarginal generative modeling (2023)",
    claim="one regression on the simplex gives the flow between every pair of laws; a learned curve lowers the energy",
    time="3 min, smoke 15 s",
)


def _mixture(means, variance):
    means = np.asarray(means, np.float32)
    return np.full(len(means), 1 / len(means)), means, np.broadcast_to(variance * np.eye(2), (len(means), 2, 2))


LAWS = {
    "noise": _mixture([[0.0, 0.0]], 9.0),
    "ring": _mixture([[2 * np.cos(a), 2 * np.sin(a)] for a in np.arange(5) * 2 * np.pi / 5], 0.05),
    "cross": _mixture([[1.5, 1.5], [-1.5, 1.5], [1.5, -1.5], [-1.5, -1.5]], 0.08),
    "pair": _mixture([[-1.2, 0.4], [1.2, -0.4]], 0.2),
}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    laws: tuple[str, ...] = setting(("noise", "ring", "cross"), choices=LAWS, length=2)
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
    saving: float = setting(0.1, least=0.0)

    def rules(self):
        known = len(set(self.curve)) == 2 and set(self.curve) <= set(self.laws)
        return ((known, f"curve must be two of the laws {', '.join(self.laws)}"),)


PAPER = Config()
SMOKE = Config(
    laws=("noise", "cross", "pair"), curve=("cross", "pair"), train_steps=800, batch_size=128, width=48, samples=300,
    repeats=2, ode_steps=20, curve_steps=80, floor_ratio=15.0, exact_ratio=3.0, saving=0.0,
)  # fmt: skip

SABOTAGE = Sabotage(
    "the flow along a curve of the simplex goes at half its speed", matching, "along",
    lambda exact: lambda field, curve: lambda t, x, args=None: 0.5 * exact(field, curve)(t, x, args),
)  # fmt: skip


def _draw(names, n, key):
    keys = jax.random.split(key, len(names))
    return jnp.stack([matching.mixture_sample(LAWS[name], n, key=k) for name, k in zip(names, keys, strict=True)])


class Means(eqx.Module):
    """All g_k from one perceptron of (a, x)."""

    net: nn.MLP
    laws: int = eqx.field(static=True)

    def __call__(self, a, x, args=None):
        return self.net(0.0, jnp.concatenate([x, a])).reshape(self.laws, -1)


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


@experiment
def run(study, config, key):
    keys = jax.random.split(key, 8)
    count, laws, total = len(config.laws), config.laws, config.repeats * config.samples
    sampler = partial(_draw, laws, config.batch_size)
    xs = _draw(laws, total, keys[2])
    fresh = _draw(laws, total, keys[3]).reshape(count, config.repeats, config.samples, 2)
    exact_samples = [partial(matching.mixture_sample, LAWS[name], config.samples) for name in laws]
    targets = [
        distances.Target(x, distances.floor(law, key=keys[4])) for x, law in zip(fresh, exact_samples, strict=True)
    ]
    i, j = (laws.index(name) for name in config.curve)
    transport = float(distances.wasserstein2(fresh[i, 0], fresh[j, 0])) ** 2
    study.measure(transport=transport)
    study.keep(target=fresh[j, 0], names=laws, edges={}, energies={}, curves={}, carried={})

    def walk(kind, field, bound):
        """Every edge with these means."""
        worst, where = 0.0, ""
        for a, b in study.each(itertools.permutations(range(count), 2), f"edge, {kind} means"):
            x = _carry(field, matching.edge(count, a, b), xs[a], config.ode_steps)
            ratio = targets[b].distance(x) / targets[b].floor
            study.data.edges[kind, laws[a], laws[b]] = x[: config.samples], ratio
            worst, where = max((worst, where), (ratio, f"{laws[a]} to {laws[b]}"))
        quantity = f"{kind} means, worst edge of {count * (count - 1)}: energy distance"
        study.at_most(quantity, worst, bound, f"x two exact samples; {where}")

    def bend(kind, field, bound):
        """A curve of less energy than the edge, learned with these means."""
        curve = matching.learn_curve(
            field, sampler, i, j, key=keys[5], modes=config.modes, steps=config.curve_steps, progress=study.progress
        )
        edge = matching.edge(count, i, j)
        learned, plain = float(_energy(field, curve, xs)), float(_energy(field, edge, xs))
        best = float(_length(field, edge, xs[:, :1000]))
        source = f"{1 - config.saving:g} x the edge's, {plain:.3g}"
        study.at_most(f"{kind}: energy of the learned curve", learned, (1 - config.saving) * plain, source)
        source = "the squared length of the edge"
        study.at_most(f"{kind}: the same against the edge at its best speed", learned, best, source)
        source = "squared W2 of samples, less 5% for their noise"
        study.at_least(f"{kind}: the same against the transport bound", learned, 0.95 * transport, source)
        x = _carry(field, curve, xs[i], config.ode_steps)
        ratio = targets[j].distance(x) / targets[j].floor
        study.at_most(f"{kind}: energy distance along the curve", ratio, bound, "x two exact samples")
        study.data.energies[kind] = [plain, best, learned]
        study.data.curves[kind] = jax.vmap(curve)(jnp.linspace(0.0, 1.0, 101))
        study.data.carried[kind] = x[: config.samples]

    exact = matching.exact_means([LAWS[name] for name in laws])
    walk("exact", exact, config.exact_ratio)
    net = nn.MLP(2 + count, out_dim=2 * count, width=config.width, depth=3, frequencies=None, key=keys[0])
    options = {"rate": 2e-3, "steps": config.train_steps, "key": keys[1], "progress": study.progress}
    learned = fit(matching.simplex_match, Means(net, count), sampler, **options).ema
    walk("learned", learned, config.floor_ratio)
    bend("exact", exact, config.exact_ratio)
    bend("learned", learned, config.floor_ratio)


def plot(result):
    """The edges from the first law, the learned curve as weights over time, its end, and the energies."""
    d = result.data
    shown = {b: found for (kind, a, b), found in d.edges.items() if kind == "learned" and a == d.names[0]}
    figure, axes = draw.panels(1, len(shown) + 3, width=3.4, height=3.4)
    for axis, (name, (x, ratio)) in zip(axes, shown.items(), strict=False):
        draw.cloud(axis, x, f"{d.names[0]} to {name}: {ratio:.2f} x floor", reach=3.5)
    weights, carried, energies = axes[-3:]
    for kind, style in (("exact", "-"), ("learned", "--")):
        for k, w in enumerate(d.curves[kind].T):
            label = d.names[k] if kind == "exact" else None
            draw.theory(weights, np.linspace(0, 1, len(w)), w, style, color=f"C{k}", label=label)
    draw.label(weights, "weights (dashed: learned means)", "t", "weight")
    draw.beside(carried, d.target, d.carried["learned"], "carried, learned means", reach=3.5)
    for k, (kind, values) in enumerate(d.energies.items()):
        energies.bar(np.arange(3) + 0.4 * k - 0.2, values, 0.38, label=f"{kind} means")
    energies.axhline(result.metrics["transport"], color="k", lw=1, label="squared W2")
    energies.set_xticks(range(3), ["edge", "best speed", "curve"])
    draw.label(energies, y="energy", ylim=(0, 1.4 * max(map(max, d.energies.values()))))
    return figure
