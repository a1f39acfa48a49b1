"""Bounds of retrieval: a hundred thousand random trials, the capacity in numbers, attractors by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import lambertw

from physml.hopfield.memory.bounds import Kind, attractor, capacity, gaps, separated, step_error_bound
from physml.hopfield.memory.retrieve import retrieve

N, D = 6, 4


def _worst(seed, memories, queries, bound):
    """The largest |f(x) - x_i| / bound over random patterns, inverse temperatures and states near the pattern."""
    rng = np.random.default_rng(seed)
    memory = rng.normal(size=(memories, N, D)) * rng.uniform(0.3, 2, size=(memories, N, 1))
    # The bound is sharpest for the others all in one place on the same line, and states on the way to it.
    half = memories // 2
    memory[:half, 1:] = memory[:half, :1] * rng.uniform(-1, 1, size=(half, 1, 1)) + 0.1 * memory[:half, 1:]
    beta = np.exp(rng.uniform(-3, 3, size=memories))
    move = rng.normal(size=(memories, queries, D)) * 10 ** rng.uniform(-3, 0, size=(memories, queries, 1))
    move[:half] = -memory[:half, :1] * rng.uniform(0, 1, size=(half, queries, 1))

    @jax.jit
    @jax.vmap
    def ratio(memory, beta, move):
        x = memory[:1] + move
        error = jnp.linalg.norm(retrieve(x, memory, beta=beta).x - memory[:1], axis=-1)
        rounding = 8 * jnp.finfo(x.dtype).eps * jnp.linalg.norm(memory, axis=-1).max()
        return error / (bound(x, memory, beta=beta)[:, 0] + rounding)

    with jax.enable_x64(True):
        return float(jnp.max(ratio(memory, beta, move)))


def test_no_violation_in_a_hundred_thousand_trials():
    worst = _worst(0, 2000, 50, step_error_bound)
    assert 0.3 < worst <= 1  # a bound that is never approached would test nothing


def test_half_the_diameter_is_noticed():
    """With M in place of 2M in the exponent, what a hasty proof would write, the trials find violations."""

    def wrong(x, memory, *, beta):
        m = jnp.max(jnp.linalg.norm(memory, axis=-1))
        away = jnp.linalg.norm(x - memory[:1], axis=-1)[:, None]
        return 2 * (len(memory) - 1) * m * jnp.exp(-beta * (gaps(memory)[None] - m * away))

    assert _worst(0, 200, 50, wrong) > 1


def test_separated_patterns_are_fixed_points_in_their_balls():
    rng = np.random.default_rng(1)
    memory = rng.normal(size=(N, 20))
    memory = jnp.asarray(3 * np.sqrt(19) * memory / np.linalg.norm(memory, axis=1, keepdims=True), jnp.float32)
    assert separated(memory, 1.0).all() and not separated(memory, 1e-3).any()
    out = jax.jit(lambda m: retrieve(m, m, beta=1.0, tol=1e-6))(memory).check()
    assert (jnp.linalg.norm(out.x - memory, axis=-1) <= 1 / (N * jnp.linalg.norm(memory[0]))).all()
    np.testing.assert_allclose(gaps(jnp.eye(3)), 1.0)


def test_capacity_in_numbers():
    with jax.enable_x64(True):
        out = capacity(1.0, 20)
        np.testing.assert_allclose([out.c, out.patterns], [3.1546, 7.41], rtol=1e-3)
        for beta, radius, d, p in ((0.2, 1.0, 5, 0.01), (4.0, 3.0, 75, 1e-3), (30.0, 2.0, 20, 0.5)):
            a, b = 2 / (d - 1) * (1 + np.log(2 * beta * radius**2 * p * (d - 1))), 0.4 * radius**2 * beta
            expected = b / lambertw(np.exp(a + np.log(b))).real
            np.testing.assert_allclose(capacity(beta, d, radius=radius, failure=p).c, expected, rtol=1e-12)
        f = lambda beta: capacity(beta, 20).patterns
        np.testing.assert_allclose(jax.grad(f)(1.3), (f(1.3 + 1e-5) - f(1.3 - 1e-5)) / 2e-5, rtol=1e-7)
    for arguments, options in (((0.0, 20), {}), ((1.0, 1), {}), ((1.0, 20), {"failure": 0.0})):
        with pytest.raises(ValueError, match="must be"):
            capacity(*arguments, **options)


def test_kinds_of_attractors():
    """Two tight pairs and one pattern apart: at high temperature one state, between the pairs, at low all by itself."""
    memory = np.zeros((5, 3))
    memory[[0, 1], 0], memory[[2, 3], 1], memory[4, 2] = 1, 1, 1
    memory[[0, 2], 2], memory[[1, 3], 2] = 0.05, -0.05
    run = jax.jit(lambda beta: attractor(memory, memory, beta=beta))
    with jax.enable_x64(True):
        high, middle, low = run(0.3), run(12.0), run(3000.0)
    assert (high.kind == Kind.everything).all() and high.members.all()
    assert middle.kind.tolist() == [1, 1, 1, 1, 0]
    assert middle.members[0].tolist() == [True, True, False, False, False]
    assert (low.kind == Kind.single).all() and (low.members == np.eye(5, dtype=bool)).all()
    low.status.check()
