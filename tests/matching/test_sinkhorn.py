"""Sinkhorn's plan with weights, and the debiased divergence: limits, an exact plan, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_gradient, assert_refused
from scipy.optimize import linprog

from physml.core import in_float64
from physml.matching import sinkhorn, sinkhorn_divergence

X, Y = (jax.random.normal(jax.random.key(k), (n, 2)) + k for k, n in ((0, 5), (1, 4)))
A, B = jnp.array([0.1, 0.4, 0.2, 0.05, 0.25]), jnp.array([0.5, 0.0, 0.2, 0.3])


def _cost(x, y):
    return 0.5 * np.sum((np.asarray(x)[:, None] - np.asarray(y)[None]) ** 2, -1)


def test_marginals_are_the_weights():
    plan = sinkhorn(jnp.asarray(_cost(X, Y)), 0.3, a=A, b=B, tol=1e-5).check()
    P = np.exp(plan.log_p)
    np.testing.assert_allclose(P.sum(1), A, atol=1e-5)
    np.testing.assert_allclose(P.sum(0), B, atol=1e-5)
    # The plan is the kernel between potentials.
    inner = np.exp((np.asarray(plan.f)[:, None] + np.asarray(plan.g)[None] - _cost(X, Y)) / 0.3)
    np.testing.assert_allclose(P, inner * np.asarray(A)[:, None] * np.asarray(B)[None], rtol=1e-3, atol=1e-7)


def test_weights_are_repeated_points():
    """Weights in tenths against as many copies of each point."""
    a, b = jnp.array([0.2, 0.3, 0.5]), jnp.array([0.6, 0.4])
    many = lambda z, w: np.repeat(np.asarray(z), np.round(10 * np.asarray(w)).astype(int), 0)
    x, y = X[:3], Y[:2]
    one = sinkhorn_divergence(x, y, 0.5, a=a, b=b, tol=1e-4).check()
    other = sinkhorn_divergence(jnp.asarray(many(x, a)), jnp.asarray(many(y, b)), 0.5, tol=1e-4).check()
    np.testing.assert_allclose(one.value, other.value, rtol=1e-3)


def test_limits_of_the_divergence():
    np.testing.assert_allclose(sinkhorn_divergence(X, X, 0.2).value, 0, atol=1e-5)
    far = sinkhorn_divergence(X, Y, 1e4, a=A, b=B)
    gap = np.asarray(A) @ np.asarray(X) - np.asarray(B) @ np.asarray(Y)
    np.testing.assert_allclose(far.value, 0.5 * gap @ gap, rtol=1e-2)
    # No temperature: a linear program.
    C = _cost(X, Y)
    marginals = np.concatenate([np.kron(np.eye(5), np.ones(4)), np.kron(np.ones(5), np.eye(4))])
    exact = linprog(C.ravel(), A_eq=marginals, b_eq=np.concatenate([A, B]), bounds=(0, None)).fun
    cold = sinkhorn_divergence(X, Y, 0.01, a=A, b=B, max_steps=20_000)
    np.testing.assert_allclose(cold.value, exact, rtol=0.02)


def test_a_cost_of_ones_own():
    """Distances on a line at low temperature: the distance of the distribution functions."""
    x, y = jnp.array([0.0, 1.0, 3.0]), jnp.array([0.5, 1.5, 5.0])
    found = sinkhorn_divergence(x, y, 0.02, cost=lambda p, q: jnp.abs(p - q), max_steps=20_000)
    np.testing.assert_allclose(found.value, 1.0, rtol=0.02)


@pytest.mark.parametrize("what", ["samples", "weights", "epsilon"])
def test_gradients(what):
    @in_float64
    def value(v):
        x, a, eps = X, A, 0.4
        x, a, eps = (v if what == name else kept for name, kept in (("samples", x), ("weights", a), ("epsilon", eps)))
        x, a, y, b = (jnp.asarray(z, jnp.float64) for z in (x, a / jnp.sum(a), Y, B))
        return sinkhorn_divergence(x, y, eps, a=a, b=b, tol=1e-9, max_steps=20_000).value

    start = {"samples": X, "weights": A, "epsilon": jnp.asarray(0.4)}[what]
    assert_gradient(value, start, step=1e-2, rtol=5e-3, atol=2e-4)


def test_mistakes():
    C = jnp.ones((3, 2))
    assert_refused(lambda: sinkhorn(C, 0.1, a=jnp.ones(2) / 2), "3 points")
    assert_refused(lambda: sinkhorn(C, 0.1, b=jnp.ones(2)), "sum to 1")
    assert_refused(lambda: sinkhorn(C, 0.1, b=jnp.array([1.5, -0.5])), "at least 0")
    assert_refused(lambda: sinkhorn_divergence(X, Y[:, :1], 0.1), "one shape")
    assert_refused(lambda: sinkhorn_divergence(X, Y, 0.1, cost=3.0), "function")
    with pytest.raises(RuntimeError, match="sinkhorn_divergence"):
        sinkhorn_divergence(X, Y, 1e-4, max_steps=1).check()
