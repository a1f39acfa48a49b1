"""Descent of a few units in many dimensions: two forms of the equations, linear regression, networks, gradients."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import in_float64
from physml.core._status import Failure
from physml.dmft import MonteCarlo, solve
from physml.dmft.learning.narrow_network import Forward, NarrowNetwork
from physml.dmft.learning.polynomial_regression import QuadraticActivation

NOISE = MonteCarlo(60, matched=False)
NAMES = ("C", "R", "m", "Gamma", "Gamma_star", "G", "train", "test")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@in_float64
def theory_of(model, samples, key):
    """The order parameters alone: `solve` compiles a second program for their error bars."""
    return _forward(model, samples, key).check().order


@eqx.filter_jit
def _forward(model, samples, key):
    sample = MonteCarlo(samples, matched=False).draw(model.noise_shape(), key, jnp.float64)
    return Forward().run(model, None, sample)


def small(**change):
    options = {"ratio": 2.0, "alpha": 0.8, "steps": 5, "overlap": jnp.asarray([0.3, -0.2]), "decay": 0.1, "probes": 2}
    return NarrowNetwork(2, **(options | change))


def test_rows_solve_the_equations_for_all_times(x64):
    # The rows come from a recursion, `update` inverts matrices over all times.
    model, key = small(phi=jnp.tanh), jax.random.key(0)
    sample = NOISE.draw(model.noise_shape(), key, jnp.float64)
    order = eqx.filter_jit(Forward().run)(model, None, sample).check().order
    again = jax.jit(lambda order: model.update(order, sample))
    new = again(order)
    for name in NAMES:
        np.testing.assert_allclose(getattr(new, name), getattr(order, name), atol=2e-7, err_msg=name)
    # and iterating that map from nothing ends there: after k rounds k rows are final
    start = model.init()
    for _ in range(12):
        start = again(start)
    np.testing.assert_allclose(start.test, order.test, atol=1e-6)


def test_linear_regression_has_the_moments_of_marchenko_and_pastur(x64):
    # f = h, y = h*: the error w - beta decays with the spectrum of the sample covariance, ratio c = 1 / nu.
    c, eta, m0, K = 1 / 3, 0.3, 0.4, 6
    narayana = lambda k: sum(c**j / (j + 1) * math.comb(k, j) * math.comb(k - 1, j) for j in range(k)) if k else 1.0
    decay = np.asarray(
        [sum(math.comb(k, i) * (-eta) ** i * narayana(i) for i in range(k + 1)) for k in range(2 * K + 1)]
    )
    model = NarrowNetwork(1, 3.0, phi=lambda h: h, teacher=lambda h: h, steps=K, step_size=eta, overlap=m0, probes=4)
    out = theory_of(model, 10_000, jax.random.key(1))
    k = np.arange(K + 1)
    for s in range(K):
        np.testing.assert_allclose(out.R[s + 1 :, 0, s, 0], decay[k[s + 1 :] - 1 - s], atol=0.01)
    np.testing.assert_allclose(out.m[:, 0], 1 - (1 - m0) * decay[k], atol=0.01)
    distance = (1 - m0) ** 2 + 1  # |w_0 - beta|^2: the orthogonal part of w_0 has length 1
    np.testing.assert_allclose(out.test, distance * decay[2 * k], atol=0.03)
    # the error on the samples: nu <x x^T> weights it with the covariance
    moment = np.asarray([sum(math.comb(2 * j, i) * (-eta) ** i * narayana(i + 1) for i in range(2 * j + 1)) for j in k])
    np.testing.assert_allclose(out.train, distance * moment, atol=0.03)


def test_networks_have_these_order_parameters():
    model = NarrowNetwork(2, 2.0, steps=8, step_size=0.3, overlap=0.3, decay=0.05)
    theory = theory_of(model, 10_000, jax.random.key(0))
    measure = jax.jit(lambda key: model.finite_n(400, key=key))
    runs = jax.lax.map(measure, jax.random.split(jax.random.key(1), 8))
    mean = jax.tree.map(lambda a: jnp.mean(a, 0), runs)
    for name, bound in (("C", 0.06), ("R", 0.06), ("m", 0.05), ("Gamma", 0.06), ("Gamma_star", 0.2), ("G", 0.06)):
        a, b = getattr(theory, name), getattr(mean, name)
        assert jnp.linalg.norm(a - b) < bound * jnp.linalg.norm(a), name
    for name in ("train", "test"):
        a, run = getattr(theory, name), getattr(runs, name)
        z = (jnp.mean(run, 0) - a) / jnp.std(run, axis=0)
        assert jnp.max(jnp.abs(z)) < 1.2, name  # standard deviations of one network
    # Without memory a sample would not know that it was fitted: the losses would be equal, as they are at the start.
    np.testing.assert_allclose(theory.train[0], theory.test[0], rtol=0.05)
    assert theory.train[-1] < 0.5 * theory.test[-1]


def test_gradients_match_differences(x64):
    sample = NOISE.draw(small(probes=1).noise_shape(), jax.random.key(0), jnp.float64)

    def end(p):
        model = small(ratio=p[0], phi=QuadraticActivation(p[1]), overlap=p[2:4], probes=1)
        order = Forward().run(model, None, sample).order
        return order.test[-1] + order.train[-2]

    p = jnp.asarray([2.0, 0.5, 0.3, -0.2])
    rows = jax.jit(jax.value_and_grad(end))
    _, slope = rows(p)
    for i in range(4):
        move = 1e-5 * jnp.eye(4)[i]
        np.testing.assert_allclose(slope[i], (rows(p + move)[0] - rows(p - move)[0]) / 2e-5, rtol=1e-4)


def test_precisions():
    model = small(probes=1, steps=3, overlap=jnp.zeros(2), step_size=jnp.asarray(0.4))
    single = solve(model, noise=NOISE, key=jax.random.key(0)).check()
    assert single.order.C.dtype == jnp.float32 and single.error.train.shape == (4,)
    with jax.enable_x64(True):
        model = jax.tree.map(lambda a: a.astype(jnp.float64) if eqx.is_array(a) else a, model)
        double = solve(model, noise=NOISE, key=jax.random.key(0)).check()
        assert double.order.C.dtype == jnp.float64
        assert jnp.max(jnp.abs(double.order.m)) < 1e-12  # an even teacher breaks no symmetry
        np.testing.assert_allclose(single.order.test, np.asarray(double.order.test), rtol=1e-5)
    train, test = single.order.at(0.2)
    np.testing.assert_allclose(train, 0.5 * (single.order.train[0] + single.order.train[1]), rtol=1e-5)
    assert test.shape == ()


def test_mistakes_and_divergence():
    for change, message in (({"ratio": -1.0}, "ratio"), ({"alpha": 0.0}, "alpha"), ({"steps": 0}, "steps")):
        with pytest.raises(ValueError, match=message):
            small(**change)
    with pytest.raises(ValueError, match="overlap"):
        small(overlap=jnp.zeros(3))
    with pytest.raises(ValueError, match="key"):
        solve(small())
    large = small(step_size=jnp.asarray(1e30), steps=3, overlap=jnp.zeros(2), probes=1, alpha=0.8)
    out = solve(large, noise=NOISE, key=jax.random.key(0))
    with pytest.raises(Failure):
        out.check()


@pytest.mark.slow
def test_single_precision_inside_and_outside_of_jit():
    """Programs of single precision around equations in float64: the noise is drawn, and derivatives pass."""
    model = lambda ratio: small(steps=3, ratio=ratio)
    loss = lambda ratio, key: solve(model(ratio), key=key, noise=NOISE).check().order.test[-1]
    inside = lambda ratio: solve(model(ratio), key=jax.random.fold_in(jax.random.key(0), 1), noise=NOISE).order.test[-1]
    key = jax.random.fold_in(jax.random.key(0), 1)
    compiled = jax.jit(jax.value_and_grad(inside))
    difference = (compiled(2.02)[0] - compiled(1.98)[0]) / 0.04
    for slope in (jax.grad(loss)(2.0, key), compiled(2.0)[1], jax.grad(jax.jit(inside))(2.0)):
        assert slope.dtype == jnp.float32
        np.testing.assert_allclose(slope, difference, rtol=5e-3)
