"""Discrete schemes on linear problems: the law of the recursion itself is known, at any step size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.integrate import SRA1, Dynamics, EulerMaruyama, Heun, Matrix, Milstein, ensemble

PATHS, STEPS, H = 4000, 8, 0.125
RATE, SIGMA, MEAN = 1.5, 0.8, 0.4
TS = np.arange(STEPS + 1) * H
ORNSTEIN_UHLENBECK = Dynamics(lambda t, x, a: -RATE * (x - MEAN), lambda t, x, a: SIGMA)


def _propagator(method):
    """x' = m + r (x - m) + s N(0, 1), r and s^2 of one step with z = rate * h."""
    z = RATE * H
    if isinstance(method, SRA1):
        # 2 f(x~)/3 feels 3/2 of the area (xi_1 / 2 + xi_2 / sqrt(12)): -z on it.
        return 1 - z + z * z / 2, SIGMA**2 * H * ((1 - z / 2) ** 2 + z * z / 12)
    if isinstance(method, Heun):
        return 1 - z + z * z / 2, SIGMA**2 * H * (1 - z / 2) ** 2
    return 1 - z, SIGMA**2 * H


def _check_moments(x, mean, variance):
    """x (paths, ...) normal with this mean and variance, to five standard errors."""
    n = x.size
    assert abs(x.mean() - mean) < 5 * np.sqrt(variance / n)
    assert abs(((x - mean) ** 2).mean() - variance) < 5 * variance * np.sqrt(2 / n)


@pytest.mark.parametrize(
    "method, dtype",
    [
        (EulerMaruyama(), "float32"),
        (Milstein(), "float32"),
        (Heun(), "float32"),
        (SRA1(), "float32"),
        (SRA1(), "float64"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_ornstein_uhlenbeck_recursion(key, method, dtype):
    with jax.enable_x64(dtype == "float64"):
        x0 = jnp.full((PATHS, 2), 2.0, dtype)
        out = ensemble(ORNSTEIN_UHLENBECK, x0, TS, key=key, method=method, save_every=2).check()
        assert out.xs.dtype == dtype and out.ts.dtype == dtype and out.xs.shape == (5, PATHS, 2)
        xs = np.asarray(out.xs, np.float64)
    np.testing.assert_allclose(out.ts, TS[::2])
    np.testing.assert_array_equal(xs[0], 2.0)
    r, s2 = _propagator(method)
    for k, x in zip(range(2, STEPS + 1, 2), xs[1:], strict=True):
        _check_moments(x, MEAN + r**k * (2.0 - MEAN), s2 * (1 - r ** (2 * k)) / (1 - r**2))
    # Successive states share the noise of the past: Cov(x_k, x_{k+2}) = r^2 Var(x_k).
    centred = xs - xs.mean(axis=(1, 2), keepdims=True)
    slope = (centred[1] * centred[2]).mean() / centred[1].var()
    assert abs(slope - r**2) < 5 * np.sqrt((1 + r**2) * s2 / centred[1].var() / centred[1].size)
    # Entries and neighbouring lanes are independent.
    last = centred[-1] / centred[-1].std()
    assert abs((last[:, 0] * last[:, 1]).mean()) < 5 / np.sqrt(PATHS)
    assert abs((last[1:] * last[:-1]).mean()) < 5 / np.sqrt(2 * PATHS)


@pytest.mark.parametrize("method", [EulerMaruyama(), Milstein()], ids=lambda m: type(m).__name__)
def test_geometric_brownian_recursion(key, method):
    """E x_k^2 = (a^2 + b^2 + c^2/2...)^k: one step multiplies x by (1 + mu h) + s sqrt(h) z + s^2 h (z^2 - 1)/2."""
    mu, s = 0.3, 0.5
    out = ensemble(Dynamics(lambda t, x, a: mu * x, lambda t, x, a: s * x), jnp.ones(PATHS), TS, key=key, method=method)
    x = np.asarray(out.xs[-1], np.float64)
    second = (1 + mu * H) ** 2 + s**2 * H + (0.5 * s**4 * H**2 if isinstance(method, Milstein) else 0.0)
    assert abs(x.mean() - (1 + mu * H) ** STEPS) < 5 * x.std() / np.sqrt(PATHS)
    assert abs((x**2).mean() - second**STEPS) < 5 * (x**2).std() / np.sqrt(PATHS)


MATRIX = np.array([[1.0, 0.0, 0.5], [0.3, -0.7, 0.0]], np.float32)


@pytest.mark.parametrize("value", [MATRIX, lambda t, x, a: jnp.asarray(MATRIX)], ids=["constant", "function"])
@pytest.mark.parametrize("method", [EulerMaruyama(), SRA1()], ids=lambda m: type(m).__name__)
def test_covariance_of_matrix_noise(key, value, method):
    """Brownian motion with dx = G dW has covariance G G^T t, exactly, whatever the method."""
    noise = Matrix(jnp.asarray(value) if isinstance(value, np.ndarray) else value)
    dynamics = Dynamics(lambda t, x, a: jnp.zeros_like(x), noise)
    x = ensemble(dynamics, jnp.zeros((PATHS, 2)), TS, key=key, method=method, save_every=STEPS).xs[-1]
    exact = MATRIX @ MATRIX.T * TS[-1]
    x = np.asarray(x, np.float64)
    error = np.sqrt((exact**2 + np.outer(np.diag(exact), np.diag(exact))) / PATHS)
    assert (np.abs(x.T @ x / PATHS - exact) < 5 * error).all()


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "matrix"])
def test_pytree_states(key, kind):
    """dict states: every entry its own Brownian motion, or one shared by the columns of a Matrix."""
    amplitude = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(0.5)}
    value = {
        "scalar": jnp.float32(0.7),
        "diagonal": amplitude,
        "matrix": Matrix({"a": jnp.array([[1.0, 0.0], [1.0, 1.0]]), "b": jnp.array([0.0, 2.0])}),
    }[kind]
    dynamics = Dynamics(lambda t, x, a: jax.tree.map(jnp.zeros_like, x), lambda t, x, a: value)
    x0 = {"a": jnp.zeros((PATHS, 2)), "b": jnp.zeros(PATHS)}
    out = ensemble(dynamics, x0, TS[:3], key=key).check()
    x = np.concatenate([np.asarray(out.xs["a"][-1]), np.asarray(out.xs["b"][-1])[:, None]], 1).astype(float)
    g = {"scalar": np.eye(3) * 0.7, "diagonal": np.diag([1.0, 2.0, 0.5])}.get(kind)
    g = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]) if g is None else g
    exact = g @ g.T * TS[2]
    error = np.sqrt((exact**2 + np.outer(np.diag(exact), np.diag(exact))) / PATHS)
    assert (np.abs(x.T @ x / PATHS - exact) < 5 * error).all()


def test_noise_that_depends_on_time(key):
    """Left-point sums: Var = sum g(t_k)^2 h for Euler, and the trapezoid of SRA1's area terms."""
    dynamics = Dynamics(lambda t, x, a: jnp.zeros_like(x), lambda t, x, a: a * t)
    for method, ends in ((EulerMaruyama(), TS[:-1]), (SRA1(), None)):
        x = ensemble(dynamics, jnp.zeros((PATHS, 2)), TS, key=key, args=2.0, method=method).xs[-1]
        if ends is not None:
            variance = np.sum((2 * ends) ** 2) * H
        else:
            # int 2s dW over a step is g(t + h) dW - 2 I_10, exact for linear g.
            variance = 4 * TS[-1] ** 3 / 3
        _check_moments(np.asarray(x, np.float64), 0.0, variance)


def test_stratonovich_and_ito_means(key):
    """dx = s x o dW has mean e^{s^2 t / 2}, dx = s x dW has mean 1: the conversion both ways."""
    s, ts = 0.6, np.linspace(0, 1, 33)
    for calculus, mean in (("ito", 1.0), ("stratonovich", np.exp(s**2 / 2))):
        for method in (Heun(), Milstein()):
            dynamics = Dynamics(lambda t, x, a: jnp.zeros_like(x), lambda t, x, a: s * x, calculus=calculus)
            out = ensemble(dynamics, jnp.ones((PATHS, 2)), ts, key=key, method=method, save_every=32)
            x = np.asarray(out.xs[-1], np.float64)
            # Beyond the noise the weak error is O(h): s^4 h / 8 in the exponent.
            assert abs(x.mean() - mean) < 5 * x.std() / np.sqrt(x.size) + s**4 / 32


def test_conversion_for_every_kind_of_noise():
    """sum_k (G_k . grad) G_k by hand: scalar g grad g, diagonal g_i g_i', and a rotation field."""
    x = jnp.array([0.7, -1.2])
    zero = lambda t, x, a: jnp.zeros_like(x)
    cases = {
        "scalar": (lambda t, x, a: jnp.sum(x**2), 2 * x * jnp.sum(x**2)),
        "diagonal": (lambda t, x, a: jnp.sin(x), jnp.sin(x) * jnp.cos(x)),
        "matrix": (Matrix(lambda t, x, a: jnp.stack([-x[1], x[0]])[:, None]), -x),
        "constant": (lambda t, x, a: 0.3, jnp.zeros(2)),
        "constant matrix": (Matrix(jnp.ones((2, 3))), jnp.zeros(2)),
    }
    for name, (noise, shift) in cases.items():
        ito = Dynamics(zero, noise)
        strat = ito.in_calculus("stratonovich")
        assert strat.calculus == "stratonovich" and ito.in_calculus("ito").drift is zero
        np.testing.assert_allclose(strat.drift(0.0, x, None), -0.5 * shift, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(strat.in_calculus("ito").drift(0.0, x, None), 0 * x, atol=1e-6)
