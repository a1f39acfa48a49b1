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
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml import data, hopfield
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Ramsauer et al., Hopfield networks is all you need (2021)",
    claim="one-step bound never violated; capacity e^(0.62 d) as derived; kinds of attractors; digits from halves",
    time="40 s",
)

# The power is high enough for the largest of thousands of overlaps to stand out.
SEPARATIONS = {
    "softmax": "softmax",
    "softmax1": "softmax1",
    "sparsemax": "sparsemax",
    "power 40": hopfield.Polynomial(40),
}
CURVES = ("softmax", "softmax, 5 steps", "softmax1", "sparsemax", "power 40")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the four parts, and what the claims ask for."""

    memories: int = 1000  # of the bound; each with 100 states
    dims: tuple[int, ...] = (8, 10, 12, 14, 16)
    probes: int = 1000
    kappa: float = 1.0
    images: str = "mnist"  # or digits
    stored: int = 2000
    hidden: int = 500  # images to be completed
    kinds: int = 300  # memories of the third part
    betas: int = 13
    # the bounds of the claims
    capacity_error: float = 0.1
    slope_error: float = 0.03
    completed: float = 0.9

    def __post_init__(self):
        if self.images not in ("mnist", "digits") or min(self.dims) < 3 or len(self.dims) < 3 or self.betas < 5:
            raise ValueError(f"images mnist or digits, three dims >= 3, betas >= 5; got {self}")


PAPER = Config()
SMOKE = Config(
    memories=100, dims=(8, 9, 10), probes=100, images="digits", stored=300, hidden=100, kinds=80, betas=7,
    capacity_error=0.2, slope_error=0.1, completed=0.7,
)  # fmt: skip


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Forty seconds with `PAPER`."""
    claims: list = []
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(int(jax.random.randint(key, (), 0, 2**31 - 1)))
    with progress_bar(4, "modern Hopfield", "part", show=progress) as bar:
        for part in (_bound, _capacity, _kinds, _completion):
            arrays |= part(config, rng, claims, metrics)
            bar.update()
    return Result(tuple(claims), metrics | {c.quantity: c.value for c in claims}, arrays)


def _bound(config, rng, claims, metrics):
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
    ratio = np.max(error / (bound + floor))
    claims.append(at_most("largest error of one step over its bound", ratio, 1, f"proof, {n * states} trials"))
    few = rng.choice(len(error), min(4000, len(error)), replace=False)
    return {"error": error[few], "bound": bound[few]}


def half_capacity(kappa: float, d: int) -> float:
    """N at which a random pattern keeps half its weight, by the average over the direction of another pattern."""
    from scipy.special import gammaln, ive

    t, v = kappa * (d - 1), d / 2 - 1
    return float(np.exp(-(gammaln(d / 2) + v * np.log(2 / t) + np.log(ive(v, t)))))


def growth(kappa: float) -> float:
    """kappa - max over u of kappa u + ln(1 - u^2)/2: the exponent of the capacity."""
    u = (np.sqrt(1 + 4 * kappa**2) - 1) / (2 * kappa)
    return float(kappa - kappa * u - 0.5 * np.log(1 - u * u))


def _capacity(config, rng, claims, metrics):
    ratios = 2.0 ** np.linspace(-2, 2, 9)
    shares, measured, exact, proved = [], [], [], []
    for d in config.dims:
        expected = half_capacity(config.kappa, d)
        counts = np.maximum(1, np.round(ratios * expected)).astype(np.int32)
        memory = rng.normal(size=(max(counts[-1], config.probes), d))
        memory *= np.sqrt(d - 1) / np.linalg.norm(memory, axis=1, keepdims=True)

        @jax.jit
        def own_weights(memory, counts, probes=config.probes):
            """For every count, the weights of the first patterns in a memory that holds so many besides them."""

            def one(count):
                x, index = memory[:probes], jnp.arange(len(memory))
                # A probe sees itself and `count` others.
                others = (index[None, :] < count) | (index[None, :] == jnp.arange(probes)[:, None])
                e = hopfield.energy(x, memory, beta=config.kappa, mask=others, chunk=4096)
                return jnp.exp(config.kappa * e) / jnp.sum(others, -1).astype(e.dtype)

            return jax.lax.map(one, counts)

        p = np.asarray(own_weights(memory.astype(np.float32), counts), np.float64)
        shares.append(np.mean(p > 0.5, axis=1))
        # 1/p - 1 grows with N: the typical pattern at the count nearest to the crossing.
        typical = np.median(1 / p - 1, axis=1)
        measured.append(np.exp(np.interp(0.0, np.log(typical), np.log(counts))))
        exact.append(expected)
        bound = hopfield.capacity(config.kappa, d, radius=1.0)
        proved.append(float(bound.patterns))
    measured, exact, dims = np.asarray(measured), np.asarray(exact), np.asarray(config.dims)
    off = np.max(np.abs(np.log(measured / exact)))
    claims.append(
        at_most("capacity, largest |ln(measured / derived)|", off, config.capacity_error, "average over directions")
    )
    slope = lambda n: np.polyfit(dims, np.log(n), 1)[0]
    claims.append(close_to("growth of ln N with d", slope(measured), slope(exact), config.slope_error, "the same"))
    metrics["growth at large d"] = growth(config.kappa)
    claims.append(at_least("share above half at N/4, largest d", shares[-1][0], 0.95, "threshold"))
    claims.append(at_most("share above half at 4 N, largest d", shares[-1][-1], 0.05, "threshold"))
    claims.append(at_least("measured over guaranteed capacity, smallest", np.min(measured / proved), 1, "theorem 3"))
    return {
        "dims": dims, "ratios": ratios, "shares": np.asarray(shares), "measured": measured, "exact": exact,
        "proved": np.asarray(proved),
    }  # fmt: skip


def _images(name, count, rng):
    """Training images less their mean, of unit length, and their labels."""
    images = data.mnist_small() if name == "mnist" else data.digits()
    chosen = rng.permutation(len(images.train_x))[:count]
    x = images.train_x[chosen] - images.train_x.mean(0)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), images.train_y[chosen], images


def _kinds(config, rng, claims, metrics):
    memory, labels, _ = _images("digits", config.kinds, rng)
    betas = np.geomspace(1, 300, 2 * config.betas - 1)
    find = jax.jit(lambda beta: hopfield.attractor(memory, memory, beta=beta, steps=3000))
    share, purity, size = [], [], []
    for beta in betas:
        out = find(jnp.asarray(beta, jnp.float32))
        kind, members = np.asarray(out.kind), np.asarray(out.members)
        share.append([np.mean(kind == k) for k in (2, 1, 0)])
        alike = (labels[:, None] == labels[None]) & ~np.eye(len(labels), dtype=bool)
        several = kind == hopfield.Kind.metastable
        # Of the others that share the fixed point, how many share the class.
        others = np.maximum(members.sum(1) - 1, 1)
        purity.append(np.mean((members & alike).sum(1)[several] / others[several]) if several.any() else np.nan)
        size.append(members.sum(1).mean())
    share, purity = np.asarray(share), np.asarray(purity)
    claims.append(close_to("share at the average of all, smallest beta", share[0, 0], 1, 0, "definition"))
    claims.append(close_to("share of single digits, largest beta", share[-1, 2], 1, 0.02, "well separated"))
    claims.append(at_least("most metastable share", share[:, 1].max(), 0.3, "three kinds exist"))
    chance = np.mean(labels[:, None] == labels[None])
    mean = np.nansum(purity * share[:, 1]) / np.sum(share[:, 1])
    claims.append(at_least("class shared within metastable states, mean", mean, 3 * chance, "three times chance"))
    return {"kind betas": betas, "kinds": share, "purity": purity, "size": np.asarray(size)}


@partial(jax.jit, static_argnames=("separation", "steps"))
def _complete(query, memory, betas, separation, steps):
    one = lambda beta: (
        hopfield.retrieve(
            query, memory, beta=beta, separation=SEPARATIONS[separation], steps=steps, return_weights=False
        ).x
    )
    return jax.lax.map(one, betas)


def _completion(config, rng, claims, metrics):
    memory, _, images = _images(config.images, config.stored, rng)
    truth = memory[: config.hidden]
    shape = (-1, *images.shape)
    query = truth.reshape(shape).copy()
    query[:, images.shape[0] // 2 :] = 0
    query = query.reshape(truth.shape)
    betas = np.geomspace(3, 3000, config.betas).astype(np.float32)
    nearest = np.mean(np.argmax(query @ memory.T, 1) == np.arange(len(query)))
    curves, outputs = [], {}
    for separation in SEPARATIONS:
        for steps in (1, 5) if separation == "softmax" else (1,):
            x = np.asarray(_complete(query, memory, betas, separation, steps))
            error = np.linalg.norm(x - truth[None], axis=-1)
            curves.append(np.mean(error < 0.1, axis=1))
            outputs[separation, steps] = x
    soft, soft5 = curves[0], curves[1]
    claims.append(
        at_least("completed by softmax, best beta", soft.max(), config.completed, f"{nearest:.3f} by largest overlap")
    )
    claims.append(close_to("completed at the largest beta", soft[-1], nearest, 0.02, "largest overlap"))
    claims.append(at_least("one step against five, largest beta", soft[-1] - soft5[-1], -0.01, "one step is enough"))
    metrics |= {f"completed, {s}": float(c.max()) for s, c in zip(CURVES, curves, strict=True)}
    pick = [0, len(betas) // 3, len(betas) // 2, -1]
    shown = np.stack([truth[:6], query[:6], *(outputs["softmax", 1][i][:6] for i in pick)])
    return {
        "betas": betas, "curves": np.asarray(curves), "nearest": np.asarray(nearest),
        "shown": shown.reshape(len(pick) + 2, 6, *images.shape), "shown betas": betas[pick],
    }  # fmt: skip


def plot(result: Result) -> Any:
    """Errors under the bound, shares kept over N, the capacity over d, kinds over beta, completion, images."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    bound, keep, capacity, kinds, complete, image = axes.ravel()
    bound.loglog(a["bound"], np.maximum(a["error"], 1e-18), ".", ms=2, alpha=0.5)
    ends = np.array([1e-12, 1e2])
    bound.loglog(ends, ends, "k", lw=0.8)
    bound.set(xlim=ends, ylim=(1e-14, 1e2), xlabel="bound", ylabel="error of one step", title="no trial above the line")
    for d, share in zip(a["dims"], a["shares"], strict=True):
        keep.semilogx(a["ratios"], share, "o-", ms=3, label=f"d = {d}")
    keep.axvline(1, color="k", lw=0.6, ls=":")
    keep.set(
        xlabel=r"N / $N_{1/2}$ derived",
        ylabel="patterns with weight > 1/2",
        title="half the weight is lost where derived",
    )
    keep.set_xticks(a["ratios"][::2], [f"{r:g}" for r in a["ratios"][::2]])
    keep.minorticks_off()
    keep.legend(fontsize=8)
    capacity.semilogy(a["dims"], a["measured"], "o", label="measured")
    capacity.semilogy(a["dims"], a["exact"], "k-", lw=0.8, label="derived")
    capacity.semilogy(a["dims"], a["proved"], "C3--", label="guaranteed")
    capacity.set(xlabel="d", ylabel="patterns", title=r"capacity at $\beta K^2 = 1$")
    capacity.legend(fontsize=8)
    kinds.stackplot(a["kind betas"], a["kinds"].T, labels=("average of all", "metastable", "single"), alpha=0.7)
    kinds.plot(a["kind betas"], a["purity"], "k.-", ms=4, lw=0.8, label="class shared in metastable states")
    kinds.set(xscale="log", xlabel=r"$\beta$", ylabel="share of digits", ylim=(0, 1), title="where digits end")
    kinds.legend(fontsize=8, loc="lower left")
    for name, curve in zip(CURVES, a["curves"], strict=True):
        complete.semilogx(a["betas"], curve, ".-", lw=1, label=name)
    complete.axhline(float(a["nearest"]), color="k", lw=0.6, ls=":", label="largest overlap")
    complete.set(xlabel=r"$\beta$", ylabel="share completed", title="lower half hidden")
    complete.legend(fontsize=7)
    rows = [np.concatenate([x / np.abs(x).max() for x in row], axis=1) for row in a["shown"]]
    image.imshow(np.concatenate(rows, axis=0), cmap="gray")
    height = rows[0].shape[0]
    names = ["memory", "query", *(rf"$\beta$ = {b:.3g}" for b in a["shown betas"])]
    image.set(
        xticks=[], yticks=[(i + 0.5) * height for i in range(len(rows))], yticklabels=names, title="one step of softmax"
    )
    return figure
