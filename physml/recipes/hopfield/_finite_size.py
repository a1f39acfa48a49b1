"""Overlaps of simulated networks of several sizes, and the straight line in 1/N that leads from them to the theory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from physml.hopfield import glauber
from physml.metrics import Estimate, mean_and_error, straight_line
from physml.recipes import draw


class Extrapolation(NamedTuple):
    """Overlaps at the sizes, the line `limit + slope / N` through them with its chi^2, and the theory at its end."""

    sizes: np.ndarray
    overlaps: Estimate
    limit: Estimate
    slope: Estimate
    misfit: float
    theory: float


def extrapolate(sizes: Any, rows: Any, theory: float) -> Extrapolation:
    """From the overlaps of networks (sizes, networks)."""
    sizes, overlaps = np.asarray(sizes), mean_and_error(rows, axis=1)
    return Extrapolation(sizes, overlaps, *straight_line(1 / sizes, *overlaps), theory)


def _own_overlap(targets, spins):
    """Overlap of each replica with the pattern it started from, (R,)."""
    return jnp.mean(targets * spins, 1)


def mean_overlap(config: Any, energy: Any, patterns: Any, key: Any) -> float:
    """Mean overlap of the replicas with a pattern each, where they start, over the last two thirds of the sweeps."""
    start = patterns[jnp.arange(config.replicas) % len(patterns)]
    observe = jax.tree_util.Partial(_own_overlap, start)
    out = glauber(energy, start, config.sweeps, temperature=config.temperature, key=key, observe=observe)
    return float(jnp.mean(out.observed[config.sweeps // 3 :]))


def draw_extrapolation(axis: Any, found: Extrapolation, color: str, label: str) -> None:
    """The overlaps over 1/N, the line with its end, and the theory as a bar."""
    inverse = 1 / found.sizes
    draw.measured(axis, inverse, *found.overlaps, sigmas=1.0, color=color, label=label)
    ends = np.array([0, inverse.max()])
    draw.theory(axis, ends, found.limit.value + found.slope.value * ends, color, lw=1)
    draw.measured(axis, [0], [found.limit.value], [found.limit.error], sigmas=1.0, fmt=".", color=color, capsize=3)
    axis.plot([0], [found.theory], "k_", ms=14)
