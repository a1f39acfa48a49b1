"""Distances between samples that are double sums over pairs, and the test by permutation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from physml.core import check
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Key, Scalar
from physml.metrics._samples import pair, real

Samples = Num[Array | np.ndarray, "..."]

# Numbers alive in one block of pairs, counting coordinates in case the compiler does not fuse them.
_BLOCK = 2**21


def energy_distance(x: Samples, y: Samples, *, unbiased: bool = False) -> Float[Array, ""]:
    r"""The energy distance, squared, as it is usually tabulated; zero only for equal laws.

    $$D = 2\,\mathbb E|X - Y| - \mathbb E|X - X'| - \mathbb E|Y - Y'|$$

    **Arguments.** `x` (n, d), `y` (m, d): samples. `unbiased`: leave the self-pairs out (U-statistic: mean
    D, may be negative) instead of averaging over all pairs (V-statistic: never negative, biased by $\mathbb
    E|X-X'|/n + \mathbb E|Y-Y'|/m$). **Returns** D. In 1-D `scipy.stats.energy_distance` is its square root.
    **Cost.** (n + m)^2 d, in row blocks: no array of (n, m, d), and the gradient recomputes the blocks.
    Differences are taken per coordinate, so close pairs do not cancel, and coincident points have gradient
    zero. **Errors.** ValueError for samples of different dimension, or too few of them. **See** Szekely and
    Rizzo (2013), "Energy statistics".
    """
    x, y = pair(x, y, 2 if unbiased else 1)
    return _contrast(_mean(x, y, _root), _mean(x, x, _root, unbiased), _mean(y, y, _root, unbiased))


@program
def _contrast(between, within_x, within_y):
    return 2 * between - within_x - within_y


def mmd(
    x: Samples, y: Samples, *, bandwidths: Scalar | tuple[float, ...] | None = None, unbiased: bool = False
) -> Float[Array, ""]:
    r"""Maximum mean discrepancy, squared, in a mixture of Gaussian kernels.

    $$\mathrm{MMD}^2 = \mathbb E\,k(X, X') + \mathbb E\,k(Y, Y') - 2\,\mathbb E\,k(X, Y), \qquad
    k(x, y) = \frac1B \sum_b e^{-|x - y|^2/2 s_b^2}$$

    **Arguments.** `x` (n, d), `y` (m, d): samples. `bandwidths`: the s_b; by default `median_distance` of
    the pooled sample times 1/4, 1/2, 1, 2, 4, without gradient. `unbiased`: leave the self-pairs out.
    **Returns** MMD^2; negative values are possible when unbiased. **Cost.** (n + m)^2 (d + B), in row
    blocks. **Errors.** ValueError for samples of different dimension, or too few of them. **See** Gretton
    et al. (2012), "A kernel two-sample test".
    """
    x, y = pair(x, y, 2 if unbiased else 1)
    if bandwidths is not None:
        check.within(bandwidths, "bandwidths", above=0)
    kernel = _mixture_kernel(x, y, bandwidths)
    return -_contrast(_mean(x, y, kernel), _mean(x, x, kernel, unbiased), _mean(y, y, kernel, unbiased))


def median_distance(x: Samples, *, at_most: int = 1000) -> Float[Array, ""]:
    r"""The median heuristic: $\mathrm{median}_{i<j}\,|x_i - x_j|$, on at most `at_most` evenly spaced rows of
    x.
    """
    x = real(x)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"x has shape {x.shape}: expected (n, d) with n >= 2")
    return _median_distance(x, check.count(at_most, "at_most", least=2))


@program
def _median_distance(x, at_most):
    if len(x) > at_most:
        x = x[np.linspace(0, len(x) - 1, at_most).astype(int)]
    return jnp.median(_matrix(x, _root)[np.triu_indices(len(x), 1)])


class PermutationTest(NamedTuple):
    """Result of `permutation_test`: the statistic, its p-value, and the statistics `null` (permutations,)."""

    statistic: Float[Array, ""]
    p_value: Float[Array, ""]
    null: Float[Array, " permutations"]


def permutation_test(
    x: Samples, y: Samples, *, key: Key, permutations: int = 999, statistic: str = "energy"
) -> PermutationTest:
    r"""Do two samples have one law? The statistic among those of random relabellings of the pooled sample.

    $$p = \frac{1 + \#\{\pi : T_\pi \ge T\}}{1 + \#\pi}, \qquad T = -w^\top D\,w, \quad
    w = (\tfrac1n, \dots; -\tfrac1m, \dots)$$

    With D the matrix of distances T is the V-statistic of `energy_distance`, with D = -k that of `mmd`.
    Under equal laws P(p <= a) <= a at every sample size.

    **Arguments.** `x` (n, d), `y` (m, d): independent samples (thin a chain first). `permutations`: how
    many; the smallest p-value is 1/(1 + permutations). `statistic`: "energy" or "mmd" (median bandwidths).
    `key`: of the permutations. **Returns** `PermutationTest`. **Cost.** The pooled matrix, (n + m)^2
    numbers, is built once; (n + m)^2 per permutation. **Errors.** ValueError for an unknown statistic or
    samples of different dimension.

    ```python
    permutation_test(x, y, key=jax.random.key(0)).p_value
    ```
    """
    check_key(key)
    check.choice(statistic, "statistic", ("energy", "mmd"))
    x, y = pair(x, y, 1)
    return PermutationTest(*_permuted(x, y, key, check.count(permutations, "permutations"), statistic))


@program
def _permuted(x, y, key, permutations, statistic):
    pooled = jnp.concatenate([x, y])
    kernel = _root if statistic == "energy" else _mixture_kernel(x, y, None)
    matrix = _matrix(pooled, kernel) * (1 if statistic == "energy" else -1)
    # w sums to zero, so a constant drops out; without it less is lost to rounding.
    matrix = matrix - jnp.mean(matrix)
    w = jnp.concatenate([jnp.full(len(x), 1 / len(x), x.dtype), jnp.full(len(y), -1 / len(y), x.dtype)])

    null, observed = _relabelled(matrix, w, key, permutations)
    # A relabelling that equals the observed one counts, whichever way the sums were rounded.
    grain = 8 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(matrix))
    count = jnp.sum(null >= observed - grain).astype(x.dtype)
    p_value = jnp.where(jnp.isfinite(observed), (1 + count) / (1 + permutations), jnp.nan)
    return observed, p_value, null


def _relabelled(matrix, w, key, permutations):
    """Statistics of random relabellings, and of the one observed."""
    value = lambda w: -jnp.dot(w, matrix @ w)
    keys = jax.random.split(key, permutations)
    null = jax.lax.map(lambda k: value(jax.random.permutation(k, w)), keys, batch_size=min(64, permutations))
    return null, value(w)


def _root(square: Array) -> Array:
    # The derivative of the root at zero is taken to be zero: coincident points do not push each
    # other. A NaN stays.
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


class _Mixture(eqx.Module):
    """Of Gaussians with these rates 1 / 2 s^2."""

    rates: Array

    def __call__(self, square: Array) -> Array:
        # One bandwidth at a time keeps the block at its size.
        count = len(self.rates)
        add = lambda b, k: k + jnp.exp(-self.rates[b] * square) / count
        return jax.lax.fori_loop(0, count, add, jnp.zeros_like(square))


@program
def _mixture_kernel(x: Array, y: Array, bandwidths: Any) -> _Mixture:
    if bandwidths is None:
        median = jax.lax.stop_gradient(median_distance(jnp.concatenate([x, y])))
        s = jnp.where(median > 0, median, 1) * jnp.asarray([0.25, 0.5, 1, 2, 4], x.dtype)
    else:
        s = jnp.atleast_1d(jnp.asarray(bandwidths, x.dtype))
    return _Mixture(0.5 / (s * s))


@jax.custom_jvp
def _squares(point: Array, columns: Array) -> Array:
    # Differences, not a matrix product, so that close pairs do not cancel; coordinates lead, so that the sum
    # over them runs along contiguous columns.
    return jnp.sum((point[:, None] - columns) ** 2, axis=0)


@_squares.defjvp
def _squares_jvp(primals, tangents):
    # The derivative is a matrix product all the same, eight times faster in 64 dimensions: a pair at
    # distance r has its unit force rounded by eps |x| / r, which the mean over pairs forgives.
    (point, columns), (dpoint, dcolumns) = primals, tangents
    own = jnp.dot(point, dpoint) + jnp.sum(columns * dcolumns, axis=0)
    return _squares(point, columns), 2 * (own - dpoint @ columns - point @ dcolumns)


def _row(kernel: Callable, columns: Array) -> Callable:
    return lambda point: kernel(_squares(point, columns))


def _rows_at_once(x: Array, y: Array) -> int:
    return min(len(x), max(1, _BLOCK // (y.shape[0] * y.shape[1])))


# Programs of their own, which nothing is fused with: the three means of one sample with itself are then equal to the
# last bit.
@eqx.filter_jit
def _mean(x: Array, y: Array, kernel: Callable, without_self: bool = False) -> Array:
    origin = jax.lax.stop_gradient(jnp.mean(y, axis=0, keepdims=True))
    x, y = x - origin, y - origin
    row = jax.checkpoint(_row(kernel, y.T))
    if without_self:
        index = jnp.arange(len(x))

        def total(point, i):
            return jnp.sum(jnp.where(jnp.arange(len(y)) == i, 0, row(point)))

        sums = jax.lax.map(lambda p: total(*p), (x, index), batch_size=_rows_at_once(x, y))
        return jnp.mean(sums) / (len(y) - 1)
    return jnp.mean(jax.lax.map(lambda p: jnp.mean(row(p)), x, batch_size=_rows_at_once(x, y)))


@eqx.filter_jit
def _matrix(x: Array, kernel: Callable) -> Array:
    return jax.lax.map(_row(kernel, x.T), x, batch_size=_rows_at_once(x, x))
