"""Distances of sampled laws, averaged over batches, beside what two exact samples score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml import metrics
from physml.core.types import Key


def floor_distance(exact: Callable[[Key], Array], *, key: Key, pairs: int = 20) -> float:
    """Mean energy distance of two samples `exact(key)`: what sampling noise alone scores."""
    keys = jax.random.split(key, (pairs, 2))
    return float(np.mean([float(metrics.energy_distance(exact(a), exact(b))) for a, b in keys]))


def mean_distance(x: Array, fresh: Array) -> float:
    """Energy distance of x (batches * n, d) to exact samples (batches, n, d), averaged over batches.

    A batch alone fluctuates by half its mean.
    """
    pairs = zip(x.reshape(fresh.shape), fresh, strict=True)
    return float(jnp.mean(jnp.stack([metrics.energy_distance(a, b) for a, b in pairs])))
