"""Programs that calls of `data` compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_compiles_once

from physml import data

KEY = jax.random.key(0)
TOYS = ["eight_gaussians", "grid_gaussians", "moons", "checkerboard", "swiss_roll", "circles", "pinwheel"]


@pytest.mark.parametrize("name", TOYS)
def test_toys(name):
    assert_compiles_once(lambda: lambda: getattr(data, name)(11, key=KEY))


def test_another_scale_is_the_same_program():
    scales = iter((3.0, 4.0))
    assert_compiles_once(lambda: lambda: data.moons(12, key=KEY, scale=next(scales)))


CALLS = {
    "dequantise": lambda: data.dequantise(np.arange(5.0, dtype=np.float32), 5, key=KEY),
    "quantise": lambda: data.quantise(jnp.full(5, 0.3), 5),
    "scale": lambda: data.scale(jnp.full(5, 0.3)),
    "unscale": lambda: data.unscale(jnp.full(5, 0.3)),
    "bits_per_dim": lambda: data.bits_per_dim(jnp.full(5, 0.3), 5, 2),
    "eight_gaussians_mixture": data.eight_gaussians_mixture,
    "grid_gaussians_mixture": data.grid_gaussians_mixture,
}


@pytest.mark.parametrize("name", CALLS)
def test_programs(name):
    assert_compiles_once(lambda: CALLS[name])
