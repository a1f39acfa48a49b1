"""Theory beside finite system: for every kind of system that has both, and for what a user writes himself."""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_gradient, programs

import physml
from physml import Comparison, compare
from physml.core import Code, Failure, status
from physml.dmft import LotkaVolterra, RandomNetwork
from physml.hopfield import MemoryNetwork
from physml.particles import CoulombGas, MeanFieldParticles, QuadraticChains, overdamped, underdamped

KEY = jax.random.key(7)


@dataclasses.dataclass(frozen=True)
class CurieWeiss:
    """N spins that feel their mean: m = tanh(beta m), and Glauber's dynamics."""

    beta: float

    def theory(self):
        return {"m": physml.core.fixed_point(lambda m: jnp.tanh(self.beta * m), jnp.array(0.9)).value}

    def finite_n(self, n, *, key, sweeps=200):
        def flip(up, u):  # heat bath of one spin, whichever: all are alike
            out = u[0] < up / n
            up = up - out
            return up + (u[1] < jax.nn.sigmoid(2 * self.beta * (2 * up - n + 1) / n)), up

        u = jax.random.uniform(key, (sweeps * n, 2))
        ups = jax.lax.scan(flip, jnp.asarray(n, jnp.int32), u)[1]
        return {"m": jnp.mean(2 * ups[len(ups) // 5 :] / n - 1).astype(jnp.float32)}


def test_a_system_of_the_users_own_and_its_approach_to_the_limit():
    with jax.numpy_dtype_promotion("standard"):
        pair = compare(CurieWeiss(1.3), (50, 100, 200, 400), runs=24, key=KEY).check()
    theory = pair.theory["m"][0]
    assert abs(theory - np.tanh(1.3 * theory)) < 1e-4
    limit, exponent = pair.limit()["m"], pair.exponent["m"]
    assert abs(limit.value - theory) < 5 * limit.error + 0.01 and abs(exponent.value - 1) < 5 * exponent.error + 0.15
    assert pair.z["m"].shape == (4,) and abs(pair.z["m"][0]) > 3  # small systems are told from the limit
    assert "CurieWeiss" not in repr(pair) and "m:" in repr(pair)


def test_the_wrong_theory_is_noticed():
    @dataclasses.dataclass(frozen=True)
    class Wrong(CurieWeiss):
        def theory(self):
            return CurieWeiss(1.03 * self.beta).theory()

    with jax.numpy_dtype_promotion("standard"):
        pair = compare(Wrong(1.3), 400, runs=12, key=KEY)
    assert abs(pair.z["m"]) > 5


@pytest.mark.parametrize("kernel", [overdamped, underdamped])
def test_kernels_beside_the_law_of_their_finite_step(kernel):
    K = jnp.asarray([[1.0, 0.3], [0.3, 0.6]])
    chains = QuadraticChains(kernel(lambda x: 0.5 * x @ (K @ x), 0.6), jnp.zeros(2), moves=100)
    pair = compare(chains, 4096, runs=8, key=KEY).check()
    assert pair.largest_z < 5
    continuous = np.linalg.inv(K)
    resolved = np.max(np.abs((pair.mean.covariance - continuous) / pair.error.covariance))
    assert resolved > 10 or kernel is underdamped  # BAOAB has no bias here


def test_mean_field_particles():
    drift = lambda x, measure, key: -x - 0.7 * (x - measure.mean[None, :])
    gas = MeanFieldParticles(
        drift, jnp.asarray([1.0, -0.5]), jnp.asarray([[0.5, 0.1], [0.1, 0.3]]), jnp.linspace(0, 1, 9), temperature=0.4
    )
    pair = compare(gas, 2000, runs=8, key=KEY).check()
    assert pair.largest_z < 5
    exact = [1.0 * np.exp(-1.0), 0.5 * np.exp(-2 * 1.7) + 0.4 / 1.7 * (1 - np.exp(-2 * 1.7))]
    np.testing.assert_allclose([pair.theory.mean[-1, 0], pair.theory.cov[-1, 0, 0]], exact, rtol=1e-3)


@pytest.mark.slow
def test_replica_theory_beside_glauber_dynamics():
    pair = compare(MemoryNetwork(0.04, 0.3), (100, 200, 400), runs=6, key=KEY).check()
    limit = pair.limit().m
    assert abs(limit.value - pair.theory.m[0]) < 5 * limit.error + 0.003 and limit.error < 0.02


@pytest.mark.slow
def test_a_coulomb_gas_beside_its_exact_law():
    pair = compare(CoulombGas(beta=1.3, chains=32, moves=400), (6, 12), runs=6, key=KEY).check()
    assert pair.largest_z < 5
    n, beta = 12, 1.3
    np.testing.assert_allclose(pair.theory.mean[1] * n**2, (n + beta * n * (n - 1) / 4) * 2 / beta, rtol=1e-5)


def test_models_of_dmft():
    pair = compare(LotkaVolterra(4.0, 0.5, 0.2), 300, runs=4, key=KEY).check()
    assert abs(pair.z.phi) < 8 and abs(pair.mean.phi - pair.theory.phi) < 0.03
    network = RandomNetwork(g=2.0, points=31, tau_max=6.0)
    pair = compare(network, 150, runs=3, key=KEY, t_max=60.0, theory=network.theory()).check()
    assert pair.mean.C.shape == pair.theory.C.shape
    assert len(pair.plot().axes) >= 3


def test_the_theory_differentiates():
    assert_gradient(lambda T: MemoryNetwork(0.04, T).theory().order.m, 0.3, step=1e-2, rtol=2e-2)


def test_a_second_comparison_compiles_nothing():
    chains = lambda: QuadraticChains(overdamped(_quadratic, 0.5), jnp.zeros(2), moves=20)
    compare(chains(), 64, runs=2, key=KEY)
    other = jax.random.key(3)
    with programs() as compiled:
        compare(chains(), 64, runs=2, key=other)
    assert not compiled, compiled


def _quadratic(x):
    return 0.5 * jnp.sum(x**2)


def test_figures():
    with jax.numpy_dtype_promotion("standard"):
        one = compare(CurieWeiss(1.3), 60, runs=3, key=KEY)
        several = compare(CurieWeiss(1.3), (30, 60), runs=3, key=KEY)
    for pair in (one, several):
        assert pair.plot().axes[0].has_data()


# ---- mistakes


class Sides:
    """A system whose sides are given."""

    def __init__(self, theory, finite):
        self._theory, self._finite = theory, finite

    def theory(self):
        return self._theory

    def finite_n(self, n, *, key):
        return self._finite


def test_one_side_only_is_named():
    class Known:
        def theory(self):
            return 1.0

    class Simulated:
        def finite_n(self, n, *, key):
            return 1.0

    for system, missing in ((Known(), "no finite system"), (Simulated(), "no theory"), (CurieWeiss, "no theory")):
        with pytest.raises(ValueError, match=missing):
            compare(system, 10, key=KEY)


def test_sides_that_do_not_fit_and_wrong_arguments():
    good = Sides({"m": jnp.zeros(3)}, {"m": jnp.zeros(3)})
    with pytest.raises(ValueError, match="differ"):
        compare(Sides({"m": 0.0}, {"q": 0.0}), 10, key=KEY, jit=False)
    with pytest.raises(ValueError, match="shapes"):
        compare(Sides({"m": jnp.zeros(3)}, {"m": jnp.zeros(4)}), 10, key=KEY, jit=False)
    for wrong in ({"n": 0}, {"n": 2.5}, {"n": ()}, {"runs": 1}, {"key": 3}):
        with pytest.raises((ValueError, TypeError)):
            compare(good, **({"n": 10, "key": KEY} | wrong), jit=False)
    with pytest.raises(ValueError, match="several sizes"):
        compare(good, 10, key=KEY, jit=False).limit()


def test_a_failing_side_is_named():
    class Told(eqx.Module):
        order: dict
        status: object

    order = {"m": jnp.zeros(())}
    bad, good = Told(order, status(Code.not_converged, 9)), Told(order, status())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Failure, match=r"the theory: not_converged at step 9"):
            compare(Sides(bad, good), 10, key=KEY, jit=False).check()
        with pytest.raises(Failure, match=r"finite system, n = 10: not_converged"):
            compare(Sides(good, bad), 10, key=KEY, jit=False).check()
        with pytest.raises(Failure, match=r"the theory: m not finite"):
            compare(Sides({"m": jnp.nan}, {"m": 0.0}), 10, key=KEY, jit=False).check()
    assert isinstance(compare(Sides(good, good), 10, key=KEY, jit=False).check(), Comparison)
