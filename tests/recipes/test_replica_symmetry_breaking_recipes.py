"""One step of symmetry breaking in its small configuration; another overlap is not stationary."""

import jax
import pytest

from physml.recipes.hopfield import replica_symmetry_breaking as recipe


def test_smoke_holds():
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) == 3


def test_another_overlap_is_not_stationary(monkeypatch):
    right = recipe._edwards_anderson
    monkeypatch.setattr(recipe, "_edwards_anderson", lambda t: right(t) - 0.01)
    failed = {claim.quantity for claim in recipe.run(recipe.SMOKE, key=jax.random.key(0)).claims if not claim.holds}
    assert failed == {f"slope of the free energy at the static point, in {name}" for name in ("q_1", "theta")}


def test_errors():
    with pytest.raises(ValueError, match="orders"):
        recipe.Config(orders=(2, 3))
