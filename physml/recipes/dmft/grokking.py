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
import sys
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml.core import in_float64
from physml.dmft import MonteCarlo, NarrowNetwork, polynomial_regression as regression
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Kumar, Bordelon, Gershman and Pehlevan, Grokking as the transition from lazy to rich training dynamics (2024)",
    claim="rich networks generalise late, lazy ones later or never, more data sooner; two units follow their mean-field theory",
    time="3 min",
)
LEVEL = 0.05  # of the zero predictor's loss


@dataclasses.dataclass(frozen=True)
class Config(Settings):
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
    map_samples: tuple[int, ...] = setting((120, 160, 200, 280, 400, 560), length=0)
    map_eps: tuple[float, ...] = setting((0.05, 0.1, 0.25, 0.5), length=0)
    map_eps_samples: int = 280
    # two hidden units
    mf_ratio: float = 3.0
    mf_eps: float = 0.5
    mf_overlap: float = 0.3
    mf_overlaps: tuple[float, ...] = setting((0.2, 0.3, 0.45), length=0)
    mf_level: float = 0.4  # of the test loss, for the times against the overlap
    mf_steps: int = 60
    mf_samples: int = 40_000
    mf_dim: int = 1500
    mf_seeds: int = setting(32, least=3.0)
    # the bounds of the claims
    spread: float = 2.0  # standard deviations of ln t between runs
    lazy_fit: float = 0.3
    lazy_wait: float = 3.0
    delay: float = 4.0
    data_gain: float = 2.0
    map_gain: float = 0.3  # log10 of the delay
    mf_deviation: float = 2.0  # standard deviations of one network
    mf_gain: float = 1.5


PAPER = Config()
SMOKE = Config(
    dim=20, width=60, samples=100, time=800.0, lazy_time=800.0, more_time=800.0, seeds=4, lazy_seeds=4, step_size=0.3,
    map_samples=(), map_eps=(), mf_steps=8, mf_overlaps=(), mf_samples=2000, mf_dim=200, mf_seeds=8, data_gain=1.3, delay=2.0,
    lazy_fit=0.6, lazy_wait=1.1,
)  # fmt: skip

SABOTAGE = Sabotage(
    "a theory of half as many samples", sys.modules[__name__], "_theory",
    lambda exact: lambda model, *a: exact(dataclasses.replace(model, ratio=0.5 * model.ratio), *a),
)  # fmt: skip


@experiment
def run(study, config, key):
    keys = jax.random.split(key, 6)
    stages = [(_mean_field, keys[2]), (_runs, keys[0]), *([(_maps, keys[1])] if config.map_samples else [])]
    study.keep(maps={}, overlaps={})
    for stage, stage_key in study.each(stages, "stage"):
        stage(study, config, stage_key)


@partial(jax.jit, static_argnames=("dim", "width", "samples"))
def _problems(keys, dim, width, samples):
    """Random problems, drawn for the largest number of samples: others take the first of them."""
    return jax.vmap(lambda key: regression.problem(dim, width, samples, key=key))(keys)


@partial(jax.jit, static_argnames=("samples", "options"))
def _descents(alphas, eps, tasks, samples, options):
    """Curves, and the times at which the losses on samples and law fall below the level."""

    def one(alpha, eps, task):
        task = regression.Problem(task.w, task.beta, task.x[:samples])
        out = regression.train(task, alpha, eps, **dict(options))
        zero = jnp.mean(regression.teacher(task.x @ task.beta) ** 2)
        fit = regression.threshold_time(out.t, out.train, LEVEL * zero)
        return out, fit, regression.threshold_time(out.t, out.test, LEVEL * regression.ZERO_PREDICTOR)

    return jax.vmap(one)(alphas, eps, tasks)


def _train(config, tasks, samples, t_max, alphas, eps, centred=False):
    """The same, for one alpha and eps or as many as tasks, until t_max."""
    every = config.save_every
    steps = every * round(t_max / config.step_size / every)
    options = dict(steps=steps, step_size=config.step_size, save_every=every, centred=centred)
    alphas, eps = (jnp.broadcast_to(jnp.asarray(a, jnp.float32), len(tasks.x)) for a in (alphas, eps))
    out, fit, late = _descents(alphas, eps, tasks, samples, tuple(options.items()))
    return out.check(), np.asarray(fit, np.float64), np.asarray(late, np.float64)


def _runs(study, config, key):
    """Rich runs, lazy runs, and rich runs on twice the samples."""
    c = config
    tasks = _problems(jax.random.split(key, c.seeds), c.dim, c.width, 2 * c.samples)
    some = jax.tree.map(lambda a: a[: c.lazy_seeds], tasks)
    rich, fit, late = _train(c, tasks, c.samples, c.time, c.rich, c.eps)
    lazy, lazy_fit, lazy_late = _train(c, some, c.samples, c.lazy_time, c.lazy, c.eps)
    _, more_fit, more_late = _train(c, tasks, 2 * c.samples, c.more_time, c.rich, c.eps)
    study.keep(runs={"rich": rich, "lazy": lazy})
    # A run that has not generalised counts with its end where that is a lower bound, and as infinite where it is not.
    mean = lambda times: np.exp(np.mean(np.log(times)))
    delay, less = mean(np.minimum(late, c.time) / fit), mean(more_late / more_fit)
    wait = mean(np.minimum(lazy_late, c.lazy_time)) / mean(late)
    study.at_least(f"alpha={c.rich:g}: t_test / t_train, geometric mean", delay, c.delay, "rich runs generalise late")
    quantity = f"P={c.samples}: delay over that of P={2 * c.samples}, which is {less:.2f}"
    study.at_least(quantity, delay / less, c.data_gain, "data shorten the delay")
    quantity = f"alpha={c.lazy:g}: largest t_train / end of the run"
    study.at_most(quantity, np.max(lazy_fit) / c.lazy_time, c.lazy_fit, "lazy runs fit")
    quantity = f"t_test, alpha={c.lazy:g} (at least) over alpha={c.rich:g}"
    study.at_least(quantity, wait, c.lazy_wait, "and generalise later, or never")
    if (c.dim, c.width, c.samples, c.eps, c.rich, c.lazy) == (40, 400, 200, 0.25, 2.0, 16.0):
        # One earlier run of this set-up: a law of ln t, from the runs of here, says how far off one run may be.
        for alpha, times, one in ((c.rich, fit, 38.0), (c.lazy, lazy_fit, 292.0)):
            logs, here = np.log(times), f"{min(times):.0f} to {max(times):.0f} here"
            off = abs(np.log(one) - np.mean(logs)) / np.std(logs, ddof=1)
            quantity = f"alpha={alpha:g}: t_train, {here}: distance of {one:g}, in deviations of ln t"
            study.at_most(quantity, off, c.spread, "one earlier run")


class Map(NamedTuple):
    """Times to fit and to generalise, and the last alignment of the weights, each (rows, alphas, seeds)."""

    rows: tuple[float, ...]
    fit: np.ndarray
    late: np.ndarray
    turned: np.ndarray

    def delay(self, end):
        """log10, mean over seeds; a run that has not generalised counts with the end of the run, a lower bound."""
        return np.mean(np.log10(np.minimum(self.late, end) / np.minimum(self.fit, end)), -1)

    def gain(self, end, there, here):
        """log10 of the delay at one place beyond another, a lower bound: -inf if the other has no delay."""
        return self.delay(end)[there] - np.mean(np.log10(self.late / self.fit), -1)[here]


def _maps(study, config, key):
    """The delay over output scale and samples, and over output scale and eps."""
    c, end = config, config.map_time
    alphas = np.repeat(c.map_alphas, c.map_seeds)
    # The same first weights and samples in all columns of a row.
    keys = jax.random.key_data(jax.random.split(key, c.map_seeds))
    keys = jax.random.wrap_key_data(jnp.tile(keys, (len(c.map_alphas), 1)))
    tasks = _problems(keys, c.dim, c.map_width, max(*c.map_samples, c.map_eps_samples))

    def row(samples, eps):
        """Times and last alignment of the weights, (alphas, seeds)."""
        out, fit, late = _train(c, tasks, samples, end, alphas, eps, centred=True)
        return [a.reshape(-1, c.map_seeds) for a in (fit, late, np.asarray(out.weights)[:, -1])]

    data = Map(c.map_samples, *np.stack([row(p, c.eps) for p in c.map_samples], 1))
    low, high, middle = c.map_alphas[0], c.map_alphas[-1], len(c.map_samples) // 2
    few, many = c.map_samples[0], c.map_samples[-1]
    quantity = f"log10 delay, alpha={high:g} (at least) beyond {low:g}, P={c.map_samples[middle]}"
    study.at_least(quantity, data.gain(end, (middle, -1), (middle, 0)), c.map_gain, "laziness delays")
    quantity = f"log10 delay, P={few} (at least) beyond {many}, alpha={low:g}"
    study.at_least(quantity, data.gain(end, (0, 0), (-1, 0)), c.map_gain, "data shorten the delay")
    turned, quantity = np.mean(data.turned, (0, 2)), f"weights' last alignment, alpha={low:g} over {high:g}"
    study.at_least(quantity, turned[0] / turned[-1], 1.5, "rich runs learn features")
    quantity, share = f"alpha={high:g}, P={few}: share of runs that generalise", np.mean(np.isfinite(data.late[0, -1]))
    study.at_most(quantity, share, 0.0, "lazy runs do not")
    maps = {"samples P": data}
    if c.map_eps:
        maps[r"$\epsilon$"] = bent = Map(c.map_eps, *np.stack([row(c.map_eps_samples, e) for e in c.map_eps], 1))
        quantity = f"log10 delay, eps={c.map_eps[-1]:g} (at least) beyond {c.map_eps[0]:g}, alpha={c.map_alphas[1]:g}"
        study.at_least(quantity, bent.gain(end, (-1, 1), (0, 1)), c.map_gain, "what fits without turning delays")
    study.keep(maps=maps, alphas=c.map_alphas, end=end)


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


def _mean_field(study, config, key):
    """Two units in many dimensions beside their theory, and the delay over their first overlap in theory."""
    c = config
    pair = lambda m0: NarrowNetwork(
        2, c.mf_ratio, phi=regression.QuadraticActivation(c.mf_eps), steps=c.mf_steps, step_size=c.step_size,
        overlap=jnp.asarray([m0, -m0], jnp.float32),
    )  # fmt: skip
    theory_key, key = jax.random.split(key)
    theory = _theory(pair(c.mf_overlap), c.mf_samples, theory_key)
    read = lambda out: {"train": out.train, "test": out.test, "m": out.m}
    network = jax.jit(lambda key: read(pair(c.mf_overlap).finite_n(c.mf_dim, key=key)))
    networks = {name: np.asarray(a) for name, a in jax.lax.map(network, jax.random.split(key, c.mf_seeds)).items()}
    for name in ("train", "test"):
        off = np.abs(getattr(theory, name) - networks[name].mean(0)) / networks[name].std(0, ddof=1)
        quantity = f"D={c.mf_dim}: {name} loss, largest distance of the theory from the networks' mean / std of one"
        study.at_most(quantity, np.max(off), c.mf_deviation, "DMFT")
    study.at_least("DMFT: test loss over train loss at the end", theory.test[-1] / theory.train[-1], 2.0, "delayed")
    study.keep(t=np.asarray(theory.t), theory=read(theory), networks=networks)
    if not c.mf_overlaps:
        return
    curves = {m0: _theory(pair(m0), c.mf_samples // 4, theory_key).test for m0 in c.mf_overlaps}
    times = np.asarray([float(regression.threshold_time(theory.t, curve, c.mf_level)) for curve in curves.values()])
    gain = np.min(np.minimum(times[:-1], theory.t[-1]) / times[1:])
    quantity = f"two units: t_test at overlaps {c.mf_overlaps}, least ratio of neighbours (at least)"
    study.at_least(quantity, gain, c.mf_gain, "alignment shortens the delay")
    study.keep(overlaps=curves)


def plot(result):
    """Runs, alignments, the two maps, and networks beside their theory."""
    d = result.data
    figure, axes = draw.panels(2, 2 + bool(d.maps), width=4.6)
    losses, alignment, *maps = axes[0]
    theory, units, *more = axes[1]
    for (name, out), color in zip(d.runs.items(), ("C3", "C0"), strict=True):
        t = out.t[0, 1:]
        for kind, style in (("train", "--"), ("test", "-")):
            curves = np.asarray(getattr(out, kind))[:, 1:]
            losses.plot(t, curves.T, color=color, lw=0.4, alpha=0.4, ls=style)
            losses.plot(t, np.exp(np.mean(np.log(curves), 0)), style, color=color, lw=2, label=f"{name}, {kind}")
        for kind, style in (("kernel", ":"), ("weights", "-")):
            mean = np.mean(getattr(out, kind), 0)[1:]
            alignment.plot(t, mean, style, color=color, lw=2, label=f"{name}, {kind}")
    losses.axhline(LEVEL * regression.ZERO_PREDICTOR, color="0.6", lw=0.8)
    title = "rich and lazy runs, every seed and the mean"
    draw.label(losses, title, "time", "mean square", log="xy", ylim=(1e-3, None))
    draw.label(alignment, "alignment with the teacher", "time", "alignment", log="x")
    for kind, color in (("train", "C0"), ("test", "C3")):
        mean, std = d.networks[kind].mean(0), d.networks[kind].std(0, ddof=1)
        theory.fill_between(d.t, mean - 2 * std, mean + 2 * std, color=color, alpha=0.25, lw=0)
        draw.theory(theory, d.t, d.theory[kind], color=color, label=f"{kind}: DMFT")
    draw.label(theory, "two units; band: 2 std of networks", "time", "mean square", log="y")
    for i, (m0, curve) in enumerate(d.overlaps.items()):
        draw.theory(units, d.t, curve, f"C{i + 4}", label=f"first overlap {m0:g}")
    if d.overlaps:
        draw.label(units, "DMFT of two units: the first overlap", "time", "test loss", log="y")
    else:
        for i, color in enumerate(("C2", "C4")):
            units.plot(d.t, d.networks["m"][:, :, i].T, color=color, lw=0.5, alpha=0.6)
            draw.theory(units, d.t, d.theory["m"][:, i], color, lw=2, label=f"unit {i + 1}: DMFT, thin: networks")
        draw.label(units, "overlaps with the teacher", "time", r"$w_i\cdot\beta_*$")
    for axis, (name, table) in zip((*maps, *more), d.maps.items(), strict=False):
        _heat(figure, axis, table, d.alphas, d.end)
        title = r"delay $t_{test}/t_{train}$; grey: at least"
        draw.label(axis, title, r"output scale $\alpha$ (rich to lazy)", name)
    return figure


def _heat(figure, axis, table, alphas, end):
    """Delays as colours, and as numbers; a bound is no colour: it falls where the fit itself takes longer."""
    delay, bound = table.delay(end), np.isinf(table.late).any(-1)
    shown = axis.imshow(np.ma.array(delay, mask=bound), origin="lower", aspect="auto", vmin=0)
    axis.set_facecolor("0.85")
    for i, j in np.ndindex(delay.shape):
        dark = not bound[i, j] and delay[i, j] < 0.6 * shown.get_clim()[1]
        number = 10 ** delay[i, j]
        text = (">" if bound[i, j] else "") + (f"{number:.0f}" if number >= 10 else f"{number:.1f}")
        axis.text(j, i, text, ha="center", va="center", fontsize=8, color="w" if dark else "k")
    axis.set_xticks(range(len(alphas)), [f"{v:g}" for v in alphas])
    axis.set_yticks(range(len(table.rows)), [f"{v:g}" for v in table.rows])
    figure.colorbar(shown, ax=axis, label=r"$\log_{10}$ delay")
