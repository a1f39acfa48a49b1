"""The Mott transition in its small configuration; a wrong self-energy moves the spinodals."""

import dataclasses

import jax
import pytest

from physml.recipes.dmft import mott_transition


def test_smoke_holds():
    result = mott_transition.run(mott_transition.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(mott_transition.plot(result).axes) == 4


def test_a_wider_band_moves_the_spinodals(monkeypatch):
    """With D = 1.02 in place of 1 every energy, hence both spinodals, lie some two percent higher."""
    right = mott_transition.BetheHubbard
    monkeypatch.setattr(mott_transition, "BetheHubbard", lambda **fields: right(D=1.02, **fields))
    config = dataclasses.replace(mott_transition.SMOKE, loop=(2.5, 3.15, 0.01))
    with jax.enable_x64(True):
        us, metal, insulator, fine = mott_transition._branches(config)
        model = mott_transition._model(config)
        z = jax.jit(jax.vmap(lambda u, x: model(u, 1 / config.beta).finish(x).Z))
        claims = []
        mott_transition._jumps(config, claims, us, z(us, metal), z(us, insulator), fine)
    failed = {claim.quantity for claim in claims if not claim.holds}
    assert failed == {"U_c1 by the jump", "U_c2 by the jump"}


def test_errors():
    with pytest.raises(ValueError, match="temperatures"):
        mott_transition.Config(temperatures=3)
