"""Distances of sampled laws, averaged over batches, beside what two exact samples score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml import metrics
from physml.core.types import Key

# Compiled once for a shape, where every call outside jit compiles its loops anew.
_energy_distance = jax.jit(metrics.energy_distance)


def floor_distance(exact: Callable[[Key], Array], *, key: Key, pairs: int = 20) -> float:
    """Mean energy distance of two samples `exact(key)`: what sampling noise alone scores."""
    exact = jax.jit(exact)
    keys = jax.random.split(key, (pairs, 2))
    return float(np.mean([float(_energy_distance(exact(a), exact(b))) for a, b in keys]))


def mean_distance(x: Array, fresh: Array) -> float:
    """Energy distance of x (batches * n, d) to exact samples (batches, n, d), averaged over batches.

    A batch alone fluctuates by half its mean.
    """
    pairs = zip(x.reshape(fresh.shape), fresh, strict=True)
    return float(jnp.mean(jnp.stack([_energy_distance(a, b) for a, b in pairs])))
