"""Pair energies against sums written out, their derivatives, and what they close over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.particles import RandomBatch
from physml.particles.energies.pair_energy import PairEnergy

log_gas = lambda x, y: -0.5 * jnp.log(jnp.sum((x - y) ** 2))
gauss = lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2)) * (1 + jnp.sum(x * y))


def direct(phi, x):
    i, j = np.triu_indices(len(x), 1)
    return jnp.sum(jax.vmap(phi)(x[i], x[j]))


@pytest.mark.parametrize("phi", [log_gas, gauss], ids=["singular", "smooth"])
def test_value_gradient_and_curvature_are_those_of_the_sum(phi):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (11, 2), jnp.float64)
        v = jax.random.normal(jax.random.key(1), (11, 2), jnp.float64)

        @jax.jit
        def both(x, v):
            return [
                (*jax.value_and_grad(f)(x), jax.jvp(jax.grad(f), (x,), (v,))[1])
                for f in (PairEnergy(phi), lambda x: direct(phi, x))
            ]

        got, want = both(x, v)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), got, want)


def test_lanes_and_float32():
    x = jax.random.normal(jax.random.key(2), (9, 2, 4))
    lanes = lambda f: jax.jit(jax.vmap(jax.value_and_grad(f), -1, -1))(x)
    got, want = lanes(PairEnergy(log_gas)), lanes(lambda x: direct(log_gas, x))
    assert got[0].dtype == jnp.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), got, want)


def test_derivatives_reach_what_the_kernel_closes_over():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(3), (7, 3), jnp.float64)
        power = lambda s: lambda x, y: jnp.sum((x - y) ** 2) ** (-s / 2)
        by_energy = lambda s, x: PairEnergy(power(s))(x)
        by_sum = lambda s, x: direct(power(s), x)
        s = jnp.asarray([0.7, 2.0])

        @jax.jit
        def derivatives(s, x):
            out = []
            for f in (by_energy, by_sum):
                many = jax.vmap(jax.grad(f, (0, 1)), (0, None))(s, x)
                out.append((jax.grad(f)(s[0], x), jax.jacfwd(jax.grad(f, 1))(s[0], x), many))
            return out

        got, want = derivatives(s, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), got, want)
        np.testing.assert_allclose(jax.grad(by_energy)(s[0], x), want[0], rtol=1e-10)  # not compiled, as well


def test_coincident_particles():
    x = jnp.zeros((2, 2))
    assert float(jax.jit(PairEnergy(gauss))(x)) == 1.0
    value, slope = jax.jit(jax.value_and_grad(PairEnergy(log_gas)))(x)
    assert float(value) == 0.0 and not bool(slope.any())


def test_positions_computed_in_the_same_program():
    # Rows and columns of pairs may round their coordinates differently; no particle must meet itself.
    @jax.jit
    def moved(x, p, t):
        y = (x + t * p) * (1 + t)
        return y, jax.vmap(jax.value_and_grad(PairEnergy(log_gas)), -1, -1)(y)

    x, p = jax.random.normal(jax.random.key(5), (2, 21, 2, 16))
    y, got = moved(x, p, jnp.asarray(0.37))
    want = jax.jit(jax.vmap(jax.value_and_grad(lambda x: direct(log_gas, x)), -1, -1))(y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-2), got, want)


def test_errors():
    x = jnp.ones((3, 2)) * jnp.arange(3.0)[:, None]
    with pytest.raises(ValueError, match="symmetric"):
        PairEnergy(lambda x, y: x[0] * y[1] ** 2)(x + 1 + x**2 * jnp.asarray([[0.0, 1.0]]))
    with pytest.raises(ValueError, match="scalar"):
        PairEnergy(lambda x, y: x - y)(x)
    with pytest.raises(ValueError, match="points"):
        PairEnergy(gauss)(x[0])
    with pytest.raises(ValueError, match="backend must be AllPairs"):
        PairEnergy(gauss, RandomBatch(2))
