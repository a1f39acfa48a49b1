"""Posteriors with answers: real and standard ones, with moments from closed forms, quadrature or long runs.

Each has an energy of free numbers, starts for many chains, and the quantities whose moments are known.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from physml import particles
from physml.integrate import RK4, Dynamics, integrate
from physml.particles import Interval, Positive

LONG_RUNS = Path(__file__).parent / "zoo.json"


class Posterior(NamedTuple):
    """`energy(u)`, `observe(u) -> (k,)`, `start(key) -> u` of one chain; `first` and `second` moments of what is
    observed with their standard errors, (2, k) each, or None before the long run."""

    energy: Callable
    observe: Callable
    start: Callable
    first: np.ndarray | None = None
    second: np.ndarray | None = None
    cheap: bool = True


def _exact(first, second):
    return {"first": np.stack([first, 0 * first]), "second": np.stack([second, 0 * second])}


def _known(name):
    """Moments from the long runs that `python benchmarks/posteriors.py --references` writes."""
    if not LONG_RUNS.exists() or name not in (found := json.loads(LONG_RUNS.read_text())):
        return {}
    return {key: np.array(found[name][key]) for key in ("first", "second")}


def _normal_start(like, spread=1.0):
    leaves, tree = jax.tree.flatten(like)
    draw = lambda key: tree.unflatten(
        [
            x + spread * jax.random.normal(k, jnp.shape(x))
            for k, x in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
        ]
    )
    return draw


# ---- eight schools: effects of a course in eight schools, and their errors (Rubin 1981)

EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
ERROR = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)


def _eight_schools_moments():
    """Mean, log of the spread and effects: given both of the former the effects are Gaussian; a grid does the rest."""
    mu, log_tau = np.meshgrid(np.linspace(-25, 35, 601), np.linspace(-9, 6, 1501), indexing="ij")
    tau = np.exp(log_tau)
    y, s = EFFECT.astype(float), ERROR.astype(float)
    log_p = stats.norm(0, 5).logpdf(mu) + stats.halfcauchy(0, 5).logpdf(tau) + log_tau
    for effect, error in zip(y, s, strict=True):
        log_p = log_p + stats.norm.logpdf(effect, mu, np.hypot(tau, error))
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    first, second = [(p * mu).sum(), (p * log_tau).sum()], [(p * mu**2).sum(), (p * log_tau**2).sum()]
    for effect, error in zip(y, s, strict=True):
        share = tau**2 / (tau**2 + error**2)
        mean, variance = mu + share * (effect - mu), share * error**2
        first.append((p * mean).sum())
        second.append((p * (mean**2 + variance)).sum())
    return _exact(np.array(first), np.array(second))


def eight_schools_centred():
    def energy(u):
        tau = jnp.exp(u["log_tau"])
        prior = u["mu"] ** 2 / 50 + jnp.log1p((tau / 5) ** 2) - u["log_tau"]
        return (
            prior
            + jnp.sum((u["theta"] - u["mu"]) ** 2) / (2 * tau**2)
            + 8 * u["log_tau"]
            + jnp.sum(((EFFECT - u["theta"]) / ERROR) ** 2) / 2
        )

    observe = lambda u: jnp.concatenate([jnp.stack([u["mu"], u["log_tau"]]), u["theta"]])
    like = {"mu": jnp.zeros(()), "log_tau": jnp.ones(()), "theta": jnp.zeros(8)}
    return Posterior(energy, observe, _normal_start(like), **_eight_schools_moments())


def eight_schools():
    effect = lambda u: u["mu"] + jnp.exp(u["log_tau"]) * u["unit"]

    def energy(u):
        prior = u["mu"] ** 2 / 50 + jnp.log1p((jnp.exp(u["log_tau"]) / 5) ** 2) - u["log_tau"]
        return prior + jnp.sum(u["unit"] ** 2) / 2 + jnp.sum(((EFFECT - effect(u)) / ERROR) ** 2) / 2

    observe = lambda u: jnp.concatenate([jnp.stack([u["mu"], u["log_tau"]]), effect(u)])
    like = {"mu": jnp.zeros(()), "log_tau": jnp.ones(()), "unit": jnp.zeros(8)}
    return Posterior(energy, observe, _normal_start(like), **_eight_schools_moments())


# ---- regressions on tables that scikit-learn ships


def logistic():
    """24 features of the breast-cancer table and an intercept, prior N(0, 1)."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = x[:, :24]
    design = np.concatenate([(x - x.mean(0)) / x.std(0), np.ones((len(x), 1))], 1).astype(np.float32)
    sign = (2.0 * y - 1).astype(np.float32)
    energy = lambda w: jnp.sum(jax.nn.softplus(-sign * (design @ w))) + jnp.sum(w**2) / 2
    return Posterior(energy, lambda w: w, _normal_start(jnp.zeros(25), 0.5), **_known("logistic"))


def sparse():
    """Linear regression of the diabetes table with a horseshoe prior, noncentred: weight = z * local * all."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    x, y = ((a - a.mean(0)) / a.std(0) for a in (x, y))
    x, y, n = x.astype(np.float32), y.astype(np.float32), len(y)
    weight = lambda u: u["z"] * jnp.exp(u["local"] + u["all"])

    def energy(u):
        cauchy = lambda log: jnp.sum(jnp.log1p(jnp.exp(2 * log)) - log)
        residual = jnp.sum((y - x @ weight(u)) ** 2)
        prior = jnp.sum(u["z"] ** 2) / 2 + cauchy(u["local"]) + cauchy(u["all"])
        return (
            prior + residual / 2 * jnp.exp(-2 * u["noise"]) + n * u["noise"] + jnp.exp(2 * u["noise"]) / 2 - u["noise"]
        )

    observe = lambda u: jnp.concatenate([weight(u), jnp.stack([u["all"], u["noise"]])])
    like = {"z": jnp.zeros(10), "local": jnp.zeros(10), "all": jnp.full((), -1.0), "noise": jnp.zeros(())}
    return Posterior(energy, observe, _normal_start(like, 0.3), **_known("sparse"))


# ---- time series


def stochastic_volatility():
    """100 returns with the variance e^h, where h is an autoregression: drawn with mean -1, 0.95 and 0.25."""
    rng = np.random.default_rng(0)
    h = [-1 + 0.25 / (1 - 0.95**2) ** 0.5 * rng.normal()]
    for _ in range(99):
        h.append(-1 + 0.95 * (h[-1] + 1) + 0.25 * rng.normal())
    r = (np.exp(np.array(h) / 2) * rng.normal(size=100)).astype(np.float32)

    def energy(x):
        h, mu, phi, sigma = x["h"], x["mu"], x["phi"], x["sigma"]
        step = (h[1:] - mu - phi * (h[:-1] - mu)) / sigma
        begin = (h[0] - mu) * jnp.sqrt(1 - phi**2) / sigma
        prior = mu**2 / 8 - 19 * jnp.log1p(phi) - 0.5 * jnp.log1p(-phi) - 2 * jnp.log(sigma) + 20 * sigma
        law = jnp.sum(step**2) / 2 + begin**2 / 2 + len(r) * jnp.log(sigma) - 0.5 * jnp.log1p(-(phi**2))
        return prior + law + jnp.sum(h + r**2 * jnp.exp(-h)) / 2

    bounds = {"h": None, "mu": None, "phi": Interval(-1.0, 1.0), "sigma": Positive()}
    free = particles.constrained(energy, bounds)

    def observe(u):
        return jnp.concatenate([u["h"], jnp.stack([u["mu"], u["phi"], u["sigma"]])])

    like = {"h": jnp.full(100, -1.0), "mu": jnp.full((), -1.0), "phi": jnp.full((), 2.5), "sigma": jnp.full((), -1.2)}
    return Posterior(free, observe, _normal_start(like, 0.2), **_known("stochastic_volatility"))


def gaussian_process():
    """Counts of 40 bins, Poisson with a log rate that is a Gaussian process of length 6 and free height and mean."""
    rng, t = np.random.default_rng(1), np.arange(40.0)
    L = np.linalg.cholesky(np.exp(-((t[:, None] - t[None]) ** 2) / 72) + 1e-4 * np.eye(40)).astype(np.float32)
    counts = rng.poisson(np.exp(1.0 + L @ rng.normal(size=40))).astype(np.float32)
    log_rate = lambda u: u["mean"] + jnp.exp(u["height"]) * (L @ u["z"])

    def energy(u):
        f = log_rate(u)
        prior = (jnp.sum(u["z"] ** 2) + u["height"] ** 2 + u["mean"] ** 2) / 2
        return prior + jnp.sum(jnp.exp(f) - counts * f)

    observe = lambda u: jnp.concatenate([log_rate(u), jnp.stack([u["height"], u["mean"]])])
    like = {"z": jnp.zeros(40), "height": jnp.zeros(()), "mean": jnp.ones(())}
    return Posterior(energy, observe, _normal_start(like, 0.3), **_known("gaussian_process"))


# Pelts of hares and lynxes, thousands a year from 1900 to 1920 (Hudson's Bay Company; Howard 2009).
HARES = [30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1, 40.3, 57, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7]  # fmt: skip # noqa: E501
LYNXES = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4, 8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]


def _predators(t, x, args):
    hare, lynx = jnp.exp(x[0]), jnp.exp(x[1])
    return jnp.stack([args[0] - args[1] * lynx, args[2] * hare - args[3]])


def lotka_volterra():
    """Four rates, two beginnings and two errors of hares and lynxes, by RK4 of their logarithms, five steps a year."""
    y = jnp.log(jnp.asarray([HARES, LYNXES], jnp.float32)).T
    ts = jnp.linspace(0.0, 20.0, 101)
    centre = np.log([0.55, 0.028, 0.024, 0.8]).astype(np.float32)
    begin = np.log([30.0, 4.0]).astype(np.float32)

    def energy(u):
        rates = jnp.exp(u["rates"])
        path = integrate(Dynamics(_predators), u["begin"], ts, args=rates, method=RK4(), save_every=5).xs
        error = jnp.exp(u["error"])
        z = (y - path) / error[None, :]
        prior = jnp.sum((u["rates"] - centre) ** 2) / 2 + jnp.sum((u["begin"] - np.log(10)) ** 2) / 2
        return prior + jnp.sum((u["error"] + 1) ** 2) / 2 + jnp.sum(z**2) / 2 + len(y) * jnp.sum(u["error"])

    observe = lambda u: jnp.concatenate([u["rates"], u["begin"], u["error"]])
    like = {"rates": jnp.asarray(centre), "begin": jnp.asarray(begin), "error": jnp.full(2, -1.4)}
    return Posterior(energy, observe, _normal_start(like, 0.03), **_known("lotka_volterra"), cheap=False)


# ---- shapes in closed form


def banana():
    """x ~ N(0, 100) in front, y ~ N(0.03 (x^2 - 100), 1): second moment 1 + 2 (0.03 100)^2."""
    energy = lambda v: v[0] ** 2 / 200 + (v[1] - 0.03 * (v[0] ** 2 - 100)) ** 2 / 2
    return Posterior(energy, lambda v: v, _normal_start(jnp.zeros(2)), **_exact(np.zeros(2), np.array([100.0, 19.0])))


def funnel():
    """v ~ N(0, 9) and nine x ~ N(0, e^v); v and tanh x are observed: no chain finds the moments of x itself."""
    energy = lambda u: u["v"] ** 2 / 18 + jnp.sum(u["x"] ** 2) / 2 * jnp.exp(-u["v"]) + 4.5 * u["v"]
    observe = lambda u: jnp.concatenate([u["v"][None], jnp.tanh(u["x"])])
    v, z = np.linspace(-24, 24, 4001), np.linspace(-9, 9, 2001)
    p, q = stats.norm(0, 3).pdf(v), stats.norm.pdf(z)
    square = (p / p.sum()) @ (np.tanh(np.exp(v / 2)[:, None] * z[None]) ** 2 @ (q / q.sum()))
    moments = _exact(np.zeros(10), np.array([9.0] + [square] * 9))
    return Posterior(energy, observe, _normal_start({"v": jnp.zeros(()), "x": jnp.zeros(9)}), **moments)


def mixture():
    """Three Gaussians of the plane, 12 deviations apart, with the weights 1/2, 1/3 and 1/6; all chains start in one."""
    weights, means = np.array([1 / 2, 1 / 3, 1 / 6]), np.array([[0.0, 0], [12, 0], [0, 12]])

    def energy(x):
        square = jnp.sum((x[None, :] - means.astype(np.float32)) ** 2, 1)
        return -jax.nn.logsumexp(jnp.log(weights.astype(np.float32)) - square / 2)

    moments = _exact(weights @ means, 1 + weights @ means**2)
    return Posterior(energy, lambda x: x, _normal_start(jnp.zeros(2)), **moments)


ZOO: dict[str, Callable[[], Any]] = {
    "eight schools, centred": eight_schools_centred,
    "eight schools": eight_schools,
    "logistic": logistic,
    "sparse": sparse,
    "stochastic_volatility": stochastic_volatility,
    "gaussian_process": gaussian_process,
    "lotka_volterra": lotka_volterra,
    "banana": banana,
    "funnel": funnel,
    "mixture": mixture,
}
