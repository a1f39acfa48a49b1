"""Soft spins: the solvable quadratic potential, equilibrium, finite systems, gradients, statuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import dmft
from physml.core import Failure
from physml.dmft import MonteCarlo, Sample
from physml.dmft.systems.soft_spins import Quartic, SoftSpinSK

KEY = jax.random.key(0)
# Compiling is most of what these small problems cost.
quick = lambda f: jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})
model_of = lambda T, J, k, u, spread: SoftSpinSK(T, J, Quartic(k, u), t_max=4.0, dt=0.1, spread=spread)
NUMBERS = (0.7, 1.0, 2.3, 0.0, 1.5)
LINEAR = model_of(*NUMBERS)


@quick
def run(numbers, start):
    return dmft.solve(model_of(*numbers), key=KEY, noise=MonteCarlo(5000), start=start)


def semicircle(t, model):
    """C, R and energy of independent modes: J's eigenvalues follow the semicircle law of radius 2J."""
    k, T, s2 = model.potential.k, model.temperature, model.spread**2
    angle = (np.arange(400) + 0.5) * np.pi / 400
    rate, share = k - 2 * model.coupling * np.cos(angle), 2 * np.sin(angle) ** 2 / 400
    decay = np.exp(-np.outer(t, rate))
    apart = np.exp(-np.abs(t[:, None] - t[None, :])[:, :, None] * rate)
    C = np.einsum("l,il,jl->ij", share * (s2 - T / rate), decay, decay) + apart @ (share * T / rate)
    variance = (s2 - T / rate) * decay**2 + T / rate
    return C, np.tril(apart @ share), variance @ (share * rate / 2)


def test_quadratic_potential_is_the_average_over_the_semicircle():
    out = run(NUMBERS, LINEAR.init()).check()
    C, R, energy = semicircle(np.asarray(out.order.t, np.float64), LINEAR)
    assert out.order.C.dtype == jnp.float32
    # The errors of dt^2 are 0.007 and 0.005.
    assert np.max(np.abs(out.order.C - C)) < 0.012
    assert np.max(np.abs(out.order.energy - energy)) < 0.012
    assert np.max(np.abs(out.order.R - R)) < 0.04 and np.std(out.order.R - R) < 0.006
    assert abs(np.sum(out.order.R - R) / np.sum(R)) < 0.015


def test_exact_solution_is_noticed_when_the_memory_is_wrong():
    t = np.arange(LINEAR.steps + 1) * LINEAR.dt
    C, R, _ = semicircle(t, LINEAR)
    sample = MonteCarlo(2000).draw(LINEAR.noise_shape(), jax.random.key(1), jnp.float32)
    update = quick(lambda R: LINEAR.update(LINEAR.init() | {"C": jnp.asarray(C, jnp.float32), "R": R}, sample)["C"])
    gap = lambda factor: float(np.max(np.abs(update(jnp.asarray(factor * R, jnp.float32)) - C)))
    assert gap(1.0) < 0.012
    assert gap(0.5) > 0.05 and gap(1.5) > 0.05


def test_double_wells_follow_finite_systems_and_the_fluctuation_dissipation_theorem():
    model = model_of(1.0, 0.5, -1.0, 1.0, 0.7)
    theory = run((1.0, 0.5, -1.0, 1.0, 0.7), model.init()).check().order
    simulate = quick(lambda key: model.finite_n(1000, key=key))
    sims = [simulate(jax.random.key(i)) for i in range(6)]
    for name in ("C", "energy"):
        values = np.stack([getattr(sim, name) for sim in sims])
        error = values.std(0, ddof=1).mean() / np.sqrt(6)
        assert np.max(np.abs(values.mean(0) - getattr(theory, name))) < 5 * error + 0.02, name
    # T int_s^t R(t, s') ds' = C(t, t) - C(t, s) once both times are in equilibrium.
    half = model.steps // 2
    for R, C in ((theory.R, theory.C), (sum(s.R for s in sims) / 6, sum(s.C for s in sims) / 6)):
        R, C = np.asarray(R)[-1, half:], np.asarray(C)[-1, half:]
        integral = model.dt * (np.sum(R) - (R[0] + R[-1]) / 2)
        assert abs(integral - (C[-1] - C[0])) < 0.04


def test_gradient_with_frozen_noise():
    with jax.enable_x64(True):
        z = np.random.default_rng(0).normal(size=(60, 12))
        sample = Sample(jnp.asarray(z), jnp.ones(60) / 60)

        def read(T, J, k):
            model = SoftSpinSK(T, J, Quartic(k, 1.0), t_max=0.6, dt=0.2)
            order = dmft.SelfConsistent(model.scheme.method, tol=1e-12).run(model, model.init(), sample).order
            return order.energy[-1] + order.C[-1, 1] + order.R[-1, 0]

        value = quick(jax.value_and_grad(read, (0, 1, 2)))
        at = np.asarray([0.8, 0.9, -0.5])
        slopes = value(*at)[1]
        assert slopes[0].dtype == jnp.float64
        for i, slope in enumerate(slopes):
            h = 1e-5 * np.eye(3)[i]
            assert abs(slope - (value(*(at + h))[0] - value(*(at - h))[0]) / 2e-5) < 1e-6 * max(1, abs(slope))


def test_statuses():
    start = LINEAR.init()
    with pytest.raises(Failure, match="not_positive"):
        run(NUMBERS, start | {"C": start["C"].at[2, 2].set(-1.0)}).check()
    with pytest.raises(Failure, match="acausal"):
        run(NUMBERS, start | {"R": start["R"].at[2, 5].set(0.1)}).check()


def test_errors():
    good: Any = dict(temperature=1.0, t_max=1.0, dt=0.1)
    for wrong in (dict(temperature=-1.0), dict(spread=-1.0), dict(dt=0.3), dict(dt=0.0)):
        with pytest.raises(ValueError):
            SoftSpinSK(**(good | wrong))
