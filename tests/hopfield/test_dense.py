"""Dense memories: critical loads, both conventions, folds against the states themselves, derivatives."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import erf

from physml.hopfield.theory._amit import Phase
from physml.hopfield.theory._dense import critical_load, dense, raw_load
from physml.hopfield.theory.replica import Memory, noise_series


def test_critical_load():
    """At T = 0, m = erf(y / sqrt 2) and a = (m^2 / y)^2, which is largest at the critical load."""
    load = lambda y: (erf(y / 2**0.5) ** 2 / y) ** 2
    highest: Any = minimize_scalar(lambda y: -load(y), bounds=(0.8, 4), method="bounded", options={"xatol": 1e-10})
    best = load(highest.x)
    with jax.enable_x64(True):
        assert abs(critical_load(3) - best) < 1e-10
    assert abs(best - 0.25219) < 5e-6


@pytest.mark.parametrize("p", [3, 4, 5, 6])
def test_series_of_the_raw_noise(p):
    """<x^{p-1} y^{p-1}> of Gaussians with correlation q, by Wick's theorem at q = 1 and by quadrature between."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    x, y = np.meshgrid(nodes, nodes)
    w = np.outer(weights, weights) / (2 * np.pi)
    series = lambda q: sum(g * q**k for k, g in noise_series(p, "raw"))
    for q in (0.3, 0.8, 1.0):
        exact = np.sum(w * x ** (p - 1) * (q * x + np.sqrt(1 - q * q) * y) ** (p - 1)) / math.factorial(p - 1)
        assert abs(series(q) / exact - 1) < 1e-10


@pytest.mark.parametrize(("p", "convention"), [(3, "distinct"), (4, "raw")])
def test_the_free_energy_is_stationary(p, convention):
    memory = Memory(p, convention)

    def free(x, t):
        return memory.free_energy(0.05, x[0], x[1], t, memory.averages((x[0], x[1]), 0.05, t).log)

    slope = jax.jit(jax.grad(free))
    free = jax.jit(free)
    with jax.enable_x64(True):
        for t in (0.0, 0.3):
            out = dense(p, 0.05, t, convention=convention).check()
            x = jnp.stack([out.m, out.chi])
            assert abs(free(x, jnp.asarray(t)) - out.free_energy) < 1e-12
            assert jnp.max(jnp.abs(slope(x, jnp.asarray(t)))) < 1e-9


def test_the_fold_is_where_retrieval_ends():
    with jax.enable_x64(True):
        edge = critical_load(3, 0.3)
        assert dense(3, edge - 2e-5, 0.3).check().m > 0.5
        assert dense(3, edge + 2e-5, 0.3).check().phase == Phase.paramagnet
        assert jnp.isnan(critical_load(3, 0.9))
        slope, e = jax.jvp(lambda t: critical_load(3, t), (0.3,), (1.0,))[1], 1e-4
        assert abs(slope / ((critical_load(3, 0.3 + e) - critical_load(3, 0.3 - e)) / (2 * e)) - 1) < 1e-4


def test_known_states():
    # K = .03 N^2 is a load of .06 for p = 3.
    for t, m in ((0.2, 0.9983), (0.3, 0.9900), (0.4, 0.9657)):
        assert abs(dense(3, 0.06, t).check().m - m) < 6e-5
    with jax.enable_x64(True):
        a = raw_load(3, 0.2)
        assert abs(dense(3, a, 0.0, convention="raw").m - dense(3, 0.2, 0.0).m) < 1e-10
        # At finite T they are not the same theory: q < 1 weighs the terms differently.
        assert abs(dense(3, a, 0.4, convention="raw").m - dense(3, 0.2, 0.4).m) > 1e-3


def test_four_spins():
    """T = 0, where a = m^6/y^2: the critical load .19786 and its neighbours without any of the lines' programs."""
    with jax.enable_x64(True):
        assert dense(4, raw_load(4, 0.19786), 0.0, convention="raw").check().m > 0.9
        assert dense(4, raw_load(4, 0.1979), 0.0, convention="raw").check().m < 0.1


def test_errors():
    with pytest.raises(ValueError, match="p must be"):
        dense(1, 0.1, 0.1)
    with pytest.raises(ValueError, match="load"):
        dense(3, -0.1, 0.1)
