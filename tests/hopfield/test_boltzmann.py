"""Monotone Boltzmann machines: one solution, its equations, weak couplings by enumeration, gradients, errors."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import Failure
from physml.hopfield.learning.boltzmann import MonotoneBoltzmann, monotone_boltzmann, proximal, softmax

SIZES = (2, 2, 3, 5, 2)


def machine(scale, dtype=jnp.float64):
    m = monotone_boltzmann(SIZES, key=jax.random.key(0), scale=scale, margin=0.1)
    m = eqx.tree_at(lambda m: m.bias, m, jax.random.normal(jax.random.key(1), (sum(SIZES),)))
    return jax.tree.map(lambda a: a.astype(dtype), m)


def test_one_solution_from_every_start():
    with jax.enable_x64(True):
        m = machine(5.0)
        phi = m.couplings()
        assert np.linalg.eigvalsh(np.eye(len(phi)) - phi)[0] >= 0.1 - 1e-12
        assert float(jnp.max(jnp.abs(phi))) > 0.25
        solve = jax.jit(jax.vmap(lambda y: m.mean_field(start=softmax(SIZES, y))))
        out = solve(3 * jax.random.normal(jax.random.key(2), (6, sum(SIZES))))
        out.check()
        np.testing.assert_allclose(out.q, jnp.broadcast_to(out.q[:1], out.q.shape), atol=1e-9)
        np.testing.assert_allclose(out.q[0], softmax(SIZES, phi @ out.q[0] + m.bias), atol=1e-9)
        # The free energy is lowest there, among states a little apart.
        near = lambda k: softmax(SIZES, jnp.log(out.q[0]) + 0.1 * jax.random.normal(k, (sum(SIZES),)))
        others = jax.vmap(lambda k: m.free_energy(near(k)))(jax.random.split(jax.random.key(3), 20))
        assert (others > m.free_energy(out.q[0])).all()


def test_layers_and_what_does_not_count():
    """Only connected variables couple; couplings inside a variable and equal ones of all its states change nothing."""
    with jax.enable_x64(True):
        layers = np.array([0, 0, 1, 1, 2])
        connected = np.abs(layers[:, None] - layers[None, :]) == 1
        m = monotone_boltzmann(SIZES, key=jax.random.key(0), scale=3.0, connected=connected)
        owner = np.repeat(np.arange(5), SIZES)
        phi = np.asarray(m.couplings())
        np.testing.assert_array_equal(phi[~connected[owner][:, owner]], 0)
        assert abs(np.linalg.eigvalsh(phi)[-1] - 0.9) < 1e-12  # scaled to the bound, no further
        inside = 2.0 * (owner[:, None] == owner[None, :])
        same = np.where(owner[:, None] == 3, np.random.default_rng(0).normal(size=(1, sum(SIZES))), 0.0)
        other = eqx.tree_at(lambda m: m.weights, m, m.weights + inside + same)
        np.testing.assert_allclose(other.couplings(), phi, atol=1e-12)
        assert abs(monotone_boltzmann(SIZES, key=jax.random.key(0), scale=0.1).couplings()).max() > 0.01


def test_blocks_beyond_the_bound_can_have_several_solutions():
    # Two variables that like to agree, by couplings that the parametrisation would not allow.
    phi = jnp.kron(jnp.asarray([[0.0, 1.0], [1.0, 0.0]]), 4 * jnp.eye(2))
    iterate = lambda q: jax.lax.fori_loop(0, 200, lambda _, q: softmax((2, 2), phi @ q), q)
    up, down = (iterate(jnp.asarray(q)) for q in ([0.9, 0.1, 0.9, 0.1], [0.1, 0.9, 0.1, 0.9]))
    assert float(jnp.max(jnp.abs(up - down))) > 0.5


def test_weak_couplings_are_the_exact_marginals():
    with jax.enable_x64(True):
        errors = []
        for scale in (0.2, 0.1):
            m = machine(scale)
            phi, bias = np.asarray(m.couplings()), np.asarray(m.bias)
            eyes = [np.eye(n) for n in SIZES]
            states = np.stack([np.concatenate(x) for x in itertools.product(*eyes)])
            log = 0.5 * np.einsum("si,ij,sj->s", states, phi, states) + states @ bias
            p = np.exp(log - log.max())
            errors.append(np.max(np.abs(p / p.sum() @ states - m.mean_field().check().q)))
        # Mean field errs in second order of the couplings.
        assert errors[0] < 1e-3 and errors[1] < errors[0] / 3.5


def test_proximal_map_and_its_derivative():
    with jax.enable_x64(True):
        y = 4 * jax.random.normal(jax.random.key(4), (sum(SIZES),))
        for alpha in (1.0, 0.3, 0.05):
            q = proximal(SIZES, y, jnp.asarray(alpha))
            # alpha ln q + (1 - alpha) q - y is the same for all states of a variable, as far as q can be told from 0.
            left = np.asarray(alpha * jnp.log(q) + (1 - alpha) * q - y)
            for states in np.split(np.where(q > 1e-100, left, np.nan), np.cumsum(SIZES)[:-1]):
                assert np.nanmax(states) - np.nanmin(states) < 1e-9
        np.testing.assert_allclose(proximal(SIZES, y, jnp.ones(())), softmax(SIZES, y), atol=1e-12)
        f = lambda y, a: jnp.sum(proximal(SIZES, y, jnp.asarray(a)) ** 2)
        to_y, to_a = jax.grad(f, (0, 1))(y, jnp.asarray(0.3))
        v = jax.random.normal(jax.random.key(5), y.shape)
        h = 1e-6
        np.testing.assert_allclose(to_y @ v, (f(y + h * v, 0.3) - f(y - h * v, 0.3)) / (2 * h), rtol=1e-6)
        np.testing.assert_allclose(to_a, (f(y, 0.3 + h) - f(y, 0.3 - h)) / (2 * h), rtol=1e-5)


def test_clamped_variables_and_gradients():
    with jax.enable_x64(True):
        m = machine(2.0)
        clamped = jnp.asarray([True, False, False, True, False])
        values = softmax(SIZES, 20 * jax.random.normal(jax.random.key(6), (sum(SIZES),)))

        @jax.jit
        @jax.value_and_grad
        def loss(m):
            q = m.mean_field(clamped, values, tol=1e-13).q
            return jnp.sum(jnp.log(q) * jnp.arange(len(q), dtype=q.dtype))

        held = np.repeat(np.asarray(clamped), SIZES)
        np.testing.assert_array_equal(m.mean_field(clamped, values).q[held], values[held])
        _, slope = loss(m)
        move = jax.tree.map(lambda a: jax.random.normal(jax.random.key(7), a.shape), m)
        shift = lambda h: jax.tree.map(lambda a, v: a + h * v, m, move)
        along = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(move), strict=True))
        h = 1e-5
        np.testing.assert_allclose(along, (loss(shift(h))[0] - loss(shift(-h))[0]) / (2 * h), rtol=1e-6)


def test_precision_errors_and_status():
    m = machine(2.0, jnp.float32)
    out = m.mean_field().check()
    assert out.q.dtype == jnp.float32 and abs(float(out.q[:2].sum()) - 1) < 1e-6
    with pytest.raises(Failure):
        m.mean_field(max_steps=1).check()
    with pytest.raises(ValueError, match="states"):
        MonotoneBoltzmann(m.weights, m.bias, (2, 1, 11))
    with pytest.raises(ValueError, match="margin"):
        MonotoneBoltzmann(m.weights, m.bias, SIZES, margin=1.5)
    with pytest.raises(ValueError, match="expected"):
        MonotoneBoltzmann(m.weights[:, 1:], m.bias, SIZES)
    with pytest.raises(ValueError, match="step"):
        m.mean_field(step=2.0)
    with pytest.raises(ValueError, match="together"):
        m.mean_field(clamped=jnp.zeros(5, bool))
    with pytest.raises(ValueError, match="connected"):
        monotone_boltzmann(SIZES, key=jax.random.key(0), connected=np.ones((2, 2), bool))
