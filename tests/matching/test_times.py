"""Laws of the training time: the law itself, its cuts, and that a law and the inverse weight cancel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from physml import matching as m
from physml.matching.paths.times import draw_times

N = 4000
VP = m.variance_preserving()


def drawn(path, times, dtype=jnp.float32, n=N):
    """The times that `match` uses, from the gradient by a factor of each row: the loss is the mean of (a t)^2."""
    zeros = jnp.zeros((n, 1), dtype)
    loss = lambda a: m.match(lambda t, x, a: t * a + x, path, zeros, zeros, key=jax.random.key(3), args=a, times=times)
    return np.sqrt(n * np.asarray(jax.jit(jax.grad(loss))(jnp.ones((n, 1), dtype))[:, 0], np.float64) / 2)


def levels(path, t):
    a, b, _ = path.coefficients(jnp.asarray(t))[0]
    return np.log(np.asarray(b, np.float64) / np.asarray(a, np.float64))


def log_snr_cdf(path, a, b):
    low, high = levels(path, a), levels(path, b)
    return lambda t: (levels(path, t) - low) / (high - low)


LAWS = {
    "uniform": (m.linear(), None, lambda t: t),
    "uniform, cut": (VP, None, lambda t: (t - 1e-3) / 0.998),
    "logit-normal": (m.linear(), m.logit_normal(0.4, 1.3), lambda t: scipy.stats.norm.cdf(_logit(t), 0.4, 1.3)),
    "log-snr, linear": (m.linear(), m.log_snr(m.linear(), 0.02, 0.9), lambda t: _between(_logit(t), 0.02, 0.9)),
    "log-snr, edm": (m.edm(), m.log_snr(m.edm()), log_snr_cdf(m.edm(), 0.0, 1.0)),
    "log-snr, vp": (VP, m.log_snr(VP), log_snr_cdf(VP, 1e-3, 0.999)),
}


def _logit(t):
    return np.log(t) - np.log1p(-t)


def _between(level, a, b):
    return (level - _logit(a)) / (_logit(b) - _logit(a))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", LAWS)
def test_the_batch_covers_the_law_evenly(name, dtype):
    """Kolmogorov-Smirnov: a stratified batch is within 1/n of its law, where independent draws are off by n^{-1/2}."""
    path, times, cdf = LAWS[name]
    with jax.enable_x64(dtype == jnp.float64):
        t = drawn(path, times, dtype)
        assert t.min() >= path.cut * (1 - 1e-5) and t.max() <= 1 - path.cut * (1 - 1e-5)
        assert scipy.stats.kstest(t, cdf).statistic < (1.05 if dtype == jnp.float64 else 1.5) / N


def test_karras_law_on_the_linear_path():
    """(1.2, 1.2): the noise over the signal is log-normal, ln sigma ~ N(-1.2, 1.2^2)."""
    t = drawn(m.linear(), m.logit_normal(1.2, 1.2))
    assert scipy.stats.kstest(np.log((1 - t) / t), scipy.stats.norm(-1.2, 1.2).cdf).statistic < 1.5 / N


def test_a_law_beyond_the_cuts_is_truncated():
    """Half of N(0, 5^2) is beyond these: the rest is the conditional law, without atoms at the cuts."""
    path, law = m.Path(lambda t: 1.0 - t, lambda t: t, cut=0.05), scipy.stats.norm(0, 5)
    t = drawn(path, m.logit_normal(0.0, 5.0))
    low, high = law.cdf(_logit(0.05)), law.cdf(_logit(0.95))
    assert high - low < 0.5
    assert scipy.stats.kstest(t, lambda t: (law.cdf(_logit(t)) - low) / (high - low)).statistic < 1.5 / N


@pytest.mark.parametrize("name", ["logit-normal", "log-snr, vp"])
def test_the_inverse_density_gives_the_uniform_loss(name):
    r"""E_q[l(t)/q(t)] = E_u[l(t)], q the derivative of the cdf, for l(t) = sin(3 t)^2 integrated by hand."""
    with jax.enable_x64(True):
        path, times, _ = LAWS[name]
        zeros = jnp.zeros((N, 1), jnp.float64)
        if name == "logit-normal":
            log_q = lambda t: (
                jax.scipy.stats.norm.logpdf(jnp.log(t) - jnp.log1p(-t), 0.4, 1.3) - jnp.log(t) - jnp.log1p(-t)
            )
            a, b = 0.0, 1.0
        else:
            a, b = path.cut, 1 - path.cut
            level = lambda t: jnp.log(path.coefficients(t)[0][1]) - jnp.log(path.coefficients(t)[0][0])
            log_q = lambda t: jnp.log(jax.grad(level)(t)) - jnp.log(level(jnp.asarray(b)) - level(jnp.asarray(a)))
        loss = m.match(
            lambda t, x, args: jnp.sin(3 * t) + x, path, zeros, zeros, key=jax.random.key(1), times=times,
            weight=lambda t: jnp.exp(-log_q(t)),
        )  # fmt: skip
        integral = (b - a) / 2 - (np.sin(6 * b) - np.sin(6 * a)) / 12
        np.testing.assert_allclose(loss, integral, rtol=2e-3)
        # Without the weight the law matters.
        plain = m.match(lambda t, x, args: jnp.sin(3 * t) + x, path, zeros, zeros, key=jax.random.key(1), times=times)
        assert abs(plain - integral) > 0.02


def test_default_is_unchanged_and_gradients_pass_the_parameters(key):
    """`times` of the identity is the default; a law's parameters can be differentiated through the loss."""
    x0, x1 = jax.random.normal(key, (2, 64, 2))
    field = lambda t, x, args: 0.3 * x
    np.testing.assert_array_equal(
        m.match(field, m.linear(), x0, x1, key=key), m.match(field, m.linear(), x0, x1, key=key, times=lambda u: u)
    )
    with jax.enable_x64(True):
        x0, x1 = x0.astype(jnp.float64), x1.astype(jnp.float64)
        f = lambda a: m.match(field, m.linear(), x0, x1, key=key, times=m.logit_normal(a, 1.0))
        np.testing.assert_allclose(jax.grad(f)(0.2), (f(0.2 + 1e-6) - f(0.2 - 1e-6)) / 2e-6, rtol=1e-6)


def test_bad_input(key):
    with pytest.raises(ValueError, match=r"std must be positive, got -1\.0"):
        m.logit_normal(0.0, -1.0)
    with pytest.raises(ValueError, match="give start and stop"):
        m.log_snr(m.linear())
    with pytest.raises(ValueError, match="start < stop"):
        m.log_snr(m.linear(), 0.9, 0.1)
    with pytest.raises(ValueError, match="does not rise"):
        m.log_snr(m.mirror_interpolant(1.0))
    with pytest.raises(ValueError, match=r"shape \(8,\)"):
        draw_times(m.linear(), 8, lambda u: u[:3], key=key, dtype=jnp.float32)
