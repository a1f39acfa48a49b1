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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.dmft.gaussian.edge_of_chaos import correlation_depth, edge_of_chaos
from physml.dmft.gaussian.finite_width import edgeworth_density, excess_kurtosis, quartic, sample_network
from physml.dmft.gaussian.infinite_width import nngp, ntk, residual_nngp
from physml.dmft.gaussian.weight_ensembles import BlockSparse, Diluted, Gaussian, LowRank, Orthogonal
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Yaida, Non-Gaussian processes and neural networks at finite widths (2020); Hayou and Yang (2023)",
    claim="kernels, edge of chaos, quartic term, Edgeworth density, commuting limits, weights beyond independent ones",
    time="3 min, smoke 15 s",
)

VARIANCES = {"linear": (1.0, 0.0), "relu": (2.0, 0.0), "tanh": (2.0, 0.1)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    parts: tuple[str, ...] = ("kernels", "chaos", "quartic", "density", "commute", "ensembles")
    widths: tuple[int, ...] = (64, 128, 256, 512)
    kernel_networks: int = 120
    chaos_width: int = 192
    chaos_networks: int = 800
    chaos_depths: tuple[int, ...] = (2, 3, 4, 5, 6, 7)
    quartic_phis: tuple[str, ...] = ("linear", "relu", "tanh")
    quartic_width: int = 64
    quartic_depths: tuple[int, ...] = (1, 2, 4, 8)
    quartic_networks: int = 4000
    density_widths: tuple[int, ...] = (24, 48, 96, 192)  # 2^-24: a dead layer has no density
    density_networks: int = 40000
    grid_widths: tuple[int, ...] = (16, 32, 64, 128)
    grid_depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    grid_networks: int = 1600
    ensemble_networks: int = 4000
    ensembles: tuple[str, ...] = ("independent", "orthogonal", "rank n/4", "8 blocks", "fan-in n/4")
    fixed_widths: tuple[int, ...] = (32, 64, 128)
    # the bounds of the claims
    slope_tolerance: float = 0.1
    density_tolerance: float = 0.3  # of the power 2
    depth_tolerance: float = 0.1
    quartic_tolerance: float = 0.12  # of tanh, to which terms of order 1/n^2 and noise contribute
    commute_tolerance: float = 0.02

    def __post_init__(self):
        counts = (
            self.chaos_networks,
            self.quartic_networks,
            self.density_networks,
            self.grid_networks,
            self.ensemble_networks,
        )
        if any(count % 20 for count in counts):
            raise ValueError(f"networks are counted in twenties, got {counts}")
        if min(self.kernel_networks, self.quartic_networks, self.grid_networks, self.ensemble_networks) < 20:
            raise ValueError(f"each average needs at least 20 networks, got {self}")
        if set(self.quartic_phis) - set(VARIANCES) or min(len(self.widths), len(self.density_widths)) < 2:
            raise ValueError(f"quartic_phis are among {', '.join(VARIANCES)}, and widths at least two; got {self}")


PAPER = Config()
SMOKE = Config(
    parts=("chaos", "quartic", "density", "ensembles"), chaos_networks=0, quartic_phis=("relu",), quartic_width=32,
    quartic_depths=(3,), quartic_networks=3000, density_widths=(24, 48), density_networks=16000,
    ensembles=("orthogonal",), ensemble_networks=2000, fixed_widths=(), density_tolerance=0.6, quartic_tolerance=0.2,
)  # fmt: skip


@functools.partial(jax.jit, static_argnames=("count", "options"))
def _map(x, key, count, options):
    one = lambda k: sample_network(x, key=k, **dict(options)).kernel
    return jax.lax.map(jax.vmap(one), jax.random.split(key, (count // 20, 20))).reshape(-1, len(x), len(x))


def sampled(x, key, count: int, phi: str, width: int, depth: int, **options) -> np.ndarray:
    """Kernels (count, m, m) of as many networks, a multiple of 20."""
    w, b = VARIANCES[phi]
    options = {"weight_var": w, "bias_var": b} | options | {"phi": phi, "width": width, "depth": depth}
    return np.asarray(_map(x, key, count, tuple(options.items())), np.float64)


def slope_of(x, y) -> float:
    """Power of y against x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Sample networks of all kinds beside their theory."""
    claims: list = []
    arrays: dict[str, np.ndarray] = {}
    keys = iter(jax.random.split(key, 1000))
    parts = {"kernels": _kernels, "chaos": _chaos, "quartic": _quartic, "density": _density, "commute": _commute,
             "ensembles": _ensembles}  # fmt: skip
    with progress_bar(len(config.parts), "infinite width", "part", show=progress) as bar:
        for part in config.parts:
            claims += parts[part](config, keys, arrays)
            bar.update()
    return Result(tuple(claims), {c.quantity: c.value for c in claims}, arrays)


def _kernels(config, keys, arrays):
    """Root mean square distance of sampled K and Theta from the limit, over networks and pairs, at depth 2."""
    x = jax.random.normal(jax.random.key(7), (3, 5))
    w, b = VARIANCES["tanh"]
    K, theta = (np.asarray(a, np.float64) for a in ntk(x @ x.T / 5, 2, "tanh", w, b))
    off = lambda a, limit: np.sqrt(np.mean((a - limit) ** 2) / np.mean(limit**2))
    errors = {"K": [], "NTK": []}
    for n in config.widths:
        both = _tangents(x, next(keys), config.kernel_networks, n, w, b)
        errors["K"].append(off(np.asarray(both[0], np.float64), K))
        errors["NTK"].append(off(np.asarray(both[1], np.float64), theta))
    arrays |= {"widths": np.asarray(config.widths)} | {f"{k} error": np.asarray(v) for k, v in errors.items()}
    return [
        close_to(f"{k}: power of the error in width", slope_of(config.widths, v), -0.5, config.slope_tolerance, "CLT")
        for k, v in errors.items()
    ]


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


def _chaos(config, keys, arrays):
    """The critical points, and the decay of correlations in sampled networks of both phases."""
    tanh, relu = edge_of_chaos("tanh", 0.05), edge_of_chaos("relu")
    claims = [
        close_to("edge of chaos, tanh, bias .05: weight variance", tanh.weight_var, 1.7610, 1e-4, "independent solution"),
        close_to("edge of chaos, ReLU: weight variance", relu.weight_var, 2.0, 1e-6, "exact"),
    ]  # fmt: skip
    bias = jnp.linspace(0.0, 0.3, 13)
    arrays |= {"edge bias": np.asarray(bias), "edge": np.asarray([edge_of_chaos("tanh", b).weight_var for b in bias])}
    if not config.chaos_networks:
        return claims
    for name, w in (("ordered", 1.2), ("chaotic", 3.0)):
        phase = correlation_depth("tanh", w, 0.05)
        q, fixed = float(phase.variance), float(phase.correlation)
        start = (0.6 if name == "ordered" else 0.0) * q  # a pair at the fixed variance, below c*
        Kx = (np.array([[q, start], [start, q]]) - 0.05) / w
        x = jnp.asarray(np.linalg.cholesky(Kx) * 2**0.5, jnp.float32)
        gap = lambda K, fixed=fixed: abs(float(K[0, 1]) / float(K[0, 0] * K[1, 1]) ** 0.5 - fixed)
        networks = lambda depth, x=x, w=w: sampled(
            x, next(keys), config.chaos_networks, "tanh", config.chaos_width, depth, weight_var=w, bias_var=0.05
        )
        gaps = [gap(networks(depth).mean(0)) for depth in config.chaos_depths]
        theory = [gap(nngp(Kx, depth, "tanh", w, 0.05)) for depth in config.chaos_depths]
        rate = lambda gap: np.polyfit(config.chaos_depths, np.log(gap), 1)[0]
        claims.append(
            close_to(f"{name}: decay rate of sampled correlations over theory", rate(gaps) / rate(theory), 1,
                     config.depth_tolerance, f"wide limit; xi = {float(phase.depth):.3f}")
        )  # fmt: skip
        arrays |= {f"{name} gap": np.asarray(gaps), f"{name} theory": np.asarray(theory)}
    arrays["chaos depths"] = np.asarray(config.chaos_depths)
    return claims


def _spread(Q):
    """Excess kurtosis 3 Var Q / <Q>^2 of an output, and its standard error by the jackknife over 20 groups."""
    value = lambda q: 3 * q.var() / q.mean() ** 2
    groups = np.array_split(Q, 20)
    left = [value(np.concatenate(groups[:i] + groups[i + 1 :])) for i in range(20)]
    return value(Q), np.sqrt(19 / 20 * np.sum((np.asarray(left) - np.mean(left)) ** 2))


def _quartic(config, keys, arrays):
    x, claims, n = jnp.ones((1, 4)), [], config.quartic_width
    arrays["quartic depths"] = np.asarray(config.quartic_depths)
    for phi in config.quartic_phis:
        rows = []
        for depth in config.quartic_depths:
            value, error = _spread(sampled(x, next(keys), config.quartic_networks, phi, n, depth)[:, 0, 0])
            exact = phi != "tanh"
            theory = (
                excess_kurtosis(n, depth, phi)
                if exact
                else quartic(1.0, n, depth, phi, *VARIANCES[phi]).excess_kurtosis
            )
            rows.append((value, error, float(theory)))
        value, error, theory = np.asarray(rows).T
        arrays |= {f"{phi} kurtosis": value, f"{phi} kurtosis error": error, f"{phi} kurtosis theory": theory}
        if phi != "tanh":
            worst = np.max(np.abs(value - theory) / error)
            claims.append(at_most(f"{phi}: excess kurtosis, largest |z|", worst, 5, "3[(1 + c/n)^L - 1]"))
        else:
            worst = np.max(np.abs(value / theory - 1))
            claims.append(
                at_most("tanh: excess kurtosis, relative error", worst, config.quartic_tolerance, "recursion")
            )
    return claims


def _distance(groups, model, dy):
    """L1 distance of the mean of groups from a model, and its standard error by the jackknife."""
    left = (groups.sum(0) - groups) / (len(groups) - 1)
    far = np.sum(np.abs(left - model), 1) * dy
    error = np.sqrt((len(groups) - 1) / len(groups) * np.sum((far - far.mean()) ** 2))
    return np.sum(np.abs(groups.mean(0) - model)) * dy, error


def _density(config, keys, arrays):
    """L1 distances of Gaussian and Edgeworth densities from the sampled mixture over networks, at depth 2, ReLU."""
    x, depth, q = jnp.ones((1, 4)), 2, 2.0
    y = np.linspace(-12.0, 12.0, 481)
    dy = y[1] - y[0]
    gauss = np.exp(-0.5 * y**2 / q) / np.sqrt(2 * np.pi * q)
    slope = gauss * (y**2 / q - 1) / (2 * q)
    # <Q> = q exactly, so the part linear in Q - q is known to vanish.
    mix = lambda Q: (np.exp(-0.5 * y[:, None] ** 2 / Q) / np.sqrt(2 * np.pi * Q)).mean(1) - slope * (Q.mean() - q)
    rows = []
    for n in config.density_widths:
        Q = sampled(x, next(keys), config.density_networks, "relu", n, depth)[:, 0, 0]
        groups = np.stack([mix(part) for part in np.array_split(Q, 20)])
        with jax.enable_x64(True):
            edge = np.asarray(edgeworth_density(y, q, quartic(1.0, n, depth, "relu").excess_kurtosis))
        rows.append((*_distance(groups, gauss, dy), *_distance(groups, edge, dy)))
    g, g_error, e, e_error = np.asarray(rows).T
    widths = config.density_widths
    arrays |= {"density widths": np.asarray(widths), "gauss L1": g, "gauss L1 error": g_error, "edgeworth L1": e,
               "edgeworth L1 error": e_error}  # fmt: skip
    return [
        at_most(f"n={widths[-1]}: L1 error of Edgeworth over Gaussian", e[-1] / g[-1], 0.35, "closer", e_error[-1] / g[-1]),
        close_to("Gaussian density: power of the error in width", slope_of(widths, g), -1, config.density_tolerance / 2, "first order"),
        close_to("Edgeworth density: power of the error in width", slope_of(widths, e), -2, config.density_tolerance, "second order"),
    ]  # fmt: skip


def _commute(config, keys, arrays):
    """Residual ReLU networks over a grid of width and depth; the linear one's fluctuations; branches left unscaled."""
    x = jnp.asarray([[1.0, 1.0], [1.0, -1.0]])  # orthogonal inputs of variance 1
    limit = np.asarray(residual_nngp(np.eye(2)), np.float64)
    ns, Ls, count = config.grid_widths, config.grid_depths, config.grid_networks
    options = {"residual": True, "weight_var": 1.0}
    shape = (len(ns), len(Ls))
    mean, noise, rms = np.zeros((*shape, 2, 2)), np.zeros((*shape, 2, 2)), np.zeros(shape)
    for i, n in enumerate(ns):
        for j, L in enumerate(Ls):
            K = sampled(x, next(keys), count, "relu", n, L, **options)
            mean[i, j], noise[i, j] = K.mean(0), K.std(0) / count**0.5
            rms[i, j] = np.sqrt(((K - limit) ** 2).mean())
    a, b = np.meshgrid(1 / np.asarray(ns), 1 / np.asarray(Ls), indexing="ij")
    claims, q = [], limit[0, 0]
    for name, i, j in (("variance", 0, 0), ("covariance", 0, 1)):
        weight = 1 / noise[:, :, i, j].ravel()
        design = np.stack([np.ones(a.size), a.ravel(), b.ravel(), b.ravel() ** 2], 1) * weight[:, None]
        cov = np.linalg.inv(design.T @ design)
        fit = cov @ design.T @ (mean[:, :, i, j].ravel() * weight)
        claims.append(
            close_to(f"both limits, {name} over sqrt(e)", fit[0] / q, limit[i, j] / q, config.commute_tolerance,
                     "q = e^(t/2) and the arc-cosine flow", np.sqrt(cov[0, 0]) / q)
        )  # fmt: skip
    power = slope_of(ns, rms[:, -1])
    claims.append(
        close_to(
            "deepest networks: power of the error in width", power, -0.5, config.slope_tolerance, "CLT at any depth"
        )
    )
    n, L = ns[0], Ls[-1]
    value, error = _spread(sampled(x[:1], next(keys), count, "linear", n, L, **options)[:, 0, 0])
    exact = 3 * ((1 + 2 / n) * (1 + (4 / L + 2 / L**2) / (n * (1 + 1 / L) ** 2)) ** L - 1)
    claims.append(
        at_most(
            f"linear, n={n}, L={L}: |z| of the kurtosis",
            abs(value - exact) / error,
            5,
            f"exact {exact:.4f}, bounded in L",
        )
    )
    loose = sampled(x, next(keys), 20, "relu", ns[-1], L, residual=True, weight_var=1.0, time=None)[:, 0, 0].mean()
    claims.append(at_least("branches of scale 1: variance over the limit", loose / q, 5, "(3/2)^L grows"))
    arrays |= {"grid widths": np.asarray(ns), "grid depths": np.asarray(Ls), "grid rms": rms}
    return claims


def _ensembles(config, keys, arrays):
    """Quartic term and shift of the variance of every ensemble beside the recursion, for tanh."""
    n, depth, x = config.quartic_width, 4, jnp.ones((1, 4))
    made = {"independent": Gaussian(), "orthogonal": Orthogonal(), "rank n/4": LowRank(n // 4),
            "8 blocks": BlockSparse(8), "fan-in n/4": Diluted(n // 4)}  # fmt: skip
    claims, rows = [], []
    independent = quartic(1.0, n, depth, "tanh", *VARIANCES["tanh"])
    for name in config.ensembles:
        Q = sampled(x, next(keys), config.ensemble_networks, "tanh", n, depth, weights=made[name])[:, 0, 0]
        theory = quartic(1.0, n, depth, "tanh", *VARIANCES["tanh"], weights=made[name])
        kurtosis, wanted = float(theory.excess_kurtosis), float(theory.shift)
        value, error = _spread(Q)
        shift, shift_error = Q.mean() - float(theory.variance), Q.std() / len(Q) ** 0.5
        rows.append((value, error, kurtosis, n * shift, n * shift_error, n * wanted))
        told = abs(shift - wanted) / (4 * shift_error + 0.15 * abs(wanted))
        claims += [
            at_most(f"{name}: kurtosis, relative error", abs(value / kurtosis - 1), config.quartic_tolerance, "recursion", error / kurtosis),
            at_most(f"{name}: shift of the variance, error over 4 s.e. + 15%", told, 1, "recursion"),
        ]  # fmt: skip
        if name in ("orthogonal", "rank n/4"):
            away = abs(value - float(independent.excess_kurtosis)) / error
            claims.append(
                at_least(f"{name}: kurtosis away from independent weights, z", away, 8, "the ensemble matters")
            )
    arrays |= {"ensemble names": np.asarray(config.ensembles), "ensembles": np.asarray(rows)}
    return claims + (_fixed(config, keys, arrays) if config.fixed_widths else [])


def _fixed(config, keys, arrays):
    """Rank and fan-in that stay as n grows, beside those that grow."""
    x, widths, claims = jnp.ones((1, 4)), config.fixed_widths, []
    for name, weights in {"rank n/4": lambda n: LowRank(n // 4), "rank 8": lambda n: LowRank(8)}.items():
        draw = lambda n, w=weights: sampled(x, next(keys), config.ensemble_networks, "relu", n, 3, weights=w(n))[
            :, 0, 0
        ]
        value, error = np.asarray([_spread(draw(n)) for n in widths]).T
        theory = np.asarray([float(excess_kurtosis(n, 3, "relu", weights=weights(n))) for n in widths])
        worst = np.max(np.abs(value - theory) / error)
        claims.append(at_most(f"{name}, ReLU: kurtosis, largest |z|", worst, 5, "(1 + 5/n)^L (1 + 2/r)^(L - 1)"))
        arrays |= {f"{name} kurtosis": value, f"{name} kurtosis error": error, f"{name} kurtosis theory": theory}
    for name, weights in {"fan-in 8": lambda n: Diluted(8), "fan-in n/4": lambda n: Diluted(n // 4)}.items():
        draw = lambda n, w=weights: sampled(x, next(keys), config.ensemble_networks, "tanh", n, 4, weights=w(n))[
            :, 0, 0
        ]
        Q = [draw(n) for n in widths]
        theory = [quartic(1.0, n, 4, "tanh", *VARIANCES["tanh"], weights=weights(n)) for n in widths]
        shift = np.asarray([q.mean() - float(t.variance) for q, t in zip(Q, theory, strict=True)])
        error = np.asarray([q.std() / len(q) ** 0.5 for q in Q])
        left, bar = shift[-1] / shift[0], error[-1] / abs(shift[0])
        if name == "fan-in 8":
            claims.append(at_least("fan-in 8: shift left at the largest width", left, 0.6, "changes the limit", bar))
        else:
            bound = 1.8 * widths[0] / widths[-1]
            claims.append(at_most("fan-in n/4: shift left at the largest width", left, bound, "falls as 1/n", bar))
        arrays |= {f"{name} shift": shift, f"{name} shift error": error,
                   f"{name} shift theory": np.asarray([float(t.shift) for t in theory])}  # fmt: skip
    arrays["fixed widths"] = np.asarray(widths)
    return claims


def plot(result: Result) -> Any:
    """Six panels, one for each part: points sampled, lines theory."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.6), layout="constrained")
    (kernels, chaos, quart), (density, commute, beyond) = axes
    for name in ("K", "NTK") if "widths" in a else ():
        kernels.loglog(a["widths"], a[f"{name} error"], "o", label=name)
        kernels.loglog(a["widths"], a[f"{name} error"][0] * (a["widths"] / a["widths"][0]) ** -0.5, "k-", lw=0.8)
    kernels.set(xlabel="width n", ylabel="relative error", title="kernels of sampled networks; lines $n^{-1/2}$")
    kernels.legend(*kernels.get_legend_handles_labels())
    if "chaos depths" in a:
        for i, name in enumerate(("ordered", "chaotic")):
            chaos.semilogy(a["chaos depths"], a[f"{name} gap"], "o", color=f"C{i}", label=name)
            chaos.semilogy(a["chaos depths"], a[f"{name} theory"], "-", color=f"C{i}", lw=1)
        chaos.set(xlabel="layer", ylabel=r"$|c - c^*|$", title="correlations decay on both sides of the edge")
        chaos.legend()
    else:
        chaos.plot(a["edge bias"], a["edge"])
        chaos.set(xlabel=r"$\sigma_b^2$", ylabel=r"$\sigma_w^2$", title="edge of chaos, tanh")
    for i, phi in enumerate(VARIANCES):
        if f"{phi} kurtosis" in a:
            quart.errorbar(
                a["quartic depths"],
                a[f"{phi} kurtosis"],
                2 * a[f"{phi} kurtosis error"],
                fmt="o",
                color=f"C{i}",
                ms=4,
                label=phi,
            )
            quart.plot(a["quartic depths"], a[f"{phi} kurtosis theory"], "-", color=f"C{i}", lw=1)
    quart.set(xlabel="hidden layers", ylabel="excess kurtosis", title="quartic term", yscale="log")
    quart.legend()
    for i, name in enumerate(("gauss", "edgeworth")):
        density.errorbar(
            a["density widths"], a[f"{name} L1"], 2 * a[f"{name} L1 error"], fmt="o", color=f"C{i}", ms=4, label=name
        )
        density.plot(
            a["density widths"],
            a[f"{name} L1"][0] * (a["density widths"] / a["density widths"][0]) ** -(1.0 + i),
            "k-",
            lw=0.8,
        )
    density.set(
        xlabel="width n",
        ylabel="L1 distance",
        title="density of an output; lines $n^{-1}$, $n^{-2}$",
        xscale="log",
        yscale="log",
    )
    density.legend()
    for i, L in enumerate(a.get("grid depths", ())):
        commute.loglog(
            a["grid widths"],
            a["grid rms"][:, i],
            "o-",
            ms=4,
            color=plt.get_cmap("viridis")(i / len(a["grid depths"])),
            label=f"L = {L}",
        )
    commute.set(
        xlabel="width n", ylabel="rms distance from the double limit", title="residual networks, branches $L^{-1/2}$"
    )
    commute.legend(*commute.get_legend_handles_labels(), fontsize=8)
    rows = a["ensembles"]
    for i, name in enumerate(a["ensemble names"]):
        beyond.errorbar(rows[i, 2], rows[i, 0], 2 * rows[i, 1], fmt="o", ms=5, label=str(name))
    ends = np.array([rows[:, 2].min() / 1.3, rows[:, 2].max() * 1.3])
    beyond.plot(ends, ends, "k-", lw=0.8)
    beyond.set(
        xlabel="kurtosis by the recursion",
        ylabel="sampled",
        title="beyond independent weights, tanh",
        xscale="log",
        yscale="log",
    )
    beyond.legend(fontsize=8)
    return figure
