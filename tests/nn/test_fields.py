"""Every network: shapes, dtypes, the zero start, gradients, symmetries and the errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.nn import MLP, Condition, DeepSets, DiT, ResidualMLP, SetTransformer, from_flax, time_features

SMALL = {"width": 16, "depth": 2}


def _net(name, dtype=None, **kwargs):
    kwargs = {"key": jax.random.key(1), "dtype": dtype, **SMALL, **kwargs}
    match name:
        case "mlp":
            return MLP(4, **kwargs), (4,)
        case "residual":
            return ResidualMLP(4, **kwargs), (4,)
        case "set":
            return SetTransformer(4, heads=2, **kwargs), (3, 4)
        case "dit":
            return DiT((4, 4), heads=2, **kwargs), (4, 4)
    return DiT((2, 4, 4), heads=2, **kwargs), (2, 4, 4)


NAMES = ["mlp", "residual", "set", "dit", "dit3"]


def _perturb(net):
    """Leave the zero start, where many gradients vanish by design."""
    rng = np.random.default_rng(0)
    params, static = eqx.partition(net, eqx.is_inexact_array)
    moved = jax.tree.map(lambda p: jnp.asarray(p + 0.3 * rng.normal(size=p.shape), p.dtype), params)
    return eqx.combine(moved, static)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_gradients_under_jit_and_vmap(name, key):
    net, shape = _net(name, classes=3)
    net = _perturb(net)
    x = jax.random.normal(key, (5, *shape))
    t, labels = jnp.linspace(0.0, 1.0, 5), jnp.array([0, 1, 2, -1, 0])

    @eqx.filter_jit
    def loss(net):
        out = jax.vmap(net)(t, x, labels)
        return jnp.mean(out**2), out

    (_, out), grads = eqx.filter_value_and_grad(loss, has_aux=True)(net)
    assert out.shape == x.shape and out.dtype == jnp.float32
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert bool(jnp.all(jnp.isfinite(g))), path
        assert float(jnp.max(jnp.abs(g))) > 0, path
    # One sample alone gives what it gives in a batch, and time and label both matter.
    np.testing.assert_allclose(net(t[1], x[1], labels[1]), out[1], rtol=2e-4, atol=2e-5)
    assert float(jnp.max(jnp.abs(net(0.2, x[1], labels[1]) - net(0.8, x[1], labels[1])))) > 1e-4
    assert float(jnp.max(jnp.abs(net(0.2, x[1], labels[0]) - net(0.2, x[1], labels[1])))) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_float64_and_time_derivative(name, key):
    with jax.enable_x64(True):
        net, shape = _net(name, dtype=jnp.float64)
        net = _perturb(net)
        x = jax.random.normal(key, shape, jnp.float64)
        out, dt = jax.jvp(lambda t: net(t, x, None), (jnp.float64(0.4),), (jnp.float64(1.0),))
        assert out.dtype == jnp.float64
        numeric = (net(0.4 + 1e-6, x, None) - net(0.4 - 1e-6, x, None)) / 2e-6
        np.testing.assert_allclose(dt, numeric, rtol=0, atol=1e-6 * float(jnp.max(jnp.abs(dt))))


@pytest.mark.parametrize("name", ["residual", "set", "dit", "dit3"])
def test_starts_as_zero_and_leaves_it(name, key):
    net, shape = _net(name, classes=3)
    x = jax.random.normal(key, shape)
    assert not np.any(net(0.3, x, jnp.array(1)))
    grads = eqx.filter_grad(lambda n: jnp.sum((n(0.3, x, jnp.array(1)) - x) ** 2))(net)
    assert float(jnp.max(jnp.abs(grads.last))) > 0


@pytest.mark.parametrize("name", NAMES)
def test_condition_vector_and_two_times(name, key):
    net, shape = _net(name, cond_dim=2, times=2)
    x = jax.random.normal(key, shape)
    out = _perturb(net)(jnp.array([0.1, 0.7]), x, jnp.array([1.0, -1.0]))
    assert out.shape == shape and bool(jnp.all(jnp.isfinite(out)))
    with pytest.raises(ValueError, match="cond_dim=2"):
        net(jnp.array([0.1, 0.7]), x, None)
    with pytest.raises(ValueError, match="times"):
        net(0.1, x, jnp.array([1.0, -1.0]))


def test_labels(key):
    net = _perturb(_net("residual", classes=3)[0])
    x = jnp.ones(4)
    assert bool(jnp.all(jnp.isfinite(net(0.0, x, jnp.array(-1)))))
    for wrong in (3, -2):
        assert bool(jnp.all(jnp.isnan(net(0.0, x, jnp.array(wrong)))))
    for bad in (None, jnp.array(1.0), jnp.array([1, 2])):
        with pytest.raises(ValueError, match="label"):
            net(0.0, x, bad)


def test_energy_head_and_autonomous_field(key):
    energy = MLP(3, key=key, out_dim="scalar", frequencies=None, **SMALL)
    x = jnp.arange(3.0)
    assert energy(0.0, x).shape == ()
    assert energy(0.0, x) == energy(5.0, x)
    assert jax.grad(lambda x: energy(0.0, x))(x).shape == (3,)


def test_time_features():
    f = time_features(0.25, 3, low=1.0, high=4.0)
    w = np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(f, np.concatenate([[0.25], np.sin(w / 4), np.cos(w / 4)]), rtol=1e-6)
    assert time_features(jnp.array([0.1, 0.2]), 2).shape == (10,)
    np.testing.assert_array_equal(time_features(1, 0), [1.0])
    assert time_features(jnp.float16(0.5)).dtype == jnp.float16
    assert time_features(0.5, dtype=jnp.bfloat16).dtype == jnp.bfloat16


def test_set_transformer_is_equivariant(key):
    net = _perturb(_net("set")[0])
    x = jax.random.normal(key, (7, 4))
    order = jax.random.permutation(key, 7)
    np.testing.assert_allclose(net(0.3, x[order]), net(0.3, x)[order], rtol=1e-3, atol=1e-4)


def test_set_transformer_mask(key):
    net = _perturb(_net("set")[0])
    x = jax.random.normal(key, (5, 4))
    mask = jnp.array([True, False, True, True, False])
    out = net(0.3, x, None, mask)
    np.testing.assert_allclose(out[mask], net(0.3, x[mask]), rtol=1e-3, atol=1e-4)
    assert not np.any(out[~mask])
    grad = jax.grad(lambda x: jnp.sum(net(0.3, x, None, mask) ** 2))(x)
    assert not np.any(grad[~mask]) and bool(jnp.all(jnp.isfinite(grad)))
    assert not np.any(net(0.3, x, None, jnp.zeros(5, bool)))


def test_dit_sees_places(key):
    net = _perturb(_net("dit")[0])
    x = jax.random.normal(key, (4, 4))
    rolled = jnp.roll(x, 2, axis=0)
    assert float(jnp.max(jnp.abs(net(0.3, rolled) - jnp.roll(net(0.3, x), 2, axis=0)))) > 1e-3


def test_dit_patches_are_local():
    """With the trunk at its start only the layer norm acts, so a pixel reaches its own patch alone."""
    net = DiT((2, 4, 6), patch=2, heads=2, key=jax.random.key(3), **SMALL)
    net = eqx.tree_at(lambda n: n.last, net, jax.random.normal(jax.random.key(4), net.last.shape))
    jacobian = jax.jacobian(lambda x: net(0.0, x))(jax.random.normal(jax.random.key(5), (2, 4, 6)))
    touched = np.any(np.asarray(jacobian[:, :, :, 1, 2, 3]) != 0, axis=0)
    expected = np.zeros((4, 6), bool)
    expected[2:4, 2:4] = True
    np.testing.assert_array_equal(touched, expected)


@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_deep_sets(pool, key):
    net = DeepSets(4, 6, pool=pool, key=key, **SMALL)
    x = jax.random.normal(key, (5, 4))
    code = net(x)
    assert code.shape == (6,)
    np.testing.assert_allclose(net(x[::-1]), code, rtol=1e-5, atol=1e-6)
    twice = net(jnp.concatenate([x, x]))
    assert np.allclose(twice, code, rtol=1e-5, atol=1e-6) == (pool == "mean")
    mask = jnp.array([True, False, True, True, False])
    broken = jnp.where(mask[:, None], x, jnp.nan)
    np.testing.assert_allclose(net(broken, mask), net(x[mask]), rtol=1e-5, atol=1e-6)
    grad = jax.grad(lambda x: jnp.sum(net(x, mask)))(broken)
    assert bool(jnp.all(jnp.isfinite(grad)))


def test_deep_sets_by_population(key):
    net = DeepSets(4, 6, populations=3, key=key, **SMALL)
    x = jax.random.normal(key, (5, 4))
    label = jnp.array([0, 2, 0, 2, 2])
    codes = eqx.filter_jit(net)(x, population=label)
    assert codes.shape == (3, 6)
    np.testing.assert_allclose(
        codes[0], net(x[label == 0], population=jnp.zeros(2, jnp.int32))[0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(codes[1], net.rho(0.0, jnp.zeros(16)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="missing"):
        net(x)


def test_errors(key):
    cases = [
        (lambda: MLP(0, key=key), "dim must be an integer of at least 1"),
        (lambda: MLP(2, key=key, out_dim="vector"), "'vector'"),
        (lambda: MLP(2, key=key, classes=2, cond_dim=3), "give one"),
        (lambda: MLP(2, key=key)(0.0, jnp.ones(3)), "vmap"),
        (lambda: MLP(2, key=key)(jnp.zeros((2, 2)), jnp.ones(2)), "time"),
        (lambda: ResidualMLP(2, key=key, depth=0), "depth must be an integer of at least 1"),
        (lambda: ResidualMLP(2, key=key)(0.0, jnp.ones((1, 2))), "vmap"),
        (lambda: SetTransformer(2, key=key, width=10, heads=4), "heads=4"),
        (lambda: SetTransformer(2, key=key)(0.0, jnp.ones(2)), "vmap"),
        (lambda: DiT((5, 4), key=key, patch=2), "patch=2"),
        (lambda: DiT((4,), key=key), "expected \\(H, W\\)"),
        (lambda: DeepSets(2, 2, key=key, populations=0), "populations .* at least 1"),
        (lambda: DeepSets(2, 2, key=key, pool="max"), "'max'"),
        (lambda: Condition(classes=0), "classes must be"),
        (lambda: time_features(0.0, -1), "pairs must be"),
        (lambda: from_flax(3), "int"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()
