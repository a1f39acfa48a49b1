"""The spherical p-spin glass: equilibrium, ageing, the p = 2 closed form, gradients, a finite system."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import dmft
from physml.core import Failure
from physml.dmft import SphericalPSpin


def test_equilibrium_keeps_its_energy_and_obeys_fluctuation_and_dissipation():
    T = 0.83
    errors = []
    for dt in (0.1, 0.05):
        model = SphericalPSpin(p=3, temperature=T, t_max=4.0, dt=dt, initial_temperature=T)
        order = dmft.solve(model).check().order
        slope = -jnp.diff(order.C[:, 0]) / dt
        middle = (order.R[1:, 0] + order.R[:-1, 0]) / 2
        shift = round(1 / dt)
        errors.append(
            [
                abs(float(order.energy[-1]) + 1 / (2 * T)),
                float(jnp.max(jnp.abs(slope / T - middle))),
                float(jnp.max(jnp.abs(order.C[shift:, shift] - order.C[:-shift, 0]))),
            ]
        )
    assert np.all(np.asarray(errors[1]) < 0.01)
    # Second order: a quarter of the error at half the step.
    assert np.all(np.asarray(errors[1]) < 0.35 * np.asarray(errors[0]))


def test_two_spins_at_zero_temperature_have_a_closed_form():
    # p = 2, T = 0: s_l(t) ~ exp(lambda t) with the semicircle on [-2, 2] (variance of J: 1/N). The energy is
    # -<lambda/2 e^{2 lambda t}> / <e^{2 lambda t}> over it.
    lam = np.cos(np.pi * np.arange(1, 4000) / 4000) * 2
    weight = 1 - lam**2 / 4
    exact = lambda t: -0.5 * np.sum(weight * lam * np.exp(2 * lam * t)) / np.sum(weight * np.exp(2 * lam * t))
    grids = [dmft.solve(SphericalPSpin(p=2, temperature=0.0, t_max=4.0, dt=dt)).order.energy for dt in (0.1, 0.05)]
    for t in (1, 2, 4):
        coarse, fine = float(grids[0][10 * t]), float(grids[1][20 * t])
        assert abs((4 * fine - coarse) / 3 - exact(t)) < 1e-3


def test_ageing_solves_its_equations_and_meets_the_transition():
    p, T = 3, 0.41
    long = dmft.ageing(p, T)
    assert abs(p * (p - 1) / 2 * long.q ** (p - 2) * (1 - long.q) ** 2 - T**2) < 1e-5
    assert float(long.q) > (p - 2) / p  # the larger root
    assert abs(float(dmft.ageing(3, 1e-3).energy) - dmft.threshold_energy(3)) < 2e-3
    assert abs(dmft.dynamic_temperature(3) - 0.61237) < 1e-5
    with pytest.raises(ValueError, match="T_d"):
        dmft.ageing(3, 0.7)
    with pytest.raises(Failure, match=r"ageing: 1 of 2 runs failed.*unphysical"):
        jax.vmap(lambda T: dmft.ageing(3, T))(jnp.asarray([0.4, 0.7])).check()


@pytest.mark.slow
def test_gradient_against_finite_differences_and_the_global_map():
    with jax.enable_x64(True):

        def energy(T, J, scheme=None):
            model = SphericalPSpin(p=3, temperature=T, t_max=2.0, dt=0.1, coupling=J)
            order = dmft.solve(model, scheme=scheme).order
            return order.energy[-1] + order.C[-1, 7]

        to_T, to_J = jax.jit(jax.grad(energy, (0, 1)))(0.3, 1.1)
        h = 1e-4
        assert abs(to_T - (energy(0.3 + h, 1.1) - energy(0.3 - h, 1.1)) / (2 * h)) < 1e-6
        assert abs(to_J - (energy(0.3, 1.1 + h) - energy(0.3, 1.1 - h)) / (2 * h)) < 1e-6
        forward = jax.jit(jax.jacfwd(lambda T: energy(T, 1.1, dmft.Causal(forward=True))))
        assert abs(forward(0.3) - to_T) < 1e-9
        model = SphericalPSpin(p=3, temperature=0.3, t_max=2.0, dt=0.1)
        solution = dmft.solve(model)
        again = model.update(solution.unknowns)
        assert all(
            jnp.allclose(a, b, atol=1e-12)
            for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(solution.unknowns), strict=True)
        )


def test_gradient_of_a_compiled_function_in_single_precision():
    energy = lambda T: dmft.solve(SphericalPSpin(p=3, temperature=T, t_max=1.0, dt=0.1)).order.energy[-1]
    outside, inside = jax.grad(jax.jit(energy))(0.3), jax.jit(jax.grad(energy))(0.3)
    assert outside.dtype == jnp.float32 and abs(outside - inside) < 1e-6


def test_a_finite_system_follows():
    model = SphericalPSpin(p=3, temperature=0.2, t_max=2.0, dt=0.1)
    theory = dmft.solve(model).order
    simulate = jax.jit(lambda key: model.finite_n(100, key=key, probes=8))
    sims = [simulate(jax.random.key(i)) for i in range(8)]
    energies = np.stack([sim.energy for sim in sims])
    error = energies.std(0, ddof=1) / np.sqrt(8)
    # Within 5 standard errors and the O(1/N) shift of a finite system.
    assert np.all(np.abs(energies.mean(0) - theory.energy) < 5 * error + 2 / 100)
    # The response, weighed with something smooth: int R(t, s) (s - 1)^2 ds.
    probe = np.asarray((theory.t - 1) ** 2)[:-1]
    seen = np.asarray([np.sum(sim.R[-1, :-1] * probe) for sim in sims])
    expected = float(np.sum(theory.R[-1, :-1] * probe))
    assert abs(seen.mean() - expected) < 5 * seen.std(ddof=1) / np.sqrt(8) + 0.05 * expected


def test_errors_statuses_and_interpolation():
    for wrong in (dict(p=1), dict(temperature=-1.0), dict(dt=0.3), dict(initial_temperature=0.0)):
        with pytest.raises(ValueError):
            SphericalPSpin(**(dict(p=3, temperature=0.0, t_max=2.0, dt=0.1) | wrong))
    with pytest.raises(ValueError, match="smaller"):
        SphericalPSpin(p=3, temperature=0.0, t_max=2.0, dt=0.1).finite_n(1000, key=jax.random.key(0))
    with pytest.raises(ValueError, match="no causal model"):
        dmft.solve(dmft.LotkaVolterra(4.0, 0.5), scheme=dmft.Causal())
    with pytest.raises(ValueError, match="takes a model"):
        dmft.solve(3)  # type: ignore[arg-type]
    # A step beyond the stability of the equations is no silent number.
    with pytest.raises(Failure):
        dmft.solve(SphericalPSpin(p=3, temperature=9.0, t_max=20.0, dt=1.0)).check()
    order = dmft.solve(SphericalPSpin(p=3, temperature=0.3, t_max=2.0, dt=0.1)).order
    assert order.energy.dtype == jnp.float32
    assert abs(float(order.at(1.05, 0.5)) - float(order.C[10:12, 5].mean())) < 1e-6
