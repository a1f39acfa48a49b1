"""The recipe of glasses in its small configuration."""

import jax
import jax.numpy as jnp
import pytest

from physml import recipes
from physml.dmft import SphericalPSpin
from physml.recipes.dmft import p_spin_glass


@pytest.mark.parametrize("name", ["p_spin_glass"])
def test_smoke_holds(name):
    recipe = recipes.load(name)
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) >= 4


def test_a_response_that_ages_wrongly_is_noticed():
    config = p_spin_glass.SMOKE
    model = SphericalPSpin(p=3, temperature=config.temperature, t_max=config.t_max, dt=config.dt)
    order = p_spin_glass.dmft.solve(model).order
    # Equilibrium would answer with X = 1 at all correlations.
    slope = jnp.diff(order.C, axis=1, append=1.0) / config.dt / config.temperature
    claims: list = []
    p_spin_glass._ageing(config, type(order)(order.t, order.C, jnp.tril(slope), order.energy), claims, {}, {})
    assert not any(claim.holds for claim in claims if claim.quantity.startswith("X"))
