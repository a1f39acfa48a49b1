"""Continual learning in its small configuration; a reference that is not one of task 1 is noticed."""

import jax
import jax.numpy as jnp
import pytest

from physml.recipes.hopfield import continual_learning


def test_smoke_holds():
    result = continual_learning.run(continual_learning.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(continual_learning.plot(result).axes) == 6


def test_a_foreign_reference_is_noticed(monkeypatch):
    """Message passing held near a random state, not near a solution of task 1."""
    right = continual_learning.messages
    monkeypatch.setattr(continual_learning, "messages", lambda x, y, bias: right(x, y, bias=jnp.abs(bias)).check())
    claims = []
    continual_learning._messages(continual_learning.SMOKE, claims, jax.random.key(0))
    assert not claims[0].holds


def test_errors():
    with pytest.raises(ValueError, match="runs"):
        continual_learning.Config(runs=2)
