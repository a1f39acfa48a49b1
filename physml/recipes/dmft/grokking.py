r"""Grokking as the passage from lazy to rich training: a quadratic teacher, networks and their mean-field theory.

$$f(x) = \frac{\alpha}{N}\sum_i \phi(w_i\cdot x),\quad \phi(h) = h + \tfrac\epsilon2h^2,\quad y = \tfrac12(\beta_*\cdot x)^2$$

1. *Runs* at a small and a large output scale $\alpha$: the samples are fitted at once; the test loss, known exactly, falls late,
   when the weights have turned to the teacher. The times are those to 5% of the zero predictor's losses.
2. *The map*: $\log_{10}(t_\text{test}/t_\text{train})$ over output scale and number of samples, and over output scale and
   $\epsilon$, with the first output taken off. (With it, large $\alpha$ is not lazy: the first output, of order $\alpha$, must be
   unlearned, which turns the weights.) A run that ends before it generalises gives a lower bound.
3. *Mean field*: two hidden units in D dimensions follow `dmft.NarrowNetwork`, D to infinity at P = $\nu$D: its losses lie within 2
   standard deviations of a single network around the mean of networks, at every time. A larger first overlap with the teacher
   shortens the delay of these two units.

**Not shown.** Times to generalise scatter by factors between data sets at P = 5D, from 190 to 750 at $\alpha = 2$: the 717 of an
earlier single run is at the far end, 1.5 and 2.4 deviations of ln t from the mean in two sets of twelve, and is not claimed. At
$\alpha = 16$ five runs of eight generalise before t = 4000, where an earlier one had not. The ratio at P = 400 comes out near 2.1,
not at the 1.7 of an earlier run. At P = 5D the large scale lengthens both times; that their *ratio* grows with $\alpha$ is read off
the map, where there are samples enough for rich runs to end. That alignment shortens the delay is claimed of two units only: wide
networks were not seen to generalise sooner from a larger first overlap. A larger $\epsilon$ lengthens the delay here.

**See** Kumar, Bordelon, Gershman and Pehlevan, Grokking as the transition from lazy to rich training dynamics (2024).
"""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml.core import in_float64
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.dmft import MonteCarlo
from physml.dmft.learning.narrow_network import NarrowNetwork
from physml.dmft.learning.polynomial_regression import (
    ZERO_PREDICTOR,
    Problem,
    Quadratic,
    problem,
    teacher,
    threshold_time,
    train,
)
from physml.recipes._result import Info, Result, at_least, at_most

INFO = Info(
    paper="Kumar, Bordelon, Gershman and Pehlevan, Grokking as the transition from lazy to rich training dynamics (2024)",
    claim="rich networks generalise late, lazy ones later or never, more data sooner; two units follow their mean-field theory",
    time="3 min",
)
LEVEL = 0.05  # of the zero predictor's loss


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    dim: int = 40
    width: int = 400
    samples: int = 200
    eps: float = 0.25
    rich: float = 2.0
    lazy: float = 16.0
    time: float = 2000.0  # of rich runs
    lazy_time: float = 4000.0
    more_time: float = 400.0  # of rich runs on twice the samples
    seeds: int = 12
    lazy_seeds: int = 4
    step_size: float = 0.4
    save_every: int = 10
    # maps, with narrower networks that start at zero
    map_width: int = 100
    map_time: float = 1600.0
    map_seeds: int = 2
    map_alphas: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    map_samples: tuple[int, ...] = (120, 160, 200, 280, 400, 560)
    map_eps: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5)
    map_eps_samples: int = 280
    # two hidden units
    mf_ratio: float = 3.0
    mf_eps: float = 0.5
    mf_overlap: float = 0.3
    mf_overlaps: tuple[float, ...] = (0.2, 0.3, 0.45)
    mf_level: float = 0.4  # of the test loss, for the times against the overlap
    mf_steps: int = 60
    mf_samples: int = 40_000
    mf_dim: int = 1500
    mf_seeds: int = 32
    # the bounds of the claims
    spread: float = 2.0  # standard deviations of ln t between runs
    lazy_fit: float = 0.3
    lazy_wait: float = 3.0
    delay: float = 4.0
    data_gain: float = 2.0
    map_gain: float = 0.3  # log10 of the delay
    mf_deviation: float = 2.0  # standard deviations of one network
    mf_gain: float = 1.5

    def __post_init__(self):
        if min(self.dim, self.width, self.samples, self.seeds, self.map_seeds, self.mf_steps, self.mf_dim) < 1:
            raise ValueError(f"sizes must be positive, got {self}")
        if self.mf_seeds < 3:
            raise ValueError(f"a standard deviation between networks needs at least 3, got mf_seeds={self.mf_seeds}")


PAPER = Config()
SMOKE = Config(
    dim=20, width=60, samples=100, time=800.0, lazy_time=800.0, more_time=800.0, seeds=4, lazy_seeds=4, step_size=0.3,
    map_samples=(), map_eps=(), mf_steps=8, mf_overlaps=(), mf_samples=2000, mf_dim=200, mf_seeds=8, data_gain=1.3, delay=2.0,
    lazy_fit=0.6, lazy_wait=1.1,
)  # fmt: skip


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Runs, maps, and the mean-field theory of two units."""
    keys = jax.random.split(key, 6)
    steps = 6 + len(config.map_samples) + len(config.map_eps)
    with progress_bar(steps, "grokking", "part", show=progress) as bar:
        claims, arrays = _runs(config, keys[0], bar)
        if config.map_samples:
            more, maps = _maps(config, keys[1], bar)
            claims, arrays = claims + more, arrays | maps
        more, theory = _mean_field(config, keys[2], bar)
    claims, arrays = claims + more, arrays | theory
    return Result(tuple(claims), {c.quantity: c.value for c in claims}, arrays)


@functools.lru_cache(maxsize=8)
def _problems(dim, width, samples):
    """Random problems, compiled once for the largest number of samples: others take the first of them."""
    return jax.jit(jax.vmap(lambda key: problem(dim, width, samples, key=key)))


@functools.lru_cache(maxsize=32)
def _program(samples, steps, every, step_size, centred):
    """Batches of runs, compiled once for their sizes."""

    def one(alpha, eps, task):
        task = Problem(task.w, task.beta, task.x[:samples])
        out = train(task, alpha, eps, steps=steps, step_size=step_size, save_every=every, centred=centred)
        zero = jnp.mean(teacher(task.x @ task.beta) ** 2)
        fit = threshold_time(out.t, out.train, LEVEL * zero)
        return out, fit, threshold_time(out.t, out.test, LEVEL * ZERO_PREDICTOR)

    return jax.jit(jax.vmap(one))


def _train(config, tasks, samples, t_max, alphas, eps, centred=False):
    """Curves, and the times at which the losses on samples and law fall below the level."""
    every = config.save_every
    steps = every * round(t_max / config.step_size / every)
    columns = np.broadcast_arrays(np.float32(alphas), np.float32(eps), np.zeros(len(tasks.x)))[:2]
    out, fit, late = _program(samples, steps, every, config.step_size, centred)(*map(jnp.asarray, columns), tasks)
    return out.check(), np.asarray(fit, np.float64), np.asarray(late, np.float64)


def _runs(config, key, bar):
    arrays: dict[str, np.ndarray] = {}
    c = config
    tasks = _problems(c.dim, c.width, 2 * c.samples)(jax.random.split(key, c.seeds))
    some = jax.tree.map(lambda a: a[: c.lazy_seeds], tasks)
    rich, fit, late = _train(c, tasks, c.samples, c.time, c.rich, c.eps)
    bar.update()
    lazy, lazy_fit, lazy_late = _train(c, some, c.samples, c.lazy_time, c.lazy, c.eps)
    bar.update()
    _, more_fit, more_late = _train(c, tasks, 2 * c.samples, c.more_time, c.rich, c.eps)
    bar.update()
    for name, out in (("rich", rich), ("lazy", lazy)):
        arrays |= {f"{name} {k}": np.asarray(getattr(out, k)) for k in ("train", "test", "kernel", "weights")}
        arrays[f"{name} t"] = np.asarray(out.t[0])
    arrays |= {"rich times": np.stack([fit, late]), "lazy times": np.stack([lazy_fit, lazy_late])}
    arrays["more data times"] = np.stack([more_fit, more_late])
    # A run that has not generalised counts with its end where that is a lower bound, and as infinite where it is not.
    mean = lambda times: np.exp(np.mean(np.log(times)))
    delay, less = mean(np.minimum(late, c.time) / fit), mean(more_late / more_fit)
    wait = mean(np.minimum(lazy_late, c.lazy_time)) / mean(late)
    claims = [
        at_least(f"alpha={c.rich:g}: t_test / t_train, geometric mean", delay, c.delay, "rich runs generalise late"),
        at_least(f"P={c.samples}: delay over that of P={2 * c.samples}, which is {less:.2f}", delay / less, c.data_gain, "data shorten the delay"),
        at_most(f"alpha={c.lazy:g}: largest t_train / end of the run", np.max(lazy_fit) / c.lazy_time, c.lazy_fit, "lazy runs fit"),
        at_least(f"t_test, alpha={c.lazy:g} (at least) over alpha={c.rich:g}", wait, c.lazy_wait, "and generalise later, or never"),
    ]  # fmt: skip
    if (c.dim, c.width, c.samples, c.eps, c.rich, c.lazy) == (40, 400, 200, 0.25, 2.0, 16.0):
        # One earlier run of this set-up: a law of ln t, from the runs of here, says how far off one run may be.
        for name, times, one in (
            (f"alpha={c.rich:g}: t_train", fit, 38.0),
            (f"alpha={c.lazy:g}: t_train", lazy_fit, 292.0),
        ):
            logs = np.log(times)
            off = abs(np.log(one) - np.mean(logs)) / np.std(logs, ddof=1)
            title = f"{name}, {min(times):.0f} to {max(times):.0f} here: distance of {one:g}, in deviations of ln t"
            claims.append(at_most(title, off, c.spread, "one earlier run"))
    return claims, arrays


def _maps(config, key, bar):
    c = config
    alphas = np.repeat(c.map_alphas, c.map_seeds)
    # The same first weights and samples in all columns of a row.
    keys = jax.random.wrap_key_data(
        jnp.tile(jax.random.key_data(jax.random.split(key, c.map_seeds)), (len(c.map_alphas), 1))
    )
    tasks = _problems(c.dim, c.map_width, max(*c.map_samples, c.map_eps_samples))(keys)

    def row(samples, eps):
        """Times and last alignment of the weights, (alphas, seeds)."""
        out, fit, late = _train(c, tasks, samples, c.map_time, alphas, eps, centred=True)
        bar.update()
        return tuple(a.reshape(-1, c.map_seeds) for a in (fit, late, np.asarray(out.weights)[:, -1]))

    arrays = {"map alphas": np.asarray(c.map_alphas), "map end": np.asarray(c.map_time)}
    arrays |= {"map samples": np.asarray(c.map_samples), "map eps": np.asarray(c.map_eps)}
    tables = [
        ("samples", [row(p, c.eps) for p in c.map_samples]),
        ("eps", [row(c.map_eps_samples, e) for e in c.map_eps]),
    ]
    for name, rows in tables:
        arrays |= {
            f"{name} {k}": np.stack([r[i] for r in rows]) for i, k in enumerate(("fit", "late", "turned")) if rows
        }
    turned = np.mean(arrays["samples turned"], (0, 2))
    low, high, middle = c.map_alphas[0], c.map_alphas[-1], len(c.map_samples) // 2
    gain = _gain(arrays["samples fit"], arrays["samples late"], c.map_time)
    claims = [
        at_least(f"log10 delay, alpha={high:g} (at least) beyond {low:g}, P={c.map_samples[middle]}", gain((middle, -1), (middle, 0)), c.map_gain, "laziness delays"),
        at_least(f"log10 delay, P={c.map_samples[0]} (at least) beyond {c.map_samples[-1]}, alpha={low:g}", gain((0, 0), (-1, 0)), c.map_gain, "data shorten the delay"),
        at_least(f"weights' last alignment, alpha={low:g} over {high:g}", turned[0] / turned[-1], 1.5, "rich runs learn features"),
        at_most(f"alpha={high:g}, P={c.map_samples[0]}: share of runs that generalise", np.mean(np.isfinite(arrays["samples late"][0, -1])), 0.0, "lazy runs do not"),
    ]  # fmt: skip
    if c.map_eps:
        gain = _gain(arrays["eps fit"], arrays["eps late"], c.map_time)
        title = f"log10 delay, eps={c.map_eps[-1]:g} (at least) beyond {c.map_eps[0]:g}, alpha={c.map_alphas[1]:g}"
        claims.append(at_least(title, gain((-1, 1), (0, 1)), c.map_gain, "what fits without turning delays"))
    return claims, arrays


def _gain(fit, late, end):
    """log10 of the delay at one place of a map beyond another, a lower bound: -inf if the other has no delay."""
    known = np.mean(np.log10(late / fit), -1)
    return lambda there, here: _delay(fit, late, end)[there] - known[here]


def _delay(fit, late, end):
    """log10 of the delay, mean over seeds; a run that has not generalised counts with the end of the run, a lower bound."""
    return np.mean(np.log10(np.minimum(late, end) / np.minimum(fit, end)), -1)


def _pair(overlap):
    return jnp.asarray([overlap, -overlap], jnp.float32)


def _theory(model, samples, key):
    """Mean-field curves in double precision by one program for all ratios and overlaps, without `solve`'s error bars."""
    number = lambda a: jnp.asarray(a, float) if isinstance(a, float) or eqx.is_array(a) else a

    @in_float64
    def run(model, key):
        return _forward(jax.tree.map(number, model), samples, key)

    return run(model, key).check().order


@eqx.filter_jit
def _forward(model, samples, key):
    noise = MonteCarlo(samples, matched=False).draw(model.noise_shape(), key, jnp.result_type(float))
    return model.scheme.run(model, None, noise)


def _mean_field(config, key, bar):
    c = config
    model = NarrowNetwork(
        2, c.mf_ratio, phi=Quadratic(c.mf_eps), steps=c.mf_steps, step_size=c.step_size, overlap=_pair(c.mf_overlap)
    )
    theory_key, key = jax.random.split(key)
    theory = _theory(model, c.mf_samples, theory_key)
    bar.update()

    @jax.jit
    def network(key):
        out = model.finite_n(c.mf_dim, key=key)
        return {"train": out.train, "test": out.test, "m": out.m}

    runs = jax.lax.map(network, jax.random.split(key, c.mf_seeds))
    bar.update()
    arrays = {"mf t": np.asarray(theory.t)}
    claims = []
    for name in ("train", "test", "m"):
        value, run = np.asarray(getattr(theory, name)), np.asarray(runs[name])
        arrays |= {f"mf {name}": value, f"networks {name}": run}
        if name != "m":
            off = np.abs(value - run.mean(0)) / run.std(0, ddof=1)
            claims.append(
                at_most(
                    f"D={c.mf_dim}: {name} loss, largest distance of the theory from the networks' mean / std of one",
                    np.max(off),
                    c.mf_deviation,
                    "DMFT",
                )
            )
    claims.append(
        at_least("DMFT: test loss over train loss at the end", theory.test[-1] / theory.train[-1], 2.0, "delayed")
    )
    if c.mf_overlaps:
        curves = []
        for m0 in c.mf_overlaps:
            there = dataclasses.replace(model, overlap=_pair(m0))
            curves.append(np.asarray(_theory(there, c.mf_samples // 4, theory_key).test))
        times = np.asarray([float(threshold_time(theory.t, jnp.asarray(curve), c.mf_level)) for curve in curves])
        arrays |= {"mf overlaps": np.asarray(c.mf_overlaps), "mf curves": np.stack(curves), "mf times": times}
        gain = np.min(np.minimum(times[:-1], theory.t[-1]) / times[1:])
        title = f"two units: t_test at overlaps {c.mf_overlaps}, least ratio of neighbours (at least)"
        claims.append(at_least(title, gain, c.mf_gain, "alignment shortens the delay"))
    return claims, arrays


def plot(result: Result) -> Any:
    """Runs, alignments, the two maps, and networks beside their theory."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(2, 3, figsize=(13.5, 7.6), layout="constrained")
    names = {"rich": "C3", "lazy": "C0"}
    for name, color in names.items():
        t = a[f"{name} t"][1:]
        for kind, style in (("train", "--"), ("test", "-")):
            curves = a[f"{name} {kind}"][:, 1:]
            axes[0, 0].loglog(t, curves.T, color=color, lw=0.4, alpha=0.4, ls=style)
            axes[0, 0].loglog(t, np.exp(np.mean(np.log(curves), 0)), style, color=color, lw=2, label=f"{name}, {kind}")
        for kind, style in (("kernel", ":"), ("weights", "-")):
            axes[0, 1].semilogx(
                t, np.mean(a[f"{name} {kind}"], 0)[1:], style, color=color, lw=2, label=f"{name}, {kind}"
            )
    axes[0, 0].axhline(LEVEL * ZERO_PREDICTOR, color="0.6", lw=0.8)
    axes[0, 0].set(
        xlabel="time", ylabel="mean square", ylim=(1e-3, None), title="rich and lazy runs, every seed and the mean"
    )
    axes[0, 1].set(xlabel="time", ylabel="alignment", title="alignment with the teacher")

    def heat(axis, name, rows):
        fit, late = a[f"{name} fit"], a[f"{name} late"]
        delay = _delay(fit, late, a["map end"])
        late_somewhere = np.asarray(
            np.isinf(late).any(-1)
        )  # a bound is no colour: it falls where the fit itself takes longer
        shown = axis.imshow(
            np.ma.array(delay, mask=late_somewhere), origin="lower", aspect="auto", cmap="viridis", vmin=0
        )
        axis.set_facecolor("0.85")
        for i, j in np.ndindex(delay.shape):
            dark = not late_somewhere[i, j] and delay[i, j] < 0.6 * shown.get_clim()[1]
            number = 10 ** delay[i, j]
            text = (">" if late_somewhere[i, j] else "") + (f"{number:.0f}" if number >= 10 else f"{number:.1f}")
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="w" if dark else "k")
        axis.set_xticks(range(len(a["map alphas"])), [f"{v:g}" for v in a["map alphas"]])
        axis.set_yticks(range(len(rows)), [f"{v:g}" for v in rows])
        axis.set(xlabel=r"output scale $\alpha$ (rich to lazy)", title=r"delay $t_{test}/t_{train}$; grey: at least")
        figure.colorbar(shown, ax=axis, label=r"$\log_{10}$ delay")

    for axis, name, label in ((axes[0, 2], "samples", "samples P"), (axes[1, 0], "eps", r"$\epsilon$")):
        if f"{name} fit" in a:
            heat(axis, name, a[f"map {name}"])
            axis.set_ylabel(label)
        else:
            axis.set_axis_off()
    t = a["mf t"]
    for kind, color in (("train", "C0"), ("test", "C3")):
        run = a[f"networks {kind}"]
        mean, std = run.mean(0), run.std(0, ddof=1)
        axes[1, 1].fill_between(t, mean - 2 * std, mean + 2 * std, color=color, alpha=0.25, lw=0)
        axes[1, 1].semilogy(t, a[f"mf {kind}"], color=color, label=f"{kind}: DMFT")
    axes[1, 1].set(xlabel="time", ylabel="mean square", title="two units; band: 2 std of networks")
    if "mf curves" in a:
        for i, (m0, curve) in enumerate(zip(a["mf overlaps"], a["mf curves"], strict=True)):
            axes[1, 2].semilogy(t, curve, color=f"C{i + 4}", label=f"first overlap {m0:g}")
        axes[1, 2].set(xlabel="time", ylabel="test loss", title="DMFT of two units: the first overlap")
    else:
        for i, color in enumerate(("C2", "C4")):
            axes[1, 2].plot(t, a["networks m"][:, :, i].T, color=color, lw=0.5, alpha=0.6)
            axes[1, 2].plot(t, a["mf m"][:, i], color=color, lw=2, label=f"unit {i + 1}: DMFT, thin: networks")
        axes[1, 2].set(xlabel="time", ylabel=r"$w_i\cdot\beta_*$", title="overlaps with the teacher")
    for axis in (axes[0, 0], axes[0, 1], axes[1, 1], axes[1, 2]):
        axis.legend(fontsize=8)
    return figure
