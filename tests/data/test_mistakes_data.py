"""What is refused, with the words that say so."""

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_refused

from physml import data

KEY = jax.random.key(0)
MISTAKES = {
    "negative n": (lambda: data.moons(-1, key=KEY), "n must be an integer of at least 0, got -1"),
    "float n": (lambda: data.moons(10.0, key=KEY), "n must be an integer"),
    "legacy key": (lambda: data.moons(10, key=jax.random.PRNGKey(0)), "typed key"),
    "float side": (lambda: data.checkerboard(10, key=KEY, side=4.0), "side must be an integer"),
    "level below": (lambda: data.dequantise(jnp.asarray([-1.0]), 4, key=KEY), "raw levels, must be at least 0"),
    "level above": (lambda: data.dequantise(jnp.asarray([4.0]), 4, key=KEY), "at most 3"),
    "level nan": (lambda: data.dequantise(jnp.asarray([jnp.nan]), 4, key=KEY), "raw levels"),
    "high": (lambda: data.dequantise(jnp.zeros(2), 4, key=KEY, high=1.5), "high must be positive and at most 1"),
    "legacy key, levels": (lambda: data.dequantise(jnp.zeros(2), 4, key=jax.random.PRNGKey(0)), "typed key"),
    "float levels": (lambda: data.quantise(jnp.zeros(2), 4.5), "levels must be an integer"),
    "share": (lambda: data.digits(test_fraction="0.1"), "test_fraction must be one real number"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    assert_refused(*MISTAKES[name])


def test_parameters_closed_over_in_jit():
    h, k = jnp.asarray(0.5), jnp.asarray([0.0, 1.0])
    draw = jax.jit(lambda key: (data.moons(3, key=key, noise=h), data.dequantise(k, 4, key=key, high=h)))
    assert all(jnp.isfinite(x).all() for x in draw(KEY))


def test_integer_levels_become_numbers():
    assert data.dequantise(jnp.arange(4), 4, key=KEY).dtype == jnp.float32
