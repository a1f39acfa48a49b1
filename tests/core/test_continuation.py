"""Curie and Weiss in a field: hysteresis with spinodals in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import Code, Damped, Failure, Newton, continuation

F = lambda m, h: jnp.tanh(2.0 * m + h)
M_S = np.sqrt(0.5)  # slope one: 2 (1 - m^2) = 1
H_S = abs(np.arctanh(M_S) - 2 * M_S)


@pytest.mark.parametrize("predictor", ["last", "secant"])
def test_hysteresis_loop_closes_at_the_spinodals(predictor):
    h = jnp.linspace(-1.0, 1.0, 401)
    follow = lambda h: continuation(
        F, h, -1.0, direction="both", predictor=predictor, method=Damped(1.0), max_steps=4000
    )
    out = jax.jit(follow)(h)
    out.check()
    up, down = np.asarray(out.forward.values), np.asarray(out.backward.values)
    h = np.asarray(h)
    for m in (up, down):
        np.testing.assert_allclose(m, np.tanh(2 * m + h), atol=1e-4)
    # The jump happens within one spacing of the spinodal: the branch is followed to its end, not beyond.
    assert 0 <= h[up > 0][0] - H_S < 0.005 + 1e-3
    assert 0 <= -H_S - h[down < 0][-1] < 0.005 + 1e-3
    np.testing.assert_allclose(up, -down[::-1], atol=1e-3)
    np.testing.assert_array_equal(np.asarray(out.bistable()), (h > h[down < 0][-1]) & (h < h[up > 0][0]))


def test_derivative_of_a_whole_branch():
    """dm_i/dbeta = m s / (1 - beta s) with s = 1 - m^2 along the branch, against finite differences."""
    with jax.enable_x64(True):
        h = jnp.linspace(0.5, -0.3, 9)
        branch = lambda beta: (
            continuation(lambda m, p: jnp.tanh(beta * m + p), h, 1.0, method=Newton(), tol=1e-13).values
        )

        @jax.jit
        def run(beta):
            e = 1e-5
            return (
                branch(beta),
                jax.jacfwd(branch)(beta),
                jax.jacrev(branch)(beta),
                (branch(beta + e) - branch(beta - e)) / (2 * e),
            )

        m, forward, reverse, differences = map(np.asarray, run(jnp.asarray(2.0)))
    s = 1 - m**2
    assert (m > 0.8).all()
    np.testing.assert_allclose(forward, m * s / (1 - 2 * s), rtol=1e-9)
    np.testing.assert_allclose(reverse, forward, rtol=1e-9)
    np.testing.assert_allclose(differences, forward, rtol=1e-6)


def test_newton_follows_the_unstable_branch():
    """Between the spinodals the middle solution has slope 2 (1 - m^2) > 1."""
    h = jnp.linspace(0.0, 0.5, 26)
    out = continuation(F, h, {"forward": 0.0, "backward": 1.0}, direction="both", method=Newton()).check()
    m = np.asarray(out.forward.values)
    np.testing.assert_allclose(m, np.tanh(2 * m + h), atol=1e-5)
    assert (2 * (1 - m**2) > 1).all() and (np.diff(m) < 0).all()
    assert (np.asarray(out.backward.values) > 0.95).all()


def test_secant_needs_fewer_iterations_on_a_smooth_branch():
    p = jnp.linspace(0.0, 1.0, 51)
    options = dict(method=Damped(1.0), tol=1e-5)
    last, secant = (
        continuation(lambda x, p: 0.9 * x + p, p, 0.0, predictor=way, **options) for way in ("last", "secant")
    )
    np.testing.assert_allclose(secant.check().values, 10 * p, atol=2e-3)
    assert 2 * np.asarray(secant.steps)[2:].sum() < np.asarray(last.steps)[2:].sum()


def test_points_and_states():
    """A pytree state, points in the order of params both ways, and a failure that says where."""
    f = lambda s, p: {"x": 0.5 * s["x"] + p, "y": 0.5 * s["y"]}
    x0 = {"x": jnp.zeros(3), "y": jnp.ones(())}
    p = jnp.array([0.0, 1.0, 2.0])
    for direction in ("forward", "backward"):
        out = continuation(f, p, x0, direction=direction).check()
        np.testing.assert_allclose(out.values["x"], np.repeat(2 * p[:, None], 3, 1), atol=1e-4)
        assert out.values["y"].shape == out.residual.shape == out.steps.shape == (3,)
        np.testing.assert_array_equal(out.params, p)
    wild = continuation(lambda x, p: p * x + 1.0, jnp.array([0.5, 0.7, 5.0]), 1.0)
    assert wild.status.code.tolist() == [Code.ok, Code.ok, Code.diverged]
    with pytest.raises(Failure, match="continuation: 1 of 3 runs failed; the first, run 2: diverged at iteration"):
        wild.check()


def test_errors():
    with pytest.raises(ValueError, match=r"vector of parameter values, got shape \(2, 2\)"):
        continuation(F, jnp.ones((2, 2)), 0.0)
    with pytest.raises(ValueError, match="vector"):
        continuation(F, jnp.ones(0), 0.0)
    # A wrong option of a Literal is caught by the type checker where that is switched on.
    with pytest.raises((ValueError, TypeError), match="direction"):
        continuation(F, jnp.ones(2), 0.0, direction="up")
    with pytest.raises((ValueError, TypeError), match="predictor"):
        continuation(F, jnp.ones(2), 0.0, predictor="tangent")
