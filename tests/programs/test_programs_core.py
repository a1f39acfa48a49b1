"""Programs that calls of `core` and `integrate` compile: few in the first, none in an equal second."""

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_compiles_once

from physml import core, integrate

KEY = jax.random.key(0)


def _tanh(m):
    return jnp.tanh(1.5 * m)


def _magnet(m, h):
    return jnp.tanh(2.0 * m + h)


def _decay(t, x, args):
    return -args * x


def _unit(t, x, args):
    return jnp.ones((), x.dtype)


def _fixed_point(method):
    def make():
        x0 = jnp.full(3, 0.9)
        return lambda: core.fixed_point(_tanh, x0, method=method())

    return make


def _continuation(direction):
    def make():
        params, x0 = jnp.linspace(-1.0, 1.0, 11), jnp.asarray(-1.0)
        return lambda: core.continuation(_magnet, params, x0, direction=direction)

    return make


def _integrate(run, size, noise, **options):
    def make():
        dynamics, x0, ts = integrate.Dynamics(_decay, noise), jnp.ones(size), jnp.linspace(0.0, 1.0, 21)
        return lambda: run(dynamics, x0, ts, key=KEY, args=1.5, **options)

    return make


CASES = {
    "fixed_point": _fixed_point(core.Damped),
    "fixed_point Anderson": _fixed_point(lambda: core.Anderson(3)),
    "fixed_point Newton": _fixed_point(core.Newton),
    "continuation": _continuation("forward"),
    "continuation both": _continuation("both"),
    "integrate": _integrate(integrate.integrate, 2, _unit),
    "integrate ode": _integrate(integrate.integrate, 2, None),
    "ensemble": _integrate(integrate.ensemble, (5, 2), _unit, save_every=5),
    "gradient of fixed_point": lambda: (
        lambda: jax.grad(lambda x: core.fixed_point(_tanh, x, method=core.Newton()).value.sum())(jnp.full(3, 0.9))
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_programs(name):
    assert_compiles_once(CASES[name], first=20 if "gradient" in name else 4)
