"""The digits recipe in its small configuration, and that its claims see a broken model."""

import dataclasses

import jax
import numpy as np

from physml.recipes.matching import digits


def test_smoke_holds():
    result = digits.run(digits.SMOKE, key=jax.random.key(0))
    result.check()
    figure = digits.plot(result)
    assert len(figure.axes) == 5
    # Untrained, most claims must fail.
    broken = digits.run(dataclasses.replace(digits.SMOKE, steps=2), key=jax.random.key(0))
    failed = {claim.quantity for claim in broken.claims if not claim.holds}
    assert len(failed) >= 4, failed


def test_excess_is_unbiased_for_equal_stratified_laws():
    """The mean over random halves of real digits is zero within 5 standard errors; the plain U-statistic's is not."""
    images = digits.data.digits()
    x, y = images.train_x / 8.0 - 1.0, images.train_y
    rng, kept, plain = np.random.default_rng(0), [], []
    for _ in range(12):
        first, second = [], []
        for c in range(10):
            members = rng.permutation(np.flatnonzero(y == c))[:60]
            first.append(members[:30])
            second.append(members[30:])
        first, second = np.concatenate(first), np.concatenate(second)
        kept.append(digits._excess(jax.numpy.asarray(x[first]), y[first], jax.numpy.asarray(x[second]), y[second]))
        plain.append(float(digits.metrics.energy_distance(x[first], x[second], unbiased=True)))
    error = lambda v: np.std(v, ddof=1) / np.sqrt(len(v))
    assert abs(np.mean(kept)) < 5 * error(kept)
    assert np.mean(plain) < -5 * error(plain)
