"""Distances of sampled laws, averaged over batches, beside what two exact samples score."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml import metrics
from physml.core.types import Key
from physml.recipes.study import Study

# Compiled once for a shape, where every call outside jit compiles its loops anew.
energy_distance = jax.jit(metrics.energy_distance)
wasserstein2 = jax.jit(metrics.wasserstein2)


def batchwise(distance: Callable[[Any, Any], Any], xs: Iterable[Any], ys: Iterable[Any]) -> np.ndarray:
    """The distance of each x to its y, (batches,)."""
    return np.array([float(distance(x, y)) for x, y in zip(xs, ys, strict=True)])


class Target(NamedTuple):
    """Exact samples `fresh` (batches, n, d) of a law, and `floor`, the mean energy distance of two such batches."""

    fresh: Array
    floor: float

    def distance(self, x: Array) -> float:
        """Energy distance of x (batches * n, d), averaged over batches: one alone fluctuates by half its mean."""
        return float(batchwise(energy_distance, x.reshape(self.fresh.shape), self.fresh).mean())

    def reached(self, study: Study, quantity: str, x: Array, ratio: float) -> float:
        """Claim that x is within `ratio` of the floor; returns its distance in floors."""
        distance = self.distance(x)
        study.at_most(quantity, distance, ratio * self.floor, f"{ratio:g} x two exact samples")
        return distance / self.floor


def floor(exact: Callable[..., Array], *, key: Key) -> float:
    """The mean energy distance of two samples `exact(key=key)` (n, d), over 20 pairs: what sampling noise scores."""
    exact = jax.jit(exact)
    pairs = [[exact(key=k) for k in pair] for pair in jax.random.split(key, (20, 2))]
    return float(batchwise(energy_distance, *zip(*pairs, strict=True)).mean())


def target(exact: Callable[..., Array], batches: int, *, fresh_key: Key, floor_key: Key) -> Target:
    """So many batches `exact(key=key)` of a law, and its floor."""
    fresh = jnp.stack([exact(key=k) for k in jax.random.split(fresh_key, batches)])
    return Target(fresh, floor(exact, key=floor_key))
