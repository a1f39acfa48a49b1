"""The recipe of nonsmooth sampling in its small configuration, and that its claims see a wrong proximity operator."""

import dataclasses

import jax

from physml.particles.energies.nonsmooth import L1
from physml.recipes.particles import nonsmooth_langevin


def test_smoke_holds():
    result = nonsmooth_langevin.run(nonsmooth_langevin.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(nonsmooth_langevin.plot(result).axes) == 9


def test_a_prox_that_shrinks_too_little_is_seen(monkeypatch):
    right = L1.prox
    monkeypatch.setattr(L1, "prox", lambda self, x, smoothing: right(self, x, 0.3 * smoothing))
    config = dataclasses.replace(nonsmooth_langevin.SMOKE, kernels=("MYULA",))
    # The quadrature of the smoothed law goes wrong with it; the target does not.
    claims, _, _ = nonsmooth_langevin._mixtures(config, jax.random.key(0), False)
    assert not next(claim for claim in claims if claim.quantity.startswith("MYULA")).holds
