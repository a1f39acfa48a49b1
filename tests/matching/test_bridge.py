"""Couplings and the light Schrodinger bridge against closed forms, SciPy and the bridge's own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from physml import matching as m


def bridge(epsilon=0.5, dim=2, components=4, dtype=jnp.float32):
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return m.LightBridge(
        draw(components), draw(components, dim), 0.5 * draw(components, dim), jnp.asarray(epsilon, dtype)
    )


def test_conditional_plan_is_the_tilted_potential():
    """pi(y|x) c(x) = exp(x.y/eps) v(y) at random points."""
    with jax.enable_x64(True):
        plan = bridge(dtype=jnp.float64)
        for seed in range(5):
            x, y = jax.random.normal(jax.random.key(seed), (2, 2), jnp.float64)
            law = plan.conditional(x)
            covs = jax.vmap(jnp.diag)(law.variances)
            log_p = m.mixture_log_prob((jnp.exp(law.log_weights), law.means, covs), y)
            want = x @ y / plan.epsilon + plan.log_potential(y) - plan.log_normaliser(x)
            np.testing.assert_allclose(log_p, want, rtol=1e-10)


def test_drift_is_epsilon_grad_log_of_the_heat_flow():
    """g = eps grad ln int N(y; x, eps (1 - t)) e^{|y|^2/2 eps} v(y) dy, the integral on a grid in one dimension."""
    with jax.enable_x64(True):
        plan = bridge(dim=1, dtype=jnp.float64)
        y = jnp.linspace(-25.0, 25.0, 20001)
        log_v = jax.vmap(lambda y: plan.log_potential(y[None]))(y) + 0.5 * y**2 / plan.epsilon

        def log_phi(x, t):
            return jax.scipy.special.logsumexp(log_v - 0.5 * (y - x[0]) ** 2 / (plan.epsilon * (1 - t)))

        for t in (0.0, 0.4, 0.8):
            x = jnp.asarray([0.7])
            want = plan.epsilon * jax.grad(log_phi)(x, t)
            np.testing.assert_allclose(plan.drift(t, x), want, rtol=1e-6)
        assert jnp.isfinite(plan.drift(1.0, jnp.asarray([0.7]))).all()


def test_the_bridge_arrives_at_its_plan(key):
    """Mean of 4000 simulated bridges from one point against E[x1|x0], 5 standard errors plus the O(h) bias."""
    plan, x = bridge(), jnp.asarray([0.3, -0.5])
    ts = jnp.linspace(0.0, 1.0, 201)
    ends = jax.jit(jax.vmap(lambda k: plan.simulate(x, ts, key=k).xs[-1]))(jax.random.split(key, 4000))
    drawn = jax.vmap(lambda k: plan.sample(x, key=k))(jax.random.split(key, 4000))
    for sample, bias in ((ends, 0.01), (drawn, 0.0)):
        error = np.asarray(sample.std(0)) / 4000**0.5
        np.testing.assert_array_less(np.abs(np.asarray(sample.mean(0) - plan.mean(x))), 5 * error + bias)


def test_fit_recovers_a_plan(key):
    """Data from a known plan: the fitted loss reaches that of the truth, and the conditional means agree."""
    truth = bridge(epsilon=1.0)
    k0, k1, k2, k3 = jax.random.split(key, 4)
    x0 = jax.random.normal(k0, (5000, 2))
    x1 = jax.vmap(lambda x, k: truth.sample(x, key=k))(jax.random.normal(k1, (5000, 2)), jax.random.split(k2, 5000))
    plan = m.light_bridge(x0, x1, epsilon=1.0, components=10, key=k3, steps=900, growth=4)
    assert m.bridge_loss(plan, (x0, x1)) < m.bridge_loss(truth, (x0, x1)) + 0.02
    x = x0[:200]
    gap = jax.vmap(plan.mean)(x) - jax.vmap(truth.mean)(x)
    assert jnp.mean(gap**2) < 0.02 * jnp.mean(jax.vmap(truth.mean)(x).var(0))
    assert plan.epsilon == 1.0


def test_gradients_of_the_bridge():
    with jax.enable_x64(True):
        plan, x = bridge(dtype=jnp.float64), jnp.asarray([0.3, -0.5])
        ts, key = jnp.linspace(0.0, 1.0, 11), jax.random.key(0)
        moved = lambda a: m.LightBridge(plan.log_a, plan.r + a, plan.log_s + a, plan.epsilon)
        for f in (
            lambda a: moved(a).simulate(x, ts, key=key).xs[-1].sum(),
            lambda a: m.bridge_loss(moved(a), (x[None], x[None])),
        ):
            numeric = (f(0.1 + 1e-5) - f(0.1 - 1e-5)) / 2e-5
            np.testing.assert_allclose(jax.grad(f)(0.1), numeric, rtol=1e-7)


def test_assignment_is_scipys_inside_jit(key):
    x0, x1 = jax.random.normal(key, (2, 32, 3))
    a, b = jax.jit(lambda x0, x1: m.Assignment()(x0, x1, key=key))(x0, x1)
    cost = ((np.asarray(x0)[:, None] - np.asarray(x1)[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(a, x0)
    np.testing.assert_array_equal(b, x1[linear_sum_assignment(cost)[1]])
    _, blocks = m.Assignment(batches=4)(x0, x1, key=key)
    np.testing.assert_array_equal(blocks[:8], m.Assignment()(x0[:8], x1[:8], key=key)[1])


def test_sinkhorn_marginals_and_the_gaussian_plan(key):
    """Between N(0, s0^2) and N(0, s1^2) the plan's covariance is closed: the correlation of the entropic optimum."""
    n, s0, s1, eps = 400, 1.0, 1.5, 0.8
    q = jax.scipy.stats.norm.ppf((jnp.arange(n, dtype=jnp.float32) + 0.5) / n)
    x, y = s0 * q, s1 * q
    plan = jax.jit(lambda c: m.sinkhorn(c, eps, tol=1e-5))(0.5 * (x[:, None] - y[None, :]) ** 2)
    p = jnp.exp(plan.log_p)
    np.testing.assert_allclose(p.sum(0), 1 / n, rtol=1e-3)
    np.testing.assert_allclose(p.sum(1), 1 / n, rtol=1e-3)
    # d/dc of -c + entropy: c^2 + eps c - s0^2 s1^2 = 0, with the discrete laws' own variances.
    v0, v1 = float(jnp.mean(x**2)), float(jnp.mean(y**2))
    want = -eps / 2 + np.sqrt(eps**2 / 4 + v0 * v1)
    np.testing.assert_allclose(x @ p @ y, want, rtol=5e-3)
    i, j = plan.sample(4000, key=key)
    got = x[i] * y[j]
    assert abs(got.mean() - x @ p @ y) < 5 * got.std() / 4000**0.5


def test_couplings_lower_the_cost_of_a_batch(key):
    x0, x1 = jax.random.normal(key, (64, 2)), 3.0 + jax.random.normal(jax.random.key(5), (64, 2))
    cost = lambda pair: float(((pair[0] - pair[1]) ** 2).sum(-1).mean())
    exact, soft, none = (cost(c(x0, x1, key=key)) for c in (m.Assignment(), m.Entropic(0.5), m.Independent()))
    assert exact < soft < none


def test_bad_input(key):
    x = jnp.zeros((6, 2))
    with pytest.raises(ValueError, match="batches=4"):
        m.Assignment(batches=4)(x, x, key=key)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        m.sinkhorn(jnp.zeros((3, 3)), 0.0)
    with pytest.raises(ValueError, match=r"\(6, 2\) and \(6, 3\)"):
        m.light_bridge(x, jnp.zeros((6, 3)), epsilon=1.0, key=key)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        m.light_bridge(x, x, epsilon=-1.0, key=key)
    with pytest.raises(ValueError, match="growth must be an integer of at least 1, got 0"):
        m.light_bridge(x, x, epsilon=1.0, key=key, growth=0)


def test_loss_is_the_mean_of_the_potentials_and_a_sampler_is_an_array_without_end(key):
    with jax.enable_x64(True):
        plan = bridge(dtype=jnp.float64)
        x0, x1 = jax.random.normal(key, (2, 50, 2), jnp.float64)
        want = jax.vmap(plan.log_normaliser)(x0).mean() - jax.vmap(plan.log_potential)(x1).mean()
        np.testing.assert_allclose(m.bridge_loss(plan, (x0, x1)), want, rtol=1e-10)
    source = lambda key: jax.random.normal(key, (256, 2))
    target = lambda key: 3.0 + 2.0 * jax.random.normal(key, (256, 2))
    # Between N(0, I) and N(3, 4 I) the plan is Gaussian: slope S with S^2 + eps S = 4.
    plan = m.light_bridge(source, target, epsilon=1.0, components=1, key=key, steps=600)
    s = -0.5 + 4.25**0.5
    np.testing.assert_allclose(jnp.exp(plan.log_s), s, rtol=0.03)
    np.testing.assert_allclose(plan.r, 3.0, atol=0.06)
    with pytest.raises(ValueError, match=r"\(5120, 2\) and \(5120, 3\)"):
        m.light_bridge(source, lambda key: jnp.zeros((256, 3)), epsilon=1.0, key=key)
