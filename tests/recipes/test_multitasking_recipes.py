"""Multitasking in its small configuration; examples whose energy is not scaled leave the theory."""

import dataclasses

import jax
import pytest

from physml.recipes.hopfield import multitasking


def test_smoke_holds():
    result = multitasking.run(multitasking.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(multitasking.plot(result).axes) == 3


def test_an_energy_without_its_scale_is_noticed(monkeypatch):
    right = multitasking._energy
    weak = lambda *a: dataclasses.replace(right(*a), strength=0.05)
    monkeypatch.setattr(multitasking, "_energy", weak)
    claims = []
    multitasking._monte_carlo(multitasking.SMOKE, "patterns", claims, jax.random.key(0))
    assert not claims[0].holds


def test_errors():
    with pytest.raises(ValueError, match="blank"):
        multitasking.Config(blank=0.7)
