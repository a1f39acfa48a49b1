"""The recipe of Bayesian networks in its small configuration, its scores, and that a wrong temperature is seen."""

import dataclasses

import jax
import numpy as np

from physml.recipes.particles import bayesian_network as recipe


def test_scores():
    p, y = np.asarray([0.9, 0.9, 0.9, 0.1]), np.asarray([1.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(recipe.negative_log_likelihood(p, y), -(3 * np.log(0.9) + np.log(0.1)) / 4)
    np.testing.assert_allclose(recipe.calibration_error(p, y), (abs(2 - 2.7) + abs(0 - 0.1)) / 4)
    rng = np.random.default_rng(0)
    p = rng.uniform(size=40000)
    assert recipe.calibration_error(p, (rng.uniform(size=40000) < p).astype(float)) < 0.02


def test_smoke_holds():
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) == 3


def test_a_sampler_ten_times_too_hot_is_seen(monkeypatch):
    right = recipe.sghmc
    monkeypatch.setattr(recipe, "sghmc", lambda energy, h, friction: right(energy, h, friction, 10.0))
    config = dataclasses.replace(recipe.SMOKE, splits=2)
    claims = recipe.run(config, key=jax.random.key(0)).claims
    assert not claims[0].holds and claims[1].holds
