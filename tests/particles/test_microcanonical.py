"""Isokinetic dynamics: its Jacobian and its order by differentiation, its laws by closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_gradient, assert_refused, z_score

from physml.core import in_float64
from physml.particles import microcanonical, run, run_chains
from physml.particles.kernels.base import Evaluated
from physml.particles.kernels.microcanonical import isokinetic, turn


def _precision(d, seed=0):
    a = jax.random.normal(jax.random.key(seed), (d, d))
    return a @ a.T / d + 0.3 * jnp.eye(d)


class TestTurn:
    @pytest.mark.parametrize("d", [2, 3, 7])
    def test_delta_k_is_minus_the_log_jacobian_on_the_sphere(self, d):
        @in_float64
        def both(key):
            u, g = jax.random.normal(key, (2, d))
            u = u / jnp.linalg.norm(u)
            f = lambda v: turn(v / jnp.linalg.norm(v), 3 * g, jnp.asarray(0.7), 0)[0]
            new, K = turn(u, 3 * g, jnp.asarray(0.7), 0)
            # Orthonormal bases of both tangent spaces.
            base = lambda v: jnp.linalg.svd(v[None])[2][1:]
            J = base(new) @ jax.jacobian(f)(u) @ base(u).T
            return K, -jnp.log(jnp.abs(jnp.linalg.det(J))), jnp.linalg.norm(new)

        K, jacobian, norm = both(jax.random.key(d))
        np.testing.assert_allclose(K, jacobian, rtol=1e-5)
        np.testing.assert_allclose(norm, 1, rtol=1e-6)

    def test_it_is_the_flow_of_the_equation(self):
        u, g = jax.random.normal(jax.random.key(3), (2, 5))
        u = u / jnp.linalg.norm(u)

        def slope(v):
            return -(g - v * (v @ g)) / 4

        h = 1e-2
        new, _ = turn(u, g, jnp.asarray(h), 0)
        np.testing.assert_allclose((new - u) / h, slope(u + (new - u) / 2), atol=1e-4)

    @pytest.mark.parametrize("size", [0.0, 1e-12, 1e8])
    def test_gradients_of_any_size(self, size):
        u = jnp.array([0.6, 0.8, 0.0])
        new, K = turn(u, size * jnp.array([1.0, 0.0, 0.0]), jnp.asarray(0.5), 0)
        assert np.isfinite(K) and abs(np.linalg.norm(new) - 1) < 1e-5
        np.testing.assert_allclose(new, [-1, 0, 0] if size > 1 else u, atol=1e-5)


def test_error_in_energy_is_of_second_order():
    energy = lambda x: jnp.sum(jnp.cosh(x)) + 0.5 * x[0] * x[1]

    @in_float64
    def work(h):
        x, u = jnp.array([0.3, -0.8, 1.1]), jnp.array([1.0, 0.5, -0.7])
        kernel = microcanonical(energy, h)
        start = Evaluated(x, *jax.value_and_grad(energy)(x))
        # A length of 0.8 in steps of h.
        new, _, kinetic = isokinetic(kernel, start, u / jnp.linalg.norm(u), jnp.asarray(h), round(0.8 / h))
        return new.energy - start.energy + kinetic

    errors = [abs(float(work(h))) for h in (0.2, 0.1, 0.05)]
    assert 3.3 < errors[0] / errors[1] < 4.7 and 3.6 < errors[1] / errors[2] < 4.4


@pytest.mark.parametrize("temperature, scaled, h", [(1.0, False, 1.2), (2.5, True, 4.0)])
def test_the_adjusted_kernel_has_the_law_of_a_gaussian(temperature, scaled, h):
    d = 4
    precision = _precision(d)
    covariance = temperature * np.linalg.inv(np.asarray(precision, np.float64))
    energy = lambda x: 0.5 * x["a"] @ precision @ x["a"]
    scale = {"a": jnp.linalg.cholesky(jnp.linalg.inv(precision))} if scaled else None
    kernel = microcanonical(energy, h, 6.0, temperature, adjusted=True, scale=scale)
    x0s = {"a": np.asarray(jax.random.multivariate_normal(jax.random.key(0), jnp.zeros(d), covariance, (1000,)))}
    out = run_chains(kernel, x0s, 60, key=jax.random.key(1), keep=False).check()
    # The start has the law; the step is long enough for a wrong ratio to show.
    assert 0.5 < float(out.info.acceptance.mean()) < 0.97
    x = np.asarray(out.state.position["a"])
    pairs = x[:, :, None] * x[:, None, :]
    assert np.abs(z_score(pairs, covariance)).max() < 5
    assert np.abs(z_score(x, 0)).max() < 5


def test_the_unadjusted_kernel_and_its_bias():
    """Variances are those of the law up to the bias that the error in energy tells, <W^2>/d = 4 b^3."""
    d, h = 10, 2.0
    energy = lambda x: 0.5 * jnp.sum(x**2)
    kernel = microcanonical(energy, h, 5.0)
    x0s = jax.random.normal(jax.random.key(0), (2000, d))
    start = run_chains(kernel, x0s, 50, key=jax.random.key(1), keep=False).state
    out = run_chains(kernel, start, 300, key=jax.random.key(2), keep=False).check()
    bias = float(out.stats.variance.mean()) - 1
    lanes = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), out.state)
    many = microcanonical(energy, h, 5.0)
    many = type(many)(**{**vars(many), "lanes": 1})
    xi = many.draw(jax.random.key(3), x0s[0], jnp.arange(2000, dtype=jnp.uint32))
    error = float(jnp.mean(many.attempt(lanes, xi)[2].log_ratio ** 2)) / d
    assert abs(bias) > 0.01, bias
    np.testing.assert_allclose(abs(bias), (error / 4) ** (1 / 3), rtol=0.35)
    # A quarter of the step: a sixteenth of the bias.
    small = run_chains(microcanonical(energy, h / 4, 5.0), x0s, 400, key=jax.random.key(4), keep=False)
    assert abs(float(small.stats.variance.mean()) - 1) < abs(bias) / 4


def test_one_chain_is_a_lane_of_many():
    energy = lambda x: jnp.sum(jnp.cosh(x))
    for adjusted in (False, True):
        kernel = microcanonical(energy, 0.4, 2.0, adjusted=adjusted)
        x0s = jax.random.normal(jax.random.key(0), (3, 4))
        many = run_chains(kernel, x0s, 9, key=jax.random.key(1)).samples
        one = run(kernel, x0s[2], 9, key=jax.random.key(1), lane=2).samples
        np.testing.assert_allclose(many[:, 2], one, rtol=1e-4, atol=1e-5)


def test_gradient_of_a_run():
    energy = lambda x: jnp.sum(jnp.cosh(x))
    end = lambda h: jnp.sum(
        run(microcanonical(energy, h), jnp.array([0.3, -1.0, 0.5]), 6, key=jax.random.key(0)).samples[-1] ** 2
    )
    assert_gradient(end, jnp.array(0.3), step=1e-2, rtol=5e-3)


def test_mistakes():
    energy = lambda x: jnp.sum(x**2)
    assert_refused(lambda: microcanonical(energy, 0.0), "step_size")
    assert_refused(lambda: microcanonical(energy, 0.1, length=-1.0), "length")
    assert_refused(lambda: run(microcanonical(energy), jnp.ones(1), 3, key=jax.random.key(0)), "two entries")
