"""The simulators recipe: its claims hold at smoke size, and they fail when a method is wrong."""

import dataclasses

import jax
import pytest

from physml.integrate import SRA1, EulerMaruyama
from physml.integrate.dynamics import Dynamics
from physml.recipes.integrate import _simulators_orders, simulators
from physml.recipes.integrate.simulators import PAPER, SMOKE


@pytest.fixture(scope="module")
def result():
    return simulators.run(SMOKE, key=jax.random.key(0))


@pytest.fixture
def fresh():
    """No program compiled with the right method may stand in for the wrong one, nor the other way round."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def _failed(claims):
    return [claim.quantity for claim in claims if not claim.holds]


def _stronger_drift(step, factor):
    def wrong(self, dynamics, t, h, x, xi, args):
        drift = lambda t, x, args: jax.tree.map(lambda f: factor * f, dynamics.drift(t, x, args))
        return step(self, Dynamics(drift, dynamics.noise, calculus=dynamics.calculus), t, h, x, xi, args)

    return wrong


def test_claims_hold(result):
    result.check()
    assert result.ok


def test_figure(result):
    figure = simulators.plot(result)
    assert len(figure.axes) == 6
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in figure.axes)


def test_wrong_drift_of_euler_maruyama_is_seen(monkeypatch, fresh, key):
    monkeypatch.setattr(EulerMaruyama, "step", _stronger_drift(EulerMaruyama.step, 1.05))
    moments, *_ = simulators._moments(SMOKE, key)
    strong, *_ = _simulators_orders.strong(SMOKE, key)
    assert "OU, Euler-Maruyama: largest |z| of the mean" in _failed(moments)
    assert "strong order of EulerMaruyama, double well" in _failed(strong)


def test_lost_second_normal_of_sra1_is_seen(monkeypatch, fresh, key):
    step = SRA1.step
    without = lambda self, dynamics, t, h, x, xi, args: step(self, dynamics, t, h, x, (xi[0], 0.0 * xi[1]), args)
    monkeypatch.setattr(SRA1, "step", without)
    strong, *_ = _simulators_orders.strong(SMOKE, key)
    assert "strong order of SRA1, double well" in _failed(strong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -0.25}, "temperature must be positive, got -0.25"),
        ({"escape_temperatures": (0.2, -0.1)}, "escape_temperatures must be positive"),
        ({"step": 0.0}, "step must be positive, got 0.0"),
        ({"fit_steps": 0}, "fit_steps must be positive, got 0"),
        ({"step": 2.0}, "step must be below 1 / rate = 1, got 2.0"),
        ({"strong_levels": (5, 6, 7, 10)}, "finest must exceed"),
        ({"weak_levels": (3, 2, 4)}, "weak_levels must be at least three increasing levels"),
        ({"batches": 2}, "batches must be at least 8"),
        ({"well_step": 0.5}, "well_step and escape_step must be at most 0.1"),
        ({"rate": float("nan")}, "rate must be positive, got nan"),
    ],
)
def test_refuses(change, message, key):
    with pytest.raises(ValueError, match=message):
        simulators.run(dataclasses.replace(PAPER, **change), key=key)
