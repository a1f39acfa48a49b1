"""Hopfield layers on bags and tables in the small configuration; shuffled labels are not predicted."""

import dataclasses

import jax
import numpy as np
import pytest

from physml.recipes.hopfield import multiple_instance as recipe


@pytest.fixture(scope="module")
def result():
    return recipe.run(recipe.SMOKE, key=jax.random.key(0))


def test_smoke_holds(result):
    result.check()
    assert len(recipe.plot(result).axes) == 4


def test_bags_hold_what_their_label_says():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 17, (50, 64)), np.arange(50) % 10
    bag, mask, label, hits = recipe.make_bags(x, y, 40, (3, 6), rng)
    assert bag.shape == (40, 6, 64) and mask.sum(1).min() >= 3
    np.testing.assert_array_equal(hits.any(1), label > 0)
    assert hits.sum(1).max() <= 2 and label.mean() == 0.5
    score, positive = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])
    assert recipe.auc(score, positive) == pytest.approx((2 + 1.5) / 4)


def test_shuffled_labels_are_not_predicted(monkeypatch):
    """With the labels of the table dealt anew the same claim fails."""
    import sklearn.datasets

    load = sklearn.datasets.load_iris

    def shuffled(return_X_y):
        x, y = load(return_X_y=return_X_y)
        return x, np.random.default_rng(0).permutation(y)

    metrics: dict = {}
    monkeypatch.setattr(sklearn.datasets, "load_iris", shuffled)
    recipe._tables(recipe.SMOKE, jax.random.key(0), np.random.default_rng(0), [], metrics)
    assert metrics["iris, Hopfield"] < 0.6


def test_errors():
    with pytest.raises(ValueError, match="poolings"):
        dataclasses.replace(recipe.PAPER, poolings=("mean",))
