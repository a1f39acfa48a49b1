"""The machine of digits: its claims hold for small sizes, and an untrained machine knows nothing."""

import dataclasses

import jax
import matplotlib.pyplot as plt

from physml.recipes import monotone_boltzmann as recipe


def test_small_sizes_hold_and_are_drawn():
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    plt.close(recipe.plot(result))


def test_a_machine_that_did_not_learn_is_noticed():
    still = dataclasses.replace(recipe.SMOKE, learning_rate=0.0, steps=1)
    result = recipe.run(still, key=jax.random.key(0))
    failed = [claim.quantity for claim in result.claims if not claim.holds]
    assert any(name.startswith("accuracy from whole images") for name in failed)
