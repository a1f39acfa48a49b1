"""The Hopfield model's replica theory: closed forms at T = 0, stationarity of the free energy, lines, derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import erf

from physml.core._status import Code
from physml.hopfield.theory._amit import Phase, amit, amit_lines
from physml.hopfield.theory._dense import critical_load, transition
from physml.hopfield.theory.replica import Memory
from physml.hopfield.theory.site import site


@pytest.mark.parametrize(
    ("h", "variance", "t"), [(1.0, 0.3, 0.5), (0.3, 1.0, 1e-3), (1.0, 0.02, 1e-4), (0.0, 1.0, 2.0)]
)
def test_site_averages_at_every_temperature(h, variance, t):
    with jax.enable_x64(True):
        out = jax.tree.map(float, jax.jit(site)(*(jnp.asarray(v) for v in (h, variance, t))))
    s = variance**0.5
    edges = [-h / s + k * t / s for k in (-30, -5, 0, 5, 30)]
    law = lambda z, f: np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * f((h + s * z) / t)
    exact = lambda f: quad(law, -9, 9, args=(f,), points=[e for e in edges if abs(e) < 9], limit=500, epsabs=1e-13)[0]
    assert abs(out.m - exact(np.tanh)) < 1e-12
    assert abs(out.q - exact(lambda x: np.tanh(x) ** 2)) < 1e-12
    assert abs(out.chi * t - exact(lambda x: np.cosh(min(abs(x), 300)) ** -2)) < 1e-12
    assert abs(out.log / t - exact(lambda x: np.logaddexp(x, -x))) < 1e-10 / t


def test_at_zero_temperature_it_is_the_error_function():
    with jax.enable_x64(True):
        out = amit(0.12, 0.0).check()
        m, r, chi = float(out.m), float(out.r), float(out.chi)
    s = np.sqrt(0.12 * r)
    assert abs(m - erf(m / s / np.sqrt(2))) < 1e-10
    assert abs(chi - np.sqrt(2 / np.pi) / s * np.exp(-((m / s) ** 2) / 2)) < 1e-9
    assert abs(r - 1 / (1 - chi) ** 2) < 1e-9
    # Leaving out the response of the other patterns is noticed.
    assert abs(m - erf(m / np.sqrt(2 * 0.12))) > 1e-3


def test_where_it_ends_at_zero_temperature():
    """alpha(y) = (m/y - chi m/y)^2 with m = erf(y / sqrt 2) has its maximum .1379056 at m = .96742."""
    load = lambda y: (erf(y / 2**0.5) / y - (2 / np.pi) ** 0.5 * np.exp(-y * y / 2)) ** 2
    best: Any = minimize_scalar(lambda y: -load(y), bounds=(1.5, 3), method="bounded", options={"xatol": 1e-9})
    assert abs(load(best.x) - 0.1379056) < 5e-8
    with jax.enable_x64(True):
        assert abs(critical_load(2) - load(best.x)) < 1e-10
        below, above = amit(load(best.x) - 1e-4, 0.0).check(), amit(load(best.x) + 1e-4, 0.0).check()
        assert below.phase == Phase.metastable and 0.967 < below.m < 0.98
        assert above.phase == Phase.glass and abs(above.m) < 1e-12 and above.chi < 1


def test_the_free_energy_is_stationary():
    memory = Memory(2)

    def free(x, alpha, t):
        return memory.free_energy(alpha, x[0], x[1], t, memory.averages((x[0], x[1]), alpha, t).log)

    with jax.enable_x64(True):
        for alpha, t in ((0.04, 0.3), (0.1, 0.0)):
            out = amit(alpha, t)
            f, slope = jax.jit(jax.value_and_grad(free))(jnp.stack([out.m, out.chi]), alpha, t)
            assert abs(f - out.free_energy) < 1e-13 and jnp.max(jnp.abs(slope)) < 1e-9


def test_limits():
    with jax.enable_x64(True):
        m = float(amit(0.0, 0.5).check().m)
        assert abs(m - np.tanh(m / 0.5)) < 1e-11
        hot = amit(0.05, 1.5).check()
        assert hot.phase == Phase.paramagnet and abs(hot.q) < 1e-10
        annealed = -1.5 * np.log(2) + 0.025 * (1 + 1.5 * np.log(1 - 1 / 1.5))
        assert abs(hot.free_energy - annealed) < 1e-10
        glass = amit(0.1, 0.3, start="glass").check()
        assert 0.7 < glass.q < 1 and glass.stability > 1 and glass.phase == Phase.glass
        assert amit(0.1, 1 + 0.1**0.5 - 1e-3).phase == Phase.glass
        assert amit(0.0, 0.5, start="glass").status.code == Code.ok


def test_lines_and_phases_agree():
    with jax.enable_x64(True):
        lines = amit_lines(0.05)
        assert abs(lines.glass - (1 + 0.05**0.5)) < 1e-12
        t_m, t_c = float(lines.retrieval), float(lines.coexistence)
        phase = lambda t: Phase(int(amit(0.05, t).check().phase))
        assert phase(t_m - 2e-4) == Phase.metastable and phase(t_m + 2e-4) == Phase.glass
        assert phase(t_c - 1e-4) == Phase.retrieval and phase(t_c + 1e-4) == Phase.metastable
        for t, known in ((0.2, 0.0507), (0.5, 0.0281)):
            assert abs(transition(2, t, "coexistence") - known) < 5e-5
        assert abs(amit(transition(2, 0.02, "stability"), 0.02).stability - 1) < 1e-9


@pytest.mark.slow
def test_derivatives_and_precisions():
    value = jax.jit(lambda a, t: (lambda out: jnp.stack([out.m, out.free_energy]))(amit(a, t)))
    e = 1e-4
    with jax.enable_x64(True):
        slope = jax.jit(jax.jacfwd(lambda x: value(x[0], x[1])))
        for a, t in ((0.1, 0.2), (0.05, 0.5)):
            differences = [(value(a + e, t) - value(a - e, t)), (value(a, t + e) - value(a, t - e))]
            assert jnp.allclose(slope(jnp.asarray([a, t])), jnp.stack(differences, 1) / (2 * e), rtol=1e-4, atol=1e-9)
        exact = amit(0.1, 0.2).m
    single = amit(jnp.float32(0.1), 0.2)
    assert single.m.dtype == jnp.float32 and abs(float(single.m) - float(exact)) < 1e-6
    # Reverse mode runs outside the float64 context: nothing in it may depend on the flag.
    assert abs(float(jax.grad(lambda a: amit(a, 0.2).m)(0.1)) + 0.4861849) < 1e-6


def test_errors():
    for bad in ((-0.1, 0.2), (0.1, -1.0), (float("nan"), 0.2), (0.1, float("inf"))):
        with pytest.raises(ValueError, match="at least 0"):
            amit(*bad)
    with pytest.raises(ValueError, match="many"):
        amit(np.ones(3), 0.2)
