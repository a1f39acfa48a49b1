"""Special functions against SciPy, out to where the plain formulas fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from physml.core import log_2cosh, mills, normal_tail, normalise_log_weights, sech2, tanh_family

WIDE = np.concatenate([-np.geomspace(1e-9, 300, 40)[::-1], [0.0], np.geomspace(1e-9, 300, 40)])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_tanh_family():
    tanh, slope, log = tanh_family(jnp.asarray(WIDE))
    np.testing.assert_allclose(tanh, np.tanh(WIDE), rtol=1e-14)
    np.testing.assert_allclose(slope, 1 / np.cosh(WIDE) ** 2, rtol=1e-13)
    np.testing.assert_allclose(log, np.logaddexp(WIDE, -WIDE), rtol=1e-14)
    assert np.all(sech2(jnp.asarray(WIDE)) == slope) and np.all(log_2cosh(jnp.asarray(WIDE)) == log)


@pytest.mark.parametrize("x", [-3.0, -0.7, 0.0, 0.4, 2.5])
def test_derivatives_of_the_tanh_family(x):
    tanh, s = np.tanh(x), 1 / np.cosh(x) ** 2
    first, second = jax.jacfwd(tanh_family)(jnp.asarray(x)), jax.jacfwd(jax.jacfwd(tanh_family))(jnp.asarray(x))
    np.testing.assert_allclose(first, [s, -2 * tanh * s, tanh], atol=1e-14)
    np.testing.assert_allclose(second, [-2 * tanh * s, -2 * s**2 + 4 * tanh**2 * s, s], atol=1e-14)


def test_normal_tail():
    x = np.linspace(-40, 10, 101)
    log, slope = normal_tail(jnp.asarray(x))
    np.testing.assert_allclose(log, scipy.special.log_ndtr(x), rtol=1e-10, atol=1e-15)
    # erfcx gives the ratio without cancellation: phi/Phi = sqrt(2/pi)/erfcx(-x/sqrt 2).
    ratio = np.sqrt(2 / np.pi) / scipy.special.erfcx(-x / np.sqrt(2))
    np.testing.assert_allclose(slope, ratio, rtol=1e-8)  # what jax's log_ndtr has
    np.testing.assert_allclose(jax.vmap(jax.grad(mills))(jnp.asarray(x)), -ratio * (ratio + x), rtol=1e-5, atol=1e-300)


def test_log_weights_that_are_lost_are_counted():
    weights, lost = normalise_log_weights(jnp.asarray([0.0, jnp.nan, np.log(3.0), jnp.inf, -jnp.inf]))
    np.testing.assert_allclose(weights, [0.25, 0, 0.75, 0, 0])
    assert lost == 2
    nothing, lost = normalise_log_weights(jnp.full((2, 3), -jnp.inf))
    assert np.all(nothing == 0) and np.all(lost == 0)
