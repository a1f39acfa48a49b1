"""The stationary density on a grid against Gaussian, equilibrium and uniform states that are known."""

import numpy as np
import pytest

from physml.particles.theory.fokker_planck import stationary_density


def test_rotation_converges_at_second_order():
    k, w, D = 1.0, 0.8, (0.5, 0.5)
    drift = lambda x, y: (-k * x - w * y, w * x - k * y)
    solve = lambda n: stationary_density(drift, D, ((-5, 5), (-5, 5)), (n, n))
    errors = [abs(solve(n).entropy_production / (2 * w**2 / k) - 1) for n in (40, 80)]
    assert errors[1] < 0.005
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.15)
    found = solve(80)
    exact = np.exp(-(found.x[:, None] ** 2 + found.y[None, :] ** 2)) / np.pi  # D/k = 1/2
    np.testing.assert_allclose(found.density, exact, atol=0.01 * exact.max())


def test_equilibrium_has_no_currents():
    drift = lambda x, y: (np.sin(x) + 0 * y, -3 * y + 0 * x)
    found = stationary_density(drift, (0.5, 1.5), ((0, 2 * np.pi), (-4, 4)), (48, 64), periodic=(True, False))
    assert abs(found.entropy_production) < 1e-4
    area = (found.x[1] - found.x[0]) * (found.y[1] - found.y[0])
    np.testing.assert_allclose(found.density.sum() * area, 1, rtol=1e-12)
    exact = np.exp(-2 * np.cos(found.x))
    np.testing.assert_allclose(found.density.sum(1) / found.density.sum(), exact / exact.sum(), rtol=0.02)


def test_constant_drift_around_a_ring():
    found = stationary_density(
        lambda x, y: (0 * x + 1.2, 0 * y), (0.4, 1.0), ((0, 1), (0, 1)), (8, 5), periodic=(True, True)
    )
    np.testing.assert_allclose(found.density, 1, rtol=1e-9)
    np.testing.assert_allclose(found.entropy_production, 1.2**2 / 0.4, rtol=1e-9)  # b^2/D, at any resolution


def test_errors():
    drift = lambda x, y: (x, y)
    with pytest.raises(ValueError, match="cells"):
        stationary_density(drift, (1.0, 1.0), ((0, 1), (0, 1)), (2, 9))
    with pytest.raises(ValueError, match="diffusion must be positive"):
        stationary_density(drift, (0.0, 1.0), ((0, 1), (0, 1)), (9, 9))
