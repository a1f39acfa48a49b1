"""Strong and weak orders, measured: sections 2 and 3 of the recipe `simulators`."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from physml.core import in_float64, noise
from physml.integrate import SRA1, Dynamics, EulerMaruyama, Heun, Milstein
from physml.metrics import jackknife, mean_and_error

# The three systems; args are their parameters.
OU = Dynamics(lambda t, x, args: -args[0] * x, lambda t, x, args: args[1])
GBM = Dynamics(lambda t, x, args: args[0] * x, lambda t, x, args: args[1] * x)
WELL = Dynamics(lambda t, x, args: x - x * x * x, lambda t, x, args: jnp.sqrt(2.0 * args))


class Order(NamedTuple):
    """Errors (levels,) of a method at steps h with their bars, the slope that is measured and that of theory."""

    label: str
    h: Any
    error: Any
    bar: Any
    slope: float
    theory: float


def _halve(xi):
    """The normals (2, n, paths) of n steps as those of n / 2 steps of twice the length, on the same Brownian path."""
    (a1, b1), (a2, b2) = ((row[0::2], row[1::2]) for row in xi)
    return jnp.stack([(a1 + b1) / math.sqrt(2), (math.sqrt(3) * (a1 - b1) + a2 + b2) / math.sqrt(8)])


def _end(method, dynamics, x0, xi, args):
    """x(1) of each path by n = xi.shape[1] steps of `method` with the normals xi (2, n, paths)."""
    h = 1.0 / xi.shape[1]
    if method.calculus in ("ito", "stratonovich"):
        dynamics = dynamics.in_calculus(method.calculus)

    def step(x, xi):
        new = lambda x, *xi: method.step(dynamics, 0.0, h, x, xi[: method.normals], args)
        return jax.vmap(new)(x, xi[0], xi[1]), None

    return lax.scan(step, jnp.full(xi.shape[-1], x0, xi.dtype), jnp.moveaxis(xi, 1, 0))[0]


STRONG = (
    ("gbm", EulerMaruyama(), 0.5, "Kloeden and Platen (1992), theorem 10.2.2"),
    ("gbm", Milstein(), 1.0, "Kloeden and Platen (1992), theorem 10.3.5"),
    ("gbm", Heun(), 1.0, "Ruemelin (1982): commutative noise"),
    ("well", EulerMaruyama(), 1.0, "Kloeden and Platen (1992), section 10.3: additive noise"),
    ("well", SRA1(), 1.5, "Roessler (2010), SRA1"),
)
GROWTH, VOLATILITY = 0.2, 0.5


@in_float64
@functools.partial(jax.jit, static_argnames=("levels", "finest", "paths", "batches"))
def _strong_errors(key, temperature, *, levels, finest, paths, batches):
    """Mean square errors (batches, len(STRONG), levels)."""

    def batch(i):
        like = jax.ShapeDtypeStruct((2, 2**finest), jnp.float64)
        xi = noise.normal(key, i, like, jnp.arange(paths))
        w = 2.0 ** (-finest / 2) * xi[0].sum(0)
        args = {"gbm": (GROWTH, VOLATILITY), "well": temperature}
        truth = {
            "gbm": jnp.exp(GROWTH - VOLATILITY**2 / 2 + VOLATILITY * w),
            "well": _end(SRA1(), WELL, 1.0, xi, temperature),
        }
        ladder = {finest: xi}
        for level in reversed(range(min(levels), finest)):
            ladder[level] = _halve(ladder[level + 1])

        def squares(name, method, level):
            dynamics = GBM if name == "gbm" else WELL
            return jnp.mean((_end(method, dynamics, 1.0, ladder[level], args[name]) - truth[name]) ** 2)

        return jnp.stack([jnp.stack([squares(name, method, level) for level in levels]) for name, method, *_ in STRONG])

    return lax.map(batch, jnp.arange(batches))


def strong(study, config, key):
    """Slopes of the strong errors, with jackknife errors over batches."""
    sizes = {"levels": config.strong_levels, "finest": config.finest, "paths": config.strong_paths}
    squares = _strong_errors(key, jnp.asarray(config.temperature), **sizes, batches=config.batches)
    mean, error = mean_and_error(squares)
    h, rms = 2.0 ** -np.asarray(config.strong_levels, float), np.sqrt(mean)
    powers = jackknife(lambda squares: 0.5 * np.log(squares.mean(0)) @ _to_slope(h), squares)
    study.keep(strong=[])
    for i, (name, method, order, source) in enumerate(STRONG):
        label, slope = type(method).__name__, powers.value[i]
        quantity = f"strong order of {label}, {'geometric Brownian motion' if name == 'gbm' else 'double well'}"
        study.near(quantity, slope, order, source, atol=config.strong_tolerance, error=powers.error[i])
        label = f"{label}, {'GBM' if name == 'gbm' else 'double well'}"
        study.data.strong.append(Order(label, h, rms[i], error[i] / (2 * rms[i]), slope, order))


def _to_slope(h):
    """The weights whose product with values at steps h is their least-squares slope against log h."""
    x = np.log(h) - np.log(h).mean()
    return x / (x @ x)


WEAK = (
    (EulerMaruyama(), 1.0, "Kloeden and Platen (1992), theorem 14.1.5"),
    (SRA1(), 2.0, "Roessler (2010), SRA1; additive noise"),
)


def _joint_noise(k, h):
    """Cholesky factor of the covariance of dW, the second normal of SRA1 and J = int e^{-k(h-s)} dW_s, over sqrt h."""
    e = math.exp(-k * h)
    w = (1 - e) / (k * h)
    area = (1 - e * (1 + k * h)) / (k * h) ** 2
    second = (2 * area - w) * math.sqrt(3)
    rest = (1 - e * e) / (2 * k * h) - w * w - second**2
    return w, second, math.sqrt(max(rest, 0.0))


@in_float64
@functools.partial(jax.jit, static_argnames=("k", "sigma", "levels", "paths", "batches"))
def _weak_errors(key, *, k, sigma, levels, paths, batches):
    """Means over a batch (batches, len(WEAK), levels) of x_h(1)^2 - x(1)^2, x being the exact process."""

    def at_level(level, i):
        steps, h = 2**level, 2.0**-level
        like = jax.ShapeDtypeStruct((3, steps), jnp.float64)
        xi = noise.normal(jax.random.fold_in(key, level), i, like, jnp.arange(paths))
        w, second, rest = _joint_noise(k, h)
        decay, scale = math.exp(-k * h), sigma * math.sqrt(h)

        def exact(x, z):
            return decay * x + scale * (w * z[0] + second * z[1] + rest * z[2]), None

        truth = lax.scan(exact, jnp.zeros(paths, xi.dtype), jnp.moveaxis(xi, 1, 0))[0]
        return jnp.stack([jnp.mean(_end(method, OU, 0.0, xi[:2], (k, sigma)) ** 2 - truth**2) for method, *_ in WEAK])

    return lax.map(lambda i: jnp.stack([at_level(level, i) for level in levels], axis=1), jnp.arange(batches))


def _weak_theory(k, sigma, h):
    """E x_h(1)^2 - E x(1)^2 of Euler-Maruyama and of SRA1, from x_0 = 0: a geometric series in both."""
    n = np.round(1 / h)
    growth = np.stack([(1 - k * h) ** 2, (1 - k * h + (k * h) ** 2 / 2) ** 2])
    kick = sigma**2 * h * np.stack([np.ones_like(h), 1 - k * h + (k * h) ** 2 / 3])
    return kick * (1 - growth**n) / (1 - growth) - sigma**2 * (1 - math.exp(-2 * k)) / (2 * k)


def weak(study, config, key):
    """Slopes of the weak errors, and the errors themselves against the exact recursion."""
    parameters = {"k": config.rate, "sigma": config.amplitude}
    sizes = {"paths": max(1, config.weak_paths // config.batches), "batches": config.batches}
    mean, error = mean_and_error(_weak_errors(key, **parameters, levels=config.weak_levels, **sizes))
    h = 2.0 ** -np.asarray(config.weak_levels, float)
    theory, to_slope = _weak_theory(**parameters, h=h), _to_slope(h)
    fine = 1 / np.arange(1 / h.max(), 1 / h.min() + 1)
    study.keep(weak=[], weak_theory=(fine, np.abs(_weak_theory(**parameters, h=fine))))
    for i, (method, order, source) in enumerate(WEAK):
        label, slope = type(method).__name__, np.log(np.abs(mean[i])) @ to_slope
        spread = np.linalg.norm(error[i] / mean[i] * to_slope)  # levels have noise of their own
        study.near(f"weak order of {label}, OU", slope, order, source, atol=config.weak_tolerance, error=spread)
        z = np.abs((mean[i] - theory[i]) / error[i]).max()
        # The error comes from the batches: Student's t, whose tail is longer than the normal one.
        study.at_most(f"weak error of {label}, OU: largest |t|", z, 6, "the scheme's own linear recursion")
        study.data.weak.append(Order(label, h, np.abs(mean[i]), error[i], slope, order))
