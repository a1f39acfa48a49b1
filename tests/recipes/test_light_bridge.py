"""The light bridge recipe in its small configuration, and that its claims see a broken fit and a broken drift."""

import dataclasses

import jax
import numpy as np
import pytest

from physml.matching import LightBridge
from physml.recipes.matching import light_bridge


def failed(config):
    return [claim.quantity for claim in light_bridge.run(config, key=jax.random.key(0)).claims if not claim.holds]


def test_smoke_holds():
    result = light_bridge.run(light_bridge.SMOKE, key=jax.random.key(0))
    result.check()
    figure = light_bridge.plot(result)
    assert all(axis.get_xlabel() for axis in figure.axes)


def test_an_unfinished_fit_is_seen():
    """The start already has the marginal of the data, to what 1000 samples show; the conditional laws it has not."""
    names = failed(dataclasses.replace(light_bridge.SMOKE, steps=(20,)))
    assert "cBW-UVP over its floor" in {name.split(",")[0] for name in names}


def test_a_shifted_plan_is_seen(monkeypatch):
    fit = light_bridge.light_bridge

    def shifted(*args, **kwargs):
        plan = fit(*args, **kwargs)
        return LightBridge(plan.log_a, plan.r + 0.5, plan.log_s, plan.epsilon)

    monkeypatch.setattr(light_bridge, "light_bridge", shifted)
    names = failed(light_bridge.SMOKE)
    assert {name.split(",")[0] for name in names} == {"cBW-UVP over its floor", "energy distance to fresh data"}


def test_a_wrong_drift_is_seen(monkeypatch):
    drift = LightBridge.drift
    monkeypatch.setattr(LightBridge, "drift", lambda self, t, x, args=None: 1.05 * drift(self, t, x, args))
    jax.clear_caches()
    try:
        names = failed(light_bridge.SMOKE)
    finally:
        jax.clear_caches()
    assert any(name.startswith("drift: largest |z| of the mean") for name in names)


def test_even_points_are_uniform_one_by_one_and_even_together():
    u = np.stack([light_bridge._even(jax.random.key(i), 256, 5) for i in range(400)])
    assert u.min() > 0 and u.max() < 1
    one = u[:, 17]  # the same point for every key
    z = (one.mean(0) - 0.5) * np.sqrt(12 * len(one)), ((one**2).mean(0) - 1 / 3) * np.sqrt(45 / 4 * len(one))
    assert np.max(np.abs(z)) < 4.5
    # The mass of a corner: independent points would scatter by sqrt(p (1 - p) / 256).
    corner = np.mean(u[:, :, :2].sum(2) < 0.7, axis=1)
    p = 0.7**2 / 2
    assert abs(corner.mean() - p) < 0.002 and corner.std() < 0.3 * np.sqrt(p * (1 - p) / 256)


def test_refuses():
    with pytest.raises(ValueError, match="one number for each of dims"):
        dataclasses.replace(light_bridge.SMOKE, batch_sizes=(64, 64))
    with pytest.raises(ValueError, match=r"steps must be positive, got \(0,\)"):
        dataclasses.replace(light_bridge.SMOKE, steps=(0,))
