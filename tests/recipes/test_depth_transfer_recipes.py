"""The recipe of depth transfer in its small configuration; a wrong ingredient is noticed."""

import jax

from physml.recipes.dmft import depth_transfer


def test_smoke_holds():
    result = depth_transfer.run(depth_transfer.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(depth_transfer.plot(result).axes) >= 4


def test_branches_left_unscaled_are_noticed(monkeypatch):
    truth = depth_transfer.train
    monkeypatch.setattr(depth_transfer, "train", lambda *args, scale, **options: truth(*args, scale=1.0, **options))
    claims = depth_transfer._digits(depth_transfer.SMOKE, jax.random.key(0), {})
    failed = {claim.quantity for claim in claims if not claim.holds}
    assert "scaled: steps of the grid the best rate moves over depth" in failed
