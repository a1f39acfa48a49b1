"""Species in time: a solvable community, the fixed point they tend to, finite communities, gradients, statuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import dmft
from physml.core import Failure
from physml.dmft import LotkaVolterra, MonteCarlo, Sample
from physml.dmft.systems.lotka_volterra_dynamics import LotkaVolterraDynamics

KEY = jax.random.key(0)
# Compiling is most of what these small problems cost.
quick = lambda f: jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})
model_of = lambda numbers: LotkaVolterraDynamics(*numbers, t_max=32.0, dt=0.4)
MIXED = (2.0, 0.7, 0.5, 1e-6)  # mu, sigma, gamma, immigration


@quick
def run(numbers, start):
    return dmft.solve(model_of(numbers), key=KEY, noise=MonteCarlo(2000), start=start)


def solve(numbers):
    return run(numbers, model_of(numbers).init()).check().order


@pytest.mark.slow
def test_species_without_couplings_are_logistic():
    order = solve((0.0, 0.0, 0.0, 0.0))
    early = slice(0, 22)
    t = np.asarray(order.t[early], np.float64)
    first = 0.1 + 0.9 * (np.arange(2000) + 0.5) / 2000
    N = 1 / (1 + (1 / first - 1) * np.exp(-t[:, None]))
    # A field at s shifts log N(s), and log N / (1 - N) grows at rate 1.
    R = np.tril(N * (1 - N) @ (1 / (1 - N)).T / 2000)
    assert order.R.dtype == jnp.float32
    assert np.max(np.abs(order.m[early] - N.mean(1))) < 0.006
    assert np.max(np.abs(order.C[early, early] - N @ N.T / 2000)) < 0.008
    # The error of dt^2 is 0.034.
    assert np.max(np.abs(order.R[early, early] - R)) < 0.04


@pytest.mark.parametrize("numbers", [MIXED, (2.0, 0.7, -0.5, 1e-6)])
def test_late_times_are_the_fixed_point(numbers):
    order = solve(numbers)
    fixed = dmft.solve(LotkaVolterra(*numbers[:3])).order
    for name, tolerance in (("m", 0.01), ("q", 0.03), ("v", 0.03)):
        late, exact = float(getattr(order, name)[-1]), float(getattr(fixed, name))
        assert abs(late / exact - 1) < tolerance, name
    assert float(fixed.phi) < float(order.phi[-1]) < float(fixed.phi) + 0.1


@pytest.mark.slow
def test_finite_communities():
    theory = solve(MIXED)
    simulate = quick(lambda key: model_of(MIXED).finite_n(400, key=key))
    sims = [simulate(jax.random.key(i)) for i in range(6)]
    for name, finite in (("m", 0.004), ("q", 0.008), ("C", 0.008), ("phi", 0.01), ("v", 0.02)):
        values = np.stack([getattr(sim, name) for sim in sims])
        error = values.std(0, ddof=1).mean() / np.sqrt(6)
        assert np.max(np.abs(values.mean(0) - getattr(theory, name))) < 5 * error + finite, name
    R = sum(sim.R for sim in sims) / 6
    assert np.std(R - theory.R) < 0.03 and abs(np.sum(R - theory.R) / np.sum(theory.R)) < 0.05


def test_wrong_memory_is_noticed():
    order, fixed = solve(MIXED), dmft.solve(LotkaVolterra(*MIXED[:3])).order
    model = model_of(MIXED)
    sample = MonteCarlo(2000).draw(model.noise_shape(), jax.random.key(1), jnp.float32)
    given = {"m": order.m, "C": order.C, "phi": order.phi}
    update = quick(lambda factor: model.update(given | {"R": factor * order.R}, sample)["m"][-1])
    gap = lambda factor: abs(float(update(jnp.float32(factor)) / fixed.m) - 1)
    assert gap(1.0) < 0.01
    assert gap(0.0) > 0.05 and gap(-1.0) > 0.1


@pytest.mark.slow
def test_gradient_with_frozen_noise():
    with jax.enable_x64(True):
        z = np.random.default_rng(0).normal(size=(60, 9))
        sample = Sample(jnp.asarray(z), jnp.ones(60) / 60)

        def read(mu, sigma, gamma):
            model = LotkaVolterraDynamics(mu, sigma, gamma, 1e-3, t_max=0.9, dt=0.3)
            order = dmft.SelfConsistent(model.scheme.method, tol=1e-12).run(model, model.init(), sample).order
            return order.m[-1] + order.C[-1, 1] + order.v[-1]

        value = quick(jax.value_and_grad(read, (0, 1, 2)))
        at = np.asarray([1.2, 0.9, -0.5])
        slopes = value(*at)[1]
        assert slopes[0].dtype == jnp.float64
        for i, slope in enumerate(slopes):
            h = 1e-5 * np.eye(3)[i]
            assert abs(slope - (value(*(at + h))[0] - value(*(at - h))[0]) / 2e-5) < 1e-6 * max(1, abs(slope))


def test_statuses():
    start = model_of(MIXED).init()
    with pytest.raises(Failure, match="not_positive"):
        run(MIXED, start | {"C": start["C"].at[2, 2].set(-1.0)}).check()
    with pytest.raises(Failure, match="acausal"):
        run(MIXED, start | {"R": start["R"].at[2, 5].set(0.1)}).check()
    with pytest.raises(Failure, match="diverged"):
        run((-3.0, 0.7, 0.5, 1e-6), start).check()


def test_errors():
    good: Any = dict(mu=1.0, sigma=0.5)
    for wrong in (dict(sigma=-1.0), dict(gamma=2.0), dict(immigration=-1.0), dict(dt=0.3), dict(start=(1.0, 0.1))):
        with pytest.raises(ValueError):
            LotkaVolterraDynamics(**(good | wrong))
