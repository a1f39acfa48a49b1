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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.hopfield.theory._dense import critical_load, dense, transition
from physml.hopfield.theory.one_step import free_energy_one_step, glass_lines, ground_state_load
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Albanese et al., Replica symmetry breaking in dense neural networks (2022); Gardner (1985)",
    claim="static, dynamic and Gardner lines, random-energy limit, stability of retrieval, ground-state capacity",
    time="1 min, smoke 6 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Orders of interaction, and the points of the diagram."""

    orders: tuple[int, ...] = (3, 4, 6, 12)
    temperatures: int = 24  # 0 leaves the diagram out

    def __post_init__(self):
        if 3 not in self.orders or min(self.orders) < 3:
            raise ValueError(f"orders must hold 3 and none below, got {self.orders}")


PAPER = Config()
SMOKE = Config(orders=(3,), temperatures=0)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Everything is deterministic; `key` is not used."""
    claims: list = []
    arrays: dict[str, np.ndarray] = {}
    with progress_bar(2, "replica symmetry breaking", "part", show=progress) as bar, jax.enable_x64(True):
        arrays |= _orders(config, claims)
        bar.update()
        if config.temperatures:
            arrays |= _diagram(config, claims)
    return Result(tuple(claims), {c.quantity: c.value for c in claims}, arrays)


def _orders(config, claims):
    """The lines at a = p/2 for every p."""
    found = [glass_lines(p) for p in config.orders]
    rows = np.array([[float(v) for v in (g.static, g.dynamic, g.gardner, g.energy)] for g in found])
    solved = np.mean([bool(g.status.ok) for g in found])
    claims.append(at_least("share of systems of equations solved", solved, 1, "Newton's method"))
    three = rows[config.orders.index(3)]
    for name, value, known in (("static", three[0], 0.65139), ("dynamic", three[1], 0.68160)):
        claims.append(
            close_to(f"{name} temperature, p = 3", value, known, 1e-5, "spherical-cavity literature, 5 digits")
        )
    claims.append(close_to("Gardner's temperature, p = 3", three[2], 0.24, 1e-3, "Gardner (1985)"))
    # The saddle point is where the general functional, on a product grid, is flat in theta and in q_1.
    t = three[0]
    q = _edwards_anderson(t)
    slopes = [abs(float(v)) for v in _slopes(t, q)]
    claims.append(at_most("slope of the free energy at the static point, in q_1", slopes[0], 1e-6, "stationarity"))
    claims.append(at_most("slope of the free energy at the static point, in theta", slopes[1], 1e-6, "stationarity"))
    if max(config.orders) >= 12:
        limit = rows[np.argmax(config.orders)]
        rem = 1 / (2 * math.log(2) ** 0.5)
        claims.append(close_to("static temperature at the largest p", limit[0], rem, 2e-3, "random energy model"))
        claims.append(
            close_to("ground-state energy there", limit[3], -(math.log(2) ** 0.5), 2e-3, "random energy model")
        )
    return {"orders": np.asarray(config.orders), "lines": rows}


@jax.jit
def _slopes(t, q):
    """Derivatives in q_1 and theta, whose limit theta -> 1 is that of the functional itself."""
    f = lambda q, theta: free_energy_one_step(3, 1.5, t, 0.0, 0.0, q, theta, nodes=120)
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


def _diagram(config, claims):
    """Load and temperature for p = 3 and 4."""
    arrays = {"T": np.linspace(0.01, 0.5, config.temperatures)}
    for p in (3, 4):
        line = lambda kind, p=p: np.asarray(jax.vmap(lambda t: transition(p, t, kind))(jnp.asarray(arrays["T"])))
        arrays[f"fold {p}"], arrays[f"stability {p}"] = line("fold"), line("stability")
        capacity, end = float(ground_state_load(p)), float(critical_load(p))
        arrays[f"ground {p}"] = np.array([capacity, end])
        # The energies there are those of two different theories; at its very end the branch is singular.
        capacity = min(capacity, end * (1 - 1e-6))
        energy = float(glass_lines(p, capacity).energy)
        pattern = float(dense(p, capacity, 0.0).check().free_energy)
        if capacity < 0.999 * end:
            claims.append(
                close_to(f"energies at the ground-state capacity, p = {p}", pattern, energy, 1e-6, "equality")
            )
        else:
            claims.append(at_most(f"pattern at the end of retrieval, energy, p = {p}", pattern, energy, "ground state"))
    # Symmetric theory puts the glass too low at T = 0, and with it the capacity.
    symmetric = float(transition(3, 0.0, "coexistence"))
    claims.append(
        at_most("symmetric over broken capacity, p = 3", symmetric / arrays["ground 3"][0], 0.9, "f_RS < f_1RSB")
    )
    return arrays


def plot(result: Result) -> Any:
    """Lines over p beside the random energy model, and the diagrams of p = 3 and 4."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for i, name in enumerate(("static", "dynamic", "Gardner")):
        axes[0].plot(a["orders"], a["lines"][:, i], f"C{i}o-", label=name)
    axes[0].axhline(1 / (2 * math.log(2) ** 0.5), color="k", lw=0.7, ls=":", label="random energy model")
    axes[0].set(xlabel="p", ylabel="T at a = p/2", title="glass without pattern", ylim=(0, None))
    axes[0].legend(fontsize=8)
    for axis, p in zip(axes[1:], (3, 4), strict=True):
        if "T" not in a:
            continue
        loads = np.linspace(0, 0.35, 100)
        at = a["lines"][list(a["orders"]).index(p)] / (p / 2) ** 0.5
        for i, name in enumerate(("static", "dynamic", "Gardner")):
            axis.plot(loads, at[i] * loads**0.5, f"C{i}", lw=1, label=f"glass, {name}")
        axis.plot(a[f"fold {p}"], a["T"], "k", label="retrieval ends")
        axis.plot(a[f"stability {p}"], a["T"], "C3--", label="retrieval breaks symmetry")
        axis.plot(a[f"ground {p}"][:1], [0], "kv", clip_on=False, label="ground-state capacity")
        axis.set(xlabel="load a", ylabel="T", title=f"p = {p}", xlim=(0, 0.35), ylim=(0, 0.6))
        axis.legend(fontsize=7)
    return figure
