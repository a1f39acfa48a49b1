"""Theory computes in float64 whatever the caller's precision; so do its derivatives, without warnings."""

import warnings

import jax.numpy as jnp
import pytest
from helpers import assert_gradient

from physml import particles as p

M = jnp.asarray([[1.0, 0.4], [-0.3, 0.8]])


def _half(x):
    return jnp.sum(x**2) / 2


CASES = {
    "linear_entropy_production": (lambda h: p.linear_entropy_production(M + h, jnp.asarray([0.5, 0.7]))[0], 0.1),
    "consensus_point_gaussian": (lambda h: p.consensus_point_gaussian(M[0], M @ M.T + h, M, 2.0)[0], 0.2),
    "virial_law": (lambda h: jnp.sum(p.virial_law(3, h).cumulants), 1.3),
    "limit_variance": (lambda h: p.limit_variance(_half, h, nodes=16), 1.3),
    "stationary_covariance": (lambda h: jnp.sum(p.stationary_covariance(p.overdamped(_half, h), M[0])), 0.3),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient_in_float32(name):
    f, at = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_gradient(f, jnp.asarray(at, jnp.float32), step=1e-2, rtol=5e-3)
