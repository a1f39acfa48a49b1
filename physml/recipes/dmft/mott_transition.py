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
import sys
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml import dmft
from physml.core._continuation import continuation
from physml.core.iterations import Damped
from physml.dmft import BetheHubbard, RealBetheHubbard, discrepancy
from physml.metrics import power_law
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Georges, Kotliar, Krauth and Rozenberg, Dynamical mean-field theory (1996)",
    claim="a hysteresis loop whose spinodals agree by jumps, folds and eigenvalues; wedge, end point, spectra two ways",
    time="30 s, smoke 8 s",
)

ANCHOR = "an independent discretisation of the same equations"
SPINODALS = (2.5748, 2.9945)  # U_c1, U_c2 at beta D = 50


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Temperatures, resolutions, and what the claims ask for."""

    beta: float = 50.0  # of the hysteresis loop; the reference values belong to 50
    loop: tuple[float, float, float] = (2.2, 3.2, 0.0025)  # U from, to, in steps of
    temperatures: int = setting(24, least=0.0)  # of the wedge, from the coldest to the cusp; 0 leaves the wedge out
    coldest: float = setting(0.005, below=0.02)
    spectra: tuple[float, ...] = setting((2.0, 2.8), length=0)  # U; both branches where they exist
    points: int = 8001  # of the real axis
    # the bounds of the claims
    spinodal_tolerance: float = 0.005
    slope_tolerance: float = 1e-4
    axes_tolerance: float = 1e-3

    def rules(self):
        return ((self.temperatures == 0 or self.temperatures >= 8, "no temperatures of the wedge, or at least 8"),)


PAPER = Config()
SMOKE = Config(loop=(2.5, 3.05, 0.01), temperatures=0, coldest=0.015, spectra=(), spinodal_tolerance=0.012)

SABOTAGE = Sabotage(
    "a band wider by one hundredth", sys.modules[__name__], "BetheHubbard",
    lambda exact: lambda **fields: exact(D=1.01, **fields),
)  # fmt: skip


@experiment
def run(study, config, key):
    """Everything is deterministic; `key` is not used."""
    study.keep(wedge=None)
    with jax.enable_x64(True):
        for stage in study.each((_hysteresis, _slopes, _wedge, _spectra), "stage"):
            stage(study, config)


def _model(config):
    """(U, T) -> model, in one basis that holds the coldest."""
    cutoff = float(2.0 ** np.ceil(np.log2(9 / min(config.coldest, 1 / config.beta))))
    return lambda u, t: BetheHubbard(U=u, beta=1 / t, cutoff=cutoff, frequencies=64, times=2)


@partial(jax.jit, static_argnames="config")
def _fold(config, p, x, t):
    """The fold near (U, unknowns) at temperature T."""
    return dmft.fold(lambda u: _model(config)(u, t), p, x)


@partial(jax.jit, static_argnames="config")
def _measure(config, u, x):
    """Z and the largest eigenvalue of the iteration at many (U, unknowns)."""
    model = lambda u: _model(config)(u, 1 / config.beta)
    one = lambda pair: (model(pair[0]).finish(pair[1]).Z, dmft.leading_eigenvalue(model(pair[0]), pair[1]))
    return jax.lax.map(one, (u, x))


def _branches(config):
    """The metal followed up in U and the insulator down, each a row of unknowns per U."""
    low, high, step = config.loop
    us = np.arange(low, high + step / 2, step)
    model = lambda u: _model(config)(u, 1 / config.beta)
    insulator = dataclasses.replace(model(us[-1]), start="insulator").init()

    def follow(metal):
        options: dict[str, Any] = dict(direction="both", method=Damped(1.0), tol=1e-11, max_steps=20000)
        start = {"forward": metal, "backward": insulator}
        both: Any = continuation(lambda g, u: model(u).update(g), us, start, **options)
        return both.forward.values, both.backward.values, jnp.append(both.forward.status.ok, both.backward.status.ok)

    return us, *jax.jit(follow)(model(us[0]).init())


def _hysteresis(study, config):
    """The spinodals by the jumps of the branches, and as folds of the curve that joins them."""
    us, metal, insulator, fine = _branches(config)
    model = lambda u: _model(config)(u, 1 / config.beta)
    out = jax.jit(lambda x: dmft.curve(model, us[0], x, step=0.1, steps=45, scale=0.2))(metal[0]).check()
    turns = np.flatnonzero(np.diff(np.sign(out.turn)))
    if len(turns) != 2:
        raise ValueError(f"the curve at beta = {config.beta} passes {len(turns)} folds, not two: no hysteresis")
    folds = [_fold(config, out.params[i], out.values[i], jnp.asarray(1 / config.beta)).check() for i in turns]
    c2, c1 = (float(found.p) for found in folds)
    # One call for the branches, the curve and the folds.
    places = jnp.concatenate([us, us, out.params, jnp.stack([found.p for found in folds])])
    states = jnp.concatenate([metal, insulator, out.values, jnp.stack([found.value for found in folds])])
    ends = np.cumsum([len(us), len(us), len(out.params)])
    z, eigenvalues = (np.split(a, ends) for a in np.asarray(_measure(config, places, states)))
    # Where the branches part; half a step of U is left open.
    step = config.loop[2]
    apart = np.abs(z[0] - z[1]) > 5e-3
    jumps = us[apart][[0, -1]] + step / 2 * np.array([-1, 1])
    study.at_least("share of points converged", np.mean(fine), 1, "tolerance 1e-11")
    for name, jump, turn, known in zip(("U_c1", "U_c2"), jumps, (c1, c2), SPINODALS, strict=True):
        study.near(f"{name} by the jump", jump, known, ANCHOR, atol=config.spinodal_tolerance)
        study.near(f"{name} by the fold", turn, known, ANCHOR, atol=1e-3)
    off = np.max(np.abs(eigenvalues[-1] - 1))
    study.at_most("largest eigenvalue at the folds, from 1", off, 1e-6, "definition of a fold")
    # A smooth branch has second differences that shrink with the step; a jump would leave one of its own size.
    inside = (us > c1 + 0.02) & (us < c2 - 0.02)
    rough = max(np.max(np.abs(np.diff(np.log(branch[inside]), 2))) for branch in z[:2])
    study.at_most("second differences of log Z inside the loop", rough, 250 * step**2, "smooth")
    study.metrics["jump of Z at U_c2"] = z[0][apart][-1] - z[1][apart][-1]
    study.keep(U=us, z=z, eigenvalues=eigenvalues, curve=np.asarray(out.params), folds=folds)


def _slopes(study, config):
    """dZ/dU by the implicit derivative against differences, on both branches, halfway between the spinodals."""
    scheme = dmft.SelfConsistent(Damped(1.0), tol=1e-13, max_steps=20000)
    model = lambda u, start: dataclasses.replace(_model(config)(u, 1 / config.beta), start=start)
    u, e = jnp.asarray(sum(0.5 * found.p for found in study.data.folds)), 1e-4
    for start in ("metal", "insulator"):
        z = lambda u, start=start: dmft.solve(model(u, start), scheme=scheme).order.Z
        value = jax.jit(jax.value_and_grad(z))
        (_, slope), above, below = value(u), value(u + e)[0], value(u - e)[0]
        off = abs(slope * 2 * e / (above - below) - 1)
        study.at_most(f"dZ/dU of the {start}, relative error", off, config.slope_tolerance, "differences")
        study.metrics[f"dZ/dU of the {start}"] = slope


def _follow(config, start, temperatures):
    """Folds at temperatures in steps of a variable in which they are smooth, so that secants predict them."""
    out = [start]
    for t in temperatures:
        last, before = out[-1], out[-2:][0]
        guess = jax.tree.map(lambda a, b: 2 * a - b, (last.p, last.value), (before.p, before.value))
        out.append(_fold(config, *guess, jnp.asarray(t)).check())
    return out[1:]


def _wedge(study, config):
    """Both folds over temperature, down from the loop's and up to the cusp."""
    if not config.temperatures:
        return
    own, half = 1 / config.beta, config.temperatures // 2
    warm = _follow(config, study.data.folds[0], np.linspace(own, 0.044, 13)[1:])[-1]
    end = jax.jit(lambda p, t, x: dmft.cusp(_model(config), p, t, x))(warm.p, 0.044, warm.value).check()
    tc, uc = float(end.q), float(end.p)
    below = np.geomspace(own, config.coldest, half + 1)
    # Near a cusp the folds are smooth in the root of the distance.
    above = tc - (tc - own) * np.linspace(1, 0.15, config.temperatures - half + 1) ** 2
    t, lines = np.concatenate([below[::-1], above[1:]]), []
    for start in study.data.folds:
        folds = [*_follow(config, start, below[1:])[::-1], start, *_follow(config, start, above[1:])]
        lines.append(np.array([float(found.p) for found in folds]))
    c2, c1 = lines
    near = (t > 0.5 * (own + tc)) & (t < tc)
    power = power_law(tc - t[near], (c2 - c1)[near])[0].value
    study.near("power with which the wedge closes", power, 1.5, "cusp: generic unfolding", atol=0.1)
    # At T = 0 the pole in the gap of G0 has weight a with a^2 (1 - a) = (D/U)^2, possible from U = 3 sqrt(3)/2 on.
    study.near("U_c1 at the coldest", c1[0], 1.5 * 3**0.5, "T = 0 in closed form", atol=0.03)
    study.metrics |= {"T of the end point": tc, "U of the end point": uc}
    study.keep(wedge=(t, c1, c2), end=(uc, tc))


def _spectra(study, config):
    """Spectra continued from the imaginary axis beside those solved on the real one."""
    solve, w, spectra = eqx.filter_jit(dmft.solve), jnp.linspace(-4.0, 4.0, 801), {}
    both = lambda u: 2.58 < u < 2.99
    for u, start in [(u, s) for u in config.spectra for s in ("metal", "insulator") if s == "metal" or both(u)]:
        options: dict[str, Any] = dict(U=jnp.asarray(u), beta=config.beta, start=start)
        imaginary = solve(BetheHubbard(**options)).check().order
        real = solve(RealBetheHubbard(**options, points=config.points)).check().order
        off, name = jnp.max(jnp.abs(real.matsubara(imaginary.w[:50]) - imaginary.G.imag[:50])), f"U = {u:g}, {start}"
        study.at_most(f"{name}: real against imaginary axis", off, config.axes_tolerance, "two solvers")
        band = jax.jit(dmft.pade)(imaginary.w[:64], imaginary.G[:64], w).check()
        truth = jnp.interp(w, real.w, real.A)
        width, off = discrepancy(band.low, band.high, w), discrepancy(band.A, truth, w)
        study.at_most(f"{name}: error of the Pade spectrum", off, width, "width of its band")
        spectra[name] = np.asarray([band.low, band.high, truth])
    study.keep(w=np.asarray(w), spectra=spectra)


def plot(result):
    """The loop, the eigenvalues, the wedge, and spectra with their bands."""
    d = result.data
    figure, axes = draw.panels(1 + bool(d.wedge or d.spectra), 2, width=5.0, squeeze=False)
    loop, eigen = axes[0]
    shown = (d.curve >= d.U[0]) & (d.curve <= d.U[-1])
    draw.theory(loop, d.curve[shown], d.z[2][shown], color="0.7", lw=4, label="curve through the folds")
    for i, name, color in ((0, "metal, U rising", "C3"), (1, "insulator, U falling", "C0")):
        draw.theory(loop, d.U, d.z[i], color, label=name)
        draw.theory(eigen, d.U, d.eigenvalues[i], color, label=name)
        for axis in (loop, eigen):
            axis.axvline(float(d.folds[i].p), color="k", lw=0.6, ls=":")
    eigen.axhline(1, color="k", lw=0.6)
    draw.label(loop, "hysteresis", "U / D", "Z", log="y", legend={"loc": "lower left"})
    draw.label(eigen, "slope of the iteration", "U / D", "largest eigenvalue")
    if d.wedge:
        wedge, (t, c1, c2) = axes[1, 0], d.wedge
        wedge.fill_betweenx(t, c1, c2, color="0.9")
        wedge.plot(c1, t, "C0.-", ms=4, label="$U_{c1}$: insulator ends")
        wedge.plot(c2, t, "C3.-", ms=4, label="$U_{c2}$: metal ends")
        wedge.plot(*d.end, "ko", label="end point")
        wedge.axvline(1.5 * 3**0.5, color="C0", lw=0.6, ls=":")
        draw.label(wedge, "both solutions exist inside", "U / D", "T / D", ylim=(0, None))
    for i, (name, spectrum) in enumerate(d.spectra.items()):
        low, high, truth = spectrum + 0.9 * i
        axes[1, 1].fill_between(d.w, low, high, color=f"C{i}", alpha=0.35, lw=0)
        draw.theory(axes[1, 1], d.w, truth, f"C{i}", lw=1, label=name)
    if d.spectra:
        limits: dict[str, Any] = dict(xlim=(-3.5, 3.5), ylim=(-0.05, 0.9 * len(d.spectra) + 0.6))
        title = "lines: real axis; bands: Pade"
        draw.label(axes[1, 1], title, r"$\omega$ / D", "A, shifted", legend={"loc": "upper left"}, **limits)
    return figure
