"""Lotka and Volterra with random couplings: the equations, the boundary, gradients, finite communities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import dmft
from physml.core import Failure
from physml.dmft import LotkaVolterra


def test_moments_are_those_of_the_truncated_gaussian():
    mu, sigma, gamma = 2.3, 0.61, -0.4
    order = dmft.solve(LotkaVolterra(mu, sigma, gamma)).check().order
    z = np.random.default_rng(0).normal(size=2_000_000)
    own = 1 - gamma * sigma**2 * float(order.v)
    n = np.maximum(0, (1 - mu * float(order.m) + sigma * np.sqrt(float(order.q)) * z) / own)
    for value, sample in ((order.m, n), (order.q, n**2), (order.phi, n > 0)):
        assert abs(float(value) - sample.mean()) < 5 * sample.std() / np.sqrt(len(z))
    assert abs(float(order.v) - float(order.phi) / own) < 1e-5


@pytest.mark.parametrize("gamma", [-0.5, 0.0, 0.7])
def test_margin_changes_sign_at_the_exact_boundary(gamma):
    sigma_c = float(dmft.critical_spread(gamma))
    margin = jax.jit(lambda s: dmft.solve(LotkaVolterra(4.0, s, gamma)).order.margin)
    assert float(margin(0.999 * sigma_c)) > 0 > float(margin(1.001 * sigma_c))
    with pytest.raises(Failure, match="physical"):
        dmft.solve(LotkaVolterra(4.0, 1.01 * sigma_c, gamma)).check()


def test_gradient_by_the_implicit_derivative():
    with jax.enable_x64(True):
        read = lambda s, mu: (lambda o: o.m + o.q * o.phi)(dmft.solve(LotkaVolterra(mu, s, 0.3)).order)
        slopes = jax.jit(jax.grad(read, (0, 1)))(0.7, 3.0)
        h = 1e-5
        assert abs(slopes[0] - (read(0.7 + h, 3.0) - read(0.7 - h, 3.0)) / (2 * h)) < 1e-7
        assert abs(slopes[1] - (read(0.7, 3.0 + h) - read(0.7, 3.0 - h)) / (2 * h)) < 1e-7


def test_finite_communities():
    model = LotkaVolterra(4.0, 0.7, 0.5)
    theory = dmft.solve(model).order
    simulate = jax.jit(lambda key: model.finite_n(500, key=key))
    sims = [simulate(jax.random.key(i)) for i in range(5)]
    for name in ("m", "q", "phi", "v"):
        values = np.asarray([getattr(sim, name) for sim in sims])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - float(getattr(theory, name))) < 5 * error + 2 / 500, name


def test_limits_and_errors():
    alone = dmft.solve(LotkaVolterra(3.0, 0.0)).check().order
    assert abs(float(alone.m) - 0.25) < 1e-5 and abs(float(alone.phi) - 1) < 1e-6
    assert alone.m.dtype == jnp.float32
    for wrong in (dict(gamma=2.0), dict(sigma=-1.0)):
        with pytest.raises(ValueError):
            LotkaVolterra(**(dict(mu=1.0, sigma=0.5) | wrong))
    with pytest.raises(ValueError, match="at most 3"):
        dmft.Quadrature().draw((4,), None, jnp.float32)
    with pytest.raises(ValueError, match="key"):
        dmft.MonteCarlo(100).draw((4,), None, jnp.float32)
