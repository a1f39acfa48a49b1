"""Modern Hopfield networks in the small configuration; a wrong dimension moves the capacity."""

import jax
import numpy as np
import pytest

from physml.recipes.hopfield import modern_hopfield


def test_smoke_holds():
    result = modern_hopfield.run(modern_hopfield.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(modern_hopfield.plot(result).axes) == 6


def test_the_capacity_is_that_of_its_dimension(monkeypatch):
    """The closed form by direct integration; patterns of one dimension more would hold e^0.62 times as many."""
    u = np.linspace(-1, 1, 200001)
    for d, kappa in ((6, 1.0), (13, 2.5)):
        density = (1 - u * u) ** ((d - 3) / 2)
        mean = np.sum(density * np.exp(-kappa * (d - 1) * (1 - u))) / np.sum(density)
        assert modern_hopfield.half_capacity(kappa, d) == pytest.approx(1 / mean, rel=1e-6)
    growth = np.log(modern_hopfield.half_capacity(1.0, 400) / modern_hopfield.half_capacity(1.0, 399))
    assert growth == pytest.approx(modern_hopfield.growth(1.0), abs=0.01)
    right = modern_hopfield.half_capacity
    monkeypatch.setattr(modern_hopfield, "half_capacity", lambda kappa, d: right(kappa, d + 1))
    claims: list = []
    modern_hopfield._capacity(modern_hopfield.SMOKE, np.random.default_rng(0), claims, {})
    assert not claims[0].holds


def test_errors():
    with pytest.raises(ValueError, match="images"):
        modern_hopfield.Config(images="faces")
