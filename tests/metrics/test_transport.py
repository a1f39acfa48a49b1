"""Wasserstein distances against scipy, POT, brute force and the closed form between Gaussians."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.spatial.distance
import scipy.stats

from physml.metrics import (
    _assignment,
    gaussian_wasserstein2,
    wasserstein1,
    wasserstein2,
    wasserstein2_sliced,
    wasserstein_1d,
)
from physml.metrics._assignment import assign


@pytest.mark.parametrize("n, m", [(40, 40), (40, 25), (7, 1)])
def test_line_against_scipy(n, m):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=n).astype(np.float32), rng.exponential(size=m).astype(np.float32)
    np.testing.assert_allclose(wasserstein_1d(x, y, p=1), scipy.stats.wasserstein_distance(x, y), rtol=1e-5)
    # W2 by repeating every point until the sizes agree.
    a, b = np.sort(np.repeat(x, m)), np.sort(np.repeat(y, n))
    np.testing.assert_allclose(jax.jit(wasserstein_1d)(x, y), np.sqrt(np.mean((a - b) ** 2)), rtol=1e-5)


def test_line_of_a_shift_and_gradients(key):
    x = jax.random.normal(key, (50,))
    np.testing.assert_allclose(wasserstein_1d(x, x[::-1] + 2.0), 2.0, rtol=1e-5)
    g = jax.grad(wasserstein_1d)(x, x[::-1] - 2.0)
    np.testing.assert_allclose(g, np.full(50, 1 / 50), rtol=1e-4)
    assert not np.any(jax.grad(wasserstein_1d)(x, x))


def test_exact_against_brute_force(key):
    a, b = jax.random.split(key)
    x, y = jax.random.normal(a, (6, 2)), jax.random.normal(b, (6, 2)) + 0.5
    d2 = ((np.asarray(x)[:, None] - np.asarray(y)[None]) ** 2).sum(axis=2)
    plans = [list(p) for p in itertools.permutations(range(6))]
    np.testing.assert_allclose(wasserstein2(x, y), min(d2[range(6), p].mean() for p in plans) ** 0.5, rtol=1e-5)
    np.testing.assert_allclose(wasserstein1(x, y), min(np.sqrt(d2)[range(6), p].mean() for p in plans), rtol=1e-5)


def _clouds(kind, n, rng):
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(n, 2))
    y = {"same": y, "far": 1e3 + 1e-2 * y, "narrow": 0.1 * y + 1.0, "equal": x[::-1], "point": 0.0 * y}[kind]
    return scipy.spatial.distance.cdist(x, y, "sqeuclidean")


@pytest.mark.parametrize("kind, n", [("same", 2100), ("far", 300), ("narrow", 300), ("equal", 300), ("point", 50)])
def test_potentials_leave_the_optimum_where_it_is(kind, n):
    """The cost of SciPy's plan for the plain costs, at any scale; 2100 rows take both temperatures."""
    cost = _clouds(kind, n, np.random.default_rng(3))
    for scale in (1.0, 1e-9):
        rows, plan = scipy.optimize.linear_sum_assignment(scale * cost)
        found = assign(scale * cost)
        assert sorted(found) == list(rows)
        np.testing.assert_allclose(cost[rows, found].sum(), cost[rows, plan].sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("duals", ["none", "wrong"])
def test_any_potentials_give_the_same_plan(duals, monkeypatch):
    """Exactness does not lean on their quality: none and random ones find the same pairs, forbidden ones too."""
    cost = _clouds("same", 200, np.random.default_rng(4))
    label = np.random.default_rng(5).integers(0, 3, 200)
    apart = np.where(label[:, None] != label[None], np.inf, cost)
    expected = [assign(cost), assign(apart)]
    assert (label == label[expected[1]]).all()
    random = np.random.default_rng(6).normal(size=200)
    monkeypatch.setattr(_assignment, "_potential", lambda cost: 0 * random if duals == "none" else random)
    np.testing.assert_array_equal(assign(cost), expected[0])
    np.testing.assert_array_equal(assign(apart), expected[1])


def test_exact_under_jit_vmap_and_grad(key):
    x = jax.random.normal(key, (3, 8, 2))
    y = x[:, ::-1] + 1.0
    w = jax.jit(jax.vmap(wasserstein2))(x, y)
    np.testing.assert_allclose(w, np.full(3, np.sqrt(2)), rtol=1e-5)
    g = jax.jit(jax.grad(wasserstein2))(x[0], x[0, ::-1] - 1.0)
    np.testing.assert_allclose(g, np.full((8, 2), 1 / (8 * np.sqrt(2))), rtol=1e-4)
    assert bool(jnp.isnan(wasserstein2(x[0].at[0, 0].set(jnp.nan), y[0])))


def test_against_pot(key):
    ot = pytest.importorskip("ot")
    a, b = jax.random.split(key)
    x, y = jax.random.normal(a, (200, 3)), jax.random.normal(b, (200, 3)) * 1.5 + 0.3
    xn, yn = np.asarray(x, np.float64), np.asarray(y, np.float64)
    np.testing.assert_allclose(wasserstein2(x, y), ot.emd2([], [], ot.dist(xn, yn)) ** 0.5, rtol=1e-4)
    np.testing.assert_allclose(wasserstein1(x, y), ot.emd2([], [], ot.dist(xn, yn, "euclidean")), rtol=1e-4)
    # The same directions in both.
    theta = jax.random.normal(key, (3, 64), jnp.float32)
    theta = np.asarray(theta / jnp.linalg.norm(theta, axis=0, keepdims=True), np.float64)
    expected = ot.sliced_wasserstein_distance(xn, yn[:150], projections=theta)
    np.testing.assert_allclose(wasserstein2_sliced(x, y[:150], key=key, projections=64), expected, rtol=1e-4)


def test_sliced_of_a_shift(key):
    """A shift by a has SW_2^2 = |a|^2/d, here within 5 standard errors of the average over directions."""
    x = jax.random.normal(key, (30, 4))
    a = jnp.array([1.0, 0.0, -2.0, 0.5])
    sw = jax.jit(lambda x: wasserstein2_sliced(x, x[::-1] + a[None, :], key=key, projections=4000))(x)
    # (theta.a)^2/|a|^2 is Beta(1/2, 3/2).
    expected, std = float(a @ a) / 4, float(a @ a) * scipy.stats.beta(0.5, 1.5).std()
    assert abs(float(sw) ** 2 - expected) < 5 * std / np.sqrt(4000)


def _cov(rng, d):
    a = rng.normal(size=(d, d))
    return a @ a.T / d + 0.1 * np.eye(d)


def test_gaussians():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        for d in (1, 2, 5):
            m1, m2, c1, c2 = rng.normal(size=d), rng.normal(size=d), _cov(rng, d), _cov(rng, d)
            root = scipy.linalg.sqrtm(c1)
            cross = np.trace(scipy.linalg.sqrtm(root @ c2 @ root).real)
            expected = np.sqrt(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * cross)
            args = [jnp.asarray(v) for v in (m1, c1, m2, c2)]
            np.testing.assert_allclose(jax.jit(gaussian_wasserstein2)(*args), expected, rtol=1e-10)
            single = [a.astype(jnp.float32) for a in args]
            np.testing.assert_allclose(gaussian_wasserstein2(*single), expected, rtol=1e-3)
        # Commuting covariances: the distance between square roots; singular ones included.
        s1, s2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, 0.0, 2.0])
        zero = jnp.zeros(3)
        w = gaussian_wasserstein2(zero, jnp.diag(s1**2), zero, jnp.diag(s2**2))
        np.testing.assert_allclose(w, np.linalg.norm(s1 - s2), rtol=1e-10)


def test_gaussian_gradient_at_equal_eigenvalues():
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        zero, b = jnp.zeros(3), jnp.asarray(_cov(rng, 3))

        def f(c):
            return gaussian_wasserstein2(zero, c, zero, b)

        for a in (jnp.eye(3), jnp.asarray(_cov(rng, 3))):
            g = jax.grad(f)(a)
            direction = jnp.asarray(_cov(rng, 3))
            numeric = (f(a + 1e-5 * direction) - f(a - 1e-5 * direction)) / 2e-5
            np.testing.assert_allclose(jnp.sum(g * direction), numeric, rtol=1e-6)
        # The other argument too.
        g = jax.grad(lambda b: gaussian_wasserstein2(zero, jnp.eye(3), zero, b))(b)
        numeric = (
            gaussian_wasserstein2(zero, jnp.eye(3), zero, b + 1e-5 * direction)
            - gaussian_wasserstein2(zero, jnp.eye(3), zero, b - 1e-5 * direction)
        ) / 2e-5
        np.testing.assert_allclose(jnp.sum(g * direction), numeric, rtol=1e-6)
        assert not np.any(jax.grad(f)(b)) or float(f(b)) < 1e-7


def test_errors(key):
    x = jnp.zeros((3, 2))
    for call, message in (
        (lambda: wasserstein2(x, x[:2]), "equally many"),
        (lambda: wasserstein2(x, x[:, :1]), "expected"),
        (lambda: wasserstein_1d(x, x), "expected"),
        (lambda: wasserstein2_sliced(x, x, key=key, projections=0), "projections must be"),
        (lambda: gaussian_wasserstein2(x[0], jnp.eye(2), x[0], jnp.eye(3)), "expected"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
