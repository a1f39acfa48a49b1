"""Recipes of Langevin and mean-field dynamics in their small configurations; a wrong ingredient is noticed."""

import dataclasses

import jax
import pytest

from physml import particles, recipes
from physml.recipes.particles import step_size_bias


@pytest.mark.parametrize("name", ["consensus", "mean_field_langevin", "minimax_games", "step_size_bias"])
def test_smoke_holds(name):
    recipe = recipes.load(name)
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) >= 2


def test_a_wrong_temperature_breaks_the_law_of_the_step(monkeypatch):
    hotter = lambda E, h: dataclasses.replace(particles.overdamped(E, h), temperature=jax.numpy.asarray(1.05))
    law = step_size_bias._law
    monkeypatch.setitem(step_size_bias.KERNELS, "ULA", hotter)
    monkeypatch.setattr(
        step_size_bias,
        "_law",
        lambda kernel, K: law(dataclasses.replace(kernel, temperature=jax.numpy.asarray(1.0)), K),
    )
    config = dataclasses.replace(step_size_bias.SMOKE, kernels=("ULA",))
    result = step_size_bias.run(config, key=jax.random.key(0))
    assert "ULA: largest |z| of a variance" in {claim.quantity for claim in result.claims if not claim.holds}
