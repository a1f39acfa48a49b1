"""Learning from examples in its small configuration; means that are not scaled to variance one leave the theory."""

import dataclasses

import jax
import pytest

from physml.hopfield.spins.glauber import Dense
from physml.recipes.hopfield import dense_hebbian


def test_smoke_holds():
    result = dense_hebbian.run(dense_hebbian.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(dense_hebbian.plot(result).axes) == 4


def test_a_weaker_scale_is_noticed(monkeypatch):
    right = dense_hebbian.network
    weak = lambda *a: (lambda e: Dense(0.7 * e.patterns, 3, "distinct"))(right(*a))
    monkeypatch.setattr(dense_hebbian, "network", weak)
    claims = []
    config = dense_hebbian.SMOKE
    dense_hebbian._monte_carlo(config, config.tasks[0], claims, jax.random.key(0))
    assert not claims[0].holds


def test_errors():
    with pytest.raises(ValueError, match="three sizes"):
        dataclasses.replace(dense_hebbian.SMOKE, networks=2)
