"""Kernels of wide networks against closed forms, quadrature, sampled tangents; errors, gradients, both precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.dmft.gaussian.edge_of_chaos import correlation_depth, edge_of_chaos
from physml.dmft.gaussian.infinite_width import nngp, ntk, residual_nngp, residual_ntk
from physml.dmft.gaussian.pairs import moment, pair_average, pair_slope


def kernel(n=4, d=6, seed=0):
    x = jax.random.normal(jax.random.key(seed), (n, d), float)
    return x @ x.T / d


def product_grid(f, K, nodes=60):
    """<f(u) f(v)> for the first two inputs on a product of Gauss-Hermite rules."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    C = np.linalg.cholesky(np.asarray(K)[:2, :2])
    u, v = C[0, 0] * z[:, None] + 0 * z, C[1, 0] * z[:, None] + C[1, 1] * z
    return (w[:, None] * w * np.asarray(f(jnp.asarray(u)) * f(jnp.asarray(v)))).sum()


def test_coefficients_agree_with_the_product_grid_and_with_closed_forms():
    with jax.enable_x64(True):
        K = 0.4 * kernel()
        np.testing.assert_allclose(pair_average(K, jnp.tanh)[0, 1], product_grid(jnp.tanh, K), rtol=1e-8)
        erf = lambda x: jax.scipy.special.erf(x)
        np.testing.assert_allclose(pair_average(K, erf), pair_average(K, "erf"), atol=1e-12)
        np.testing.assert_allclose(pair_slope(K, erf), pair_slope(K, "erf"), atol=1e-12)
        # Identical inputs, and nearly identical ones, against the one-dimensional average.
        for c in (1.0, 1 - 1e-12):
            pair = 0.9 * jnp.array([[1.0, c], [c, 1.0]])
            np.testing.assert_allclose(
                pair_average(pair, "tanh")[0, 1], moment(lambda x: jnp.tanh(x) ** 2, 0.9), rtol=1e-11
            )


@pytest.mark.parametrize("phi", ["relu", "erf", "tanh"])
def test_the_slope_is_the_derivative_of_the_average(phi):
    with jax.enable_x64(True):
        K = kernel()
        at = lambda c: pair_average(K.at[0, 1].set(c), phi)[0, 1]
        np.testing.assert_allclose(jax.grad(at)(K[0, 1]), pair_slope(K, phi)[0, 1], rtol=1e-9)


def test_a_relu_network_keeps_the_diagonal_and_follows_its_arc():
    with jax.enable_x64(True):
        K = nngp(kernel(), depth=3, phi="relu", weight_var=2.0, bias_var=0.0)
        np.testing.assert_allclose(jnp.diagonal(K), 2 * jnp.diagonal(kernel()), rtol=1e-12)
        orthogonal = nngp(jnp.eye(2), depth=1, phi="relu", weight_var=2.0)
        np.testing.assert_allclose(orthogonal[0, 1], 2 / jnp.pi, rtol=1e-12)
        deep, theta = ntk(kernel(), depth=3, phi="linear", weight_var=1.0)
        np.testing.assert_allclose(deep, kernel(), rtol=1e-12)
        np.testing.assert_allclose(theta, 4 * kernel(), rtol=1e-12)


def test_residual_limit():
    with jax.enable_x64(True):
        K = residual_nngp(jnp.eye(2), phi="relu")
        np.testing.assert_allclose(K[0, 0], jnp.exp(0.5), rtol=1e-8)
        np.testing.assert_allclose(K[0, 1] / K[0, 0], 0.14135, atol=2e-5)
        gaps = jnp.stack([residual_nngp(jnp.eye(2), L, "tanh")[0, 1] - residual_nngp(jnp.eye(2), phi="tanh")[0, 1]
                          for L in (32, 64)])  # fmt: skip
        assert abs(gaps[0] / gaps[1] - 2) < 0.1 or jnp.abs(gaps).max() < 1e-12
        # Linear branches: K = K^x e^t, and 1 + t of it is the tangent kernel of stream and branches.
        K, theta = residual_ntk(kernel(), phi="linear", time=0.7)
        np.testing.assert_allclose(K, kernel() * jnp.exp(0.7), rtol=1e-8)
        np.testing.assert_allclose(theta, (2 + 0.7) * K, rtol=1e-8)


@pytest.mark.parametrize("phi", ["relu", "tanh"])
def test_gradients_against_differences_and_at_correlation_one(phi):
    with jax.enable_x64(True):
        K = kernel()
        same = jnp.block([[K, K], [K, K]])
        f = lambda w, b: ntk(K, 2, phi, w, b)[1].sum() + residual_nngp(K, 3, phi, w, b).sum()
        w, b, h = jnp.asarray(1.7), jnp.asarray(0.2), 1e-5
        got = jax.grad(f, (0, 1))(w, b)
        np.testing.assert_allclose(got[0], (f(w + h, b) - f(w - h, b)) / (2 * h), rtol=1e-6)
        np.testing.assert_allclose(got[1], (f(w, b + h) - f(w, b - h)) / (2 * h), rtol=1e-6)
        to_kernel = jax.grad(lambda k: nngp(k, 2, phi, 1.5, 0.1).sum())(same)
        assert bool(jnp.isfinite(to_kernel).all())
        # Moving the identical pair together: 4 entries, each of slope dK'/dK.
        line = lambda a: nngp(a * same, 2, phi, 1.5, 0.1)[0, 4]
        np.testing.assert_allclose(jax.grad(line)(1.0), (line(1 + h) - line(1 - h)) / (2 * h), rtol=1e-6)
        assert bool(jnp.isfinite(nngp(jnp.zeros((2, 2)), 2, phi, 1.5, 0.1)).all())
        assert bool(jnp.isfinite(jax.grad(lambda k: nngp(k, 2, phi).sum())(jnp.zeros((2, 2)))).all())


def test_precisions_agree():
    K = np.asarray(kernel(), np.float32)
    low = nngp(K, 3, "tanh", 1.5, 0.1)
    assert low.dtype == jnp.float32
    with jax.enable_x64(True):
        high = nngp(K.astype(np.float64), 3, "tanh", 1.5, 0.1)
        assert high.dtype == jnp.float64
    np.testing.assert_allclose(low, high, rtol=3e-6)


def test_edge_of_chaos_and_depth():
    with jax.enable_x64(True):
        edge = edge_of_chaos("tanh", 0.05)
        np.testing.assert_allclose(edge.weight_var, 1.7610, atol=1e-4)
        np.testing.assert_allclose(correlation_depth("tanh", edge.weight_var, 0.05).chi, 1, atol=1e-9)
        np.testing.assert_allclose(edge_of_chaos("relu").weight_var, 2, rtol=1e-9)
        np.testing.assert_allclose(edge_of_chaos("tanh").weight_var, 1, atol=1e-6)
        slope = jax.grad(lambda b: edge_of_chaos("tanh", b).weight_var)(0.05)
        ends = [edge_of_chaos("tanh", 0.05 + h).weight_var for h in (1e-5, -1e-5)]
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6)
        depth = lambda w: correlation_depth("tanh", w, 0.05).depth
        for w in (1.2, 2.5):
            np.testing.assert_allclose(jax.grad(depth)(w), (depth(w + 1e-5) - depth(w - 1e-5)) / 2e-5, rtol=1e-4)
        # The kernel itself forgets at this rate.
        for w, deep in ((1.2, 25), (2.5, 60)):
            phase = correlation_depth("tanh", w, 0.05)
            q = phase.variance
            start = (q / w - 0.05 / w) * jnp.eye(2) + (0.2 * q - 0.05) / w * (1 - jnp.eye(2))
            gap = [nngp(start, L, "tanh", w, 0.05)[0, 1] / q - phase.correlation for L in (deep, deep + 1)]
            np.testing.assert_allclose(gap[1] / gap[0], jnp.exp(-1 / phase.depth), rtol=1e-3)


def test_errors():
    bad = jnp.array([[1.0, 2.0], [2.0, 1.0]])
    for call, message in (
        (lambda: nngp(bad), "positive semidefinite"),
        (lambda: nngp(jnp.array([[1.0, 0.5], [0.1, 1.0]])), "symmetric"),
        (lambda: nngp(jnp.ones((2, 3))), "square"),
        (lambda: nngp(jnp.eye(2), phi="rely"), "relu, erf, linear, tanh"),
        (lambda: nngp(jnp.eye(2), depth=-1), "depth"),
        (lambda: nngp(jnp.eye(2), weight_var=-1.0), "weight_var"),
        (lambda: edge_of_chaos("relu", 0.1), "bias_var must be 0"),
        (lambda: correlation_depth("relu", 2.5, 0.1), "no fixed point"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert bool(jnp.isfinite(jax.jit(nngp)(bad)[0, 0]))  # nothing is checked where nothing is known
