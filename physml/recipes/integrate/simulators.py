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

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from scipy import integrate as quadrature, stats

from physml import train
from physml.core import in_float64
from physml.integrate import SRA1, Dynamics, EulerMaruyama, ensemble
from physml.metrics import mean_and_error
from physml.metrics.estimate import Estimate
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting
from physml.recipes.integrate import _simulators_orders as orders

INFO = RecipeInfo(
    paper="Kloeden and Platen, Numerical Solution of SDEs (1992); Roessler, SIAM J. Numer. Anal. 48, 922 (2010)",
    claim="Ornstein-Uhlenbeck and a double well: exact moments, weak and strong order of each method as measured "
    "slopes, a parameter recovered by gradient descent through the simulator",
    time="half a minute",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes and parameters; times are in units of 1 / (curvature of the double well at its top)."""

    paths: int = 2**20  # of the Ornstein-Uhlenbeck process; the standard error of its variance is sqrt(2 / paths)
    rate: float = 1.0  # k
    amplitude: float = 1.2  # sigma
    step: float = 0.1  # h of Euler and Maruyama
    batches: int = setting(32, least=8.0)  # of strong_paths paths each; slopes get their error from leaving one out
    strong_paths: int = 512
    finest: int = 12  # the reference of the double well has 2^finest steps to t = 1
    strong_levels: tuple[int, ...] = setting((6, 7, 8, 9), length=3)  # h = 2^-level
    weak_paths: int = 2**15
    weak_levels: tuple[int, ...] = setting((2, 3, 4, 5), length=3)
    strong_tolerance: float = 0.1
    weak_tolerance: float = 0.12
    temperature: float = 0.25
    well_paths: int = 2**18
    # The drift is cubic: steps in the well are small.
    well_step: float = setting(0.025, most=0.1)
    escape_paths: int = 2**13
    escape_temperatures: tuple[float, ...] = (0.15, 0.2, 0.3)
    escape_step: float = setting(2.0**-7, most=0.1)
    escape_tolerance: float = 0.1  # relative
    true_rate: float = 1.3  # of the process behind the data that is fitted
    true_amplitude: float = 0.8
    data_paths: int = 2**13
    fit_paths: int = 2**13
    fit_steps: int = 150

    def rules(self):
        levels = (self.strong_levels, self.weak_levels)
        return (
            (all(list(some) == sorted(set(some)) for some in levels), "strong_levels and weak_levels increase"),
            (max(self.strong_levels) <= self.finest - 3, "finest exceeds strong_levels by 3, as a reference"),
            (self.rate * self.step < 1, "step is below 1 / rate"),
        )


PAPER = Config()
SMOKE = Config(
    paths=2**17, batches=16, strong_paths=64, finest=11, strong_levels=(5, 6, 7, 8), strong_tolerance=0.2,
    weak_paths=2**13, weak_levels=(2, 3, 4), weak_tolerance=0.25, well_paths=2**15, well_step=0.05,
    escape_paths=2**10, escape_temperatures=(0.3,), escape_step=2.0**-6, escape_tolerance=0.2,
    data_paths=2**11, fit_paths=2**11, fit_steps=100,
)  # fmt: skip


def _stronger_drift(exact):
    def step(self, dynamics, t, h, x, xi, args):
        drift = lambda t, x, args: jax.tree.map(lambda f: 1.05 * f, dynamics.drift(t, x, args))
        return exact(self, Dynamics(drift, dynamics.noise, calculus=dynamics.calculus), t, h, x, xi, args)

    return step


SABOTAGE = (
    Sabotage("the drift of Euler and Maruyama is 5% too strong", EulerMaruyama, "step", _stronger_drift),
    Sabotage(
        "SRA1 forgets its second normal", SRA1, "step",
        lambda exact: lambda self, dynamics, t, h, x, xi, args: exact(
            self, dynamics, t, h, x, (xi[0], 0.0 * xi[1]), args
        ),
    ),
)  # fmt: skip


@experiment
def run(study, config, key):
    parts = (_moments, orders.strong, orders.weak, _well, _escape, _recover)
    for i, part in enumerate(study.each(parts)):
        part(study, config, jax.random.fold_in(key, i))


# 1. Exact moments


def _moments(study, config, key):
    """Mean and variance of Euler and Maruyama's process against their recursion."""
    k, sigma, h, start = config.rate, config.amplitude, config.step, 1.5
    steps = 5 * math.ceil(1.4 / (k * h))
    every = steps // 10 if steps % 10 == 0 else steps // 5
    ts, x0 = jnp.linspace(0.0, steps * h, steps + 1), jnp.full(config.paths, start)
    options = {"args": jnp.array([k, sigma]), "method": EulerMaruyama(), "save_every": every}
    xs = np.asarray(ensemble(orders.OU, x0, ts, key=key, **options).check().xs[1:])
    a, n = 1 - k * h, every * np.arange(1, len(xs) + 1)
    variance = lambda n: sigma**2 * h * (1 - a ** (2 * n)) / (1 - a * a)
    mean, var = start * a**n, variance(n)
    seen_mean = np.array([x.mean(dtype=np.float64) for x in xs])
    seen = Estimate(np.array([x.astype(np.float64).var(ddof=1) for x in xs]), var * math.sqrt(2 / (config.paths - 1)))
    z_mean = (seen_mean - mean) / np.sqrt(var / config.paths)
    recursion = "the scheme's own linear recursion, 5 standard errors"
    study.at_most("OU, Euler-Maruyama: largest |z| of the mean", np.abs(z_mean).max(), 5, recursion)
    study.at_most("OU, Euler-Maruyama: largest |z| of the variance", np.abs(seen.z(var)).max(), 5, recursion)
    limit = sigma**2 / (2 * k)
    bias = Estimate(seen.value[-1] - limit, seen.error[-1])
    study.at_least("OU: step-size bias of the variance, in standard errors", bias.z(0), 5, "resolved")
    predicted = limit * k * h / (2 - k * h)
    study.near("OU: step-size bias of the variance", bias, predicted, "sigma^2/2k * kh/(2 - kh)", sigmas=5.0)
    study.measure(ou_variance=seen.value[-1], ou_variance_continuous=limit)
    equation = lambda n: limit * (1 - np.exp(-2 * k * n * h))
    grid = np.arange(steps + 1)
    study.keep(ou_scheme=(grid * h, variance(grid) - equation(grid)))
    study.keep(ou_seen=(n * h, seen.value - equation(n), seen.error))


# 4. The double well


def _potential(x):
    return x**4 / 4 - x**2 / 2


def _edge(temperature):
    """Where exp(-(V + 1/4) / T) = e^-40: (x^2 - 1)^2 / 4 = 40 T."""
    return math.sqrt(1 + math.sqrt(160 * temperature))


def _well(study, config, key):
    """Stationary moments of SRA1 in the double well against quadrature."""
    temperature, h = config.temperature, config.well_step
    steps = math.ceil(12 / h)
    # Even moments do not see the slow exchange between the wells; 12 relaxation times of theirs are enough.
    ts, x0 = jnp.linspace(0.0, steps * h, steps + 1), jnp.zeros(config.well_paths)
    options = {"args": jnp.asarray(temperature), "method": SRA1(), "save_every": steps}
    x = np.asarray(ensemble(orders.WELL, x0, ts, key=key, **options).check().xs[-1], np.float64)
    weight = lambda y: np.exp(-(_potential(y) + 0.25) / temperature)
    moment = lambda p: 2 * quadrature.quad(lambda y: y**p * weight(y), 0, _edge(temperature), epsabs=1e-13)[0]
    z = moment(0)
    for p in (2, 4):
        source = "quadrature of exp(-V/T)/Z, 5 standard errors"
        study.near(f"double well: <x^{p}>", mean_and_error(x**p), moment(p) / z, source, sigmas=5.0)
    grid = np.linspace(-2.2, 2.2, 301)
    study.keep(well=x, well_grid=grid, well_density=weight(grid) / z)


def _passage_time(temperature):
    """Mean first-passage time from -1 to 1, the inner integral by a fine cumulative Simpson sum."""
    y = np.linspace(-_edge(temperature), 1, 20001)
    inner = quadrature.cumulative_simpson(np.exp(-_potential(y) / temperature), x=y, initial=0.0)
    inside = y >= -1
    outer = np.exp(_potential(y[inside]) / temperature) * inner[inside]
    return quadrature.simpson(outer, x=y[inside]) / temperature


def kramers(temperature):
    """Kramers' rate of escape from one well, overdamped: sqrt(V''(1) |V''(0)|) / 2 pi * exp(-barrier / T)."""
    return math.sqrt(2) / (2 * math.pi) * np.exp(-0.25 / temperature)


# A path stops where it first stands beyond 1; the second entry of the state is a clock that stops with it.
PASSAGE = Dynamics(
    lambda t, s, args: (jnp.where(s[0] < 1, s[0] - s[0] ** 3, 0.0), jnp.where(s[0] < 1, 1.0, 0.0)),
    lambda t, s, args: (jnp.where(s[0] < 1, jnp.sqrt(2.0 * args), 0.0), jnp.zeros_like(s[1])),
)


def _escape(study, config, key):
    """Rates of passage between the wells against the integral of the mean first-passage time."""
    h, temperatures = config.escape_step, np.asarray(config.escape_temperatures)
    exact = np.array([1 / _passage_time(t) for t in temperatures])
    steps = math.ceil(5 / exact.min() / h)  # 1% are left at the end; their time is counted
    ts = h * jnp.arange(steps + 1, dtype=float)
    start = (jnp.full(config.escape_paths, -1.0), jnp.zeros(config.escape_paths))
    rates = []
    for i, (temperature, reference) in enumerate(zip(temperatures, exact, strict=True)):
        options = {"args": jnp.asarray(temperature, ts.dtype), "method": EulerMaruyama(), "save_every": steps}
        out = ensemble(PASSAGE, start, ts, key=jax.random.fold_in(key, i), **options).check()
        x, clock = (np.asarray(leaf[-1], np.float64) for leaf in out.xs)
        passed = int((x >= 1).sum())
        rates.append(rate := Estimate(passed / clock.sum(), passed / clock.sum() / math.sqrt(max(passed, 1))))
        source = f"mean first-passage integral, {100 * config.escape_tolerance:.0f}%"
        quantity = f"double well: rate of passage at T = {temperature:g}"
        study.near(quantity, rate, reference, source, rtol=config.escape_tolerance)
        study.metrics[f"kramers_rate_{temperature:g}"] = kramers(temperature)
    cold = np.linspace(1 / (1.25 * temperatures.max()), 16, 60)  # 1/T, down to where Kramers holds
    study.keep(escape=(1 / temperatures, *np.transpose(rates)))
    study.keep(escape_theory=(cold, [1 / _passage_time(1 / b) for b in cold]), escape_kramers=(cold, kramers(1 / cold)))


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
    step = lambda x, z: (decay * x + spread * z,) * 2
    return lax.scan(step, jnp.ones(paths), jax.random.normal(key, (LAGS, paths)))[1]


def _simulated_moments(log_parameters, paths, key):
    """Mean features of `paths` simulated paths: differentiable in the logarithms of (k, sigma)."""
    steps, dtype = LAGS * STEPS_PER_LAG, log_parameters.dtype
    ts = jnp.linspace(0.0, 0.5 * LAGS, steps + 1, dtype=dtype)
    options = {"method": SRA1(), "save_every": STEPS_PER_LAG, "checkpoint": True}
    out = ensemble(orders.OU, jnp.ones(paths, dtype), ts, key=key, args=jnp.exp(log_parameters), **options)
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
    loss = lambda theta: _objective(theta, observed, precision, floor, paths, key)
    found = train.minimise(loss, start, optimizer, steps=steps, history=True)
    return found.history, found.losses


@in_float64
@functools.partial(jax.jit, static_argnames=("paths",))
def _gradient_gap(theta, observed, precision, floor, key, *, paths):
    """Largest difference between the gradient and central differences, over the largest entry of the gradient."""
    f = lambda theta: _objective(theta, observed, precision, floor, paths, key)
    slope = jax.grad(f)(theta)
    eps = 1e-5 * jnp.eye(len(theta), dtype=theta.dtype)
    difference = jnp.stack([(f(theta + e) - f(theta - e)) / 2e-5 for e in eps])
    return jnp.max(jnp.abs(slope - difference)) / jnp.max(jnp.abs(slope))


def _recover(study, config, key):
    """Rate and amplitude from the moments of data, by descent through the simulator."""
    data_key, fit_key, check_key = jax.random.split(key, 3)
    truth = (config.true_rate, config.true_amplitude)
    data = _features(_exact_paths(data_key, config.data_paths, *truth))
    precision = np.linalg.inv(np.cov(np.asarray(data, np.float64)))
    start = jnp.log(jnp.array([0.4, 1.6]))
    factor = 1 / config.data_paths + 1 / config.fit_paths
    problem = (data.mean(1), jnp.asarray(precision, start.dtype), jnp.asarray(factor, start.dtype))
    path, objective = _descend(start, *problem, fit_key, paths=config.fit_paths, steps=config.fit_steps)
    found = np.exp(np.asarray(path[-1], np.float64))
    # Delta method: the features of the data and of the simulation are both noisy.
    sensitivity = jax.jit(jax.jacfwd(lambda theta: _simulated_moments(theta, config.fit_paths, fit_key)))
    slope = np.asarray(sensitivity(path[-1]), np.float64)
    errors = found * np.sqrt(np.diag(np.linalg.inv(slope.T @ precision @ slope)) * factor)
    for i, name in enumerate(("rate k", "amplitude sigma")):
        recovered = Estimate(found[i], errors[i])
        study.near(f"recovered {name}", recovered, truth[i], "the truth, 5 sampling errors", sigmas=5.0)
    freedom = len(data) - 2
    quantile, source = stats.chi2.isf(6e-7, freedom), f"quantile of chi^2 with {freedom} degrees of freedom, p = 6e-7"
    statistic = math.exp(float(objective[-1])) / factor - 1
    study.at_most("fit: chi^2 of the moments at the end", statistic, quantile, source)
    gap = _gradient_gap(start, *problem, check_key, paths=256)
    quantity = "gradient through the simulator: relative difference from central differences"
    study.at_most(quantity, gap, 1e-6, "float64, eps 1e-5")
    study.keep(fit_path=np.exp(np.concatenate([start[None], path])), fit_truth=truth, fit_error=errors)


def plot(result):
    """Variance, strong and weak errors, density, escape rates, parameters along the descent."""
    d = result.data
    figure, axes = draw.panels(2, 3, width=4.5, height=3.8)
    moments, strong, weak, density, escape, fit = axes.flat
    draw.theory(moments, *d.ou_scheme, "C0", label="scheme's recursion")
    draw.measured(moments, *d.ou_seen, sigmas=5.0, color="C0", label="simulated, ±5 s.e.")
    y = "variance of x(t) minus the equation's"
    draw.label(
        moments, "Ornstein-Uhlenbeck, Euler-Maruyama", "time t", y, legend={"loc": "lower right"}, ylim=(0, None)
    )
    for theory in d.weak_theory[1]:
        draw.theory(weak, d.weak_theory[0], theory, "k--", lw=1)
    for axis, methods, title, error in (
        (strong, d.strong, "Strong order", "root mean square error at t = 1"),
        (weak, d.weak, "Weak order, OU (dashed: exact recursion)", r"$|E\,x_h(1)^2 - E\,x(1)^2|$"),
    ):
        for i, order in enumerate(methods):
            style, name = {"color": f"C{i}"}, f"{order.label}: {order.slope:.2f} ({order.theory:g})"
            draw.slope(axis, order.h, order.error, order.theory, ls="-", alpha=0.6, **style)
            draw.measured(axis, order.h, order.error, order.bar, sigmas=1.0, fmt="osD^v"[i], label=name, **style)
        draw.label(axis, title, "step h", error, log="xy", legend={"title": "measured slope (theory, line)"})
    strong.set_ylim(bottom=min(order.error.min() for order in d.strong) / 60)  # room for the legend
    strong.get_legend().set_loc("lower right")
    draw.histogram(density, d.well, np.linspace(-2.2, 2.2, 61), label="SRA1")
    draw.theory(density, d.well_grid, d.well_density, label=r"$e^{-V/T}/Z$")
    draw.label(density, "Double well", "x", "stationary density")
    draw.theory(escape, *d.escape_theory, label="first-passage integral")
    draw.theory(escape, *d.escape_kramers, "k:", label="Kramers")
    draw.measured(escape, *d.escape, sigmas=5.0, label="simulated, ±5 s.e.")
    draw.label(escape, "Escape from a well", "inverse temperature 1/T", "rate of passage from -1 to 1", log="y")
    for i, name in enumerate(("rate k", r"amplitude $\sigma$")):
        fit.axhspan(*(d.fit_truth[i] + 5 * d.fit_error[i] * np.array([-1, 1])), color=f"C{i}", alpha=0.2, lw=0)
        fit.axhline(d.fit_truth[i], color=f"C{i}", ls="--", lw=1)
        fit.plot(d.fit_path[:, i], f"C{i}", label=name)
    draw.label(fit, "Recovered by descent (band: ±5 s.e.)", "step of Adam", "parameter")
    return figure
