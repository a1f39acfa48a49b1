"""The recipes of glasses, random systems and feature learning in their small configurations."""

import jax
import jax.numpy as jnp
import pytest

from physml import recipes
from physml.dmft import RandomNetwork, SphericalPSpin
from physml.recipes.dmft import p_spin_glass, random_systems


@pytest.mark.parametrize("name", ["feature_learning", "p_spin_glass", "random_systems"])
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


def test_a_response_that_ages_wrongly_is_noticed():
    config = p_spin_glass.SMOKE
    model = SphericalPSpin(p=3, temperature=config.temperature, t_max=config.t_max, dt=config.dt)
    order = p_spin_glass.dmft.solve(model).order
    # Equilibrium would answer with X = 1 at all correlations.
    slope = jnp.diff(order.C, axis=1, append=1.0) / config.dt / config.temperature
    claims: list = []
    p_spin_glass._ageing(config, type(order)(order.t, order.C, jnp.tril(slope), order.energy), claims, {}, {})
    assert not any(claim.holds for claim in claims if claim.quantity.startswith("X"))
