"""Fields made of Flax modules are trained by equinox and optax like our own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from physml.nn import from_flax

flax = pytest.importorskip("flax")
from flax import linen, nnx  # noqa: E402


class Linen(linen.Module):
    @linen.compact
    def __call__(self, t, x, args):
        h = jnp.concatenate([x, t[None]])
        return linen.Dense(2)(jnp.tanh(linen.Dense(32)(h)))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(3, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.down = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x, t):
        h = jnp.tanh(self.up(jnp.concatenate([x, t[None]])))
        return self.down(self.drop(self.norm(h)))


def _linen():
    module = Linen()
    return from_flax(module, module.init(jax.random.key(0), jnp.array(0.0), jnp.zeros(2), None))


def _nnx():
    return from_flax(NNX(nnx.Rngs(0)), call=lambda m, t, x, args: m(x, t))


@pytest.mark.parametrize("make", [_linen, _nnx])
def test_training_lowers_the_loss(make):
    field = make()
    x = jax.random.normal(jax.random.key(1), (64, 2))
    t = jnp.linspace(0.0, 1.0, 64)
    target = x[:, ::-1] * jnp.array([1.0, -1.0])[None, :] * t[:, None]
    optimizer = optax.adam(1e-2)
    state = optimizer.init(eqx.filter(field, eqx.is_inexact_array))

    def loss(field):
        return jnp.mean((jax.vmap(field, (0, 0, None))(t, x, None) - target) ** 2)

    @eqx.filter_jit
    def step(field, state):
        value, grads = eqx.filter_value_and_grad(loss)(field)
        with jax.numpy_dtype_promotion("standard"):  # optax.adam raises a float to its integer count
            updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(field, updates), state, value

    before = field
    _, _, start = step(field, state)
    for _ in range(200):
        field, state, value = step(field, state)
    assert float(value) < 0.1 * float(start)
    assert jax.tree.structure(field) == jax.tree.structure(before)
    # Batch statistics and random state came along untouched.
    pairs = zip(jax.tree.leaves(field.state), jax.tree.leaves(before.state), strict=True)
    for after, was in pairs:
        assert bool(jnp.all(after == was))


def test_linen_accepts_params_alone_and_matches_apply():
    module = Linen()
    t, x = jnp.array(0.3), jnp.array([1.0, -2.0])
    variables = module.init(jax.random.key(0), t, x, None)
    expected = module.apply(variables, t, x, None)
    np.testing.assert_array_equal(from_flax(module, variables)(t, x), expected)
    np.testing.assert_array_equal(from_flax(module, variables["params"])(t, x), expected)


def test_nnx_matches_the_module_and_is_a_field_for_vmap_and_jvp():
    module = NNX(nnx.Rngs(0))
    field = from_flax(module, call=lambda m, t, x, args: m(x, t))
    t, x = jnp.array(0.3), jnp.array([1.0, -2.0])
    np.testing.assert_allclose(eqx.filter_jit(field)(t, x), module(x, t), rtol=1e-6)
    _, dt = jax.jvp(lambda t: field(t, x), (t,), (jnp.ones(()),))
    assert float(jnp.max(jnp.abs(dt))) > 0


def test_errors():
    with pytest.raises(ValueError, match=r"module\.init"):
        from_flax(Linen())
    with pytest.raises(ValueError, match="its own variables"):
        from_flax(NNX(nnx.Rngs(0)), {})
