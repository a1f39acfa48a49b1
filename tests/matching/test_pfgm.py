"""PFGM++ against its own electrostatics, Student's t of SciPy, and EDM as D goes to infinity."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from physml import matching as m


@pytest.mark.parametrize("degrees", [1.0, 3.5, 128.0, math.inf])
def test_noise_is_student(degrees, key):
    noise = m.StudentNoise(degrees)
    x = np.asarray(noise.sample((20_000, 3), key=key))
    law = scipy.stats.multivariate_t(np.zeros(3), np.eye(3), df=degrees)
    np.testing.assert_allclose(jax.vmap(noise.log_prob)(x[:5]), law.logpdf(x[:5]), rtol=1e-4)
    one = scipy.stats.norm if math.isinf(degrees) else scipy.stats.t(degrees)
    for j in range(3):
        assert scipy.stats.kstest(x[:, j], one.cdf).pvalue > 1e-4
    if not math.isinf(degrees):
        # the radius law of the paper: r^2 / (r^2 + D) is Beta(N/2, D/2)
        square = (x.astype(float) ** 2).sum(1)
        assert scipy.stats.kstest(square / (square + degrees), scipy.stats.beta(1.5, degrees / 2).cdf).pvalue > 1e-4


def test_the_denoiser_is_the_field_of_the_charges():
    """(x - denoiser)/sigma is E_x sqrt(D)/E_r of the Poisson field of point charges in N + D dimensions."""
    with jax.enable_x64(True):
        points = jax.random.normal(jax.random.key(0), (6, 3), jnp.float64)
        x, degrees, path = jnp.asarray([0.3, -0.8, 1.1]), 5.0, m.edm(0.01, 10.0)
        denoiser = m.empirical_denoiser(path, points, m.StudentNoise(degrees))
        for t in (0.2, 0.7):
            sigma = path.coefficients(t)[0][0]
            r = sigma * math.sqrt(degrees)
            gap = x[None, :] - points
            charge = ((gap**2).sum(1) + r**2) ** (-(3 + degrees) / 2)
            field_x, field_r = charge @ gap, charge.sum() * r
            np.testing.assert_allclose((x - denoiser(t, x)) / sigma, math.sqrt(degrees) * field_x / field_r, rtol=1e-10)


def test_infinite_dimension_is_edm():
    with jax.enable_x64(True):
        points = jax.random.normal(jax.random.key(1), (5, 2), jnp.float64)
        path, x = m.edm(0.05, 10.0), jnp.asarray([0.4, 0.2])
        law = (jnp.ones(5), points, 1e-12 * jnp.broadcast_to(jnp.eye(2), (5, 2, 2)))
        edm = m.exact_fields(path, None, law).denoiser
        gaps = [
            float(jnp.abs(m.empirical_denoiser(path, points, m.StudentNoise(d))(0.6, x) - edm(0.6, x)).max())
            for d in (1e3, 1e4, 1e5, math.inf)
        ]
        assert gaps[-1] < 1e-9
        # the approach is as 1/D
        np.testing.assert_allclose(np.array(gaps[:2]) / np.array(gaps[1:3]), 10.0, rtol=0.1)


@pytest.mark.parametrize("degrees", [2.0, 64.0, math.inf])
def test_samples_return_to_the_charges(degrees, key):
    """The exact flow carries Student noise onto the points, each with its share, 5 standard errors."""
    points = jnp.asarray([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5], [0.0, 0.2]])
    path, noise = m.edm(0.01, 40.0), m.StudentNoise(degrees)
    velocity = m.convert(m.empirical_denoiser(path, points, noise), path, "denoiser", "velocity")
    x0 = jax.vmap(path.start)(noise.sample((1500, 2), key=key))
    x1 = jax.jit(jax.vmap(lambda x: m.sample(velocity, x, steps=60)))(x0)
    distance = jnp.sqrt(((x1[:, None, :] - points[None]) ** 2).sum(-1))
    assert jnp.mean(distance.min(1) < 0.1) > 0.97
    share = np.bincount(np.asarray(distance.argmin(1)), minlength=4) / 1500
    assert np.abs(share - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / 1500)


def test_gradient_and_bad_input():
    with jax.enable_x64(True):
        points, path = jnp.asarray([[1.0, 0.0], [0.0, 1.0]]), m.edm(0.05, 5.0)

        def end(degrees):
            denoiser = m.empirical_denoiser(path, points, m.StudentNoise(degrees))
            velocity = m.convert(denoiser, path, "denoiser", "velocity")
            return m.sample(velocity, jnp.asarray([1.0, -2.0]), steps=10)[0]

        numeric = (end(3.0 + 1e-5) - end(3.0 - 1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(end)(3.0), numeric, rtol=1e-6)
    with pytest.raises(ValueError, match="degrees must be positive"):
        m.StudentNoise(0.0)
    with pytest.raises(ValueError, match="without gamma"):
        m.empirical_denoiser(m.brownian_bridge(1.0), points, m.StudentNoise(1.0))
