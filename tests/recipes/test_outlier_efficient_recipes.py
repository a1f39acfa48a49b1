"""The outlier recipe in its small configuration; its task copies after triggers, and rounding pays for outliers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.recipes.hopfield import outlier_efficient as recipe


def test_smoke_holds():
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) == 6
    assert (result.arrays["softmax null"] < 1e-5).all()  # softmax has nowhere else to put its weight


def test_the_task_copies_what_came_before_a_trigger():
    draw = jax.jit(lambda key: recipe.Task(8, 2, key=key).draw(400, 20, key))
    x, entropy, copy = map(np.asarray, draw(jax.random.key(1)))
    assert (x[:, 0] == 0).all() and (x[:, 1:] > 0).all()
    expected = (x[:, 1:-1] >= 1) & (x[:, 1:-1] <= 2) & (x[:, :-2] > 0)
    np.testing.assert_array_equal(copy[:, 1:-1], expected)
    np.testing.assert_array_equal(x[:, 2:][expected], x[:, :-2][expected])
    assert (entropy[copy] == 0).all() and (entropy[:, 0] > 0).all()
    # The entropy after the first token is that of what is drawn there.
    share = np.bincount(x[:, 1], minlength=8) / 400
    empirical = -np.sum(share[share > 0] * np.log(share[share > 0]))
    assert abs(empirical - entropy[0, 0]) < 0.15


def test_rounding_pays_for_the_largest_entry():
    """One entry fifty times as large makes the error of all others fifty times as large; 0 levels round nothing."""
    x = jax.random.normal(jax.random.key(0), (4000,))
    error = lambda x: jnp.std(jax.jit(recipe.rounded)(x, 127.0) - x)
    assert float(error(x)) == pytest.approx(float(jnp.max(jnp.abs(x)) / 127 / 12**0.5), rel=0.05)
    assert float(error(x.at[0].multiply(50 * jnp.max(jnp.abs(x)) / jnp.abs(x[0]))) / error(x)) > 40
    np.testing.assert_array_equal(jax.jit(recipe.rounded)(x, 0.0), x)


def test_errors():
    with pytest.raises(ValueError, match="trigger"):
        recipe.Config(triggers=0)
