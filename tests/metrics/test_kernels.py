"""Energy distance, MMD and the permutation test against expectations in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from physml.metrics import energy_distance, median_distance, mmd, permutation_test


def _pair(key, n=300, m=200, d=2, shift=0.7):
    a, b = jax.random.split(key)
    return jax.random.normal(a, (n, d)), 1.3 * jax.random.normal(b, (m, d)) + shift


def test_energy_distance_is_scipys_in_one_dimension(key):
    x, y = _pair(key, d=1)
    expected = scipy.stats.energy_distance(np.asarray(x)[:, 0], np.asarray(y)[:, 0]) ** 2
    np.testing.assert_allclose(energy_distance(x, y), expected, rtol=1e-4)


def test_double_sums_are_the_naive_ones(key):
    x, y = _pair(key, 30, 20, 3, shift=1.0)
    x64, y64 = np.asarray(x, np.float64), np.asarray(y, np.float64)
    d = lambda a, b: np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))
    k = lambda a, b: np.mean([np.exp(-(d(a, b) ** 2) / 2 / s**2) for s in (0.5, 2.0)], axis=0)
    off = lambda a: (a.sum() - np.trace(a)) / (len(a) * (len(a) - 1))
    rbf = partial(mmd, bandwidths=(0.5, 2.0))
    for f, naive, sign in ((energy_distance, d, 1), (rbf, k, -1)):
        xx, yy, xy = naive(x64, x64), naive(y64, y64), naive(x64, y64)
        v = sign * (2 * xy.mean() - xx.mean() - yy.mean())
        np.testing.assert_allclose(f(x, y), v, rtol=1e-4)
        u = sign * (2 * xy.mean() - off(xx) - off(yy))
        np.testing.assert_allclose(jax.jit(partial(f, unbiased=True))(x, y), u, rtol=1e-4)


def test_unbiased_energy_distance_between_gaussians_on_average(key):
    """N(0,1) against N(a,1): E|N(a, s^2)| = 2 s phi(a/s) + a (1 - 2 Phi(-a/s)) with s^2 = 2."""
    a, s = 0.8, np.sqrt(2)
    cross = 2 * s * scipy.stats.norm.pdf(a / s) + a * (1 - 2 * scipy.stats.norm.cdf(-a / s))
    expected = 2 * cross - 4 / np.sqrt(np.pi)

    def one(k):
        z = jax.random.normal(k, (2, 20, 1))
        return jnp.stack([energy_distance(z[0], z[1] + a, unbiased=u) for u in (True, False)])

    u, v = np.asarray(jax.jit(lambda ks: jax.lax.map(one, ks, batch_size=100))(jax.random.split(key, 4000))).T
    error = u.std() / np.sqrt(len(u))
    assert abs(u.mean() - expected) < 5 * error
    # The V-statistic is biased by E|X-X'|/n + E|Y-Y'|/m, which is ten standard errors here.
    bias = 2 * (2 / np.sqrt(np.pi)) / 20
    assert bias > 10 * error and abs(v.mean() - expected - bias) < 5 * v.std() / np.sqrt(len(v))


def test_unbiased_mmd_between_gaussians_on_average(key):
    """E k(X, Y) = (1 + 2/s^2)^{-d/2} exp(-|a|^2/(2(s^2 + 2))) for unit Gaussians shifted by a."""
    d, s, a = 2, 1.5, 0.6
    same = (1 + 2 / s**2) ** (-d / 2)
    expected = 2 * same * (1 - np.exp(-d * a**2 / (2 * (s**2 + 2))))

    def one(k):
        z = jax.random.normal(k, (2, 20, d))
        return mmd(z[0], z[1] + a, bandwidths=s, unbiased=True)

    u = np.asarray(jax.jit(lambda ks: jax.lax.map(one, ks, batch_size=100))(jax.random.split(key, 4000)))
    assert abs(u.mean() - expected) < 5 * u.std() / np.sqrt(len(u))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("f", [energy_distance, partial(mmd, bandwidths=(0.7, 2.0))])
def test_gradient_against_finite_differences(f, unbiased, key):
    with jax.enable_x64(True):
        x = jax.random.normal(key, (6, 2), jnp.float64)
        y = jnp.concatenate([x[:2], x[:2] + 1.0])  # two points of y lie on points of x
        x = x.at[4].set(x[5])
        g = jax.grad(lambda x: f(x, y, unbiased=unbiased))(x)
        assert bool(jnp.all(jnp.isfinite(g)))
        for i, k in ((2, 0), (3, 1)):  # rows where the function is smooth
            h = jnp.zeros_like(x).at[i, k].set(1e-6)
            numeric = (f(x + h, y, unbiased=unbiased) - f(x - h, y, unbiased=unbiased)) / 2e-6
            np.testing.assert_allclose(g[i, k], numeric, rtol=1e-6, atol=1e-9)


def test_equal_samples_and_far_from_the_origin(key):
    x, y = _pair(key)
    assert float(energy_distance(x, x)) == 0.0
    assert bool(jnp.all(jax.grad(energy_distance)(x, x) == 0) | jnp.all(jnp.isfinite(jax.grad(energy_distance)(x, x))))
    # Differences, not a matrix product: a common shift of 1000 costs only the rounding of the inputs.
    np.testing.assert_allclose(energy_distance(x + 1e3, y + 1e3), energy_distance(x, y), rtol=2e-3)


def test_median_distance(key):
    x = jax.random.normal(key, (40, 3))
    np.testing.assert_allclose(median_distance(x), np.median(scipy.spatial.distance.pdist(np.asarray(x))), rtol=1e-5)
    assert abs(float(median_distance(x, at_most=20)) / float(median_distance(x)) - 1) < 0.3
    assert bool(jnp.isfinite(mmd(jnp.zeros((3, 2)), jnp.zeros((3, 2)))))


@pytest.mark.parametrize("statistic", ["energy", "mmd"])
def test_permutation_test_statistic_and_power(statistic, key):
    x, y = _pair(key, 60, 40, shift=2.0)
    result = permutation_test(x, y, key=key, permutations=199, statistic=statistic)
    f = energy_distance if statistic == "energy" else mmd
    np.testing.assert_allclose(result.statistic, f(x, y), rtol=1e-3)
    np.testing.assert_allclose(result.p_value, 1 / 200, rtol=1e-6)
    assert result.null.shape == (199,) and float(result.null.max()) < float(result.statistic)


def test_permutation_p_values_are_uniform_under_the_null(key):
    def one(k):
        a, b = jax.random.split(k)
        z = jax.random.normal(a, (25, 2))
        return permutation_test(z[:10], z[10:], key=b, permutations=19).p_value

    p = np.asarray(jax.jit(lambda ks: jax.lax.map(one, ks, batch_size=50))(jax.random.split(key, 1000)))
    # Uniform on k/20: compare the counts by chi-square with 19 degrees of freedom.
    counts = np.bincount(np.round(20 * p).astype(int), minlength=21)[1:]
    assert scipy.stats.chisquare(counts).pvalue > 1e-5


def test_a_tie_counts(key):
    x = jnp.zeros((5, 2))
    assert float(permutation_test(x, x, key=key, permutations=9).p_value) == 1.0


def test_a_nan_is_not_hidden(key):
    x, y = _pair(key, 60, 40)
    x = x.at[0, 0].set(jnp.nan)
    assert bool(jnp.isnan(energy_distance(x, y))) and bool(jnp.isnan(mmd(x, y)))
    assert bool(jnp.isnan(permutation_test(x, y, key=key, permutations=199).p_value))


def test_errors(key):
    x = jnp.zeros((3, 2))
    for call, message in (
        (lambda: energy_distance(x, jnp.zeros((3, 1))), "expected"),
        (lambda: energy_distance(x[:1], x, unbiased=True), "at least 2"),
        (lambda: mmd(x[0], x), "expected"),
        (lambda: permutation_test(x, x, key=key, statistic="ks"), "'ks'"),
        (lambda: permutation_test(x, x, key=key, permutations=0), "permutations must be"),
        (lambda: median_distance(x[:1]), "n >= 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
