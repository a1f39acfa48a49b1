"""The Gaussian chain against laws known in closed form, and preconditioning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import matching
from physml.nn import MLP

STD = 0.7


def _isotropic(dtype):
    path = matching.trigonometric()
    law = (jnp.ones(1, dtype), jnp.zeros((1, 3), dtype), (STD**2 * jnp.eye(3, dtype=dtype))[None])
    return path, matching.exact_fields(path, None, law).denoiser


def _reversible(dtype, steps=12):
    """The chain of isotropic Gaussian data with its exact reverse variances."""
    path, denoiser = _isotropic(dtype)
    chain = matching.gaussian_chain(path, steps, times=jnp.linspace(0, 1, steps + 1, dtype=dtype))
    (a, b, _), _ = jax.vmap(path.coefficients)(chain.times)
    total = a**2 + (b * STD) ** 2
    # Var(x_{k+1} | x_k) of a Gaussian chain: variance less what x_k explains.
    ratio = b[:-1] / b[1:]
    exact = total[1:] - (ratio * total[1:]) ** 2 / total[:-1]
    return matching.Chain(path, chain.times, exact, chain.prior), denoiser


@pytest.mark.parametrize(("x64", "tol"), [(False, 2e-4), (True, 1e-10)])
def test_a_reversible_chain_does_the_same_work_on_every_trajectory(x64, tol):
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        chain, denoiser = _reversible(dtype)
        x = jnp.asarray([0.3, -0.9, 1.1], dtype)
        work = jax.vmap(lambda k: matching.log_weight(chain, denoiser, x, key=k))(
            jax.random.split(jax.random.key(1), 50)
        )
        assert work.dtype == dtype
        exact = jax.scipy.stats.norm.logpdf(x, 0.0, STD).sum()
        np.testing.assert_allclose(work, np.full(50, exact), atol=tol)


def test_ancestral_samples_have_the_law_of_the_data():
    chain, denoiser = _reversible(jnp.float32)
    n = 4000
    x0 = jax.random.normal(jax.random.key(0), (n, 3))
    draw = jax.vmap(lambda x, k: matching.ancestral(chain, denoiser, x, key=k))
    out = draw(x0, jax.random.split(jax.random.key(1), n))
    # The last step is a mean: its variance is missing.
    expected = STD**2 - float(chain.variances[-1])
    variance = np.asarray(out.x).var(0)
    assert np.all(np.abs(variance / expected - 1) < 5 * np.sqrt(2 / n))
    assert out.spread.shape == (n,) and float(out.spread.min()) > 0


def test_calibration_finds_the_exact_variances():
    chain, denoiser = _reversible(jnp.float32)
    x1 = STD * jax.random.normal(jax.random.key(2), (4000, 3))
    plain = matching.gaussian_chain(chain.path, chain.steps)
    found = matching.calibrate(plain, denoiser, x1, key=jax.random.key(3))
    np.testing.assert_allclose(found.variances, chain.variances, rtol=5 * np.sqrt(2 / 12000))


def test_the_posterior_is_bayes_rule():
    chain = matching.gaussian_chain(matching.variance_preserving(), 5, times=jnp.array([0.0, 0.3, 0.5, 0.7, 0.9, 1.0]))
    (alpha, beta, _), _ = jax.vmap(chain.path.coefficients)(chain.times)
    for k in range(4):
        ratio, tau = chain.forward(k)
        precision = 1 / alpha[k + 1] ** 2 + ratio**2 / tau
        a, b, variance = chain.posterior(k)
        np.testing.assert_allclose(variance, 1 / precision, rtol=1e-4)
        np.testing.assert_allclose(a, ratio / tau / precision, rtol=1e-4)
        np.testing.assert_allclose(b, beta[k + 1] / alpha[k + 1] ** 2 / precision, rtol=1e-3)


def test_gradients_of_the_bound():
    with jax.enable_x64(True):
        chain, _ = _reversible(jnp.float64, steps=4)
        x = jnp.array([0.2, -0.4, 0.6])

        def bound(gain):
            return matching.log_weight(chain, lambda t, x, args: gain * x, x, key=jax.random.key(0))

        h = 1e-6
        finite = (bound(0.4 + h) - bound(0.4 - h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(bound)(0.4), finite, rtol=1e-6)


@pytest.mark.parametrize("path", [matching.edm(), matching.variance_preserving(), matching.linear()])
def test_preconditioned_input_and_target_have_unit_variance(path):
    scale, n = 1.7, 20_000
    k0, k1 = jax.random.split(jax.random.key(0))
    x0, x1 = jax.random.normal(k0, (n, 1)), scale * jax.random.normal(k1, (n, 1))
    model = matching.Preconditioned(lambda t, x, args: x, path, scale)
    for t in (0.05, 0.4, 0.9):
        skip, out, into = model.coefficients(jnp.asarray(t))
        x = jax.vmap(lambda x0, x1, t=t: path.at(t, x0, x1, x0).x)(x0, x1)
        assert abs(float(jnp.std(into * x)) - 1) < 0.03
        assert abs(float(jnp.std((x1 - skip * x) / out)) - 1) < 0.03


def test_preconditioning_agrees_with_the_published_coefficients():
    sigma, data = 0.8, 0.5
    path = matching.Path(lambda t: sigma + 0.0 * t, lambda t: 1.0 + 0.0 * t)
    skip, out, into = matching.Preconditioned(MLP(2, key=jax.random.key(0)), path, data).coefficients(jnp.asarray(0.3))
    total = sigma**2 + data**2
    np.testing.assert_allclose([skip, out, into], [data**2 / total, sigma * data / total**0.5, total**-0.5], rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="one-sided"):
        matching.gaussian_chain(matching.brownian_bridge(1.0), 4)
    with pytest.raises(ValueError, match="steps"):
        matching.gaussian_chain(matching.linear(), 0)
    with pytest.raises(ValueError, match="one-sided"):
        matching.Preconditioned(lambda t, x, args: x, matching.mirror_interpolant(1.0))
    with pytest.raises(ValueError, match="scale"):
        matching.Preconditioned(lambda t, x, args: x, matching.linear(), -1.0)
    chain = matching.gaussian_chain(matching.linear(), 2)
    with pytest.raises(ValueError, match="window"):
        matching.ancestral(chain, lambda t, x, args: x, jnp.zeros(2), key=jax.random.key(0), window=(0.5, 0.2))
