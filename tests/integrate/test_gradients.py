"""Gradients through the simulators against finite differences and closed forms, in float64."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.integrate import (
    RK4,
    SRA1,
    Diffrax,
    Dynamics,
    EulerMaruyama,
    Heun,
    Leapfrog,
    Matrix,
    Milstein,
    ensemble,
    integrate,
)

STATE = Dynamics(lambda t, x, a: -a * jnp.sin(x) + t, lambda t, x, a: 0.3 + 0.1 * a * jnp.cos(x))
TIME = Dynamics(lambda t, x, a: -a * jnp.sin(x) + t, lambda t, x, a: a * (0.3 + t))
COUPLED = Dynamics(
    lambda t, x, a: -a * x, Matrix(lambda t, x, a: a * jnp.stack([x, jnp.ones_like(x), x[::-1]], axis=1))
)
ODE = Dynamics(lambda t, x, a: -a * jnp.sin(x) + t)
PENDULUM = Dynamics(lambda t, x, a: (x[1], -a * jnp.sin(x[0])))
CASES = {
    "EulerMaruyama": (STATE, EulerMaruyama()),
    "Matrix": (COUPLED, EulerMaruyama()),
    "Heun": (STATE, Heun()),  # through the converted drift
    "Milstein": (STATE, Milstein()),
    "SRA1": (TIME, SRA1()),
    "RK4": (ODE, RK4()),
    "Leapfrog": (PENDULUM, Leapfrog()),
    "Diffrax": (TIME, Diffrax(diffrax.Euler())),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_against_finite_differences(key, name):
    """Along a random direction in (x0, args), through saved states, with and without checkpoints."""
    dynamics, method = CASES[name]
    with jax.enable_x64(True):
        x0 = jnp.array([0.7, -1.1])
        x0 = (x0, x0[::-1]) if name == "Leapfrog" else x0
        ts = jnp.linspace(0.0, 1.0, 7)

        def loss(x0, a, checkpoint):
            out = integrate(dynamics, x0, ts, key=key, args=a, method=method, save_every=2, checkpoint=checkpoint)
            return sum(jnp.sum(jnp.cos(leaf)) + leaf[-1, 0] ** 2 for leaf in jax.tree.leaves(out.xs))

        @jax.jit
        def run(x0, a):
            along = jax.tree.map(lambda leaf: jnp.array([0.6, -0.8]), x0), jnp.asarray(0.5)
            point = (x0, a)
            e = 1e-5
            at = lambda s: loss(*jax.tree.map(lambda p, d: p + s * d, point, along), False)
            above, below = jax.vmap(at)(jnp.array([e, -e]))
            slopes = [jax.grad(loss, argnums=(0, 1))(x0, a, c) for c in (False, True)]
            products = [
                sum(jnp.sum(g * d) for g, d in zip(jax.tree.leaves(s), jax.tree.leaves(along), strict=True))
                for s in slopes
            ]
            return slopes, products, (above - below) / (2 * e)

        slopes, products, difference = run(x0, jnp.asarray(1.3))
        assert abs(difference) > 0.05
        np.testing.assert_allclose(products, difference, rtol=3e-7)
        for a, b in zip(*map(jax.tree.leaves, slopes), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


def test_gradient_of_a_linear_recursion_is_exact(key):
    """Euler on dx = -a x dt + s dW: dx_n/dx_0 = (1 - a h)^n, of every path of an ensemble."""
    dynamics = Dynamics(lambda t, x, a: -a * x, lambda t, x, a: 0.5)
    ts = np.linspace(0, 1, 21)

    def loss(x0, a, checkpoint):
        out = ensemble(dynamics, x0, ts, key=key, args=a, save_every=20, checkpoint=checkpoint)
        return out.xs[-1].mean()

    x0 = jnp.ones((300, 2))
    for checkpoint in (False, True):
        slope, rate = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)(x0, 2.0, checkpoint)
        np.testing.assert_allclose(slope, np.full((300, 2), 0.9**20 / 600), rtol=1e-5)
        # d mean / da = -n h (1 - a h)^(n - 1), beside noise of sd about 0.2 / sqrt(600).
        assert abs(rate + 20 * 0.05 * 0.9**19) < 5 * 0.2 / np.sqrt(600)
    forward = jax.jit(lambda a: jax.jvp(lambda a: loss(x0, a, False), (a,), (1.0,))[1])(2.0)
    np.testing.assert_allclose(forward, rate, rtol=1e-4)
