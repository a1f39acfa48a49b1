"""Message passing in the binary perceptron beside the theory, with and without a reference; derivatives, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core._status import Code, Failure
from physml.hopfield.learning.perceptron import examples_of, flipped, messages
from physml.hopfield.theory.continual import two_tasks
from physml.hopfield.theory.perceptron import teacher_student

N, COUNT = 500, 300


def _runs(similarity, reference, field, runs=12):
    """(runs, 4): overlaps of the means with themselves, both teachers and the reference."""
    rows = []
    for key in jax.random.split(jax.random.key(0), runs):
        keys = jax.random.split(key, 4)
        w1 = jnp.sign(jax.random.normal(keys[0], (N,)))
        # A solution and its teacher are exchangeable: flips of the teacher are a typical solution.
        w, w2 = flipped(w1, reference, key=keys[1]), flipped(w1, similarity, key=keys[2])
        x, y = examples_of(w2, COUNT, key=keys[3])
        m = messages(x, y, bias=field * w).check().m
        rows.append([v @ m / N for v in (m, w1, w2, w)])
    return np.asarray(rows)


def _deviations(rows, theory):
    return np.abs(rows.mean(0) - np.asarray(theory)) / (rows.std(0, ddof=1) / len(rows) ** 0.5)


@pytest.mark.slow
def test_overlaps_of_one_and_two_tasks():
    """Within 5 standard errors, and not with the overlaps of less similar teachers."""
    alone = teacher_student(COUNT / N).check()
    one = _deviations(_runs(0.5, 0.4, 0.0)[:, [0, 2]], [alone.r, alone.r])
    assert one.max() < 5, one
    held = two_tasks(0.8, COUNT / N, 0.5, field=0.6).check()
    rows = _runs(0.5, float(held.reference), 0.6)
    two = _deviations(rows, [held.q, held.r1, held.r2, held.p])
    assert two.max() < 5, two
    other = two_tasks(0.8, COUNT / N, 0.1, field=0.6)
    assert _deviations(rows, [other.q, other.r1, other.r2, other.p]).max() > 8


def test_a_single_example():
    """One example of many weights: m = y x sqrt(2 / (pi N)) to leading order."""
    n = 20000
    x, y = examples_of(jnp.ones(n), 1, key=jax.random.key(1))
    x = x / jnp.sqrt(jnp.mean(x**2))
    m = messages(x, y, tol=1e-7).m
    want = y[0] * x[0] * np.sqrt(2 / (np.pi * n))
    assert jnp.max(jnp.abs(m - want)) < 5e-4 * jnp.max(jnp.abs(want))


def test_derivative_in_the_bias():
    with jax.enable_x64(True):
        x, y = examples_of(jnp.ones(N), COUNT, key=jax.random.key(2))
        assert x.dtype == jnp.float64
        mean = lambda b: jnp.mean(messages(x, y, bias=b * jnp.ones(N), tol=1e-12).m)
        slope = jax.jvp(mean, (0.3,), (1.0,))[1]
        assert abs(slope / ((mean(0.3 + 1e-5) - mean(0.3 - 1e-5)) / 2e-5) - 1) < 1e-6


def test_errors():
    x, y = examples_of(jnp.ones(N), COUNT, key=jax.random.key(3))
    assert x.dtype == jnp.float32
    early = messages(x, y, max_steps=2)
    assert int(early.status.code) == Code.not_converged and int(early.status.step) == 2
    with pytest.raises(Failure, match="messages"):
        early.check()
    with pytest.raises(ValueError, match="NaN"):
        messages(x.at[0, 0].set(jnp.nan), y)
    with pytest.raises(ValueError, match="labels"):
        messages(x, 0.5 * y)
    with pytest.raises(ValueError, match="examples"):
        messages(x[:0], y[:0])
    with pytest.raises(ValueError, match="damping"):
        messages(x, y, damping=0.0)
    with pytest.raises(ValueError, match="product"):
        flipped(y, 1.5, key=jax.random.key(0))
