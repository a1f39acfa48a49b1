"""Real digits as models make and meet them: numbers, images of 17 levels, a judge of their class, re-splits, mosaics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml import data
from physml.core.types import Key
from physml.recipes import draw
from physml.recipes.distances import batchwise

DIM, LEVELS, CLASSES = 64, 17, 10


def numbers(levels: Any, key: Key) -> Array:
    """Levels as real numbers, spread evenly over each level and scaled to [-1, 1]."""
    return data.scale(data.dequantise(jnp.asarray(levels), LEVELS, key=key))


def image(x: Array) -> Array:
    """Numbers as an image, rounded to the levels, which also cuts a Gaussian's tails; in [-1, 1]."""
    return data.quantise(data.unscale(x), LEVELS).astype(x.dtype) / 8 - 1


def classifier(x: Any, y: Any) -> Any:
    """A support vector machine of the images x; `score(x, y)` is the share that it takes for what they should be."""
    from sklearn.svm import SVC

    return SVC(C=10.0, gamma="scale").fit(np.asarray(x), y)


def resplits(distance: Callable[[Any, Any], Any], pool: Array, n: int, key: Key, splits: int) -> np.ndarray:
    """Distances of two random halves of real images, n each: what no model can beat on average."""
    halves = jax.jit(lambda k: jax.random.permutation(k, pool)[: 2 * n].reshape(2, n, -1))
    return batchwise(distance, *zip(*[halves(k) for k in jax.random.split(key, splits)], strict=True))


def binomial(share: float, n: int) -> float:
    """Standard error of a share of n, that of one count where none or all have it."""
    return np.sqrt(max(share * (1 - share), 1 / n) / n)


def mosaic(axis: Any, x: Any, columns: int, title: str) -> None:
    """Images (n, 64) in rows of `columns`."""
    tiles = draw.mosaic(np.reshape(x, (-1, 8, 8)), columns, fill=np.nan)
    draw.image(axis, tiles, title, vmin=-1, vmax=1)
