"""The Fokker-Planck residual: zero for exact fields, equal to its definition by finite differences for others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import matching

LAW = (np.array([0.4, 0.6]), np.array([[-1.0, 0.3], [0.8, -0.5]]), np.array([np.diag([0.2, 0.3]), np.diag([0.3, 0.1])]))


def _law(dtype):
    return tuple(jnp.asarray(part, dtype) for part in LAW)


@pytest.mark.parametrize(("x64", "tol"), [(False, 2e-3), (True, 1e-9)])
@pytest.mark.parametrize("path", [matching.variance_preserving(), matching.brownian_bridge(0.8)])
def test_exact_fields_leave_nothing(path, x64, tol):
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        v, s, _ = matching.exact_fields(path, None, _law(dtype))
        x = jnp.asarray([0.4, -0.2], dtype)
        residual = jax.jit(lambda t: matching.score_residual(v, s, t, x))(jnp.asarray(0.6, dtype))
        assert residual.dtype == dtype
        np.testing.assert_allclose(residual, np.zeros(2), atol=tol)


def _potential(t, x, args=None):
    return jnp.sin(t * x[0]) * x[1] - 0.5 * jnp.sum(x**2) * (1 + t)


def _velocity(t, x, args=None):
    return jnp.stack([jnp.cos(x[1]) + t, x[0] * x[1]])


def test_score_residual_is_the_gradient_of_the_potential_residual():
    with jax.enable_x64(True):
        x, t = jnp.array([0.3, -0.8]), 0.6
        score = lambda t, x, args=None: jax.grad(lambda x: _potential(t, x))(x)
        scalar = lambda x: matching.potential_residual(_potential, _velocity, t, x)
        np.testing.assert_allclose(matching.score_residual(_velocity, score, t, x), jax.grad(scalar)(x), rtol=1e-10)
        h = 1e-6
        change = (_potential(t + h, x) - _potential(t - h, x)) / (2 * h)
        by_hand = change + x[0] + _velocity(t, x) @ score(t, x)
        np.testing.assert_allclose(scalar(x), by_hand, rtol=1e-8)


def test_a_probe_is_unbiased_and_gradients_pass():
    with jax.enable_x64(True):
        x, t = jnp.array([0.3, -0.8]), 0.6
        score = lambda t, x, args=None: -x
        signs = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        mean = jnp.mean(jax.vmap(lambda p: matching.score_residual(_velocity, score, t, x, probe=p))(signs), axis=0)
        np.testing.assert_allclose(mean, matching.score_residual(_velocity, score, t, x), rtol=1e-12)

        def penalty(a):
            tilted = lambda t, x, args=None: -a * x
            return jnp.sum(matching.score_residual(_velocity, tilted, t, x) ** 2)

        h = 1e-6
        penalty = jax.jit(penalty)
        np.testing.assert_allclose(jax.grad(penalty)(1.3), (penalty(1.3 + h) - penalty(1.3 - h)) / (2 * h), rtol=1e-6)


def test_errors():
    x = jnp.zeros(2)
    with pytest.raises(ValueError, match="velocity must return"):
        matching.score_residual(lambda t, x, args: x[:, None], lambda t, x, args: x, 0.5, x)
    with pytest.raises(ValueError, match="score must return"):
        matching.score_residual(lambda t, x, args: x, lambda t, x, args: x[:1], 0.5, x)
