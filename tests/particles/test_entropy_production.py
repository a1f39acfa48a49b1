"""Entropy production with exact scores against closed forms; the loss that learns the score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.particles.theory.entropy_production import (
    entropy_production,
    implicit_loss,
    linear_entropy_production,
    probability_velocity,
    work_rate,
)


def system(d=3, dtype=np.float64):
    rng = np.random.default_rng(1)
    A = rng.normal(size=(d, d))
    M, D = np.eye(d) + A - A.T + 0.3 * A @ A.T, np.exp(0.5 * rng.normal(size=d))
    return M.astype(dtype), D.astype(dtype)


def whitened(S, n=64):
    """Points whose mean is zero and whose second moment is exactly S."""
    z = np.random.default_rng(2).normal(size=(n, len(S)))
    z = z - z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / n)).T
    return z @ np.linalg.cholesky(S).T


def test_linear_rate_is_that_of_the_exact_score_on_exact_moments():
    M, D = system()
    with jax.enable_x64(True):
        rate, S = linear_entropy_production(jnp.asarray(M), jnp.asarray(D))
        np.testing.assert_allclose(M @ S + S @ M.T, 2 * np.diag(D), atol=1e-12)
        P = jnp.linalg.inv(S)
        drift, score = lambda t, x, a=None: -jnp.asarray(M) @ x, lambda t, x, a=None: -P @ x
        x = jnp.asarray(whitened(np.asarray(S)))
        found = entropy_production(drift, score, jnp.asarray(D), x)
        np.testing.assert_allclose(found.total, rate, rtol=1e-12)
        np.testing.assert_allclose(found.medium, rate, rtol=1e-12)
        np.testing.assert_allclose(found.system, 0, atol=1e-12)
        np.testing.assert_allclose(found.parts.sum(), rate, rtol=1e-12)
        np.testing.assert_allclose(work_rate(drift, jnp.asarray(D), x)[0], rate, rtol=1e-12)
        v = probability_velocity(drift, score, jnp.asarray(D))
        np.testing.assert_allclose(v(0.0, x[0]), -M @ x[0] + D * (P @ x[0]), rtol=1e-12)


def test_rotation_and_detailed_balance():
    k, w = 1.3, 0.7
    rate, _ = linear_entropy_production(jnp.asarray([[k, w], [-w, k]]), jnp.asarray([0.4, 0.4]))
    assert rate.dtype == jnp.float32
    np.testing.assert_allclose(rate, 2 * w**2 / k, rtol=1e-6)
    D = jnp.asarray([0.5, 2.0])
    balanced = jnp.asarray([[2.0, 0.5], [0.5, 1.0]]) / D[None, :]  # M D symmetric
    np.testing.assert_allclose(linear_entropy_production(balanced, D)[0], 0, atol=1e-6)
    full = jnp.asarray([[1.0, 0.3], [0.3, 0.5]])
    np.testing.assert_allclose(linear_entropy_production(full, full)[0], 0, atol=1e-6)


def test_the_split_away_from_a_steady_state():
    # Free diffusion of N(0, c): the entropy grows at D/c in each direction, and nothing goes into the medium.
    c, D = 2.0, 0.6
    x = jnp.asarray(whitened(c * np.eye(2)), jnp.float32)
    found = entropy_production(lambda t, x, a=None: 0 * x, lambda t, x, a=None: -x / c, D, x)
    np.testing.assert_allclose([found.total, found.medium, found.system], [2 * D / c, 0, 2 * D / c], atol=1e-5)


def test_loss_is_least_at_the_score_and_measures_the_excess():
    M, D = system()
    with jax.enable_x64(True):
        S = linear_entropy_production(jnp.asarray(M), jnp.asarray(D))[1]
        x, D = jnp.asarray(whitened(np.asarray(S))), jnp.asarray(D)
        loss = lambda P: implicit_loss(lambda t, x, a: -P @ x, D, x)
        P = jnp.linalg.inv(S)
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(P), 0, atol=1e-12)
        change = jnp.asarray(np.random.default_rng(3).normal(size=(3, 3)))
        excess = jnp.trace(change.T @ jnp.diag(D) @ change @ S) / 2
        np.testing.assert_allclose(loss(P + change) - loss(P), excess, rtol=1e-10)
        # Random signs are unbiased: over all 8 of them the product averages to the trace.
        signs = np.asarray(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T
        np.testing.assert_allclose(np.mean([s @ np.asarray(P) @ s for s in signs]), jnp.trace(P), rtol=1e-12)


def test_random_signs_and_particle_states(key):
    # States of any shape; a diagonal derivative has no spread over signs.
    x = jax.random.normal(key, (5, 4, 2))
    field = lambda t, x, a: -(x**3)
    D = jnp.asarray([0.5, 2.0])
    with_signs, exact = implicit_loss(field, D, x, key=key), implicit_loss(field, D, x)
    want = jnp.mean(jnp.sum(D[None, None] * (x**6 / 2 - 3 * x**2), axis=(1, 2)))
    np.testing.assert_allclose(with_signs, want, rtol=1e-5)
    np.testing.assert_allclose(exact, want, rtol=1e-5)
    assert entropy_production(field, field, D, x).parts.shape == (4, 2)


def test_errors():
    with pytest.raises(ValueError, match="samples"):
        entropy_production(lambda t, x, a: x, lambda t, x, a: x, 1.0, jnp.ones(3))
    with pytest.raises(ValueError, match="samples"):
        implicit_loss(lambda t, x, a: x, 1.0, jnp.ones(3))
    with pytest.raises(ValueError, match="expected M"):
        linear_entropy_production(jnp.ones((2, 3)), jnp.ones(2))
