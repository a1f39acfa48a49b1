"""Strong and weak orders, measured: sections 2 and 3 of the recipe `simulators`."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from physml.core import in_float64, noise
from physml.integrate import SRA1, Dynamics, EulerMaruyama, Heun, Milstein
from physml.recipes._result import at_most, close_to

# The three systems; args are their parameters.
OU = Dynamics(lambda t, x, args: -args[0] * x, lambda t, x, args: args[1])
GBM = Dynamics(lambda t, x, args: args[0] * x, lambda t, x, args: args[1] * x)
WELL = Dynamics(lambda t, x, args: x - x * x * x, lambda t, x, args: jnp.sqrt(2.0 * args))


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


def _slope(levels, logs):
    """Least-squares slope of the logarithms (..., levels) against log h."""
    x = -math.log(2) * (np.asarray(levels) - np.mean(levels))
    return logs @ x / (x @ x)


def strong(config, key):
    """Claims, metrics and arrays of the strong orders: slopes with jackknife errors over batches."""
    levels, b = config.strong_levels, config.batches
    sizes = {"levels": levels, "finest": config.finest, "paths": config.strong_paths, "batches": b}
    squares = np.asarray(_strong_errors(key, jnp.asarray(config.temperature), **sizes), np.float64)
    mean = squares.mean(0)
    slopes = _slope(levels, 0.5 * np.log(mean))
    one_out = (b * mean - squares) / (b - 1)
    spread = _slope(levels, 0.5 * np.log(one_out))
    errors = np.sqrt((b - 1) * spread.var(0))
    claims, metrics = [], {}
    for (name, method, order, source), slope, error in zip(STRONG, slopes, errors, strict=True):
        label = type(method).__name__
        system = "geometric Brownian motion" if name == "gbm" else "double well"
        claims.append(
            close_to(f"strong order of {label}, {system}", slope, order, config.strong_tolerance, source, error)
        )
        metrics[f"strong_order_{name}_{label}"] = slope
    arrays = {
        "strong_h": 2.0 ** -np.asarray(levels, float),
        "strong_error": np.sqrt(mean),
        "strong_error_bar": squares.std(0, ddof=1) / math.sqrt(b) / (2 * np.sqrt(mean)),
        "strong_slope": slopes,
    }
    return claims, metrics, arrays


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


def weak(config, key):
    """Claims, metrics and arrays of the weak orders: slopes, and errors against the exact recursion."""
    k, sigma, levels, b = config.rate, config.amplitude, config.weak_levels, config.batches
    means = _weak_errors(key, k=k, sigma=sigma, levels=levels, paths=max(1, config.weak_paths // b), batches=b)
    means = np.asarray(means, np.float64)
    mean, error = means.mean(0), means.std(0, ddof=1) / math.sqrt(b)
    h = 2.0 ** -np.asarray(levels, float)
    theory = _weak_theory(k, sigma, h)
    slopes = _slope(levels, np.log(np.abs(mean)))
    x = np.log(h) - np.log(h).mean()
    errors = np.sqrt((((error / mean) * x / (x @ x)) ** 2).sum(1))  # levels have noise of their own
    claims, metrics = [], {}
    for i, (method, order, source) in enumerate(WEAK):
        label = type(method).__name__
        z = np.abs((mean[i] - theory[i]) / error[i]).max()
        claims += [
            close_to(f"weak order of {label}, OU", slopes[i], order, config.weak_tolerance, source, errors[i]),
            # The error comes from the batches: Student's t, whose tail is longer than the normal one.
            at_most(f"weak error of {label}, OU: largest |t|", z, 6, "the scheme's own linear recursion"),
        ]
        metrics[f"weak_order_{label}"] = slopes[i]
    fine = 1 / np.arange(2 ** min(levels), 2 ** max(levels) + 1)
    arrays = {
        "weak_h": h,
        "weak_error": np.abs(mean),
        "weak_error_bar": error,
        "weak_slope": slopes,
        "weak_fine_h": fine,
        "weak_theory": np.abs(_weak_theory(k, sigma, fine)),
    }
    return claims, metrics, arrays
