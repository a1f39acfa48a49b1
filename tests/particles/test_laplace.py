"""The Gaussian at a mode, and energies of bounded parameters, against closed forms and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from helpers import assert_gradient, assert_refused, z_score

from physml.particles import Interval, Ordered, Positive, Simplex, constrained, hmc, laplace, run_chains

KEY = jax.random.key(0)


class TestLaplace:
    def test_a_gaussian_is_found_exactly(self):
        a = np.asarray(jax.random.normal(KEY, (5, 5)))
        H, m, T = a @ a.T + 0.2 * np.eye(5), np.arange(5.0), 1.7

        def energy(x):
            d = jnp.concatenate([x["a"].ravel(), x["b"][None]]) - jnp.asarray(m, jnp.float32)
            return 3 + 0.5 * d @ jnp.asarray(H, jnp.float32) @ d

        starts = {"a": jax.random.normal(KEY, (3, 2, 2)), "b": jnp.ones(3)}
        mode = laplace(energy, starts, key=KEY, temperature=T).check()
        np.testing.assert_allclose(np.append(np.ravel(mode.mean["a"]), mode.mean["b"]), m, atol=1e-3)
        np.testing.assert_allclose(mode.scale.covariance, T * np.linalg.inv(H), rtol=1e-3, atol=1e-3)
        log_z = -3 / T + 2.5 * np.log(2 * np.pi * T) - np.linalg.slogdet(H)[1] / 2
        np.testing.assert_allclose(mode.log_z, log_z, rtol=1e-4)
        assert mode.ends.shape == (6,)
        x = mode.sample(KEY, 4000)
        flat = np.concatenate([np.reshape(x["a"], (4000, 4)), np.asarray(x["b"])[:, None]], 1) - m
        assert np.abs(z_score(flat[:, :, None] * flat[:, None, :], T * np.linalg.inv(H))).max() < 5

    def test_the_lowest_of_several_modes(self):
        energy = lambda x: (x**2 - 1) ** 2 + 0.3 * x
        mode = laplace(energy, jnp.array([1.2, -0.7, 0.9])).check()
        root = min(np.roots([4, 0, -4, 0.3]).real)
        np.testing.assert_allclose(mode.mean, root, rtol=1e-4)
        np.testing.assert_allclose(mode.scale.covariance[0, 0], 1 / (12 * root**2 - 4), rtol=1e-3)

    def test_a_saddle_and_a_slope_are_told(self):
        saddle = laplace(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, jnp.array([[1.0, 0.0]]))
        with pytest.raises(RuntimeError, match="saddle"):
            saddle.check()
        slope = laplace(lambda x: jnp.sum(x**2), jnp.ones((1, 2)), steps=1, optimizer=optax.sgd(0.01))
        with pytest.raises(RuntimeError, match="not_converged"):
            slope.check()
        with pytest.raises(RuntimeError, match=r"not_converged|saddle|diverged"):
            laplace(lambda x: -jnp.sum(x), jnp.ones((1, 2))).check()

    def test_chains_start_and_move_with_it(self):
        energy = lambda x: jnp.sum(jnp.cosh(jnp.array([1.0, 8.0]) * x))
        mode = laplace(energy, jnp.ones((2, 2))).check()
        kernel = hmc(energy, 0.5, scale=mode.scale)
        out = run_chains(kernel, mode.sample(KEY, 32), 50, key=KEY).check()
        assert float(out.info.acceptance.mean()) > 0.8

    def test_mistakes(self):
        assert_refused(lambda: laplace(lambda x: jnp.sum(x), jnp.ones(())), "leading axis")
        assert_refused(lambda: laplace(lambda x: jnp.inf * jnp.sum(x**2), jnp.ones((2, 2))), "any start")
        assert_refused(lambda: laplace(lambda x: jnp.sum(x), jnp.ones((2, 2)), steps=0), "steps")


BIJECTIONS = {
    "positive": (Positive(), jnp.array([0.3, -2.0]), 2),
    "interval": (Interval(-1.0, 3.0), jnp.array([0.3, -2.0, 4.0]), 3),
    "ordered": (Ordered(), jnp.array([0.3, -2.0, 0.5]), 3),
    "simplex": (Simplex(), jnp.array([0.3, -2.0, 0.5]), 3),
}


class TestConstrained:
    @pytest.mark.parametrize("name", BIJECTIONS)
    def test_volume_and_inverse(self, name):
        bijection, u, n = BIJECTIONS[name]
        x, volume = bijection.forward(u)
        J = np.asarray(jax.jacobian(lambda u: bijection.forward(u)[0][:n])(u), np.float64)
        np.testing.assert_allclose(volume, np.linalg.slogdet(J)[1], rtol=1e-4)
        np.testing.assert_allclose(bijection.inverse(x), u, rtol=1e-3, atol=1e-5)

    def test_samples_have_the_law_in_the_models_units(self):
        """A gamma, a beta and a Dirichlet law, at T = 1 and, tempered, at T = 2."""

        def energy(x):
            gamma = x["rate"] - 2.0 * jnp.log(x["rate"])
            beta = -2 * jnp.log(x["p"]) - jnp.log(1 - x["p"])
            return gamma + beta - jnp.sum(jnp.array([1.0, 2.0, 0.5]) * jnp.log(x["shares"]))

        for T in (1.0, 2.0):
            free = constrained(energy, {"rate": Positive(), "p": Interval(0.0, 1.0), "shares": Simplex()}, T)
            x0 = {"rate": jnp.ones(200), "p": jnp.full(200, 0.5), "shares": jnp.full((200, 3), 1 / 3)}
            out = run_chains(hmc(free, 0.35, 6, T), jax.vmap(free.inverse)(x0), 100, key=KEY, observe=free.forward)
            x = jax.tree.map(lambda leaf: np.asarray(leaf[-1]), out.samples)
            laws = {
                "rate": scipy.stats.gamma(2 / T + 1, scale=T),
                "p": scipy.stats.beta(2 / T + 1, 1 / T + 1),
            }
            for name, law in laws.items():
                assert scipy.stats.kstest(x[name], law.cdf).pvalue > 1e-4, (name, T)
            mean = scipy.stats.dirichlet(np.array([1, 2, 0.5]) / T + 1).mean()
            assert np.abs(z_score(x["shares"], mean)).max() < 5

    def test_gradient(self):
        free = constrained(lambda x: jnp.sum(x**2), Interval(jnp.array(0.5), jnp.array(2.0)))
        assert_gradient(free, jnp.array([0.3, -1.0]), rtol=5e-3)

    def test_mistakes(self):
        assert_refused(lambda: constrained(lambda x: x, {"a": "positive"}), "bijection")
        assert_refused(lambda: Interval(2.0, 1.0), "low < high")
        assert_refused(
            lambda: constrained(lambda x: jnp.sum(x["a"]), {"b": None})({"a": jnp.ones(2)}), "like the parameters"
        )
