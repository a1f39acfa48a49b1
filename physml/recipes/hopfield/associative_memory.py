r"""The Hopfield memory at its capacity: every line of the phase diagram, and Monte Carlo on it.

$K = \alpha N$ patterns, $H = -\frac{1}{2N}\sum_\mu(\sum_i\xi_i^\mu s_i)^2$. The replica-symmetric equations

$$m = \int Dz\tanh\beta(m + \sqrt{\alpha r}z), \quad q = \int Dz\tanh^2\beta(m + \sqrt{\alpha r}z), \quad
  r = \frac{q}{[1 - \beta(1-q)]^2}$$

have four lines: the glass, the end of retrieval, coexistence, and the instability of replica symmetry. At T = 0,
$\alpha = [\operatorname{erf}(y/\sqrt2)/y - \sqrt{2/\pi}e^{-y^2/2}]^2$ is explicit in y = m/sqrt(alpha r), so its maximum
is an independent value of the capacity; likewise $[\operatorname{erf}(y/\sqrt2)^{p-1}/y]^2$ with p spins. At finite T the
overlaps of simulated networks of three sizes are extrapolated in 1/N to the theory.

**See** Amit, Gutfreund and Sompolinsky, Phys. Rev. Lett. 55, 1530 (1985); Ann. Phys. 173, 30 (1987).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import erf

from physml.hopfield import Dense, random_patterns
from physml.hopfield.theory import amit, critical_load, transition
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting
from physml.recipes.hopfield import _finite_size
from physml.recipes.hopfield._finite_size import draw_extrapolation, extrapolate, mean_overlap

INFO = RecipeInfo(
    paper="Amit, Gutfreund and Sompolinsky, Statistical mechanics of neural networks near saturation (1987)",
    claim="capacities to six digits, all lines of the phase diagram, Monte Carlo at T = 0.3 extrapolated to the theory",
    time="2 min, smoke 6 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Orders of interaction, points of the lines, and the simulated networks."""

    orders: tuple[int, ...] = (2, 3, 4)
    temperatures: int = setting(40, least=0.0)  # of every line; 0 leaves the diagram and the gradients out
    temperature: float = 0.3  # of the simulations
    loads: tuple[float, ...] = (0.02, 0.04, 0.06)
    sizes: tuple[int, ...] = setting((200, 400, 800), length=3)
    networks: int = setting(24, least=4.0)
    replicas: int = 64  # each starts from a pattern of its own
    sweeps: int = 120  # of which the first third is left out

    def rules(self):
        return ((self.sweeps % 3 == 0, "sweeps divisible by 3"),)


PAPER = Config()
SMOKE = Config(orders=(2,), temperatures=0, loads=(0.04,), sizes=(100, 200, 400), networks=6, replicas=32, sweeps=60)

SABOTAGE = Sabotage(
    "a bath of a fifth less temperature", _finite_size, "glauber",
    lambda exact: lambda *a, temperature, **options: exact(*a, temperature=0.8 * temperature, **options),
)  # fmt: skip


@experiment
def run(study, config, key):
    with jax.enable_x64(True):
        _capacities(study, config)
        study.keep(lines=_lines(study, config) if config.temperatures else None)
    found = {load: _monte_carlo(study, config, load, key) for load in study.each(config.loads, "load")}
    study.keep(found=found, temperature=config.temperature)


def _capacities(study, config):
    """The end of retrieval at T = 0, where the load is explicit in y."""
    for p in config.orders:
        response = lambda y, p=p: (2 / np.pi) ** 0.5 * np.exp(-y * y / 2) if p == 2 else 0.0
        load = lambda y, p=p, response=response: (erf(y / 2**0.5) ** (p - 1) / y - response(y)) ** 2
        options = {"xatol": 1e-10}
        top: Any = minimize_scalar(lambda y, f=load: -f(y), bounds=(0.8, 4), method="bounded", options=options)
        y = top.x
        found = float(critical_load(p))
        study.near(f"critical load, p = {p}, T = 0", found, load(y), "maximum of a function of y", atol=5e-8)
        if p == 2:
            # The overlap ends in a square root: 1e-11 below the end it is 1e-5 of it away.
            study.near("overlap there, p = 2", amit(found - 1e-11, 0.0).m, erf(y / 2**0.5), "the same", atol=5e-5)


def _lines(study, config):
    """All lines of the diagram, what lies on either side, and how the overlap moves with load and temperature."""
    half = config.temperatures // 2
    ts = np.append(np.geomspace(2e-3, 0.1, half), np.linspace(0.12, 0.98, half))
    line = lambda kind, p=2: np.asarray(jax.vmap(lambda t: transition(p, t, kind))(jnp.asarray(ts)))
    lines = {kind: line(kind) for kind in ("fold", "coexistence", "stability")}
    more = {p: line("fold", p) for p in config.orders if p > 2}
    # Just inside a line the state is what the line says, just outside it is not.
    inside, outside = (
        [float(amit(a + step, t).m) for a, t in zip(lines["fold"][::8], ts[::8], strict=True)] for step in (-3e-5, 3e-5)
    )
    study.at_most("largest overlap 3e-5 beyond the line", max(outside), 1e-6, "retrieval has ended")
    study.at_least("smallest overlap 3e-5 inside the line", min(inside), 0.05, "retrieval still exists")
    for t, known in ((0.2, 0.0507), (0.5, 0.0281)):
        found, source = transition(2, t, "coexistence"), "Amit, Gutfreund, Sompolinsky (1987)"
        study.near(f"coexistence at T = {t}", found, known, source, atol=5e-5)
    overlap = lambda x: amit(x[0], x[1]).m
    value, x, step = jax.jit(overlap), jnp.asarray([0.08, 0.3]), 1e-4
    slopes = jax.jit(jax.grad(overlap))(x)
    for name, slope, move in zip(("load", "temperature"), slopes, step * jnp.eye(2), strict=True):
        differences = (value(x + move) - value(x - move)) / (2 * step)
        study.at_most(f"dm/d{name}, relative error", abs(slope / differences - 1), 1e-4, "central differences")
    return ts, lines, more


def _overlap(config, load, size, key):
    """Mean overlap of one network of this size, over replicas and time."""
    pattern_key, run_key = jax.random.split(key)
    patterns = random_patterns(round(load * size), size, key=pattern_key)
    return mean_overlap(config, Dense(patterns), patterns, run_key)


def _monte_carlo(study, config, load, key):
    """Overlaps of the sizes, a straight line in 1/N, and the theory at its end."""
    rows = []
    for i, size in enumerate(config.sizes):
        keys = jax.random.split(jax.random.fold_in(key, round(1e6 * load) + i), config.networks)
        rows.append([_overlap(config, load, size, k) for k in keys])
    found = extrapolate(config.sizes, rows, float(amit(load, config.temperature).check().m))
    name = f"overlap at alpha = {load}, T = {config.temperature}, N to infinity"
    study.near(name, found.limit, found.theory, "replica theory, 5 standard errors", sigmas=5.0)
    # The whole correction at the largest size has to be seen by the fit as well.
    name, bound = f"misfit of the line in 1/N, alpha = {load}", 25 * (len(config.sizes) - 2)
    study.at_most(name, found.misfit, bound, "chi^2, five standard errors")
    study.metrics[f"slope in 1/N, alpha = {load}"] = found.slope.value
    return found


def plot(result):
    """The phase diagram, the ends of retrieval with more spins, and the extrapolation of the simulations."""
    d = result.data
    figure, axes = draw.panels(1, 3 if d.lines else 1, squeeze=False)
    *diagrams, sizes = axes.flat
    if d.lines:
        diagram, more = diagrams
        ts, lines, folds = d.lines
        x = np.linspace(0, 0.16, 100)
        draw.theory(diagram, x, 1 + x**0.5, label="$T_g$: glass")
        retrieval = lines["stability"] <= lines["fold"] + 1e-9
        draw.theory(diagram, lines["fold"], ts, "C0", label="$T_M$: retrieval ends")
        draw.theory(diagram, lines["coexistence"], ts, "C2", label="$T_c$: patterns are the ground state")
        draw.theory(diagram, lines["stability"][retrieval], ts[retrieval], "C3", label="$T_R$: replica symmetry breaks")
        diagram.plot(list(d.found), [d.temperature] * len(d.found), "ks", ms=5, label="simulated")
        draw.label(diagram, "phase diagram", r"$\alpha$", "T", xlim=(0, 0.16), ylim=(0, 1.4))
        for p, fold in {2: lines["fold"], **folds}.items():
            draw.theory(more, fold, ts, "k" if p == 2 else f"C{p}", label=f"p = {p}")
        draw.label(more, "where retrieval ends", r"load $a = (p-1)!\,K/N^{p-1}$", "T")
    for i, (load, found) in enumerate(d.found.items()):
        draw_extrapolation(sizes, found, f"C{i}", rf"$\alpha$ = {load}")
    draw.label(sizes, f"T = {d.temperature}; bars at 1/N = 0: theory", "1/N", "overlap m")
    return figure
