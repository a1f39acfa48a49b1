r"""Wide random networks: the Gaussian limit, the way to it in width and depth, and weights that are not independent.

1. *Kernels.* Sampled covariance and tangent kernels approach $K$ and $\Theta$ of infinite width as $n^{-1/2}$.
2. *Edge of chaos.* Its place, and the decay of correlations in sampled networks on either side.
3. *Quartic term.* Given a network's hidden layers an output is Gaussian with variance Q, so its excess kurtosis is
   $3\,\mathrm{Var}Q/\langle Q\rangle^2$: $3[(1 + c/n)^L - 1]$, c = 2 linear, 5 ReLU, and by a recursion for tanh.
4. *Edgeworth density.* $N(y; 0, q)[1 + \kappa He_4/24]$ is wrong by $O(n^{-2})$, the Gaussian by $O(n^{-1})$.
5. *Width and depth commute.* Residual networks with branches of scale $L^{-1/2}$: over a grid of (n, L) the mean kernel
   has one limit, with errors A/n + B/L, and fluctuations stay O(1/n) at any depth.
6. *Beyond independent weights.* Orthogonal, low-rank, block-sparse and diluted matrices: those whose rank or fan-in
   grows with n keep the limit and change the corrections; fixed rank changes the kurtosis, fixed fan-in the variance,
   at any width.

All references are closed forms or recursions; only the networks are sampled. **See** Schoenholz et al., Deep
information propagation (2017); Yaida, Non-Gaussian processes and neural networks at finite widths (2020); Hayou and
Yang, Width and depth limits commute in residual networks (2023).
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from physml import dmft
from physml.dmft import edge_of_chaos, excess_kurtosis, quartic
from physml.dmft.gaussian.weight_ensembles import (
    BlockSparseWeights,
    DilutedWeights,
    GaussianWeights,
    LowRankWeights,
    OrthogonalWeights,
)
from physml.metrics import Estimate, jackknife, power_law, straight_line
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Yaida, Non-Gaussian processes and neural networks at finite widths (2020); Hayou and Yang (2023)",
    claim="kernels, edge of chaos, quartic term, Edgeworth density, commuting limits, weights beyond independent ones",
    time="3 min, smoke 15 s",
)

VARIANCES = {"linear": (1.0, 0.0), "relu": (2.0, 0.0), "tanh": (2.0, 0.1)}
PARTS = ("kernels", "chaos", "quartic", "density", "commute", "ensembles")
ENSEMBLES = {
    "independent": lambda n: GaussianWeights(),
    "orthogonal": lambda n: OrthogonalWeights(),
    "rank n/4": lambda n: LowRankWeights(n // 4),
    "8 blocks": lambda n: BlockSparseWeights(8),
    "fan-in n/4": lambda n: DilutedWeights(n // 4),
}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    parts: tuple[str, ...] = setting(PARTS, choices=PARTS)
    widths: tuple[int, ...] = setting((64, 128, 256, 512), length=2)
    kernel_networks: int = setting(120, least=20.0)
    chaos_width: int = 192
    chaos_networks: int = setting(800, least=0.0)
    chaos_depths: tuple[int, ...] = (2, 3, 4, 5, 6, 7)
    quartic_phis: tuple[str, ...] = setting(("linear", "relu", "tanh"), choices=VARIANCES)
    quartic_width: int = 64
    quartic_depths: tuple[int, ...] = (1, 2, 4, 8)
    quartic_networks: int = setting(4000, least=20.0)
    density_widths: tuple[int, ...] = setting((24, 48, 96, 192), length=2)  # 2^-24: a dead layer has no density
    density_networks: int = 40000
    grid_widths: tuple[int, ...] = (16, 32, 64, 128)
    grid_depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    grid_networks: int = setting(1600, least=20.0)
    ensemble_networks: int = setting(4000, least=20.0)
    ensembles: tuple[str, ...] = setting(tuple(ENSEMBLES), choices=ENSEMBLES)
    fixed_widths: tuple[int, ...] = setting((32, 64, 128), length=0)
    # the bounds of the claims
    slope_tolerance: float = 0.1
    density_tolerance: float = 0.3  # of the power 2
    depth_tolerance: float = 0.1
    quartic_tolerance: float = 0.12  # of tanh, to which terms of order 1/n^2 and noise contribute
    commute_tolerance: float = 0.02

    def rules(self):
        names = ("chaos", "quartic", "density", "grid", "ensemble")
        counts = [getattr(self, f"{name}_networks") for name in names]
        return ((not any(count % 20 for count in counts), "networks counted in twenties"),)


PAPER = Config()
SMOKE = Config(
    parts=("chaos", "quartic", "density", "ensembles"), chaos_networks=0, quartic_phis=("relu",), quartic_width=32,
    quartic_depths=(3,), quartic_networks=3000, density_widths=(24, 48), density_networks=16000,
    ensembles=("orthogonal",), ensemble_networks=2000, fixed_widths=(), density_tolerance=0.6, quartic_tolerance=0.2,
)  # fmt: skip

SABOTAGE = Sabotage(
    "orthogonal weights told as independent ones", sys.modules[__name__], "quartic",
    lambda exact: lambda *a, weights=None, **options: exact(*a, **options),
)  # fmt: skip


@experiment
def run(study, config, key):
    keys, found = iter(jax.random.split(key, 1000)), {}
    for part in study.each(config.parts, "part"):
        found[part] = STAGES[part][0](study, config, keys)
    study.keep(found=found, config=config)


@functools.partial(jax.jit, static_argnames=("count", "options"))
def _map(x, key, count, options):
    one = lambda k: dmft.sample_network(x, key=k, **dict(options)).kernel
    return jax.lax.map(jax.vmap(one), jax.random.split(key, (count // 20, 20))).reshape(-1, len(x), len(x))


def _sampled(x, key, count, phi, width, depth, **options):
    """Kernels (count, m, m) of as many networks, a multiple of 20."""
    w, b = VARIANCES[phi]
    options = {"weight_var": w, "bias_var": b} | options | {"phi": phi, "width": width, "depth": depth}
    return np.asarray(_map(x, key, count, tuple(options.items())), np.float64)


def _variances(key, count, phi, width, depth, **options):
    """Variances Q (count,) of the output of as many networks for an input of ones."""
    return _sampled(jnp.ones((1, 4)), key, count, phi, width, depth, **options)[:, 0, 0]


def _kurtosis(Q):
    """Excess kurtosis 3 Var Q / <Q>^2 of an output, with an error by the jackknife over 20 groups."""
    return jackknife(lambda q: 3 * q.var() / q.mean() ** 2, Q.reshape(20, -1))


def _kernels(study, config, keys):
    """Root mean square distance of sampled K and Theta from the limit, over networks and pairs, at depth 2."""
    x = jax.random.normal(jax.random.key(7), (3, 5))
    w, b = VARIANCES["tanh"]
    limits = [np.asarray(a, np.float64) for a in dmft.ntk(x @ x.T / 5, 2, "tanh", w, b)]
    off = lambda a, limit: np.sqrt(np.mean((np.asarray(a, np.float64) - limit) ** 2) / np.mean(limit**2))
    both = [_tangents(x, next(keys), config.kernel_networks, n, w, b) for n in config.widths]
    errors = {name: [off(pair[i], limits[i]) for pair in both] for i, name in enumerate(("K", "NTK"))}
    for name, error in errors.items():
        power = power_law(config.widths, error)[0].value
        study.near(f"{name}: power of the error in width", power, -0.5, "CLT", atol=config.slope_tolerance)
    return errors


@functools.partial(jax.jit, static_argnames=("count", "n", "w", "b"))
def _tangents(x, key, count, n, w, b):
    """Sampled K and the tangent kernel by the Jacobian of all parameters."""

    def network(params, x):
        h = x / x.size**0.5
        for W, bias in params[:-1]:
            h = jnp.tanh(w**0.5 * W @ h + b**0.5 * bias) / n**0.5
        return w**0.5 * params[-1][0] @ h + b**0.5 * params[-1][1], h

    def one(key):
        a, c, d, e = jax.random.split(key, 4)
        shapes = ((n, x.shape[1]), (n, n), (n,))
        params = [(jax.random.normal(k, s), jax.random.normal(jax.random.fold_in(e, i), s[:-1]))
                  for i, (k, s) in enumerate(zip((a, c, d), shapes, strict=True))]  # fmt: skip
        jacobian, h = jax.vmap(lambda v: jax.jacrev(network, has_aux=True)(params, v))(x)
        flat = jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(jacobian)], 1)
        return w * h @ h.T + b, flat @ flat.T

    return jax.lax.map(one, jax.random.split(key, count))


def _chaos(study, config, keys):
    """The critical points, and the decay of correlations in sampled networks of both phases."""
    tanh, relu = edge_of_chaos("tanh", 0.05).weight_var, edge_of_chaos("relu").weight_var
    study.near("edge of chaos, tanh, bias .05: weight variance", tanh, 1.7610, "independent solution", atol=1e-4)
    study.near("edge of chaos, ReLU: weight variance", relu, 2.0, "exact", atol=1e-6)
    if not config.chaos_networks:
        return {}
    depths, found = config.chaos_depths, {}
    for name, w in (("ordered", 1.2), ("chaotic", 3.0)):
        phase = dmft.correlation_depth("tanh", w, 0.05)
        q, fixed = float(phase.variance), float(phase.correlation)
        start = (0.6 if name == "ordered" else 0.0) * q  # a pair at the fixed variance, below c*
        Kx = (np.array([[q, start], [start, q]]) - 0.05) / w
        x = jnp.asarray(np.linalg.cholesky(Kx) * 2**0.5, jnp.float32)
        gap = lambda K, fixed=fixed: abs(float(K[0, 1]) / float(K[0, 0] * K[1, 1]) ** 0.5 - fixed)
        size, options = (config.chaos_networks, "tanh", config.chaos_width), {"weight_var": w, "bias_var": 0.05}
        gaps = [gap(_sampled(x, next(keys), *size, depth, **options).mean(0)) for depth in depths]
        theory = [gap(dmft.nngp(Kx, depth, "tanh", w, 0.05)) for depth in depths]
        rate = lambda gap: straight_line(depths, np.log(gap), 1.0)[1].value
        quantity, ratio = f"{name}: decay rate of sampled correlations over theory", rate(gaps) / rate(theory)
        study.near(quantity, ratio, 1, f"wide limit; xi = {float(phase.depth):.3f}", atol=config.depth_tolerance)
        found[name] = gaps, theory
    return found


def _quartic(study, config, keys):
    """Excess kurtosis of sampled networks over the depth."""
    n, found = config.quartic_width, {}
    for phi in config.quartic_phis:
        rows, theory = [], []
        for depth in config.quartic_depths:
            rows.append(_kurtosis(_variances(next(keys), config.quartic_networks, phi, n, depth)))
            recursion = lambda depth=depth, phi=phi: quartic(1.0, n, depth, phi, *VARIANCES[phi]).excess_kurtosis
            theory.append(float(recursion() if phi == "tanh" else excess_kurtosis(n, depth, phi)))
        found[phi] = kurtosis, theory = Estimate(*np.transpose(rows)), np.asarray(theory)
        if phi == "tanh":
            worst = np.max(np.abs(kurtosis.value / theory - 1))
            study.at_most("tanh: excess kurtosis, relative error", worst, config.quartic_tolerance, "recursion")
        else:
            worst = np.max(np.abs(kurtosis.z(theory)))
            study.at_most(f"{phi}: excess kurtosis, largest |z|", worst, 5, "3[(1 + c/n)^L - 1]")
    return found


def _density(study, config, keys):
    """L1 distances of Gaussian and Edgeworth densities from the sampled mixture over networks, at depth 2, ReLU."""
    depth, q, y = 2, 2.0, np.linspace(-12.0, 12.0, 481)
    gauss = np.exp(-0.5 * y**2 / q) / np.sqrt(2 * np.pi * q)
    slope = gauss * (y**2 / q - 1) / (2 * q)
    # <Q> = q exactly, so the part linear in Q - q is known to vanish.
    mix = lambda Q: (np.exp(-0.5 * y[:, None] ** 2 / Q) / np.sqrt(2 * np.pi * Q)).mean(1) - slope * (Q.mean() - q)
    distance = lambda groups, model: jackknife(lambda g: np.sum(np.abs(g.mean(0) - model)) * (y[1] - y[0]), groups)
    rows = {"gauss": [], "edgeworth": []}
    for n in config.density_widths:
        Q = _variances(next(keys), config.density_networks, "relu", n, depth)
        groups = np.stack([mix(part) for part in np.split(Q, 20)])
        with jax.enable_x64(True):
            edge = np.asarray(dmft.edgeworth_density(y, q, quartic(1.0, n, depth, "relu").excess_kurtosis))
        rows["gauss"].append(distance(groups, gauss))
        rows["edgeworth"].append(distance(groups, edge))
    g, e = found = [Estimate(*np.transpose(row)) for row in rows.values()]
    widths, tolerance = config.density_widths, config.density_tolerance
    quantity, ratio = f"n={widths[-1]}: L1 error of Edgeworth over Gaussian", e.value[-1] / g.value[-1]
    study.at_most(quantity, ratio, 0.35, "closer", error=e.error[-1] / g.value[-1])
    power = lambda distance: power_law(widths, distance.value)[0].value
    study.near("Gaussian density: power of the error in width", power(g), -1, "first order", atol=tolerance / 2)
    study.near("Edgeworth density: power of the error in width", power(e), -2, "second order", atol=tolerance)
    return dict(zip(rows, found, strict=True))


def _commute(study, config, keys):
    """Residual ReLU networks over a grid of width and depth; the linear one's fluctuations; branches left unscaled."""
    x = jnp.asarray([[1.0, 1.0], [1.0, -1.0]])  # orthogonal inputs of variance 1
    limit = np.asarray(dmft.residual_nngp(np.eye(2)), np.float64)
    ns, Ls, count = config.grid_widths, config.grid_depths, config.grid_networks
    options = {"residual": True, "weight_var": 1.0}
    K = [_sampled(x, next(keys), count, "relu", n, L, **options) for n in ns for L in Ls]
    mean, noise = np.mean(K, 1), np.std(K, 1) / count**0.5
    rms = np.sqrt(np.mean((K - limit) ** 2, (1, 2, 3))).reshape(len(ns), len(Ls))
    a, b = (grid.ravel() for grid in np.meshgrid(1 / np.asarray(ns), 1 / np.asarray(Ls), indexing="ij"))
    q, source = limit[0, 0], "q = e^(t/2) and the arc-cosine flow"
    for name, i, j in (("variance", 0, 0), ("covariance", 0, 1)):
        weight = 1 / noise[:, i, j]
        design = np.stack([np.ones(a.size), a, b, b**2], 1) * weight[:, None]
        covariance = np.linalg.inv(design.T @ design)
        fit = Estimate((covariance @ design.T @ (mean[:, i, j] * weight))[0] / q, covariance[0, 0] ** 0.5 / q)
        study.near(f"both limits, {name} over sqrt(e)", fit, limit[i, j] / q, source, atol=config.commute_tolerance)
    quantity, power = "deepest networks: power of the error in width", power_law(ns, rms[:, -1])[0].value
    study.near(quantity, power, -0.5, "CLT at any depth", atol=config.slope_tolerance)
    n, L = ns[0], Ls[-1]
    found = _kurtosis(_sampled(x[:1], next(keys), count, "linear", n, L, **options)[:, 0, 0])
    exact = 3 * ((1 + 2 / n) * (1 + (4 / L + 2 / L**2) / (n * (1 + 1 / L) ** 2)) ** L - 1)
    quantity, source = f"linear, n={n}, L={L}: |z| of the kurtosis", f"exact {exact:.4f}, bounded in L"
    study.at_most(quantity, abs(found.z(exact)), 5, source)
    loose = _sampled(x, next(keys), 20, "relu", ns[-1], L, **options, time=None)[:, 0, 0].mean()
    study.at_least("branches of scale 1: variance over the limit", loose / q, 5, "(3/2)^L grows")
    return rms


def _ensembles(study, config, keys):
    """Quartic term and shift of the variance of every ensemble beside the recursion, for tanh."""
    n, depth, found = config.quartic_width, 4, {}
    recursion = lambda **options: quartic(1.0, n, depth, "tanh", *VARIANCES["tanh"], **options)
    independent = float(recursion().excess_kurtosis)
    for name in config.ensembles:
        weights = ENSEMBLES[name](n)
        Q = _variances(next(keys), config.ensemble_networks, "tanh", n, depth, weights=weights)
        theory, kurtosis = recursion(weights=weights), _kurtosis(Q)
        wanted, shift = float(theory.excess_kurtosis), float(theory.shift)
        off, error = abs(kurtosis.value / wanted - 1), kurtosis.error / wanted
        told = abs(Q.mean() - float(theory.variance) - shift) / (4 * Q.std() / len(Q) ** 0.5 + 0.15 * abs(shift))
        quantity, bound = f"{name}: kurtosis, relative error", config.quartic_tolerance
        study.at_most(quantity, off, bound, "recursion", error=error)
        study.at_most(f"{name}: shift of the variance, error over 4 s.e. + 15%", told, 1, "recursion")
        if name in ("orthogonal", "rank n/4"):
            quantity, away = f"{name}: kurtosis away from independent weights, z", abs(kurtosis.z(independent))
            study.at_least(quantity, away, 8, "the ensemble matters")
        found[name] = kurtosis, wanted
    if config.fixed_widths:
        _fixed(study, config, keys)
    return found


def _fixed(study, config, keys):
    """Rank and fan-in that stay as n grows, beside those that grow."""
    widths, count, source = config.fixed_widths, config.ensemble_networks, "(1 + 5/n)^L (1 + 2/r)^(L - 1)"
    for name, weights in {"rank n/4": ENSEMBLES["rank n/4"], "rank 8": lambda n: LowRankWeights(8)}.items():
        rows = [_kurtosis(_variances(next(keys), count, "relu", n, 3, weights=weights(n))) for n in widths]
        theory = np.asarray([float(excess_kurtosis(n, 3, "relu", weights=weights(n))) for n in widths])
        worst = np.max(np.abs(Estimate(*np.transpose(rows)).z(theory)))
        study.at_most(f"{name}, ReLU: kurtosis, largest |z|", worst, 5, source)
    for name, weights in {"fan-in 8": lambda n: DilutedWeights(8), "fan-in n/4": ENSEMBLES["fan-in n/4"]}.items():
        shifts = []
        for n in widths:
            Q = _variances(next(keys), count, "tanh", n, 4, weights=weights(n))
            limit = float(quartic(1.0, n, 4, "tanh", *VARIANCES["tanh"], weights=weights(n)).variance)
            shifts.append(Estimate(Q.mean() - limit, Q.std() / len(Q) ** 0.5))
        first, last = shifts[0].value, shifts[-1]
        left = Estimate(last.value / first, last.error / abs(first))
        quantity = f"{name}: shift left at the largest width"
        if name == "fan-in 8":
            study.at_least(quantity, left, 0.6, "changes the limit")
        else:
            study.at_most(quantity, left, 1.8 * widths[0] / widths[-1], "falls as 1/n")


def plot(result):
    """A panel for each part: points sampled, lines theory."""
    d = result.data
    rows = 1 + (len(d.found) > 3)
    figure, axes = draw.panels(rows, -(-len(d.found) // rows), squeeze=False)
    for axis, (part, found) in zip(axes.flat, d.found.items(), strict=False):
        STAGES[part][1](axis, d.config, found)
    for axis in axes.flat[len(d.found) :]:
        axis.set_axis_off()
    return figure


def _draw_kernels(axis, config, found):
    for name, error in found.items():
        draw.measured(axis, config.widths, error, label=name)
        draw.slope(axis, config.widths, error, -0.5, ls="-", lw=0.8)
    draw.label(axis, "kernels of sampled networks; lines $n^{-1/2}$", "width n", "relative error", log="xy")


def _draw_chaos(axis, config, found):
    for i, (name, (gaps, theory)) in enumerate(found.items()):
        draw.measured(axis, config.chaos_depths, gaps, color=f"C{i}", label=name)
        draw.theory(axis, config.chaos_depths, theory, f"C{i}", lw=1)
    if found:
        draw.label(axis, "correlations decay on both sides of the edge", "layer", r"$|c - c^*|$", log="y")
    else:
        bias = np.linspace(0.0, 0.3, 13)
        draw.theory(axis, bias, [edge_of_chaos("tanh", b).weight_var for b in bias])
        draw.label(axis, "edge of chaos, tanh", r"$\sigma_b^2$", r"$\sigma_w^2$")


def _draw_quartic(axis, config, found):
    for i, (phi, (kurtosis, theory)) in enumerate(found.items()):
        draw.measured(axis, config.quartic_depths, *kurtosis, color=f"C{i}", label=phi)
        draw.theory(axis, config.quartic_depths, theory, f"C{i}", lw=1)
    draw.label(axis, "quartic term", "hidden layers", "excess kurtosis", log="y")


def _draw_density(axis, config, found):
    for i, (name, distance) in enumerate(found.items()):
        draw.measured(axis, config.density_widths, *distance, color=f"C{i}", label=name)
        draw.slope(axis, config.density_widths, distance.value, -1.0 - i, ls="-", lw=0.8)
    title = "density of an output; lines $n^{-1}$, $n^{-2}$"
    draw.label(axis, title, "width n", "L1 distance", log="xy")


def _draw_commute(axis, config, found):
    for i, L in enumerate(config.grid_depths):
        color = (0.1, i / len(config.grid_depths), 0.5)
        axis.plot(config.grid_widths, found[:, i], "o-", ms=4, color=color, label=f"L = {L}")
    title, y = "residual networks, branches $L^{-1/2}$", "rms distance from the double limit"
    draw.label(axis, title, "width n", y, log="xy")


def _draw_ensembles(axis, config, found):
    wanted = np.array([wanted for _, wanted in found.values()])
    for name, (kurtosis, theory) in found.items():
        draw.measured(axis, theory, *kurtosis, ms=5, label=name)
    ends = [wanted.min() / 1.3, wanted.max() * 1.3]
    draw.theory(axis, ends, ends, lw=0.8)
    draw.label(axis, "beyond independent weights, tanh", "kurtosis by the recursion", "sampled", log="xy")


STAGES = {
    "kernels": (_kernels, _draw_kernels),
    "chaos": (_chaos, _draw_chaos),
    "quartic": (_quartic, _draw_quartic),
    "density": (_density, _draw_density),
    "commute": (_commute, _draw_commute),
    "ensembles": (_ensembles, _draw_ensembles),
}
