"""Tuning: its parts against closed forms and NumPy, its outcome on laws whose shape is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_refused, z_score

from physml.core import in_float64
from physml.particles import (
    Preconditioner,
    consensus,
    hmc,
    laplace,
    mala,
    microcanonical,
    overdamped,
    run_chains,
    tune,
    underdamped,
)
from physml.particles.chains import adaptation
from physml.particles.chains.adaptation import Average, Moments

KEY = jax.random.key(0)


LIKE = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(())}


class TestPreconditioner:
    def scale(self, r):
        vectors = jnp.linalg.qr(jax.random.normal(KEY, (7, r)))[0]
        return Preconditioner(jnp.arange(1.0, 8.0), vectors, jnp.linspace(0.5, 3.0, r))

    def dense(self, scale):
        U = np.asarray(scale.vectors)
        return np.diag(scale.deviations) @ (np.eye(7) + U @ np.diag(np.asarray(scale.stretches) - 1) @ U.T)

    @pytest.mark.parametrize("r", [0, 3, 7])
    def test_it_is_a_matrix_on_any_pytree(self, r):
        scale = self.scale(r)
        L = self.dense(scale)
        v = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), (*leaf.shape, 5)), LIKE)
        columns = lambda tree: np.concatenate([np.reshape(leaf, (-1, 5)) for leaf in jax.tree.leaves(tree)])
        np.testing.assert_allclose(columns(scale.push(v, 1)), L @ columns(v), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(columns(scale.pull(v, 1)), L.T @ columns(v), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            scale.whiten(jnp.asarray(columns(v))), np.linalg.solve(L, columns(v)), rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(scale.covariance, L @ L.T, rtol=1e-4, atol=1e-4)

    def test_a_kernel_moves_in_its_coordinates(self):
        """The first move of MALA from the mode, whose gradient vanishes, is sqrt(2h) L xi."""
        scale, h = self.scale(3), 1e-4
        energy = lambda x: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x)) / 2
        kernel = mala(energy, h, scale=scale)
        xi = kernel.draw(KEY, LIKE, 0)
        new, _ = kernel.move(kernel.init(LIKE), (xi[0], jnp.zeros(())))
        flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        np.testing.assert_allclose(
            flat(new.position), (2 * h) ** 0.5 * self.dense(scale) @ flat(xi[0]), rtol=1e-3, atol=1e-6
        )

    def test_mistakes(self):
        energy = lambda x: jnp.sum(x**2)
        bad = dataclasses.replace(self.scale(2), deviations=jnp.zeros(7))
        assert_refused(lambda: run_chains(mala(energy, 0.1, scale=bad), jnp.ones((2, 7)), 1, key=KEY), "deviations")
        assert_refused(
            lambda: run_chains(mala(energy, 0.1, scale=self.scale(2)), jnp.ones((2, 4)), 1, key=KEY), "entries"
        )


class TestAdaptation:
    def test_dual_averaging_finds_the_root(self):
        step = Average.begin(jnp.asarray(1e-3))
        for _ in range(300):
            step = jax.jit(Average.dual)(step, jnp.tanh(step.now - jnp.log(0.7)))
        np.testing.assert_allclose(jnp.exp(step.average), 0.7, rtol=0.05)

    @in_float64
    def slopes(self, key):
        x, p = jax.random.normal(key, (2, 3, 6))
        t, rate = jax.random.uniform(key, (2, 6)) * 2
        weight = jnp.exp(jnp.minimum(-rate, 0))

        def criterion(log_s):
            s = jnp.exp(log_s) * t
            y = x * jnp.cos(s)[None] + p * jnp.sin(s)[None]
            y = y - jnp.sum(weight[None] * y, 1, keepdims=True) / jnp.sum(weight)
            centred = x - jnp.mean(x, 1, keepdims=True)
            change = jnp.sum(y**2, 0) - jnp.sum(centred**2, 0)
            return jnp.sum(weight * change**2) / jnp.sum(weight) / 4 / jnp.exp(log_s)

        c, s = jnp.cos(t)[None], jnp.sin(t)[None]
        y, v = x * c + p * s, p * c - x * s
        return adaptation.length_slope(x, y, v, t, -rate), jax.grad(criterion)(jnp.zeros(()))

    @pytest.mark.parametrize("seed", range(3))
    def test_slope_of_the_length(self, seed):
        ours, exact = self.slopes(jax.random.key(seed))
        np.testing.assert_allclose(ours, exact, rtol=1e-4)

    @pytest.mark.parametrize("products", [True, False])
    def test_moments(self, products):
        x = np.asarray(jax.random.normal(KEY, (9, 4, 5))) * np.arange(1, 5)[None, :, None] + 3
        moments = Moments.begin(jnp.asarray(x[0]), products)
        for k, row in enumerate(x):
            moments = moments.plus(jnp.asarray(row), jnp.asarray(k / 9))
        columns = np.moveaxis(x, 1, 0).reshape(4, -1)
        expected = np.cov(columns, ddof=0)
        np.testing.assert_allclose(moments.covariance, expected if products else np.diag(expected), rtol=1e-4)
        np.testing.assert_allclose(moments.mean, columns.mean(1), rtol=1e-5)

    def test_variance_of_a_spike(self):
        """Of m draws in d dimensions: the largest eigenvalue of a spiked covariance, brought back."""
        d, m, s = 300, 600, 5.0
        rng = np.random.default_rng(0)
        shown = []
        for _ in range(5):
            x = rng.normal(size=(m, d))
            x[:, 0] *= s**0.5
            shown.append(np.linalg.svd(x / m**0.5, compute_uv=False)[0] ** 2)
        found = adaptation.true_variance(jnp.asarray(np.array(shown)), d / m)
        assert abs(z_score(found, s)) < 4 and np.mean(shown) > s * 1.08
        assert adaptation.true_variance(jnp.asarray(2.0), 0.5) == 1


def _gaussian(d, seed=5):
    a = np.asarray(jax.random.normal(jax.random.key(seed), (d, d)), np.float64)
    spread = np.geomspace(0.1, 3.0, d)
    C = (a @ a.T / d + 0.1 * np.eye(d)) * spread[:, None] * spread[None, :]
    precision = jnp.asarray(np.linalg.inv(C), jnp.float32)
    return C, lambda x: 0.5 * x["v"] @ precision @ x["v"]


KERNELS = {
    "hmc": lambda E: hmc(E, 0.1),
    "mala": lambda E: mala(E, 0.1),
    "adjusted": lambda E: microcanonical(E, adjusted=True),
    "microcanonical": microcanonical,
    "BAOAB": lambda E: underdamped(E, 0.1),
    "OBABO": lambda E: underdamped(E, 0.1, scheme="OBABO"),
    "overdamped": lambda E: overdamped(E, 0.1),
}


@pytest.mark.parametrize("name", KERNELS)
def test_tuned_kernels_sample_a_gaussian(name):
    d, bias = 8, 0.05
    C, energy = _gaussian(d)
    kernel = KERNELS[name](energy)
    x0s = {"v": 4 * jax.random.normal(KEY, (64, d))}
    tuned = tune(kernel, x0s, 800, key=jax.random.key(1), bias=bias).check()
    # The preconditioner is the law's: whitened by it, the true covariance is nearly 1.
    white = tuned.kernel.scale.whiten(tuned.kernel.scale.whiten(jnp.asarray(C, jnp.float32)).T)
    sizes = np.linalg.eigvalsh(np.asarray(white))
    assert sizes[0] > 0.5 and sizes[-1] < 2
    moves = 4000 if name == "overdamped" else 600
    out = run_chains(tuned.kernel, tuned.state, moves, key=jax.random.key(2), keep=False).check()
    assert float(tuned.r_hat) < 1.5 and float(np.max(out.stats.r_hat["v"])) < 1.05
    if kernel.rejects:
        assert abs(float(out.info.acceptance.mean()) - kernel.target) < 0.08
    mean, error = np.asarray(out.stats.mean["v"]), np.sqrt(np.diag(C) / np.asarray(out.stats.ess["v"]))
    assert np.abs(mean / error).max() < 5
    ratio = np.asarray(out.stats.variance["v"]) / np.diag(C)
    # Each of 8 ratios within its own noise, 5 sqrt(2 / ess) with ess some thousands, and the bias asked for.
    assert np.abs(ratio - 1).max() < (0 if kernel.rejects else 2 * bias) + 5 * np.sqrt(2 / 2000)
    if name == "overdamped":  # whose bias is b, to first order, in every direction of a whitened Gaussian
        np.testing.assert_allclose(ratio.mean() - 1, bias, rtol=0.25)


def test_length_and_friction_are_those_of_a_standard_gaussian():
    energy = lambda x: 0.5 * x @ x
    x0s = jax.random.normal(KEY, (64, 16))
    # Durations of mean 1.1 make x and x^2 alike.
    assert 0.9 < float(tune(hmc(energy, 0.5), x0s, 400, key=KEY).kernel.length) < 1.4
    assert 0.9 < float(tune(underdamped(energy, 0.3), x0s, 400, key=KEY).kernel.friction) < 1.1
    assert 3.6 < float(tune(microcanonical(energy, 0.3), x0s, 400, key=KEY).kernel.length) < 4.4


def test_leading_directions_of_many_dimensions():
    d, s = 120, 9.0
    u = jnp.ones(d) / d**0.5
    energy = lambda x: 0.5 * (x @ x - (1 - 1 / s) * (u @ x) ** 2)
    tuned = tune(hmc(energy, 0.2), jax.random.normal(KEY, (32, d)), 600, key=KEY)
    scale = tuned.kernel.scale
    along = scale.push(scale.pull(u)) @ u
    assert scale.vectors.shape == (d, 10) and 0.5 * s < float(along) < 1.6 * s
    diagonal = tune(hmc(energy, 0.2), jax.random.normal(KEY, (32, d)), 600, key=KEY, metric="diagonal").kernel.scale
    assert diagonal.stretches.shape == (0,)


def test_no_metric_keeps_the_scale():
    _, energy = _gaussian(4)
    scale = {"v": jnp.array([1.0, 2.0, 0.5, 1.0])}
    x0s = {"v": jax.random.normal(KEY, (32, 4))}
    tuned = tune(hmc(energy, 0.1, scale=scale), x0s, 400, key=KEY, metric="none", acceptance=0.7)
    np.testing.assert_array_equal(tuned.kernel.scale["v"], scale["v"])
    K = int(tuned.status.step)
    assert abs(float(tuned.history.acceptance[K - 20 : K].mean()) - 0.7) < 0.1
    assert np.isnan(tuned.history.step_size[K:]).all() and np.isfinite(tuned.history.step_size[:K]).all()


def test_inside_jit_with_a_bar_and_in_double_precision():
    energy = lambda x: 2 * jnp.sum(jnp.cosh(x["v"]))
    x0s = {"v": jax.random.normal(KEY, (16, 3))}
    run = lambda x0s, progress=False: tune(hmc(energy, 0.1), x0s, 120, key=KEY, progress=progress)
    plain, barred = run(x0s), run(x0s, True)
    np.testing.assert_allclose(plain.kernel.step_size, barred.kernel.step_size, rtol=1e-5)
    inside = jax.jit(lambda x0s: run(x0s).kernel.step_size)(x0s)
    np.testing.assert_allclose(inside, plain.kernel.step_size, rtol=1e-3)
    with jax.enable_x64(True):
        wide = run(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), x0s))
        assert wide.kernel.step_size.dtype == jnp.float64 == wide.state.position["v"].dtype


def test_chains_in_different_modes_are_not_converged():
    energy = lambda x: 0.5 * jnp.sum((jnp.abs(x) - 30) ** 2)
    x0s = 30 * jnp.sign(jax.random.normal(KEY, (32, 2)))
    tuned = tune(hmc(energy, 0.1), x0s, 200, key=KEY, metric="none")
    assert float(tuned.r_hat) > 3
    with pytest.raises(RuntimeError, match="tune: not_converged"):
        tuned.check()


def test_it_starts_from_the_scale_of_laplace():
    C, energy = _gaussian(8)
    mode = laplace(energy, {"v": jnp.zeros((1, 8))})
    x0s = mode.sample(KEY, 64)
    slow, quick = (tune(hmc(energy, 0.5, scale=s), x0s, 500, key=KEY).check() for s in (None, mode.scale))
    # Whitened from the first move on, the steps are long at once.
    assert float(quick.history.acceptance[0]) > 0.8 and float(slow.history.acceptance[0]) < 0.1
    np.testing.assert_allclose(np.diag(quick.kernel.scale.covariance), np.diag(C), rtol=0.4)


def test_no_chain_is_left_behind():
    """In the tail of the first entry the others are stiff: a step that suits most chains would freeze one there."""
    energy = lambda x: x[0] ** 2 / 18 + 0.5 * jnp.sum(x[1:] ** 2) * (1 + jnp.exp(x[0]))
    x0s = jnp.zeros((64, 5)).at[0, 0].set(9.0).at[0, 1:].set(0.05)
    tuned = tune(hmc(energy, 0.1), x0s, 500, key=KEY)
    out = run_chains(tuned.kernel, tuned.state, 400, key=KEY).check()
    assert float(tuned.state.position[0, 0]) < 8 and float(jnp.max(out.stats.r_hat)) < 1.1


def test_mistakes():
    energy = lambda x: jnp.sum(x**2)
    x0s = jnp.ones((4, 2))
    infinite = lambda x: jnp.where(jnp.sum(x**2) >= 0, jnp.inf, 0.0)
    assert_refused(lambda: tune(hmc(infinite, 0.1), x0s, key=KEY), "energy of the start is not finite for 4 of 4")
    assert_refused(lambda: tune(consensus(energy, 0.1), x0s, key=KEY), "to be tuned")
    assert_refused(lambda: tune(hmc(energy, 0.1), x0s, key=KEY, metric="full"), "metric")
    assert_refused(lambda: tune(hmc(energy, 0.1), x0s, 3, key=KEY), "steps")
    assert_refused(lambda: tune(hmc(energy, 0.1), jnp.ones(()), key=KEY), "leading axis")
    assert_refused(lambda: tune(underdamped(energy, 0.1, scheme="exact"), x0s, key=KEY), "BAOAB")
    assert_refused(lambda: tune(overdamped(energy, 0.1, temperature=0.0), x0s, key=KEY), "temperature")
