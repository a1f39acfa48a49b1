"""The half-filled Bethe lattice against its limits, an impurity diagonalised exactly, and finite differences."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import physml
from physml.core import Code, Damped, Failure
from physml.dmft import SelfConsistent, solve
from physml.dmft.impurity.hubbard import BetheHubbard
from physml.dmft.impurity.lehmann import frequency_kernel, lehmann, time_kernel

WIDE = jax.enable_x64
solved = eqx.filter_jit(solve)


def impurity(u, v, beta, w):
    """G(iw) of a site with repulsion u, hopping v to one bath site at zero energy: 16 states, half filling."""
    lower, z, one = np.array([[0.0, 1.0], [0.0, 0.0]]), np.diag([1.0, -1.0]), np.eye(2)

    def chain(k):
        out = np.eye(1)
        for j in range(4):
            out = np.kron(out, lower if j == k else z if j < k else one)
        return out

    c = [chain(k) for k in range(4)]  # impurity up, bath up, impurity down, bath down
    n = [a.T @ a for a in c]
    h = u * (n[0] - np.eye(16) / 2) @ (n[2] - np.eye(16) / 2)
    for site in (0, 2):
        h = h + v * (c[site].T @ c[site + 1] + c[site + 1].T @ c[site])
    e, states = np.linalg.eigh(h)
    weight = np.exp(-beta * (e - e[0]))
    weight /= weight.sum()
    d = np.abs(states.T @ c[0] @ states) ** 2
    g = np.zeros(len(w), complex)
    for i, j in itertools.product(range(16), repeat=2):
        g += (weight[i] + weight[j]) * d[i, j] / (1j * w + e[i] - e[j])
    return g


@pytest.mark.parametrize("cutoff", [200.0, 2000.0])
def test_basis_holds_every_pole_below_the_cutoff(cutoff):
    basis = lehmann(cutoff)
    y = np.linspace(0, cutoff, 999)
    at_x, n, x = time_kernel(basis.x, y), np.arange(300), np.linspace(0, 1, 300)
    np.testing.assert_allclose(basis.tau_from_w @ frequency_kernel(basis.n, y), at_x, atol=3e-11)
    np.testing.assert_allclose(basis.times(x) @ at_x, time_kernel(x, y), atol=3e-12)
    np.testing.assert_allclose(basis.frequencies(n) @ at_x, frequency_kernel(n, y), atol=3e-13)


def test_semicircle_without_repulsion():
    with WIDE(True):
        order = solved(BetheHubbard(U=jnp.asarray(0.0))).check().order
        w, x = np.asarray(order.w), np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)
        np.testing.assert_allclose(order.G, -2j / (w + np.sqrt(w**2 + 1)), atol=1e-12)
        np.testing.assert_allclose(order.sigma, 0, atol=1e-12)
        # A(e) de = (2/pi) sqrt(1 - e^2) de becomes (2/4000) (1 - x^2) at Chebyshev's nodes.
        tau = np.array([[0.3, 7.0], [25.0, 50.0]])
        exact = -np.sum(2 / 4000 * (1 - x**2) * np.exp(-tau[..., None] * x) / (1 + np.exp(-50 * x)), -1)
        np.testing.assert_allclose(order.at(jnp.asarray(tau)), exact, atol=1e-12)
        np.testing.assert_allclose(order.at(order.tau), order.G_tau, atol=1e-12)
        assert abs(order.Z - 1) < 1e-12 and abs(order.docc - 0.25) < 1e-12


def test_atomic_limit_is_exact():
    with WIDE(True):
        order = solved(BetheHubbard(U=jnp.asarray(3.0), beta=jnp.asarray(5.0), D=0.0)).check().order
        np.testing.assert_allclose(order.sigma, -2.25j / np.asarray(order.w), atol=1e-12)
        np.testing.assert_allclose(order.docc, 0.5 / (1 + np.exp(7.5)), rtol=1e-10)
        np.testing.assert_allclose(order.G_tau[0], -0.5, atol=1e-12)


def test_one_impurity_is_exact_to_second_order():
    """A bath site at zero energy, G = 1/(iw), hopping D/2: the error of G falls as U^4, that of a wrong Sigma as
    U^2."""
    with WIDE(True):
        beta, error = 8.0, []
        for u in (0.1, 0.2):
            model = BetheHubbard(U=u, beta=beta, frequencies=30)
            bath = jnp.full(len(lehmann(model.cutoff).x), -0.5)
            order = model.finish(model.update(bath))
            exact = impurity(u, 0.5, beta, np.asarray(order.w))
            error.append(np.max(np.abs(order.G - exact)))
            free = np.max(np.abs(exact - impurity(0.0, 0.5, beta, np.asarray(order.w))))
        assert error[1] < 0.02 * free
        assert abs(np.log2(error[1] / error[0]) - 4) < 0.05


@pytest.mark.parametrize("start", ["metal", "insulator"])
def test_equations_hold_without_the_basis(start):
    """G0(tau) by a sum over 20,000 frequencies with its tail subtracted, Sigma(iw) by Simpson's rule."""
    with WIDE(True):
        model = BetheHubbard(U=jnp.asarray(2.8), start=start, frequencies=20000, cutoff=8000.0)
        order = solved(model).check().order
        w, g, sigma = (np.asarray(a) for a in (order.w, order.G.imag, order.sigma.imag))
        g0 = -1 / (w - g / 4)
        np.testing.assert_allclose(1 / (1 / g0 + sigma), g, atol=1e-10)
        tau = 25 * np.linspace(0, 1, 2001) ** 3
        G0 = np.array([-0.5 + 2 / 50 * np.sum((g0 + 1 / w) * np.sin(w * t)) for t in tau])
        width = np.diff(np.linspace(0, 1, 2001))[0]
        simpson = np.r_[1, np.tile([4, 2], 999), 4, 1] * width / 3 * 75 * np.linspace(0, 1, 2001) ** 2
        for k in (0, 3):
            direct = 2 * np.sum(simpson * 2.8**2 * G0**3 * np.sin(w[k] * tau))
            np.testing.assert_allclose(direct, sigma[k], rtol=1e-6)


def test_grid_independent():
    with WIDE(True):
        grids = [{}, {"eps": 1e-11}, {"cutoff": 600.0}, {"cutoff": 8000.0}]
        z = [float(solved(BetheHubbard(U=jnp.asarray(2.95), **grid)).check().order.Z) for grid in grids]
        np.testing.assert_allclose(z, z[0], rtol=1e-8)


@pytest.mark.parametrize(("start", "u"), [("metal", 2.0), ("metal", 2.9), ("insulator", 2.9)])
def test_gradient_on_both_branches(start, u):
    with WIDE(True):

        def z(u, beta):
            return solve(
                BetheHubbard(U=u, beta=beta, start=start), scheme=SelfConsistent(Damped(1.0), tol=1e-13)
            ).order.Z

        at = (jnp.asarray(u), jnp.asarray(50.0))
        both = jax.jit(jax.grad(z, (0, 1)))(*at)
        z = jax.jit(z)
        e = 1e-4
        differences = (z(at[0] + e, at[1]) - z(at[0] - e, at[1])) / (2 * e), (z(u, 50 + e) - z(u, 50 - e)) / (2 * e)
        np.testing.assert_allclose(both[0], differences[0], rtol=1e-4)
        np.testing.assert_allclose(both[1], differences[1], rtol=1e-4)


def test_both_precisions_and_both_branches():
    low = [solved(BetheHubbard(U=jnp.asarray(2.8), start=s)).check().order for s in ("metal", "insulator")]
    assert low[0].Z.dtype == jnp.float32 and low[0].G.dtype == jnp.complex64
    assert low[0].Z > 0.1 and low[1].Z < 0.01
    with WIDE(True):
        high = solved(BetheHubbard(U=jnp.asarray(2.8)))
    np.testing.assert_allclose(low[0].Z, high.order.Z, rtol=1e-5)
    np.testing.assert_allclose(low[0].at(jnp.asarray(3.0)), high.order.at(3.0), rtol=1e-5)
    # A solution starts the next one, also across precisions.
    again = solve(BetheHubbard(U=2.8), start=low[1].unknowns)
    np.testing.assert_allclose(again.order.Z, low[1].Z, rtol=1e-5)


def test_errors_and_states():
    with pytest.raises(ValueError, match="U must be"):
        BetheHubbard(U=-1.0)
    with pytest.raises(ValueError, match="start"):
        BetheHubbard(start="vacuum")
    with pytest.raises(ValueError, match="cutoff=4096"):
        BetheHubbard(beta=500.0)
    with pytest.raises(ValueError, match="no finite system"):
        physml.compare(BetheHubbard(), 10, key=jax.random.key(0))
    short = solve(BetheHubbard(), scheme=SelfConsistent(Damped(1.0), max_steps=2))
    assert short.status.code == Code.not_converged
    model, order = BetheHubbard(), short.order
    assert model.verdict(order) == Code.ok
    assert model.verdict(eqx.tree_at(lambda o: o.Z, order, order.Z + 1)) == Code.unphysical
    assert model.verdict(eqx.tree_at(lambda o: o.G, order, -order.G)) == Code.unphysical
    with pytest.raises(Failure, match="not_converged"):
        short.check()
