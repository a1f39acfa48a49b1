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
from typing import Any

import jax
import numpy as np

from physml import dmft
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.dmft import SphericalPSpin
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Cugliandolo and Kurchan, Off-equilibrium dynamics of a long-range spin-glass model (1993)",
    claim="energy, plateau and effective temperature of the ageing p-spin glass, and single systems beside them",
    time="1 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
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


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Solve, extrapolate, simulate."""
    claims: list = []
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    with progress_bar(4, "p-spin glass", "stage", show=progress) as bar:
        _quench(config, claims, metrics, arrays)
        bar.update()
        T = config.temperature
        model = SphericalPSpin(p=3, temperature=T, t_max=config.t_max, dt=config.dt)
        order = jax.jit(lambda: dmft.solve(model))().check().order
        bar.update()
        _ageing(config, order, claims, metrics, arrays)
        bar.update()
        _systems(config, key, claims, metrics, arrays)
        bar.update()
    return Result(tuple(claims), {name: float(value) for name, value in metrics.items()}, arrays)


def _quench(config, claims, metrics, arrays):
    """Energies at T = 0 with steps 4h, 2h and h; each pair extrapolates the second order away."""
    energies = {}
    for factor in (4, 2, 1):
        dt = config.quench_dt * factor / 2
        model = SphericalPSpin(p=3, temperature=0.0, t_max=config.quench_t, dt=dt)
        energies[factor] = np.asarray(jax.jit(lambda m=model: dmft.solve(m))().check().order.energy)
    fine = (4 * energies[1][::2] - energies[2]) / 3
    coarse = (4 * energies[2][::2] - energies[4]) / 3
    t = config.quench_dt * np.arange(len(fine))
    arrays |= {"quench t": t, "quench energy": fine}
    for time in (t for t in (10.0, 20.0, 40.0) if t <= config.quench_t):
        i, j = round(time / config.quench_dt), round(time / config.quench_dt / 2)
        metrics |= {f"energy t={time:g}": fine[i], f"energy t={time:g}, step h": energies[1][2 * i]}
        metrics |= {f"energy t={time:g}, step 2h": energies[2][i], f"energy t={time:g}, step 4h": energies[4][j]}
        claims.append(
            at_most(
                f"T=0 energy at t={time:g}: change of the extrapolation on halving the step",
                abs(fine[i] - coarse[j]), config.converged, "the step of the scheme",
            )
        )  # fmt: skip
    threshold = dmft.threshold_energy(3)
    metrics["threshold"] = threshold
    late = slice(len(fine) // 4, None)
    slope = np.polyfit(np.log(t[late]), np.log(fine[late] - threshold), 1)[0]
    metrics["exponent of the energy"] = slope
    claims.append(at_least("T=0 energy above the threshold at the last time", fine[-1] - threshold, 0.0, "E_th"))
    claims.append(at_most("exponent of E - E_th in time", slope, -0.5, "decays to E_th; -2/3 found numerically"))


def _ageing(config, order, claims, metrics, arrays):
    T, dt = config.temperature, config.dt
    exact = dmft.ageing(3, T)
    C, R = np.asarray(order.C, np.float64), np.asarray(order.R, np.float64)
    n = len(C) - 1
    q, x = float(exact.q), float(exact.x)
    # Integrated response to a field that was on until t': chi(t, t') = int_0^{t'} R(t, s) ds, against C(t, t').
    chi = np.concatenate([np.zeros((n + 1, 1)), np.cumsum((R[:, 1:] + R[:, :-1]) / 2 * dt, 1)], 1)
    ages, slopes, plateaus = [], [], []
    for last in (n // 4, n // 2, n):
        c, y = C[last, : last + 1], chi[last, : last + 1]
        # T chi against C: slope 1 above the plateau, X below. What was correlated longest ago, C near 0, comes from
        # the system's youth and ages last: X is read off just below the plateau.
        low = (c > 0.5 * q) & (c < 0.9 * q)
        slopes.append(T * np.polyfit(c[low], y[low], 1)[0])
        # Where the two straight lines of the parametric plot meet is the plateau.
        offset = T * np.mean(y[low]) - slopes[-1] * np.mean(c[low])
        total = T * y[-1]
        # Above the plateau T chi = T chi(t, t) - (1 - C); below X C + offset.
        plateaus.append((total - 1 - offset) / (slopes[-1] - 1))
        ages.append(last * dt)
        arrays |= {f"C age {len(ages)}": c, f"chi age {len(ages)}": T * y}
    arrays["ages"] = ages = np.asarray(ages)
    for name, values, reference in (("X", np.asarray(slopes), x), ("q", np.asarray(plateaus), q)):
        # The corrections fall like a power of the age: a straight line in age^{-1/2}, extrapolated to 0.
        limit = np.polyfit(ages[-2:] ** -0.5, values[-2:], 1)[1]
        metrics |= {f"{name}, age {age:g}": v for age, v in zip(ages, values, strict=True)}
        metrics |= {f"{name} extrapolated": limit, f"{name} exact": reference}
        claims.append(
            close_to(f"{name} read off the longest waiting time", values[-1], reference, config.algebra * reference,
                     "algebra of Cugliandolo and Kurchan")
        )  # fmt: skip
        claims.append(
            close_to(f"{name} extrapolated in the age", limit, reference, config.algebra * reference,
                     "algebra of Cugliandolo and Kurchan")
        )  # fmt: skip
    t = np.asarray(order.t)
    arrays |= {"t": t, "q exact": np.asarray(q), "x exact": np.asarray(x), "T": np.asarray(T)}
    for i, fraction in enumerate((64, 16, 4)):
        start = n // fraction
        arrays |= {
            f"lag {i}": t[start:] - t[start],
            f"C lag {i}": C[start:, start],
            f"waiting {i}": np.asarray(t[start]),
        }


def _systems(config, key, claims, metrics, arrays):
    model = SphericalPSpin(p=3, temperature=config.temperature, t_max=config.system_t, dt=config.system_dt)
    theory = dmft.solve(model).check().order
    simulate = jax.jit(lambda k: model.finite_n(config.spins, key=k))
    sims = [simulate(jax.random.fold_in(key, i)) for i in range(config.systems)]
    energy = np.stack([np.asarray(sim.energy) for sim in sims])
    error = energy.std(0, ddof=1) / np.sqrt(config.systems)
    arrays |= {"system t": np.asarray(theory.t), "system theory": np.asarray(theory.energy), "systems": energy}
    gap = abs(energy[:, -1].mean() - float(theory.energy[-1]))
    metrics |= {"system energy": energy[:, -1].mean(), "system energy, theory": float(theory.energy[-1])}
    # A finite system differs by its own scatter and by O(1/N).
    claims.append(
        at_most(f"energy of systems of {config.spins} spins against the theory", gap,
                5 * error[-1] + 4 / config.spins, "5 standard errors and 4/N", error=error[-1])
    )  # fmt: skip


def plot(result: Result) -> Any:
    """Energy, correlations at three ages, response against correlation, single systems."""
    import matplotlib.pyplot as plt

    a, m = result.arrays, result.metrics
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7), layout="constrained")
    t = a["quench t"]
    axes[0, 0].loglog(t[1:], a["quench energy"][1:] - m["threshold"])
    axes[0, 0].loglog(t[len(t) // 8 :], 0.35 * t[len(t) // 8 :] ** (-2 / 3), "k--", lw=1, label=r"$t^{-2/3}$")
    axes[0, 0].set(xlabel="t", ylabel=r"$E(t) - E_{th}$", title="energy after a quench to T = 0")
    axes[0, 0].legend()
    for i in range(3):
        axes[0, 1].semilogx(a[f"lag {i}"][1:], a[f"C lag {i}"][1:], label=rf"$t_w = {float(a[f'waiting {i}']):.3g}$")
    axes[0, 1].axhline(float(a["q exact"]), color="k", ls="--", lw=1)
    axes[0, 1].set(xlabel=r"$t - t_w$", ylabel=r"$C(t, t_w)$", title="older systems relax more slowly; dashed: q")
    axes[0, 1].legend()
    for i in (1, 2, 3):
        axes[1, 0].plot(a[f"C age {i}"], a[f"chi age {i}"][-1] - a[f"chi age {i}"], label=f"t = {a['ages'][i - 1]:g}")
    q, x = float(a["q exact"]), float(a["x exact"])
    axes[1, 0].plot([1, q, 0], [0, 1 - q, 1 - q + x * q], "k--", lw=1, label="theory")
    axes[1, 0].set(xlabel="C", ylabel=r"$T\chi$", title=f"response against correlation: slope X = {x:.3f}")
    axes[1, 0].legend()
    for energy in a["systems"]:
        axes[1, 1].plot(a["system t"], energy, color="C1", lw=0.7, alpha=0.7)
    axes[1, 1].plot(a["system t"], a["system theory"], "k", label="N to infinity")
    axes[1, 1].set(xlabel="t", ylabel="E", title="single systems")
    axes[1, 1].legend()
    return figure
