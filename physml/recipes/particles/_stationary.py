"""Averages of a stationary run with their errors."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from physml.core.types import Key
from physml.metrics.estimate import Estimate
from physml.particles import AbstractKernel, run_chains


def stationary(
    kernel: AbstractKernel, x0: Any, moves: int, observe: Callable, *, key: Key, burn: int, save_every: int = 1
) -> tuple[Any, Any]:
    """Mean of what `observe` sees of all chains, after `burn` moves that forget the start x0 (chains, ...).

    **Returns** a pytree like one observation of `Estimate`s, whose errors count effective samples, and another of
    integrated autocorrelation times.
    """
    warm = run_chains(kernel, x0, burn, key=key, save_every=burn, keep=False, stats=False).state
    run_key = jax.random.fold_in(key, 1)
    stats = (
        run_chains(kernel, warm, moves, key=run_key, save_every=save_every, keep=False, observe=observe).check().stats
    )

    def estimate(mean, variance, ess):
        mean, variance, ess = (np.asarray(a, np.float64)[()] for a in (mean, variance, ess))
        return Estimate(mean, np.sqrt(variance / ess))

    return jax.tree.map(estimate, stats.mean, stats.variance, stats.ess), jax.tree.map(np.asarray, stats.time)
