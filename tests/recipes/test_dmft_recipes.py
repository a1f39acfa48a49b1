"""The recipes of random systems and feature learning in their small configurations."""

import jax
import pytest

from physml import recipes
from physml.dmft import RandomNetwork
from physml.recipes.dmft import random_systems


@pytest.mark.parametrize("name", ["feature_learning", "random_systems"])
def test_smoke_holds(name):
    recipe = recipes.load(name)
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) >= 4


def _failed(result):
    return {claim.quantity for claim in result.claims if not claim.holds}


def test_networks_with_another_coupling_are_noticed(monkeypatch):
    exact = RandomNetwork.finite_n
    other = lambda self, n, **kw: exact(RandomNetwork(1.4 * self.g, points=self.points), n, **kw)
    monkeypatch.setattr(RandomNetwork, "finite_n", other)
    claims: list = []
    random_systems._networks(random_systems.SMOKE, jax.random.key(0), claims, {}, {})
    assert "C(0)" in claims[0].quantity and not claims[0].holds
