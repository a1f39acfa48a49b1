"""Networks of finite width against the quartic recursion, for every ensemble of weights; the Edgeworth density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.dmft.gaussian.finite_width import edgeworth_density, excess_kurtosis, quartic, sample_network
from physml.dmft.gaussian.infinite_width import nngp, residual_nngp
from physml.dmft.gaussian.weight_ensembles import (
    BlockSparseWeights,
    DilutedWeights,
    GaussianWeights,
    LowRankWeights,
    OrthogonalWeights,
)

ENSEMBLES = [GaussianWeights(), OrthogonalWeights(), LowRankWeights(8), BlockSparseWeights(4), DilutedWeights(8)]


@pytest.mark.parametrize("weights", ENSEMBLES, ids=lambda w: type(w).__name__)
def test_entries_have_variance_one_over_n(weights, key):
    W = jax.vmap(lambda k: weights.draw(16, key=k, dtype=jnp.float32))(jax.random.split(key, 400))
    square = jnp.mean(W**2, (1, 2))
    np.testing.assert_allclose(square.mean(), 1 / 16, atol=5 * float(square.std()) / 20 + 1e-7)
    entry = jnp.mean(W[:, 0, 1] ** 2)
    np.testing.assert_allclose(entry, 1 / 16, atol=5 * float(jnp.std(W[:, 0, 1] ** 2)) / 20)


def test_structures():
    key = jax.random.key(1)
    O = OrthogonalWeights().draw(12, key=key)
    np.testing.assert_allclose(O @ O.T, np.eye(12), atol=1e-5)
    assert np.linalg.matrix_rank(np.asarray(LowRankWeights(3).draw(12, key=key)), tol=1e-4) == 3
    assert set((DilutedWeights(5).draw(12, key=key) != 0).sum(1).tolist()) == {5}
    assert set((BlockSparseWeights(3).draw(12, key=key) != 0).sum(1).tolist()) == {4}


def test_closed_forms_of_the_quartic():
    with jax.enable_x64(True):
        for phi, c, w in (("linear", 2, 1.0), ("relu", 5, 2.0)):
            np.testing.assert_allclose(quartic(1.3, 1000, 4, phi, w).excess_kurtosis, 3 * 4 * c / 1000, rtol=1e-5)
            np.testing.assert_allclose(excess_kurtosis(50, 3, phi), 3 * ((1 + c / 50) ** 3 - 1), rtol=1e-12)
        # Linear orthogonal layers keep the norm that the first layer drew; a rank r adds a linear layer of width r.
        np.testing.assert_allclose(
            quartic(1.0, 50, 6, "linear", 1.0, weights=OrthogonalWeights()).excess_kurtosis, 6 / 50, rtol=1e-9
        )
        exact = 3 * ((1 + 2 / 50) ** 3 * (1 + 2 / 10) ** 2 - 1)
        np.testing.assert_allclose(excess_kurtosis(50, 3, "linear", weights=LowRankWeights(10)), exact, rtol=1e-12)
        # The general recursion is the leading term: their distance falls as 1/n^2.
        for weights in (
            lambda n: GaussianWeights(),
            lambda n: LowRankWeights(n // 4),
            lambda n: DilutedWeights(n // 4),
        ):
            off = [quartic(1.0, n, 3, "relu", 2.0, weights=weights(n)).excess_kurtosis
                   - excess_kurtosis(n, 3, "relu", weights=weights(n)) for n in (400, 800)]  # fmt: skip
            assert 3.8 < off[0] / off[1] < 4.2
        q = quartic(0.8, 64, 3, "tanh", 1.5, 0.1)
        np.testing.assert_allclose(q.variance, nngp(jnp.full((1, 1), 0.8), 3, "tanh", 1.5, 0.1)[0, 0], rtol=1e-9)
        f = lambda w: quartic(0.8, 64, 3, "tanh", w, 0.1).quartic
        np.testing.assert_allclose(jax.grad(f)(1.5), (f(1.5 + 1e-5) - f(1.5 - 1e-5)) / 2e-5, rtol=1e-6)
    assert quartic(0.8, 64).quartic.dtype == jnp.float32


@pytest.mark.parametrize("weights", ENSEMBLES, ids=lambda w: type(w).__name__)
def test_sampled_tanh_networks_scatter_as_the_recursion_says(weights, key):
    n, depth, count = 32, 3, 2000
    x = jnp.ones((1, 4))
    keys = jax.random.split(key, count)
    one = lambda k: sample_network(x, key=k, width=n, depth=depth, phi="tanh", weight_var=2.0, bias_var=0.1,
                                   weights=weights).kernel[0, 0]  # fmt: skip
    Q = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=50))(keys), np.float64)
    theory = quartic(1.0, n, depth, "tanh", 2.0, 0.1, weights=weights)
    error = Q.std() / count**0.5
    # Terms of order 1/n^2 are left out: up to a fifth of the shift and of the quartic at these sizes.
    assert abs(Q.mean() - float(theory.variance + theory.shift)) < 5 * error + 0.2 * abs(float(theory.shift))
    spread = Q.var() * np.sqrt((((Q - Q.mean()) ** 4).mean() / Q.var() ** 2 - 1) / count)
    assert abs(Q.var() - float(theory.quartic)) < 4 * spread + 0.1 * float(theory.quartic)
    independent = quartic(1.0, n, depth, "tanh", 2.0, 0.1)
    if isinstance(weights, OrthogonalWeights | LowRankWeights):
        assert abs(Q.var() - float(independent.quartic)) > 8 * spread


@pytest.mark.slow
def test_sampled_residual_networks_reach_the_limit(key):
    x = jax.random.normal(key, (2, 5))
    one = lambda k: sample_network(x, key=k, width=48, depth=16, phi="relu", weight_var=1.0, residual=True).kernel
    K = jax.lax.map(one, jax.random.split(key, 600), batch_size=50)
    expected = residual_nngp(x @ x.T / 5, 16)
    assert bool((jnp.abs(K.mean(0) - expected) < 5 * K.std(0) / 600**0.5 + 0.02 * jnp.abs(expected).max()).all())


def test_edgeworth_density_has_its_moments():
    with jax.enable_x64(True):
        y = jnp.linspace(-15.0, 15.0, 6001)
        p = edgeworth_density(y, 1.4, 0.2)
        moments = [float(jnp.sum(p * y**k) * (y[1] - y[0])) for k in (0, 2, 4)]
        np.testing.assert_allclose(moments, [1, 1.4, (3 + 0.2) * 1.4**2], rtol=1e-9)
        h = 1e-5
        slope = jax.grad(lambda k: edgeworth_density(0.7, 1.4, k))(0.2)
        ends = [edgeworth_density(0.7, 1.4, 0.2 + e) for e in (h, -h)]
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-6)


def test_errors():
    x = jnp.ones((1, 4))
    for call, message in (
        (lambda: LowRankWeights(0), "rank"),
        (lambda: BlockSparseWeights(0), "blocks"),
        (lambda: DilutedWeights(0), "fan_in"),
        (lambda: BlockSparseWeights(5).draw(12, key=jax.random.key(0)), "multiple"),
        (lambda: DilutedWeights(20).draw(12, key=jax.random.key(0)), "at least fan_in"),
        (lambda: excess_kurtosis(10, 2, "tanh"), "quartic"),
        (lambda: excess_kurtosis(10, 2, weights=OrthogonalWeights()), "quartic"),
        (lambda: quartic(1.0, 0), "width"),
        (lambda: sample_network(x, key=jax.random.key(0), width=0), "width"),
        (lambda: sample_network(x, key=jax.random.key(0), width=4, readouts=0), "readouts"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
