"""What recipes of associative memories are made of: bags, capacities, a task that copies, rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.recipes.hopfield import modern_hopfield, multiple_instance, outlier_efficient

pytestmark = pytest.mark.recipes


def test_bags_hold_what_their_label_says():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 17, (50, 64)), np.arange(50) % 10
    bag, mask, label, hits = multiple_instance.make_bags(x, y, 40, (3, 6), rng)
    assert bag.shape == (40, 6, 64) and mask.sum(1).min() >= 3
    np.testing.assert_array_equal(hits.any(1), label > 0)
    assert hits.sum(1).max() <= 2 and label.mean() == 0.5


def test_the_capacity_is_an_average_over_directions():
    """The closed form by direct integration, and its growth with the dimension."""
    u = np.linspace(-1, 1, 200001)
    for d, kappa in ((6, 1.0), (13, 2.5)):
        density = (1 - u * u) ** ((d - 3) / 2)
        mean = np.sum(density * np.exp(-kappa * (d - 1) * (1 - u))) / np.sum(density)
        assert modern_hopfield.half_capacity(kappa, d) == pytest.approx(1 / mean, rel=1e-6)
    growth = np.log(modern_hopfield.half_capacity(1.0, 400) / modern_hopfield.half_capacity(1.0, 399))
    assert growth == pytest.approx(modern_hopfield.growth(1.0), abs=0.01)


def test_the_task_copies_what_came_before_a_trigger():
    draw = jax.jit(lambda key: outlier_efficient.Task(8, 2, key=key).draw(400, 20, key))
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
    rounded = jax.jit(outlier_efficient.rounded)
    error = lambda x: jnp.std(rounded(x, 127.0) - x)
    assert float(error(x)) == pytest.approx(float(jnp.max(jnp.abs(x)) / 127 / 12**0.5), rel=0.05)
    assert float(error(x.at[0].multiply(50 * jnp.max(jnp.abs(x)) / jnp.abs(x[0]))) / error(x)) > 40
    np.testing.assert_array_equal(rounded(x, 0.0), x)
