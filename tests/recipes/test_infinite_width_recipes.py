"""Recipes of wide and deep networks in their small configurations; a wrong ingredient is noticed."""

import dataclasses

import jax
import pytest

from physml import recipes
from physml.recipes.dmft import infinite_width


@pytest.mark.parametrize("name", ["infinite_width"])
def test_smoke_holds(name):
    recipe = recipes.load(name)
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) >= 2


def test_orthogonal_weights_told_as_independent_are_noticed(monkeypatch):
    truth = infinite_width.quartic
    monkeypatch.setattr(infinite_width, "quartic", lambda *a, weights=None, **k: truth(*a, **k))
    config = dataclasses.replace(infinite_width.SMOKE, parts=("ensembles",))
    result = infinite_width.run(config, key=jax.random.key(0))
    assert "orthogonal: kurtosis, relative error" in {claim.quantity for claim in result.claims if not claim.holds}
