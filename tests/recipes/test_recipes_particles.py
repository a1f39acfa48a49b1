"""Helpers of the recipes of particles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.recipes.particles import bayesian_network, entropy_production, minibatch_hamiltonian

pytestmark = pytest.mark.recipes


def test_exact_variances_of_the_splittings():
    """OBABO leaves 1/(1 - h^2/4), BAOAB 1, with all data; an epoch of one batch is all data."""
    exact = minibatch_hamiltonian.exact_variance
    for h in (0.2, 0.7):
        np.testing.assert_allclose(exact("OBABO", "full", h, 1.3, 8, 8), 1 / (1 - h**2 / 4))
        np.testing.assert_allclose(exact("BAOAB", "full", h, 1.3, 8, 8), 1)
        np.testing.assert_allclose(exact("BAOAB", "shuffled", h, 1.3, 8, 8), 1)


def test_orders_of_the_exact_variances():
    for (scheme, mode), order in minibatch_hamiltonian.ORDERS.items():
        if order is not None:
            n = 8 if mode == "full" else 2
            exact = lambda h: minibatch_hamiltonian.exact_variance(scheme, mode, h, 1.0, 8, n)  # noqa: B023
            a, b = abs(exact(0.02) - 1), abs(exact(0.01) - 1)
            np.testing.assert_allclose(np.log2(a / b), order, atol=0.1)


def test_scores_of_predictions():
    p, y = np.asarray([0.9, 0.9, 0.9, 0.1]), np.asarray([1.0, 1.0, 0.0, 0.0])
    likelihood, calibration = bayesian_network.negative_log_likelihood, bayesian_network.calibration_error
    np.testing.assert_allclose(likelihood(p, y), -(3 * np.log(0.9) + np.log(0.1)) / 4)
    np.testing.assert_allclose(calibration(p, y), (abs(2 - 2.7) + abs(0 - 0.1)) / 4)
    rng = np.random.default_rng(0)
    p = rng.uniform(size=40000)
    assert calibration(p, (rng.uniform(size=40000) < p).astype(float)) < 0.02


def test_the_score_of_many_particles_is_blind_to_names_and_to_the_origin():
    score = entropy_production.WorldScore(16, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (20, 4)) * 2
    order = np.random.default_rng(0).permutation(20)
    both = jax.jit(lambda x: score(0.0, x))
    s = both(x)
    np.testing.assert_allclose(both(x[order]), s[order], rtol=1e-3, atol=1e-4)
    moved = x + jnp.asarray([[3.0, -12.5, 0.0, 0.0]])
    np.testing.assert_allclose(both(moved), s, rtol=1e-3, atol=1e-3)
