"""Memories that learn from examples, and diluted ones: limits, thresholds, closed forms at T = 0, derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from physml.hopfield.theory._dense import dense
from physml.hopfield.theory._multitasking import multitasking
from physml.hopfield.theory.data_sets import data_set, entropy


def test_perfect_examples_are_the_patterns():
    with jax.enable_x64(True):
        m = dense(3, 0.04, 0.25).m
        for learning in ("supervised", "unsupervised"):
            assert abs(data_set(3, 0.04, 0.25, quality=1.0, count=30, learning=learning).check().m - m) < 1e-10


def test_supervised_values_and_derivative():
    """The laws' values at r = .5, M = 30 were found by an independent solver; a larger load lowers m."""
    options: dict[str, Any] = dict(quality=0.5, count=30)
    with jax.enable_x64(True):
        value = lambda a, t: data_set(3, a, t, **options).m
        assert abs(value(0.04, 0.25) - 0.964) < 5e-4
        assert abs(data_set(3, 0.04, 0.25, **options, law="binomial").check().m - 0.961) < 5e-4
        e = 1e-4
        slope = jax.grad(value)(0.04, 0.25)
        assert abs(slope / ((value(0.04 + e, 0.25) - value(0.04 - e, 0.25)) / (2 * e)) - 1) < 1e-4
    assert data_set(3, jnp.float32(0.04), 0.25, **options).m.dtype == jnp.float32


def test_without_load_or_temperature_it_is_the_error_function():
    """Low load, T = 0: m = erf(1 / sqrt(2 rho)), whatever the signal; noise from rho is not dropped."""
    with jax.enable_x64(True):
        rho = entropy(0.3, 20)
        out = data_set(3, 0.0, 0.0, quality=0.3, count=20)
        assert abs(out.m - erf(1 / np.sqrt(2 * rho))) < 1e-9 and abs(out.m - 1) > 0.01


def test_a_teacher_needs_fewer_examples():
    """Supervised noise does not know M; unsupervised noise grows as 1 + rho_p and ends retrieval."""
    options: dict[str, Any] = dict(quality=0.5, count=30)
    assert float(data_set(3, 0.15, 0.1, **options).check().m) > 0.9
    assert abs(float(data_set(3, 0.15, 0.1, **options, learning="unsupervised").m)) < 0.1
    assert float(entropy(0.5, 30, 3)) == pytest.approx(63 / 30)


@pytest.mark.slow
def test_hierarchy_and_parallel_retrieval():
    with jax.enable_x64(True):
        out = multitasking(3, 0.4, 0.0).check()
        assert np.allclose(out.m, 0.6 * 0.4 ** np.arange(3), atol=1e-9) and out.stability < 1
        assert np.allclose(multitasking(3, 0.4, 0.02).m, [0.6, 0.24, 0.096], atol=1e-3)
        # 1 - d < d (1 - d^2) at d = .7: the first pattern no longer outvotes the other two.
        beyond = multitasking(3, 0.7, 0.0).check().m
        assert abs(beyond[0] - 0.3) > 1e-2
        for t, ordered in ((0.59, True), (0.61, False)):
            assert (jnp.max(jnp.abs(multitasking(3, 0.4, t).m)) > 0.01) == ordered
            assert (jnp.max(jnp.abs(multitasking(3, 0.4, t, rho=0.3).m)) > 0.01) == ordered


@pytest.mark.slow
def test_multitasking_derivative():
    with jax.enable_x64(True):
        e, value = 1e-4, lambda d: multitasking(3, d, 0.2).m[1]
        slope = jax.grad(value)(0.4)
        assert abs(slope / ((value(0.4 + e) - value(0.4 - e)) / (2 * e)) - 1) < 1e-4
    # Reverse mode runs outside the float64 context: nothing in it may depend on the flag.
    assert abs(float(jax.grad(value)(0.4)) - float(slope)) < 1e-6


def test_errors():
    with pytest.raises(ValueError, match="quality"):
        data_set(3, 0.1, 0.1, quality=0.0, count=3)
    with pytest.raises(ValueError, match="count"):
        data_set(3, 0.1, 0.1, quality=0.5, count=0)
    with pytest.raises(ValueError, match="at least 3"):
        data_set(2, 0.1, 0.1, quality=0.5, count=3)
    with pytest.raises(ValueError, match="blank"):
        multitasking(3, 1.0, 0.1)
    with pytest.raises(ValueError, match="k must"):
        multitasking(9, 0.3, 0.1)
