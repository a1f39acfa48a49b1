"""Mean-field dynamics, games and consensus against what is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import Failure
from physml.particles import (
    Feature,
    Game,
    Histogram,
    PairSum,
    Particles,
    Players,
    RandomBatch,
    anchored_best_response,
    averaged_gradient,
    consensus,
    consensus_point,
    consensus_point_gaussian,
    descent_ascent,
    exploitability,
    first_variation,
    gaussian_limit,
    gibbs_equilibrium,
    interacting,
    mean_field_langevin,
    mean_square_rate,
    run,
    run_chains,
    stationary_covariance,
    underdamped_mean_field,
)
from physml.particles.theory.linear import linear_map, mckean_vlasov_variance

A, KAPPA, T = 0.6, 1.4, 0.8


def functional(measure):
    square, mean = measure.expect(lambda x: jnp.sum(x**2)), measure.expect(lambda x: x)
    return 0.5 * A * square + 0.5 * KAPPA * (square - jnp.sum(mean**2))


def test_first_variation():
    """Of a quadratic functional by hand; its average over the measure vanishes; its gradient drives the particles."""
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (5, 2))
        measure = Particles(x)
        variation = first_variation(functional, measure)
        z = jnp.asarray([0.3, -1.2])
        mean, square = x.mean(0), (x**2).sum(1).mean()
        raw = lambda z: 0.5 * (A + KAPPA) * jnp.sum(z**2) - KAPPA * jnp.sum(z * mean)
        average = 0.5 * (A + KAPPA) * square - KAPPA * jnp.sum(mean**2)
        np.testing.assert_allclose(variation(z), raw(z) - average, rtol=1e-12)
        np.testing.assert_allclose(measure.expect(variation), 0.0, atol=1e-12)
        kernel = mean_field_langevin(functional, 0.01, 0.0)
        moved, _ = kernel.move(kernel.init(x), jnp.zeros_like(x))
        np.testing.assert_allclose(moved.position, x - 0.01 * jax.vmap(jax.grad(variation))(x), rtol=1e-12)


@pytest.mark.parametrize("particles", [1, 3, 10])
def test_finite_n_law(particles):
    """The discrete Lyapunov equation of the kernel tends to the closed form at every N as h -> 0."""
    with jax.enable_x64(True):
        law = lambda h: stationary_covariance(mean_field_langevin(functional, h, T), jnp.zeros((particles, 1)))[0, 0]
        exact = mckean_vlasov_variance(particles, A, KAPPA, T)
        extrapolated = 2 * law(5e-4) - law(1e-3)
        np.testing.assert_allclose(extrapolated, exact, rtol=1e-6)
        h = 0.2
        discrete = T / (particles * A * (1 - A * h / 2)) + (1 - 1 / particles) * T / (
            (A + KAPPA) * (1 - (A + KAPPA) * h / 2)
        )
        np.testing.assert_allclose(law(h), discrete, rtol=1e-10)


def test_covariance_recursion_of_n_ula():
    """Iterating Sigma <- A Sigma A^T + B B^T from zero reaches the doubled sum, to 1e-6 of it and better."""
    with jax.enable_x64(True):
        kernel = underdamped_mean_field(functional, 0.1, 0.9, T)
        a, b = linear_map(kernel, jnp.zeros((3, 1)))
        cov = jax.lax.fori_loop(0, 4000, lambda _, s: a @ s @ a.T + b @ b.T, jnp.zeros_like(a))
        np.testing.assert_allclose(stationary_covariance(kernel, jnp.zeros((3, 1))), cov, rtol=1e-9, atol=1e-12)
        slope = jax.grad(
            lambda h: stationary_covariance(underdamped_mean_field(functional, h, 0.9, T), jnp.zeros((2, 1)))[0, 0]
        )
        law = lambda h: stationary_covariance(underdamped_mean_field(functional, h, 0.9, T), jnp.zeros((2, 1)))[0, 0]
        np.testing.assert_allclose(slope(0.1), (law(0.1 + 1e-5) - law(0.1 - 1e-5)) / 2e-5, rtol=1e-6)


def test_n_ula_simulated(key):
    kernel = underdamped_mean_field(functional, 0.3, 1.0, T)
    with jax.enable_x64(True):
        exact = stationary_covariance(underdamped_mean_field(functional, 0.3, 1.0, T), jnp.zeros((4, 1)))[0, 0]
    warm = run_chains(kernel, jnp.zeros((2048, 4, 1)), 100, key=key, save_every=100, stats=False).state
    out = run_chains(kernel, warm, 200, key=jax.random.key(1), keep=False, observe=lambda x: jnp.mean(x**2))
    error = float(jnp.sqrt(out.stats.variance / out.stats.ess))
    assert abs(float(out.stats.mean) - float(exact)) < 5 * error
    assert error < 0.01 * float(exact)


@pytest.mark.slow
@pytest.mark.parametrize("force", [Feature(lambda y: y, lambda x, m: m - x), PairSum(lambda x, y: y - x)])
def test_particles_follow_their_gaussian_limit(force, key):
    """One drift, simulated with many particles and solved with a Gaussian measure."""
    drift = lambda x, measure, key: -A * x + KAPPA * force(x, measure, key=key)
    h, steps, n = 0.01, 100, 2000
    out = run(
        interacting(drift, h, T), 2.0 + jax.random.normal(key, (n, 1)), steps, key=key, save_every=20, stats=False
    )
    means, covs = gaussian_limit(drift, jnp.asarray([2.0]), jnp.eye(1), jnp.linspace(0.0, 1.0, 51), temperature=T)
    x = np.asarray(out.samples)[:, :, 0]
    np.testing.assert_allclose(x.mean(1), means[10::10, 0], atol=5 / np.sqrt(n) + 0.02)
    np.testing.assert_allclose(x.var(1), covs[10::10, 0, 0], rtol=5 * np.sqrt(2 / n) + 0.02)
    exact = np.exp(-2 * (A + KAPPA)) * 1 + T / (A + KAPPA) * (1 - np.exp(-2 * (A + KAPPA)))
    np.testing.assert_allclose(covs[-1, 0, 0], exact, rtol=1e-5)


def test_random_batches_drive_particles(key):
    """Random partners, drawn anew at every step, keep the mean and thermalise deviations."""
    force = PairSum(lambda x, y: y - x, RandomBatch(2))
    drift = lambda x, measure, key: force(x, measure, key=key)
    x0 = jax.random.normal(key, (1000, 1)) + 1
    out = run(interacting(drift, 0.02, 0.0), x0, 300, key=key, save_every=100, stats=False)
    np.testing.assert_allclose(out.samples[-1].mean(), x0.mean(), atol=1e-4)
    assert float(out.samples[-1].var()) < 0.02 * float(x0.var())


def test_gradient_through_interacting_particles():
    with jax.enable_x64(True):
        x0 = jax.random.normal(jax.random.key(0), (6, 2))

        def last(strength):
            force = PairSum(lambda x, y: strength * (y - x) / (1 + jnp.sum((x - y) ** 2)))
            kernel = interacting(lambda x, m, key: force(x, m) - x, 0.1, 0.5)
            return jnp.sum(run(kernel, x0, 5, key=jax.random.key(1)).samples[-1] ** 3)

        np.testing.assert_allclose(jax.grad(last)(0.7), (last(0.7 + 1e-6) - last(0.7 - 1e-6)) / 2e-6, rtol=1e-7)


# ---- games

GAME = Game(
    lambda mu, nu: 0.9 * jnp.sum(mu.mean * nu.mean),
    lambda x: 0.5 * 1.0 * jnp.sum(x**2) / 0.3,
    lambda y: 0.5 * 1.5 * jnp.sum(y**2) / 0.3,
    0.3,
)


def test_gradients_of_a_game_are_those_of_its_variations():
    with jax.enable_x64(True):
        x, y = (jax.random.normal(jax.random.key(i), (4, 2)) for i in (0, 1))
        objective = lambda mu, nu: jnp.sum(mu.mean * nu.mean) + mu.expect(lambda z: jnp.sum(z**2)) ** 2 * nu.mean[0]
        game = Game(objective, lambda x: jnp.sum(x**2), lambda x: jnp.sum(x**2), 1.0)
        mu, nu = Particles(x), Particles(y)
        slopes = game.gradients(Players(x, y), mu, nu)
        np.testing.assert_allclose(slopes.x, jax.vmap(jax.grad(first_variation(lambda m: objective(m, nu), mu)))(x))
        np.testing.assert_allclose(slopes.y, jax.vmap(jax.grad(first_variation(lambda m: objective(mu, m), nu)))(y))


def test_equilibrium_and_exploitability():
    """Gaussians N(0, T/a), N(0, T/c); the exploitability of shifted ones in closed form."""
    grid = jnp.linspace(-5.0, 5.0, 401)[:, None]
    mu, nu = gibbs_equilibrium(GAME, grid, grid).check()
    with pytest.raises(Failure, match="gibbs_equilibrium: not_converged at iteration 3"):
        gibbs_equilibrium(GAME, grid, grid, max_steps=3).check()
    np.testing.assert_allclose(mu.expect(lambda x: jnp.sum(x**2)), 0.3, rtol=1e-4)
    np.testing.assert_allclose(nu.expect(lambda x: jnp.sum(x**2)), 0.2, rtol=1e-4)
    np.testing.assert_allclose(exploitability(GAME, mu, nu), 0.0, atol=1e-6)
    m = 0.7
    shifted = Histogram(jax.nn.softmax(-((grid[:, 0] - m) ** 2) / 0.6), grid)
    # max over nu gains b^2 m^2 / 2c; min over mu loses nothing; the confinement costs a m^2 / 2.
    expected = 0.9**2 * m**2 / (2 * 1.5) + m**2 / 2
    np.testing.assert_allclose(exploitability(GAME, shifted, nu), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["descent-ascent", "two scales", "averaged", "anchored"])
def test_players_reach_the_equilibrium(kind, key):
    kernel, moves = {
        "descent-ascent": (descent_ascent(GAME, 0.05), 300),
        "two scales": (descent_ascent(GAME, 0.05, 3.0), 300),
        "averaged": (averaged_gradient(GAME, 0.05, slots=4), 400),
        "anchored": (anchored_best_response(GAME, 0.05, 0.2, 10), 80),
    }[kind]
    start = Players(1.5 + jnp.zeros((300, 1)), -1.0 + jnp.zeros((300, 1)))
    see = lambda p: jnp.stack([jnp.mean(p.x), jnp.mean(p.y), jnp.var(p.x), jnp.var(p.y)])
    out = run(kernel, start, moves, key=key, observe=see, stats=False).check()
    late = np.asarray(out.samples[moves // 2 :]).mean(0)
    np.testing.assert_allclose(late[:2], 0.0, atol=0.1)
    fast = 3 if kind == "two scales" else 1
    np.testing.assert_allclose(late[2], 0.3 / (1 - 0.05 / 2), rtol=0.1)
    np.testing.assert_allclose(late[3], 0.2 / (1 - 1.5 * fast * 0.05 / 2), rtol=0.1)


@pytest.mark.slow
def test_gradient_through_a_game():
    with jax.enable_x64(True):
        start = Players(*(jax.random.normal(jax.random.key(i), (4, 1)) for i in (0, 1)))
        game = lambda b: Game(
            lambda mu, nu: b * jnp.sum(mu.mean * nu.mean), lambda x: jnp.sum(x**2), lambda y: jnp.sum(y**2), 0.5
        )
        for make in (descent_ascent, averaged_gradient, anchored_best_response):
            last = lambda b, make=make: jnp.sum(
                run(make(game(b), 0.1), start, 4, key=jax.random.key(2), stats=False).state.position.x ** 2
            )
            np.testing.assert_allclose(jax.grad(last)(0.8), (last(0.8 + 1e-6) - last(0.8 - 1e-6)) / 2e-6, rtol=1e-6)


# ---- consensus


def test_consensus_point_of_a_gaussian_swarm(key):
    """Against (I + alpha S H)^{-1} m, exact for infinitely many particles."""
    mean, cov, hessian, alpha = (
        jnp.asarray([0.8, -0.5]),
        jnp.asarray([[0.5, 0.2], [0.2, 0.3]]),
        jnp.diag(jnp.asarray([1.0, 2.0])),
        1.5,
    )
    x = jax.random.multivariate_normal(key, mean, cov, (40, 5000))
    energies = 0.5 * jnp.einsum("cni,ij,cnj->cn", x, hessian, x)
    points = jax.vmap(lambda a, b: consensus_point(a, b, alpha))(x, energies)
    exact = consensus_point_gaussian(mean, cov, hessian, alpha)
    z = (points.mean(0) - exact) / (points.std(0) / np.sqrt(40))
    assert float(jnp.max(jnp.abs(z))) < 5 and float(jnp.max(points.std(0))) < 0.02
    assert float(jnp.max(jnp.abs(consensus_point(x[0], energies[0].at[0].set(jnp.inf), alpha) - points[0]))) < 1e-2


@pytest.mark.parametrize("noise", ["isotropic", "anisotropic"])
def test_mean_square_rate(noise, key):
    """One step about a fixed consensus point grows the mean square by the rate: all weight on one particle."""
    dim, n = 4, 20000
    kernel = consensus(lambda x: jnp.sum(x**2), 0.1, 1e8, 1.3, 1.1, noise=noise)
    x = jax.random.normal(key, (n, dim)).at[0].set(0.0)
    state, _ = kernel.step(jax.random.key(1), kernel.init(x))
    growth = np.asarray(jnp.sum(state.position**2, 1))[1:]
    before = np.asarray(jnp.sum(x**2, 1))[1:]
    error = np.std(growth - float(mean_square_rate(kernel, dim)) * before) / np.sqrt(n)
    assert abs(growth.mean() - float(mean_square_rate(kernel, dim)) * before.mean()) < 5 * error


def test_options_of_consensus(key):
    """Memory pulls to the best point seen, a batch forms the point, truncated noise is bounded; all find a minimum."""
    energy = lambda x: jnp.sum((x - 0.5) ** 2) + 0.3 * jnp.sum(1 - jnp.cos(4 * (x - 0.5)))
    x0 = 3 * jax.random.normal(key, (8, 60, 3))
    for options in ({}, {"batch": 20}, {"memory": 0.5}, {"truncation": 0.5}, {"noise": "isotropic", "diffusion": 0.4}):
        kernel = consensus(energy, 0.05, 1e4, 1.0, **{"diffusion": 1.0, **options})
        out = run_chains(kernel, x0, 300, key=key, keep=False, stats=False)
        assert float(jnp.max(jnp.abs(out.state.consensus - 0.5))) < 0.2, options
        assert bool(jnp.all(out.state.best_energy <= jax.vmap(jax.vmap(energy))(out.state.position) + 1e-5))


def test_errors(key):
    with pytest.raises(ValueError, match="noise"):
        consensus(jnp.sum, noise="both")
    with pytest.raises(ValueError, match="batch"):
        consensus(jnp.sum, batch=9).init(jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="positions"):
        consensus(jnp.sum).init(jnp.zeros(4))
    with pytest.raises(ValueError, match="temperature"):
        mean_field_langevin(functional, 0.1, -1.0)
    with pytest.raises(ValueError, match="scalar"):
        mean_field_langevin(lambda m: m.mean, 0.1, 1.0).init(jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="slots"):
        averaged_gradient(GAME, 0.1, slots=0)
    with pytest.raises(ValueError, match="inner"):
        anchored_best_response(GAME, 0.1, inner=0)
    with pytest.raises(ValueError, match="players"):
        descent_ascent(GAME, 0.1).init(Players(jnp.zeros(3), jnp.zeros(3)))
