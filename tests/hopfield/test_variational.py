"""Distributions of binary weights: moments against sampled networks, training against the theory of its overlaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtr
from scipy.optimize import root_scalar
from scipy.stats import norm

from physml.core._status import Code, Failure
from physml.hopfield.learning.perceptron import examples_of, flipped
from physml.hopfield.learning.variational import kl_divergence, learn, log_likelihood, margins
from physml.hopfield.theory.variational import variational_tasks

N = 500


@pytest.mark.slow
def test_moments_against_sampled_networks():
    """The probability of a label in a network of two layers, over 4000 draws of its weights."""
    keys = jax.random.split(jax.random.key(0), 5)
    fields = (2.0 * jax.random.normal(keys[0], (120, 81)), 2.0 * jax.random.normal(keys[1], (81, 1)))
    x = jax.random.normal(keys[2], (6, 120))

    def label(key):
        h = x
        for i, theta in enumerate(fields):
            up = jax.random.uniform(jax.random.fold_in(key, i), theta.shape) < 0.5 * (1 + jnp.tanh(theta))
            h = jnp.sign(h @ jnp.where(up, 1.0, -1.0))
        return h[:, 0] > 0

    share = np.mean(np.asarray(jax.lax.map(label, jax.random.split(keys[3], 4000), batch_size=200)), 0)
    probability = np.asarray(ndtr(margins(fields, x)))
    # The central limit theorem is off by some 1 / n.
    assert np.max(np.abs(share - probability)) < 5 * 0.5 / 4000**0.5 + 0.01
    assert np.std(probability) > 0.1
    y = jnp.ones(6)
    assert abs(log_likelihood(fields, x, y) - np.sum(np.log(probability))) < 1e-4


def test_divergence():
    """The sum over both signs, and finite where weights are certain."""
    with jax.enable_x64(True):
        a, b = jnp.asarray([[0.3], [-1.2]]), jnp.asarray([[0.7], [0.4]])
        p, q = (1 + jnp.tanh(a)) / 2, (1 + jnp.tanh(b)) / 2
        want = jnp.sum(p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q)))
        assert abs(kl_divergence((a,), (b,)) - want) < 1e-14
    sure = jnp.asarray([[300.0]])
    assert abs(kl_divergence((sure,), (0 * sure,)) - np.log(2)) < 1e-4
    assert jnp.isfinite(jax.grad(lambda f: kl_divergence((f,), (0 * f,)))(sure)).all()


def test_theory_without_examples_and_with_few():
    """Task 2 without examples changes nothing; few examples add up, each with its own step lambda u = g(u)."""
    with jax.enable_x64(True):
        out = variational_tasks(0.8, 0.0, 0.5).check()
        assert abs(out.q[1] - out.q[0]) < 1e-6 and abs(out.r1[1] - out.r1[0]) < 1e-6 and abs(out.p - out.q[0]) < 1e-6
        assert abs(out.r2[0] - 0.5 * out.r1[0]) < 1e-12
        few = variational_tasks(1e-4, 0.0, 0.5, weight=2.0)
        u = root_scalar(lambda u: 2 * u - norm.pdf(u) / norm.cdf(u), bracket=(0, 1)).root
        assert abs(few.r1[0] / (1e-4 * (2 / np.pi) ** 0.5 * u) - 1) < 2e-3 and abs(few.q[0] / (1e-4 * u**2) - 1) < 2e-3


@pytest.mark.slow
def test_slopes_of_the_theory():
    with jax.enable_x64(True):

        def f(x):
            out = variational_tasks(0.8, x[0], x[1], weight=x[2])
            return jnp.stack([out.r1[1], out.q[1]])

        at, way, e = jnp.asarray([0.6, 0.5, 1.0]), jnp.asarray([0.3, -1.0, 0.7]), 1e-5
        numeric = (f(at + e * way) - f(at - e * way)) / (2 * e)
        assert np.max(np.abs(jax.jvp(f, (at,), (way,))[1] / numeric - 1)) < 1e-6


def test_training_has_the_overlaps_of_the_theory():
    """Two tasks, N = 500, within 5 standard errors of 10 runs; not with the theory of a heavier prior."""
    rows = []
    for key in jax.random.split(jax.random.key(1), 10):
        keys = jax.random.split(key, 4)
        w1 = jnp.sign(jax.random.normal(keys[0], (N,)))
        w2 = flipped(w1, 0.5, key=keys[1])
        prior, means = (jnp.zeros((N, 1)),), []
        for teacher, k in ((w1, keys[2]), (w2, keys[3])):
            prior, values = learn(*examples_of(teacher, 300, key=k), prior, steps=150)
            means.append(jnp.tanh(prior[0][:, 0]))
        assert abs(values[-1] - values[-10]) < 1e-4 * values[-1]
        a, b = means
        rows.append([v @ w / N for v, w in ((a, a), (a, w1), (b, b), (b, w1), (b, w2), (a, b))])
    rows = np.asarray(rows)
    for weight, off in ((1.0, False), (1.3, True)):
        th = variational_tasks(0.6, 0.6, 0.5, weight=weight).check()
        theory = np.asarray([th.q[0], th.r1[0], th.q[1], th.r1[1], th.r2[1], th.p])
        z = np.abs(rows.mean(0) - theory) / (rows.std(0, ddof=1) / 10**0.5)
        assert (z.max() > 10) if off else (z.max() < 5), z


def test_errors():
    x, y = examples_of(jnp.ones(N), 300, key=jax.random.key(3))
    prior = (jnp.zeros((N, 1)),)
    with pytest.raises(ValueError, match="weight"):
        learn(x, y, prior, weight=-1.0)
    with pytest.raises(ValueError, match="steps"):
        learn(x, y, prior, steps=0)
    with pytest.raises(ValueError, match="lead"):
        margins((jnp.zeros((N, 2)),), x)
    with pytest.raises(ValueError, match="labels"):
        learn(x, 2 * y, prior)
    with pytest.raises(ValueError, match="weight"):
        variational_tasks(0.5, 0.5, 0.5, weight=0.0)
    ambiguous = variational_tasks(0.8, 0.6, 0.5, weight=0.2)
    assert int(ambiguous.status.code) == Code.not_converged
    with pytest.raises(Failure, match="variational_tasks"):
        ambiguous.check()
