"""What the recipes of matching compute by themselves, and the rules between their settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import data, metrics, recipes
from physml.metrics import mean_and_error
from physml.recipes import distances
from physml.recipes.matching import digits, light_bridge, minibatch_transport

pytestmark = pytest.mark.recipes


def test_excess_is_unbiased_for_equal_stratified_laws():
    """The mean over random halves of real digits is zero within 5 standard errors; the plain U-statistic's is not."""
    images = data.digits()
    x, y = images.train_x / 8.0 - 1.0, images.train_y
    rng, kept, plain = np.random.default_rng(0), [], []
    for _ in range(12):
        members = np.stack([rng.permutation(np.flatnonzero(y == c))[:60] for c in range(10)])
        first, second = members[:, :30].ravel(), members[:, 30:].ravel()
        kept.append(digits._excess(jnp.asarray(x[first]), y[first], jnp.asarray(x[second]), y[second]))
        plain.append(metrics.energy_distance(x[first], x[second], unbiased=True))
    assert abs(mean_and_error(kept).z(0)) < 5
    assert mean_and_error(plain).z(0) < -5


def test_even_points_are_uniform_one_by_one_and_even_together():
    u = np.stack([light_bridge._even(jax.random.key(i), 256, 5) for i in range(400)])
    assert u.min() > 0 and u.max() < 1
    one = u[:, 17]  # the same point for every key
    z = (one.mean(0) - 0.5) * np.sqrt(12 * len(one)), ((one**2).mean(0) - 1 / 3) * np.sqrt(45 / 4 * len(one))
    assert np.max(np.abs(z)) < 4.5
    # The mass of a corner: independent points would scatter by sqrt(p (1 - p) / 256).
    corner = np.mean(u[:, :, :2].sum(2) < 0.7, axis=1)
    p = 0.7**2 / 2
    assert abs(corner.mean() - p) < 0.002 and corner.std() < 0.3 * np.sqrt(p * (1 - p) / 256)


def test_rounds_shuffle_data_and_draw_noise_anew():
    recipe = minibatch_transport
    config = dataclasses.replace(recipe.SMOKE, train_points=50, transport=50, rounds=3, stratified=True)
    for name, same in (("moons", True), ("normal", False)):
        rounds = recipe._training_rows(config, recipe.LAWS[name], jax.random.key(0)).reshape(3, 50, 2)
        assert not np.array_equal(rounds[0], rounds[1])
        assert np.array_equal(np.sort(rounds[0], axis=0), np.sort(rounds[1], axis=0)) is same


def test_an_exact_sample_is_at_the_floor_and_a_shifted_one_is_not():
    exact = lambda key: jax.random.normal(key, (200, 2))
    fresh_key, floor_key, key = jax.random.split(jax.random.key(0), 3)
    target = distances.target(exact, 30, fresh_key=fresh_key, floor_key=floor_key)
    x = jax.random.normal(key, (30 * 200, 2))
    # Each distance scatters by half its mean; the floor is a mean of 20, the other of 30.
    assert abs(target.distance(x) / target.floor - 1) < 5 * 0.5 * np.sqrt(1 / 20 + 1 / 30)
    assert target.distance(x + 0.3) > 4 * target.floor


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("hallucinations", {"window": (0.5, 0.4)}, "increasing"),
        ("light_bridge", {"batch_sizes": (64, 64)}, "one number for each of dims"),
        ("light_bridge", {"samples": 2}, "exceed the dimensions"),
        ("mean_flow", {"digit_kinds": ("coupled",)}, "digit_kinds must be among"),
        ("meta_flow", {"held_out": "AXYZ"}, "without overlap"),
        ("minibatch_transport", {"pairs": ("normal-swiss",)}, "normal-swiss"),
        ("minibatch_transport", {"transport": 3000}, "transport must divide"),
        ("multimarginal", {"curve": ("pair", "ring")}, "two of the laws"),
        ("ode_sde_gap", {"repeats": 1}, "at least 2"),
    ],
)
def test_refuses(name, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(recipes.load_recipe(name).SMOKE, **change)
