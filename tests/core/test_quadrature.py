"""Gaussian averages with closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from physml.core import gauss_hermite, gaussian_average


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


def test_closed_forms():
    """Characteristic function e^{-t^2/2}, and the derivative of an average with respect to a parameter."""
    with jax.enable_x64(True):
        t = jnp.asarray(1.7)
        out = gaussian_average(lambda z: {"cos": jnp.cos(t * z), "v": jnp.stack([z, z**2])})
        np.testing.assert_allclose(out["cos"], math.exp(-(1.7**2) / 2), rtol=1e-13)
        np.testing.assert_allclose(out["v"], [0, 1], atol=1e-13)
        slope = jax.grad(lambda t: gaussian_average(lambda z: jnp.cos(t * z)))(t)
        np.testing.assert_allclose(slope, -1.7 * math.exp(-(1.7**2) / 2), rtol=1e-12)


def test_two_dimensions():
    """Correlated Gaussians x = z1, y = c z1 + s z2: <x^2 y^2> = 1 + 2 c^2, and Grothendieck's <sin sin>."""
    c = 0.6
    s = math.sqrt(1 - c * c)
    average = lambda f: gaussian_average(lambda a, b: f(a, c * a + s * b), 20, dims=2)
    np.testing.assert_allclose(average(lambda x, y: x**2 * y**2), 1 + 2 * c**2, rtol=1e-5)
    np.testing.assert_allclose(average(lambda x, y: jnp.sin(x) * jnp.sin(y)), math.exp(-1) * math.sinh(c), rtol=1e-5)


def test_events_have_probabilities():
    """f may return integers or booleans: nodes on either side of zero weigh the same."""
    np.testing.assert_allclose(gaussian_average(lambda z: z > 0.0, 20), 0.5, rtol=1e-6)
    np.testing.assert_allclose(gaussian_average(lambda z: jnp.sign(z).astype(int) + 3, 20), 3.0, rtol=1e-6)


def test_dtypes():
    assert gauss_hermite(3)[0].dtype == jnp.float32
    assert gauss_hermite(3, jnp.float16)[1].dtype == jnp.float16
    assert gaussian_average(jnp.tanh, 8).dtype == jnp.float32
    assert gaussian_average(lambda z: jnp.exp(lax.complex(0.0 * z, z)), 30).dtype == jnp.complex64
    with jax.enable_x64(True):
        assert gaussian_average(jnp.tanh, 8, dtype=jnp.float32).dtype == jnp.float32


def test_errors():
    for n in (0, -3, 2.5):
        # A number that is not an integer is caught by the type checker where that is switched on.
        with pytest.raises((ValueError, TypeError), match=str(n)):
            gauss_hermite(n)
    with pytest.raises(ValueError, match="dims"):
        gaussian_average(jnp.tanh, 8, dims=0)
