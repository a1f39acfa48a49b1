"""Streamed statistics against the stored chain, and against processes whose autocorrelation is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import metrics
from physml.particles import integrated_time, overdamped, run, run_chains, underdamped


def energy(x):
    return jnp.sum(x**2) / 2


@pytest.mark.parametrize("draws", [2, 7, 100, 333])
def test_moments_and_r_hat_are_those_of_the_stored_chain(draws, key):
    """Any number of draws; the start is far away, so that what is subtracted would cancel."""
    out = run_chains(overdamped(energy, 0.3), 300.0 + jnp.arange(24.0).reshape(8, 3), draws, key=key)
    x = np.asarray(out.samples, np.float64)
    np.testing.assert_allclose(out.stats.mean, x.mean((0, 1)), rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(out.stats.variance, x.var((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(out.stats.cov, np.cov(x.reshape(-1, 3).T, bias=True), rtol=1e-3, atol=1e-2)
    if draws % 2 == 0 and draws >= 4:
        np.testing.assert_allclose(out.stats.r_hat, metrics.r_hat(out.samples), rtol=1e-3)
    assert int(out.stats.draws) == draws


@pytest.mark.parametrize("h", [0.1, 0.5, 1.5])
def test_time_of_an_autoregressive_chain(h, key):
    """ULA on a Gaussian is AR(1) with rho = 1 - h; for h = 1.5 the draws are anticorrelated."""
    chains, draws = 256, 4096
    out = run_chains(overdamped(energy, h), jnp.zeros((chains, 2)), draws, key=key, keep=False)
    exact = (2 - h) / h
    np.testing.assert_allclose(out.stats.time, exact, rtol=0.06)
    np.testing.assert_allclose(out.stats.ess, chains * draws / exact, rtol=0.06)
    np.testing.assert_allclose(out.stats.autocorrelation[0], 1 - h, atol=0.01)
    assert float(jnp.max(out.stats.r_hat)) < 1.01
    assert "256 chains" in repr(out.stats)


def test_time_of_momenta_that_oscillate(key):
    """Little friction: positions swing, and their averages converge faster than correlations at one lag suggest."""
    kernel = underdamped(energy, 0.4, friction=0.3)
    out = run_chains(kernel, jnp.zeros((256, 1)), 4096, key=key, keep=False)
    with jax.enable_x64(True):
        exact = integrated_time(underdamped(energy, 0.4, friction=0.3), jnp.zeros(1))[0]
    np.testing.assert_allclose(out.stats.time, exact, rtol=0.15)


def test_chains_that_do_not_mix_are_seen(key):
    """Two wells that no chain crosses: R-hat is large and the effective sample is that of the wells."""
    wells = lambda x: 40 * jnp.sum((x**2 - 1) ** 2)
    start = jnp.where(jnp.arange(16) < 8, 1.0, -1.0)[:, None]
    out = run_chains(overdamped(wells, 1e-3), start, 512, key=key, keep=False)
    assert float(out.stats.r_hat[0]) > 5
    assert float(out.stats.ess[0]) < 100


def test_one_chain_and_what_is_not_tracked(key):
    out = run(overdamped(energy, 0.5), jnp.zeros((2, 100)), 2000, key=key, save_every=10)
    assert out.stats.r_hat.shape == (2, 100) and bool(jnp.isfinite(out.stats.time).all())
    with pytest.raises(ValueError, match="covariance"):
        out.stats.cov  # noqa: B018
    assert run(overdamped(energy, 0.5), jnp.zeros(2), 10, key=key, stats=False).stats is None
    constant = run(overdamped(energy, 0.5), jnp.zeros(2), 8, key=key, observe=lambda x: x * 0 + 1)
    assert bool(jnp.isnan(constant.stats.time).all()) and bool(jnp.isnan(constant.stats.r_hat).all())


def test_statistics_do_not_disturb_gradients(key):
    def last(h):
        out = run_chains(overdamped(energy, h), jnp.ones((4, 2)), 8, key=key, save_every=2)
        return jnp.sum(out.samples[-1] ** 2), out.stats.mean

    with jax.enable_x64(True):
        slope = jax.grad(lambda h: last(h)[0])(0.3)
        number = (last(0.3 + 1e-6)[0] - last(0.3 - 1e-6)[0]) / 2e-6
    np.testing.assert_allclose(slope, number, rtol=1e-2)
