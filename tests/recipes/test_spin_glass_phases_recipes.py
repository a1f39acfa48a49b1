"""Single-replica detection: smoke claims, and couplings of the wrong strength are seen."""

import dataclasses

import jax
import pytest

from physml.recipes.hopfield import spin_glass_phases as recipe


def test_smoke_holds():
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) == 3


def test_a_configuration_that_never_cooled_is_seen(monkeypatch):
    """Random spins in place of annealed ones: their fields have variance 1, and no mean."""
    fields = lambda couplings, spins, sweeps, temperature, key: (spins, couplings @ spins)
    monkeypatch.setattr(recipe, "_fields", fields)
    result = recipe.run(dataclasses.replace(recipe.SMOKE, accuracy=0.9), key=jax.random.key(0))
    failed = " ".join(c.quantity for c in result.claims if not c.holds)
    assert "mean field" in failed and "variance" in failed and "accuracy of the theory" in failed


def test_errors():
    with pytest.raises(ValueError, match="samples"):
        recipe.Config(samples=3)
    with pytest.raises(ValueError, match="coldest"):
        recipe.Config(coldest=0.01)
