"""Entropic plans against their equations, Sinkhorn's algorithm, limits, the light bridge and simulated bridges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from physml import matching
from physml.matching.bridges.gaussian_plan import gaussian_plan
from physml.matching.bridges.mixture_plan import mixture_plan
from physml.metrics import gaussian_wasserstein2

DIM = 3


def covariance(rng, *shape, dim=DIM):
    root = rng.normal(size=(*shape, dim, dim))
    return root @ np.swapaxes(root, -1, -2) / dim + 0.3 * np.eye(dim)


def gaussians(seed=0, dim=DIM):
    rng = np.random.default_rng(seed)
    return tuple((rng.normal(size=dim), covariance(rng, dim=dim)) for _ in range(2))


def mixtures(seed=0, dim=DIM, counts=(2, 3), dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    law = lambda k: (rng.uniform(0.5, 1.0, k), 2 * rng.normal(size=(k, dim)), covariance(rng, k, dim=dim))
    return tuple(tuple(jnp.asarray(part, dtype) for part in law(k)) for k in counts)


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 20.0])
def test_gaussian_plan_solves_its_equations(epsilon):
    """K A K + eps K = B, and ln pi has the mixed derivative I/eps: with the right ends, only the optimum has both."""
    with jax.enable_x64(True):
        (m0, a), (m1, b) = gaussians()
        plan = gaussian_plan((m0, a), (m1, b), epsilon=epsilon)
        np.testing.assert_allclose(plan.slope @ a @ plan.slope + epsilon * plan.slope, b, rtol=1e-11, atol=1e-11)
        mean, cov = plan.joint()
        np.testing.assert_allclose(mean, np.concatenate([m0, m1]))
        precision = np.linalg.inv(cov)
        np.testing.assert_allclose(precision[:DIM, DIM:], -np.eye(DIM) / epsilon, rtol=1e-9, atol=1e-9 / epsilon)
        x = np.array([0.3, -1.0, 2.0])
        y, spread = plan.conditional(jnp.asarray(x))
        np.testing.assert_allclose(y, m1 + cov[DIM:, :DIM] @ np.linalg.solve(a, x - m0), rtol=1e-10)
        np.testing.assert_allclose(spread, np.linalg.inv(precision[DIM:, DIM:]), rtol=1e-9)
        np.testing.assert_allclose(plan.cost, _expected_cost(mean, cov), rtol=1e-12)
        log_det = lambda c: np.linalg.slogdet(c)[1]
        np.testing.assert_allclose(plan.kl, 0.5 * (log_det(a) + log_det(b) - log_det(cov)), rtol=1e-9)


def _expected_cost(mean, cov):
    apart = np.concatenate([np.eye(DIM), -np.eye(DIM)], 1)
    return 0.5 * (np.sum((apart @ mean) ** 2) + np.trace(apart @ cov @ apart.T))


def test_limits_of_the_temperature():
    """eps -> 0: the map A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2 of Bures; eps -> infinity: independence."""
    with jax.enable_x64(True):
        (m0, a), (m1, b) = gaussians(1)
        cold, hot = (gaussian_plan((m0, a), (m1, b), epsilon=e) for e in (1e-9, 1e9))
        root = np.real(np.asarray(scipy.linalg.sqrtm(a)))
        over = np.linalg.inv(root)
        np.testing.assert_allclose(
            cold.slope, over @ np.real(np.asarray(scipy.linalg.sqrtm(root @ b @ root))) @ over, rtol=1e-7
        )
        np.testing.assert_allclose(cold.value, 0.5 * gaussian_wasserstein2(m0, a, m1, b) ** 2, rtol=1e-6)
        x = jnp.asarray([0.3, -1.0, 2.0])
        np.testing.assert_allclose(hot.mean(x), m1, rtol=1e-7)
        np.testing.assert_allclose(hot.conditional(x)[1], b, rtol=1e-7)
        np.testing.assert_allclose(hot.value, 0.5 * (np.sum((m0 - m1) ** 2) + np.trace(a) + np.trace(b)), rtol=1e-7)
        # A source without spread sends all of B.
        point = gaussian_plan((m0, 0 * a), (m1, b), epsilon=0.7)
        np.testing.assert_allclose(point.conditional(jnp.asarray(m0))[1], b, rtol=1e-10)
        np.testing.assert_allclose(point.kl, 0.0, atol=1e-12)


def test_sinkhorn_on_a_grid_finds_the_same_plan_and_value():
    with jax.enable_x64(True):
        epsilon, n = 0.6, 200
        plan = gaussian_plan(([0.2], [[0.8]]), ([-0.5], [[1.7]]), epsilon=epsilon)
        # Equal masses at quantiles; the exact plan is that of the discrete laws' own variances, to O(1/n).
        q = jax.scipy.stats.norm.ppf((jnp.arange(n, dtype=float) + 0.5) / n)
        x, y = 0.2 + 0.8**0.5 * q, -0.5 + 1.7**0.5 * q
        cost = 0.5 * (x[:, None] - y[None, :]) ** 2
        found = matching.sinkhorn(cost, epsilon, tol=1e-7)
        p = jnp.exp(found.log_p)
        value = (p * cost).sum() + epsilon * (p * (found.log_p + 2 * jnp.log(n))).sum()
        np.testing.assert_allclose(value, plan.value, rtol=1e-2)
        middle = slice(50, 150)
        want = jax.vmap(plan.mean)(x[:, None])[:, 0]
        np.testing.assert_allclose((n * p @ y)[middle], want[middle], atol=1e-2)


def test_gaussian_drift_and_marginals():
    """The drift moves the moments of `marginal`: m' = E g, C' = G C + C G^T + eps; diagonal, it is a light bridge's."""
    with jax.enable_x64(True):
        source, target = gaussians(2)
        plan = gaussian_plan(source, target, epsilon=0.4)

        @jax.jit
        def rates(t):
            (mean, cov), moved = jax.jvp(plan.marginal, (t,), (1.0,))
            slope = jax.jacfwd(plan.drift, 1)(t, mean)
            return moved, (plan.drift(t, mean), slope @ cov + cov @ slope.T + 0.4 * jnp.eye(DIM))

        for t in (0.0, 0.3, 0.9):
            for a, b in zip(*rates(t), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(plan.marginal(1.0)[1], target[1], rtol=1e-12)
        diagonal = ((source[0], np.diag([0.5, 1.0, 2.0])), (target[0], np.diag([2.0, 1.0, 0.1])))
        plan = gaussian_plan(*diagonal, epsilon=0.4)
        s = jnp.diagonal(plan.slope)
        light = matching.LightBridge(jnp.zeros(1), (plan.mean1 - s * plan.mean0)[None], jnp.log(s)[None], plan.epsilon)
        x = jnp.asarray([0.3, -1.0, 2.0])
        np.testing.assert_allclose(plan.drift(0.7, x), light.drift(0.7, x), rtol=1e-10)
        np.testing.assert_allclose(plan.mean(x), light.mean(x), rtol=1e-10)


def test_gradients_of_the_gaussian_plan():
    """Against finite differences, also at A = B = I, where every eigenvalue is the same; and the envelope theorem."""
    with jax.enable_x64(True):
        (m0, a), (m1, b) = gaussians(3)
        weights, step = (
            jnp.asarray(np.random.default_rng(4).normal(size=(DIM, DIM))),
            covariance(np.random.default_rng(5)),
        )

        def f(h, a, b):
            plan = gaussian_plan((m0, a + h * step), (m1 + h, b + h**2 * step), epsilon=0.5 + h)
            return (weights * plan.slope).sum() + plan.drift(0.3, jnp.ones(DIM) + h).sum() + plan.value

        value, first, second = (jax.jit(g) for g in (f, jax.grad(f), jax.grad(jax.grad(f))))
        for ab in ((a, b), (np.eye(DIM), np.eye(DIM))):
            difference = lambda g, ab=ab: (g(0.1 + 1e-5, *ab) - g(0.1 - 1e-5, *ab)) / 2e-5
            np.testing.assert_allclose(first(0.1, *ab), difference(value), rtol=1e-8)
            np.testing.assert_allclose(second(0.1, *ab), difference(first), rtol=1e-6)
        plan = lambda e: gaussian_plan((m0, a), (m1, b), epsilon=e)
        slope, kl = jax.jit(lambda e: (jax.grad(lambda e: plan(e).value)(e), plan(e).kl))(0.5)
        np.testing.assert_allclose(slope, kl, rtol=1e-9)


def test_mixture_plan_solves_the_schrodinger_system_on_a_grid():
    """u (k v) and v (k u) are the ends, k the heat kernel; the density is u k v; in one dimension, by the trapezium."""
    with jax.enable_x64(True):
        u, v = mixtures(dim=1, dtype=jnp.float64)
        grid = np.linspace(-14.0, 14.0, 701)
        h = grid[1] - grid[0]

        @jax.jit
        def of_plan(u, v):
            plan = mixture_plan(u, v, epsilon=0.4)
            log_p = lambda law: jax.vmap(lambda x: matching.mixture_log_prob(law, x[None]))(grid)
            pairs = jax.vmap(lambda x, y: plan.log_prob(x[None], y[None]))(grid[300:400:20], grid[325:425:20])
            return [log_p(law) for law in (u, v, plan.marginal(0.0), plan.marginal(1.0))], pairs

        (log_u, log_v, log_p0, log_p1), log_pairs = of_plan(u, v)
        joint = np.exp(log_u[:, None] + log_v[None] - 0.5 * (grid[:, None] - grid[None]) ** 2 / 0.4)
        joint = joint / (joint.sum() * h**2)
        np.testing.assert_allclose(h * joint.sum(1), np.exp(log_p0), atol=1e-10)
        np.testing.assert_allclose(h * joint.sum(0), np.exp(log_p1), atol=1e-10)
        np.testing.assert_allclose(np.exp(log_pairs), np.diagonal(joint[300:400:20, 325:425:20]), rtol=1e-9)


X, Y = np.array([0.3, -1.0, 0.7]), np.array([-0.2, 0.4, 1.1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_mixture_conditional_joint_and_mean_agree(dtype):
    """pi(x, y) = p_0(x) pi(y | x), E[y | x] by the drift and by the components; in the dtype of the arguments."""
    tol = 1e-9 if dtype == jnp.float64 else 2e-4
    with jax.enable_x64(True):
        x, y = jnp.asarray(X, dtype), jnp.asarray(Y, dtype)

        @jax.jit
        def both(u, v):
            plan = mixture_plan(u, v, epsilon=0.6)
            law = plan.conditional(x)
            product = matching.mixture_log_prob(plan.marginal(0.0), x) + matching.mixture_log_prob(law, y)
            drawn = plan.sample(x, key=jax.random.key(0))
            return (plan.log_prob(x, y), plan.mean(x)), (product, law[0] @ law[1]), drawn

        got, want, drawn = both(*mixtures(7, dtype=dtype))
        assert {a.dtype for a in (*got, *want, drawn)} == {jnp.dtype(dtype)}
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


def test_mixture_bridge_solves_the_equation_of_fokker_and_planck_and_differentiates():
    with jax.enable_x64(True):
        u, v = mixtures(7, dtype=jnp.float64)
        x, y = jnp.asarray(X), jnp.asarray(Y)

        @jax.jit
        def sides(t, x):
            plan = mixture_plan(u, v, epsilon=0.6)
            p = lambda t, x: jnp.exp(matching.mixture_log_prob(plan.marginal(t), x))
            flux = lambda x: plan.drift(t, x) * p(t, x) - 0.3 * jax.grad(p, 1)(t, x)
            return jax.grad(p)(t, x), -jnp.trace(jax.jacfwd(flux)(x))

        np.testing.assert_allclose(*sides(0.35, x), rtol=1e-8)

        def f(h):
            plan = mixture_plan((u[0], u[1] + h, u[2]), (v[0], v[1], v[2] * (1 + h)), epsilon=0.6 + h)
            return plan.log_prob(x, y) + plan.drift(0.4, x).sum() + plan.marginal(0.2)[2].sum()

        value = jax.jit(f)
        numeric = (value(0.1 + 1e-5) - value(0.1 - 1e-5)) / 2e-5
        np.testing.assert_allclose(jax.jit(jax.grad(f))(0.1), numeric, rtol=1e-7)


def test_one_component_is_the_gaussian_plan_and_diagonal_ones_are_a_light_bridge():
    with jax.enable_x64(True):
        u, v = mixtures(8, counts=(1, 1), dtype=jnp.float64)
        plan = mixture_plan(u, v, epsilon=0.6)
        ends = [(law[1][0], law[2][0]) for law in (plan.marginal(0.0), plan.marginal(1.0))]
        gauss = gaussian_plan(*ends, epsilon=0.6)
        x = jnp.asarray([0.3, -1.0, 0.7])
        for a, b in ((plan.drift(0.4, x), gauss.drift(0.4, x)), (plan.joint()[2][0], gauss.joint()[1])):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        u, (w, r, _) = mixtures(9, dtype=jnp.float64)
        var = jnp.asarray(np.random.default_rng(0).uniform(0.2, 2.0, r.shape))
        plan = mixture_plan(u, (w, r, jax.vmap(jnp.diag)(var)), epsilon=0.6)
        wide = var + 0.6
        log_a = jnp.log(w) - 0.5 * (r**2 / wide + jnp.log(wide)).sum(1)
        light = matching.LightBridge(log_a, 0.6 * r / wide, jnp.log(var / wide), plan.epsilon)
        np.testing.assert_allclose(plan.drift(0.4, x), light.drift(0.4, x), rtol=1e-9)
        np.testing.assert_allclose(plan.mean(x), light.mean(x), rtol=1e-9)


def test_samples_and_simulated_bridges_arrive(key):
    """Ends of 1000 paths from one point, and samples of y | x: means within 5 standard errors and an O(h) bias."""
    x, ts, n = jnp.asarray([0.3, -0.5]), jnp.linspace(0.0, 1.0, 101), 1000
    f32 = lambda law: (jnp.asarray(law[0], jnp.float32), jnp.asarray(law[1], jnp.float32))
    source, target = (f32(law) for law in gaussians(dim=2))
    plan, mixture = gaussian_plan(source, target, epsilon=0.5), mixture_plan(*mixtures(dim=2), epsilon=0.5)
    keys = jax.random.split(key, n)
    ends = jax.jit(jax.vmap(lambda k: plan.simulate(x, ts, key=k).xs[-1]))(keys)
    drawn, more = (jax.jit(jax.vmap(lambda k, p=p: p.sample(x, key=k)))(keys) for p in (plan, mixture))
    for sample, mean, bias in ((ends, plan.mean(x), 0.02), (drawn, plan.mean(x), 0.0), (more, mixture.mean(x), 0.0)):
        error = np.asarray(sample.std(0)) / n**0.5
        np.testing.assert_array_less(np.abs(np.asarray(sample.mean(0) - mean)), 5 * error + bias)


def test_float32_in_float32_out():
    (m0, a), (m1, b) = gaussians()
    f32 = lambda mean, cov: (jnp.asarray(mean, jnp.float32), jnp.asarray(cov, jnp.float32))
    plan = jax.jit(lambda e: gaussian_plan(f32(m0, a), f32(m1, b), epsilon=e))(jnp.float32(0.3))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(plan))
    with jax.enable_x64(True):
        exact = gaussian_plan((m0, a), (m1, b), epsilon=0.3)
    np.testing.assert_allclose(plan.slope, exact.slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(plan.value, exact.value, rtol=1e-6)


def test_bad_input():
    eye, zero = jnp.eye(2), jnp.zeros(2)
    for make in (gaussian_plan, mixture_plan):
        with pytest.raises(ValueError, match="epsilon must be positive, got 0"):
            make((zero, eye), (zero, eye), epsilon=0)
    with pytest.raises(ValueError, match=r"got \(2,\), \(2, 2\) and \(3,\)"):
        gaussian_plan((zero, eye), (jnp.zeros(3), jnp.eye(3)), epsilon=1.0)
    with pytest.raises(ValueError, match=r"u must be .*got \(1,\), \(1, 2\), \(2, 2\)"):
        mixture_plan((jnp.ones(1), zero[None], eye), (jnp.ones(1), zero[None], eye[None]), epsilon=1.0)
    with pytest.raises(ValueError, match="share d; got 2 and 3"):
        mixture_plan(
            (jnp.ones(1), zero[None], eye[None]), (jnp.ones(1), jnp.zeros((1, 3)), jnp.eye(3)[None]), epsilon=1.0
        )


def test_gradient_through_a_compiled_plan():
    plan = lambda s: gaussian_plan((jnp.zeros(1), jnp.eye(1)), (jnp.zeros(1), s * jnp.eye(1)), epsilon=0.3).slope[0, 0]
    value = jax.jit(plan)
    # k a k + eps k = s in one dimension
    exact = lambda s: -0.15 + np.sqrt(0.15**2 + s)
    np.testing.assert_allclose(value(2.0), exact(2.0), rtol=1e-6)
    finite = (exact(2.001) - exact(1.999)) / 0.002
    for slope in (jax.grad(value), jax.jit(jax.grad(plan))):
        np.testing.assert_allclose(slope(2.0), finite, rtol=1e-4)
