"""One step of replica symmetry breaking: known temperatures of the 3-spin glass, stationarity, the symmetric limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.hopfield.theory._dense import dense
from physml.hopfield.theory.one_step import free_energy_one_step, glass_lines, ground_state_load


def test_three_spin_glass():
    """T_K = .65139 and T_d = .68160 at a = 3/2, and the scale of the root of the load."""
    with jax.enable_x64(True):
        lines, weaker = glass_lines(3), glass_lines(3, 0.06)
    assert int(lines.status.code) == 0
    assert abs(lines.static - 0.65139) < 1e-5 and abs(lines.dynamic - 0.68160) < 1e-5
    assert abs(lines.gardner - 0.240) < 1e-3 and abs(lines.energy + 0.8135) < 1e-4
    assert abs(weaker.static / lines.static - (0.06 / 1.5) ** 0.5) < 1e-9


def test_a_derivative_of_the_static_line():
    with jax.enable_x64(True):
        slope = jax.grad(lambda a: glass_lines(3, a).static)(1.5)
        assert abs(slope / (glass_lines(3).static / 3.0) - 1) < 1e-6


def test_the_free_energy_at_the_static_transition():
    """At T_K and theta = 1 it is that of the paramagnet and stationary in q_1 and theta; without the weight theta it
    is not."""
    with jax.enable_x64(True):
        t = glass_lines(3).static
        f = jax.jit(lambda q, theta: free_energy_one_step(3, 1.5, t, 0.0, 0.0, q, theta, nodes=100))
        qs = jnp.linspace(0.5, 0.95, 181)
        values = jax.vmap(lambda q: f(q, 1 - 1e-3))(qs)
        q = qs[jnp.argmax(values)]  # replicas: a maximum where thermodynamics has a minimum
        paramagnet = -t * np.log(2) - 1.5 / (6 * t)
        assert abs(f(q, 1 - 1e-3) - paramagnet) < 1e-5
        assert abs(jax.grad(f, 1)(q, 1 - 1e-6)) < 1e-3
        assert abs(f(q, 0.5) - paramagnet) > 1e-3


def test_equal_overlaps_are_replica_symmetric():
    with jax.enable_x64(True):
        out = dense(3, 0.1, 0.3)
        one = free_energy_one_step(3, 0.1, 0.3, out.m, out.q, out.q, 0.5)
        assert abs(one - out.free_energy) < 1e-12
        f = lambda q: free_energy_one_step(3, 0.1, 0.3, out.m, q, q, 0.5)
        assert abs(jax.grad(f)(out.q)) < 1e-8


def test_ground_state():
    with jax.enable_x64(True):
        assert abs(ground_state_load(3) - 0.2521904) < 1e-6


def test_errors():
    with pytest.raises(ValueError, match="p must"):
        glass_lines(2)
    with pytest.raises(ValueError, match="positive"):
        glass_lines(3, -1.0)
