r"""Continuous Hopfield networks: error bounds, exponential capacity, metastable states, real digits from halves.

$$x \leftarrow X^T\,\mathrm{softmax}(\beta X x), \qquad
  |f(x) - x_i| \le 2(N-1)M\,e^{-\beta(\Delta_i - 2M|x - x_i|)}$$

1. *Bound*: the error of one step over the bound, in random trials that include its worst case.
2. *Capacity*: random patterns of length $K\sqrt{d-1}$. A pattern keeps the weight $p_i = e^{\beta E(x_i)}/N$, so energies,
   in chunks, are enough to see it. With $\kappa = \beta K^2$ and u the overlap of two directions, $1/p_i - 1$ is
   $N\langle e^{-\kappa(d-1)(1-u)}\rangle_u$, and half the weight is lost at

$$N_{1/2} = \Bigl[\Gamma(\tfrac d2)\bigl(\tfrac2t\bigr)^\nu I_\nu(t)\,e^{-t}\Bigr]^{-1}, \quad t = \kappa(d-1),\ \nu = \tfrac d2 - 1;
  \qquad \frac{\ln N_{1/2}}{d - 1} \to \kappa - \max_u\bigl[\kappa u + \tfrac12\ln(1-u^2)\bigr],$$

   exponential in d, and far above what the proof guarantees at the same parameters.
3. *Kinds of fixed points*: digits as memories, from one average of all at small $\beta$ over averages of a few to single
   digits; those who share a fixed point share the class more often than chance.
4. *Completion*: digits with their lower half hidden, over $\beta$, for every separation; one step is enough.

**See** Ramsauer et al., Hopfield networks is all you need (2021); Lucibello and Mezard, Exponential capacity of dense
associative memories (2024), for capacities by large deviations.
"""

import dataclasses
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from physml import data, hopfield
from physml.metrics import straight_line
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Ramsauer et al., Hopfield networks is all you need (2021)",
    claim="one-step bound never violated; capacity e^(0.62 d) as derived; kinds of attractors; digits from halves",
    time="40 s",
)

# Separation and steps. The power is high enough for the largest of thousands of overlaps to stand out.
CURVES = {
    "softmax": ("softmax", 1),
    "softmax, 5 steps": ("softmax", 5),
    "softmax1": ("softmax1", 1),
    "sparsemax": ("sparsemax", 1),
    "power 40": (hopfield.Polynomial(40), 1),
}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes of the four parts, and what the claims ask for."""

    memories: int = 1000  # of the bound; each with 100 states
    dims: tuple[int, ...] = setting((8, 10, 12, 14, 16), least=3.0, length=3)
    probes: int = 1000
    kappa: float = 1.0
    images: str = setting("mnist", choices=("mnist", "digits"))
    stored: int = 2000
    hidden: int = 500  # images to be completed
    kinds: int = 300  # memories of the third part
    betas: int = setting(13, least=5.0)
    # the bounds of the claims
    capacity_error: float = 0.1
    slope_error: float = 0.03
    completed: float = 0.9


PAPER = Config()
SMOKE = Config(
    memories=100, dims=(8, 9, 10), probes=100, images="digits", stored=300, hidden=100, kinds=80, betas=7,
    capacity_error=0.2, slope_error=0.1, completed=0.7,
)  # fmt: skip

SABOTAGE = (
    Sabotage(
        "the bound without its factor 2", hopfield, "step_error_bound",
        lambda exact: lambda *a, **options: 0.5 * exact(*a, **options),
    ),
    Sabotage(
        "the capacity of one dimension more", sys.modules[__name__], "half_capacity",
        lambda exact: lambda kappa, d: exact(kappa, d + 1),
    ),
)  # fmt: skip


@experiment
def run(study, config, key):
    rng = np.random.default_rng(int(jax.random.randint(key, (), 0, 2**31 - 1)))
    for part in study.each((_bound, _capacity, _kinds, _completion), "part"):
        part(study, config, rng)


def _bound(study, config, rng):
    """Random patterns, and patterns in a line with the state on the way to the others, where the bound is sharpest."""
    n, states, patterns, d = config.memories, 100, 6, 4
    memory = rng.normal(size=(n, patterns, d)) * rng.uniform(0.3, 2, size=(n, 1, 1))
    move = rng.normal(size=(n, states, d)) * 10 ** rng.uniform(-3, 0, size=(n, states, 1))
    half = n // 2
    memory[:half, 1:] = memory[:half, :1] * rng.uniform(-1, 1, size=(half, 1, 1)) + 0.1 * memory[:half, 1:]
    move[:half] = -memory[:half, :1] * rng.uniform(0, 1, size=(half, states, 1))
    beta = np.exp(rng.uniform(-3, 3, size=n))

    @jax.jit
    @jax.vmap
    def errors(memory, beta, move):
        x = memory[:1] + move
        error = jnp.linalg.norm(hopfield.retrieve(x, memory, beta=beta).x - memory[:1], axis=-1)
        return error, hopfield.step_error_bound(x, memory, beta=beta)[:, 0]

    with jax.enable_x64(True):
        error, bound = (np.asarray(a).ravel() for a in errors(memory, beta, move))
    # Rounding leaves an error where the bound is below it.
    floor = 8 * np.finfo(float).eps * np.repeat(np.linalg.norm(memory, axis=-1).max(1), states)
    largest = np.max(error / (bound + floor))
    study.at_most("largest error of one step over its bound", largest, 1, f"proof, {n * states} trials")
    few = rng.choice(len(error), min(4000, len(error)), replace=False)
    study.keep(error=error[few], bound=bound[few])


def half_capacity(kappa: float, d: int) -> float:
    """N at which a random pattern keeps half its weight, by the average over the direction of another pattern."""
    from scipy.special import gammaln, ive

    t, v = kappa * (d - 1), d / 2 - 1
    return float(np.exp(-(gammaln(d / 2) + v * np.log(2 / t) + np.log(ive(v, t)))))


def growth(kappa: float) -> float:
    """kappa - max over u of kappa u + ln(1 - u^2)/2: the exponent of the capacity."""
    u = (np.sqrt(1 + 4 * kappa**2) - 1) / (2 * kappa)
    return float(kappa - kappa * u - 0.5 * np.log(1 - u * u))


@partial(jax.jit, static_argnames=("kappa", "probes"))
def _own_weights(memory, counts, kappa, probes):
    """For every count, the weights of the first patterns in a memory that holds so many besides them."""

    def one(count):
        x, index = memory[:probes], jnp.arange(len(memory))
        # A probe sees itself and `count` others.
        others = (index[None, :] < count) | (index[None, :] == jnp.arange(probes)[:, None])
        e = hopfield.energy(x, memory, beta=kappa, mask=others, chunk=4096)
        return jnp.exp(kappa * e) / jnp.sum(others, -1).astype(e.dtype)

    return jax.lax.map(one, counts)


def _capacity(study, config, rng):
    """Weights that random patterns keep, around the number at which half is lost."""
    ratios, dims = 2.0 ** np.linspace(-2, 2, 9), np.asarray(config.dims)
    exact = np.array([half_capacity(config.kappa, d) for d in config.dims])
    proved = np.array([float(hopfield.capacity(config.kappa, d, radius=1.0).patterns) for d in config.dims])
    shares, measured = {}, []
    for d, expected in zip(config.dims, exact, strict=True):
        counts = np.maximum(1, np.round(ratios * expected)).astype(np.int32)
        memory = rng.normal(size=(max(counts[-1], config.probes), d))
        memory *= np.sqrt(d - 1) / np.linalg.norm(memory, axis=1, keepdims=True)
        p = np.asarray(_own_weights(memory.astype(np.float32), counts, config.kappa, config.probes), np.float64)
        shares[d] = np.mean(p > 0.5, axis=1)
        # 1/p - 1 grows with N: the typical pattern at the count nearest to the crossing.
        typical = np.median(1 / p - 1, axis=1)
        measured.append(np.exp(np.interp(0.0, np.log(typical), np.log(counts))))
    off, last = np.max(np.abs(np.log(measured / exact))), shares[config.dims[-1]]
    study.at_most("capacity, largest |ln(measured / derived)|", off, config.capacity_error, "average over directions")
    rate = lambda n: straight_line(dims, np.log(n), 1.0)[1].value
    study.near("growth of ln N with d", rate(measured), rate(exact), "the same", atol=config.slope_error)
    study.metrics["growth at large d"] = growth(config.kappa)
    study.at_least("share above half at N/4, largest d", last[0], 0.95, "threshold")
    study.at_most("share above half at 4 N, largest d", last[-1], 0.05, "threshold")
    study.at_least("measured over guaranteed capacity, smallest", np.min(measured / proved), 1, "theorem 3")
    study.keep(dims=dims, ratios=ratios, shares=shares, capacities=(measured, exact, proved))


def _images(name, count, rng):
    """Training images less their mean, of unit length, and their labels."""
    images = data.mnist_small() if name == "mnist" else data.digits()
    chosen = rng.permutation(len(images.train_x))[:count]
    x = images.train_x[chosen] - images.train_x.mean(0)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), images.train_y[chosen], images.shape


def _kinds(study, config, rng):
    """Where digits end that start at themselves, and whom they share the fixed point with."""
    memory, labels, _ = _images("digits", config.kinds, rng)
    betas = np.geomspace(1, 300, 2 * config.betas - 1)
    find = jax.jit(lambda beta: hopfield.attractor(memory, memory, beta=beta, steps=3000))
    alike = labels[:, None] == labels[None]
    share, purity = [], []
    for beta in betas:
        out = find(jnp.asarray(beta, jnp.float32))
        kind, members = np.asarray(out.kind), np.asarray(out.members)
        share.append([np.mean(kind == k) for k in (2, 1, 0)])
        several = kind == hopfield.Kind.metastable
        # Of the others that share the fixed point, how many share the class.
        others = np.maximum(members.sum(1) - 1, 1)
        like = (members & alike & ~np.eye(len(labels), dtype=bool)).sum(1)
        purity.append(np.mean(like[several] / others[several]) if several.any() else np.nan)
    share, purity = np.asarray(share), np.asarray(purity)
    study.near("share at the average of all, smallest beta", share[0, 0], 1, "definition")
    study.near("share of single digits, largest beta", share[-1, 2], 1, "well separated", atol=0.02)
    study.at_least("most metastable share", share[:, 1].max(), 0.3, "three kinds exist")
    mean = np.nansum(purity * share[:, 1]) / np.sum(share[:, 1])
    study.at_least("class shared within metastable states, mean", mean, 3 * np.mean(alike), "three times chance")
    study.keep(kind_betas=betas, kinds=share, purity=purity)


@partial(jax.jit, static_argnames=("curve",))
def _complete(query, memory, betas, curve):
    separation, steps = CURVES[curve]
    one = lambda beta: hopfield.retrieve(
        query, memory, beta=beta, separation=separation, steps=steps, return_weights=False
    )
    return jax.lax.map(lambda beta: one(beta).x, betas)


def _completion(study, config, rng):
    """Images whose lower half is hidden, over beta."""
    memory, _, shape = _images(config.images, config.stored, rng)
    truth = memory[: config.hidden]
    query = truth.copy()
    query[:, shape[0] // 2 * shape[1] :] = 0
    betas = np.geomspace(3, 3000, config.betas).astype(np.float32)
    nearest = np.mean(np.argmax(query @ memory.T, 1) == np.arange(len(query)))
    found = {curve: np.asarray(_complete(query, memory, betas, curve)) for curve in CURVES}
    curves = {curve: np.mean(np.linalg.norm(x - truth, axis=-1) < 0.1, axis=1) for curve, x in found.items()}
    soft, more = curves["softmax"], curves["softmax, 5 steps"]
    study.at_least("completed by softmax, best beta", soft.max(), config.completed, f"{nearest:.3f} by largest overlap")
    study.near("completed at the largest beta", soft[-1], nearest, "largest overlap", atol=0.02)
    study.at_least("one step against five, largest beta", soft[-1] - more[-1], -0.01, "one step is enough")
    study.metrics |= {f"completed, {curve}": share.max() for curve, share in curves.items()}
    pick = [0, len(betas) // 3, len(betas) // 2, -1]
    rows = {"memory": truth, "query": query} | {rf"$\beta$ = {betas[i]:.3g}": found["softmax"][i] for i in pick}
    shown = {name: x[:6].reshape(-1, *shape) for name, x in rows.items()}
    study.keep(betas=betas, curves=curves, nearest=nearest, shown=shown)


def plot(result):
    """Errors under the bound, shares kept over N, the capacity over d, kinds over beta, completion, images."""
    d = result.data
    figure, axes = draw.panels(2, 3)
    bound, keep, capacity, kinds, complete, pictures = axes.flat
    bound.plot(d.bound, np.maximum(d.error, 1e-18), ".", ms=2, alpha=0.5)
    ends = (1e-12, 1e2)
    draw.theory(bound, ends, ends, lw=0.8)
    draw.label(bound, "no trial above the line", "bound", "error of one step", log="xy", xlim=ends, ylim=(1e-14, 1e2))
    for dim, share in d.shares.items():
        keep.plot(d.ratios, share, "o-", ms=3, label=f"d = {dim}")
    keep.axvline(1, color="k", lw=0.6, ls=":")
    draw.label(
        keep, "half the weight is lost where derived", r"N / $N_{1/2}$ derived", "patterns with weight > 1/2", log="x"
    )
    keep.set_xticks(d.ratios[::2], [f"{r:g}" for r in d.ratios[::2]])
    keep.minorticks_off()
    measured, exact, proved = d.capacities
    draw.measured(capacity, d.dims, measured, label="measured")
    draw.theory(capacity, d.dims, exact, lw=0.8, label="derived")
    draw.theory(capacity, d.dims, proved, "C3--", label="guaranteed")
    draw.label(capacity, r"capacity at $\beta K^2 = 1$", "d", "patterns", log="y")
    kinds.stackplot(d.kind_betas, d.kinds.T, labels=("average of all", "metastable", "single"), alpha=0.7)
    kinds.plot(d.kind_betas, d.purity, "k.-", ms=4, lw=0.8, label="class shared in metastable states")
    draw.label(
        kinds, "where digits end", r"$\beta$", "share of digits", log="x", ylim=(0, 1), legend={"loc": "lower left"}
    )
    for name, share in d.curves.items():
        complete.plot(d.betas, share, ".-", lw=1, label=name)
    complete.axhline(d.nearest, color="k", lw=0.6, ls=":", label="largest overlap")
    draw.label(complete, "lower half hidden", r"$\beta$", "share completed", log="x", legend={"fontsize": 7})
    tiles = [x / np.abs(x).max() for row in d.shown.values() for x in row]
    pictures.imshow(draw.mosaic(tiles, 6, gap=0), cmap="gray")
    draw.label(pictures, "one step of softmax", xticks=[])
    pictures.set_yticks((np.arange(len(d.shown)) + 0.5) * len(tiles[0]), list(d.shown))
    return figure
