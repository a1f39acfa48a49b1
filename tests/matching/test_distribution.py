"""A flow as a distribution, on exact fields: its density is the mixture's, its samples have its moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_gradient, assert_refused, z_score

from physml import matching as m

KEY = jax.random.key(0)
LAW = (
    jnp.array([0.3, 0.7]),
    jnp.array([[1.0, -1.0], [-0.5, 1.0]]),
    jnp.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]]),
)


@pytest.mark.parametrize("path", [m.linear(), m.trigonometric(), m.variance_exploding(0.02, 50.0)])
def test_density_and_samples_are_those_of_the_target(path):
    flow = m.Flow(m.exact_fields(path, None, LAW).velocity, path, (2,), steps=200)
    x = m.mixture_sample(LAW, 50, key=KEY)
    exact = jax.vmap(lambda x: m.mixture_log_prob(LAW, x))(x)
    wide = path.coefficients(jnp.zeros(()))[0][0] > 1  # which ends near the target: smoothed by 0.02
    np.testing.assert_allclose(flow.log_prob(x), exact, atol=0.05 if wide else 0.02)
    mean = np.asarray(LAW[0]) @ np.asarray(LAW[1])
    assert np.abs(z_score(flow.sample(KEY, 4000), mean)).max() < 5


def test_conditions_go_along():
    """x ~ N(c, 1/4): the exact velocity has the mean as an argument."""
    velocity = lambda t, x, c: c + (x - t * c) * (t / 4 - (1 - t)) / ((1 - t) ** 2 + t**2 / 4)
    flow = m.Flow(velocity, m.linear(), m.Normal((1,)), steps=60)
    c = jnp.linspace(-2, 2, 3000)[:, None]
    x = flow.sample(KEY, 3000, c)
    residual = np.asarray(x - c)[:, 0]
    assert abs(z_score(residual, 0)) < 5 and abs(z_score(residual**2, 0.25)) < 5
    np.testing.assert_allclose(
        flow.log_prob(x[:9], c[:9]), jax.scipy.stats.norm.logpdf(2 * residual[:9]) + np.log(2), atol=0.01
    )
    one = flow.log_prob(x[:4], c[5], batched=False)
    np.testing.assert_allclose(one, flow.log_prob(x[:4], jnp.broadcast_to(c[5], (4, 1))), rtol=1e-5)
    # One probe for a single coordinate is exact.
    np.testing.assert_allclose(flow.log_prob(x[:4], c[:4], key=KEY), flow.log_prob(x[:4], c[:4]), atol=1e-4)


def test_gradient_in_a_parameter_of_the_field():
    flow = lambda s: m.Flow(lambda t, x, args: s * x, None, (2,), steps=10).log_prob(jnp.array([[0.3, 0.7]]))[0]
    np.testing.assert_allclose(
        flow(jnp.array(0.4)), m.Normal((2,)).log_prob(jnp.array([0.3, 0.7]) * np.exp(-0.4)) - 0.8, rtol=1e-4
    )
    assert_gradient(flow, jnp.array(0.4), step=1e-2, rtol=5e-3)


def test_mistakes():
    field = lambda t, x, args: x
    assert_refused(lambda: m.Flow(field, m.linear()), "sample and log_prob")
    assert_refused(lambda: m.Flow(3.0, m.linear(), (2,)), "field")
    assert_refused(lambda: m.Flow(field, "linear", (2,)), "Path")
    flow = m.Flow(field, m.linear(), (2,), steps=2)
    assert_refused(lambda: flow.sample(KEY, 0), "n must")
    assert_refused(lambda: flow.sample(KEY, 3, jnp.ones(2)), "leading axis of 3")
    assert_refused(lambda: flow.log_prob(1.0), "samples")
