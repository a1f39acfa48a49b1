"""Filling arrays row by row: in segments as in one piece, and its derivatives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.dmft.equations import causal


def _row(rate, order, k):
    """A row with memory of all rows before it, on whatever length of arrays it is given."""
    K, total = order["K"], order["total"]
    index = jnp.arange(len(K), dtype=jnp.int32)
    old = jnp.where(index <= k, K[k], 0.0)
    back = causal.product(K, old) + causal.product(old, K) + jnp.sin(total[k])
    new = jnp.where(index <= k, old * (1 - rate) + 0.02 * back, jnp.where(index == k + 1, 1.0, 0.0))
    return {"K": new, "total": jnp.sum(new)}


def _start(steps):
    return {"K": jnp.eye(steps + 1).at[1:].set(0.0), "total": jnp.ones(steps + 1).at[1:].set(0.0)}


def _corner(order, m):
    return {"K": order["K"][:m, :m], "total": order["total"][:m]}


@pytest.mark.parametrize("steps", [7, 23])  # odd and even lengths; one segment that is shorter than the others
def test_segments_and_one_piece_agree_in_values_and_derivatives(monkeypatch, steps):
    monkeypatch.setattr(causal, "LENGTH", 5)

    def last(rate, first, **options):
        start = _start(steps)
        order = causal.fill(_row, rate, start | {"total": start["total"].at[0].set(first)}, steps, **options)
        return jnp.sum(order["K"][-1] ** 2) + order["K"][steps // 2, 2], order

    with jax.enable_x64(True):
        program = lambda **o: jax.jit(jax.value_and_grad(lambda a, b: last(a, b, **o), (0, 1), has_aux=True))
        segments = program(corner=_corner)
        whole, cut, plain = program()(0.3, 0.7), segments(0.3, 0.7), program(forward=True)(0.3, 0.7)
        for one in (cut, plain):
            chex.assert_trees_all_close(one, whole, rtol=1e-12, atol=1e-14)
        h = 1e-5
        numeric = (segments(0.3 + h, 0.7)[0][0] - segments(0.3 - h, 0.7)[0][0]) / (2 * h)
        assert abs(cut[1][0] - numeric) < 1e-6 * abs(numeric)
        value = jax.jit(lambda a: last(a, 0.7, forward=True, corner=_corner)[0])
        ahead = jax.jvp(value, (0.3,), (1.0,))[1]
        assert abs(ahead - numeric) < 1e-6 * abs(numeric)


def test_a_product_is_the_product_in_both_orders_and_precisions():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5):
        M, v = jnp.asarray(rng.normal(size=(n, n)), jnp.float32), jnp.asarray(rng.normal(size=n), jnp.float32)
        np.testing.assert_allclose(causal.product(M, v), M @ v, rtol=1e-6)
        np.testing.assert_allclose(causal.product(v, M), v @ M, rtol=1e-6)
        assert causal.product(M, v).dtype == jnp.float32
