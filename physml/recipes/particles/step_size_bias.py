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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from physml import particles
from physml.core.float64 import in_float64
from physml.metrics import power_law
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting
from physml.recipes.particles import _stationary
from physml.recipes.particles._stationary import stationary

INFO = RecipeInfo(
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
ORDERS = {"ULA": 1, "exact": 1, "OBABO": 2, "BAOAB": 2}  # of the linear maps, on the double well


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    dim: int = 3
    chains: int = 4096
    time: float = 800.0  # of every chain on the Gaussian
    steps: tuple[float, ...] = (0.1, 0.2, 0.4)
    kernels: tuple[str, ...] = setting(tuple(KERNELS), choices=KERNELS)
    well_time: float = 2000.0
    # Of second-order schemes; those of first order take a fifth.
    well_steps: tuple[float, ...] = setting((0.06, 0.12, 0.24), length=0)
    # the bounds of the claims
    resolution: float = 3.0  # standard errors between the laws of finite and of vanishing step
    time_tolerance: float = 0.1
    order_tolerance: float = 0.35


PAPER = Config()
SMOKE = Config(
    chains=512, time=120.0, steps=(0.4,), kernels=("ULA", "BAOAB", "MALA"), well_steps=(), time_tolerance=0.3
)


def _hotter(exact):
    warm = lambda kernel: dataclasses.replace(kernel, temperature=1.05 * kernel.temperature)
    return lambda kernel, *arguments, **options: exact(warm(kernel), *arguments, **options)


SABOTAGE = Sabotage("the chains are 5% hotter than their law", _stationary, "run_chains", _hotter)


@experiment
def run(study, config, key):
    k_key, run_key = jax.random.split(key)
    q = jnp.linalg.qr(jax.random.normal(k_key, (config.dim, config.dim)))[0]
    K = (q * jnp.linspace(0.5, 1.5, config.dim)[None, :]) @ q.T
    study.keep(steps=config.steps, gaussian={}, well={})
    for i, name in enumerate(study.each(config.kernels, "kernel")):
        _gaussian(study, config, name, K, jax.random.fold_in(run_key, i))
        if len(config.well_steps) > 1:
            _order(study, config, name, jax.random.fold_in(run_key, 1000 + i))


class Row(NamedTuple):
    """Variances and autocorrelation times of all coordinates at one step: measured, and by the law at this step."""

    value: Any
    error: Any
    exact: Any
    limit: Any  # of vanishing step
    time: Any
    exact_time: Any


def _gaussian(study, config, name, K, key):
    """Variances and times at all steps."""
    energy = lambda x: 0.5 * x @ (K.astype(x.dtype) @ x)
    limit, rows = np.diag(np.linalg.inv(np.asarray(K, np.float64))), []
    for j, h in enumerate(config.steps):
        kernel, start = KERNELS[name](energy, h), jnp.zeros((config.chains, config.dim))
        moves, one_key = round(config.time / h), jax.random.fold_in(key, j)
        found, times = stationary(kernel, start, moves, _powers, key=one_key, burn=round(20 / h))
        exact, exact_time = _law(kernel, K) if name in ORDERS else (limit, np.full(config.dim, np.nan))
        rows.append((*found["x2"], exact, limit, times["x"], exact_time))
    table = study.data.gaussian[name] = Row._make(np.asarray(column) for column in zip(*rows, strict=True))
    z = np.abs(table.value - table.exact) / table.error
    study.at_most(f"{name}: largest |z| of a variance", np.max(z), 5, "the law at this step")
    if name in ("ULA", "OBABO", "exact"):
        told = np.max(np.abs(table.exact - table.limit) / table.error)
        study.at_least(f"{name}: bias over its error", told, config.resolution, "resolved")
    if name in ORDERS:
        off = np.max(np.abs(table.time / table.exact_time - 1))
        study.at_most(f"{name}: autocorrelation time, relative error", off, config.time_tolerance, "theory")


def _powers(x):
    return {"x": x, "x2": x**2}


def _law(kernel, K):
    """Exact variances and times of the positions, in float64."""
    with jax.enable_x64(True):
        matrix = jnp.asarray(np.asarray(K, np.float64))
        wide = dataclasses.replace(kernel, energy=lambda x: 0.5 * x @ (matrix @ x))
        x = jnp.zeros(len(K))
        variances = np.diag(particles.stationary_covariance(wide, x))
        return variances[: len(K)], np.asarray(particles.integrated_time(wide, x))[: len(K)]


def double_well(x: jax.Array) -> jax.Array:
    """(x^2 - 1)^2 + x/5."""
    return jnp.sum((x**2 - 1) ** 2 + 0.2 * x)


@in_float64
def _moment():
    x = jnp.linspace(-4.0, 4.0, 20001)
    w = jax.nn.softmax(-jax.vmap(double_well)(x[:, None]))
    return jnp.sum(w * x**2)


def _order(study, config, name, key):
    """The error of <x^2> in the double well against h, and its power."""
    shorter = 5 if ORDERS.get(name) == 1 else 1
    steps = np.asarray(config.well_steps) / shorter
    start = jnp.where(jnp.arange(config.chains) % 2 == 0, 1.0, -1.0)[:, None]
    found = []
    for j, h in enumerate(steps.tolist()):
        kernel, moves = KERNELS[name](double_well, h), round(config.well_time / shorter / h)
        one_key = jax.random.fold_in(key, j)
        found.append(stationary(kernel, start, moves, _powers, key=one_key, burn=round(20 / h))[0]["x2"])
    value, error = np.squeeze(found, -1).T
    off = np.abs(value - float(_moment()))
    study.data.well[name] = (steps, off, error)
    if name in ORDERS:
        order = power_law(steps, off, error)[0]
        study.near(f"{name}: order in h", order, ORDERS[name], "theory", atol=config.order_tolerance)
    else:
        study.at_most(f"{name}: double well, largest |z| of <x^2>", np.max(off / error), 5, "quadrature")


def plot(result):
    """Variances beside their laws, times beside theirs, and orders in the double well."""
    d = result.data
    figure, (variances, times, *well) = draw.panels(1, 3 if d.well else 2)
    for i, (name, row) in enumerate(d.gaussian.items()):
        row, color = Row._make(column[:, 0] for column in row), f"C{i}"
        draw.measured(variances, d.steps, row.value / row.limit, row.error / row.limit, color=color, label=name)
        draw.theory(variances, d.steps, row.exact / row.limit, color=color)
        times.plot(d.steps, row.time, "o", color=color, ms=4)
        draw.theory(times, d.steps, row.exact_time, color=color)
        for axis in well:
            draw.measured(axis, *d.well[name], sigmas=1.0, fmt="o-", color=color)
            draw.label(axis, "double well", "step h", r"$|\langle x^2\rangle - $ exact$|$", log="xy")
    draw.label(variances, "points measured, lines exact", "step h", "variance / that of the target")
    draw.label(times, "integrated autocorrelation time", "step h", "moves", log="y")
    return figure
