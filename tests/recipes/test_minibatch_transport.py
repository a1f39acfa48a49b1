"""The recipe of minibatch transport in its small configuration, and that it sees couplings that do nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from physml import matching
from physml.recipes.matching import minibatch_transport as recipe


def test_smoke_holds():
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) == 4


def test_couplings_that_do_nothing_are_seen(monkeypatch):
    monkeypatch.setattr(matching, "Assignment", matching.Independent)
    monkeypatch.setattr(matching, "Entropic", lambda epsilon: matching.Independent())
    config = dataclasses.replace(recipe.SMOKE, repeats=1, sde_steps=10)
    result = recipe.run(config, key=jax.random.key(0))
    failed = {claim.quantity for claim in result.claims if not claim.holds}
    assert {f"normal-8gaussians, {method}: path energy" for method in ("OT-CFM", "SF2M")} <= failed


def test_rounds_shuffle_data_and_draw_noise_anew():
    config = dataclasses.replace(recipe.SMOKE, train_points=50, transport=50, rounds=3, stratified=True)
    for name, same in (("moons", True), ("normal", False)):
        rounds = recipe._training_rows(config, recipe.LAWS[name], jax.random.key(0)).reshape(3, 50, 2)
        assert not np.array_equal(rounds[0], rounds[1])
        assert np.array_equal(np.sort(rounds[0], axis=0), np.sort(rounds[1], axis=0)) is same


def test_bad_config():
    with pytest.raises(ValueError, match="normal-swiss"):
        recipe.Config(pairs=("normal-swiss",))
    with pytest.raises(ValueError, match="transport=3000 must divide"):
        recipe.Config(transport=3000)
    with pytest.raises(ValueError, match="sigma must be positive"):
        recipe.Config(sigma=0.0)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        recipe.Config(repeats=0)
