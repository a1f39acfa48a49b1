r"""The Mott transition: hysteresis, its wedge of coexistence and end point, and spectra on both sides.

Half-filled Hubbard model on the Bethe lattice, iterated perturbation theory,

$$G_0^{-1} = i\omega_n - \tfrac{D^2}{4} G, \qquad \Sigma(\tau) = U^2 G_0(\tau)^3, \qquad G^{-1} = G_0^{-1} - \Sigma.$$

At beta D = 50 the metal is followed up in U and the insulator down, to the spinodals $U_{c2}$ and $U_{c1}$. The same
points are found three ways: where the followed branches jump, as folds of the one curve that joins them through an
unstable branch, and where the largest eigenvalue of the iteration reaches one. Over temperature the folds bound a
wedge that ends at a cusp, found by Newton's method; near it the width of the wedge closes as $(T_c - T)^{3/2}$. As T
falls $U_{c1}$ tends to $3\sqrt3/2$, where an exact pole in the gap ceases to exist.

Spectra come from the imaginary axis by Pade approximants, with a band, and from an independent solution on the real
axis.

**See** Georges, Kotliar, Krauth and Rozenberg, Rev. Mod. Phys. 68, 13 (1996), section VII.
"""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml import dmft
from physml.core._continuation import continuation
from physml.core._fixed_point import Damped
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.dmft.equations.branches import curve, cusp, fold, leading_eigenvalue
from physml.dmft.impurity.hubbard import BetheHubbard
from physml.dmft.impurity.hubbard_real import RealBetheHubbard
from physml.dmft.impurity.spectra import discrepancy, pade
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Georges, Kotliar, Krauth and Rozenberg, Dynamical mean-field theory (1996)",
    claim="a hysteresis loop whose spinodals agree by jumps, folds and eigenvalues; wedge, end point, spectra two ways",
    time="30 s, smoke 8 s",
)

ANCHOR = "an independent discretisation of the same equations"


@dataclasses.dataclass(frozen=True)
class Config:
    """Temperatures, resolutions, and what the claims ask for."""

    beta: float = 50.0  # of the hysteresis loop; the reference values belong to 50
    loop: tuple[float, float, float] = (2.2, 3.2, 0.0025)  # U from, to, in steps of
    temperatures: int = 24  # of the wedge, between the coldest and the cusp; 0 leaves the wedge out
    coldest: float = 0.005
    spectra: tuple[float, ...] = (2.0, 2.8)  # U; both branches where they exist
    points: int = 8001  # of the real axis
    # the bounds of the claims
    spinodal_tolerance: float = 0.005
    slope_tolerance: float = 1e-4
    axes_tolerance: float = 1e-3

    def __post_init__(self):
        if 0 < self.temperatures < 8 or not 0 < self.coldest < 0.02 or self.loop[2] <= 0:
            raise ValueError(f"temperatures: 0 or at least 8; coldest in (0, 0.02); a positive step; got {self}")


PAPER = Config()
SMOKE = Config(loop=(2.5, 3.05, 0.01), temperatures=0, coldest=0.015, spectra=(), spinodal_tolerance=0.012)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Everything is deterministic; `key` is not used."""
    claims: list = []
    metrics: dict[str, float] = {}
    with progress_bar(4, "Mott transition", "part", show=progress) as bar:
        arrays, upper, lower = _hysteresis(config, claims, metrics)
        bar.update()
        _slopes(config, claims, metrics, upper, lower)
        bar.update()
        if config.temperatures:
            arrays |= _wedge(config, claims, metrics, upper, lower)
        bar.update()
        arrays |= _spectra(config, claims)
        bar.update()
    return Result(tuple(claims), metrics | {c.quantity: c.value for c in claims}, arrays)


def _model(config):
    """(U, T) -> model, in one basis that holds the coldest."""
    cutoff = float(2.0 ** np.ceil(np.log2(9 / min(config.coldest, 1 / config.beta))))
    return lambda u, t: BetheHubbard(U=u, beta=1 / t, cutoff=cutoff, frequencies=64, times=2)


@functools.lru_cache(maxsize=4)
def _line(config):
    """Compiled: the fold near (U, unknowns) at temperature T."""
    model = _model(config)
    return jax.jit(lambda p, x, t: fold(lambda u: model(u, t), p, x))


@functools.lru_cache(maxsize=4)
def _measure(config):
    """Compiled: Z and the largest eigenvalue of the iteration at many (U, unknowns)."""
    model = lambda u: _model(config)(u, 1 / config.beta)
    one = lambda pair: (model(pair[0]).finish(pair[1]).Z, leading_eigenvalue(model(pair[0]), pair[1]))
    return jax.jit(lambda u, x: jax.lax.map(one, (u, x)))


def _branches(config):
    """The metal followed up in U and the insulator down, each a row of unknowns per U."""
    low, high, step = config.loop
    us = np.arange(low, high + step / 2, step)
    model = lambda u: _model(config)(u, 1 / config.beta)
    insulator = dataclasses.replace(model(us[-1]), start="insulator").init()

    def follow(metal):
        options: dict[str, Any] = dict(direction="both", method=Damped(1.0), tol=1e-11, max_steps=20000)
        both: Any = continuation(
            lambda g, u: model(u).update(g), us, {"forward": metal, "backward": insulator}, **options
        )
        return both.forward.values, both.backward.values, jnp.append(both.forward.status.ok, both.backward.status.ok)

    return us, *jax.jit(follow)(model(us[0]).init())


def _jumps(config, claims, us, up, down, fine):
    """Where the branches part; half a step of U is left open."""
    apart, step = np.abs(up - down) > 5e-3, config.loop[2]
    jumps = us[apart][[0, -1]] + step / 2 * np.array([-1, 1])
    claims.append(at_least("share of points converged", np.mean(fine), 1, "tolerance 1e-11"))
    claims.append(close_to("U_c1 by the jump", jumps[0], 2.5748, config.spinodal_tolerance, ANCHOR))
    claims.append(close_to("U_c2 by the jump", jumps[1], 2.9945, config.spinodal_tolerance, ANCHOR))
    return float(up[apart][-1] - down[apart][-1])


def _hysteresis(config, claims, metrics):
    with jax.enable_x64(True):
        us, metal, insulator, fine = _branches(config)
        model, line = lambda u: _model(config)(u, 1 / config.beta), _line(config)
        out = jax.jit(lambda x: curve(model, us[0], x, step=0.1, steps=45, scale=0.2))(metal[0]).check()
        turns = np.flatnonzero(np.diff(np.sign(out.turn)))
        if len(turns) != 2:
            raise ValueError(f"the curve at beta = {config.beta} passes {len(turns)} folds, not two: no hysteresis")
        found = [line(out.params[i], out.values[i], jnp.asarray(1 / config.beta)).check() for i in turns]
        folds = jnp.stack([f.p for f in found]), jnp.stack([f.value for f in found])
        # One call for the branches, the curve and the folds.
        n = len(us)
        z, eigenvalue = _measure(config)(
            jnp.concatenate([us, us, out.params, folds[0]]), jnp.concatenate([metal, insulator, out.values, folds[1]])
        )
        z, eigenvalue = np.asarray(z), np.asarray(eigenvalue)
        c2, c1 = (float(f.p) for f in found)
    up, down = z[:n], z[n : 2 * n]
    metrics["jump of Z at U_c2"] = _jumps(config, claims, us, up, down, fine)
    claims.append(close_to("U_c1 by the fold", c1, 2.5748, 1e-3, ANCHOR))
    claims.append(close_to("U_c2 by the fold", c2, 2.9945, 1e-3, ANCHOR))
    off = np.max(np.abs(eigenvalue[-2:] - 1))
    claims.append(at_most("largest eigenvalue at the folds, from 1", off, 1e-6, "definition of a fold"))
    # A smooth branch has second differences that shrink with the step; a jump would leave one of its own size.
    inside = (us > c1 + 0.02) & (us < c2 - 0.02)
    rough = max(np.max(np.abs(np.diff(np.log(branch[inside]), 2))) for branch in (up, down))
    claims.append(at_most("second differences of log Z inside the loop", rough, 250 * config.loop[2] ** 2, "smooth"))
    arrays = {
        "U": us, "Z up": up, "Z down": down, "eigenvalue up": eigenvalue[:n], "eigenvalue down": eigenvalue[n : 2 * n],
        "curve U": np.asarray(out.params), "curve Z": z[2 * n : -2], "spinodals": np.array([c1, c2]),
    }  # fmt: skip
    return arrays, *found


def _slopes(config, claims, metrics, upper, lower):
    """dZ/dU by the implicit derivative against differences, on both branches."""
    with jax.enable_x64(True):
        z = lambda u, start: (
            dmft.solve(
                dataclasses.replace(_model(config)(u, 1 / config.beta), start=start),
                scheme=dmft.FixedPoint(Damped(1.0), tol=1e-13, max_steps=20000),
            ).order.Z
        )
        u, e = jnp.asarray(0.5 * (upper.p + lower.p)), 1e-4
        for start in ("metal", "insulator"):
            value = jax.jit(jax.value_and_grad(lambda u, start=start: z(u, start)))
            (_, slope), above, below = value(u), value(u + e)[0], value(u - e)[0]
            off = abs(float(slope * 2 * e / (above - below)) - 1)
            claims.append(at_most(f"dZ/dU of the {start}, relative error", off, config.slope_tolerance, "differences"))
            metrics[f"dZ/dU of the {start}"] = float(slope)


def _wedge(config, claims, metrics, upper, lower):
    """Both folds over temperature, down from the loop's and up to the cusp."""
    with jax.enable_x64(True):
        model, line, own = _model(config), _line(config), 1 / config.beta

        def follow(start, temperatures):
            """Folds at temperatures in steps of a variable in which they are smooth, so that secants predict them."""
            out = [start]
            for t in temperatures:
                last, before = out[-1], out[-2] if len(out) > 1 else out[-1]
                guess = jax.tree.map(lambda a, b: 2 * a - b, (last.p, last.value), (before.p, before.value))
                out.append(line(*guess, jnp.asarray(t)).check())
            return out[1:]

        warm = follow(upper, np.linspace(own, 0.044, 13)[1:])
        end = jax.jit(lambda p, t, x: cusp(model, p, t, x))(warm[-1].p, 0.044, warm[-1].value).check()
        tc, uc = float(end.q), float(end.p)
        half = config.temperatures // 2
        below = np.geomspace(own, config.coldest, half + 1)
        # Near a cusp the folds are smooth in the root of the distance.
        above = tc - (tc - own) * np.linspace(1, 0.15, config.temperatures - half + 1) ** 2
        rows = [
            np.array([float(f.p) for f in [*follow(b, below[1:])[::-1], b, *follow(b, above[1:])]])
            for b in (upper, lower)
        ]
    t = np.concatenate([below[::-1], above[1:]])
    width = rows[0] - rows[1]
    near = (t > 0.5 * (own + tc)) & (t < tc)
    power = np.polyfit(np.log(tc - t[near]), np.log(width[near]), 1)[0]
    claims.append(close_to("power with which the wedge closes", power, 1.5, 0.1, "cusp: generic unfolding"))
    # At T = 0 the pole in the gap of G0 has weight a with a^2 (1 - a) = (D/U)^2, possible from U = 3 sqrt(3)/2 on.
    claims.append(close_to("U_c1 at the coldest", rows[1][0], 1.5 * 3**0.5, 0.03, "T = 0 in closed form"))
    metrics |= {"T of the end point": tc, "U of the end point": uc}
    return {"T": t, "U_c2": rows[0], "U_c1": rows[1], "end": np.array([uc, tc])}


def _spectra(config, claims):
    arrays = {"w": np.linspace(-4.0, 4.0, 801)}
    spinodals = (2.58, 2.99)
    with jax.enable_x64(True):
        solve, w = eqx.filter_jit(dmft.solve), jnp.asarray(arrays["w"])
        for u in config.spectra:
            starts = ("metal", "insulator") if spinodals[0] < u < spinodals[1] else ("metal",)
            for start in starts:
                at = jnp.asarray(u)
                imaginary = solve(BetheHubbard(U=at, beta=config.beta, start=start)).check().order
                real = RealBetheHubbard(U=at, beta=config.beta, start=start, points=config.points)
                real = solve(real).check().order
                off = jnp.max(jnp.abs(real.matsubara(imaginary.w[:50]) - imaginary.G.imag[:50]))
                name = f"U = {u:g}, {start}"
                claims.append(
                    at_most(f"{name}: real against imaginary axis", off, config.axes_tolerance, "two solvers")
                )
                band = jax.jit(pade)(imaginary.w[:64], imaginary.G[:64], w).check()
                truth = jnp.interp(w, real.w, real.A)
                width, off = discrepancy(band.low, band.high, w), discrepancy(band.A, truth, w)
                claims.append(at_most(f"{name}: error of the Pade spectrum", off, width, "width of its band"))
                spectra = {"A": band.A, "low": band.low, "high": band.high, "real": truth}
                arrays |= {f"{name} {k}": np.asarray(v) for k, v in spectra.items()}
    return arrays


def plot(result: Result) -> Any:
    """The loop, the eigenvalues, the wedge, and spectra with their bands."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7.5), layout="constrained")
    loop, eigen, wedge, spectrum = axes.ravel()
    shown = (a["curve U"] >= a["U"][0]) & (a["curve U"] <= a["U"][-1])
    loop.plot(a["curve U"][shown], a["curve Z"][shown], "-", color="0.7", lw=4, label="curve through the folds")
    for way, name, color in (("up", "metal, U rising", "C3"), ("down", "insulator, U falling", "C0")):
        loop.plot(a["U"], a[f"Z {way}"], color=color, lw=1.2, label=name)
        eigen.plot(a["U"], a[f"eigenvalue {way}"], color=color, lw=1.2, label=name)
    for u in a["spinodals"]:
        loop.axvline(u, color="k", lw=0.6, ls=":")
        eigen.axvline(u, color="k", lw=0.6, ls=":")
    loop.set(xlabel="U / D", ylabel="Z", title="hysteresis", yscale="log")
    loop.legend(fontsize=7, loc="lower left")
    eigen.axhline(1, color="k", lw=0.6)
    eigen.set(xlabel="U / D", ylabel="largest eigenvalue", title="slope of the iteration")
    if "T" in a:
        wedge.fill_betweenx(a["T"], a["U_c1"], a["U_c2"], color="0.9")
        wedge.plot(a["U_c1"], a["T"], "C0.-", ms=4, label="$U_{c1}$: insulator ends")
        wedge.plot(a["U_c2"], a["T"], "C3.-", ms=4, label="$U_{c2}$: metal ends")
        wedge.plot(*a["end"], "ko", label="end point")
        wedge.axvline(1.5 * 3**0.5, color="C0", lw=0.6, ls=":")
        wedge.set(xlabel="U / D", ylabel="T / D", title="both solutions exist inside", ylim=(0, None))
        wedge.legend(fontsize=8)
    names = [k.removesuffix(" low") for k in a if k.endswith(" low")]
    for i, name in enumerate(names):
        low, high, real = (a[f"{name} {k}"] + 0.9 * i for k in ("low", "high", "real"))
        spectrum.fill_between(a["w"], low, high, color=f"C{i}", alpha=0.35, lw=0)
        spectrum.plot(a["w"], real, color=f"C{i}", lw=1, label=name)
    spectrum.set(xlabel=r"$\omega$ / D", ylabel="A, shifted", title="lines: real axis; bands: Pade", xlim=(-3.5, 3.5))
    if names:
        spectrum.set(ylim=(-0.05, 0.9 * len(names) + 0.6))
        spectrum.legend(fontsize=8, loc="upper left")
    return figure
