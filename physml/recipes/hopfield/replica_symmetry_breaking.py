r"""Replica symmetry breaking in dense memories: the glass of one step, its three lines, and who is the ground state.

The patterns of a dense memory make a p-spin glass. With weights $\cosh^\theta(\sqrt xz)$ one step of symmetry breaking
is explicit in x and theta,

$$q_1 = \langle\tanh^2\rangle, \qquad T = \sqrt{aq_1^{p-1}/x}, \qquad
  \frac{p-1}{2p}xq_1 = -\frac1{\theta^2}\ln\int Dz(2\cosh\sqrt xz)^\theta + \frac1\theta\langle\ln2\cosh\sqrt xz\rangle$$

which gives the static temperature (theta = 1), the dynamic one (the largest T at theta = 1), Gardner's, where clusters
break up in turn, and the energy of the ground state. With many spins per interaction they tend to those of the random
energy model, $1/(2\sqrt{\ln2})$ and $-\sqrt{\ln2}$ at a = p/2. On the diagram of load and temperature the lines rise as
the root of the load, beside the end of retrieval and the line where the retrieval state itself breaks symmetry.

**See** Gardner, Nucl. Phys. B 257, 747 (1985); Albanese, Alemanno, Alessandrelli and Barra, Replica symmetry breaking in
dense neural networks (2022); Derrida, Phys. Rev. B 24, 2613 (1981).
"""

import dataclasses
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np

from physml.hopfield import theory
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Albanese et al., Replica symmetry breaking in dense neural networks (2022); Gardner (1985)",
    claim="static, dynamic and Gardner lines, random-energy limit, stability of retrieval, ground-state capacity",
    time="1 min, smoke 6 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Orders of interaction, and the points of the diagram."""

    orders: tuple[int, ...] = setting((3, 4, 6, 12), least=3.0)
    temperatures: int = setting(24, least=0.0)  # 0 leaves the diagram out

    def rules(self):
        return ((3 in self.orders, "3 among the orders"),)


PAPER = Config()
SMOKE = Config(orders=(3,), temperatures=0)
LINES = ("static", "dynamic", "gardner")

SABOTAGE = Sabotage(
    "an overlap one thousandth too large", sys.modules[__name__], "_edwards_anderson",
    lambda exact: lambda t: 1.001 * exact(t),
)  # fmt: skip


@experiment
def run(study, config, key):
    """Everything is deterministic; `key` is not used."""
    stages = [_orders, _diagram] if config.temperatures else [_orders]
    study.keep(diagram=None)
    with jax.enable_x64(True):
        for stage in study.each(stages, "stage"):
            stage(study, config)


def _orders(study, config):
    """The lines at a = p/2 for every p."""
    glasses = {p: theory.glass_lines(p) for p in config.orders}
    solved = np.mean([bool(glass.status.ok) for glass in glasses.values()])
    study.at_least("share of systems of equations solved", solved, 1, "Newton's method")
    three = glasses[3]
    for name, known in (("static", 0.65139), ("dynamic", 0.68160)):
        quantity, source = f"{name} temperature, p = 3", "spherical-cavity literature, 5 digits"
        study.near(quantity, getattr(three, name), known, source, atol=1e-5)
    study.near("Gardner's temperature, p = 3", three.gardner, 0.24, "Gardner (1985)", atol=1e-3)
    # The saddle point is where the general functional, on a product grid, is flat in theta and in q_1.
    t = float(three.static)
    for name, slope in zip(("q_1", "theta"), _slopes(t, _edwards_anderson(t)), strict=True):
        study.at_most(f"slope of the free energy at the static point, in {name}", abs(slope), 1e-6, "stationarity")
    if max(config.orders) >= 12:
        last, rem, source = glasses[max(config.orders)], math.log(2) ** 0.5, "random energy model"
        study.near("static temperature at the largest p", last.static, 1 / (2 * rem), source, atol=2e-3)
        study.near("ground-state energy there", last.energy, -rem, source, atol=2e-3)
    study.keep(glasses=glasses)


@jax.jit
def _slopes(t, q):
    """Derivatives in q_1 and theta, whose limit theta -> 1 is that of the functional itself."""
    f = lambda q, theta: theory.free_energy_one_step(3, 1.5, t, 0.0, 0.0, q, theta, nodes=120)
    # At theta = 1 nothing depends on q_1: the second derivative is the first that tells.
    return jax.grad(lambda theta: jax.grad(f)(q, theta))(1.0), jax.grad(f, 1)(q, 1.0)


def _edwards_anderson(t):
    """q_1 at theta = 1, by iteration of q = int Dz tanh(x + sqrt(x) z), x = a q^2 / T^2."""
    z, w = np.polynomial.hermite_e.hermegauss(120)
    q = 1.0
    for _ in range(2000):
        x = 1.5 * q**2 / t**2
        q = float(w @ np.tanh(x + x**0.5 * z)) / (2 * np.pi) ** 0.5
    return q


def _diagram(study, config):
    """Load and temperature for p = 3 and 4: fold and stability of retrieval, and the ground-state capacity."""
    ts, diagram = np.linspace(0.01, 0.5, config.temperatures), {}
    for p in (3, 4):
        line = lambda kind, p=p: np.asarray(jax.vmap(lambda t: theory.transition(p, t, kind))(jnp.asarray(ts)))
        capacity, end = float(theory.ground_state_load(p)), float(theory.critical_load(p))
        diagram[p] = line("fold"), line("stability"), capacity
        # The energies there are those of two different theories; at its very end the branch is singular.
        load = min(capacity, end * (1 - 1e-6))
        energy, pattern = theory.glass_lines(p, load).energy, theory.dense(p, load, 0.0).check().free_energy
        if load < 0.999 * end:
            study.near(f"energies at the ground-state capacity, p = {p}", pattern, energy, "equality", atol=1e-6)
        else:
            study.at_most(f"pattern at the end of retrieval, energy, p = {p}", pattern, energy, "ground state")
    # Symmetric theory puts the glass too low at T = 0, and with it the capacity.
    share = theory.transition(3, 0.0, "coexistence") / diagram[3][2]
    study.at_most("symmetric over broken capacity, p = 3", share, 0.9, "f_RS < f_1RSB")
    study.keep(temperatures=ts, diagram=diagram)


def plot(result):
    """Lines over p beside the random energy model, and the diagrams of p = 3 and 4."""
    d = result.data
    figure, axes = draw.panels(1, 3 if d.diagram else 1, squeeze=False)
    over_p, *diagrams = axes.flat
    for name in LINES:
        over_p.plot(
            list(d.glasses),
            [float(getattr(glass, name)) for glass in d.glasses.values()],
            "o-",
            label=name.replace("gardner", "Gardner"),
        )
    over_p.axhline(1 / (2 * math.log(2) ** 0.5), color="k", lw=0.7, ls=":", label="random energy model")
    draw.label(over_p, "glass without pattern", "p", "T at a = p/2", ylim=(0, None))
    loads = np.linspace(0, 0.35, 100)
    for axis, p in zip(diagrams, d.diagram or (), strict=True):
        fold, stability, capacity = d.diagram[p]
        for name in LINES:
            at = float(getattr(d.glasses[p], name)) / (p / 2) ** 0.5
            axis.plot(loads, at * loads**0.5, lw=1, label=f"glass, {name.replace('gardner', 'Gardner')}")
        draw.theory(axis, fold, d.temperatures, label="retrieval ends")
        draw.theory(axis, stability, d.temperatures, "C3--", label="retrieval breaks symmetry")
        axis.plot([capacity], [0], "kv", clip_on=False, label="ground-state capacity")
        draw.label(
            axis, f"p = {p}", "load a", "T", xlim=(0, 0.35), ylim=(0, 0.6), legend={"fontsize": 7, "frameon": True}
        )
    return figure
