"""What matching refuses, with the words that say so, for numbers of every kind; and parameters closed over in jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_refused

from physml import matching as m
from physml.data import Mixture

KEY, X, Y = jax.random.key(0), jnp.ones((4, 2)), jnp.zeros((4, 2))
NUMBERS = {"python": float, "numpy": np.float32, "jax": jnp.float32}
LAW = (jnp.zeros(2), jnp.eye(2))
MIX = Mixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])


def field(t, x, args):
    return -x


# A number that is out of its range, however it is written.
RANGES = {
    "brownian_bridge": (lambda n: m.brownian_bridge(n(-1)), "sigma must be at least 0"),
    "mirror_interpolant": (lambda n: m.mirror_interpolant(n(0)), "sigma must be positive"),
    "variance_exploding": (lambda n: m.variance_exploding(n(-1), 50.0), "sigma_min must be positive"),
    "variance_exploding, order": (lambda n: m.variance_exploding(n(60), 50.0), "sigma_min must be below sigma_max"),
    "variance_preserving": (lambda n: m.variance_preserving(n("nan"), 20.0), "beta_min must be"),
    "edm": (lambda n: m.edm(0.002, 80.0, n(-7)), "rho must be positive"),
    "gaussian_plan": (lambda n: _gaussian_plan(n(-1)), "epsilon must be positive"),
    "mixture_plan": (lambda n: _mixture_plan(n(0)), "epsilon must be positive"),
    "sinkhorn": (lambda n: m.sinkhorn(jnp.ones((3, 3)), n(0)), "epsilon must be positive"),
    "Entropic": (lambda n: m.Entropic(n(-1)), "epsilon must be positive"),
    "light_bridge": (lambda n: m.light_bridge(X, Y, epsilon=n(0), key=KEY), "epsilon must be positive"),
    "sample_sde": (
        lambda n: m.sample_sde(field, field, X[0], epsilon=n(-1), steps=4, key=KEY), "epsilon must be at least 0",
    ),
    "StudentNoise": (lambda n: m.StudentNoise(n(0)), "degrees must be positive"),
    "Preconditioned": (lambda n: m.Preconditioned(field, m.edm(), scale=n(0)), "scale must be positive"),
    "gaussian_chain": (lambda n: m.gaussian_chain(m.linear(), 4, scale=n(-1)), "scale must be at least 0"),
    "mean_flow_loss": (
        lambda n: m.mean_flow_loss(field, m.linear(), X, Y, key=KEY, flow_ratio=n(2)),
        "flow_ratio must be at least 0 and at most 1",
    ),
}  # fmt: skip


def _gaussian_plan(epsilon):
    from physml.matching.bridges.gaussian_plan import gaussian_plan

    return gaussian_plan(LAW, LAW, epsilon=epsilon)


def _mixture_plan(epsilon):
    from physml.matching.bridges.mixture_plan import mixture_plan

    return mixture_plan(MIX, MIX, epsilon=epsilon)


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("name", RANGES)
def test_numbers_out_of_range(name, kind):
    call, words = RANGES[name]
    assert_refused(lambda: call(NUMBERS[kind]), words)


MISTAKES = {
    "target": (lambda: m.match(field, m.linear(), X, Y, key=KEY, target="drift"), "target must be one of"),
    "path": (lambda: m.match(field, "linear", X, Y, key=KEY), "path must be a Path"),
    "field": (lambda: m.match(3.0, m.linear(), X, Y, key=KEY), "field must be a function"),
    "shapes": (lambda: m.match(field, m.linear(), X, Y[:3], key=KEY), "shape"),
    "coupling": (lambda: m.match(field, m.linear(), X, Y, key=KEY, coupling="ot"), "coupling must be"),
    "args": (lambda: m.match(field, m.linear(), X, Y, key=KEY, args=jnp.ones(3)), "args must have a leading axis"),
    "steps": (lambda: m.sample(field, X[0], steps=0), "steps must be an integer of at least 1"),
    "steps, float": (lambda: m.sample(field, X[0], steps=2.5), "steps must be an integer"),
    "dtype": (lambda: m.sample_sde(field, field, jnp.arange(2), epsilon=1.0, steps=2, key=KEY), "floating point"),
    "base": (lambda: m.log_prob(field, X[0], lambda x: x, steps=2), "base_log_prob must return a scalar"),
    "cost": (lambda: m.sinkhorn(jnp.ones(3), 0.1), r"cost must be a matrix"),
    "batches": (lambda: m.couple(m.Assignment(batches=3), X, Y, key=KEY), "divisible"),
    "two-sided": (lambda: m.convert(field, m.brownian_bridge(), "velocity", "score"), "one-sided"),
    "times": (lambda: m.gaussian_chain(m.linear(), 3, times=jnp.ones(3)), "times must be"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    assert_refused(*MISTAKES[name])


H = jnp.asarray(0.1)
CLOSED_OVER = {
    "brownian_bridge": lambda x: m.match(field, m.brownian_bridge(H), x, Y, key=KEY),
    "variance_exploding": lambda x: m.match(field, m.variance_exploding(H, 5 + H), x, Y, key=KEY),
    "gaussian_plan": lambda x: _gaussian_plan(H).epsilon + x,
    "sinkhorn": lambda x: m.sinkhorn(m.squared_distances(x, Y), H).log_p,
    "Entropic": lambda x: m.couple(m.Entropic(H), x, Y, key=KEY)[0],
    "sample_sde": lambda x: m.sample_sde(field, field, x[0], epsilon=H, steps=2, key=KEY),
}


@pytest.mark.parametrize("name", CLOSED_OVER)
def test_parameters_closed_over_in_jit(name):
    call = CLOSED_OVER[name]
    np.testing.assert_allclose(jax.jit(call)(X), call(X), rtol=1e-4, atol=1e-6)
    assert bool(jnp.isfinite(call(X)).all())
