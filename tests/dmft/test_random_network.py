"""Random networks: the anchor, a second route to C(0), the onset, gradients, a finite network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import dmft
from physml.core import Failure, gauss_hermite
from physml.dmft import RandomNetwork


def test_variance_by_energy_conservation_with_plain_quadrature():
    g = 1.7
    order = dmft.solve(RandomNetwork(g=g)).check().order
    z, w = (np.asarray(a, np.float64) for a in gauss_hermite(120))
    c0 = float(order.C0)
    Phi = np.log(np.cosh(np.sqrt(c0) * z))
    gap = np.sum(w * Phi**2) - np.sum(w * Phi) ** 2
    assert abs(c0**2 / 2 - g**2 * gap) < 1e-6
    assert abs(float(dmft.solve(RandomNetwork(g=1.5)).order.C0) - 0.7477) < 5e-5


def test_correlation_satisfies_its_differential_equation():
    order = dmft.solve(RandomNetwork(g=1.5, tau_max=20.0, points=401)).order
    C, h = np.asarray(order.C, np.float64), float(order.tau[1])
    z, w = (np.asarray(a, np.float64) for a in gauss_hermite(60))
    k = 80
    c0, c = float(order.C0), C[k]
    shared, own = np.sqrt(c), np.sqrt(c0 - c)
    phiphi = np.sum(w * (np.tanh(shared * z[:, None] + own * z[None, :]) @ w) ** 2)
    bend = (-C[k - 2] + 16 * C[k - 1] - 30 * C[k] + 16 * C[k + 1] - C[k + 2]) / (12 * h**2)
    assert abs(bend - (c - 1.5**2 * phiphi)) < 2e-4  # float32 values, twice differenced
    assert C[-1] < 0.1 * c0 and np.all(np.diff(C) < 0)


def test_onset_of_chaos():
    # lambda grows as (g - 1)^2 / 2 and C(0) as g - 1.
    for eps in (0.01, 0.02):
        order = dmft.solve(RandomNetwork(g=1 + eps, tau_max=600.0)).order
        assert abs(float(order.C0) / eps - 1) < 3 * eps
    quiet = dmft.solve(RandomNetwork(g=0.6)).check().order
    assert float(quiet.C0) == 0 and abs(float(quiet.lyapunov) + 0.4) < 1e-6


@pytest.mark.slow
def test_gradients_precision_and_errors():
    with jax.enable_x64(True):
        read = lambda g: (lambda o: o.C0 + o.at(2.0) + o.lyapunov)(dmft.solve(RandomNetwork(g=g, points=101)).order)
        slope = jax.jit(jax.grad(read))(1.5)
        assert abs(slope - (read(1.5 + 1e-4) - read(1.5 - 1e-4)) / 2e-4) < 1e-5
    assert dmft.solve(RandomNetwork(g=1.5, points=101)).order.C.dtype == jnp.float32
    with pytest.raises(Failure, match="physical"):
        dmft.solve(RandomNetwork(g=40.0, terms=8, points=11)).check()
    with pytest.raises(ValueError, match="odd"):
        RandomNetwork(g=1.5, phi=jax.nn.relu)
    with pytest.raises(ValueError, match="positive"):
        RandomNetwork(g=-1.0)


def test_a_finite_network():
    model = RandomNetwork(g=2.0, tau_max=10.0, points=51)
    theory = dmft.solve(model).order
    simulate = jax.jit(lambda key: model.finite_n(300, key=key, t_max=80.0, warm_up=30.0))
    sims = [simulate(jax.random.key(i)) for i in range(6)]
    for name in ("C0", "lyapunov"):
        values = np.asarray([getattr(sim, name) for sim in sims])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - float(getattr(theory, name))) < 5 * error + 0.02 * float(getattr(theory, name))
