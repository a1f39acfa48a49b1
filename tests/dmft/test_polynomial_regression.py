"""The quadratic teacher: exact losses, descent by its gradient, times and alignments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core._status import Failure
from physml.core.quadrature import gauss_hermite_grid
from physml.dmft import polynomial_regression as pr


def gaussian_average(f, n, *, dims=1):
    """The average of f over `dims` standard normals, by the product rule of n^dims nodes."""
    z, w = gauss_hermite_grid(n, dims)
    return jnp.sum(w * jax.vmap(f)(*z.T))


@pytest.mark.parametrize("width", [1, 5])
def test_test_loss_is_the_gaussian_average(x64, width):
    w = jax.random.normal(jax.random.key(1), (width, 3))
    beta = jnp.asarray([0.6, -0.3, 0.8])
    square = lambda *x: (pr.predict(w, jnp.stack(x)[None], 1.7, 0.4)[0] - pr.teacher(jnp.stack(x) @ beta)) ** 2
    exact = gaussian_average(square, 6, dims=3)
    np.testing.assert_allclose(pr.test_loss(w, beta, 1.7, 0.4), exact, rtol=1e-12)
    np.testing.assert_allclose(pr.overlap_loss(w @ w.T, w @ beta, 1.7, 0.4, beta @ beta), exact, rtol=1e-12)


def test_the_loss_of_a_centred_network(x64):
    w, start = jax.random.normal(jax.random.key(1), (2, 5, 3))
    beta = jnp.asarray([0.6, -0.3, 0.8])
    output = lambda x: (pr.predict(w, x, 1.7, 0.4) - pr.predict(start, x, 1.7, 0.4))[0]
    square = lambda *x: (output(jnp.stack(x)[None]) - pr.teacher(jnp.stack(x) @ beta)) ** 2
    exact = gaussian_average(square, 6, dims=3)
    np.testing.assert_allclose(pr.test_loss(w, beta, 1.7, 0.4, start), exact, rtol=1e-12)
    out = pr.train(pr.Problem(start, beta, jnp.eye(3)), 1.7, 0.4, steps=1, centred=True)
    np.testing.assert_allclose(out.train[0], jnp.mean(pr.teacher(beta) ** 2), rtol=1e-12)


def test_the_zero_predictor(x64):
    np.testing.assert_allclose(gaussian_average(lambda h: pr.teacher(h) ** 2, 4), pr.ZERO_PREDICTOR, rtol=1e-12)


def test_a_step_follows_the_gradient(x64):
    task = pr.problem(4, 6, 7, key=jax.random.key(0), overlap=0.3)
    alpha, eps, eta = 1.5, 0.3, 0.2
    y = pr.teacher(task.x @ task.beta)
    half = lambda w: 0.5 * jnp.mean((pr.predict(w, task.x, alpha, eps) - y) ** 2)
    out = pr.train(task, alpha, eps, steps=1, step_size=eta)
    np.testing.assert_allclose(out.w, task.w - eta * 6 / alpha**2 * jax.grad(half)(task.w), rtol=1e-12)
    np.testing.assert_allclose(out.train, [2 * half(task.w), 2 * half(out.w)], rtol=1e-12)


def test_gradient_through_training_matches_differences(x64):
    task = pr.problem(5, 8, 12, key=jax.random.key(0))
    end = jax.jit(jax.value_and_grad(lambda eps: pr.train(task, 2.0, eps, steps=20, save_every=10).test[-1]))
    np.testing.assert_allclose(end(0.25)[1], (end(0.25 + 1e-5)[0] - end(0.25 - 1e-5)[0]) / 2e-5, rtol=1e-4)


def test_kernel_alignment_from_the_tangent_kernel(x64):
    task = pr.problem(4, 6, 7, key=jax.random.key(0))
    y = pr.teacher(task.x @ task.beta)
    jacobian = jax.jacfwd(lambda w: pr.predict(w, task.x, 1.0, 0.3))(task.w).reshape(7, -1)
    centre = jnp.eye(7) - 1 / 7
    K, target = centre @ jacobian @ jacobian.T @ centre, centre @ y
    expected = target @ K @ target / jnp.linalg.norm(K) / (target @ target)
    np.testing.assert_allclose(pr.kernel_alignment(task.w, task.x, y, 0.3), expected, rtol=1e-10)
    np.testing.assert_allclose(pr.weight_alignment(2 * task.beta[None], task.beta), 1.0, rtol=1e-12)


def test_threshold_time_of_an_exponential(x64):
    t = jnp.linspace(0.0, 10.0, 21)
    np.testing.assert_allclose(pr.threshold_time(t, jnp.exp(-0.37 * t), 0.05), np.log(20) / 0.37, rtol=1e-12)
    assert jnp.isinf(pr.threshold_time(t, jnp.ones(21), 0.05))
    assert pr.threshold_time(t, jnp.zeros(21), 0.05) == 0


def test_precisions_agree():
    task = pr.problem(6, 10, 20, key=jax.random.key(0))
    run = jax.jit(lambda task: pr.train(task, 2.0, 0.25, steps=40, save_every=20))
    single = run(task).check()
    assert single.train.dtype == jnp.float32 and single.t.shape == (3,)
    with jax.enable_x64(True):
        double = run(jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), task))
        assert double.train.dtype == jnp.float64
        np.testing.assert_allclose(single.train, double.train, rtol=1e-4)
        np.testing.assert_allclose(single.kernel, double.kernel, rtol=1e-4)


def test_mistakes_and_divergence():
    task = pr.problem(3, 4, 5, key=jax.random.key(0))
    with pytest.raises(ValueError, match="save_every"):
        pr.train(task, 1.0, 0.2, steps=10, save_every=3)
    with pytest.raises(ValueError, match="step_size"):
        pr.train(task, 1.0, 0.2, steps=10, step_size=-1.0)
    with pytest.raises(ValueError, match="dim must be"):
        pr.problem(0, 4, 5, key=jax.random.key(0))
    with pytest.raises(Failure, match="diverged"):
        pr.train(task, 0.5, 1.0, steps=200, step_size=20.0, save_every=10).check()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
