"""`march` against a Python loop, its gradient, and the memory of the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import march, scan_range


def _draw(k):
    """Cheap to compile; the tests of noise are elsewhere."""
    return jnp.sin(jnp.asarray(k, jnp.float32) * jnp.array([1.0, 2.0]))


def _step(x, k, xi):
    """Different at every step, so that a wrong index shows."""
    kick = 0.0 if xi is None else xi
    return 0.9 * x + 0.125 * jnp.asarray(k, x.dtype) + kick


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(
    "steps, save_every, chunk, first",
    [(12, 1, None, 0), (13, 1, 5, 7), (30, 15, 7, 100), (28, 2, 3, 1)],
)
def test_march_equals_a_python_loop(steps, save_every, chunk, first, checkpoint):
    x = jnp.array([1.0, -2.0])
    options = dict(draw=_draw, first=first, save_every=save_every, chunk=chunk, checkpoint=checkpoint)
    last, seen = jax.jit(lambda x: march(_step, x, steps, observe=lambda x: {"x": x, "s": x.sum()}, **options))(x)
    path, z = [], jax.vmap(_draw)(first + jnp.arange(steps))
    for i in range(steps):
        x = _step(x, first + i, z[i])
        path.append(np.asarray(x))
    # The compiler may contract a product and a sum into one rounding: a few units in the last place.
    saved = np.stack(path)[save_every - 1 :: save_every]
    assert seen["x"].shape == saved.shape
    np.testing.assert_allclose(seen["x"], saved, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(seen["s"], saved.sum(1), rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(last, seen["x"][-1])


def test_march_is_exact_in_integers():
    """Every step once, in order, with its own noise: a polynomial hash modulo 2^32 forgets nothing."""
    draw = lambda k: jnp.uint32(2654435761) * k.astype(jnp.uint32)
    step = lambda s, k, z: s * jnp.uint32(31) + (z ^ k.astype(jnp.uint32))
    for steps, every, chunk, checkpoint in [(47, 1, 6, True), (60, 12, 5, True), (60, 4, 3, False), (60, 20, 9, False)]:
        options = dict(draw=draw, first=5, save_every=every, chunk=chunk, checkpoint=checkpoint)
        last, seen = jax.jit(lambda s, o=options, n=steps: march(step, s, n, **o))(jnp.uint32(1))
        state, path = 1, []
        for k in range(5, 5 + steps):
            state = (state * 31 + ((2654435761 * k % 2**32) ^ k)) % 2**32
            path.append(state)
        np.testing.assert_array_equal(seen, np.array(path[every - 1 :: every], np.uint32))
        assert int(last) == path[-1]


def test_without_noise_and_without_steps():
    last, seen = march(_step, jnp.ones(2), 4, save_every=2)
    x = np.ones(2)
    for k in range(4):
        x = 0.9 * x + 0.125 * k
    np.testing.assert_allclose(last, x, rtol=1e-6)
    assert seen.shape == (2, 2)
    last, seen = march(_step, jnp.ones(2), 0, draw=_draw)
    np.testing.assert_array_equal(last, np.ones(2))
    assert seen.shape == (0, 2)


def test_scan_range_blocks_with_a_tail():
    body = lambda c, i: (c * jnp.uint32(31) + i.astype(jnp.uint32), c)
    plain = scan_range(body, jnp.uint32(1), 23)
    for block in (1, 4, 5, 23, 50):
        np.testing.assert_array_equal(scan_range(body, jnp.uint32(1), 23, block)[1], plain[1])
        assert scan_range(body, jnp.uint32(1), 23, block)[0] == plain[0]


def _loss(x, steps, save_every, checkpoint):
    step = lambda x, k, xi: x + 0.1 * jnp.sin(x) + 0.1 * xi
    draw = lambda k: jnp.sin(k.astype(x.dtype)) * jnp.cos(jnp.arange(x.size, dtype=x.dtype))
    last, seen = march(step, x, steps, draw=draw, save_every=save_every, chunk=2, checkpoint=checkpoint)
    return jnp.sum(last**2) + jnp.sum(jnp.cos(seen))


@pytest.mark.parametrize("save_every", [1, 3, 30])
def test_checkpoint_keeps_the_gradient(save_every):
    x = jnp.array([0.3, -1.1])
    plain, thrifty = (jax.jit(jax.grad(lambda x, c=c: _loss(x, 30, save_every, c)))(x) for c in (False, True))
    assert np.abs(plain).min() > 1e-2
    np.testing.assert_allclose(plain, thrifty, rtol=1e-5)


def test_memory_of_the_checkpointed_gradient_grows_like_the_root_of_the_steps():
    x = jnp.ones(1024)

    def memory(steps, checkpoint):
        gradient = jax.jit(jax.grad(lambda x: _loss(x, steps, steps, checkpoint)))
        return gradient.lower(x).compile().memory_analysis().temp_size_in_bytes

    steps = np.array([256, 1024, 4096])
    thrifty = np.array([memory(n, True) for n in steps.tolist()])
    exponent = np.polyfit(np.log(steps), np.log(thrifty), 1)[0]
    assert 0.3 < exponent < 0.65, (exponent, thrifty)
    assert memory(4096, False) > 15 * thrifty[-1]


@pytest.mark.parametrize("save_every", [0, 4, 11])
def test_save_every_must_divide(save_every):
    with pytest.raises(ValueError, match=f"save_every={save_every}, steps=10"):
        march(_step, jnp.ones(2), 10, save_every=save_every)
