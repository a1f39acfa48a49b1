"""Diffrax as a method: our noise on fixed steps, its own on adaptive ones, known ODEs."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import Code, Failure
from physml.integrate import SRA1, Diffrax, Dynamics, EulerMaruyama, Heun, Matrix, ensemble, integrate

TS = np.cumsum([0.0, 0.1, 0.05, 0.2, 0.1, 0.02, 0.1]).astype(np.float32)
MATRIX = jnp.array([[1.0, 0.0, 0.5], [0.3, -0.7, 0.0]])
TREE = Dynamics(
    lambda t, x, a: jax.tree.map(jnp.negative, x), lambda t, x, a: {"u": 0.5 * x["u"] + t, "v": jnp.cos(x["v"])}
)


@pytest.mark.parametrize(
    "dynamics, ours, solver",
    [
        (TREE, Heun(), diffrax.Heun()),
        (Dynamics(lambda t, x, a: jnp.sin(x), Matrix(MATRIX)), EulerMaruyama(), diffrax.Euler()),
        (Dynamics(lambda t, x, a: jnp.sin(t + x), lambda t, x, a: 0.8), SRA1(), diffrax.SRA1()),
    ],
    ids=["Heun", "Euler", "SRA1"],
)
def test_fixed_steps_see_the_path_of_our_methods(key, dynamics, ours, solver):
    """The same scheme written twice agrees to rounding, also where the calculus is converted."""
    x0 = jnp.ones((3, 2)) * jnp.array([1.0, 2.0])[None]
    x0 = {"u": x0, "v": x0[:, 0]} if dynamics is TREE else x0
    run = lambda method: ensemble(dynamics, x0, TS, key=key, method=method, save_every=3).check()
    a, b = run(ours), run(Diffrax(solver))
    np.testing.assert_array_equal(a.ts, b.ts)
    for p, q in zip(jax.tree.leaves(a.xs), jax.tree.leaves(b.xs), strict=True):
        assert p.shape == q.shape and np.ptp(np.asarray(p[-1])) > 0.1
        np.testing.assert_allclose(p, q, rtol=5e-5, atol=5e-6)


@pytest.mark.parametrize(
    "method",
    [
        Diffrax(diffrax.ShARK(), controller=diffrax.ConstantStepSize(), dt0=0.25),
        Diffrax(diffrax.EulerHeun(), controller=diffrax.ConstantStepSize(), dt0=1 / 64, tolerance=1 / 256),
    ],
    ids=["ShARK", "EulerHeun"],
)
def test_virtual_brownian_tree_has_the_exact_law(key, method):
    """Ornstein and Uhlenbeck at t = 1; the biases at these steps are far below the noise of 400 x 4 numbers."""
    rate, sigma = 1.0, 0.8
    dynamics = Dynamics(lambda t, x, a: -rate * x, lambda t, x, a: sigma)
    out = ensemble(dynamics, jnp.full((400, 4), 2.0), np.array([0.0, 0.5, 1.0]), key=key, method=method).check()
    for t, x in zip((0.5, 1.0), np.asarray(out.xs[1:], np.float64), strict=True):
        variance = sigma**2 * (1 - np.exp(-2 * rate * t)) / (2 * rate)
        assert abs(x.mean() - 2 * np.exp(-rate * t)) < 5 * np.sqrt(variance / x.size)
        assert abs(x.var() - variance) < 5 * variance * np.sqrt(2 / x.size)


@pytest.mark.slow
def test_adaptive_ode_and_its_gradient():
    """x' = -a x (1 - x): logistic decay, saved where asked, x0 and a differentiated."""
    method = Diffrax(diffrax.Tsit5(), controller=diffrax.PIDController(rtol=1e-9, atol=1e-9))
    dynamics = Dynamics(lambda t, x, a: -a * x * (1 - x))
    exact = lambda x, a, t: x / (x + (1 - x) * jnp.exp(a * t))
    with jax.enable_x64(True):
        ts = jnp.array([0.0, 0.3, 2.0, 5.0])

        @jax.jit
        def run(x, a):
            solve = lambda x, a: integrate(dynamics, x, ts, args=a, method=method)
            out = solve(x, a)
            return out, jax.grad(lambda x, a: solve(x, a).xs[-1, 0], argnums=(0, 1))(x, a)

        x, a = jnp.array([0.4, 0.8]), jnp.asarray(1.3)
        out, slopes = run(x, a)
        out.check()
        np.testing.assert_allclose(out.xs, exact(x[None], a, ts[:, None]), rtol=1e-7)
        expected = jax.grad(lambda x, a: exact(x, a, 5.0)[0], argnums=(0, 1))(x, a)
        for slope, value in zip(slopes, expected, strict=True):
            np.testing.assert_allclose(slope, value, rtol=1e-6, atol=1e-12)
        assert out.status.step < 200


def test_stiff_ode():
    """x' = -10^5 (x - cos t) - sin t from x = 1 has the solution cos t, in few implicit steps."""
    dynamics = Dynamics(lambda t, x, a: -a * (x - jnp.cos(t)) - jnp.sin(t))
    method = Diffrax(diffrax.Kvaerno5(), controller=diffrax.PIDController(rtol=1e-7, atol=1e-9))
    with jax.enable_x64(True):
        ts = jnp.linspace(0.0, 3.0, 4)
        out = integrate(dynamics, jnp.ones(1), ts, args=1e5, method=method).check()
        np.testing.assert_allclose(out.xs[-1, 0], np.cos(3.0), atol=1e-8)
        np.testing.assert_allclose(out.xs[:, 0], np.cos(ts), atol=1e-3)  # interpolated between steps
        assert out.status.step < 500


def test_failures_are_statuses():
    controller = diffrax.PIDController(rtol=1e-6, atol=1e-6)
    ts = np.array([0.0, 2.0])
    short = integrate(
        Dynamics(lambda t, x, a: jnp.cos(50 * t) * x),
        jnp.ones(1),
        ts,
        method=Diffrax(diffrax.Tsit5(), controller, max_steps=8),
    )
    assert short.status.code == Code.max_steps
    with pytest.raises(Failure, match="max_steps at step 8: the adaptive solver used up its steps"):
        short.check()
    # x' = x^2 from 1 blows up at t = 1.
    wild = integrate(Dynamics(lambda t, x, a: x**2), jnp.ones(1), ts, method=Diffrax(diffrax.Euler()))
    assert wild.check().xs[-1, 0] == 3.0
    many = np.linspace(0, 2, 41)
    wild = integrate(Dynamics(lambda t, x, a: x**2), jnp.ones(1), many, method=Diffrax(diffrax.Euler()))
    assert wild.status.code == Code.diverged
    with pytest.raises(Failure, match="diverged"):
        wild.check()


def test_errors(key):
    noisy = Dynamics(lambda t, x, a: -x, lambda t, x, a: 1.0)
    with pytest.raises(ValueError, match="Tsit5 does not say which calculus"):
        integrate(noisy, jnp.ones(2), TS, key=key, method=Diffrax(diffrax.Tsit5()))
    with pytest.raises(ValueError, match="pass key"):
        integrate(noisy, jnp.ones(2), TS, method=Diffrax(diffrax.Euler()))
    with pytest.raises(ValueError, match="save_every"):
        integrate(noisy, jnp.ones(2), TS, key=key, method=Diffrax(diffrax.Euler()), save_every=4)
