"""Feature learning at infinite width: the exact linear case, two routes to the output, networks, gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import dmft
from physml.core import Failure
from physml.dmft import MonteCarlo, WideNetwork
from physml.dmft.equations import average
from physml.dmft.equations.covariance import root

RNG = np.random.default_rng(1)
X = RNG.normal(size=(4, 10))
KERNEL = jnp.asarray(X @ X.T / 10, jnp.float32)
TARGETS = jnp.asarray([1.0, -1.0, 0.5], jnp.float32)


def test_two_layer_linear_network_has_a_closed_equation():
    gamma, dt = 2.0, 0.05
    model = WideNetwork(jnp.ones((1, 1)), jnp.ones(1), 1, gamma, None, 2.0, dt)
    solution = dmft.solve(model, key=jax.random.key(0), noise=MonteCarlo(1000)).check()
    # d Delta / dt = -2 sqrt(1 + gamma^2 (y - Delta)^2) Delta, by small steps.
    delta, exact = 1.0, [1.0]
    for i in range(1, 4001):
        delta += -2 * np.sqrt(1 + gamma**2 * (1 - delta) ** 2) * delta * 0.0005
        if i % 100 == 0:
            exact.append(delta)
    assert np.max(np.abs(1 - np.asarray(solution.order.f[:, 0]) - exact)) < 0.01
    assert np.max(np.abs(np.asarray(solution.order.output - solution.order.f))) < 0.03
    assert solution.error.f.shape == solution.order.f.shape


@pytest.mark.slow
def test_two_hidden_layers_follow_networks():
    model = WideNetwork(KERNEL, TARGETS, 2, 2.0, jnp.tanh, 2.0, 0.1)
    theory = dmft.solve(model, key=jax.random.key(0), noise=MonteCarlo(4000)).check().order
    train = jax.jit(lambda key: model.finite_n(1000, key=key))
    nets = [train(jax.random.key(i)) for i in range(6)]
    f = np.stack([net.f for net in nets])
    error = f.std(0, ddof=1) / np.sqrt(6)
    assert np.all(np.abs(f.mean(0) - theory.f) < 4 * error + 0.03)
    apart = lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
    assert apart(theory.Phi, sum(net.Phi for net in nets) / 6) < 0.06
    assert apart(theory.G, sum(net.G for net in nets) / 6) < 0.10


def test_momentum_is_an_oscillator_in_the_lazy_limit():
    tau, dt = 1.0, 0.05
    model = WideNetwork(jnp.ones((1, 1)), jnp.ones(1), 1, 1e-3, None, 4.0, dt, momentum=tau)
    f = dmft.solve(model, key=jax.random.key(0), noise=MonteCarlo(1000)).check().order.f[:, 0]
    # tau Delta'' + Delta' + 2 Delta = 0 from rest at 1.
    rate, omega = 1 / (2 * tau), np.sqrt(2 / tau - 1 / (4 * tau**2))
    t = dt * np.arange(len(f))
    exact = np.exp(-rate * t) * (np.cos(omega * t) + rate / omega * np.sin(omega * t))
    assert np.max(np.abs(1 - np.asarray(f) - exact)) < 4e-3
    assert np.min(exact) < -0.2  # it overshoots, which no gradient flow does


@pytest.mark.slow
def test_momentum_with_features_follows_networks():
    model = WideNetwork(KERNEL, TARGETS, 2, 2.0, jnp.tanh, 2.0, 0.1, momentum=0.5)
    theory = dmft.solve(model, key=jax.random.key(0), noise=MonteCarlo(2000)).check().order
    train = jax.jit(lambda key: model.finite_n(500, key=key))
    f = np.stack([train(jax.random.key(i)).f for i in range(6)])
    error = f.std(0, ddof=1) / np.sqrt(6)
    assert np.all(np.abs(f.mean(0) - theory.f) < 4 * error + 0.03)
    assert np.max(np.abs(theory.output - theory.f)) < 0.06


@pytest.mark.slow
def test_every_response_is_needed(monkeypatch):
    model = WideNetwork(jnp.ones((1, 1)), jnp.ones(1), 2, 3.0, jnp.tanh, 2.0, 0.1)
    whole = WideNetwork._site

    def gap(missing=()):
        cut = lambda self, *args: {k: v * float(k not in missing) for k, v in whole(self, *args).items()}
        monkeypatch.setattr(WideNetwork, "_site", cut)
        jax.clear_caches()  # the program that `solve` keeps would not see what was changed
        solve = jax.jit(lambda key: dmft.solve(model, key=key, noise=MonteCarlo(20_000)))
        order = solve(jax.random.key(0)).check().order
        return float(jnp.max(jnp.abs(order.output - order.f)))

    right = gap()
    assert right < 0.02 and gap("A") > 3 * right and gap("B") > 3 * right


def test_lazy_limit_is_the_tangent_kernel():
    model = WideNetwork(KERNEL, TARGETS, 1, 1e-3, jnp.tanh, 2.0, 0.1)
    order = dmft.solve(model, key=jax.random.key(0)).check().order
    ntk = np.asarray(order.ntk[0], np.float64)
    values, vectors = np.linalg.eigh(ntk[:3, :3])
    learned = vectors @ (-np.expm1(-values * 2.0) * (vectors.T @ np.asarray(TARGETS)))
    assert np.allclose(order.f[-1, :3], learned, atol=0.01)


@pytest.mark.slow
def test_gradient_with_frozen_noise():
    with jax.enable_x64(True):
        kernel, y = jnp.asarray([[1.0, 0.3], [0.3, 0.8]]), jnp.asarray([1.0])

        def read(gamma, shift):
            model = WideNetwork(kernel + shift, y, 2, gamma, jnp.tanh, 0.3, 0.1)
            scheme = dmft.SelfConsistent(tol=1e-11, max_steps=100)
            order = dmft.solve(model, key=jax.random.key(0), noise=MonteCarlo(60), scheme=scheme).order
            return order.f[-1, 1] + order.loss[-1]

        both = jax.jit(jax.value_and_grad(read, (0, 1)))
        slopes, h = both(1.0, 0.0)[1], 1e-4
        assert abs(slopes[0] - (both(1 + h, 0.0)[0] - both(1 - h, 0.0)[0]) / (2 * h)) < 1e-6
        assert abs(slopes[1] - (both(1.0, h)[0] - both(1.0, -h)[0]) / (2 * h)) < 1e-5


@pytest.mark.slow
def test_samples_in_batches_are_the_same_average(monkeypatch):
    def update(gamma, order, noise):
        order = WideNetwork(KERNEL, TARGETS, 2, gamma, jnp.tanh, 0.6, 0.2).update(order, noise)
        return jnp.sum(order["A"] ** 2), order

    model = WideNetwork(KERNEL, TARGETS, 2, 1.3, jnp.tanh, 0.6, 0.2)
    noise = MonteCarlo(130).draw(model.noise_shape(), jax.random.key(0), jnp.float32)
    # A new function each time: what is patched is read when it is compiled.
    both = lambda order: jax.jit(jax.value_and_grad(lambda *a: update(*a), has_aux=True))(1.3, order, noise)
    order = both(model.init())[0][1]
    whole = both(order)
    monkeypatch.setattr(
        average, "AT_ONCE", 35 * model.noise_shape()[-1]
    )  # four batches of 33, two samples of them empty
    chex.assert_trees_all_close(both(order), whole, rtol=2e-4, atol=1e-5)


def test_errors_and_statuses():
    good = dict(kernel=KERNEL, targets=TARGETS)
    for wrong in (
        dict(kernel=KERNEL[:2]),
        dict(kernel=-KERNEL),
        dict(targets=jnp.ones(5)),
        dict(depth=0),
        dict(gamma=0.0),
        dict(dt=0.3),
    ):
        with pytest.raises(ValueError):
            WideNetwork(**(good | wrong))
    with pytest.raises(Failure):
        dmft.solve(WideNetwork(100 * KERNEL, TARGETS, t_max=2.0, dt=0.1), key=jax.random.key(0)).check()


def test_large_covariances_of_single_precision_have_a_root():
    """1200 fields that almost agree: rounding takes 1e-8 of the largest eigenvalue from the smallest."""
    x = 1 + 1e-3 * jax.random.normal(jax.random.key(0), (1200, 150))
    covariance = x @ x.T / 150
    assert np.linalg.eigvalsh(np.asarray(covariance, np.float64))[0] < -1e-5
    L = root(covariance)
    assert float(jnp.max(jnp.abs(L @ L.T - covariance))) < 1e-3
