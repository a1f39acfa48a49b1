"""Diagnostics of Markov chains, arrays (draws, chains, ...), and of weighted samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from physml.core.program import program
from physml.metrics._samples import real

Chains = Num[Array | np.ndarray, "..."]


def autocorrelation_time(x: Chains) -> Float[Array, "..."]:
    r"""Integrated autocorrelation time: how many draws are worth one independent draw.

    $$\tau = 1 + 2 \sum_{t \ge 1} \rho_t, \qquad
    \rho_t = 1 - \frac{W - \bar\gamma_t}{\widehat{\mathrm{var}}^+}$$

    with W the variance within chains, $\bar\gamma_t$ the autocovariance averaged over chains and
    $\widehat{\mathrm{var}}^+$ the variance that counts the disagreement of chains. The sum stops by Geyer's
    rule: pairs $\rho_{2t} + \rho_{2t+1}$ are kept while positive and made monotone.

    **Arguments.** `x` (draws, chains, ...): at least 4 draws; a single chain is (draws, 1, ...).
    **Returns** tau, one per trailing entry, at least 1/log10(draws chains); NaN for a quantity that never
    moves. **Cost.** One FFT of twice the length. **Errors.** ValueError for too few draws or axes. **See**
    Geyer (1992); Vehtari et al. (2021), "Rank-normalization, folding, and localization".
    """
    return _per_quantity(_time, _chains(x))


def ess(x: Chains) -> Float[Array, "..."]:
    r"""Effective sample size of a mean over chains: draws chains / `autocorrelation_time`.

    **Arguments.** `x` (draws, chains, ...), as `run_chains` returns samples; arrays of arviz are (chains, draws, ...)
    and need these axes swapped. **Returns** one number per trailing entry.
    """
    return _per_quantity(_effective, _chains(x))


def r_hat(x: Chains, *, split: bool = True, rank: bool = False) -> Float[Array, "..."]:
    r"""Potential scale reduction: one when chains agree with each other.

    $$\hat R = \sqrt{\frac{\frac{n-1}{n} W + \frac1n B}{W}}$$

    **Arguments.** `x` (draws, chains, ...): at least 4 draws. `split`: halve every chain first, so that a
    drift shows (the middle one of an odd number of draws is left out). `rank`: replace values by normal
    scores of their pooled ranks and return the larger of bulk and folded (distance from the median) R-hat;
    holds for heavy tails too. **Returns** one number per trailing entry; NaN where nothing moves.
    **Errors.** ValueError for too few draws, or for one chain that is not split. **See** Vehtari et al.
    (2021); below 1.01 is their advice.
    """
    x = _chains(x)
    if x.shape[1] == 1 and not split:
        raise ValueError("one chain has nothing to agree with: give several, or split=True")
    return _per_quantity(_worse_of_ranks if rank else _scale_reduction, x, split)


def ess_log_weights(log_w: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    r"""Effective sample size of importance weights, from their logarithms.

    $$\mathrm{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2}
    = e^{2\,\mathrm{lse}(\log w) - \mathrm{lse}(2 \log w)} \in [1, n]$$

    **Arguments.** `log_w` (n, ...): log-weights, up to a constant; NaN and infinities count as zero weight.
    **Returns** ESS over the first axis; 0 if no weight is left.
    **See** Kong (1992). A large ESS does not exclude that a mode was never visited.
    """
    log_w = real(log_w)
    if log_w.ndim == 0 or len(log_w) == 0:
        raise ValueError(f"log_w has shape {log_w.shape}: expected (n, ...) with n >= 1")
    return _ess_log_weights(log_w)


@program
def _ess_log_weights(log_w):
    top = jnp.max(jnp.where(jnp.isfinite(log_w), log_w, -jnp.inf), axis=0, keepdims=True)
    # Relative to the largest weight; the inner where keeps the gradient of what is thrown away finite.
    keep = jnp.isfinite(log_w)
    shifted = jnp.where(keep, log_w, 0) - jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    w = jnp.where(keep, jnp.exp(jnp.where(keep, shifted, 0)), 0)
    square = jnp.sum(w * w, axis=0)
    return jnp.where(square > 0, jnp.sum(w, axis=0) ** 2 / jnp.where(square > 0, square, 1), 0)


def _chains(x: Chains) -> Array:
    x = real(x)
    if x.ndim < 2 or x.shape[0] < 4 or x.shape[1] < 1:
        raise ValueError(f"x has shape {x.shape}: expected (draws, chains, ...) with at least 4 draws")
    return x


@program
def _per_quantity(f, x: Array, split: bool = False) -> Array:
    if split:
        half = x.shape[0] // 2
        x = jnp.concatenate([x[:half], x[-half:]], axis=1)
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    return jax.vmap(f, in_axes=2)(flat).reshape(x.shape[2:])


def _effective(x: Array) -> Array:
    return x.size / _time(x)


def _between(x: Array) -> Array:
    """Variance of the chain means; zero for one chain."""
    return jnp.var(jnp.mean(x, axis=0), ddof=1) if x.shape[1] > 1 else jnp.zeros((), x.dtype)


def _scale_reduction(x: Array) -> Array:
    n = x.shape[0]
    within = jnp.mean(jnp.var(x, axis=0, ddof=1))
    return jnp.where(_moves(x), jnp.sqrt((n - 1) / n + _between(x) / within), jnp.nan)


def _moves(x: Array) -> Array:
    """Variances cannot tell: a compiled mean of equal numbers is off by rounding."""
    return ~(jnp.max(x) == jnp.min(x))


def _worse_of_ranks(x: Array) -> Array:
    """Of bulk and folded R-hat."""
    folded = jnp.abs(x - jnp.median(x))
    worst = jnp.maximum(_scale_reduction(_normal_scores(x)), _scale_reduction(_normal_scores(folded)))
    # Ranks would hide a NaN.
    return jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, worst)


def _time(x: Array) -> Array:
    n, chains = x.shape
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    # Padding to twice the length keeps the circular correlation of the FFT from wrapping around.
    size = 2 ** math.ceil(math.log2(2 * n))
    spectrum = jnp.fft.rfft(centred, size, axis=0)
    power = jnp.real(spectrum * jnp.conj(spectrum))
    covariance = jnp.mean(jnp.fft.irfft(power, size, axis=0)[:n], axis=1) / n
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + _between(x)
    rho = 1 - (within - covariance) / total
    rho = rho.at[0].set(jnp.ones((), x.dtype) * (total / total))
    pairs = jnp.sum(rho[: n - n % 2].reshape(-1, 2), axis=1)
    positive = jnp.cumprod((pairs > 0).astype(x.dtype))
    monotone = jax.lax.cummin(pairs)
    tau = 2 * jnp.sum(jnp.where(positive > 0, monotone, 0)) - 1
    # Anticorrelated chains beat independence, but an estimate near zero is noise.
    floor = 1 / math.log10(max(n * chains, 10))
    return jnp.where((total > 0) & _moves(x), jnp.maximum(tau, floor), jnp.nan)


def _normal_scores(x: Array) -> Array:
    flat = x.reshape(-1)
    ordered = jnp.sort(flat)
    low = jnp.searchsorted(ordered, flat, side="left")
    high = jnp.searchsorted(ordered, flat, side="right")
    rank = (low + high + 1).astype(x.dtype) / 2
    return jax.scipy.special.ndtri((rank - 0.375) / (flat.size + 0.25)).reshape(x.shape)
