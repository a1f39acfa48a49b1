"""The recipes of exactly known matter in their small configurations, and that wrong ingredients are noticed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import recipes
from physml.particles.matter.hypersphere import hyperspherical_energy
from physml.recipes.particles import coulomb_gas, entropy_production


@pytest.mark.parametrize("name", ["coulomb_gas", "entropy_production", "hyperspherical_energy"])
def test_smoke_holds(name):
    recipe = recipes.load(name)
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) >= 4


def _failed(result):
    return {claim.quantity for claim in result.claims if not claim.holds}


def test_a_wrong_temperature_breaks_the_gamma_law(monkeypatch):
    exact = coulomb_gas._simulate
    monkeypatch.setattr(coulomb_gas, "_simulate", lambda config, beta, key: exact(config, 1.2 * beta, key))
    failed = _failed(coulomb_gas.run(coulomb_gas.SMOKE, key=jax.random.key(0)))
    assert "beta 4: cumulants of sum |x|^2 from the Gamma law" in failed
    assert not any("eigenvalues" in name for name in failed)


def test_a_wrong_score_is_seen_in_the_linear_rate(monkeypatch):
    exact = entropy_production._fit

    def wrong(*args, **options):
        net = exact(*args, **options)
        return lambda t, x, a=None: 0.5 * net(t, x, a)

    monkeypatch.setattr(entropy_production, "_fit", wrong)
    config = dataclasses.replace(entropy_production.SMOKE, steps=200)
    failed = _failed(entropy_production._linear(config, jax.random.key(0)))
    assert failed == {"linear 0: learned rate off by", "linear 0: the system's share of it"}


def test_the_score_of_many_particles_is_blind_to_names_and_to_the_origin():
    score = entropy_production.WorldScore(16, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (20, 4)) * 2
    order = np.random.default_rng(0).permutation(20)
    both = jax.jit(lambda x: score(0.0, x))
    s = both(x)
    np.testing.assert_allclose(both(x[order]), s[order], rtol=1e-3, atol=1e-4)
    moved = x + jnp.asarray([[3.0, -12.5, 0.0, 0.0]])
    np.testing.assert_allclose(both(moved), s, rtol=1e-3, atol=1e-3)


def test_claims_of_thomson_see_a_wrong_energy():
    recipe = recipes.load("hyperspherical_energy")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    assert abs(recipe._energy(np.asarray(x)) - float(hyperspherical_energy(x))) < 1e-4
    assert abs(recipe._energy(np.asarray(x)) - recipe.MINIMA[5]) > 0.1
