"""The simplex: exact means, energies of Gaussians in closed form, learned curves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import matching

MIXTURE = (
    np.array([0.4, 0.6]),
    np.array([[-1.0, 0.3], [0.8, -0.5]]),
    np.array([np.diag([0.2, 0.3]), np.diag([0.3, 0.1])]),
)


def _gaussian(variance):
    return np.ones(1), np.zeros((1, 2)), variance * np.eye(2)[None]


def _gaussians(*variances):
    """The means of centred isotropic Gaussians: g_k = a_k s_k x / sum_j a_j^2 s_j."""
    s = jnp.asarray(variances)
    return lambda a, x, args=None: (a * s.astype(x.dtype) / jnp.sum(a * a * s.astype(x.dtype)))[:, None] * x[None, :]


@pytest.mark.parametrize("x64", [False, True])
def test_exact_means(x64):
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        a, x = jnp.asarray([0.2, 0.5, 0.3], dtype), jnp.asarray([0.4, -0.7], dtype)
        g = matching.exact_means([_gaussian(1.0), MIXTURE, _gaussian(2.0)])(a, x)
        assert g.dtype == dtype
        np.testing.assert_allclose(a @ g, x, atol=1e-5)
        plain = matching.exact_means([_gaussian(1.0), _gaussian(3.0), _gaussian(2.0)])(a, x)
        np.testing.assert_allclose(plain, _gaussians(1.0, 3.0, 2.0)(a, x), rtol=1e-5)
        # On an edge from N(0, I) they are those of the straight path.
        t = 0.35
        edge = matching.along(matching.exact_means([_gaussian(1.0), MIXTURE]), matching.edge(2, 0, 1, dtype=dtype))
        v = matching.exact_fields(matching.linear(), None, tuple(jnp.asarray(p, dtype) for p in MIXTURE)).velocity
        np.testing.assert_allclose(edge(t, x), v(t, x), rtol=2e-4)


def test_energy_of_an_edge_between_gaussians():
    xs = jax.random.normal(jax.random.key(0), (2, 20_000, 2))
    energy = matching.transport_energy(_gaussians(1.0, 1.0), matching.edge(2, 0, 1), xs)
    # v = (2t - 1) x / (t^2 + (1 - t)^2): the integral is 2 - pi/2 in each coordinate.
    np.testing.assert_allclose(energy, 2 * (2 - np.pi / 2), rtol=0.03)


def test_a_wide_law_on_the_way_saves_the_energy():
    scale = jnp.sqrt(jnp.array([1.0, 1.0, 9.0]))[:, None, None]
    field = _gaussians(1.0, 1.0, 9.0)
    draw = lambda key: scale * jax.random.normal(key, (3, 256, 2))
    curve = matching.learn_curve(field, draw, 0, 1, key=jax.random.key(1), modes=3, steps=300)
    xs = draw(jax.random.key(2))
    # Two copies of one Gaussian: with a little of the wide one the width hardly changes, and little need move (nothing,
    # but for the square-root rise that the least curve has at its ends).
    assert float(matching.transport_energy(field, curve, xs)) < 0.15 * 2 * (2 - np.pi / 2)
    np.testing.assert_allclose(curve(jnp.asarray(0.0)), [1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(curve(jnp.asarray(1.0)), [0, 1, 0], atol=1e-5)
    assert float(jnp.min(jax.vmap(curve)(jnp.linspace(0, 1, 50)))) >= 0


@pytest.mark.slow
def test_the_minimum_of_the_loss_is_the_conditional_mean():
    xs = jnp.stack(
        [jax.random.normal(jax.random.key(0), (40_000, 1)), 2 * jax.random.normal(jax.random.key(1), (40_000, 1))]
    )
    exact = _gaussians(1.0, 4.0)
    loss = lambda e: matching.simplex_match(lambda a, x, args: (1 + e) * exact(a, x), xs, key=jax.random.key(2))
    slope = (loss(0.05) - loss(-0.05)) / 0.1
    assert abs(float(slope)) < 0.05
    assert min(float(loss(0.3)), float(loss(-0.3))) > float(loss(0.0)) + 0.01


def test_gradient_of_the_energy_in_the_curve():
    with jax.enable_x64(True):
        xs = jax.random.normal(jax.random.key(0), (3, 32, 2))

        def energy(c):
            curve = matching.Curve(jnp.full((2, 3), c), jnp.array([0.1, c, -0.2]), 0, 1)
            return matching.transport_energy(_gaussians(1.0, 2.0, 4.0), curve, xs)

        h = 1e-6
        np.testing.assert_allclose(jax.grad(energy)(0.3), (energy(0.3 + h) - energy(0.3 - h)) / (2 * h), rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="two laws or more"):
        matching.simplex_match(lambda a, x, args: x[None], jnp.zeros((1, 4, 2)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="must return"):
        matching.simplex_match(lambda a, x, args: x, jnp.zeros((2, 4, 2)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="different laws"):
        matching.edge(3, 1, 1)
    with pytest.raises(ValueError, match="one dimension"):
        matching.exact_means([_gaussian(1.0), (np.ones(1), np.zeros((1, 3)), np.eye(3)[None])])
