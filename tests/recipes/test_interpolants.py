"""The recipe of interpolants in its small configuration, and that its claims see a wrong score."""

import dataclasses

import jax

from physml import matching
from physml.recipes.matching import interpolants


def test_smoke_holds():
    result = interpolants.run(interpolants.SMOKE, key=jax.random.key(1))
    result.check()
    assert len(interpolants.plot(result).axes) == 4


def test_a_wrong_score_is_seen(monkeypatch):
    exact = matching.exact_fields

    def wrong(path, source, target):
        v, s, d = exact(path, source, target)
        return matching.Fields(v, lambda t, x, args=None: 0.6 * s(t, x), d)

    monkeypatch.setattr(matching, "exact_fields", wrong)
    jax.clear_caches()
    # At 1000 samples a batch the distance is 4 to 5 times its floor; at the 300 of the small configuration, 1 to 2.
    config = dataclasses.replace(interpolants.SMOKE, paths=("linear",), epsilons=(2.0,), train_steps=2, samples=1000)
    result = interpolants.run(config, key=jax.random.key(0))
    jax.clear_caches()
    failed = {claim.quantity for claim in result.claims if not claim.holds}
    assert "linear, epsilon 2: energy distance" in failed
    assert "linear, epsilon 0: energy distance" not in failed
