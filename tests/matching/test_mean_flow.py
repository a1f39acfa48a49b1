"""Average velocities against the flow of a Gaussian, which is known in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import matching, nn
from physml.matching import (
    exact_fields,
    instantaneous,
    linear,
    match,
    mean_flow_loss,
    one_step,
    sample,
    sample_mean_flow,
)

DIM = 2


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _gaussian(seed, dtype):
    """A random target N(mean, cov) and its average velocity on the linear path from N(0, I).

    The flow scales the eigenvector of eigenvalue c by s(r)/s(t), s(t)^2 = (1-t)^2 + t^2 c, about the mean t m, so
    u = m + Q [(s(r) - s(t)) / ((r - t) s(t))] Q^T (x - t m), and s(r)^2 - s(t)^2 = (r - t) [(r + t)(1 + c) - 2].
    """
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(DIM, DIM))
    mean, cov = rng.normal(size=DIM), factor @ factor.T / DIM + 0.1 * np.eye(DIM)
    values, vectors = np.linalg.eigh(cov)
    mean, cov, c, q = (jnp.asarray(a, dtype) for a in (mean, cov, values, vectors))

    def u(times, x, args=None):
        t, r = times[0], times[1]
        s = lambda t: jnp.sqrt((1 - t) ** 2 + t**2 * c)
        rate = ((r + t) * (1 + c) - 2) / ((s(r) + s(t)) * s(t))
        return mean + q @ (rate * (q.T @ (x - t * mean)))

    return (jnp.ones(1, dtype), mean[None], cov[None]), u


def _draw(target, n, key, dtype):
    source_key, data_key = jax.random.split(key)
    return jax.random.normal(source_key, (n, DIM), dtype), matching.mixture_sample(target, n, key=data_key)


def _random_times(key, n):
    return jnp.sort(jax.random.uniform(key, (n, 2), jnp.float64), axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_closed_form_moves_along_the_flow(x64, seed):
    target, u = _gaussian(seed, jnp.float64)
    velocity = exact_fields(linear(), None, target).velocity
    x0 = jax.random.normal(jax.random.key(seed), (8, DIM), jnp.float64)
    far = jax.vmap(lambda x: sample(velocity, x, steps=400))(x0)
    np.testing.assert_allclose(jax.vmap(lambda x: one_step(u, x))(x0), far, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_identity_with_this_sign(x64, seed):
    target, u = _gaussian(seed, jnp.float64)
    velocity = exact_fields(linear(), None, target).velocity
    times = _random_times(jax.random.key(seed), 64)
    x = jax.random.normal(jax.random.key(seed + 1), (64, DIM), jnp.float64)

    def gap(times, x, sign):
        v = velocity(times[0], x)
        value, du = jax.jvp(u, (times, x), (jnp.array([1.0, 0.0]), v))
        return value - v - sign * (times[1] - times[0]) * du

    assert jnp.abs(jax.vmap(lambda t, x: gap(t, x, 1.0))(times, x)).max() < 1e-6
    assert jnp.abs(jax.vmap(lambda t, x: gap(t, x, -1.0))(times, x)).max() > 0.1


@pytest.mark.parametrize("modulation", [0.0, 0.5, 1.0])
def test_loss_is_zero_at_the_exact_field_with_the_exact_velocity(x64, modulation):
    target, u = _gaussian(3, jnp.float64)
    velocity = exact_fields(linear(), None, target).velocity
    x0, x1 = _draw(target, 128, jax.random.key(0), jnp.float64)
    value = lambda field: mean_flow_loss(
        field, linear(), x0, x1, key=jax.random.key(1), modulation=modulation, velocity=velocity
    )
    assert value(u) < 1e-20
    assert value(lambda times, x, args: 1.01 * u(times, x)) > 1e-6


def _perturbation(times, x):
    """Directions in function space, (8, DIM): polynomials in x and the times with a fixed vector each."""
    t, r = times[0], times[1]
    basis = jnp.stack([jnp.ones_like(t), t, r, x[0], x[1] * (r - t), x[0] * x[1], jnp.sin(x[0] + r), x[1] ** 2 * t])
    return basis[:, None] * jnp.array([1.0, -0.5], x.dtype)[None, :]


def _slopes(u, target, *, batches, n=256, **options):
    """Derivatives of the loss along the perturbations at u, (batches, 8)."""

    def slope(key):
        data_key, loss_key = jax.random.split(key)
        x0, x1 = _draw(target, n, data_key, jnp.float64)

        def value(c):
            return mean_flow_loss(
                lambda times, x, args: u(times, x) + c @ _perturbation(times, x),
                linear(), x0, x1, key=loss_key, **options,
            )  # fmt: skip

        return jax.grad(value)(jnp.zeros(8, jnp.float64))

    return jax.jit(jax.vmap(slope))(jax.random.split(jax.random.key(7), batches))


def _z(slopes):
    return np.asarray(slopes.mean(0) / (slopes.std(0, ddof=1) / np.sqrt(len(slopes))))


@pytest.mark.parametrize("options", [{}, {"flow_ratio": 0.0}, {"logit_normal": (0.4, 1.0)}])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_vanishes_at_the_exact_field(x64, seed, options):
    target, u = _gaussian(seed, jnp.float64)
    assert np.abs(_z(_slopes(u, target, batches=200, **options))).max() < 5
    wrong = lambda times, x, args=None: u(times, x) + 0.05 * x
    assert np.abs(_z(_slopes(wrong, target, batches=200, **options))).max() > 5


def test_modulation_is_biased_by_the_noise_of_records_and_only_by_it(x64):
    target, u = _gaussian(0, jnp.float64)
    biased = _slopes(u, target, batches=200, modulation=1.0, flow_ratio=0.0)
    assert np.abs(_z(biased)).max() > 5
    velocity = exact_fields(linear(), None, target).velocity
    exact = _slopes(u, target, batches=8, modulation=1.0, flow_ratio=0.0, velocity=velocity)
    assert np.abs(exact).max() < 1e-12


def test_modulation_interpolates_between_its_two_gradients(key):
    target, _ = _gaussian(1, jnp.float32)
    x0, x1 = _draw(target, 64, key, jnp.float32)
    field = nn.MLP(DIM, width=8, depth=2, times=2, frequencies=0, key=key)

    @jax.jit
    def both(modulation):
        value = lambda f: mean_flow_loss(f, linear(), x0, x1, key=key, modulation=modulation)
        loss, slope = eqx.filter_value_and_grad(value)(field)
        return loss, jax.flatten_util.ravel_pytree(slope)[0]

    losses, slopes = zip(*(both(jnp.float32(m)) for m in (0.0, 0.3, 1.0)), strict=True)
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    np.testing.assert_allclose(slopes[1], 0.7 * slopes[0] + 0.3 * slopes[2], atol=1e-5)
    assert jnp.abs(slopes[2] - slopes[0]).max() > 1e-3
    static = eqx.filter_grad(lambda f: mean_flow_loss(f, linear(), x0, x1, key=key))(field)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(static)[0], slopes[0], atol=1e-6)


def test_full_modulation_is_the_gradient_of_the_loss(x64, key):
    target, u = _gaussian(2, jnp.float64)
    x0, x1 = _draw(target, 32, key, jnp.float64)
    value = lambda c, m: mean_flow_loss(
        lambda times, x, args: c * jnp.sin(u(times, x)) * times[0], linear(), x0, x1, key=key, modulation=m
    )
    eps = 1e-5
    difference = (value(1 + eps, 0.0) - value(1 - eps, 0.0)) / (2 * eps)
    slopes = [float(jax.grad(value)(1.0, m)) for m in (1.0, 0.0)]
    np.testing.assert_allclose(slopes[0], difference, rtol=1e-7)
    assert abs(slopes[1] - difference) > 1e-2 * abs(difference)


def test_equal_times_are_flow_matching(x64):
    """The same expectation as `match`, and a field that sees r = t in every pair."""
    target, u = _gaussian(0, jnp.float64)
    x0, x1 = _draw(target, 2048, jax.random.key(0), jnp.float64)
    wrong = lambda times, x, args=None: u(times, x) + 0.1 * x
    keys = jax.random.split(jax.random.key(1), 64)
    ours = jax.jit(jax.vmap(lambda k: mean_flow_loss(wrong, linear(), x0, x1, key=k, flow_ratio=1.0)))(keys)
    theirs = jax.jit(jax.vmap(lambda k: match(instantaneous(wrong), linear(), x0, x1, key=k)))(keys)
    error = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / 64)
    assert abs(ours.mean() - theirs.mean()) < 5 * error
    # The total derivative does not enter: an infinite one of r - t would otherwise show.
    spread = lambda times, x, args=None: u(times, x) + 1e6 * (times[1] - times[0]) * x
    plain = mean_flow_loss(u, linear(), x0, x1, key=keys[0], flow_ratio=1.0)
    np.testing.assert_allclose(mean_flow_loss(spread, linear(), x0, x1, key=keys[0], flow_ratio=1.0), plain, rtol=1e-12)


@pytest.mark.parametrize("flow_ratio", [0.0, 0.25, 0.75, 1.0])
def test_times_are_ordered_uniform_and_equal_in_the_asked_share(flow_ratio):
    from physml.matching.losses.mean_flow import _times

    n, batches = 64, 400
    keys = jax.random.split(jax.random.key(0), batches)
    draw = lambda keys, law: np.asarray(jax.vmap(lambda k: _times(k, n, flow_ratio, law, jnp.float32))(keys))
    times = draw(keys, None)
    equal = times[..., 0] == times[..., 1]
    assert (times[..., 0] <= times[..., 1]).all()
    assert times.min() >= 0
    assert times.max() <= 1
    np.testing.assert_allclose(equal.mean(1), flow_ratio, atol=1.5 / n)
    np.testing.assert_allclose(equal.mean(0), flow_ratio, atol=5 * 0.5 / np.sqrt(batches))  # every row alike
    apart = times[~equal]
    if len(apart):  # the smaller and the larger of two uniform numbers
        error = 5 * np.sqrt(1 / 18 / len(apart))
        np.testing.assert_allclose(apart.mean(0), [1 / 3, 2 / 3], atol=error)
    if equal.any():
        np.testing.assert_allclose(times[equal].mean(), 0.5, atol=5 * np.sqrt(1 / 12 / equal.sum()))
    logits = np.log(draw(keys, (0.4, 0.8))[equal] / (1 - draw(keys, (0.4, 0.8))[equal]))
    if logits.size:
        np.testing.assert_allclose(logits.mean(), 0.4, atol=5 * 0.8 / np.sqrt(len(logits)))


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_adaptive_weight(x64, power):
    """For one sample: gradient and value are those of the plain loss times (loss + c)^-p."""
    target, u = _gaussian(0, jnp.float64)
    x0, x1 = _draw(target, 1, jax.random.key(0), jnp.float64)
    value = lambda c, **options: mean_flow_loss(
        lambda times, x, args: c * u(times, x), linear(), x0, x1, key=jax.random.key(1), flow_ratio=0.0, **options
    )
    plain, slope = jax.value_and_grad(value)(0.7)
    weighted, weighted_slope = jax.value_and_grad(lambda c: value(c, adaptive_power=power, adaptive_floor=0.1))(0.7)
    weight = (plain + 0.1) ** -power
    np.testing.assert_allclose([weighted, weighted_slope], [weight * plain, weight * slope], rtol=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 10])
def test_one_step_is_many_steps(x64, steps):
    _, u = _gaussian(1, jnp.float64)
    x0 = jax.random.normal(jax.random.key(0), (16, DIM), jnp.float64)
    once = jax.vmap(lambda x: one_step(u, x))(x0)
    np.testing.assert_allclose(jax.vmap(lambda x: sample_mean_flow(u, x, steps=steps))(x0), once, atol=1e-12)


def test_instantaneous_is_the_velocity(x64):
    target, u = _gaussian(2, jnp.float64)
    velocity = exact_fields(linear(), None, target).velocity
    t = jax.random.uniform(jax.random.key(0), (16,), jnp.float64)
    x = jax.random.normal(jax.random.key(1), (16, DIM), jnp.float64)
    np.testing.assert_allclose(jax.vmap(instantaneous(u))(t, x), jax.vmap(velocity)(t, x), atol=1e-12)


@pytest.mark.parametrize("steps", [1, 4])
def test_gradient_through_the_sampler(x64, key, steps):
    field = nn.MLP(DIM, width=16, depth=2, times=2, key=key, dtype=jnp.float64)
    x0 = jax.random.normal(key, (DIM,), jnp.float64)
    f = lambda x, scale: jnp.sum(jnp.sin(sample_mean_flow(lambda t, x, a: scale * field(t, x), x, steps=steps)))
    slope, scale_slope = jax.grad(f, (0, 1))(x0, 1.3)
    eps = 1e-6
    difference = [(f(x0 + eps * e, 1.3) - f(x0 - eps * e, 1.3)) / (2 * eps) for e in jnp.eye(DIM, dtype=x0.dtype)]
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    np.testing.assert_allclose(scale_slope, (f(x0, 1.3 + eps) - f(x0, 1.3 - eps)) / (2 * eps), rtol=1e-6)


@pytest.mark.parametrize("net", [nn.MLP, nn.ResidualMLP])
def test_conditional_nets_train_and_sample(net, key):
    field = net(DIM, width=16, depth=2, times=2, classes=3, key=key)
    x0 = jax.random.normal(key, (12, DIM))
    label = jnp.arange(12) % 3
    value = lambda f: mean_flow_loss(f, linear(), x0, x0[::-1], key=key, args=label, modulation=0.5, adaptive_power=0.5)
    loss, slope = eqx.filter_jit(eqx.filter_value_and_grad(value))(field)
    assert loss.dtype == jnp.float32
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(slope))
    assert jax.vmap(lambda x, a: one_step(field, x, args=a))(x0, label).shape == x0.shape
    flow = jax.vmap(lambda x, a: sample(instantaneous(field), x, steps=3, args=a))
    assert flow(x0, label).shape == x0.shape


def test_float64_stays(x64, key):
    field = nn.MLP(DIM, width=8, depth=2, times=2, key=key, dtype=jnp.float64)
    x0 = jax.random.normal(key, (4, DIM), jnp.float64)
    assert mean_flow_loss(field, linear(), x0, x0, key=key, logit_normal=(0.0, 1.0)).dtype == jnp.float64
    assert one_step(field, x0[0]).dtype == jnp.float64


def test_paths_with_steep_ends_and_noise_are_finite(key):
    field = nn.MLP(DIM, width=8, depth=2, times=2, key=key)
    x0, x1 = jax.random.normal(key, (2, 256, DIM))
    for path in (matching.brownian_bridge(0.5), matching.variance_preserving()):
        assert jnp.isfinite(mean_flow_loss(field, path, x0, x1, key=key))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modulation": 1.5}, r"modulation must be at least 0 and at most 1, got 1\.5"),
        ({"modulation": -0.1}, "modulation must be at least 0 and at most 1"),
        ({"modulation": float("nan")}, "modulation must be at least 0 and at most 1"),
        ({"flow_ratio": 1.2}, "flow_ratio must be at least 0 and at most 1"),
        ({"adaptive_power": -1.0}, "adaptive_power must be at least 0"),
        ({"adaptive_floor": 0.0}, "adaptive_floor must be positive"),
        ({"logit_normal": (0.0, 0.0)}, "std must be positive, got 0.0"),
        ({"args": jnp.zeros(3)}, "leading axis of the batch, 4"),
        ({"velocity": lambda t, x, args: x[:1]}, "the velocity must return"),
    ],
)
def test_refuses_options(options, message, key):
    x = jnp.zeros((4, DIM))
    with pytest.raises(ValueError, match=message):
        mean_flow_loss(lambda times, x, args: x, linear(), x, x, key=key, **options)


def test_refuses_shapes(key):
    x = jnp.zeros((4, DIM))
    with pytest.raises(ValueError, match="batches of one shape"):
        mean_flow_loss(lambda times, x, args: x, linear(), x, x[:3], key=key)
    with pytest.raises(ValueError, match="the field must return"):
        mean_flow_loss(lambda times, x, args: x.sum(), linear(), x, x, key=key)
    with pytest.raises(ValueError, match="the field must return"):
        one_step(lambda times, x, args: x[:1], x[0])
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, got 0"):
        sample_mean_flow(lambda times, x, args: x, x[0], steps=0)
    with pytest.raises(ValueError, match="floating point"):
        one_step(lambda times, x, args: x, jnp.zeros(DIM, int))
