"""Learned forward processes: stationarity, kernels, reversal, and the bound for Gaussian data in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import matching

COVARIANCE = np.array([[2.0, 0.5], [0.5, 0.3]])


def _process(dtype=jnp.float32):
    factor, swirl = jnp.asarray([[1.3, 0.0], [0.4, 0.5]], dtype), jnp.asarray([[0.0, 0.7], [0.0, 0.0]], dtype)
    return matching.ForwardProcess(factor, swirl, 1.5, 1e-2)


def _law(process, tau):
    a, chol = process.kernel(tau)
    return a @ jnp.asarray(COVARIANCE, a.dtype) @ a.T + chol @ chol.T


def _score(process):
    def score(t, x, args=None):
        tau = process.start + (process.duration - process.start) * (1.0 - t)
        return -jnp.linalg.solve(_law(process, tau), x)

    return score


@pytest.mark.parametrize(("x64", "tol"), [(False, 1e-5), (True, 1e-12)])
def test_noise_is_stationary_and_kernels_compose(x64, tol):
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        process = _process(dtype)
        np.testing.assert_allclose(jnp.trace(process.metric), 2.0, rtol=tol)
        for tau in (1e-3, 0.8):
            a, chol = process.kernel(jnp.asarray(tau, dtype))
            np.testing.assert_allclose(a @ a.T + chol @ chol.T, np.eye(2), atol=tol)
        half, whole = (process.kernel(jnp.asarray(tau, dtype)) for tau in (0.4, 0.8))
        np.testing.assert_allclose(half[0] @ half[0], whole[0], atol=tol)
        joined = half[0] @ half[1] @ half[1].T @ half[0].T + half[1] @ half[1].T
        np.testing.assert_allclose(joined, whole[1] @ whole[1].T, atol=tol)


def test_simulation_and_reversal():
    process, n = _process(), 4000
    x1 = jax.random.normal(jax.random.key(0), (n, 2)) @ jnp.linalg.cholesky(jnp.asarray(COVARIANCE, jnp.float32)).T
    out = process.simulate(x1, steps=100, key=jax.random.key(1))
    np.testing.assert_allclose(np.cov(out.T), _law(process, 1.5), atol=0.1)
    start = jax.random.normal(jax.random.key(2), (n, 2)) @ jnp.linalg.cholesky(_law(process, 1.5)).T
    for ratio in (1.0, 0.0):
        back = process.reverse(_score(process), start, steps=100, key=jax.random.key(3), ratio=ratio)
        np.testing.assert_allclose(np.cov(back.T), _law(process, 1e-2), atol=0.2)


def test_the_bound_of_gaussian_data_is_entropy_plus_what_is_not_forgotten():
    process, n = _process(), 40_000
    x1 = jax.random.normal(jax.random.key(0), (n, 2)) @ jnp.linalg.cholesky(jnp.asarray(COVARIANCE, jnp.float32)).T
    bound = jax.jit(lambda x1, key: matching.evidence_bound(process, _score(process), x1, key=key))
    values = np.asarray(bound(x1, jax.random.key(1)), np.float64)
    start, end = (np.asarray(_law(process, tau), np.float64) for tau in (1e-2, 1.5))
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * start)[1]
    kl = 0.5 * (np.trace(end) - 2 - np.linalg.slogdet(end)[1])
    assert abs(values.mean() - entropy - kl) < 5 * values.std() / np.sqrt(n) + 2e-3


def test_gradient_of_the_bound_in_the_process():
    with jax.enable_x64(True):
        x1 = jnp.asarray(np.random.default_rng(0).standard_normal((8, 2)))

        def bound(s):
            process = matching.ForwardProcess(
                jnp.array([[1.0, 0.0], [s, 0.8]]), jnp.array([[0.0, s], [0.0, 0.0]]), 1.5, 1e-2
            )
            return jnp.mean(matching.evidence_bound(process, lambda t, x, args: -x, x1, key=jax.random.key(0), times=4))

        h, bound = 1e-6, jax.jit(bound)
        np.testing.assert_allclose(jax.grad(bound)(0.4), (bound(0.4 + h) - bound(0.4 - h)) / (2 * h), rtol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="dim must"):
        matching.forward_process(0)
    with pytest.raises(ValueError, match="factor and swirl"):
        matching.ForwardProcess(jnp.eye(2), jnp.zeros((3, 3)))
