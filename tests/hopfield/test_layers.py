"""Layers: one step is multi-head attention; steps, masks, betas, pooling, lookup."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.hopfield.memory.layers import Hopfield, HopfieldLookup, HopfieldPooling
from physml.hopfield.memory.retrieve import retrieve

L, S, D, H = 3, 5, 8, 2
call = eqx.filter_jit(lambda layer, *args, **options: layer(*args, **options))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(n, D)), jnp.float32) for n in (L, S, S))


def _norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def test_one_step_is_multi_head_attention(inputs, key):
    layer = Hopfield(d_model=D, heads=H, beta=None, steps=1, key=key)
    y, weights = call(layer, *inputs, return_weights=True)
    parts = [
        _norm(np.asarray(x)) @ p.weight
        for x, p in zip(inputs, (layer.state, layer.stored, layer.projection), strict=True)
    ]
    q, k, v = (x.reshape(len(x), H, D // H) for x in parts)
    logits = np.einsum("lhd,shd->hls", q, k) * (D / H) ** -0.5
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(weights, p, rtol=1e-4, atol=1e-6)
    expected = np.einsum("hls,shd->lhd", p, v).reshape(L, D) @ layer.out_weight
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_more_steps_are_retrieval_before_attention(inputs, key):
    """Static everything and no output map: the layer is `retrieve` itself."""
    state, stored, _ = inputs
    bare = dict(static=("state", "stored", "projection"), normalise=(), out_projection=False, key=key)
    layer = Hopfield(D, 1, beta=2.0, steps=3, **bare)
    y = call(layer, state, stored)
    np.testing.assert_allclose(y, jax.jit(lambda q, m: retrieve(q, m, beta=2.0, steps=3).x)(state, stored), rtol=1e-5)
    still = call(Hopfield(D, 1, beta=2.0, tol=1e-6, **bare), state, stored)
    np.testing.assert_allclose(still, call(layer, still, stored), atol=1e-4)
    assert float(jnp.abs(still - y).max()) > 1e-3
    # softmax_1 is softmax with a stored pattern of zeros, at every step.
    null = call(Hopfield(D, 1, beta=2.0, steps=3, separation="softmax1", **bare), state, stored)
    np.testing.assert_allclose(null, call(layer, state, jnp.concatenate([stored, 0 * stored[:1]])), atol=1e-5)


def test_masks_nulls_and_gradients(inputs, key):
    state, stored, projection = inputs
    layer = Hopfield(D, H, learn_beta=True, separation="softmax1", steps=2, beta=[0.5, 2.0], key=key)
    mask = jnp.asarray([[True, False, True, True, False], [False] * 5, [True] * 5])
    y, weights = call(layer, state, stored, projection, mask=mask, return_weights=True)
    np.testing.assert_allclose(y[1], layer.out_bias, atol=1e-7)  # a state that sees nothing
    assert (weights[:, 0, 1] == 0).all() and (weights.sum(-1) < 1).all()
    np.testing.assert_allclose(layer.beta, [0.5, 2.0], rtol=1e-6)

    def loss(layer, stored):
        return jnp.sum(jnp.sin(layer(state.astype(stored.dtype), stored, mask=mask)))

    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: x.astype(jnp.float64), layer)
        value = eqx.filter_jit(loss)
        gradient = eqx.filter_jit(eqx.filter_grad(loss))(double, stored.astype(jnp.float64))
        assert gradient.log_beta.dtype == jnp.float64
        e = 1e-5
        for i in range(H):
            shifted = [eqx.tree_at(lambda m: m.log_beta, double, double.log_beta.at[i].add(s)) for s in (e, -e)]
            up, down = (value(m, stored.astype(jnp.float64)) for m in shifted)
            np.testing.assert_allclose(gradient.log_beta[i], (up - down) / (2 * e), rtol=1e-6, atol=1e-9)
    assert all(np.asarray(g).any() for g in (gradient.state.weight, gradient.stored.weight, gradient.projection.weight))


def test_pooling_ignores_the_order_and_lookup_reads_a_table(inputs, key):
    _, stored, _ = inputs
    pool = HopfieldPooling(D, H, quantity=2, steps=2, stored_dim=D, out_dim=3, key=key)
    y = call(pool, stored)
    assert y.shape == (2, 3)
    np.testing.assert_allclose(call(pool, stored[::-1]), y, atol=1e-5)
    half = jnp.arange(S) < 3
    np.testing.assert_allclose(call(pool, stored, mask=half), call(pool, stored[:3]), atol=1e-5)
    # Without the mask's visible ones something else comes out.
    assert float(jnp.abs(call(pool, stored, mask=half) - y).max()) > 1e-3
    look = HopfieldLookup(D, H, quantity=7, separate=True, projection_dim=4, key=key)
    out, weights = call(look, stored, return_weights=True)
    assert out.shape == (S, D) and weights.shape == (H, S, 7)
    assert HopfieldLookup(D, quantity=7, key=key).targets is None


def test_dropout_and_options(inputs, key):
    state, stored, _ = inputs
    layer = Hopfield(D, H, dropout=0.5, connected=True, normalise_space=True, head_dim=3, pattern_dim=5, key=key)
    plain = call(layer, state, stored)
    assert plain.shape == (L, D)
    many = eqx.filter_jit(lambda layer, keys: jax.vmap(lambda k: layer(state, stored, key=k))(keys))
    dropped = many(layer, jax.random.split(key, 4000))
    error = jnp.std(dropped, 0) / np.sqrt(4000)
    assert (jnp.abs(jnp.mean(dropped, 0) - plain) < 5 * error + 1e-6).all() and (error > 0).any()


@pytest.mark.parametrize(
    "options",
    [{"heads": 3}, {"beta": -1.0}, {"beta": [1.0]}, {"normalise": ("keys",)}, {"static": ("state",), "head_dim": 4},
     {"connected": True, "projection_dim": 4}, {"dropout": 1.0}, {"separation": "max"},
     {"static": ("projection",), "pattern_dim": 3}],
)  # fmt: skip
def test_errors(options, key):
    with pytest.raises(ValueError, match=r"expected|multiple|cannot|agree|must be"):
        Hopfield(**({"d_model": D, "heads": H, "key": key} | options))
    with pytest.raises(ValueError, match="quantity"):
        HopfieldPooling(D, quantity=0, key=key)
