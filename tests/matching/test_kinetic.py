"""Kinetic-optimal paths: limits with known energy, and the formula for the energy against velocities."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import matching


def _finite(points, **options):
    denoiser = matching.empirical_denoiser(matching.trigonometric(), points, matching.StudentNoise(math.inf))
    return jax.jit(lambda: matching.kinetic_metric(denoiser, points, key=jax.random.key(1), **options))()


def test_gaussian_data_need_only_the_change_of_scale():
    law = (jnp.ones(1), jnp.zeros((1, 2)), 4 * jnp.eye(2)[None])
    x1 = 2 * jax.random.normal(jax.random.key(0), (400, 2))
    x1 = 2 * x1 / jnp.sqrt(jnp.mean(x1**2))
    denoiser = matching.exact_fields(matching.trigonometric(), None, law).denoiser
    metric = matching.kinetic_metric(denoiser, x1, key=jax.random.key(1), angles=17, samples=400)
    np.testing.assert_allclose(metric.minimum, 1.0, atol=1e-3)
    # The straight path of a Gaussian has the energy of its width, r' with r = |(1 - t, 2t)|.
    t = np.linspace(0, 1, 20001)
    r = np.sqrt((1 - t) ** 2 + 4 * t**2)
    exact = np.mean((np.diff(r) / np.diff(t)) ** 2)
    np.testing.assert_allclose(metric.energy(matching.linear()), exact, rtol=2e-3)


def test_one_point_makes_the_straight_path_optimal():
    metric = _finite(jnp.array([[1.5, -0.5, 0.7]]), angles=33, samples=512)
    np.testing.assert_allclose(metric.separation, np.ones(33), atol=0.03)
    path = metric.optimal()
    for t in (0.2, 0.5, 0.8):
        (a, b, _), _ = path.coefficients(t)
        np.testing.assert_allclose([a, b], [1 - t, t], atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("x64", "tol"), [(False, 1e-5), (True, 1e-5)])
def test_the_optimum_is_the_minimum(x64, tol):
    with jax.enable_x64(x64):
        points = jnp.asarray(np.random.default_rng(0).standard_normal((20, 2)))
        metric = _finite(points, angles=33, samples=512)
        assert metric.minimum.dtype == points.dtype
        path = metric.optimal()
        best = metric.energy(path)
        # The cut leaves a thousandth of the time out at both ends.
        np.testing.assert_allclose(best, metric.minimum, rtol=6e-3)
        assert metric.energy(matching.linear()) > best
        bent = matching.Path(lambda t: path.alpha(t) + 0.05 * t * (1 - t), path.beta, cut=1e-3)
        assert metric.energy(bent) > best
        _, (da, db, _) = path.coefficients(jnp.asarray(0.4, points.dtype))
        h = 1e-3
        (ap, bp, _), _ = path.coefficients(jnp.asarray(0.4 + h, points.dtype))
        (am, bm, _), _ = path.coefficients(jnp.asarray(0.4 - h, points.dtype))
        np.testing.assert_allclose([da, db], [(ap - am) / (2 * h), (bp - bm) / (2 * h)], rtol=2e-2)
        ends = [path.coefficients(jnp.asarray(t, points.dtype))[0][:2] for t in (0.0, 1.0)]
        np.testing.assert_allclose(ends, [(1, 0), (0, 1)], atol=2e-3)


def test_energy_is_that_of_the_exact_velocity():
    points = jnp.asarray(np.random.default_rng(1).standard_normal((6, 2)), jnp.float32)
    metric, path, n = _finite(points, samples=16384), matching.linear(), 20_000
    velocity = matching.convert(
        matching.empirical_denoiser(path, points, matching.StudentNoise(math.inf)), path, "denoiser", "velocity"
    )
    k0, k1 = jax.random.split(jax.random.key(5))
    t = (jnp.arange(n, dtype=jnp.float32) + 0.5) / n
    x0, x1 = jax.random.normal(k0, (n, 2)), points[jax.random.randint(k1, (n,), 0, 6)]
    power = jax.vmap(lambda t, x0, x1: jnp.mean(velocity(t, path.at(t, x0, x1, x0).x) ** 2))(t, x0, x1)
    # The metric's own noise is that of 16384 pairs.
    error = float(jnp.std(power)) * (1 / np.sqrt(n) + 1 / np.sqrt(16384))
    assert abs(float(power.mean() - metric.energy(path))) < 5 * error


def test_gradient_of_the_minimum_in_the_data():
    with jax.enable_x64(True):
        points = jnp.asarray(np.random.default_rng(2).standard_normal((5, 2)))
        value = jax.jit(lambda s: _finite(points * jnp.array([1.0, 1.0 + s])[None], angles=9, samples=64).minimum)
        h = 1e-5
        np.testing.assert_allclose(jax.grad(value)(0.1), (value(0.1 + h) - value(0.1 - h)) / (2 * h), rtol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="angles"):
        _finite(jnp.ones((3, 2)), angles=2)
    with pytest.raises(ValueError, match="samples must be"):
        _finite(jnp.ones((3, 2)), samples=3)
    with pytest.raises(ValueError, match="gamma"):
        _finite(jnp.ones((3, 2)), angles=3, samples=2).energy(matching.brownian_bridge(1.0))
