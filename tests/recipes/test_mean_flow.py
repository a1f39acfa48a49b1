"""The mean-flow recipe: its claims hold at smoke size, and they fail when the loss is wrong."""

import dataclasses

import jax
import pytest

from physml import matching
from physml.recipes import mean_flow
from physml.recipes.mean_flow import PAPER, SMOKE


@pytest.fixture(scope="module")
def result():
    return mean_flow.run(SMOKE, key=jax.random.key(0))


def test_claims_hold(result):
    result.check()
    assert len(result.claims) == 16


def test_figure(result):
    figure = mean_flow.plot(result)
    assert len(figure.axes) == 16


def test_a_loss_without_the_derivative_is_seen(monkeypatch, key):
    """Flow matching at every pair of times: what is left when du/dt is dropped."""
    loss = matching.mean_flow_loss
    still = jax.lax.stop_gradient
    without = lambda field, *rest, **options: loss(
        lambda times, x, args: field(still(times), still(x), args), *rest, **options
    )
    monkeypatch.setattr(matching, "mean_flow_loss", without)
    monkeypatch.setattr(mean_flow, "KINDS", ("mean flow",))
    monkeypatch.setattr(mean_flow, "LAWS", {"two moons": mean_flow.LAWS["two moons"]})
    failed = [claim.quantity for claim in mean_flow.run(SMOKE, key=key).claims if not claim.holds]
    assert "two moons, mean flow: W2 of one step over 100 steps" in failed
    assert "two moons, mean flow: W2 of one step over the floor" in failed


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": 0}, "config.steps must be at least 1"), ({"warm_up": 0.0}, "config.warm_up"), ({"width": -1}, "width")],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PAPER, **change)
