"""Programs that calls of `nn` and `metrics` compile: few in the first, none in an equal second."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from helpers import assert_compiles_once

from physml import metrics, nn

KEY = jax.random.key(0)
FIELDS = {
    "MLP": (lambda: nn.MLP(2, width=4, depth=2, key=KEY), (2,)),
    "ResidualMLP": (lambda: nn.ResidualMLP(2, width=4, depth=2, embed=4, classes=3, key=KEY), (2,)),
    "SetTransformer": (lambda: nn.SetTransformer(2, width=4, depth=2, heads=2, key=KEY), (3, 2)),
    "DiT": (lambda: nn.DiT((4, 4), width=4, depth=2, heads=2, key=KEY), (4, 4)),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name):
    make, shape = FIELDS[name]
    times, labels = iter((0.25, 0.5)), iter((0, 2))

    def fresh():
        field, x = make(), jnp.ones(shape)
        return lambda: field(next(times), x, next(labels))

    assert_compiles_once(fresh)


def test_sets():
    def make():
        encoder, x = nn.DeepSets(2, 3, width=4, key=KEY), jnp.ones((5, 2))
        return lambda: encoder(x)

    assert_compiles_once(make)


def test_transformer_alone():
    def make():
        trunk, h = nn.Transformer(nn.Condition(), width=4, depth=2, heads=2, key=KEY), jnp.ones((3, 4))
        return lambda: trunk(0.5, h)

    assert_compiles_once(make)


def test_time_features():
    assert_compiles_once(lambda: lambda: nn.time_features(0.25, pairs=2))


def test_a_network_in_jit_vmap_and_grad_is_itself():
    field = nn.MLP(2, width=4, depth=2, key=KEY)
    x = jnp.asarray([[0.1, 0.2], [0.3, -1.0]])
    alone = jnp.stack([field(0.5, row) for row in x])
    assert jnp.allclose(eqx.filter_jit(jax.vmap(field, (None, 0)))(0.5, x), alone, atol=1e-6)
    slope = eqx.filter_grad(lambda f: jnp.sum(f(0.5, x[0])))(field)
    assert slope.last_bias.shape == (2,) and jnp.allclose(slope.last_bias, 1)


def _samples(call, **options):
    def make():
        x, y = jnp.arange(10.0).reshape(5, 2), jnp.arange(8.0).reshape(4, 2) + 0.3
        return lambda: call(x, y, **options)

    return make


def _gaussians(call):
    def make():
        laws = (jnp.ones(2), jnp.eye(2)), (jnp.zeros(2), 2 * jnp.eye(2))
        return lambda: call(*laws[0], *laws[1])

    return make


def _chains(call):
    def make():
        x = jnp.sin(jnp.arange(40.0)).reshape(20, 2)
        return lambda: call(x)

    return make


METRICS = {
    "energy_distance": _samples(metrics.energy_distance),
    "mmd": _samples(metrics.mmd),
    "mmd, bandwidths": _samples(metrics.mmd, bandwidths=(0.5, 1.0)),
    "permutation_test": _samples(metrics.permutation_test, key=KEY, permutations=9),
    "wasserstein2_sliced": _samples(metrics.wasserstein2_sliced, key=KEY, projections=3),
    "wasserstein2": _samples(lambda x, y: metrics.wasserstein2(x[:4], y)),
    "wasserstein1": _samples(lambda x, y: metrics.wasserstein1(x[:4], y)),
    "wasserstein_1d": _samples(lambda x, y: metrics.wasserstein_1d(x[:, 0], y[:, 0])),
    "gaussian_wasserstein2": _gaussians(metrics.gaussian_wasserstein2),
    "median_distance": _chains(metrics.median_distance),
    "ess": _chains(metrics.ess),
    "r_hat": _chains(metrics.r_hat),
    "r_hat, ranks": _chains(lambda x: metrics.r_hat(x, rank=True)),
    "autocorrelation_time": _chains(metrics.autocorrelation_time),
    "ess_log_weights": _chains(metrics.ess_log_weights),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name):
    # Slices, ones and unit matrices of the cases themselves are programs of their own.
    assert_compiles_once(METRICS[name], first=7)
