"""Paths, the loss, conversions, samplers and likelihoods against the exact fields of Gaussian mixtures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import matching as m
from physml.core import divergence

PATHS = {
    "linear": m.linear(),
    "trigonometric": m.trigonometric(),
    "vp": m.variance_preserving(),
    "sub_vp": m.sub_variance_preserving(),
    "ve": m.variance_exploding(0.01, 20.0),
    "edm": m.edm(0.01, 20.0),
    "bridge": m.brownian_bridge(0.7),
}
ONE_SIDED = [name for name, path in PATHS.items() if path.one_sided]


def mixture(seed, components=3, dim=2):
    rng = np.random.default_rng(seed)
    root = 0.4 * rng.normal(size=(components, dim, dim))
    return (
        jnp.asarray(rng.dirichlet(np.ones(components)), jnp.float32),
        jnp.asarray(1.5 * rng.normal(size=(components, dim)), jnp.float32),
        jnp.asarray(root @ root.transpose(0, 2, 1) + 0.1 * np.eye(dim), jnp.float32),
    )


def marginal_log_prob(path, source, target, t, x):
    """The density of x_t by summing over pairs of components; written apart from the fields."""
    (a, b, g), _ = path.coefficients(t)
    w = (source[0][:, None] * target[0][None, :]).ravel()
    mean = (a * source[1][:, None] + b * target[1][None]).reshape(-1, x.size)
    cov = a**2 * source[2][:, None] + b**2 * target[2][None] + g**2 * jnp.eye(x.size)[None, None]
    return m.mixture_log_prob((w, mean, cov.reshape(-1, x.size, x.size)), x)


def standard(dim=2):
    return jnp.ones(1), jnp.zeros((1, dim)), jnp.eye(dim)[None]


@pytest.mark.parametrize("name", PATHS)
def test_exact_score_is_the_gradient_and_velocity_solves_continuity(name):
    """d/dt p + div(p v) = 0, with every derivative by automatic differentiation."""
    path, target = PATHS[name], mixture(1)
    source = mixture(2) if name == "bridge" else standard()
    with jax.enable_x64(True):
        source, target = jax.tree.map(lambda a: a.astype(jnp.float64), (source, target))
        v, s, _ = m.exact_fields(path, source, target)
        log_p = lambda t, x: marginal_log_prob(path, source, target, t, x)
        for t in (0.2, 0.55, 0.9):
            t, x = jnp.asarray(t), jnp.asarray([0.4, -0.3])
            np.testing.assert_allclose(s(t, x), jax.grad(log_p, 1)(t, x), rtol=1e-6, atol=1e-9)
            rate = jax.grad(log_p, 0)(t, x)
            flow = divergence(functools.partial(v, t), x)[1] + jnp.sum(v(t, x) * s(t, x))
            np.testing.assert_allclose(rate, -flow, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", PATHS)
def test_times_at_the_ends_are_safe(name):
    fields = m.exact_fields(PATHS[name], None, mixture(1))
    for t in (0.0, 1.0):
        for field in fields:
            assert jnp.isfinite(field(jnp.asarray(t), jnp.ones(2))).all()
        record = PATHS[name].at(t, jnp.ones(2), jnp.zeros(2), jnp.ones(2))
        assert jnp.isfinite(record.x).all() and jnp.isfinite(record.velocity).all()
        if PATHS[name].one_sided:
            score = m.convert(fields.velocity, PATHS[name], "velocity", "score")
            assert jnp.isfinite(score(jnp.asarray(t), jnp.ones(2))).all()


@pytest.mark.parametrize("name", ONE_SIDED)
def test_conversions_agree_with_the_exact_fields(name):
    path = PATHS[name]
    v, s, d = m.exact_fields(path, None, mixture(3))
    t, x = jnp.asarray(0.6), jnp.asarray([0.3, 0.8])
    noise = lambda t, x, args=None: -path.coefficients(t)[0][0] * s(t, x)
    truth = {"velocity": v, "score": s, "denoiser": d, "noise": noise}
    for source in truth:
        for to in truth:
            got = m.convert(truth[source], path, source, to)(t, x)
            want = truth[to](t, x)
            np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3 * (1 + float(jnp.abs(want).max())))


@pytest.mark.parametrize("target", ["velocity", "score", "denoiser", "noise"])
@pytest.mark.parametrize("name", ["linear", "bridge"])
def test_the_exact_field_minimises_the_loss(name, target, key):
    """At the minimiser the gradient along any perturbation of the field vanishes; it is measured beside its error."""
    path, source, law = PATHS[name], mixture(5), mixture(4)
    source = source if name == "bridge" else standard()
    v, s, d = m.exact_fields(path, source, law)
    noise = lambda t, x, args=None: -path.coefficients(t)[0][2 if name == "bridge" else 0] * s(t, x)
    field = {"velocity": v, "score": s, "denoiser": d, "noise": noise}[target]
    bump = lambda t, x, scale: jnp.stack([jnp.sin(x[0] + 2 * t), jnp.cos(x[1])]) * scale

    @jax.jit
    def slope(key):
        k0, k1, k2 = jax.random.split(key, 3)
        x0, x1 = m.mixture_sample(source, 4000, key=k0), m.mixture_sample(law, 4000, key=k1)
        moved = lambda e: m.match(lambda t, x, _: field(t, x) + bump(t, x, e), path, x0, x1, key=k2, target=target)
        return jax.grad(moved)(0.0)

    slopes = np.array([slope(k) for k in jax.random.split(key, 16)])
    error = slopes.std(ddof=1) / 4
    assert abs(slopes.mean()) < 5 * error and error < 0.05


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, lambda t: 2.0 * (1.0 - t)])
@pytest.mark.parametrize("name", ["linear", "trigonometric", "vp", "bridge"])
def test_samplers_reach_the_target(name, epsilon, key):
    """First and second moments of 4000 samples, 5 standard errors, for the ODE (epsilon 0) and SDEs."""
    path, law = PATHS[name], mixture(6)
    v, s, _ = m.exact_fields(path, None, law)
    k0, k1 = jax.random.split(key)
    x0 = jax.random.normal(k0, (4000, 2))
    if epsilon == 0.0:
        x1 = jax.jit(jax.vmap(lambda x: m.sample(v, x, steps=60)))(x0)
    else:
        x1 = m.sample_sde_batch(v, s, x0, epsilon=epsilon, steps=300, key=k1)
    mean = law[0] @ law[1]
    second = jnp.einsum("k,kde->de", law[0], law[2] + law[1][:, :, None] * law[1][:, None, :])
    np.testing.assert_array_less(jnp.abs(x1.mean(0) - mean) / (x1.std(0) / 4000**0.5), 5.0)
    products = x1[:, :, None] * x1[:, None, :]
    np.testing.assert_array_less(jnp.abs(products.mean(0) - second) / (products.std(0) / 4000**0.5), 5.0)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_log_prob_is_exact(dim):
    law = mixture(7, dim=dim)
    v, _, _ = m.exact_fields(m.linear(), None, law)
    xs = m.mixture_sample(law, 20, key=jax.random.key(dim))
    base = lambda x: jax.scipy.stats.norm.logpdf(x).sum()
    got = jax.jit(jax.vmap(lambda x: m.log_prob(v, x, base, steps=200)))(xs)
    want = jax.vmap(lambda x: m.mixture_log_prob(law, x))(xs)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_hutchinson_is_unbiased(key):
    law = mixture(8)
    v, _, _ = m.exact_fields(m.linear(), None, law)
    x = jnp.asarray([0.5, -0.2])
    base = lambda x: jax.scipy.stats.norm.logpdf(x).sum()
    exact = m.log_prob(v, x, base, steps=30)
    estimate = jax.jit(jax.vmap(lambda k: m.log_prob(v, x, base, steps=30, key=k)))(jax.random.split(key, 400))
    assert estimate.std() > 1e-3
    assert abs(estimate.mean() - exact) < 5 * estimate.std() / 20


@pytest.mark.slow
def test_gradients_through_samplers_and_likelihood():
    path = m.linear()
    with jax.enable_x64(True):
        law = jax.tree.map(lambda a: a.astype(jnp.float64), mixture(9))
        x, key = jnp.asarray([0.3, -0.7]), jax.random.key(0)
        base = lambda x: jax.scipy.stats.norm.logpdf(x).sum()

        def shifted(shift):
            return m.exact_fields(path, None, (law[0], law[1] + shift, law[2]))

        sde = lambda v, s: m.sample_sde(v, s, x, epsilon=lambda t: 1.0 - t, steps=20, key=key).sum()
        functions = {
            "sample": lambda a: m.sample(shifted(a).velocity, x, steps=20).sum(),
            "sample_sde": lambda a: sde(shifted(a).velocity, shifted(a).score),
            "log_prob": lambda a: m.log_prob(shifted(a).velocity, x, base, steps=20),
        }
        for name, f in functions.items():
            f, h = jax.jit(jax.value_and_grad(f)), 1e-5
            numeric = (f(0.1 + h)[0] - f(0.1 - h)[0]) / (2 * h)
            np.testing.assert_allclose(f(0.1)[1], numeric, rtol=1e-6, err_msg=name)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        v, s, _ = m.exact_fields(m.linear(), None, mixture(1))
        x = jnp.ones(2, jnp.float64)
        assert m.sample(v, x, steps=4).dtype == jnp.float64
        assert m.sample_sde(v, s, x, epsilon=1.0, steps=4, key=jax.random.key(0)).dtype == jnp.float64


def test_a_batch_sees_the_noise_of_its_lanes(key):
    v, s, _ = m.exact_fields(m.linear(), None, mixture(1))
    x0 = jax.random.normal(key, (5, 2))
    both = m.sample_sde_batch(v, s, x0, epsilon=1.0, steps=20, key=key)
    np.testing.assert_allclose(both[0], m.sample_sde(v, s, x0[0], epsilon=1.0, steps=20, key=key), rtol=2e-5, atol=1e-6)


def test_time_runs_from_source_to_data():
    for name, path in PATHS.items():
        (a0, b0, _), _ = path.coefficients(0.0)
        (a1, b1, _), _ = path.coefficients(1.0)
        assert b1 == pytest.approx(1.0, abs=1e-3) and a1 < 0.02, name
        assert a0 > 0.9 and (b0 < 0.02 or a0 > 10), name
    x0 = jnp.asarray([1.0, -2.0])
    np.testing.assert_allclose(PATHS["ve"].start(x0), 20.0 * x0)


def test_bad_input(key):
    x = jnp.zeros((4, 2))
    field = lambda t, x, args: x
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(3, 2\)"):
        m.match(field, m.linear(), x, x[:3], key=key)
    with pytest.raises(ValueError, match="target must be"):
        m.match(field, m.linear(), x, x, key=key, target="drift")
    with pytest.raises(ValueError, match="shape of one sample"):
        m.match(lambda t, x, args: x[:1], m.linear(), x, x, key=key)
    with pytest.raises(ValueError, match="coupling returned"):
        m.match(field, m.linear(), x, x, key=key, coupling=lambda a, b, *, key: (a[:2], b[:2]))
    with pytest.raises(ValueError, match="leading axis"):
        m.match(field, m.linear(), x, x, key=key, args=jnp.zeros(3))
    with pytest.raises(ValueError, match="one-sided"):
        m.convert(field, m.brownian_bridge(1.0), "velocity", "score")
    with pytest.raises(ValueError, match="steps"):
        m.sample(field, x[0], steps=0)
    with pytest.raises(ValueError, match="epsilon"):
        m.sample_sde(field, field, x[0], epsilon=-1.0, steps=3, key=key)
    with pytest.raises(ValueError, match="drift must return"):
        m.sample(lambda t, x, args: x[:1], x[0], steps=3)
    with pytest.raises(ValueError, match="covs"):
        m.exact_fields(m.linear(), None, (jnp.ones(2), jnp.zeros((2, 3)), jnp.zeros((2, 3))))
