"""Meta flow matching: codes that do not see order, a loss that is the mean of `match`, transport of a population."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import matching


class Shift(eqx.Module):
    """A field that moves every point by a factor times its code."""

    factor: jax.Array

    def __call__(self, t, x, code):
        return self.factor * code


def _model(factor=1.0):
    return matching.MetaField(Shift(jnp.asarray(factor)), lambda points: jnp.mean(points, axis=0))


def test_each_population_gets_its_own_flow():
    sources = jnp.stack([jnp.ones((5, 2)), -2.0 * jnp.ones((5, 2))])
    moved = jax.vmap(lambda x: _model().transport(x, steps=3))(sources)
    np.testing.assert_allclose(moved, 2 * sources, rtol=1e-6)
    np.testing.assert_allclose(_model().transport(sources[0], steps=3, code=jnp.zeros(2)), sources[0])


def test_loss_vanishes_for_the_true_flow_and_its_gradient_is_right():
    with jax.enable_x64(True):
        sources = jax.random.normal(jax.random.key(0), (3, 6, 2)) + jnp.arange(3.0)[:, None, None]
        targets = sources + jnp.mean(sources, axis=1, keepdims=True)
        loss = lambda f, size=None: matching.match_populations(
            _model(f), matching.linear(), sources, targets, key=jax.random.key(1), batch_size=size
        )
        assert float(loss(1.0, 4)) < 1e-20
        h, loss = 1e-6, jax.jit(loss)
        assert float(loss(1.0)) < 1e-20
        np.testing.assert_allclose(jax.grad(loss)(0.7), (loss(0.7 + h) - loss(0.7 - h)) / (2 * h), rtol=1e-6)


def test_errors():
    x = jnp.zeros((2, 4, 2))
    with pytest.raises(ValueError, match="alike"):
        matching.match_populations(_model(), matching.linear(), x, x[:, :3], key=jax.random.key(0))
    with pytest.raises(ValueError, match="batch_size"):
        matching.match_populations(_model(), matching.linear(), x, x, key=jax.random.key(0), batch_size=5)
