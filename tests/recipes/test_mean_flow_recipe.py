"""The mean-flow recipe: its claims hold at smoke size, and they fail when the loss is wrong."""

import dataclasses

import jax
import pytest

from physml import matching
from physml.recipes.matching import mean_flow
from physml.recipes.matching.mean_flow import PAPER, SMOKE


def test_smoke_holds():
    result = mean_flow.run(SMOKE, key=jax.random.key(0))
    result.check()
    assert len(mean_flow.plot(result).axes) == 11


def test_a_loss_without_the_derivative_is_seen(monkeypatch, key):
    """Flow matching at every pair of times: what is left when du/dt is dropped."""
    loss, still = matching.mean_flow_loss, jax.lax.stop_gradient
    without = lambda field, *rest, **options: loss(
        lambda times, x, args: field(still(times), still(x), args), *rest, **options
    )
    monkeypatch.setattr(matching, "mean_flow_loss", without)
    monkeypatch.setattr(mean_flow, "LAWS", {"moons": mean_flow.LAWS["moons"]})
    config = dataclasses.replace(SMOKE, kinds=("mean flow",), digit_kinds=())
    failed = {claim.quantity for claim in mean_flow.run(config, key=key).claims if not claim.holds}
    assert "moons, mean flow: W2 of one step over 40 steps of the same net" in failed
    assert "moons, mean flow: W2 of one step over the floor" in failed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "config.steps must be at least 1"),
        ({"warm_up": 0.0}, "warm_up"),
        ({"kinds": ("shortcut",)}, "config.kinds must be some of"),
        ({"digit_kinds": ("coupled",)}, "does not know the classes"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PAPER, **change)
