"""Monotone Boltzmann machines in their small configuration; without training, digits are not read."""

import jax

from physml.recipes.hopfield import monotone_boltzmann as recipe


def test_smoke_holds():
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) == 4


def test_a_machine_that_sees_other_images_reads_nothing(monkeypatch):
    train = recipe._train
    monkeypatch.setattr(recipe, "_train", lambda config, values, *rest: train(config, values[:, ::-1], *rest))
    failed = " ".join(c.quantity for c in recipe.run(recipe.SMOKE, key=jax.random.key(0)).claims if not c.holds)
    assert "whole images" in failed and "missing pixels" in failed
