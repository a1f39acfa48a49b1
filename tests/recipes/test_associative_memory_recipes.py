"""The memory at its capacity in its small configuration; a bath that is too cold leaves the theory."""

import dataclasses

import jax
import pytest

from physml.recipes.hopfield import associative_memory


def test_smoke_holds():
    result = associative_memory.run(associative_memory.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(associative_memory.plot(result).axes) == 3


def test_a_colder_bath_is_noticed(monkeypatch):
    right = associative_memory.glauber
    cold = lambda *a, temperature, **k: right(*a, temperature=0.5 * temperature, **k)
    monkeypatch.setattr(associative_memory, "glauber", cold)
    claims = []
    associative_memory._monte_carlo(associative_memory.SMOKE, claims, {}, 0.04, jax.random.key(0))
    assert not claims[0].holds


def test_errors():
    with pytest.raises(ValueError, match="three sizes"):
        dataclasses.replace(associative_memory.SMOKE, sizes=(100, 200))
