"""Grokking in its small configuration; a theory of other data is noticed."""

import dataclasses

import jax

from physml.recipes.dmft import grokking


def test_smoke_holds():
    result = grokking.run(grokking.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(grokking.plot(result).axes) >= 6


def test_a_theory_of_less_data_is_noticed(monkeypatch):
    right = grokking._theory
    less = lambda model, *options: right(dataclasses.replace(model, ratio=0.5 * model.ratio), *options)
    monkeypatch.setattr(grokking, "_theory", less)

    class Bar:
        update = staticmethod(lambda: None)

    claims, _ = grokking._mean_field(grokking.SMOKE, jax.random.key(0), Bar)
    assert any("train loss" in claim.quantity and not claim.holds for claim in claims)
