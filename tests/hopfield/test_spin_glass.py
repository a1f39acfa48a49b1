"""The Sherrington-Kirkpatrick glass: known values, exact identities of Parisi's solution, and the law of the fields."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core._status import Code, Failure
from physml.hopfield.spins.glauber import Pairwise, glauber
from physml.hopfield.theory import SpinGlassPhase, parisi, sherrington_kirkpatrick

H = np.linspace(-12.0, 12.0, 2401)


def _average(state, f):
    return float(np.sum(np.asarray(state.field_density(jnp.asarray(H))) * f(H)) * (H[1] - H[0]))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_known_values(x64):
    """Ground states, with and without symmetry, the susceptibility's transition at J_0, and all four phases."""
    cold = sherrington_kirkpatrick(0.0)
    assert abs(cold.free_energy + (2 / np.pi) ** 0.5) < 1e-9 and abs(cold.energy - cold.free_energy) < 1e-9
    assert abs(parisi(0.05).energy + 0.76317) < 5e-5
    phase = lambda t, j0: SpinGlassPhase(int(sherrington_kirkpatrick(t, j0).check().phase))
    assert phase(1.3, 1.2) == SpinGlassPhase.paramagnet and phase(1.1, 1.2) == SpinGlassPhase.ferromagnet
    assert phase(0.3, 0.9) == SpinGlassPhase.glass and phase(0.1, 1.2) == SpinGlassPhase.mixed
    # On the line of de Almeida and Thouless below J_0 = 1.5 stability is 1; above it magnetised states are stable.
    assert sherrington_kirkpatrick(0.2, 1.5).stability > 1 > sherrington_kirkpatrick(0.3, 1.5).stability


def test_many_states_along_the_critical_line():
    """T = J_0, where the root is threefold: the paramagnet, and not a step that left the finite numbers."""
    t = jnp.linspace(1.02, 2.0, 99)
    state = jax.vmap(sherrington_kirkpatrick)(t, t)
    assert state.status.ok.all() and (state.m < 1e-3).all() and np.isfinite(state.field_variance).all()
    np.testing.assert_allclose(state.free_energy, -1 / (4 * t) - t * np.log(2), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.3, 0.83])
def test_identities_of_the_full_solution(t, x64):
    """Mean overlap 1 - T, marginal stability, a free energy above the symmetric one and falling errors, of order
    K^-4."""
    f = {k: parisi(t, levels=k).check() for k in (2, 4, 8, 16)}
    best = f[16]
    assert abs(best.weights @ best.overlaps - (1 - t)) < 2e-4
    assert abs(best.stability - 1) < 0.02 and sherrington_kirkpatrick(t).stability > 1.02
    assert best.free_energy > f[4].free_energy > f[2].free_energy > sherrington_kirkpatrick(t).free_energy
    gaps = [float(f[2 * k].free_energy - f[k].free_energy) for k in (2, 4, 8)]
    assert gaps[0] / gaps[1] > 8 and gaps[1] / gaps[2] > 8
    # The entropy is -df/dT: by differentiation, and from two energies that know nothing of it.
    slope = jax.grad(lambda t: parisi(t, levels=8).free_energy)(t)
    assert abs(-slope - (f[8].energy - f[8].free_energy) / t) < 1e-6


@pytest.mark.parametrize("state", ["glass", "paramagnet", "magnet"])
def test_the_law_of_the_fields(state, x64):
    """It is normalised, and its moments and the energy come out of it."""
    at = {"glass": parisi, "paramagnet": parisi, "magnet": lambda t: sherrington_kirkpatrick(t, 1.3)}[state]
    at = at({"glass": 0.4, "paramagnet": 1.4, "magnet": 0.6}[state])
    t = float(at.temperature)
    assert abs(_average(at, np.ones_like) - 1) < 1e-6
    assert abs(_average(at, lambda h: h) - at.field_mean) < 1e-6
    assert abs(_average(at, lambda h: (h - float(at.field_mean)) ** 2) - at.field_variance) < 1e-5
    # Every spin takes part in two fields.
    assert abs(-0.5 * _average(at, lambda h: h * np.tanh(h / t)) - at.energy) < 1e-6
    assert abs(_average(at, lambda h: np.tanh(h / t)) - at.m) < 1e-6


def test_paramagnet_in_closed_form(x64):
    for state in (parisi(1.7), sherrington_kirkpatrick(1.7, 0.5)):
        assert abs(state.free_energy + 1.7 * np.log(2) + 1 / (4 * 1.7)) < 1e-9 and state.q == 0
        assert abs(state.field_variance - 1 - 1.7**-2) < 1e-9 and abs(state.stability - 1.7**-2) < 1e-9


@pytest.mark.parametrize(("j0", "t"), [(1.3, 0.6), (0.2, 0.7), (0.4, 1.6)])
def test_gradients_of_the_symmetric_theory(j0, t, x64):
    for name in ("m", "q", "free_energy", "energy", "field_mean", "field_variance", "stability"):
        f = lambda t, j0, name=name: getattr(sherrington_kirkpatrick(t, j0), name)
        exact = jax.grad(f, (0, 1))(t, j0)
        e = 1e-5
        differences = (f(t + e, j0) - f(t - e, j0)) / (2 * e), (f(t, j0 + e) - f(t, j0 - e)) / (2 * e)
        np.testing.assert_allclose(exact, differences, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.6, 1.2])
def test_gradients_of_the_full_theory(t, x64):
    for name in ("q", "energy", "field_variance"):
        f = lambda t, name=name: getattr(parisi(t, levels=4), name)
        np.testing.assert_allclose(jax.grad(f)(t), (f(t + 1e-4) - f(t - 1e-4)) / 2e-4, rtol=1e-4, atol=1e-8)


def test_single_precision_and_maps():
    single = jax.jit(jax.vmap(lambda t: parisi(t, levels=4)))(jnp.array([0.5, 1.5]))
    assert single.q.dtype == jnp.float32 and single.overlaps.shape == (2, 5)
    with jax.enable_x64(True):
        double = parisi(0.5, levels=4)
    assert abs(single.q[0] - float(double.q)) < 1e-5 and single.phase.tolist() == [2, 0]


def test_one_configuration_has_these_fields():
    """N = 600 above the transition, one replica: mean, variance and energy within 4 standard errors."""
    n, t, j0 = 600, 1.25, 0.5
    a, b, c = jax.random.split(jax.random.key(3), 3)
    upper = jnp.triu(jax.random.normal(a, (n, n)), 1) / n**0.5
    J = (upper + upper.T + j0 / n) * (1 - jnp.eye(n))
    spins = jax.random.rademacher(b, (1, n), jnp.float32)
    spins = glauber(Pairwise(J), spins, 60, temperature=t, key=c, save_every=60).spins[0]
    fields, theory = np.asarray(J @ spins), sherrington_kirkpatrick(t, j0)
    variance = float(theory.field_variance)
    # The magnetisation fluctuates with the susceptibility 1 / (T - J_0).
    assert abs(fields.mean()) < 4 * (variance / n / (1 - j0 / t)) ** 0.5
    assert abs(fields.var() / variance - 1) < 4 * (2 / n) ** 0.5
    assert abs(fields.var() / (1 + 4 / t**2) - 1) > 4 * (2 / n) ** 0.5  # J twice as large is seen


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="temperature"):
        parisi(0.01)
    with pytest.raises(ValueError, match="levels"):
        parisi(0.5, levels=0)
    with pytest.raises(ValueError, match="ferromagnetic"):
        sherrington_kirkpatrick(0.5, float("nan"))
    with pytest.raises(ValueError, match="temperature"):
        sherrington_kirkpatrick(-1.0)
    state = sherrington_kirkpatrick(0.5)
    with pytest.raises(Failure, match="spin glass"):
        eqx.tree_at(lambda s: s.status.code, state, jnp.asarray(Code.not_converged, jnp.int32)).check()
