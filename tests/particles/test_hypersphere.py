"""Hyperspherical energies in both representations, and minima that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.particles.matter.hypersphere import hyperspherical_energy, thomson


def direct(x, s, half_space):
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    i, j = np.triu_indices(len(x), 1)
    phi = lambda r: -jnp.log(r) if s == 0 else r**-s
    out = phi(jnp.linalg.norm(x[i] - x[j], axis=1))
    return jnp.sum(out + phi(jnp.linalg.norm(x[i] + x[j], axis=1)) if half_space else out)


@pytest.mark.parametrize(("d", "s", "half_space"), [(3, 1.0, True), (3, 0.0, False), (7, 2.0, True), (7, 0.0, False)])
def test_energy_and_gradient_written_out(d, s, half_space):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (6, d), jnp.float64)
        ours = lambda x: hyperspherical_energy(x, s, half_space=half_space)
        both = jax.jit(lambda x: [jax.value_and_grad(f)(x) for f in (ours, lambda x: direct(x, s, half_space))])
        got, want = both(x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), got, want)
        # Lengths do not matter: the slope along x is zero.
        np.testing.assert_allclose(jnp.sum(got[1] * x, axis=1), 0, atol=1e-9)


def test_float32_and_coincident_directions():
    x = jnp.concatenate([jnp.eye(6), 2 * jnp.eye(6)[:1]]) + 0.1
    x = x.at[6].set(3 * x[0])
    value, slope = jax.jit(jax.value_and_grad(hyperspherical_energy))(x)
    assert value.dtype == jnp.float32
    assert bool(jnp.isfinite(value)) and bool(jnp.isfinite(slope).all())


def test_simplex_and_octahedron():
    x = jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    np.testing.assert_allclose(hyperspherical_energy(x), 12 / 2**0.5 + 3 / 2, rtol=1e-6)
    np.testing.assert_allclose(hyperspherical_energy(jnp.eye(5), 2.0), 10 / 2, rtol=1e-6)


def test_thomson_finds_the_octahedron():
    x, energy = thomson(6, key=jax.random.key(0), chains=4).check()
    assert x.shape == (4, 6, 3) and energy.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(x, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(jnp.min(energy), 12 / 2**0.5 + 3 / 2, rtol=1e-6)
    gram = jnp.sort((x[0] @ x[0].T).ravel())
    np.testing.assert_allclose(gram[:6], -1, atol=1e-3)  # every point has its opposite


def test_errors():
    with pytest.raises(ValueError, match="s must"):
        hyperspherical_energy(jnp.eye(3), -1.0)
    with pytest.raises(ValueError, match="two directions"):
        hyperspherical_energy(jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="at least 2"):
        thomson(1, key=jax.random.key(0))
