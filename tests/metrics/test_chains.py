"""Chains with a known autocorrelation time, chains that disagree, weights with a known sample size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.metrics import autocorrelation_time, ess, ess_log_weights, r_hat


def _ar1(key, rho, draws, chains):
    """Stationary AR(1), one column per rho."""
    rho = jnp.asarray(rho)[None, :]
    noise = jax.random.normal(key, (draws, chains, rho.shape[1]))

    def step(x, z):
        x = rho * x + jnp.sqrt(1 - rho**2) * z
        return x, x

    return jax.lax.scan(step, noise[0], noise)[1]


def test_autocorrelation_time_of_ar1(key):
    """tau = (1 + rho)/(1 - rho); the spread of the estimate comes from 20 independent groups of chains."""
    rho = [-0.5, 0.0, 0.5, 0.9]
    x = _ar1(key, rho, 2000, 80).reshape(2000, 20, 4, 4)
    tau = np.asarray(jax.jit(jax.vmap(autocorrelation_time, 1))(x))
    expected = (1 + np.array(rho)) / (1 - np.array(rho))
    # Truncation by Geyer's rule costs a little beyond the noise.
    assert np.all(np.abs(tau.mean(axis=0) - expected) < 5 * tau.std(axis=0) / np.sqrt(20) + 0.03 * expected)


def test_ess_shapes_and_scale(key):
    x = _ar1(key, [0.0, 0.8], 1000, 4)
    n = ess(x)
    assert n.shape == (2,) and n.dtype == jnp.float32
    np.testing.assert_allclose(n, 4000 / autocorrelation_time(x), rtol=1e-5)
    np.testing.assert_allclose(ess(1e3 + 10 * x), n, rtol=2e-2)
    assert ess(x[:, :, None, :]).shape == (1, 2)
    assert ess(x[:, :1, 0]).shape == ()
    assert bool(jnp.isnan(ess(jnp.ones((10, 2)))))
    with jax.enable_x64(True):
        assert ess(np.asarray(x, np.float64)).dtype == jnp.float64


def test_autocorrelation_by_direct_sums():
    """The FFT against sums, on an odd number of draws, with Geyer's rule written as a loop."""
    x = np.asarray(_ar1(jax.random.key(3), [0.6], 101, 3), np.float64)[:, :, 0]
    n = len(x)
    c = x - x.mean(axis=0)
    gamma = np.array([np.mean(np.sum(c[: n - t] * c[t:], axis=0) / n) for t in range(n)])
    total = gamma[0] + x.mean(axis=0).var(ddof=1)
    rho = 1 - (gamma[0] * n / (n - 1) - gamma) / total
    rho[0] = 1
    tau, last = -1.0, np.inf
    for t in range(0, n - 1, 2):
        pair = rho[t] + rho[t + 1]
        if pair <= 0:
            break
        last = min(last, pair)
        tau += 2 * last
    np.testing.assert_allclose(autocorrelation_time(x.astype(np.float32)), tau, rtol=1e-4)


def test_disagreeing_chains_have_few_effective_draws(key):
    x = _ar1(key, [0.0], 500, 4) + 3 * jnp.arange(4.0)[None, :, None]
    assert float(ess(x)[0]) < 20
    assert float(r_hat(x)[0]) > 2


@pytest.mark.parametrize("rank", [False, True])
def test_r_hat_of_agreeing_chains(rank, key):
    x = _ar1(key, [0.0, 0.5], 1000, 4)
    r = jax.jit(lambda x: r_hat(x, rank=rank))(x)
    assert r.shape == (2,) and np.all(np.abs(np.asarray(r) - 1) < 0.01)


def test_r_hat_formula_and_split(key):
    x = np.asarray(_ar1(key, [0.3], 51, 3))[:, :, 0]
    w, b = x.var(axis=0, ddof=1).mean(), 51 * x.mean(axis=0).var(ddof=1)
    np.testing.assert_allclose(r_hat(x, split=False), np.sqrt((50 / 51 * w + b / 51) / w), rtol=1e-5)
    halves = np.concatenate([x[:25], x[26:]], axis=1)
    np.testing.assert_allclose(r_hat(x), r_hat(halves, split=False), rtol=1e-6)
    # A drift common to all chains is invisible without the split.
    drift = jnp.linspace(0.0, 5.0, 400)[:, None] + jax.random.normal(key, (400, 4))
    assert float(r_hat(drift, split=False)) < 1.02 and float(r_hat(drift)) > 1.3


def test_rank_r_hat_sees_heavy_tails_and_scales(key):
    a, b = jax.random.split(key)
    wide = jax.random.normal(a, (500, 4)) * jnp.array([1.0, 1.0, 1.0, 10.0])[None, :]
    assert float(r_hat(wide)) < 1.02 and float(r_hat(wide, rank=True)) > 1.1
    cauchy = jax.random.cauchy(b, (500, 4))
    shifted = cauchy + jnp.array([0.0, 0.0, 0.0, 4.0])[None, :]
    assert abs(float(r_hat(cauchy, rank=True)) - 1) < 0.02 and float(r_hat(shifted, rank=True)) > 1.1


def test_a_nan_is_not_hidden(key):
    x = jax.random.normal(key, (500, 4)).at[3, 1].set(jnp.nan)
    for f in (ess, r_hat, lambda x: r_hat(x, rank=True)):
        assert bool(jnp.isnan(f(x)))


def test_ess_of_weights():
    np.testing.assert_allclose(ess_log_weights(jnp.full(7, -2000.0)), 7.0, rtol=1e-6)
    log_w = jnp.log(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(ess_log_weights(log_w + 500.0), 36 / 14, rtol=1e-4)
    broken = jnp.concatenate([log_w, jnp.array([-jnp.inf, jnp.nan, jnp.inf])])
    np.testing.assert_allclose(ess_log_weights(broken), 36 / 14, rtol=1e-5)
    assert float(ess_log_weights(jnp.full(3, -jnp.inf))) == 0.0
    assert ess_log_weights(jnp.zeros((5, 2))).shape == (2,)
    g = jax.grad(ess_log_weights)(broken)
    assert bool(jnp.all(jnp.isfinite(g)))
    w = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(g[:3], 2 * w * 6 / 14 - 36 * 2 * w**2 / 14**2, rtol=1e-4, atol=1e-5)


def test_ess_of_gaussian_importance_weights(key):
    """Target N(a, 1) from N(0, 1): ESS/n -> exp(-a^2)."""
    x = jax.random.normal(key, (100000,))
    w = np.exp(0.5 * np.asarray(x))
    # Delta method for (mean w)^2 / mean w^2.
    m1, m2 = w.mean(), (w**2).mean()
    error = np.std(2 * w * m1 / m2 - w**2 * m1**2 / m2**2) / np.sqrt(len(w))
    assert abs(float(ess_log_weights(0.5 * x)) / len(w) - np.exp(-0.25)) < 5 * error


def test_errors():
    for call, message in (
        (lambda: ess(jnp.zeros(10)), "draws, chains"),
        (lambda: autocorrelation_time(jnp.zeros((3, 2))), "at least 4"),
        (lambda: r_hat(jnp.zeros((10, 1)), split=False), "split=True"),
        (lambda: ess_log_weights(jnp.zeros(())), "n >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
