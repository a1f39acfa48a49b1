r"""Statistics of chains that need no stored chain: moments, R-hat, and autocorrelation by Haar's decomposition.

Averages over blocks of $B = 2^l$ draws are formed pairwise. The squared half-difference of neighbouring blocks,
$D_l = \langle (m_{2k} - m_{2k+1})^2/4 \rangle$, is the variance at scale l: $v_l$, the variance of means over $2^l$
draws, is $\sum_{j \ge l} D_j$ plus the variance between chains. Nothing is subtracted, so nothing cancels. Two updates
a draw on average, whatever the length.

The integrated autocorrelation time is the limit of $\tau_l = 2^l v_l/v_0$, reached as $\tau - c\,2^{-l}$, so
$2 \tau_{l+1} - \tau_l$ is closer; $\mathrm{ESS} = n/\tau$ for all draws of all chains.

**See** Flyvbjerg and Petersen (1989) for blocking; Gelman et al., Bayesian data analysis (2013), eq. 11.4, for R-hat.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from physml.core.tree import flat
from physml.core.types import is_traced


class Accumulator(NamedTuple):
    """Sums so far; leaves end in lanes, halves and levels lead."""

    count: Array
    mean: PyTree  # (2, ..., chains): of each half of the run
    square: PyTree  # (2, ..., chains): sums of squared deviations from it
    waiting: PyTree  # (levels, ..., chains): first block of an unfinished pair
    haar: PyTree  # (levels, ..., chains): sums of squared half-differences
    outer: Array | None  # (d, d): sums of products of deviations from `centre`
    centre: Array | None  # (d,): mean over draws and chains


class Stats(eqx.Module):
    """What was accumulated, over all draws and chains; every property is a pytree like one draw.

    `mean`, `variance`; `cov` (d, d) of the flattened draw where it was small enough to track; `r_hat`, split in
    halves; `time`, the integrated autocorrelation time in draws; `ess`; `autocorrelation` (levels, ...), the
    correlation between neighbouring averages over 1, 2, 4, ... draws, whose first is that at lag one.
    """

    draws: Array
    chains: int = eqx.field(static=True)
    mean: PyTree
    variance: PyTree
    r_hat: PyTree
    time: PyTree
    ess: PyTree
    autocorrelation: PyTree
    covariance: Array | None

    @property
    def cov(self) -> Array:
        """Covariance of the flattened draw, (d, d)."""
        if self.covariance is None:
            raise ValueError(f"the covariance was not tracked: it is for draws of at most {TRACKED} entries")
        return self.covariance

    def __repr__(self) -> str:
        if is_traced(self.draws):
            return "Stats(traced)"
        worst = lambda tree, pick: float(pick(jnp.stack([pick(leaf) for leaf in jax.tree.leaves(tree)])))
        return (
            f"Stats({int(self.draws)} draws of {self.chains} chains, largest r_hat {worst(self.r_hat, jnp.max):.3f}, "
            f"least ess {worst(self.ess, jnp.min):.0f})"
        )


TRACKED = 128


def begin(draw: PyTree, lanes: int, draws: int) -> Accumulator:
    """Nothing yet, for draws like this one, `draws` of them."""
    levels = draws.bit_length()
    leading = lambda k: jax.tree.map(lambda leaf: jnp.zeros((k, *leaf.shape), leaf.dtype), draw)
    flat = _columns(draw, lanes)
    small = flat.shape[0] <= TRACKED
    d, dtype = flat.shape[0], flat.dtype
    outer, centre = (jnp.zeros((d, d), dtype), jnp.zeros((d,), dtype)) if small else (None, None)
    return Accumulator(
        jnp.zeros((), jnp.int32), leading(2), leading(2), leading(levels), leading(levels), outer, centre
    )


def update(sums: Accumulator, draw: PyTree, lanes: int, draws: int) -> Accumulator:
    """Take one more draw into account."""
    draw = lax.stop_gradient(draw)
    half = (sums.count >= draws // 2).astype(jnp.int32)
    seen = sums.count - half * (draws // 2) + 1

    def moments(mean, square, x):
        old = lax.dynamic_index_in_dim(mean, half, keepdims=False)
        new = old + (x - old) / seen.astype(x.dtype)
        square = square.at[half].add((x - old) * (x - new))
        return mean.at[half].set(new), square

    pairs = jax.tree.map(moments, sums.mean, sums.square, draw)
    mean, square = (jax.tree.map(lambda _, pair, i=i: pair[i], draw, pairs) for i in (0, 1))

    # Level l is complete at every 2^(l+1)-th draw: carry block means upwards while they pair up.
    def paired(carry):
        level, *_ = carry
        return ((sums.count >> level) & 1) == 1

    def carry_up(carry):
        level, waiting, haar, block = carry
        first = jax.tree.map(lambda w: lax.dynamic_index_in_dim(w, level, keepdims=False), waiting)
        haar = jax.tree.map(lambda h, a, b: h.at[level].add((a - b) ** 2 / 4), haar, first, block)
        return level + 1, waiting, haar, jax.tree.map(lambda a, b: (a + b) / 2, first, block)

    start = (jnp.zeros((), jnp.int32), sums.waiting, sums.haar, draw)
    level, waiting, haar, block = lax.while_loop(paired, carry_up, start)
    waiting = jax.tree.map(lambda w, b: w.at[level].set(b, mode="drop"), waiting, block)
    outer, centre = sums.outer, sums.centre
    if outer is not None and centre is not None:
        x = _columns(draw, lanes) - centre[:, None]
        step = jnp.mean(x, axis=1) / (sums.count + 1).astype(x.dtype)
        outer, centre = outer + x @ (x - step[:, None]).T, centre + step
    return Accumulator(sums.count + 1, mean, square, waiting, haar, outer, centre)


def finish(sums: Accumulator, lanes: int, draws: int) -> Stats:
    """The statistics of everything seen."""
    over = lambda x: jnp.mean(x, axis=-1) if lanes else x
    chains = jax.tree.leaves(sums.mean)[0].shape[-1] if lanes else 1
    halves = (draws // 2, draws - draws // 2)

    def one(mean, square, waiting, haar):
        dtype = mean.dtype
        counts = jnp.asarray(halves, dtype).reshape(2, *(1,) * (mean.ndim - 1))
        whole = jnp.sum(mean * counts, axis=0) / draws  # of each chain
        grand = over(whole)
        spread = jnp.sum(square, axis=0) + jnp.sum(counts * (mean - whole[None]) ** 2, axis=0)
        between = over((whole - grand[..., None]) ** 2) if lanes else jnp.zeros_like(grand)
        variance = over(spread) / draws + between
        top = jnp.var(waiting[-1], axis=-1, ddof=1) if chains > 1 else None
        time, correlation = _blocking(over(haar), top, variance, draws, chains)
        return grand, variance, _r_hat(mean, square, halves, lanes), time, draws * chains / time, correlation

    rows = jax.tree.map(one, sums.mean, sums.square, sums.waiting, sums.haar)
    columns = [jax.tree.map(lambda _, row, i=i: row[i], sums.mean, rows) for i in range(6)]
    covariance = None if sums.outer is None else sums.outer / (draws * chains)
    mean, variance, r_hat, time, ess, correlation = columns
    return Stats(sums.count, chains, mean, variance, r_hat, time, ess, correlation, covariance)


def _blocking(haar, top, variance, draws, chains):
    """Autocorrelation time from the variance at each scale; blocks of at least ten times it, while enough are left.

    `top`: variance between chains of means over the longest block, 2^m draws. One chain has none: then the missing
    term is taken from the plateau, v_m = 2^(l - m) v_l.
    """
    m = haar.shape[0] - 1
    each = lambda values: jnp.asarray(values, variance.dtype).reshape(-1, *(1,) * variance.ndim)
    blocks = [draws >> (level + 1) for level in range(m)]
    detail = haar[:m] / each(blocks) if m else jnp.zeros_like(variance)[None]
    tail = jnp.cumsum(detail[::-1], axis=0)[::-1]
    if top is None:
        of_means = tail / each([1 - 2.0 ** (level - max(m, 1)) for level in range(len(tail))])
    else:
        of_means = tail + top[None]  # v_l, l = 0, ..., m - 1
    next_means = jnp.concatenate([of_means[1:], (of_means[-1:] if top is None else top[None])])
    rho = next_means * 2 / jnp.where(of_means > 0, of_means, 1) - 1
    correlation = jnp.where(of_means > 0, rho, jnp.nan)
    usable = max(1, sum(1 for b in blocks if b * chains >= 32))
    safe = jnp.where(variance > 0, variance, 1)
    long = each([2.0**level for level in range(usable)])
    tau = long * of_means[:usable] / safe[None]
    better = jnp.concatenate([2 * tau[1:] - tau[:-1], tau[-1:]]) if usable > 1 else tau
    enough = (long >= 10 * tau) & (jnp.arange(usable).reshape(long.shape) < usable - 1)
    chosen = jnp.where(enough.any(0), jnp.argmax(enough, axis=0), usable - 1)
    time = jnp.take_along_axis(better, chosen[None], axis=0)[0]
    # Anticorrelated draws can beat independent ones, but an estimate near zero is noise.
    floor = 1 / math.log10(max(draws * chains, 10))
    return jnp.where(variance > 0, jnp.maximum(time, floor), jnp.nan), correlation


def _r_hat(mean, square, halves, lanes):
    """Split R-hat: both halves of every chain are sequences of their own."""
    n = min(halves)
    within = square / jnp.asarray([max(h - 1, 1) for h in halves], mean.dtype).reshape(2, *(1,) * (mean.ndim - 1))
    axes = (0, mean.ndim - 1) if lanes else (0,)
    W, B = jnp.mean(within, axis=axes), jnp.var(mean, axis=axes, ddof=1)
    return jnp.where(W > 0, jnp.sqrt((n - 1) / max(n, 1) + B / jnp.where(W > 0, W, 1)), jnp.nan)


def _columns(draw, lanes):
    """(d, chains)."""
    return flat(draw, lanes) if lanes else flat(draw)[:, None]
