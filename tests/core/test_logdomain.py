"""The log domain against scipy, and gradients where naive formulas overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from physml.core import (
    log_2cosh,
    log_erfc,
    log_gaussian_tail,
    log_mean_exp,
    log_sub_exp,
    normalise_log_weights,
)

X = np.array([-30.0, -5.0, -1.0, -0.1, 0.0, 0.3, 2.0, 8.0, 30.0])


def _values_and_slopes(f, x64):
    with jax.enable_x64(x64):
        x = jnp.asarray(X, float)
        return map(np.asarray, jax.jit(lambda x: (f(x), jax.vmap(jax.grad(f))(x)))(x))


@pytest.mark.parametrize("x64, rtol", [(False, 3e-5), (True, 1e-10)])
def test_log_erfc(x64, rtol):
    value, slope = _values_and_slopes(log_erfc, x64)
    exact = np.where(X > 0, np.log(special.erfcx(np.abs(X))) - X**2, np.log(special.erfc(X)))
    np.testing.assert_allclose(value, exact, rtol=rtol, atol=rtol)
    # d ln erfc = -2/sqrt(pi) e^{-x^2} / erfc(x), through erfcx in the upper tail.
    upper = -2 / np.sqrt(np.pi) / special.erfcx(np.maximum(X, 0))
    lower = -2 / np.sqrt(np.pi) * np.exp(-(X**2)) / special.erfc(np.minimum(X, 0))
    np.testing.assert_allclose(slope, np.where(X > 0, upper, lower), rtol=10 * rtol, atol=rtol)


@pytest.mark.parametrize("x64, rtol", [(False, 3e-5), (True, 1e-10)])
def test_log_gaussian_tail(x64, rtol):
    value, slope = _values_and_slopes(log_gaussian_tail, x64)
    np.testing.assert_allclose(value, special.log_ndtr(-X), rtol=rtol, atol=rtol)
    # The hazard phi(x) / H(x), which tends to x.
    exact = -np.exp(-(X**2) / 2 - 0.5 * np.log(2 * np.pi) - special.log_ndtr(-X))
    np.testing.assert_allclose(slope, exact, rtol=10 * rtol, atol=rtol)


def test_log_2cosh():
    value, slope = _values_and_slopes(log_2cosh, False)
    np.testing.assert_allclose(value, np.abs(X) + np.log1p(np.exp(-2 * np.abs(X))), rtol=1e-6)
    np.testing.assert_allclose(slope, np.tanh(X), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.grad(log_2cosh)))(0.0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(log_2cosh(1e30), 1e30)


def test_log_mean_exp():
    w = np.array([[0.0, -np.inf, 1.0], [800.0, 801.0, -900.0]], np.float32)
    exact = special.logsumexp(w.astype(float), axis=1) - np.log(3)
    np.testing.assert_allclose(log_mean_exp(w, axis=1), exact, rtol=1e-6)
    np.testing.assert_allclose(log_mean_exp(w, axis=-1), exact, rtol=1e-6)
    np.testing.assert_allclose(log_mean_exp(w), special.logsumexp(w.astype(float)) - np.log(6), rtol=1e-6)
    np.testing.assert_allclose(log_mean_exp(w, axis=(0, 1)), log_mean_exp(w))
    assert log_mean_exp(jnp.full(4, -jnp.inf)) == -np.inf
    where = np.array([[True, True, False], [True, False, True]])
    exact = [-np.log(2), 800.0 - np.log(2)]
    np.testing.assert_allclose(log_mean_exp(w, axis=1, where=where), exact, rtol=1e-6)
    np.testing.assert_allclose(log_mean_exp(w, where=where), 800 - np.log(4), rtol=1e-6)
    assert log_mean_exp(jnp.zeros(3), where=jnp.zeros(3, bool)) == -np.inf
    slope = jax.jit(jax.grad(lambda w: log_mean_exp(w, axis=1).sum()))(jnp.asarray(w))
    np.testing.assert_allclose(slope, special.softmax(w.astype(float), axis=1), rtol=1e-5, atol=1e-7)


def test_log_sub_exp():
    a = np.array([0.0, 1.0, 500.0, -3.0, 2.0, 7.0])
    b = np.array([-1e-4, -20.0, 499.5, -3.0, 3.0, -np.inf])
    with np.errstate(all="ignore"):
        exact = a + np.log(-np.expm1(b - a))
    with jax.enable_x64(True):
        value, slope = jax.jit(jax.vmap(jax.value_and_grad(log_sub_exp, argnums=(0, 1))))(a, b)
        value, slope = np.asarray(value), np.asarray(slope)[:, :3]
    np.testing.assert_allclose(value, exact, rtol=1e-12)
    assert value[3] == -np.inf and np.isnan(value[4]) and value[5] == 7.0
    # d/da = 1 / (1 - e^{b-a}), d/db = -1 / (e^{a-b} - 1).
    first = -1 / np.expm1(b[:3] - a[:3])
    np.testing.assert_allclose(slope, [first, -1 / np.expm1(a[:3] - b[:3])], rtol=1e-10)
    assert log_sub_exp(-jnp.inf, -jnp.inf) == -np.inf  # 0 - 0


def test_normalise_log_weights():
    w = jnp.array([[0.0, jnp.log(3.0), -jnp.inf], [jnp.nan, 1000.0, jnp.inf]])
    weights, bad = normalise_log_weights(w)
    np.testing.assert_allclose(weights, [[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]], rtol=1e-6)
    assert bad.tolist() == [0, 2]
    slope = jax.jit(jax.grad(lambda w: normalise_log_weights(w)[0][0, 1]))(w)
    np.testing.assert_allclose(slope, [[-0.1875, 0.1875, 0.0], [0.0, 0.0, 0.0]], atol=1e-6)
    weights, bad = normalise_log_weights(w.T, axis=0)
    np.testing.assert_allclose(weights[:, 0], [0.25, 0.75, 0.0], rtol=1e-6)
