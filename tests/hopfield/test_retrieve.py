"""Retrieval: attention as one step, energies that fall, chunks, gradients, statuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core._status import Code, Failure
from physml.hopfield.memory.retrieve import energy, retrieve

NAMES = ("softmax", "softmax1", "sparsemax", "polynomial")
N, D, Q = 11, 5, 3


def _problem(dtype, seed=0):
    rng = np.random.default_rng(seed)
    memory = rng.normal(size=(N, D))
    query = memory[:Q] + 0.3 * rng.normal(size=(Q, D))
    mask = jnp.asarray(rng.random((Q, N)) < 0.8)
    return jnp.asarray(query, dtype), jnp.asarray(memory, dtype), jnp.asarray([1.0, 2.0, 4.0], dtype), mask


@functools.cache
def _compiled(**options):
    """One program for each set of options and dtype."""
    return jax.jit(lambda q, m, b, mask: retrieve(q, m, beta=b, mask=mask, **options))


@functools.cache
def _scalar(**options):
    """A number that depends on everything retrieve returns, and its gradient."""

    def f(q, m, b, mask):
        out = retrieve(q, m, beta=b, mask=mask, values=m[:, :2] ** 2, **options)
        return jnp.sum(jnp.sin(out.x)) + jnp.sum(out.energy) + jnp.sum(jnp.cos(out.value))

    return jax.jit(jax.value_and_grad(f, (0, 1, 2)))


def test_one_step_is_attention():
    q, m, b, mask = _problem(jnp.float32)
    out = _compiled()(q, m, b, mask)
    logits = jnp.where(mask, b[:, None] * q @ m.T, -jnp.inf)
    weights = jax.nn.softmax(logits)
    np.testing.assert_allclose(out.weights, weights, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(out.x, weights @ m, rtol=1e-5, atol=1e-6)
    for i in range(Q):
        shown = np.asarray(m, np.float64)[mask[i]]
        x, beta = np.asarray(out.x[i], np.float64), float(b[i])
        lse = np.logaddexp.reduce(beta * shown @ x)
        direct = -lse / beta + x @ x / 2 + np.log(len(shown)) / beta + (shown**2).sum(1).max() / 2
        np.testing.assert_allclose(out.energy[i], direct, rtol=1e-5)
    single = _compiled()(q[0], m, b[0], mask[0])
    np.testing.assert_allclose(single.x, out.x[0], rtol=1e-5)
    assert single.x.shape == (D,) and single.weights.shape == (N,) and single.steps == 1


@pytest.mark.parametrize("name", NAMES)
def test_energy_never_increases_and_is_not_negative(name):
    """From far away, for memories of every length, with beta from weak to strong."""
    rng = np.random.default_rng(1)

    @jax.jit
    def energies(query, memory, beta):
        def step(x, _):
            out = retrieve(x, memory, beta=beta, separation=name)
            return out.x, energy(x, memory, beta=beta, separation=name)

        return jax.lax.scan(step, query, length=12)[1]

    with jax.enable_x64(True):
        for scale in (0.1, 1.0, 10.0):
            start, memory = 3 * scale * rng.normal(size=(64, D)), scale * rng.normal(size=(N, D))
            e = energies(start, memory, np.geomspace(0.01, 30, 64))
            size = 1 + jnp.abs(e).max()
            assert (jnp.diff(e, axis=0) <= 1e-12 * size).all() and (e >= -1e-12 * size).all()


@pytest.mark.parametrize("name", NAMES)
def test_chunks_change_nothing_but_rounding(name):
    """Chunks that do not divide the memories, one row left over; values and gradients."""

    def f(q, m, b, mask, chunk):
        out = retrieve(q, m, beta=b, mask=mask, separation=name, chunk=chunk, return_weights=chunk is None)
        return jnp.sum(jnp.sin(out.x)) + jnp.sum(out.energy)

    def both(*problem):
        return [jax.value_and_grad(f, (0, 1, 2))(*problem, chunk) for chunk in (None, 5)]

    with jax.enable_x64(True):
        (whole, slopes), (parts, others) = jax.jit(both)(*_problem(jnp.float64))
        np.testing.assert_allclose(parts, whole, rtol=1e-11)
        for a, b in zip(others, slopes, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
            assert a.dtype == jnp.float64
    if name == "softmax":
        single = jax.jit(lambda *problem: [f(*problem, chunk) for chunk in (None, 5)])(*_problem(jnp.float32))
        np.testing.assert_allclose(*single, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{"steps": 2}, {"tol": 1e-13, "steps": 2000}], ids=["unrolled", "implicit"])
def test_gradients_against_differences(name, options):
    with jax.enable_x64(True):
        q, m, b, mask = _problem(jnp.float64, seed=2)
        f = _scalar(separation=name, **options)
        _, slopes = f(q, m, b, mask)
        rng, e = np.random.default_rng(3), 1e-5
        for i in range(3):
            move = [jnp.zeros_like(x) for x in (q, m, b)]
            move[i] = jnp.asarray(rng.normal(size=move[i].shape))
            shifted = lambda s, move=move: f(*(x + s * v for x, v in zip((q, m, b), move, strict=True)), mask)[0]
            difference = (shifted(e) - shifted(-e)) / (2 * e)
            np.testing.assert_allclose(jnp.sum(slopes[i] * move[i]), difference, rtol=1e-5, atol=1e-8)


def test_memory_does_not_grow_with_the_patterns():
    """Temporary bytes of the compiled gradient, beside the gradient itself, at 4 and 64 chunks."""

    def temporary(count):
        q, m = jnp.ones((4, 8)), jnp.ones((count, 8))
        f = lambda q, m: retrieve(q, m, beta=1.0, chunk=256, return_weights=False).x.sum()
        return jax.jit(jax.grad(f)).lower(q, m).compile().memory_analysis().temp_size_in_bytes

    assert temporary(64 * 256) <= temporary(4 * 256) + 1000


def test_tolerance_and_status():
    q, m, b, mask = _problem(jnp.float32)
    out = _compiled(tol=1e-5)(q, m, 4 * b, mask)
    np.testing.assert_allclose(_compiled()(out.x, m, 4 * b, mask).x, out.x, atol=1e-4)
    assert out.steps.shape == (Q,) and (out.steps >= 1).all() and (out.steps < 100).all()
    out.check()
    short = _compiled(tol=1e-7, steps=1)(q, m, b, mask)
    assert (short.status.code == Code.not_converged).any()
    with pytest.raises(Failure, match="tolerance"):
        short.check()
    for sick, code in ((m.at[0, 0].set(jnp.nan), Code.diverged), (m, Code.unphysical)):
        beta = b if code == Code.diverged else -b
        out = _compiled()(q, sick, beta, jnp.ones((Q, N), bool))
        assert (out.status.code == code).all()
    for options in ({}, {"chunk": 4, "return_weights": False}):
        out = _compiled(**options)(q, m, b, jnp.zeros((Q, N), bool))
        assert (out.x == 0).all() and (out.energy == 0).all() and (out.status.code == Code.ok).all()


def test_a_wrong_constant_of_the_energy_is_noticed():
    """Without max |x_i|^2 / 2 some energies are negative, so the claim of the test above can fail."""
    _, m, _, _ = _problem(jnp.float32)
    without = jax.jit(lambda m: energy(m, m, beta=30.0) - jnp.max(jnp.sum(m * m, -1)) / 2)
    assert without(m).min() < -0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": jnp.zeros((0, D))}, "empty"),
        ({"beta": 0.0}, "beta"),
        ({"beta": jnp.ones(2)}, "beta"),
        ({"memory": jnp.zeros((N, D + 1))}, "expected"),
        ({"steps": 0}, "steps"),
        ({"adjoint": "implicit"}, "tol"),
        ({"mask": jnp.ones(N + 1, bool)}, "mask"),
        ({"values": jnp.ones((N - 1, 2))}, "values"),
        ({"chunk": 0}, "chunk"),
        ({"separation": jax.nn.logsumexp, "chunk": 4}, "chunk"),
    ],
)
def test_errors(arguments, message):
    arguments = {"query": jnp.ones((Q, D)), "memory": jnp.ones((N, D)), "beta": 1.0} | arguments
    with pytest.raises(ValueError, match=message):
        retrieve(arguments.pop("query"), arguments.pop("memory"), **arguments)
