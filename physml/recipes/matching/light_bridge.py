r"""The light Schrodinger bridge against plans that are known: conditional laws, the drift, the arrival.

The entropic plan between $p_0 = N(0, I)$ and $p_1$ at temperature $\epsilon$ is fitted in the form

$$\pi(x_1 | x_0) = \frac{e^{x_0 \cdot x_1/\epsilon}\, v(x_1)}{c(x_0)}, \qquad v = \sum_{k=1}^{K} a_k N(r_k, \epsilon S_k),$$

by $\min_v E_{p_0} \ln c - E_{p_1} \ln v$ on unpaired fresh samples of $p_0$ and $p_1$. The truth is such a plan
itself, with five components: $|r_k| = 5$ as in the benchmark of Gushchin et al., $\ln S$ normal of standard deviation
1/2, and $a_k$ so that each component has a fifth of the mass. The fit has K = 50 and knows none of this.

1. *Accuracy.* With both conditional laws replaced by the Gaussian of their moments,

   $$\mathrm{cBW}_2^2\text{-UVP} = 100\,\frac{E_{x_0}\, \mathrm{BW}_2^2\big(\hat\pi(\cdot|x_0), \pi(\cdot|x_0)\big)}{\mathrm{Var}(p_1)/2}\ \%.$$

   over 1000 test $x_0$. Moments of $\hat\pi$ come from 1000 samples at each, those of $\pi$ are exact, so even the
   truth does not score zero: what it scores with as many samples is the floor, and the claim is a ratio to it of at
   most 1.5. A fit is to take 30 s at most, compilation included.
2. *Marginal.* Energy distance between samples carried from $p_0$ and fresh ones of $p_1$, against that of two fresh
   sets, both means over twenty pairs.
3. *Drift.* $dx = g(t, x)\,dt + \sqrt\epsilon\,dW$ from one point must arrive at the fitted plan's own conditional law:
   mean and covariance of simulated ends within five standard errors of `conditional`, at three points.

Why fresh samples, and even ones: where $\epsilon$ is small the plan is nearly a map with jumps, and n independent samples
place a jump no better than the mass beyond it, $n^{-1/2}$; the error in UVP is linear in that mass. Batches are Sobol points,
shifted at random, through the maps that make samples of both laws from uniform numbers.

**See** Korotin, Gushchin and Burnaev, Light Schrodinger bridge (ICLR 2024); Gushchin, Kolesov, Mokrov, Karpikova,
Spiridonov, Burnaev and Korotin, Building the bridge of Schrodinger (NeurIPS 2023), the benchmark.
"""

import dataclasses
import functools
import math
import time
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array
from scipy.stats import qmc

from physml import data, matching
from physml.core import in_float64, noise
from physml.core.types import Key, Scalar
from physml.matching import LightBridge
from physml.metrics import gaussian_wasserstein2, mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, distances, draw, experiment

INFO = RecipeInfo(
    paper="Korotin, Gushchin and Burnaev, Light Schrodinger bridge (ICLR 2024)",
    claim="conditional laws of known entropic plans up to 64 dimensions, near the floor that sampling alone sets; the "
    "drift arrives at the plan",
    time="5 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """The plans, the fit, how it is judged, and the bounds of the claims."""

    dims: tuple[int, ...] = (2, 16, 64)
    epsilons: tuple[float, ...] = (0.1, 1.0, 10.0)
    truth_components: int = 5
    components: int = 50
    steps: tuple[int, ...] = (3000, 1500, 1500)  # of the fit, for each epsilon
    batch_sizes: tuple[int, ...] = (2048, 1024, 512)  # at first, for each dimension
    growth: int = 16
    points: int = 1000  # x0 at which conditional laws are compared
    samples: int = 1000  # of x1 at each
    marginal: int = 2000  # samples in an energy distance
    paths: int = 1000  # of the drift's SDE from each of three points
    path_steps: int = 800  # at 200 Euler's step shows in the covariance at eps = 0.1
    figure_epsilons: tuple[float, ...] = (0.02, 0.2, 2.0)
    figure_steps: int = 1500
    figure_batch: int = 1024
    # the bounds of the claims
    ratio: float = 1.5
    seconds: float = 30.0  # of wall time; the small configuration runs beside other tests and does not judge it
    energy_ratio: float = 2.0

    def rules(self):
        return (
            (len(self.steps) == len(self.epsilons), f"steps needs one number for each of epsilons {self.epsilons}"),
            (len(self.batch_sizes) == len(self.dims), f"batch_sizes needs one number for each of dims {self.dims}"),
            (self.samples > max(self.dims), f"samples must exceed the dimensions {self.dims}"),
        )


PAPER = Config()
SMOKE = Config(
    dims=(2,), epsilons=(1.0,), steps=(600,), batch_sizes=(1024,), growth=1, points=200, marginal=1000,
    path_steps=200, seconds=300.0, figure_epsilons=(1.0,), figure_steps=150, figure_batch=256,
)  # fmt: skip


SABOTAGE = (
    Sabotage(
        "the components of the fitted plan are shifted by three hundredths of their distance", matching, "light_bridge",
        lambda fit: lambda *ends, **options:
            eqx.tree_at(lambda plan: plan.r, fit(*ends, **options), replace_fn=lambda r: r + 0.15),
    ),
    Sabotage(
        "the fit stops after twenty steps", matching, "light_bridge",
        lambda fit: lambda *ends, **options: fit(*ends, **(options | {"steps": 20})),
    ),
    Sabotage(
        "the drift is a twentieth too strong", LightBridge, "drift",
        lambda exact: lambda self, t, x, args=None: 1.05 * exact(self, t, x, args),
    ),
)  # fmt: skip


@experiment
def run(study, config, key):
    shape = (len(config.dims), len(config.epsilons))
    study.keep(config=config, uvp=np.zeros(shape), floor=np.zeros(shape), bridges={})
    for cell, (i, j) in study.each(enumerate(np.ndindex(shape)), "fit"):
        cell_key = jax.random.fold_in(key, cell)
        case = f"D = {config.dims[i]}, eps = {config.epsilons[j]:g}"
        truth, plan, seconds = _fit(config, i, j, jax.random.fold_in(cell_key, 0))
        study.data.uvp[i, j], study.data.floor[i, j] = _judge(study, config, truth, plan, case, cell_key)
        study.at_most(f"seconds to fit, {case}", seconds, config.seconds, "two CPU cores")
    for epsilon in study.each(config.figure_epsilons, "figure"):
        study.data.bridges[epsilon] = _paths(config, epsilon, jax.random.fold_in(key, 10_000))


def _fit(config, i, j, key):
    """A true plan, the plan fitted to samples of its ends, and the seconds that took."""
    dim, epsilon, (truth_key, key) = config.dims[i], config.epsilons[j], jax.random.split(key)
    truth = _truth(dim, epsilon, config.truth_components, truth_key)
    n, normal = config.batch_sizes[i], lambda u: math.sqrt(2) * lax.erf_inv(2 * u - 1)
    source = lambda key: normal(_even(key, n, dim))

    def target(key):
        x, u, z = jnp.split(_even(key, n, 2 * dim + 1), (dim, dim + 1), axis=1)
        return _carried(truth, normal(x), u[:, 0], normal(z))

    started = time.perf_counter()
    options = {"components": config.components, "steps": config.steps[j], "growth": config.growth}
    plan = matching.light_bridge(source, target, epsilon=epsilon, key=key, **options)
    jax.block_until_ready(plan)
    return truth, plan, time.perf_counter() - started


def _judge(study, config, truth, plan, case, key):
    """The claims about one fitted plan; returns its cBW-UVP and the floor."""
    keys, dim = jax.random.split(jax.random.fold_in(key, 1), 8), truth.r.shape[1]
    x = _normal(keys[2], config.points, dim)
    variance = float(_arrivals(truth, keys[3], 20000).var(0).sum())
    one = lambda p, key: 200 * np.asarray(bures_gaps(p, truth, x, key, samples=config.samples), np.float64) / variance
    value, floor = one(plan, keys[4]), one(truth, keys[5])
    # The same x for both, so their errors belong together: that of the ratio by its first-order expansion.
    mean, least = value.mean(), floor.mean()
    error = mean_and_error((value - mean / least * floor) / least).error
    source = "exact samples, the same protocol"
    study.at_most(f"cBW-UVP over its floor, {case}", mean / least, config.ratio, source, error=error)

    sets = lambda plan, key: [_arrivals(plan, k, config.marginal) for k in jax.random.split(key, 20)]
    fresh = sets(truth, keys[6])
    apart = lambda others: distances.batchwise(distances.energy_distance, fresh, others).mean()
    bound, source = config.energy_ratio * apart(sets(truth, keys[0])), f"{config.energy_ratio} x that of two fresh sets"
    study.at_most(f"energy distance to fresh data, {case}", apart(sets(plan, keys[7])), bound, source)

    z_mean, z_cov = [], []
    paths = _simulate(plan, x[:3], keys[1], config.paths, config.path_steps, config.path_steps)
    for start, ends in zip(x, np.asarray(paths[:, :, -1], np.float64), strict=False):
        mean_exact, cov_exact = (np.asarray(v, np.float64) for v in moments(plan, start))
        shift = ends - mean_exact
        z_mean.append(np.abs(mean_and_error(ends).z(mean_exact)).max())
        z_cov.append(np.abs(mean_and_error(shift[:, :, None] * shift[:, None, :]).z(cov_exact)).max())
    source = "the fitted plan's conditional law"
    study.at_most(f"drift: largest |z| of the mean of x1, {case}", max(z_mean), 5, source)
    study.at_most(f"drift: largest |z| of the covariance of x1, {case}", max(z_cov), 5, source)
    return mean, least


def _normal(key: Key, n: int, dim: int) -> Array:
    """n samples (n, dim) of N(0, I)."""
    return noise.normal(key, 0, jax.ShapeDtypeStruct((dim,), jnp.float32), jnp.arange(n)).T


@partial(jax.jit, static_argnums=(0, 2))
def _truth(dim: int, epsilon: Scalar, components: int, key: Key) -> LightBridge:
    """A plan with random parameters, each component with the same mass under the source."""
    r_key, s_key, x_key = jax.random.split(key, 3)
    r = jax.random.normal(r_key, (components, dim))
    r = 5 * r / jnp.linalg.norm(r, axis=1, keepdims=True)
    log_s = 0.5 * jax.random.normal(s_key, (components, dim))
    x, s = _normal(x_key, 4096, dim), jnp.exp(log_s)
    eps = jnp.asarray(epsilon, r.dtype)
    energy = (0.5 * (x * x) @ s.T + x @ r.T) / eps

    def balance(_, log_a):
        log_w = jax.nn.log_softmax(energy + log_a[None, :], axis=1)
        return log_a - jax.nn.logsumexp(log_w, axis=0) + jnp.log(len(x) / components)

    return LightBridge(lax.fori_loop(0, 1000, balance, -0.5 * s.sum(1) / eps), r, log_s, eps)


def drawn(plan: LightBridge, x: Array, key: Key) -> Array:
    """One x1 for each row of x (n, d): `plan.sample` with matrix products for the weights."""
    which, normal = jax.random.split(key)
    return _carried(plan, x, jax.random.uniform(which, (len(x),)), _normal(normal, *x.shape))


def _carried(plan, x, u, z):
    """x1 (n, d) of the rows of x: the component by its cumulated weights at u (n,) in (0, 1), its Gaussian by z."""
    s = jnp.exp(plan.log_s)
    logits = plan.log_a[None, :] + (0.5 * (x * x) @ s.T + x @ plan.r.T) / plan.epsilon
    k = jnp.sum(jnp.cumsum(jax.nn.softmax(logits, axis=1), axis=1)[:, :-1] < u[:, None], axis=1)
    return plan.r[k] + s[k] * x + jnp.sqrt(plan.epsilon * s[k]) * z


def _even(key: Key, n: int, dim: int) -> Array:
    """n points of (0, 1)^dim: a Sobol sequence, shifted by one random vector modulo 1.

    Each point is uniform, so means over a batch have no bias; together they are even, and means err by less than those
    of independent points.
    """
    u = jnp.asarray(_sobol(n, dim)) + jax.random.bits(key, (1, dim), jnp.uint32)
    return ((u >> jnp.uint32(9)).astype(jnp.float32) + 0.5) / 2**23


@functools.cache
def _sobol(n: int, dim: int) -> np.ndarray:
    return (qmc.Sobol(dim, rng=0).random(n) * 2**32).astype(np.uint32)


@partial(jax.jit, static_argnums=2)
def _arrivals(plan, key, n):
    """n samples of x1, from a source N(0, I)."""
    source, kernel = jax.random.split(key)
    return drawn(plan, _normal(source, n, plan.r.shape[1]), kernel)


def moments(plan: LightBridge, x: Array) -> tuple[Array, Array]:
    """Mean (d,) and covariance (d, d) of x1 given x, exactly."""
    law = plan.conditional(x)
    w = jnp.exp(law.log_weights)
    mean = w @ law.means
    apart = law.means - mean[None, :]
    return mean, jnp.diag(w @ law.variances) + (w[:, None] * apart).T @ apart


@partial(jax.jit, static_argnames="samples")
def bures_gaps(plan: LightBridge, truth: LightBridge, x: Array, key: Key, *, samples: int) -> Array:
    """BW_2^2 at each row of x between the moments of sampled x1 and those of the truth, (n,)."""

    def one(args):
        x, key = args
        ends = drawn(plan, jnp.broadcast_to(x[None, :], (samples, len(x))), key)
        return _square_of_w2(ends.mean(0), jnp.cov(ends.T), *moments(truth, x))

    return lax.map(one, (x, jax.random.split(key, len(x))), batch_size=50)


# The traces cancel.
_square_of_w2 = in_float64(lambda *gaussians: gaussian_wasserstein2(*gaussians) ** 2)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _simulate(plan, x, key, count, steps, every):
    """So many paths from each x, (len(x), count, times, d)."""
    ts, keys = jnp.linspace(0.0, 1.0, steps + 1), jax.random.split(key, (len(x), count))
    return jax.vmap(jax.vmap(lambda x, key: plan.simulate(x, ts, key=key).xs[::every], (None, 0)))(x, keys)


def _paths(config, epsilon, key):
    """The bridge from N(0, I) to the swiss roll for the figure: data, arrivals, and a few paths from three starts."""
    data_key, fit_key, path_key, sample_key = jax.random.split(key, 4)
    roll = lambda key, n=config.figure_batch: 1.6 * data.swiss_roll(n, key=key)
    options = {"components": config.components, "steps": config.figure_steps, "growth": 1, "key": fit_key}
    plan = matching.light_bridge(partial(_normal, n=config.figure_batch, dim=2), roll, epsilon=epsilon, **options)
    starts = jnp.asarray([[-1.2, 0.9], [1.3, 0.7], [0.0, -1.3]])
    return roll(data_key, 1500), _arrivals(plan, sample_key, 1500), _simulate(plan, starts, path_key, 6, 400, 4)


def plot(result):
    """Bridges to the swiss roll by temperature; the unexplained variance beside its floor."""
    d = result.data
    config, columns = d.config, max(len(d.bridges), len(d.config.epsilons))
    figure, axes = draw.panels(2, columns, width=4.0, squeeze=False)
    for axis, (epsilon, (roll, arrivals, paths)) in zip(axes[0], d.bridges.items(), strict=False):
        draw.cloud(axis, roll, color="0.7", label="data")
        draw.cloud(axis, arrivals, color="C0", label="samples of the plan")
        for i, group in enumerate(np.asarray(paths)):
            axis.plot(*group.transpose(2, 1, 0), color=f"C{i + 1}", lw=0.8, alpha=0.8)
            axis.plot(*group[0, 0], "o", color=f"C{i + 1}", mec="k", ms=7, zorder=4)
            axis.plot(*group[:, -1].T, "x", color="k", ms=4, mew=1, zorder=5)
        draw.label(axis, rf"$\epsilon = {epsilon:g}$", "$x_1$", "$x_2$", legend={"markerscale": 3})
    where = np.arange(len(config.dims))
    for j, (axis, epsilon) in enumerate(zip(axes[1], config.epsilons, strict=False)):
        axis.plot(where, d.floor[:, j], "k_", ms=26, mew=2, label="floor: exact samples")
        axis.plot(where, config.ratio * d.floor[:, j], "_", color="0.6", ms=26, label=f"{config.ratio:g} x floor")
        axis.plot(where, d.uvp[:, j], "o", color="C3", label=f"light bridge, K = {config.components}")
        axis.set_xticks(where, config.dims)
        limits = (-0.6, len(where) - 0.4)
        draw.label(axis, rf"$\epsilon = {epsilon:g}$", "dimension", "cBW-UVP (%)", log="y", xlim=limits)
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    return figure
