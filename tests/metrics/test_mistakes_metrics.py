"""What metrics refuse, and integers that they take for numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_refused

from physml import metrics

KEY, OLD = jax.random.key(0), jax.random.PRNGKey(0)
X = jnp.arange(12.0).reshape(6, 2)
MISTAKES = {
    "p": (lambda: metrics.wasserstein_1d(X[:, 0], X[:, 1], p=0), "p, the order of the distance, must be at least 1"),
    "bandwidth 0": (lambda: metrics.mmd(X, X, bandwidths=0.0), "bandwidths must be positive"),
    "bandwidth < 0": (lambda: metrics.mmd(X, X, bandwidths=(1.0, -1.0)), "bandwidths must be positive"),
    "asymmetric": (
        lambda: metrics.gaussian_wasserstein2(X[0], jnp.asarray([[1.0, 0.5], [0.0, 1.0]]), X[0], jnp.eye(2)),
        "cov_a must be symmetric",
    ),
    "negative": (lambda: metrics.gaussian_wasserstein2(X[0], jnp.eye(2), X[0], -jnp.eye(2)), "cov_b must be positive"),
    "legacy key, sliced": (lambda: metrics.wasserstein2_sliced(X, X, key=OLD), "typed key"),
    "legacy key, test": (lambda: metrics.permutation_test(X, X, key=OLD), "typed key"),
    "huge": (lambda: metrics.energy_distance(1e30 * X, X), "squares overflow"),
    "huge, mmd": (lambda: metrics.mmd(X, 1e30 * X), "squares overflow"),
    "huge, w2": (lambda: metrics.wasserstein2(1e30 * X, X), "squares overflow"),
    "complex": (lambda: metrics.mmd(X.astype(jnp.complex64), X), "real numbers"),
    "float projections": (lambda: metrics.wasserstein2_sliced(X, X, key=KEY, projections=2.5), "projections must be"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    assert_refused(*MISTAKES[name])


@pytest.mark.parametrize("distance", [metrics.mmd, metrics.energy_distance, metrics.wasserstein2])
def test_integers_are_numbers(distance):
    x, y = np.arange(12).reshape(6, 2), np.arange(12).reshape(6, 2) ** 2
    np.testing.assert_allclose(distance(x, y), distance(x.astype(np.float32), y.astype(np.float32)))


def test_parameters_closed_over_in_jit():
    h, c = jnp.asarray(0.7), jnp.eye(2)
    call = lambda x: (metrics.mmd(x, X, bandwidths=h), metrics.gaussian_wasserstein2(x[0], c, x[1], c),
                      metrics.wasserstein_1d(x[:, 0], x[:, 1], p=1 + h))  # fmt: skip
    assert all(bool(jnp.isfinite(v)) for v in jax.jit(call)(X + 1))
