"""Potentials and weights of the separations: closed forms, gradients at extreme logits, masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.hopfield.memory.separation import Polynomial, Potential, Softmax1, separation

NAMES = ("softmax", "softmax1", "sparsemax", "polynomial")


def _numpy(name, z):
    """The weights of one row, each by another formula than the library's."""
    z = np.asarray(z, np.float64)
    if name == "softmax":
        return np.exp(z - np.logaddexp.reduce(z))
    if name == "softmax1":
        return np.exp(z - np.logaddexp.reduce(np.append(z, 0.0)))
    if name == "polynomial":
        u = np.maximum(z, 0) / max(z.max(), 1e-300)
        return u**3 / np.sum(u**4) ** 0.75 if z.max() > 0 else np.zeros_like(z)
    low, high = z.max() - 1, z.max()
    for _ in range(200):
        tau = 0.5 * (low + high)
        low, high = (tau, high) if np.maximum(z - tau, 0).sum() > 1 else (low, tau)
    return np.maximum(z - tau, 0)


@functools.cache
def _everything(name):
    """Compiled once for each dtype: weights, potential, and their derivatives along v; for masked logits the same."""
    sep = separation(name)

    def one(z, v, mask):
        f = lambda z: (sep.weights(z, mask), sep.potential(z, mask))
        value, move = jax.jvp(f, (z,), (v,))
        slope = jax.grad(lambda z: jnp.sum(v * sep.weights(z, mask)))(z)
        return (*value, *move, slope, jax.grad(lambda z: sep.potential(z, mask))(z))

    return jax.jit(jax.vmap(one, (0, None, 0)))


SHOWN = np.ones((20, 7), bool)


@pytest.mark.parametrize("name", NAMES)
def test_weights_at_extreme_logits_in_float32(name):
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(20, 7)) * 2 + np.repeat([0.0, 0.0, 200.0, -200.0], 5)[:, None]).astype(np.float32)
    out = _everything(name)(z, rng.normal(size=7).astype(np.float32), SHOWN)
    # Above 200 a logit of float32 is known to 1e-5, so a difference of two of them no better.
    np.testing.assert_allclose(out[0], [_numpy(name, row) for row in z], rtol=1e-4, atol=2e-5)
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in out)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_against_differences(name):
    """Forward, reverse, and the potential's gradient, which is the weights; at 0, 200 and -200."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        z = rng.normal(size=(20, 7)) * 0.4 + np.repeat([0.0, 0.0, 200.0, -200.0], 5)[:, None]
        v, e, f = rng.normal(size=7), 1e-6, _everything(name)
        weights, _, move, rise, slope, gradient = map(np.asarray, f(z, v, SHOWN))
        above, below = f(z + e * v, v, SHOWN), f(z - e * v, v, SHOWN)
        difference = [np.asarray(a - b) / (2 * e) for a, b in zip(above[:2], below[:2], strict=True)]
    np.testing.assert_allclose(move, difference[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(rise, difference[1], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(slope @ v, move @ v, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient, weights, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_potential_is_convex_and_bounded_by_its_constant(name):
    """max z <= Phi(z) <= max z + Phi(0) with weights on the simplex, which makes the energy non-negative."""
    rng = np.random.default_rng(2)
    a, b = 3 * rng.normal(size=(2, 20, 7)).astype(np.float32)
    phi = lambda z: np.asarray(_everything(name)(z.astype(np.float32), np.ones(7, np.float32), SHOWN)[1])
    assert (phi(0.5 * (a + b)) <= 0.5 * (phi(a) + phi(b)) + 1e-5).all()
    if name != "polynomial":
        gap = phi(a) - np.maximum(a.max(-1), 0 if name == "softmax1" else -np.inf)
        assert (gap >= -1e-5).all() and (gap <= phi(0 * a) + 1e-5).all()


@pytest.mark.parametrize("name", NAMES)
def test_masked_logits_are_as_if_absent(name):
    """Whatever is behind the mask, infinite or not a number; with nothing visible everything is zero."""
    z = np.random.default_rng(3).normal(size=(20, 7)).astype(np.float32)
    z[:, 2], z[:, 4] = np.nan, 1e30
    mask = SHOWN.copy()
    mask[:, [0, 2, 4]], mask[10:] = False, False
    out = _everything(name)(z, np.ones(7, np.float32), mask)
    np.testing.assert_allclose(
        out[0][:10, mask[0]], [_numpy(name, row) for row in z[:10, mask[0]]], rtol=1e-4, atol=1e-6
    )
    assert all(np.isfinite(x).all() for x in out)
    assert (np.where(mask, 0, out[0]) == 0).all() and (out[1][10:] == 0).all()


def test_a_shift_by_the_maximum_alone_is_noticed():
    """softmax_1 shifted like softmax divides by zero and infinity at -200, which the right shift does not."""

    class Wrong(Softmax1):
        def _peak(self, z):
            return jnp.max(z, -1)

    z = jnp.full((4,), -200.0)
    slope = lambda sep: jax.grad(lambda z: sep.potential(z) + jnp.sum(sep.weights(z)))(z)
    assert jnp.isfinite(slope(Softmax1())).all()
    assert not jnp.isfinite(slope(Wrong())).all()


def test_your_own_potential_and_errors():
    z = np.random.default_rng(4).normal(size=(20, 7)).astype(np.float32)
    own, soft = separation(jax.nn.logsumexp), _everything("softmax")(z, np.ones(7, np.float32), SHOWN)
    np.testing.assert_allclose(jax.jit(own.weights)(z), soft[0], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(own.potential)(z), soft[1], rtol=1e-5)
    assert isinstance(own, Potential) and separation(own) is own
    with pytest.raises(ValueError, match="no mask"):
        own.weights(jnp.asarray(z), jnp.asarray(SHOWN))
    with pytest.raises(ValueError, match="softmax1"):
        separation("hardmax")
    with pytest.raises(ValueError, match="degree"):
        Polynomial(1.5)
    # A logit that is not a number must not look like a memory of weight zero.
    z[0, 0] = np.nan
    for name in NAMES:
        assert np.isnan(_everything(name)(z, np.ones(7, np.float32), SHOWN)[0][0]).any()
