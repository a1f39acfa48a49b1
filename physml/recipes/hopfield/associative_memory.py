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

from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.hopfield.spins.glauber import Dense, glauber
from physml.hopfield.spins.patterns import random_patterns
from physml.hopfield.theory._amit import amit
from physml.hopfield.theory._dense import critical_load, transition
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Amit, Gutfreund and Sompolinsky, Statistical mechanics of neural networks near saturation (1987)",
    claim="capacities to six digits, all lines of the phase diagram, Monte Carlo at T = 0.3 extrapolated to the theory",
    time="2 min, smoke 6 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Orders of interaction, points of the lines, and the simulated networks."""

    orders: tuple[int, ...] = (2, 3, 4)
    temperatures: int = 40  # of every line; 0 leaves the diagram and the gradients out
    temperature: float = 0.3  # of the simulations
    loads: tuple[float, ...] = (0.02, 0.04, 0.06)
    sizes: tuple[int, ...] = (200, 400, 800)
    networks: int = 24
    replicas: int = 64  # each starts from a pattern of its own
    sweeps: int = 120  # of which the first third is left out

    def __post_init__(self):
        if len(self.sizes) < 3 or self.networks < 4 or self.sweeps % 3:
            raise ValueError(f"three sizes, four networks and sweeps divisible by 3 at least, got {self}")


PAPER = Config()
SMOKE = Config(orders=(2,), temperatures=0, loads=(0.04,), sizes=(100, 200, 400), networks=6, replicas=32, sweeps=60)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """`key` is that of the patterns and of the dynamics."""
    claims: list = []
    arrays: dict[str, np.ndarray] = {}
    metrics: dict[str, float] = {}
    with progress_bar(len(config.loads) + 2, "associative memory", "part", show=progress) as bar:
        with jax.enable_x64(True):
            _capacities(config, claims)
            bar.update()
            if config.temperatures:
                arrays |= _lines(config, claims)
            bar.update()
        for load in config.loads:
            arrays |= _monte_carlo(config, claims, metrics, load, key)
            bar.update()
    return Result(tuple(claims), metrics | {c.quantity: c.value for c in claims}, arrays)


def _capacities(config, claims):
    for p in config.orders:
        response = lambda y, p=p: (2 / np.pi) ** 0.5 * np.exp(-y * y / 2) if p == 2 else 0.0
        load = lambda y, p=p, response=response: (erf(y / 2**0.5) ** (p - 1) / y - response(y)) ** 2
        top: Any = minimize_scalar(lambda y, f=load: -f(y), bounds=(0.8, 4), method="bounded", options={"xatol": 1e-10})
        found = float(critical_load(p))
        claims.append(
            close_to(f"critical load, p = {p}, T = 0", found, load(top.x), 5e-8, "maximum of a function of y")
        )
        if p == 2:
            # The overlap ends in a square root: 1e-11 below the end it is 1e-5 of it away.
            m = float(amit(found - 1e-11, 0.0).m)
            claims.append(close_to("overlap there, p = 2", m, erf(top.x / 2**0.5), 5e-5, "the same"))


def _lines(config, claims):
    ts = np.append(np.geomspace(2e-3, 0.1, config.temperatures // 2), np.linspace(0.12, 0.98, config.temperatures // 2))
    line = lambda kind, p=2: np.asarray(jax.vmap(lambda t: transition(p, t, kind))(jnp.asarray(ts)))
    arrays = {"T": ts} | {kind: line(kind) for kind in ("fold", "coexistence", "stability")}
    arrays |= {f"fold {p}": line("fold", p) for p in config.orders if p > 2}
    # Just inside a line the state is what the line says, just outside it is not.
    inside = [float(amit(a - 3e-5, t).m) for a, t in zip(arrays["fold"][::8], ts[::8], strict=True)]
    outside = [float(amit(a + 3e-5, t).m) for a, t in zip(arrays["fold"][::8], ts[::8], strict=True)]
    claims.append(at_most("largest overlap 3e-5 beyond the line", max(outside), 1e-6, "retrieval has ended"))
    claims.append(at_least("smallest overlap 3e-5 inside the line", min(inside), 0.05, "retrieval still exists"))
    for t, known in ((0.2, 0.0507), (0.5, 0.0281)):
        found = float(transition(2, t, "coexistence"))
        claims.append(close_to(f"coexistence at T = {t}", found, known, 5e-5, "Amit, Gutfreund, Sompolinsky (1987)"))
    value = jax.jit(lambda x: amit(x[0], x[1]).m)
    slope, e, x = jax.jit(jax.grad(lambda x: amit(x[0], x[1]).m))(jnp.asarray([0.08, 0.3])), 1e-4, np.array([0.08, 0.3])
    for i, name in enumerate(("load", "temperature")):
        step = e * np.eye(2)[i]
        differences = (value(jnp.asarray(x + step)) - value(jnp.asarray(x - step))) / (2 * e)
        off = abs(float(slope[i] / differences) - 1)
        claims.append(at_most(f"dm/d{name}, relative error", off, 1e-4, "central differences"))
    return arrays


def _own_overlap(targets, spins):
    """Overlap of each replica with the pattern it started from, (R,)."""
    return jnp.mean(targets * spins, 0)


def _overlap(config, load, size, key):
    """Mean overlap of one network of this size, over replicas and time."""
    pattern_key, run_key = jax.random.split(key)
    patterns = random_patterns(round(load * size), size, key=pattern_key)
    start = patterns[jnp.arange(config.replicas) % len(patterns)].T
    observe = jax.tree_util.Partial(_own_overlap, start)
    out = glauber(
        Dense(patterns), start, config.sweeps, temperature=config.temperature, key=run_key, observe=observe,
    )  # fmt: skip
    return float(jnp.mean(out.observed[config.sweeps // 3 :]))


def _monte_carlo(config, claims, metrics, load, key):
    """Overlaps of three sizes, a straight line in 1/N by weighted least squares, and the theory at its end."""
    rows = []
    for i, size in enumerate(config.sizes):
        keys = jax.random.split(jax.random.fold_in(key, round(1e6 * load) + i), config.networks)
        rows.append([_overlap(config, load, size, k) for k in keys])
    rows = np.asarray(rows)
    mean, error = rows.mean(1), rows.std(1, ddof=1) / config.networks**0.5
    design = np.stack([np.ones(len(config.sizes)), 1 / np.asarray(config.sizes)], 1) / error[:, None]
    covariance = np.linalg.inv(design.T @ design)
    limit, slope = covariance @ design.T @ (mean / error)
    width = covariance[0, 0] ** 0.5
    theory = float(amit(load, config.temperature).check().m)
    name = f"overlap at alpha = {load}, T = {config.temperature}, N to infinity"
    claims.append(close_to(name, limit, theory, 5 * width, "replica theory, 5 standard errors", width))
    # The whole correction at the largest size has to be seen by the fit as well.
    misfit = np.sum(((mean - limit - slope / np.asarray(config.sizes)) / error) ** 2)
    dof = len(config.sizes) - 2
    claims.append(
        at_most(f"misfit of the line in 1/N, alpha = {load}", misfit, 25 * dof, "chi^2, five standard errors")
    )
    metrics[f"slope in 1/N, alpha = {load}"] = float(slope)
    fit = np.array([limit, slope, width, theory])
    return {"sizes": np.asarray(config.sizes), f"m {load}": mean, f"error {load}": error, f"fit {load}": fit}


def plot(result: Result) -> Any:
    """The phase diagram, the ends of retrieval with more spins, and the extrapolation of the simulations."""
    import matplotlib.pyplot as plt

    a = result.arrays
    loads = [k.removeprefix("fit ") for k in a if k.startswith("fit ")]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    diagram, more, sizes = axes
    if "T" in a:
        x = np.linspace(0, 0.16, 100)
        diagram.plot(x, 1 + x**0.5, "k", label="$T_g$: glass")
        for kind, label, color in (
            ("fold", "$T_M$: retrieval ends", "C0"),
            ("coexistence", "$T_c$: patterns are the ground state", "C2"),
            ("stability", "$T_R$: replica symmetry breaks", "C3"),
        ):
            keep = a[kind] <= a["fold"] + 1e-9 if kind == "stability" else slice(None)
            diagram.plot(a[kind][keep], a["T"][keep], color, label=label)
            more.plot(a[kind][keep], a["T"][keep], "k") if kind == "fold" else None
        diagram.plot([float(load) for load in loads], [0.3] * len(loads), "ks", ms=5, label="simulated")
        diagram.set(xlabel=r"$\alpha$", ylabel="T", title="phase diagram", xlim=(0, 0.16), ylim=(0, 1.4))
        diagram.legend(fontsize=7)
        more.get_lines()[0].set_label("p = 2")
        for p in (3, 4):
            if f"fold {p}" in a:
                more.plot(a[f"fold {p}"], a["T"], f"C{p}", label=f"p = {p}")
        more.set(xlabel=r"load $a = (p-1)!\,K/N^{p-1}$", ylabel="T", title="where retrieval ends")
        more.legend(fontsize=8)
    for i, load in enumerate(loads):
        limit, slope, width, theory = a[f"fit {load}"]
        inverse = 1 / a["sizes"]
        sizes.errorbar(inverse, a[f"m {load}"], a[f"error {load}"], fmt=f"C{i}o", ms=4, label=rf"$\alpha$ = {load}")
        ends = np.array([0, inverse.max()])
        sizes.plot(ends, limit + slope * ends, f"C{i}-", lw=1)
        sizes.errorbar([0], [limit], [width], fmt=f"C{i}.", capsize=3)
        sizes.plot([0], [theory], "k_", ms=14)
    sizes.set(xlabel="1/N", ylabel="overlap m", title="T = 0.3; bars at 1/N = 0: theory")
    sizes.legend(fontsize=8)
    return figure
