r"""The bias of a step one can see: stationary variances of Langevin kernels against their exact finite-step laws.

On $E = x^\top K x/2$ a kernel that accepts everything is a linear map, $z' = A z + B\xi$, and leaves
$\Sigma = A \Sigma A^\top + B B^\top$ invariant, with the bias of its step. Each kernel runs at a ladder of steps on a random
K; measured variances must agree with the discrete law within five standard errors, and be so precise that they exclude the
law of the continuous dynamics wherever the two differ. The integrated autocorrelation time is known too,
$1 + 2[(I - A)^{-1} A \Sigma]_{ii}/\Sigma_{ii}$, so the effective sample sizes are held against theory.

Then beyond Gaussians: on a double well the error of $\langle x^2 \rangle$ against quadrature, fitted to a power of h: one for
ULA and `exact`, two for `OBABO`, two for `BAOAB`, nothing for MALA and HMC.

**See** Leimkuhler and Matthews, Rational construction of stochastic numerical methods (2013); Roberts and Tweedie (1996).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml import particles
from physml.core.float64 import in_float64
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Leimkuhler and Matthews, Rational construction of stochastic numerical methods (2013)",
    claim="kernels sample their exact finite-step laws; variances, autocorrelation times and orders in the step",
    time="2 min, smoke 10 s",
)

KERNELS = {
    "ULA": lambda E, h: particles.overdamped(E, h),
    "BAOAB": lambda E, h: particles.underdamped(E, h, friction=1.0),
    "OBABO": lambda E, h: particles.underdamped(E, h, friction=1.0, scheme="OBABO"),
    "exact": lambda E, h: particles.underdamped(E, h, friction=1.0, scheme="exact"),
    "MALA": lambda E, h: particles.mala(E, h),
    "HMC": lambda E, h: particles.hmc(E, h, 4, duration="uniform"),
}
LINEAR = ("ULA", "BAOAB", "OBABO", "exact")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    dim: int = 3
    chains: int = 4096
    time: float = 800.0  # of every chain on the Gaussian
    steps: tuple[float, ...] = (0.1, 0.2, 0.4)
    kernels: tuple[str, ...] = tuple(KERNELS)
    well_time: float = 2000.0
    well_steps: tuple[float, ...] = (0.06, 0.12, 0.24)  # of second-order schemes; those of first order take a fifth
    # the bounds of the claims
    resolution: float = 3.0  # standard errors between the laws of finite and of vanishing step
    time_tolerance: float = 0.1
    order_tolerance: float = 0.35

    def __post_init__(self):
        if min(self.dim, self.chains, *self.steps, *self.well_steps) <= 0 or set(self.kernels) - set(KERNELS):
            raise ValueError(f"sizes and steps must be positive and kernels among {', '.join(KERNELS)}; got {self}")


PAPER = Config()
SMOKE = Config(
    chains=512, time=120.0, steps=(0.4,), kernels=("ULA", "BAOAB", "MALA"), well_steps=(), time_tolerance=0.3
)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Run every kernel at every step on both energies."""
    claims: list = []
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {"steps": np.asarray(config.steps), "well_steps": np.asarray(config.well_steps)}
    rows = len(config.kernels) * (len(config.steps) + len(config.well_steps))
    k_key, run_key = jax.random.split(key)
    q = jnp.linalg.qr(jax.random.normal(k_key, (config.dim, config.dim)))[0]
    K = (q * jnp.linspace(0.5, 1.5, config.dim)[None, :]) @ q.T
    with progress_bar(rows, "step size", "run", show=progress) as bar:
        for i, name in enumerate(config.kernels):
            table = []
            for j, h in enumerate(config.steps):
                table.append(_gaussian(config, name, h, K, jax.random.fold_in(jax.random.fold_in(run_key, i), j)))
                bar.update()
            table = {column: np.asarray([row[column] for row in table]) for column in table[0]}
            arrays |= {f"{name} {column}": value for column, value in table.items()}
            claims.append(
                at_most(f"{name}: largest |z| of a variance", np.max(np.abs(table["z"])), 5, "the law at this step")
            )
            if name in ("ULA", "OBABO", "exact"):
                told = np.max(np.abs(table["bias"]) / table["error"])
                claims.append(at_least(f"{name}: bias over its error", told, config.resolution, "resolved"))
            if name in LINEAR:
                off = np.max(np.abs(table["time"] / table["exact time"] - 1))
                claims.append(
                    at_most(f"{name}: autocorrelation time, relative error", off, config.time_tolerance, "theory")
                )
            if len(config.well_steps) > 1:
                claims += _order(config, name, jax.random.fold_in(run_key, 1000 + i), arrays, bar)
    return Result(tuple(claims), metrics | {c.quantity: c.value for c in claims}, arrays)


def _gaussian(config, name, h, K, key):
    """Variances of all coordinates: z against the law at this step, their errors, the bias, the times."""
    energy = lambda x: 0.5 * x @ (K.astype(x.dtype) @ x)
    kernel = KERNELS[name](energy, h)
    burn = round(20 / h)
    moves = round(config.time / h)
    start = particles.run_chains(kernel, jnp.zeros((config.chains, config.dim)), burn, key=key, thin=burn, stats=False)
    square = lambda x: {"x": x, "x2": x**2}
    out = particles.run_chains(
        kernel, start.state, moves, key=jax.random.fold_in(key, 1), keep=False, observe=square
    ).check()
    if name in LINEAR:
        exact = _law(kernel, K)
        variance, time = exact[0], exact[1]
    else:
        variance, time = np.diag(np.linalg.inv(np.asarray(K, np.float64))), np.full(config.dim, np.nan)
    value = np.asarray(out.stats.mean["x2"], np.float64)
    error = np.sqrt(np.asarray(out.stats.variance["x2"]) / np.asarray(out.stats.ess["x2"]))
    limit = np.diag(np.linalg.inv(np.asarray(K, np.float64)))
    return {
        "value": value, "z": (value - variance) / error, "error": error, "exact": variance, "bias": variance - limit,
        "time": np.asarray(out.stats.time["x"]), "exact time": time,
    }  # fmt: skip


def _law(kernel, K):
    """Exact variances and times of the positions, in float64."""
    d = len(K)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf, kernel)
        energy = lambda x: 0.5 * x @ (jnp.asarray(np.asarray(K, np.float64)) @ x)
        wide = dataclasses.replace(wide, energy=energy)
        x = jnp.zeros(d)
        return (
            np.diag(particles.stationary_covariance(wide, x))[:d],
            np.asarray(particles.integrated_time(wide, x))[:d],
        )


def double_well(x: jax.Array) -> jax.Array:
    """(x^2 - 1)^2 + x/5."""
    return jnp.sum((x**2 - 1) ** 2 + 0.2 * x)


@in_float64
def _moment():
    x = jnp.linspace(-4.0, 4.0, 20001)
    w = jax.nn.softmax(-jax.vmap(double_well)(x[:, None]))
    return jnp.sum(w * x**2)


def _order(config, name, key, arrays, bar):
    """The error of <x^2> in the double well against h, and its power."""
    truth, errors, bars = float(_moment()), [], []
    first = name in ("ULA", "exact")
    for j, h in enumerate(config.well_steps):
        h = h / 5 if first else h
        kernel = KERNELS[name](double_well, h)
        start = jnp.where(jnp.arange(config.chains) % 2 == 0, 1.0, -1.0)[:, None]
        square = lambda x: x**2
        burn = round(20 / h)
        k = jax.random.fold_in(key, j)
        warm = particles.run_chains(kernel, start, burn, key=k, thin=burn, stats=False)
        moves = round(config.well_time / (5 if first else 1) / h)
        out = particles.run_chains(
            kernel, warm.state, moves, key=jax.random.fold_in(k, 1), keep=False, observe=square
        ).check()
        errors.append(float(out.stats.mean[0]) - truth)
        bars.append(float(jnp.sqrt(out.stats.variance[0] / out.stats.ess[0])))
        bar.update()
    errors, bars = np.asarray(errors), np.asarray(bars)
    arrays |= {f"{name} well": errors, f"{name} well error": bars}
    if name in ("MALA", "HMC"):
        return [at_most(f"{name}: double well, largest |z| of <x^2>", np.max(np.abs(errors) / bars), 5, "quadrature")]
    h, weight = np.log(config.well_steps), np.abs(errors) / bars
    design = np.stack([h, np.ones_like(h)], 1) * weight[:, None]
    cov = np.linalg.inv(design.T @ design)
    slope = (cov @ design.T @ (np.log(np.abs(errors)) * weight))[0]
    expected = {"ULA": 1, "exact": 1, "OBABO": 2, "BAOAB": 2}[name]
    return [close_to(f"{name}: order in h", slope, expected, config.order_tolerance, "theory", np.sqrt(cov[0, 0]))]


def plot(result: Result) -> Any:
    """Variances beside their laws, times beside theirs, and orders in the double well."""
    import matplotlib.pyplot as plt

    a = result.arrays
    names = [n for n in KERNELS if f"{n} value" in a]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for i, name in enumerate(names):
        ratio = lambda column, name=name: (
            a[f"{name} {column}"][:, 0] / (a[f"{name} exact"][:, 0] - a[f"{name} bias"][:, 0])
        )
        axes[0].errorbar(a["steps"], ratio("value"), 3 * ratio("error"), fmt="o", color=f"C{i}", ms=4, label=name)
        axes[0].plot(a["steps"], ratio("exact"), "-", color=f"C{i}", lw=1)
        axes[1].plot(a["steps"], a[f"{name} time"][:, 0], "o", color=f"C{i}", ms=4)
        axes[1].plot(a["steps"], a[f"{name} exact time"][:, 0], "-", color=f"C{i}", lw=1)
        if f"{name} well" in a:
            shift = 5 if name in ("ULA", "exact") else 1
            axes[2].errorbar(
                a["well_steps"] / shift,
                np.abs(a[f"{name} well"]),
                a[f"{name} well error"],
                fmt="o-",
                color=f"C{i}",
                ms=4,
            )
    axes[0].set(xlabel="step h", ylabel="variance / that of the target", title="points measured, lines exact")
    axes[0].legend(fontsize=8)
    axes[1].set(xlabel="step h", ylabel="moves", title="integrated autocorrelation time", yscale="log")
    axes[2].set(
        xlabel="step h", ylabel=r"$|\langle x^2\rangle - $ exact$|$", title="double well", xscale="log", yscale="log"
    )
    return figure
