r"""Ornstein-Uhlenbeck and a double well: is the simulator what its theory says it is?

Five questions, each with an answer known beforehand.

1. *Exact moments.* Euler and Maruyama's step for $dx = -kx\,dt + \sigma\,dW$ is the linear recursion
   $x' = (1 - kh)x + \sigma\sqrt h\,\xi$. Its mean and variance after n steps are known, and so is its stationary
   variance $\sigma^2 / (2k - k^2 h)$: not the $\sigma^2 / 2k$ of the equation. Both are measured.
2. *Strong order.* $(E|x_h(1) - x(1)|^2)^{1/2} \sim h^p$ on one Brownian path: geometric Brownian motion
   $dx = \mu x\,dt + s x\,dW$ has an exact solution (p = 1/2 for Euler and Maruyama, 1 for Milstein and Heun); the
   double well $dx = (x - x^3)\,dt + \sqrt{2T}\,dW$ has a reference on a finer grid (p = 1 for Euler and Maruyama,
   whose noise is additive here, 3/2 for SRA1). A step of length 2h sees, from two of length h with normals
   $(a_1, a_2)$ and $(b_1, b_2)$, exactly
   $\xi_1 = (a_1 + b_1)/\sqrt2,\ \xi_2 = [\sqrt3 (a_1 - b_1) + a_2 + b_2]/\sqrt8$:
   the same $\Delta W$ and the same $I_{10} = \int (W_s - W_t)\,ds$.
3. *Weak order.* $E\,x_h(1)^2 - E\,x(1)^2 \sim h^p$ for the Ornstein-Uhlenbeck process, p = 1 for Euler and
   Maruyama and 2 for SRA1. The exact process runs beside the scheme on the same noise, as a control variate.
4. *A double well*, $V = x^4/4 - x^2/2$: moments of $e^{-V/T}/Z$ by quadrature, and the rate of passage from -1 to 1
   against the mean first-passage time $\frac1T \int_{-1}^{1} dy\, e^{V(y)/T} \int_{-\infty}^y dz\, e^{-V(z)/T}$;
   Kramers' $\frac{\sqrt2}{2\pi} e^{-1/4T}$ is its limit at low temperature.
5. *The derivative.* k and $\sigma$ are recovered from the covariances of paths drawn from the exact transition law, by
   Adam through `ensemble`; they must come back to within the sampling error that the delta method predicts.

**References.** Kloeden and Platen, Numerical Solution of Stochastic Differential Equations (1992), chapters 10 and 14;
Roessler, SIAM J. Numer. Anal. 48, 922 (2010), SRA1; Gardiner, Handbook of Stochastic Methods (2004), section 5.2.7, mean
first-passage times; Kramers, Physica 7, 284 (1940); Duffie and Singleton, Econometrica 61, 929 (1993), simulated
moments.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from scipy import integrate as quadrature, stats

from physml.core import in_float64
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.integrate import SRA1, Dynamics, EulerMaruyama, ensemble
from physml.recipes._result import Claim, Info, Result, at_least, at_most, close_to
from physml.recipes.integrate import _simulators_orders as orders
from physml.recipes.integrate._simulators_figure import plot as plot

INFO = Info(
    paper="Kloeden and Platen, Numerical Solution of SDEs (1992); Roessler, SIAM J. Numer. Anal. 48, 922 (2010)",
    claim="Ornstein-Uhlenbeck and a double well: exact moments, weak and strong order of each method as measured "
    "slopes, a parameter recovered by gradient descent through the simulator",
    time="half a minute",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and parameters; times are in units of 1 / (curvature of the double well at its top)."""

    paths: int = 2**20  # of the Ornstein-Uhlenbeck process; the standard error of its variance is sqrt(2 / paths)
    rate: float = 1.0  # k
    amplitude: float = 1.2  # sigma
    step: float = 0.1  # h of Euler and Maruyama
    batches: int = 32  # of strong_paths paths each; slopes get their error from leaving one out
    strong_paths: int = 512
    finest: int = 12  # the reference of the double well has 2^finest steps to t = 1
    strong_levels: tuple[int, ...] = (6, 7, 8, 9)  # h = 2^-level
    weak_paths: int = 2**15
    weak_levels: tuple[int, ...] = (2, 3, 4, 5)
    strong_tolerance: float = 0.1
    weak_tolerance: float = 0.12
    temperature: float = 0.25
    well_paths: int = 2**18
    well_step: float = 0.025
    escape_paths: int = 2**13
    escape_temperatures: tuple[float, ...] = (0.15, 0.2, 0.3)
    escape_step: float = 2.0**-7
    escape_tolerance: float = 0.1  # relative
    true_rate: float = 1.3  # of the process behind the data that is fitted
    true_amplitude: float = 0.8
    data_paths: int = 2**13
    fit_paths: int = 2**13
    fit_steps: int = 150


PAPER = Config()
SMOKE = Config(
    paths=2**17,
    batches=16,
    strong_paths=64,
    finest=11,
    strong_levels=(5, 6, 7, 8),
    strong_tolerance=0.2,
    weak_paths=2**13,
    weak_levels=(2, 3, 4),
    weak_tolerance=0.25,
    well_paths=2**15,
    well_step=0.05,
    escape_paths=2**10,
    escape_temperatures=(0.3,),
    escape_step=2.0**-6,
    escape_tolerance=0.2,
    data_paths=2**11,
    fit_paths=2**11,
    fit_steps=100,
)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """All five parts. `ValueError` for a value that makes no sense, named."""
    _validate(config)
    parts = (_moments, orders.strong, orders.weak, _well, _escape, _recover)
    claims: list[Claim] = []
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    with progress_bar(len(parts), "simulators", "part", show=progress) as bar:
        for i, part in enumerate(parts):
            some, numbers, drawn = part(config, jax.random.fold_in(key, i))
            claims += some
            metrics |= numbers
            arrays |= {name: np.asarray(value) for name, value in drawn.items()}
            bar.update()
    return Result(tuple(claims), metrics, arrays)


def _validate(config: Config) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or not all(math.isfinite(v) and v > 0 for v in values):
            raise ValueError(f"{field.name} must be positive, got {value}")
    for name in ("strong_levels", "weak_levels"):
        levels = getattr(config, name)
        if len(levels) < 3 or list(levels) != sorted(set(levels)):
            raise ValueError(f"{name} must be at least three increasing levels, got {levels}")
    if max(config.strong_levels) > config.finest - 3:
        raise ValueError(
            f"finest must exceed the largest of strong_levels, {max(config.strong_levels)}, by 3 for its path to serve "
            f"as a reference; got {config.finest}"
        )
    if config.batches < 8:
        raise ValueError(f"batches must be at least 8 to estimate the error of a slope, got {config.batches}")
    if config.rate * config.step >= 1:
        raise ValueError(f"step must be below 1 / rate = {1 / config.rate:.3g}, got {config.step}")
    if config.well_step > 0.1 or config.escape_step > 0.1:
        raise ValueError(
            f"well_step and escape_step must be at most 0.1, the drift being cubic; got {config.well_step} and "
            f"{config.escape_step}"
        )


# 1. Exact moments


def _moments(config, key):
    k, sigma, h, start = config.rate, config.amplitude, config.step, 1.5
    steps = 5 * math.ceil(1.4 / (k * h))
    every = steps // 10 if steps % 10 == 0 else steps // 5
    ts = jnp.linspace(0.0, steps * h, steps + 1)
    x0 = jnp.full(config.paths, start)
    args = jnp.array([k, sigma])
    out = ensemble(orders.OU, x0, ts, key=key, args=args, method=EulerMaruyama(), save_every=every).check()
    xs = np.asarray(out.xs[1:])
    n = every * np.arange(1, len(xs) + 1)
    a = 1 - k * h
    mean, var = start * a**n, sigma**2 * h * (1 - a ** (2 * n)) / (1 - a * a)
    seen_mean = np.array([x.mean(dtype=np.float64) for x in xs])
    seen_var = np.array([x.astype(np.float64).var(ddof=1) for x in xs])
    mean_error, var_error = np.sqrt(var / config.paths), var * math.sqrt(2 / (config.paths - 1))
    z_mean, z_var = (seen_mean - mean) / mean_error, (seen_var - var) / var_error
    limit = sigma**2 / (2 * k)
    bias, predicted, error = seen_var[-1] - limit, limit * k * h / (2 - k * h), var_error[-1]
    recursion = "the scheme's own linear recursion, 5 standard errors"
    claims = [
        at_most("OU, Euler-Maruyama: largest |z| of the mean", np.abs(z_mean).max(), 5, recursion),
        at_most("OU, Euler-Maruyama: largest |z| of the variance", np.abs(z_var).max(), 5, recursion),
        at_least("OU: step-size bias of the variance, in standard errors", bias / error, 5, "resolved"),
        close_to("OU: step-size bias of the variance", bias, predicted, 5 * error, "sigma^2/2k * kh/(2 - kh)", error),
    ]
    metrics = {"ou_variance": seen_var[-1], "ou_variance_continuous": limit, "ou_variance_bias": bias}
    grid = np.arange(steps + 1)
    arrays = {
        "ou_t": n * h,
        "ou_var": seen_var,
        "ou_var_error": var_error,
        "ou_grid": grid * h,
        "ou_var_scheme": sigma**2 * h * (1 - a ** (2 * grid)) / (1 - a * a),
        "ou_var_exact": limit * (1 - np.exp(-2 * k * grid * h)),
    }
    return claims, metrics, arrays


# 4. The double well


def _potential(x):
    return x**4 / 4 - x**2 / 2


def _edge(temperature):
    """Where exp(-(V + 1/4) / T) = e^-40: (x^2 - 1)^2 / 4 = 40 T."""
    return math.sqrt(1 + math.sqrt(160 * temperature))


def _well(config, key):
    temperature, h = config.temperature, config.well_step
    steps = math.ceil(12 / h)
    ts = jnp.linspace(0.0, steps * h, steps + 1)
    # Even moments do not see the slow exchange between the wells; 12 relaxation times of theirs are enough.
    x0 = jnp.zeros(config.well_paths)
    args = jnp.asarray(temperature)
    out = ensemble(orders.WELL, x0, ts, key=key, args=args, method=SRA1(), save_every=steps).check()
    x = np.asarray(out.xs[-1], np.float64)
    weight = lambda y: math.exp(-(_potential(y) + 0.25) / temperature)
    edge = _edge(temperature)
    moment = lambda p: 2 * quadrature.quad(lambda y: y**p * weight(y), 0, edge, epsabs=1e-13)[0]
    z = moment(0)
    claims, metrics = [], {}
    for p in (2, 4):
        value, error, exact = np.mean(x**p), np.std(x**p) / math.sqrt(len(x)), moment(p) / z
        source = "quadrature of exp(-V/T)/Z, 5 standard errors"
        claims.append(close_to(f"double well: <x^{p}>", value, exact, 5 * error, source, error))
        metrics[f"well_x{p}"], metrics[f"well_x{p}_exact"] = value, exact
    grid = np.linspace(-2.2, 2.2, 301)
    counts, edges = np.histogram(x, bins=60, range=(-2.2, 2.2))
    arrays = {
        "well_x": (edges[1:] + edges[:-1]) / 2,
        "well_histogram": counts / len(x) / np.diff(edges),
        "well_grid": grid,
        "well_density": np.exp(-(_potential(grid) + 0.25) / temperature) / z,
    }
    return claims, metrics, arrays


def _passage_time(temperature):
    """Mean first-passage time from -1 to 1, the inner integral by a fine cumulative Simpson sum."""
    y = np.linspace(-_edge(temperature), 1, 20001)
    inner = quadrature.cumulative_simpson(np.exp(-_potential(y) / temperature), x=y, initial=0.0)
    inside = y >= -1
    outer = np.exp(_potential(y[inside]) / temperature) * inner[inside]
    return quadrature.simpson(outer, x=y[inside]) / temperature


def kramers(temperature: Any) -> Any:
    """Kramers' rate of escape from one well, overdamped: sqrt(V''(1) |V''(0)|) / 2 pi * exp(-barrier / T)."""
    return math.sqrt(2) / (2 * math.pi) * np.exp(-0.25 / temperature)


# A path stops where it first stands beyond 1; the second entry of the state is a clock that stops with it.
PASSAGE = Dynamics(
    lambda t, s, args: (jnp.where(s[0] < 1, s[0] - s[0] ** 3, 0.0), jnp.where(s[0] < 1, 1.0, 0.0)),
    lambda t, s, args: (jnp.where(s[0] < 1, jnp.sqrt(2.0 * args), 0.0), jnp.zeros_like(s[1])),
)


def _escape(config, key):
    h = config.escape_step
    temperatures = np.asarray(config.escape_temperatures)
    exact = np.array([1 / _passage_time(t) for t in temperatures])
    steps = math.ceil(5 / exact.min() / h)  # 1% are left at the end; their time is counted
    ts = h * jnp.arange(steps + 1, dtype=float)
    start = (jnp.full(config.escape_paths, -1.0), jnp.zeros(config.escape_paths))
    claims, metrics, rates, errors = [], {}, [], []
    for i, (temperature, reference) in enumerate(zip(temperatures, exact, strict=True)):
        one, args = jax.random.fold_in(key, i), jnp.asarray(temperature, ts.dtype)
        out = ensemble(PASSAGE, start, ts, key=one, args=args, method=EulerMaruyama(), save_every=steps).check()
        x, clock = (np.asarray(leaf[-1], np.float64) for leaf in out.xs)
        passed = int((x >= 1).sum())
        rates.append(passed / clock.sum())
        errors.append(rates[-1] / math.sqrt(max(passed, 1)))
        source = f"mean first-passage integral, {100 * config.escape_tolerance:.0f}%"
        tolerance = config.escape_tolerance * reference
        name = f"double well: rate of passage at T = {temperature:g}"
        claims.append(close_to(name, rates[-1], reference, tolerance, source, errors[-1]))
        metrics[f"passage_rate_{temperature:g}"] = rates[-1]
        metrics[f"passage_rate_exact_{temperature:g}"] = reference
        metrics[f"kramers_rate_{temperature:g}"] = kramers(temperature)
    curve = 1 / np.linspace(1 / (1.25 * temperatures.max()), 16, 60)  # down to where Kramers holds
    arrays = {
        "escape_temperature": temperatures,
        "escape_rate": np.array(rates),
        "escape_error": np.array(errors),
        "escape_curve_temperature": curve,
        "escape_curve": np.array([1 / _passage_time(t) for t in curve]),
        "escape_kramers": kramers(curve),
    }
    return claims, metrics, arrays


# 5. The derivative

LAGS = 4  # observations at t = 1/2, 1, 3/2, 2, from x_0 = 1
STEPS_PER_LAG = 10


def _features(xs):
    """What is fitted, per path (lags, paths) -> (features, paths): second moments and neighbours' products."""
    return jnp.concatenate([xs * xs, xs[1:] * xs[:-1]])


def _exact_paths(key, paths, k, sigma):
    """Ornstein-Uhlenbeck paths at the observed times from the exact transition law."""
    decay = math.exp(-k / 2)
    spread = sigma * math.sqrt((1 - decay**2) / (2 * k))
    xi = jax.random.normal(key, (LAGS, paths))

    def step(x, z):
        x = decay * x + spread * z
        return x, x

    return lax.scan(step, jnp.ones(paths), xi)[1]


def _simulated_moments(log_parameters, paths, key):
    """Mean features of `paths` simulated paths: differentiable in the logarithms of (k, sigma)."""
    steps = LAGS * STEPS_PER_LAG
    dtype = log_parameters.dtype
    ts = jnp.linspace(0.0, 0.5 * LAGS, steps + 1, dtype=dtype)
    x0, args = jnp.ones(paths, dtype), jnp.exp(log_parameters)
    out = ensemble(orders.OU, x0, ts, key=key, args=args, method=SRA1(), save_every=STEPS_PER_LAG, checkpoint=True)
    return _features(out.xs[1:]).mean(1)


def _objective(log_parameters, observed, precision, floor, paths, key):
    """log(floor + gap^T precision gap): the logarithm keeps the far start, whose gap is huge, from setting Adam's
    scale; floor is what sampling noise alone leaves per degree of freedom."""
    gap = _simulated_moments(log_parameters, paths, key) - observed
    return jnp.log(floor + gap @ precision @ gap)


@functools.partial(jax.jit, static_argnames=("paths", "steps"))
def _descend(start, observed, precision, floor, key, *, paths, steps):
    """Adam from `start`; the parameters after each step and the objective before it. The noise stays the same."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, steps))

    def step(carry, _):
        theta, state = carry
        value, slope = jax.value_and_grad(_objective)(theta, observed, precision, floor, paths, key)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies its integer count by floats
            update, state = optimizer.update(slope, state)
        theta = optax.apply_updates(theta, update)
        return (theta, state), (theta, value)

    return lax.scan(step, (start, optimizer.init(start)), length=steps)[1]


@in_float64
@functools.partial(jax.jit, static_argnames=("paths",))
def _gradient_gap(theta, observed, precision, floor, key, *, paths):
    """Largest difference between the gradient and central differences, over the largest entry of the gradient."""
    f = lambda theta: _objective(theta, observed, precision, floor, paths, key)
    slope = jax.grad(f)(theta)
    eps = 1e-5 * jnp.eye(len(theta), dtype=theta.dtype)
    difference = jnp.stack([(f(theta + e) - f(theta - e)) / 2e-5 for e in eps])
    return jnp.max(jnp.abs(slope - difference)) / jnp.max(jnp.abs(slope))


@functools.partial(jax.jit, static_argnames=("paths",))
def _sensitivity(theta, key, *, paths):
    return jax.jacfwd(lambda theta: _simulated_moments(theta, paths, key))(theta)


def _recover(config, key):
    data_key, fit_key, check_key = jax.random.split(key, 3)
    truth = np.array([config.true_rate, config.true_amplitude])
    data = _features(_exact_paths(data_key, config.data_paths, *map(float, truth)))
    observed = data.mean(1)
    covariance = np.cov(np.asarray(data, np.float64))
    precision = np.linalg.inv(covariance)
    start = jnp.log(jnp.array([0.4, 1.6]))
    weights = jnp.asarray(precision, start.dtype)
    factor = 1 / config.data_paths + 1 / config.fit_paths
    floor = jnp.asarray(factor, start.dtype)
    path, objective = _descend(start, observed, weights, floor, fit_key, paths=config.fit_paths, steps=config.fit_steps)
    found = np.exp(np.asarray(path[-1], np.float64))
    # Delta method: the features of the data and of the simulation are both noisy.
    slope = np.asarray(_sensitivity(path[-1], fit_key, paths=config.fit_paths), np.float64)
    errors = found * np.sqrt(np.diag(np.linalg.inv(slope.T @ precision @ slope)) * factor)
    gap = _gradient_gap(start, observed, weights, floor, check_key, paths=256)
    claims = [
        close_to(f"recovered {name}", found[i], truth[i], 5 * errors[i], "the truth, 5 sampling errors", errors[i])
        for i, name in enumerate(("rate k", "amplitude sigma"))
    ]
    freedom = len(observed) - 2
    statistic = math.exp(float(objective[-1])) / factor - 1
    claims += [
        at_most(
            "fit: chi^2 of the moments at the end",
            statistic,
            stats.chi2.isf(6e-7, freedom),
            f"quantile of chi^2 with {freedom} degrees of freedom, p = 6e-7",
        ),
        at_most(
            "gradient through the simulator: relative difference from central differences",
            gap,
            1e-6,
            "float64, eps 1e-5",
        ),
    ]
    metrics = {"recovered_rate": found[0], "recovered_amplitude": found[1], "fit_chi2": statistic}
    metrics |= {"rate_sampling_error": errors[0], "amplitude_sampling_error": errors[1], "gradient_gap": float(gap)}
    arrays = {
        "fit_path": np.exp(np.concatenate([np.asarray(start)[None], np.asarray(path)])),
        "fit_truth": truth,
        "fit_error": errors,
    }
    return claims, metrics, arrays
