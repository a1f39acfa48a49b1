"""Measured orders of convergence: common Brownian paths, coarsened exactly, against exact solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import noise
from physml.integrate import (
    RK4,
    SRA1,
    Dynamics,
    EulerMaruyama,
    Heun,
    Leapfrog,
    Matrix,
    Milstein,
    ensemble,
    integrate,
)

PATHS, FINE = 2000, 256
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def brownian():
    """(2, FINE, PATHS) standard normals of the fine grid on [0, 1]: dW, and the second one of SRA1."""
    with jax.enable_x64(True):
        draw = lambda k: noise.normal(KEY, k, (jnp.zeros(()), jnp.zeros(())), jnp.arange(PATHS))
        return jnp.stack(jax.jit(jax.vmap(draw))(jnp.arange(FINE)))


def _coarsen(z, r):
    """Normals of steps r times as long: the same W, and the same int W ds.

    With h the fine step, I_10 over r steps = sum_i [I_10,i + h W_i] with W_i the path at the step's start.
    """
    z, zeta = z.reshape(2, FINE // r, r, PATHS)
    start = jnp.cumsum(z, axis=1) - z
    dw = z.sum(1) / np.sqrt(r)
    area = (start + z / 2 + zeta / np.sqrt(12)).sum(1) / (r * np.sqrt(r))  # I_10 / H^{3/2}
    return dw, np.sqrt(12) * (area - dw / 2)


def _last(brownian, method, dynamics, steps):
    """x at t = 1 from x = 1, (PATHS,), driven by the coarsened path."""
    dynamics = dynamics if method.calculus == "any" else dynamics.in_calculus(method.calculus)
    h = 1.0 / steps

    def step(x, k_xi):
        k, xi = k_xi
        return jax.vmap(lambda x, xi: method.step(dynamics, k * h, h, x, xi, None))(x, xi), None

    @jax.jit
    def run(z):
        z = _coarsen(z, FINE // steps)[: method.normals]
        return jax.lax.scan(step, jnp.ones(PATHS), (jnp.arange(steps, dtype=float), z))[0]

    return np.asarray(run(brownian))


def _errors(brownian, method, dynamics, exact, levels):
    """Root mean square error at t = 1 for each number of steps."""
    return [np.sqrt(np.mean((_last(brownian, method, dynamics, n) - exact) ** 2)) for n in levels]


def _order(levels, errors):
    return -np.polyfit(np.log(levels), np.log(errors), 1)[0]


MU, S = 0.5, 0.8
GBM = Dynamics(lambda t, x, a: MU * x, lambda t, x, a: S * x)
GBM_STRATONOVICH = Dynamics(lambda t, x, a: (MU - S**2 / 2) * x, lambda t, x, a: S * x, calculus="stratonovich")


@pytest.mark.parametrize(
    "method, dynamics, order",
    [
        (EulerMaruyama(), GBM, 0.5),
        (EulerMaruyama(), GBM_STRATONOVICH, 0.5),
        (Milstein(), GBM, 1.0),
        (Milstein(), GBM_STRATONOVICH, 1.0),
        (Heun(), GBM_STRATONOVICH, 1.0),
        (Heun(), GBM, 1.0),
    ],
    ids=lambda v: getattr(v, "calculus", None) and type(v).__name__ + "-" + v.calculus,
)
def test_strong_order_on_geometric_brownian_motion(brownian, method, dynamics, order):
    """x = exp((mu - s^2/2) t + s W), W the sum of the same increments; slopes to +- 0.1."""
    with jax.enable_x64(True):
        w = np.asarray(brownian[0]).sum(0) / np.sqrt(FINE)
        levels = [16, 64, 256]
        errors = _errors(brownian, method, dynamics, np.exp(MU - S**2 / 2 + S * w), levels)
    assert abs(_order(levels, errors) - order) < 0.1, errors


def test_strong_order_of_sra1(brownian):
    """Pendulum drift with noise 2 cos t: order 3/2 against the same path on the finest grid; Euler has 1."""
    dynamics = Dynamics(lambda t, x, a: -jnp.sin(2 * x) + t, lambda t, x, a: 2 * jnp.cos(t))
    levels = [16, 32, 64]
    with jax.enable_x64(True):
        exact = _last(brownian, SRA1(), dynamics, FINE)
        orders = {
            type(method).__name__: _order(levels, _errors(brownian, method, dynamics, exact, levels))
            for method in (SRA1(), EulerMaruyama())
        }
    assert abs(orders["SRA1"] - 1.5) < 0.12, orders
    assert abs(orders["EulerMaruyama"] - 1.0) < 0.12, orders


def test_ensemble_takes_its_steps_with_the_noise_of_core():
    """Milstein on geometric Brownian motion is a product of factors, one for each normal of `core.noise`."""
    with jax.enable_x64(True):
        like = jax.ShapeDtypeStruct((), jnp.float64)
        xi = jax.jit(jax.vmap(lambda k: noise.normal(KEY, k, like, jnp.arange(50))))(jnp.arange(FINE))
        ts = jnp.linspace(0, 1, FINE + 1)
        out = ensemble(GBM, jnp.ones(50), ts, key=KEY, method=Milstein(), save_every=FINE)
    dw = np.asarray(xi) / np.sqrt(FINE)
    factor = 1 + MU / FINE + S * dw + S**2 * (dw**2 - 1 / FINE) / 2
    np.testing.assert_allclose(out.xs[-1], factor.prod(0), rtol=1e-10)


def test_heun_converges_for_commuting_matrix_noise(brownian):
    """Rotation by a Brownian angle: dx = J x o dW keeps |x|; the Ito form needs the matrix correction -x/2."""
    rotate = lambda t, x, a: jnp.stack([-x[1], x[0]])[:, None]
    ts = np.linspace(0, 1, 65)
    strat = Dynamics(lambda t, x, a: 0 * x, Matrix(rotate), calculus="stratonovich")
    ito = Dynamics(lambda t, x, a: -0.5 * x, Matrix(rotate))
    x0 = jnp.broadcast_to(jnp.array([1.0, 0.0]), (200, 2))
    runs = [ensemble(d, x0, ts, key=KEY, method=Heun()).xs for d in (strat, ito)]
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-5)
    draw = jax.jit(jax.vmap(lambda k: noise.normal(KEY, k, jnp.zeros(1), jnp.arange(200))[0]))
    angle = np.cumsum(draw(jnp.arange(64)), 0) / 8
    np.testing.assert_allclose(runs[0][1:, :, 0], np.cos(angle), atol=0.05)
    np.testing.assert_allclose(runs[0][1:, :, 1], np.sin(angle), atol=0.05)


@pytest.mark.parametrize(
    "method, order",
    [(EulerMaruyama(), 1), (Milstein(), 1), (Heun(), 2), (SRA1(), 2), (RK4(), 4)],
    ids=lambda v: str(v)[:8],
)
def test_order_for_odes(method, order):
    """z' = a t z^2 with a = 2i: z = 1 / (1 - i t^2), on a grid that is not uniform."""
    dynamics = Dynamics(lambda t, z, a: a * t.astype(z.dtype) * z**2)
    with jax.enable_x64(True):
        z0, levels = jnp.ones(1, jnp.complex128), [20, 40]
        errors = []
        for n in levels:
            out = integrate(dynamics, z0, jnp.linspace(0.0, 1.0, n + 1) ** 1.2, args=2j, method=method, save_every=n)
            errors.append(abs(complex(out.check().xs[-1, 0]) - 1 / (1 - 1j)))
    assert abs(_order(levels, errors) - order) < 0.15, errors


def test_leapfrog_is_symplectic_and_reversible():
    """Pendulum with mass 2: order 2 in x and in energy, energy error bounded, exactly reversible."""
    mass = 2.0
    force = lambda q: -jnp.sin(q)
    dynamics = Dynamics(lambda t, x, a: (x[1] / mass, force(x[0])))
    energy = lambda x: x[1] ** 2 / (2 * mass) - jnp.cos(x[0])
    with jax.enable_x64(True):
        x0 = (jnp.array([1.5, 0.3]), jnp.array([0.0, 1.0]))
        run = jax.jit(
            lambda x0, n, t: integrate(dynamics, x0, jnp.linspace(0, t, n + 1), method=Leapfrog()).xs, static_argnums=1
        )
        deviation = lambda xs: np.abs(np.asarray(jax.vmap(energy)(xs) - energy(x0)[None]))
        coarse, fine = run(x0, 100, 10.0), run(x0, 200, 10.0)
        size = [deviation(xs).max() for xs in (coarse, fine)]
        assert abs(_order([100, 200], size) - 2) < 0.1
        long = deviation(run(x0, 10_000, 1000.0))
        assert long.max() < 1.5 * size[0] and abs(long[-100:].max() - long[:100].max()) < size[0]
        exact = integrate(dynamics, x0, jnp.linspace(0, 10, 2001), method=RK4(), save_every=2000).xs
        gap = [float(jnp.abs(xs[0][-1] - exact[0][-1]).max()) for xs in (coarse, fine)]
        assert abs(_order([100, 200], gap) - 2) < 0.1
        there = jax.tree.map(lambda leaf: leaf[-1], coarse)
        back = run((there[0], -there[1]), 100, 10.0)
        np.testing.assert_allclose(back[0][-1], x0[0], atol=1e-12)
        np.testing.assert_allclose(-back[1][-1], x0[1], atol=1e-12)
