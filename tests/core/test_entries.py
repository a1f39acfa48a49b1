"""Functions unrolled into scalars: the same numbers, and None for what cannot be unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core.entries import by_entries, split

CASES = {
    "norm": lambda a, b: jnp.linalg.norm(a - b),
    "products": lambda a, b: jnp.outer(a, b) @ b + a * (a @ b),
    "shapes": lambda a, b: jnp.concatenate([a[::-1], b[1:], jnp.stack([a, b]).T.reshape(-1)]),
    "reductions": lambda a, b: jnp.array([jnp.max(a), jnp.min(b), jnp.prod(a), jnp.any(a > b).astype(a.dtype)]),
    "select": lambda a, b: jnp.where(jnp.sum(a) > 0, a, jnp.exp(b)) ** 3,
    "indexing": lambda a, b: jnp.array([a[0] * b[2], jnp.arctan2(a[1], b[1])]),
    "jit inside": jax.jit(lambda a, b: jnp.clip(a, -0.5, 0.5) / (1 + b**2)),
    "vmap inside": lambda a, b: jax.vmap(lambda s: jnp.sum(s * b))(a),
    "gradient": lambda a, b: jax.grad(lambda a: jnp.sum(jnp.sin(a * b)) ** 2)(a),
}


@pytest.mark.parametrize("name", CASES)
def test_same_numbers(name):
    a, b = jax.random.normal(jax.random.key(0), (2, 3))
    unrolled = by_entries(CASES[name], a, b)
    assert unrolled is not None
    out = unrolled(split(a), split(b))
    expected = CASES[name](a, b)
    assert out.shape == expected.shape
    np.testing.assert_allclose(np.asarray([float(v) for v in out.ravel()]), expected.ravel(), rtol=1e-5, atol=1e-6)


def test_captured_numbers_stay_differentiable():
    a = jnp.asarray([0.3, -0.4])
    matrix = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    through = lambda m: sum(by_entries(lambda x: m @ x, a)(split(a)))
    np.testing.assert_allclose(jax.grad(through)(matrix), jnp.stack([a, a]), rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda a: jnp.sort(a),
        lambda a: jnp.linalg.cholesky(jnp.outer(a, a)),
        lambda a: jax.lax.fori_loop(0, 3, lambda i, v: v * 2, a),
        lambda a: jnp.broadcast_to(a, (100, 3)),
        lambda a: jax.nn.relu(a),
    ],
)
def test_what_cannot_be_unrolled(function):
    assert by_entries(function, jnp.ones(3)) is None
