"""Legendre functions by autodiff, left Bregman operators by minimisation, kernels by exact stationary laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.particles import (
    BoxEntropy,
    BregmanL1,
    Entropy,
    HyperbolicEntropy,
    LogBarrier,
    Quadratic,
    SimplexEntropy,
    bregman_divergence,
    bregman_envelope,
    bregman_proximal,
    curvature,
    mirror,
)
from physml.particles.chains.run import run_chains
from physml.particles.energies.nonsmooth import L1, Box
from physml.particles.kernels.base import over_lanes
from physml.particles.kernels.langevin import overdamped
from physml.particles.kernels.proximal import proximal

LEGENDRE = {
    "quadratic": (lambda: Quadratic(1.7), -2.0, 2.0),
    "entropy": (Entropy, 0.05, 3.0),
    "box entropy": (lambda: BoxEntropy(-1.0, 2.0), -0.95, 1.95),
    "barrier": (lambda: LogBarrier(-1.0, 2.0), -0.95, 1.95),
    "hyperbolic": (lambda: HyperbolicEntropy(0.3), -2.0, 2.0),
}


@pytest.mark.parametrize("name", LEGENDRE)
def test_legendre_function_its_dual_and_its_inverse(name):
    with jax.enable_x64(True):
        build, low, high = LEGENDRE[name]
        phi, x = build(), jax.random.uniform(jax.random.key(0), (7,), jnp.float64, low, high)
        y = phi.dual(x)
        np.testing.assert_allclose(jax.grad(phi)(x), y, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(phi.primal(y), x, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(curvature(phi, x), jnp.diag(jax.hessian(phi)(x)), rtol=1e-10)
        ends = phi.primal(jnp.asarray([-50.0, 50.0]))
        assert bool(jnp.isfinite(ends).all())


@pytest.mark.parametrize("name", LEGENDRE)
def test_left_bregman_operator_and_the_gradient_of_its_envelope(name):
    """Against all points of a fine grid; the gradient against phi''(x - z)/lam and finite differences."""
    with jax.enable_x64(True):
        build, low, high = LEGENDRE[name]
        phi, lam = build(), 0.4
        energies = [BregmanL1(phi, 0.9, jnp.asarray(0.5)), Box(0.2, 1.3)] + [BregmanL1(phi, 0.9)] * (name == "entropy")
        for g in energies:
            x = jnp.asarray([0.11, 0.55, 1.6])
            z = g.prox(x, lam)
            grid = jnp.linspace(low, high, 20001)
            inside = jnp.where(jax.vmap(lambda s, g=g: g(s[None]))(grid) < jnp.inf, grid, jnp.clip(grid, 0.2, 1.3))
            cost = jax.vmap(
                lambda s, a, g=g: g(s[None]) + bregman_divergence(phi, s[None], a[None]) / lam, in_axes=(0, None)
            )
            for a, best in zip(x, z, strict=True):
                values = cost(inside, a)
                assert cost(best[None], a)[0] <= values.min() + 1e-12
                assert abs(inside[values.argmin()] - best) < 2 * (high - low) / 20000
            slope = jax.grad(lambda x, g=g: bregman_envelope(g, x, lam, phi))(x)
            np.testing.assert_allclose(slope, curvature(phi, x) * (x - z) / lam, rtol=1e-9, atol=1e-11)


def test_quadratic_mirrors_are_the_kernels_without_mirror(key):
    with jax.enable_x64(True):
        x, xi = jax.random.normal(key, (2, 3), jnp.float64)
        energy, mass = lambda x: jnp.sum(jnp.cosh(x)), jnp.asarray([0.5, 1.0, 3.0])
        move = lambda kernel: kernel.move(kernel.init(x), xi)[0].position
        want = move(overdamped(energy, 0.1, 0.7, scale=1 / jnp.sqrt(mass)))
        np.testing.assert_allclose(move(mirror(energy, 0.1, Quadratic(mass), 0.7)), want, rtol=1e-12)
        # The dual scheme is Langevin in y = m x: its mobility in x is 1/m^2.
        want = move(overdamped(energy, 0.1, 0.7, scale=1 / mass))
        np.testing.assert_allclose(move(mirror(energy, 0.1, Quadratic(mass), 0.7, scheme="dual")), want, rtol=1e-12)
        one, g = Quadratic(1.0), L1(0.8, jnp.asarray(0.1))
        left = BregmanL1(one, 0.8, jnp.asarray(0.1))
        want = move(proximal(energy, g, 0.1, 0.3, 0.7))
        for scheme in ("riemannian", "dual"):
            got = move(bregman_proximal(energy, left, 0.1, 0.3, one, 0.7, scheme=scheme))
            np.testing.assert_allclose(got, want, rtol=1e-12)


@eqx.filter_jit
def stationary(kernel, grid):
    """Density in y of a one-dimensional chain with y' ~ N(m(y), s(y)^2), solved on a grid."""

    def move(y, xi):
        state = kernel.init(kernel.legendre.primal(y[None]))
        return kernel.move(state._replace(dual=y[None]), xi[None])[0].dual[0]

    m = jax.vmap(lambda y: move(y, jnp.zeros(())))(grid)
    s = jax.vmap(lambda y: move(y, jnp.ones(())))(grid) - m
    dy = grid[1] - grid[0]
    transition = jnp.exp(-(((grid[:, None] - m[None]) / s[None]) ** 2) / 2) * dy / (s[None] * jnp.sqrt(2 * jnp.pi))
    # Where the step is long, mass may leave the grid: normalise it back onto it.
    transition = transition / transition.sum(axis=0, keepdims=True)
    system = (transition - jnp.eye(len(grid))).at[0].set(dy)
    return jnp.linalg.solve(system, jnp.zeros(len(grid)).at[0].set(1.0))


CASES = {
    "gamma, entropy, dual": (lambda x: x - 6 * jnp.log(x), Entropy, "dual", (-2.5, 4.0)),
    "gamma, entropy": (lambda x: x - 6 * jnp.log(x), Entropy, "riemannian", (-2.5, 4.0)),
    "truncated, box entropy": (lambda x: -4 * jnp.log(x * (1 - x)) + 2 * x, BoxEntropy, "riemannian", (-5.0, 5.0)),
    "truncated, barrier": (lambda x: 2 * x, LogBarrier, "riemannian", (-250.0, 250.0)),
    "wavy, hyperbolic": (lambda x: jnp.cos(2 * x) + x**2, lambda: HyperbolicEntropy(0.5), "riemannian", (-4.0, 4.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_stationary_law_tends_to_the_target(name):
    """In total variation, at first order in h, with the change of variables dx = dy/phi''."""
    with jax.enable_x64(True):
        energy, build, scheme, (low, high) = CASES[name]
        phi, T = build(), 0.8
        energy_1 = lambda x: energy(x[0])
        grid = jnp.linspace(low, high, 1601 if name == "truncated, barrier" else 801)
        x = phi.primal(grid)
        log_q = -jax.vmap(energy)(x) / T - jnp.log(curvature(phi, x))
        q = jnp.exp(log_q - log_q.max())
        dy = grid[1] - grid[0]
        q = q / (q.sum() * dy)
        gap = lambda h: float(
            jnp.sum(jnp.abs(stationary(mirror(energy_1, h, phi, T, scheme=scheme), grid) - q)) * dy / 2
        )
        gaps = [gap(0.02), gap(0.01)]
        assert gaps[1] < 0.04
        assert gaps[0] / gaps[1] > 1.7, gaps


def test_dirichlet_on_the_simplex(key):
    """Means and variances of a Dirichlet law, by their standard errors and what one step of h leaves behind."""
    alpha, h = jnp.asarray([5.0, 8.0, 7.0]), 2e-3
    energy = lambda x: -jnp.sum((alpha - 1) * jnp.log(x))
    x0 = jnp.broadcast_to(alpha / 20, (500, 3))
    for scheme, h in (("riemannian", 2e-3), ("dual", 5e-3)):
        kernel = mirror(energy, h, SimplexEntropy(), scheme=scheme)
        out = run_chains(kernel, x0, 1000, key=key, save_every=5, keep=False)
        mean, total = np.asarray(alpha) / 20, 20.0
        variance = mean * (1 - mean) / (total + 1)
        error = np.sqrt(variance / np.asarray(out.stats.ess))
        assert np.all(np.abs(np.asarray(out.stats.mean) - mean) < 5 * error + 0.002)
        np.testing.assert_allclose(out.stats.variance, variance, rtol=0.05)
        np.testing.assert_allclose(jnp.sum(out.state.position, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_lanes_and_dtype(dtype, key):
    with jax.enable_x64(dtype == jnp.float64):
        x0 = jax.nn.softmax(jax.random.normal(key, (4, 3), dtype), axis=0)
        energy = lambda x: jnp.sum(x**2)
        for scheme in ("riemannian", "dual"):
            kernels = [mirror(energy, 0.01, SimplexEntropy(), scheme=scheme)]
            phi = LogBarrier(0.0, 1.0)
            kernels += [bregman_proximal(energy, BregmanL1(phi, 1.0, 0.2), 0.01, 0.1, phi, scheme=scheme)]
            for kernel in kernels:
                noise = kernel.draw(key, x0[:, 0], jnp.arange(3))
                move = eqx.filter_jit(lambda k, x, xi: k.move(k.init(x), xi)[0])
                many, one = move(over_lanes(kernel), x0, noise), move(kernel, x0[:, 1], noise[:, 1])
                assert many.position.dtype == one.position.dtype == dtype
                tolerance = 2e-5 if dtype == jnp.float32 else 1e-12
                np.testing.assert_allclose(many.position[:, 1], one.position, rtol=tolerance)


def test_gradient_through_a_chain_is_a_finite_difference(key):
    with jax.enable_x64(True):
        x0 = jnp.asarray([0.4, 0.2, 0.7])

        @jax.jit
        def end(p):
            phi = BoxEntropy(0.0, p[4])
            energy = lambda x: jnp.sum(jnp.cosh(x))
            kernel = bregman_proximal(energy, BregmanL1(phi, p[2], 0.3), p[0], p[1], phi, p[3])
            step = lambda state, k: (kernel.step(jax.random.fold_in(key, k), state)[0], None)
            return jnp.sum(jax.lax.scan(step, kernel.init(x0), jnp.arange(20))[0].position ** 2)

        p, v = jnp.asarray([0.02, 0.2, 0.6, 0.5, 1.1]), jnp.asarray([0.1, -0.2, 0.5, 0.4, 0.3])
        finite = (end(p + 1e-6 * v) - end(p - 1e-6 * v)) / 2e-6
        np.testing.assert_allclose(jax.grad(end)(p) @ v, finite, rtol=1e-5)


def test_errors():
    energy = lambda x: jnp.sum(x)
    with pytest.raises((ValueError, TypeError), match="scheme"):
        mirror(energy, 0.1, Entropy(), scheme="primal")
    with pytest.raises(ValueError, match="outside the domain"):
        mirror(energy, 0.1, Entropy()).init(jnp.asarray([1.0, -1.0]))
    with pytest.raises(ValueError, match="upper must be finite"):
        LogBarrier(0.0, jnp.inf)
    with pytest.raises(ValueError, match="width must be positive"):
        HyperbolicEntropy(0.0)
    with pytest.raises(ValueError, match="smoothing must be positive"):
        bregman_proximal(energy, L1(), 0.1, 0.0, Entropy())
