"""The toys against their closed forms: moments within 5 standard errors, supports, and jit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from physml import data

N = 20000
TOYS = ["eight_gaussians", "grid_gaussians", "moons", "checkerboard", "swiss_roll", "circles", "pinwheel"]


def _within(sample, expected, z=5.0):
    """Sample means along the first axis equal `expected` within z standard errors."""
    sample = np.asarray(sample, np.float64)
    error = sample.std(axis=0) / math.sqrt(len(sample))
    assert np.all(np.abs(sample.mean(axis=0) - expected) < z * error + 1e-6), (sample.mean(axis=0), expected)


@pytest.mark.parametrize("name", TOYS)
def test_samples_under_jit(name, key):
    toy = getattr(data, name)
    compiled = jax.jit(lambda key: toy(50, key=key))
    x = compiled(key)
    assert x.shape == (50, 2) and x.dtype == jnp.float32
    np.testing.assert_allclose(x, toy(50, key=key), rtol=1e-4, atol=1e-5)
    assert not np.array_equal(x, compiled(jax.random.key(1)))
    shape = jax.eval_shape(jax.vmap(lambda k: toy(3, key=k)), jax.random.split(key, 4)).shape
    assert shape == (4, 3, 2)
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda key: toy(5, key=key), key).dtype == jnp.float64
        assert jax.eval_shape(lambda key: toy(5, key=key, dtype=jnp.float32), key).dtype == jnp.float32


@pytest.mark.parametrize("name", ["eight_gaussians", "grid_gaussians"])
def test_mixtures_have_the_moments_of_their_parameters(name, key):
    x = getattr(data, name)(N, key=key)
    w, m, c = getattr(data, name + "_mixture")()
    np.testing.assert_allclose(w.sum(), 1.0, rtol=1e-6)
    mean = jnp.einsum("k,kd->d", w, m)
    second = jnp.einsum("k,kij->ij", w, c + m[:, :, None] * m[:, None, :])
    _within(x, mean)
    _within(x[:, :, None] * x[:, None, :], second)
    # Every mode holds its share, with its own spread.
    nearest = np.argmin(((np.asarray(x)[:, None] - np.asarray(m)[None]) ** 2).sum(axis=2), axis=1)
    _within(np.eye(len(m))[nearest], w)
    _within((x - m[nearest]) ** 2, np.diagonal(c[0]))


def test_benchmark_constants():
    _, m, c = data.eight_gaussians_mixture()
    np.testing.assert_allclose(np.linalg.norm(m, axis=1), 5.0, rtol=1e-6)
    np.testing.assert_allclose(m[1], [5 / math.sqrt(2)] * 2, rtol=1e-6)
    np.testing.assert_allclose(c[3], 0.1 * np.eye(2), rtol=1e-6)
    assert data.grid_gaussians_mixture().means.shape == (25, 2)


def test_diagonal_moons_are_a_thin_band(key):
    """Every sample is a point of a half circle moved along (1, 1) by less than the noise, evenly."""
    x = np.asarray(data.moons(N, key=key, noise=0.1, scale=1.0, shift=0.0, diagonal=True), np.float64)
    # The shift u solves |x - u (1, 1) - centre|^2 = 1 for the circle about (0, 0) or (1, 1/2).
    shifts = []
    for centre, side in (((0.0, 0.0), 1), ((1.0, 0.5), -1)):
        y = x - centre
        half = y.sum(1) / 2
        root = np.sqrt(np.maximum(half**2 - ((y**2).sum(1) - 1) / 2, 0))
        for u in (half - root, half + root):
            on_arc = (side * (y[:, 1] - u) >= -1e-6) & (u > -1e-6) & (u < 0.1 + 1e-6)
            on_arc &= np.abs(((y - u[:, None]) ** 2).sum(1) - 1) < 1e-5
            shifts.append(np.where(on_arc, u, np.nan))
    found = np.isfinite(shifts)
    assert found.any(axis=0).all()
    only = found.sum(axis=0) == 1
    u = np.nansum(shifts, axis=0)[only]
    assert only.mean() > 0.9
    _within(u, 0.05)


def test_moons(key):
    """Mean of the raw moons: x 1/2, y 1/4; both arcs have E[y^2] and E[x^2] in closed form."""
    x = data.moons(N, key=key)
    _within(x, [3 * 0.5 - 1, 3 * 0.25 - 1])
    raw = (x + 1) / 3
    _within(raw[:, 0] ** 2, 0.5 * 0.5 + 0.5 * 1.5 + 0.04)
    _within(raw[:, 1] ** 2, 0.5 * 0.5 + 0.5 * (0.25 - 2 / math.pi + 0.5) + 0.04)
    clean = data.moons(500, key=key, noise=0.0, scale=1.0, shift=0.0)
    upper = np.abs(np.linalg.norm(clean, axis=1) - 1)
    lower = np.abs(np.linalg.norm(clean - jnp.array([1.0, 0.5])[None, :], axis=1) - 1)
    assert np.all(np.minimum(upper, lower) < 1e-5)


def test_stratified_modes_have_equal_shares(key):
    x = data.eight_gaussians(803, key=key, variance=1e-6, stratified=True)
    means = np.asarray(data.eight_gaussians_mixture().means)
    label = np.argmin(((np.asarray(x)[:, None] - means[None]) ** 2).sum(axis=2), axis=1)
    assert set(np.bincount(label)) == {100, 101}
    assert not np.array_equal(label, np.sort(label))


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_stratified_moons_are_those_of_scikit_learn(n, key):
    x = data.moons(n, key=key, noise=0.0, scale=1.0, shift=0.0, stratified=True)
    expected = datasets.make_moons(n)[0]
    order = lambda a: a[np.lexsort(np.round(a, 4).T)]
    np.testing.assert_allclose(order(np.asarray(x)), order(expected), atol=1e-6)


def test_checkerboard(key):
    x = np.asarray(data.checkerboard(N, key=key, width=2.0))
    assert np.abs(x).max() <= 4
    cell = np.floor(x / 2).astype(int) + 2
    on_edge = (cell == 4).any(axis=1)
    assert on_edge.sum() < 5 and np.all(cell[~on_edge].sum(axis=1) % 2 == 0)
    _within(x, 0.0)
    _within(x**2, 64 / 12)
    counts = np.bincount(4 * cell[~on_edge, 0] + cell[~on_edge, 1], minlength=16)
    assert np.sum(counts > 0) == 8 and counts[counts > 0].min() > 0.8 * N / 8


def test_circles_and_swiss_roll(key):
    x = data.circles(N, key=key)
    _within(x, 0.0)
    _within(jnp.sum(x**2, axis=1), (1 + 4 + 9) / 3 + 2 * 0.08**2)
    roll = data.swiss_roll(N, key=key, noise=0.0)
    r = np.linalg.norm(roll, axis=1) / 3
    _within(r, 2 / 3)
    angle = 2 * math.pi * 1.5 * r
    np.testing.assert_allclose(roll, 3 * r[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), atol=1e-4)


def test_pinwheel(key):
    x = data.pinwheel(N, key=key)
    _within(x, 0.0)
    _within(jnp.sum(x**2, axis=1), 1 + 0.3**2 + 0.05**2)


def test_errors(key):
    cases = [
        (lambda: data.checkerboard(5, key=key, side=3), "even"),
        (lambda: data.grid_gaussians(5, key=key, side=0), "side"),
        (lambda: data.circles(5, key=key, radii=()), "radii"),
        (lambda: data.pinwheel(5, key=key, arms=0), "arms"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
