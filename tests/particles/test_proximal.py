"""Proximity operators by their definition, envelopes by finite differences, kernels by exact stationary laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.particles.chains.run import run, run_chains
from physml.particles.energies.nonsmooth import (
    L1,
    Ball,
    Box,
    GroupL2,
    SquaredL2,
    TotalVariation,
    moreau_envelope,
    nonnegative,
)
from physml.particles.kernels.base import over_lanes
from physml.particles.kernels.proximal import proximal, proximal_mala

ENERGIES = {
    "l1": lambda: L1(0.7, jnp.asarray(0.2)),
    "squared": lambda: SquaredL2(1.3),
    "rows": lambda: GroupL2(0.9),
    "one group": lambda: GroupL2(1.7, axis=None),
    "box": lambda: Box(-0.5, jnp.asarray(0.8)),
    "nonnegative": nonnegative,
    "ball": lambda: Ball(1.1, jnp.asarray(0.3)),
    "tv": lambda: TotalVariation(0.4, iterations=2000),
}


@pytest.mark.parametrize("name", ENERGIES)
def test_prox_is_the_strongly_convex_minimiser(name):
    """p minimises F(z) = g(z) + |x - z|^2/2 lam if and only if F(z) >= F(p) + |z - p|^2/2 lam for every z."""
    with jax.enable_x64(True):
        rng, lam, g = np.random.default_rng(0), 0.6, ENERGIES[name]()
        objective = jax.jit(jax.vmap(lambda z, x: g(z) + jnp.sum((x - z) ** 2) / (2 * lam)))
        # The dual iteration is exact to about 1e-6 after 2000 steps.
        slack = 1e-5 if name == "tv" else 1e-12
        for _ in range(3):
            x = jnp.asarray(rng.normal(size=(4, 3)))
            p = g.prox(x, lam)
            scale = 10.0 ** rng.uniform(-4, 0.3, size=(500, 1, 1))
            z = p[None] + jnp.asarray(scale * rng.normal(size=(500, 4, 3)))
            every = jnp.broadcast_to(x[None], z.shape)
            least = objective(p[None], x[None])
            bound = least + jnp.sum((z - p[None]) ** 2, axis=(1, 2)) / (2 * lam)
            assert jnp.isfinite(least).all()
            assert bool(jnp.all(objective(z, every) >= bound - slack))


def test_total_variation_of_a_step():
    """Halves at 0 and 1, n columns each: they approach by lam w / n."""
    with jax.enable_x64(True):
        image = jnp.concatenate([jnp.zeros((5, 4)), jnp.ones((5, 4))], axis=1)
        g = TotalVariation(2.0, iterations=3000)
        np.testing.assert_allclose(g(image), 2.0 * 5)
        shift = 0.3 * 2.0 / 4
        want = jnp.where(image > 0.5, 1 - shift, shift)
        np.testing.assert_allclose(g.prox(image, 0.3), want, atol=1e-5)
        np.testing.assert_array_equal(TotalVariation(0.0).prox(image, 0.3), image)


@pytest.mark.parametrize("name", [name for name in ENERGIES if name != "tv"])
def test_gradient_of_the_envelope(name):
    with jax.enable_x64(True):
        g, lam = ENERGIES[name](), 0.45
        x, v = jax.random.normal(jax.random.key(1), (2, 4, 3), jnp.float64)
        envelope = lambda x: moreau_envelope(g, x, lam)
        slope = jax.grad(envelope)(x)
        np.testing.assert_allclose(slope, (x - g.prox(x, lam)) / lam, atol=1e-12)
        step = 1e-6
        finite = (envelope(x + step * v) - envelope(x - step * v)) / (2 * step)
        np.testing.assert_allclose(jnp.sum(slope * v), finite, rtol=1e-6, atol=1e-8)
        assert envelope(x) <= g(x)


@pytest.mark.parametrize("scheme", ["MYULA", "P-ULA", "forward-backward", "proximal-gradient"])
def test_gaussian_laws_are_those_of_the_docstring(scheme):
    """The step is x' = q x + s xi; its stationary variance s^2/(1 - q^2) against the formulas."""
    with jax.enable_x64(True):
        a, w, h, lam, T = 0.8, 1.7, 0.11, 0.3, 1.4
        a = 0.0 if scheme == "P-ULA" else a
        smooth = None if scheme == "P-ULA" else lambda x: a * jnp.sum(x**2) / 2
        kernel = proximal(smooth, SquaredL2(w), h, lam if scheme == "MYULA" else None, T, scheme=scheme)
        move = lambda x, xi: kernel.move(kernel.init(jnp.asarray([x])), jnp.asarray([xi]))[0].position[0]
        q, s = move(1.0, 0.0), move(0.0, 1.0)
        k, r = a + w / (1 + lam * w), (1 - h * a) / (1 + h * w)
        want = {
            "MYULA": T / (k * (1 - k * h / 2)),
            "P-ULA": 2 * T * h / (1 - r**2),
            "forward-backward": 2 * T * h / (1 - r**2),
            "proximal-gradient": 2 * T * h / (1 - r**2) / (1 + h * w) ** 2,
        }
        np.testing.assert_allclose(s**2 / (1 - q**2), want[scheme], rtol=1e-12)


@eqx.filter_jit
def stationary(kernel, grid):
    """The law of a one-dimensional chain with x' ~ N(m(x), s^2), solved on a grid."""
    move = lambda x, xi: kernel.move(kernel.init(x[None]), xi[None])[0].position[0]
    m = jax.vmap(lambda x: move(x, jnp.zeros(())))(grid)
    s = move(grid[0], jnp.ones(())) - m[0]
    dx = grid[1] - grid[0]
    transition = jnp.exp(-(((grid[:, None] - m[None]) / s) ** 2) / 2) * dx / (s * jnp.sqrt(2 * jnp.pi))
    system = (transition - jnp.eye(len(grid))).at[0].set(dx)
    return jnp.linalg.solve(system, jnp.zeros(len(grid)).at[0].set(1.0))


def total_variation(p, log_q, grid):
    q = jnp.exp(log_q - log_q.max())
    dx = grid[1] - grid[0]
    return float(jnp.sum(jnp.abs(p - q / (q.sum() * dx))) * dx / 2)


@pytest.mark.parametrize("scheme", ["MYULA", "P-ULA", "forward-backward"])
def test_stationary_law_tends_to_the_smoothed_or_true_law(scheme):
    """MYULA towards exp(-(f + g_lam)/T), the others towards exp(-(f + g)/T), at first order in h."""
    with jax.enable_x64(True):
        T, lam, g = 0.7, 0.25, L1(1.5, jnp.asarray(0.3))
        smooth = None if scheme == "P-ULA" else lambda x: jnp.sum((x - 0.8) ** 2) / 2 + jnp.sum(jnp.cos(x))
        grid = jnp.linspace(-6.0, 7.0, 601)
        energy = jax.vmap(lambda x: 0.0 if smooth is None else smooth(x[None]))(grid)
        smoothed = jax.vmap(lambda x: moreau_envelope(g, x[None], lam))(grid)
        true = jax.vmap(lambda x: g(x[None]))(grid)
        aim = smoothed if scheme == "MYULA" else true
        build = lambda h: proximal(smooth, g, h, lam if scheme == "MYULA" else None, T, scheme=scheme)
        gaps = [total_variation(stationary(build(h), grid), -(energy + aim) / T, grid) for h in (0.08, 0.04)]
        ratios = np.asarray(gaps[:-1]) / np.asarray(gaps[1:])
        assert np.all(ratios > 1.7), gaps
        assert gaps[-1] < 0.05
        if scheme == "MYULA":
            assert total_variation(stationary(build(0.04), grid), -(energy + true) / T, grid) > 3 * gaps[-1]


def test_chains_have_the_stationary_law(key):
    """First two moments of 400 chains against the law solved on a grid, by their own standard errors."""
    smooth, g = lambda x: jnp.sum((x - 0.8) ** 2) / 2, L1(1.5)
    kernel = proximal(smooth, g, 0.2, 0.3)
    seen = run_chains(
        kernel,
        jnp.full((400, 1), 0.4),
        2000,
        key=key,
        save_every=2,
        keep=False,
        observe=lambda x: jnp.stack([x[0], x[0] ** 2]),
    )
    with jax.enable_x64(True):
        grid = jnp.linspace(-6.0, 7.0, 801)
        p = stationary(proximal(smooth, g, 0.2, 0.3), grid)
        want = [float(jnp.sum(p * f) * (grid[1] - grid[0])) for f in (grid, grid**2)]
    error = jnp.sqrt(seen.stats.variance / seen.stats.ess)
    z = (np.asarray(seen.stats.mean) - want) / np.asarray(error)
    assert np.all(np.abs(z) < 5), z


@pytest.mark.parametrize("scheme", ["MYULA", "P-ULA", "forward-backward"])
def test_adjusted_kernel_is_in_detailed_balance(scheme):
    """log pi(x) q(x, y) a(x, y) is symmetric, for random pairs."""
    with jax.enable_x64(True):
        smooth, g = lambda x: jnp.sum(x**4) / 4, L1(0.8)
        smooth = None if scheme == "P-ULA" else smooth
        T, h = 1.3, 0.4
        kernel = proximal_mala(smooth, g, h, 0.3 if scheme == "MYULA" else None, T, scheme=scheme)
        log_pi = lambda x: -((0.0 if smooth is None else smooth(x)) + g(x)) / T

        def log_flux(x, y):
            state = kernel.init(x)
            xi = (y - x - state.drift) / jnp.sqrt(2 * T * h)
            new, info = kernel.move(state, (xi, jnp.asarray(1e-300)))
            np.testing.assert_allclose(new.position, y, rtol=1e-10)
            return log_pi(x) - jnp.sum(xi**2) / 2 + jnp.log(info.acceptance)

        for x, y in jax.random.normal(jax.random.key(2), (5, 2, 3), jnp.float64):
            np.testing.assert_allclose(log_flux(x, y), log_flux(y, x), rtol=1e-9)


def test_adjusted_chains_reach_a_truncated_law(key):
    """A half normal, through the indicator: mean sqrt(2/pi), second moment 1."""
    kernel = proximal_mala(lambda x: jnp.sum(x**2) / 2, nonnegative(), 0.5, 0.5)
    seen = run_chains(
        kernel,
        jnp.full((400, 1), 0.5),
        2000,
        key=key,
        save_every=2,
        keep=False,
        observe=lambda x: jnp.stack([x[0], x[0] ** 2]),
    )
    error = np.sqrt(np.asarray(seen.stats.variance) / np.asarray(seen.stats.ess))
    z = (np.asarray(seen.stats.mean) - np.asarray([np.sqrt(2 / np.pi), 1.0])) / error
    assert np.all(np.abs(z) < 5), z


def test_proximal_gradient_stays_in_the_domain_and_on_the_kink(key):
    kernel = proximal(lambda x: jnp.sum(x**2) / 2, nonnegative(), 0.05, scheme="proximal-gradient")
    out = run(kernel, jnp.ones(4), 300, key=key, stats=False)
    assert float(out.samples.min()) == 0
    kernel = proximal(lambda x: jnp.sum(x**2) / 2, L1(3.0), 0.05, scheme="proximal-gradient")
    zeros = jnp.mean(run(kernel, jnp.ones(4), 300, key=key, stats=False).samples == 0)
    assert 0.05 < float(zeros) < 0.95


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_lanes_and_dtype(dtype, key):
    """A move of three chains at once is a move of each."""
    with jax.enable_x64(dtype == jnp.float64):
        x0 = jax.random.normal(jax.random.key(3), (4, 2, 3), dtype) / 2
        smooth = lambda x: jnp.sum(x**2) / 2
        kernels = [proximal(smooth, g, 0.1, 0.2) for g in (GroupL2(), TotalVariation(0.5, 5))]
        kernels += [proximal(smooth, Ball(), 0.1, scheme="proximal-gradient"), proximal_mala(smooth, L1(), 0.1, 0.2)]

        def moved(kernel, x, lanes):
            state = kernel.init(x)
            return kernel.move(state, kernel.draw(key, x[..., 0] if jnp.ndim(lanes) else x, lanes))[0]

        for kernel in kernels:
            many = jax.jit(lambda x, k=kernel: moved(over_lanes(k), x, jnp.arange(3)))(x0)
            one = jax.jit(lambda x, k=kernel: moved(k, x, 1))(x0[..., 1])
            for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
                assert a.dtype == b.dtype == dtype
                np.testing.assert_allclose(a[..., 1], b, rtol=2e-5 if dtype == jnp.float32 else 1e-12, atol=1e-6)


def walk(kernel, x, key, n):
    step = lambda state, k: (kernel.step(jax.random.fold_in(key, k), state)[0], None)
    return jax.lax.scan(step, kernel.init(x), jnp.arange(n))[0].position


def test_gradient_through_chains_is_a_finite_difference(key):
    """In step size, smoothing, weight and temperature at once, common noise."""
    with jax.enable_x64(True):
        x0 = jnp.asarray([0.9, -0.4, 1.7])

        def end(p, kernel):
            smooth = lambda x: jnp.sum(jnp.cosh(x))
            if kernel == "tv":
                x, g = jnp.outer(x0, x0), TotalVariation(p[2], 4)
            else:
                x, g = x0, L1(p[2])
            scheme = "forward-backward" if kernel == "fb" else "MYULA"
            k = proximal(smooth, g, p[0], None if kernel == "fb" else p[1], p[3], scheme=scheme)
            return jnp.sum(walk(k, x, key, 20) ** 2)

        p, v = jnp.asarray([0.05, 0.2, 0.6, 0.9]), jnp.asarray([0.3, -0.2, 0.5, 0.4])
        for kernel in ("l1", "tv", "fb"):
            value = jax.jit(lambda p, kernel=kernel: end(p, kernel))
            step = 1e-6
            finite = (value(p + step * v) - value(p - step * v)) / (2 * step)
            slope = jax.grad(value)(p) @ v
            np.testing.assert_allclose(slope, finite, rtol=1e-5)


def test_errors():
    smooth = lambda x: jnp.sum(x**2)
    with pytest.raises((ValueError, TypeError), match="scheme"):
        proximal(smooth, L1(), 0.1, scheme="ULA")
    with pytest.raises(ValueError, match="smoothing is lambda"):
        proximal(smooth, L1(), 0.1)
    with pytest.raises(ValueError, match="smoothing is lambda"):
        proximal(smooth, L1(), 0.1, 0.1, scheme="forward-backward")
    with pytest.raises(ValueError, match="whole energy"):
        proximal(smooth, L1(), 0.1, scheme="P-ULA")
    with pytest.raises(ValueError, match="no density"):
        proximal_mala(smooth, L1(), 0.1, scheme="proximal-gradient")
    with pytest.raises((ValueError, TypeError), match="nonsmooth"):
        proximal(smooth, smooth, 0.1, 0.1).init(jnp.ones(2))
    with pytest.raises(ValueError, match="not finite"):
        proximal_mala(smooth, nonnegative(), 0.1, 0.1).init(-jnp.ones(2))
    with pytest.raises(ValueError, match="lower < upper"):
        Box(1.0, 0.0)
    with pytest.raises(ValueError, match="iterations"):
        TotalVariation(1.0, 0)
    with pytest.raises(ValueError, match="weight must be"):
        L1(-1.0)
