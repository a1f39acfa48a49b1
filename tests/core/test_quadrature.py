"""Quadrature rules against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import (
    gauss_hermite,
    gauss_hermite_grid,
    gauss_legendre,
    gauss_legendre_panels,
    trapezoid_matrix,
    trapezoid_weights,
)


@pytest.mark.parametrize("n", [1, 2, 5, 20, 200])
def test_moments_are_exact_up_to_degree_2n_minus_1(n):
    with jax.enable_x64(True):
        z, w = map(np.asarray, gauss_hermite(n))
    assert z.shape == w.shape == (n,) and (w >= 0).all() and z.dtype == np.float64
    for degree in range(min(2 * n, 13)):
        moment = 0 if degree % 2 else math.prod(range(1, degree, 2))
        np.testing.assert_allclose(w @ z**degree, moment, rtol=1e-12, atol=1e-12 * math.factorial(degree))
    if n < 7:  # the first moment it gets wrong is off by n!
        np.testing.assert_allclose(math.prod(range(1, 2 * n, 2)) - w @ z ** (2 * n), math.factorial(n), rtol=1e-10)


def test_product_rule_of_correlated_gaussians():
    """Correlated Gaussians x = z1, y = c z1 + s z2: <x^2 y^2> = 1 + 2 c^2, and Grothendieck's <sin sin>."""
    c = 0.6
    s = math.sqrt(1 - c * c)
    z, w = map(np.asarray, gauss_hermite_grid(20, 2))
    assert z.shape == (400, 2) and w.shape == (400,)
    x, y = z[:, 0], c * z[:, 0] + s * z[:, 1]
    np.testing.assert_allclose(w @ (x**2 * y**2), 1 + 2 * c**2, rtol=1e-5)
    np.testing.assert_allclose(w @ (np.sin(x) * np.sin(y)), math.exp(-1) * math.sinh(c), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_gauss_legendre_is_exact_up_to_degree_2n_minus_1(n):
    x, w = gauss_legendre(n, -0.3, 1.7)
    for degree in range(2 * n):
        exact = (1.7 ** (degree + 1) - (-0.3) ** (degree + 1)) / (degree + 1)
        np.testing.assert_allclose(w @ x**degree, exact, rtol=1e-12)
    x, w = gauss_legendre_panels(np.asarray([-0.3, 0.1, 1.0, 1.7]), n)
    assert x.shape == (3 * n,) and np.all(np.diff(x) > 0)
    np.testing.assert_allclose(w @ x, (1.7**2 - 0.3**2) / 2, rtol=1e-12)


def test_trapezoid_weights():
    h, steps = 0.25, 6
    matrix = np.asarray(trapezoid_matrix(steps, h, jnp.float32))
    f = np.arange(steps + 1) ** 2.0
    for k in range(steps + 1):
        np.testing.assert_allclose(matrix[k] @ f, np.trapezoid(f[: k + 1], dx=h), rtol=1e-6)
        np.testing.assert_array_equal(trapezoid_weights(jnp.int32(k), steps + 1, h, jnp.float32), matrix[k])


def test_dtypes():
    assert gauss_hermite(3)[0].dtype == jnp.float32
    assert gauss_hermite(3, jnp.float16)[1].dtype == jnp.float16
    assert gauss_hermite_grid(3, 2, jnp.float16)[0].dtype == jnp.float16


def test_errors():
    for n in (0, -3, 2.5):
        # A number that is not an integer is caught by the type checker where that is switched on.
        with pytest.raises((ValueError, TypeError), match=str(n)):
            gauss_hermite(n)
    with pytest.raises(ValueError, match="dims"):
        gauss_hermite_grid(8, 0)
