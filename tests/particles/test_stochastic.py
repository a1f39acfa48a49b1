"""Minibatch kernels: unbiased gradients, stationary laws from the discrete Lyapunov equation, mean-field blocks."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov

from physml.particles import MinibatchEnergy, sghmc, sgld, structured
from physml.particles.chains.run import run_chains
from physml.particles.kernels.base import over_lanes
from physml.particles.kernels.underdamped import underdamped

Z = np.random.default_rng(0).normal(size=12) + 0.5


def quadratic(batch_size, a=0.3, dtype=jnp.float64, **more):
    term = lambda x, z: a * jnp.sum((x - z) ** 2) / 2
    return MinibatchEnergy(term, jnp.asarray(Z, dtype), batch_size, lambda x: 0.2 * jnp.sum(jnp.cosh(x)), **more)


@pytest.mark.parametrize("control", [False, True])
def test_gradient_is_unbiased_with_the_covariance_it_should_have(control):
    """Over all batches of two, with replacement; no noise at the control, and the curvature there too."""
    with jax.enable_x64(True):
        term = lambda x, z: jnp.sum(jnp.cos(x * z)) + z * jnp.sum(x**2)
        c = jnp.asarray([0.3, -0.7])
        data = jnp.asarray(Z[:4])
        energy = MinibatchEnergy(term, data, 2, lambda x: jnp.sum(x**4), control=c if control else None)
        x = jnp.asarray([0.5, 0.1])
        batches = jnp.asarray(list(itertools.product(range(4), repeat=2)))
        draws = jax.vmap(lambda b: jax.grad(energy.estimate)(x, b))(batches)
        np.testing.assert_allclose(draws.mean(0), jax.grad(energy.__call__)(x), rtol=1e-12)
        slopes = jax.vmap(lambda z: jax.grad(term)(x, z) - (jax.grad(term)(c, z) if control else 0.0))(data)
        np.testing.assert_allclose(np.cov(draws.T, ddof=0), 16 / 2 * np.cov(slopes.T, ddof=0), rtol=1e-10)
        if control:
            there = jax.vmap(lambda b: jax.grad(energy.estimate)(c, b))(batches)
            np.testing.assert_allclose(there, np.broadcast_to(jax.grad(energy.__call__)(c), there.shape), rtol=1e-12)


def affine(kernel, batch):
    """Matrix, offset and noise matrix of a move that is affine in the state and the noise."""
    flat = lambda state: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(state)])
    n = 1 if kernel.friction is None else 2
    count = max(1, kernel.scheme.count("O"))

    def move(s, xi):
        state = kernel.init(s[:1]) if n == 1 else kernel.init(s[:1], momentum=s[1:])
        return flat(kernel.move(state, (tuple(xi[:, None]), batch))[0])

    zero, xi = jnp.zeros(n), jnp.zeros(count)
    return jax.jacobian(move)(zero, xi), move(zero, xi), jax.jacobian(move, 1)(zero, xi)


def exact_covariance(build, a, n):
    """Of (x, p): the Lyapunov equation with the normals and the scatter of the offsets over single data."""
    energy = MinibatchEnergy(lambda x, z: a * jnp.sum((x - z) ** 2) / 2, jnp.asarray(Z), n)
    kernel = build(energy)
    rows = [affine(kernel, jnp.full(n, i, jnp.int32)) for i in range(len(Z))]
    offsets = np.stack([b for _, b, _ in rows])
    m, _, g = (np.asarray(part) for part in rows[0])
    return solve_discrete_lyapunov(m, g @ g.T + np.cov(offsets.T, ddof=0).reshape(m.shape) / n)


def test_docstring_variance_of_sgld():
    with jax.enable_x64(True):
        a, n, h, T, N = 0.3, 3, 0.07, 0.8, len(Z)
        want = (2 * T * h + h**2 * a**2 * N**2 * Z.var() / n) / (1 - (1 - N * a * h) ** 2)
        got = exact_covariance(lambda e: sgld(e, h, T), a, n)
        np.testing.assert_allclose(got, [[want]], rtol=1e-12)


@pytest.mark.parametrize("scheme", ["sgld", "euler", "BAOAB", "OBABO"])
def test_chains_have_the_exact_covariance(scheme, key):
    a, n, h = 0.3, 2, 0.1
    build = lambda e: sgld(e, h) if scheme == "sgld" else sghmc(e, h, 1.5, scheme=scheme)
    with jax.enable_x64(True):
        want = exact_covariance(build, a, n)[0, 0]
    energy = MinibatchEnergy(lambda x, z: a * jnp.sum((x - z) ** 2) / 2, jnp.asarray(Z, jnp.float32), n)
    out = run_chains(
        build(energy),
        jnp.full((500, 1), Z.mean()),
        1500,
        key=key,
        save_every=3,
        keep=False,
        observe=lambda x: (x - Z.mean()) ** 2,
    )
    error = np.sqrt(out.stats.variance[0] / out.stats.ess[0])
    # The start at the mean, at rest, is forgotten at 1 % of the run.
    assert abs(out.stats.mean[0] - want) < 5 * error + 0.01 * want
    assert abs(want - 1 / (len(Z) * a)) > 10 * error


def test_all_data_in_every_batch_is_the_kernel_without_batches(key):
    """With one epoch of one batch, the splitting is that of `underdamped`."""
    with jax.enable_x64(True):
        energy = quadratic(len(Z))
        x, p, xi, eta = jax.random.normal(key, (4, 3), jnp.float64)
        batch = jnp.arange(len(Z), dtype=jnp.int32)
        for scheme, noise, pair in (("BAOAB", (xi,), (xi,)), ("OBABO", (xi, eta), (eta, xi))):
            ours, theirs = sghmc(energy, 0.1, 0.8, 0.7, scheme), underdamped(energy, 0.1, 0.8, 0.7, scheme)
            got = ours.move(ours.init(x, momentum=p), (pair, batch))[0]
            want = theirs.move(theirs.init(x, momentum=p), noise)[0]
            np.testing.assert_allclose(got.position, want.position, rtol=1e-11)
            np.testing.assert_allclose(got.momentum, want.momentum, rtol=1e-11)


def test_an_epoch_visits_every_datum_once(key):
    kernel = sgld(quadratic(3, dtype=jnp.float32), 0.01, shuffle=True)
    xi, order = kernel.draw(key, jnp.zeros(2), jnp.arange(5))
    assert xi[0].shape == (4, 2, 5) and order.shape == (4, 3, 5)
    np.testing.assert_array_equal(np.sort(order.reshape(12, 5), axis=0), np.tile(np.arange(12)[:, None], 5))
    one = kernel.draw(key, jnp.zeros(2), 3)
    np.testing.assert_array_equal(one[1], order[..., 3])
    many = over_lanes(kernel).move(over_lanes(kernel).init(jnp.ones((2, 5))), (xi, order))[0].position[:, 3]
    np.testing.assert_allclose(kernel.move(kernel.init(jnp.ones(2)), one)[0].position, many, rtol=1e-5)


@pytest.mark.slow
def test_structured_blocks_are_independent_with_their_own_precision(key):
    """Precision [[2, 1.2, 0.3], [1.2, 1.5, 0.2], [0.3, 0.2, 1]], blocks {0}, {1, 2}."""
    precision = jnp.asarray([[2.0, 1.2, 0.3], [1.2, 1.5, 0.2], [0.3, 0.2, 1.0]])
    shift = jnp.asarray([0.4, -0.2, 1.0])
    energy = MinibatchEnergy(lambda x, z: (x - z) @ precision @ (x - z) / 2, shift[None], 1)
    kernel = structured(energy, jnp.asarray([0, 1, 1]), 0.01, memory=100, every=60)
    out = run_chains(kernel, jnp.broadcast_to(shift, (200, 3)), 12000, key=key, save_every=60)
    x = np.asarray(out.samples)[100:].reshape(-1, 3)
    want = np.zeros((3, 3))
    want[0, 0], want[1:, 1:] = 1 / 2.0, np.linalg.inv(np.asarray(precision)[1:, 1:])
    # One random block a move makes steps of 2h in it: a bias of a few per cent; the true covariance is far.
    np.testing.assert_allclose(np.cov(x.T), want, atol=0.04)
    assert np.abs(np.linalg.inv(precision) - want).max() > 0.3
    np.testing.assert_allclose(x.mean(0), shift, atol=0.05)
    free = structured(energy, jnp.asarray([0, 1, 1]), 0.01, keep=1.0)
    noise = free.draw(key, shift, 0)
    plain = sgld(energy, 0.01)
    np.testing.assert_allclose(
        free.move(free.init(shift), noise)[0].position,
        plain.move(plain.init(shift), ((noise[0],), noise[1]))[0].position,
        rtol=1e-6,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_and_gradient_through_a_chain(dtype, key):
    with jax.enable_x64(dtype == jnp.float64):
        x0 = jnp.asarray([0.4, -0.3], dtype)

        @eqx.filter_jit
        def end(p, control):
            energy = quadratic(3, dtype=dtype, control=x0 if control else None)
            kernel = sghmc(energy, p[0], p[1], p[2])
            step = lambda state, k: (kernel.step(jax.random.fold_in(key, k), state)[0], None)
            return jnp.sum(jax.lax.scan(step, kernel.init(x0), jnp.arange(15))[0].position ** 2)

        p, v = jnp.asarray([0.1, 0.7, 0.9], dtype), jnp.asarray([0.3, -0.5, 0.4], dtype)
        assert end(p, False).dtype == dtype
        if dtype == jnp.float64:
            for control in (False, True):
                finite = (end(p + 1e-6 * v, control) - end(p - 1e-6 * v, control)) / 2e-6
                np.testing.assert_allclose(jax.grad(end)(p, control) @ v, finite, rtol=1e-6)


def test_errors():
    energy = quadratic(5, dtype=jnp.float32)
    with pytest.raises(ValueError, match="divides the 12 data"):
        sgld(energy, 0.1, shuffle=True)
    with pytest.raises((ValueError, TypeError), match="energy"):
        sgld(lambda x: x, 0.1)
    with pytest.raises(ValueError, match="at most the 12 data"):
        sgld(quadratic(13, dtype=jnp.float32), 0.1)
    with pytest.raises((ValueError, TypeError), match="scheme"):
        sghmc(energy, 0.1, scheme="ABBA")
    with pytest.raises(ValueError, match="friction must be positive"):
        sghmc(energy, 0.1, 0.0)
    with pytest.raises(ValueError, match="batch_size must be an integer"):
        quadratic(0, dtype=jnp.float32)
    with pytest.raises(ValueError, match="keep must be"):
        structured(energy, jnp.asarray([0, 1]), 0.1, keep=0.0)
