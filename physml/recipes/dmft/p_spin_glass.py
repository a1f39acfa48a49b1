r"""A glass that never stops ageing: quench of the spherical p-spin model, its plateau and its effective temperature.

Two-time equations of Cugliandolo and Kurchan from an infinite temperature to T (`physml.dmft.SphericalPSpin`). Two-time
quantities keep changing with the age; long after the quench, for $1 \ll t - t' \ll t'$, the correlation rests at $q_{EA}$, and for
times of the order of the age response and correlation obey $R = (X/T)\,\partial_{t'} C$ with X < 1:

$$\tfrac{p(p-1)}{2} q^{p-2}(1-q)^2 = T^2, \qquad X = (p-2)\frac{1-q}{q}.$$

1. The energy of a quench to T = 0 at t = 10, 20, 40 with three time steps, extrapolated, and its approach to $E_{th}$.
2. q and X off the longest waiting times, extrapolated in the age, against the algebra.
3. Single systems of N spins with all their couplings.

**See** Cugliandolo and Kurchan, Analytical solution of the off-equilibrium dynamics of a long-range spin-glass model (1993).
"""

import dataclasses
import sys

import jax
import numpy as np

from physml import dmft
from physml.dmft import SphericalPSpin
from physml.metrics import mean_and_error, power_law, straight_line
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment

INFO = RecipeInfo(
    paper="Cugliandolo and Kurchan, Off-equilibrium dynamics of a long-range spin-glass model (1993)",
    claim="energy, plateau and effective temperature of the ageing p-spin glass, and single systems beside them",
    time="1 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    temperature: float = 0.4
    t_max: float = 160.0
    dt: float = 0.08
    quench_t: float = 40.0
    quench_dt: float = 0.04
    spins: int = 200
    systems: int = 8
    system_t: float = 10.0
    system_dt: float = 0.1
    # the bounds of the claims
    converged: float = 1e-3
    algebra: float = 0.10  # relative


PAPER = Config()
SMOKE = Config(
    t_max=20.0, dt=0.1, quench_t=10.0, quench_dt=0.05, spins=60, systems=4, system_t=3.0, converged=4e-3, algebra=0.25
)

SABOTAGE = Sabotage(
    "a response half as strong again", sys.modules[__name__], "_integrated_response",
    lambda exact: lambda R, dt: 1.5 * exact(R, dt),
)  # fmt: skip


@experiment
def run(study, config, key):
    for stage in study.each((_quench, _ageing, _systems), "stage"):
        stage(study, config, key)


def _quench(study, config, key):
    """Energies at T = 0 with steps 4h, 2h and h; each pair extrapolates the second order away."""
    energies = {}
    for factor in (4, 2, 1):
        model = SphericalPSpin(p=3, temperature=0.0, t_max=config.quench_t, dt=config.quench_dt * factor / 2)
        energies[factor] = np.asarray(jax.jit(lambda m=model: dmft.solve(m))().check().order.energy)
    fine = (4 * energies[1][::2] - energies[2]) / 3
    coarse = (4 * energies[2][::2] - energies[4]) / 3
    t = config.quench_dt * np.arange(len(fine))
    for time in (t for t in (10.0, 20.0, 40.0) if t <= config.quench_t):
        i, j = round(time / config.quench_dt), round(time / config.quench_dt / 2)
        quantity = f"T=0 energy at t={time:g}: change of the extrapolation on halving the step"
        study.at_most(quantity, abs(fine[i] - coarse[j]), config.converged, "the step of the scheme")
        study.metrics |= {f"energy t={time:g}": fine[i], f"energy t={time:g}, step h": energies[1][2 * i]}
        study.metrics |= {f"energy t={time:g}, step 2h": energies[2][i], f"energy t={time:g}, step 4h": energies[4][j]}
    threshold = dmft.threshold_energy(3)
    study.measure(threshold=threshold)
    late = slice(len(fine) // 4, None)
    power = power_law(t[late], fine[late] - threshold)[0].value
    study.at_least("T=0 energy above the threshold at the last time", fine[-1] - threshold, 0.0, "E_th")
    study.at_most("exponent of E - E_th in time", power, -0.5, "decays to E_th; -2/3 found numerically")
    study.keep(quench_t=t, excess=fine - threshold)


def _integrated_response(R, dt):
    """To a field that was on until t': chi(t, t') = int_0^{t'} R(t, s) ds."""
    return np.pad(np.cumsum((R[:, 1:] + R[:, :-1]) / 2 * dt, 1), ((0, 0), (1, 0)))


def _ageing(study, config, key):
    """Plateau and effective temperature at three ages, and in their limit."""
    T, dt, exact = config.temperature, config.dt, dmft.ageing(3, config.temperature)
    model = SphericalPSpin(p=3, temperature=T, t_max=config.t_max, dt=dt)
    order = jax.jit(lambda: dmft.solve(model))().check().order
    C, q, n = np.asarray(order.C, np.float64), float(exact.q), len(order.C) - 1
    response = T * _integrated_response(np.asarray(order.R, np.float64), dt)
    found, curves = {"X": [], "q": []}, {}
    for last in (n // 4, n // 2, n):
        c, y = C[last, : last + 1], response[last, : last + 1]
        # T chi against C: slope 1 above the plateau, X below. What was correlated longest ago, C near 0, comes from
        # the system's youth and ages last: X is read off just below the plateau.
        low = (c > 0.5 * q) & (c < 0.9 * q)
        offset, slope = (estimate.value for estimate in straight_line(c[low], y[low], 1.0)[:2])
        # Above the plateau T chi = T chi(t, t) - (1 - C), below X C + offset: the plateau is where they meet.
        found["X"].append(slope)
        found["q"].append((y[-1] - 1 - offset) / (slope - 1))
        curves[last * dt] = c, y[-1] - y
    ages, source = np.asarray(list(curves)), "algebra of Cugliandolo and Kurchan"
    for name, reference in (("X", exact.x), ("q", exact.q)):
        # The corrections fall like a power of the age: a straight line in age^{-1/2}, extrapolated to 0.
        values = found[name]
        limit = straight_line(ages[-2:] ** -0.5, values[-2:], 1.0)[0].value
        study.metrics |= {f"{name}, age {age:g}": value for age, value in zip(ages, values, strict=True)}
        study.near(f"{name} read off the longest waiting time", values[-1], reference, source, rtol=config.algebra)
        study.near(f"{name} extrapolated in the age", limit, reference, source, rtol=config.algebra)
    t = np.asarray(order.t)
    waiting = {t[start]: (t[start:] - t[start], C[start:, start]) for start in (n // 64, n // 16, n // 4)}
    study.keep(exact=exact, curves=curves, waiting=waiting)


def _systems(study, config, key):
    """Single systems, which differ from the theory by their own scatter and by O(1/N)."""
    model = SphericalPSpin(p=3, temperature=config.temperature, t_max=config.system_t, dt=config.system_dt)
    theory = dmft.solve(model).check().order
    simulate = jax.jit(lambda k: model.finite_n(config.spins, key=k))
    systems = [np.asarray(simulate(jax.random.fold_in(key, i)).energy) for i in range(config.systems)]
    found, wanted = mean_and_error([energy[-1] for energy in systems]), float(theory.energy[-1])
    study.at_most(
        f"energy of systems of {config.spins} spins against the theory", abs(found.value - wanted),
        5 * found.error + 4 / config.spins, "5 standard errors and 4/N", error=found.error,
    )  # fmt: skip
    study.metrics |= {"system energy": found.value, "system energy, theory": wanted}
    study.keep(systems=systems, theory=theory)


def plot(result):
    """Energy, correlations at three ages, response against correlation, single systems."""
    d = result.data
    figure, axes = draw.panels(2, 2, width=4.8)
    energy, memory, violation, single = axes.flat
    t, late = d.quench_t, d.quench_t[len(d.quench_t) // 8 :]
    energy.plot(t[1:], d.excess[1:])
    draw.theory(energy, late, 0.35 * late ** (-2 / 3), "k--", lw=1, label=r"$t^{-2/3}$")
    draw.label(energy, "energy after a quench to T = 0", "t", r"$E(t) - E_{th}$", log="xy")
    for age, (lag, C) in d.waiting.items():
        memory.plot(lag[1:], C[1:], label=rf"$t_w = {age:.3g}$")
    memory.axhline(float(d.exact.q), color="k", ls="--", lw=1)
    draw.label(memory, "older systems relax more slowly; dashed: q", r"$t - t_w$", r"$C(t, t_w)$", log="x")
    for age, (C, response) in d.curves.items():
        violation.plot(C, response, label=f"t = {age:g}")
    q, x = float(d.exact.q), float(d.exact.x)
    draw.theory(violation, [1, q, 0], [0, 1 - q, 1 - q + x * q], "k--", lw=1, label="theory")
    draw.label(violation, f"response against correlation: slope X = {x:.3f}", "C", r"$T\chi$")
    for system in d.systems:
        single.plot(d.theory.t, system, color="C1", lw=0.7, alpha=0.7)
    draw.theory(single, d.theory.t, d.theory.energy, label="N to infinity")
    draw.label(single, "single systems", "t", "E")
    return figure
