"""Programs that calls of `dmft` compile: few in the first, none in an equal second, of gradients and maps neither."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_compiles_once

from physml import dmft

KEY = jax.random.key(0)


def _glass(temperature):
    return dmft.solve(dmft.SphericalPSpin(3, temperature, 0.5, 0.1)).order.energy


def _mott(U):
    return dmft.solve(dmft.BetheHubbard(U=U, beta=20.0)).order.docc


def _soft(coupling):
    model = dmft.SoftSpinSK(0.5, coupling=coupling, t_max=0.5, dt=0.25)
    return dmft.solve(model, noise=dmft.MonteCarlo(40), key=KEY).order.energy


def _last(temperature):
    return jnp.sum(_glass(temperature))


def _hubbard(U):
    return dmft.BetheHubbard(U=U, beta=20.0, frequencies=64)


X = jax.device_put(np.linspace(-1.0, 1.0, 6, dtype=np.float32).reshape(2, 3))
START = dmft.solve(_hubbard(2.0)).unknowns

CASES = {
    "causal": lambda: lambda: _glass(0.5),
    "fixed point": lambda: lambda: _mott(2.0),
    "Monte Carlo": lambda: lambda: _soft(0.3),
    "gradient, causal": lambda: lambda: jax.grad(_last)(0.5),
    "gradient, fixed point": lambda: lambda: jax.grad(_mott)(2.0),
    "vmap, causal": lambda: lambda: jax.vmap(_glass)(jnp.asarray([0.5, 0.6])),
    "vmap, fixed point": lambda: lambda: jax.vmap(_mott)(jnp.asarray([2.0, 2.1])),
    "nngp": lambda: lambda: dmft.nngp(np.eye(2), 2, "tanh", 1.5),
    "ntk": lambda: lambda: dmft.ntk(np.eye(2), 2),
    "edge_of_chaos": lambda: lambda: dmft.edge_of_chaos("erf", 0.05),
    "quartic": lambda: lambda: dmft.quartic(1.0, 50, 2, "tanh"),
    "ageing": lambda: lambda: dmft.ageing(3, 0.4),
    "correlation_depth": lambda: lambda: dmft.correlation_depth("tanh", 1.2, 0.1),
    "excess_kurtosis": lambda: lambda: dmft.excess_kurtosis(50, 2),
    "edgeworth_density": lambda: lambda: dmft.edgeworth_density(np.linspace(-1.0, 1.0, 3), 1.0, 0.1),
    "residual_nngp": lambda: lambda: dmft.residual_nngp(np.eye(2), 2),
    "residual_ntk": lambda: lambda: dmft.residual_ntk(np.eye(2), 2),
    "sample_network": lambda: lambda: dmft.sample_network(X, key=KEY, width=8, depth=2),
    "critical_spread": lambda: lambda: dmft.critical_spread(0.3),
    "curve": lambda: lambda: dmft.curve(_hubbard, 2.0, START, step=0.1, steps=2),
    "fold": lambda: lambda: dmft.fold(_hubbard, 2.5, START, max_steps=3),
    "leading_eigenvalue": lambda: lambda: dmft.leading_eigenvalue(_hubbard(2.0), START),
    "finite_n, network": lambda: lambda: dmft.RandomNetwork(1.5, points=11).finite_n(20, key=KEY, t_max=80.0),
}


@pytest.mark.parametrize("name", CASES)
def test_programs(name):
    assert_compiles_once(CASES[name], first=20 if "gradient" in name or "vmap" in name else 4)


@pytest.mark.parametrize(("f", "x"), [(_last, 0.5), (_mott, 2.0)])
def test_gradients_in_single_precision_warn_of_nothing(f, x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slope = jax.grad(f)(x)
    with jax.enable_x64(True):
        difference = (f(x + 1e-4) - f(x - 1e-4)) / 2e-4
    np.testing.assert_allclose(slope, difference, rtol=1e-4)


def test_a_forward_derivative_of_a_causal_solve_names_its_option():
    with pytest.raises(TypeError, match="forward=True"):
        jax.jvp(_last, (0.5,), (1.0,))
