"""The recipe of minibatch orders in its small configuration, and that it sees batches in a fixed order."""

import dataclasses

import jax
import numpy as np

from physml.particles.kernels import minibatch as stochastic
from physml.recipes.particles import minibatch_hamiltonian as recipe


def test_smoke_holds():
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) == 2


def test_exact_variances_of_the_splittings():
    """OBABO leaves 1/(1 - h^2/4), BAOAB 1, with all data; an epoch of one batch is all data."""
    for h in (0.2, 0.7):
        np.testing.assert_allclose(recipe.exact_variance("OBABO", "full", h, 1.3, 8, 8), 1 / (1 - h**2 / 4))
        np.testing.assert_allclose(recipe.exact_variance("BAOAB", "full", h, 1.3, 8, 8), 1)
        np.testing.assert_allclose(recipe.exact_variance("BAOAB", "shuffled", h, 1.3, 8, 8), 1)


def test_orders_of_the_exact_variances():
    for (scheme, mode), order in recipe.ORDERS.items():
        if order is not None:
            n = 8 if mode == "full" else 2
            a, b = (abs(recipe.exact_variance(scheme, mode, h, 1.0, 8, n) - 1) for h in (0.02, 0.01))
            np.testing.assert_allclose(np.log2(a / b), order, atol=0.1)


def test_batches_in_a_fixed_order_are_seen(monkeypatch):
    draw = stochastic.StochasticGradient.draw

    def fixed(self, key, position, lanes):
        xi, order = draw(self, key, position, lanes)
        return xi, jax.numpy.sort(order.reshape(-1, *order.shape[2:]), axis=0).reshape(order.shape)

    monkeypatch.setattr(stochastic.StochasticGradient, "draw", fixed)
    jax.clear_caches()
    config = dataclasses.replace(recipe.SMOKE, cases=(("OBABO", "shuffled"),))
    result = recipe.run(config, key=jax.random.key(0))
    jax.clear_caches()
    assert not result.ok
