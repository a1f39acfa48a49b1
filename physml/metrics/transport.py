"""Wasserstein distances: exact by assignment, by sorting, by projection, and between Gaussians."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from physml.core import check
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Key, Scalar
from physml.metrics._assignment import assign, on_host
from physml.metrics._samples import pair, real

Samples = Num[Array | np.ndarray, "..."]
Metric = Literal["sqeuclidean", "euclidean"]


def wasserstein_1d(x: Samples, y: Samples, *, p: Scalar = 2.0) -> Float[Array, ""]:
    r"""Wasserstein distance between two samples on the line.

    $$W_p^p = \int_0^1 |F^{-1}(u) - G^{-1}(u)|^p\,du$$

    **Arguments.** `x` (n,), `y` (m,): samples, n and m may differ. `p`: order >= 1. **Returns** W_p (not
    its power); where it vanishes its gradient is taken to be zero. **Cost.** Two sorts. **Errors.**
    ValueError for samples that are not vectors.
    """
    x, y = real(x), real(y)
    if x.ndim != 1 or y.ndim != 1 or min(len(x), len(y)) < 1:
        raise ValueError(f"x has shape {x.shape}, y {y.shape}: expected (n,) and (m,), not empty")
    check.within(p, "p, the order of the distance,", least=1)
    return _on_the_line(x, y, p)


@program
def _on_the_line(x, y, p):
    return _power(_sorted_cost(x[:, None], y[:, None], p)[0], 1 / p)


def wasserstein2_sliced(x: Samples, y: Samples, *, key: Key, projections: int = 128) -> Float[Array, ""]:
    r"""Sliced Wasserstein distance: the 1-D distance averaged over random directions.

    $$SW_2^2 = \mathbb E_{\theta \sim U(S^{d-1})}\, W_2^2(\theta \cdot x, \theta \cdot y) \le W_2^2/d$$

    **Arguments.** `x` (n, d), `y` (m, d): samples, n and m may differ. `projections`: directions averaged.
    `key`: of those. **Returns** SW_2 (the root). **Cost.** projections (n d + n log n), differentiable, in
    jit. **Errors.** ValueError for samples of different dimension. **See** Bonneel et al. (2015).
    """
    x, y = pair(x, y)
    check_key(key)
    return _sliced(x, y, key, check.count(projections, "projections"))


@program
def _sliced(x, y, key, projections):
    theta = jax.random.normal(key, (x.shape[1], projections), x.dtype)
    theta = theta / jnp.linalg.norm(theta, axis=0, keepdims=True)
    return _power(jnp.mean(_sorted_cost(x @ theta, y @ theta, 2.0)), 0.5)


def wasserstein2(x: Samples, y: Samples) -> Float[Array, ""]:
    r"""Exact W_2 between two samples of one size, by linear assignment.

    $$W_2^2 = \min_\pi \frac1n \sum_i |x_i - y_{\pi(i)}|^2$$

    **Arguments.** `x`, `y` (n, d): samples. **Returns** W_2 (the root). Works in jit and vmap and under
    grad (the plan is constant almost everywhere), but the assignment runs on the host, in float64.
    **Cost.** n^2 numbers and up to n^3 time: seconds at n = 5000, half a minute at 10,000.
    **Errors.** ValueError for samples of different size or dimension. **See** `wasserstein_1d` for the line,
    `wasserstein2_sliced` for a cheap bound.
    """
    return _assigned_cost(x, y, "sqeuclidean", 2)


def wasserstein1(x: Samples, y: Samples) -> Float[Array, ""]:
    r"""Exact W_1 between two samples of one size: $\min_\pi \frac1n \sum_i |x_i - y_{\pi(i)}|$; see
    `wasserstein2`.
    """
    return _assigned_cost(x, y, "euclidean", 1)


def gaussian_wasserstein2(mean_a: Samples, cov_a: Samples, mean_b: Samples, cov_b: Samples) -> Float[Array, ""]:
    r"""W_2 between two Gaussians; the part of the covariances is the Bures distance.

    $$W_2^2 = |m_a - m_b|^2 + \mathrm{tr}\,C_a + \mathrm{tr}\,C_b
    - 2\,\mathrm{tr}\,(C_a^{1/2} C_b\,C_a^{1/2})^{1/2}$$

    **Arguments.** Means (d,) and covariances (d, d), symmetric and positive semidefinite. **Returns** W_2
    (the root). **Cost.** Two eigendecompositions and one singular value decomposition. The gradient is that
    of the optimal map, so it is finite for equal eigenvalues (which the derivative of a matrix root is
    not). Traces cancel for close covariances: in float32 W_2 is resolved to about
    $10^{-3}\sqrt{\mathrm{tr}\,C}$. **Errors.** ValueError for shapes that do not fit. **See** Dowson and
    Landau (1982).
    """
    mean_a, cov_a, mean_b, cov_b = (real(v) for v in (mean_a, cov_a, mean_b, cov_b))
    d = mean_a.size
    if mean_a.shape != (d,) or mean_b.shape != (d,) or cov_a.shape != (d, d) or cov_b.shape != (d, d):
        raise ValueError(
            f"means {mean_a.shape}, {mean_b.shape} and covariances {cov_a.shape}, {cov_b.shape}: "
            "expected (d,) and (d, d)"
        )
    for name, cov in (("cov_a", cov_a), ("cov_b", cov_b)):
        _check_covariance(cov, name)
    return _between_gaussians(mean_a, cov_a, mean_b, cov_b)


def _check_covariance(cov, name):
    C = check.known(cov)
    if C is None or not np.isfinite(C).all():  # NaN stays NaN
        return
    size = np.abs(C).max(initial=0.0)
    if not np.allclose(C, C.T, rtol=1e-4, atol=1e-5 * size):
        raise ValueError(f"{name} must be symmetric")
    if C.size and np.linalg.eigvalsh(C.astype(np.float64))[0] < -1e-4 * size:
        raise ValueError(f"{name} must be positive semidefinite: it has a negative eigenvalue")


@program
def _between_gaussians(mean_a, cov_a, mean_b, cov_b):
    shift = jnp.sum((mean_a - mean_b) ** 2)
    square = shift + jnp.trace(cov_a) + jnp.trace(cov_b) - 2 * _fidelity(cov_a, cov_b)
    return _power(jnp.maximum(square, 0), 0.5)


def _roots(cov: Array) -> tuple[Array, Array]:
    """C^{1/2} and its pseudo-inverse."""
    value, vector = jnp.linalg.eigh((cov + cov.T) / 2)
    root = jnp.sqrt(jnp.maximum(value, 0))
    floor = jnp.sqrt(len(cov) * jnp.finfo(cov.dtype).eps) * jnp.max(root)
    inverse = jnp.where(root > floor, 1 / jnp.where(root > floor, root, 1), 0)
    return (vector * root[None, :]) @ vector.T, (vector * inverse[None, :]) @ vector.T


@jax.custom_jvp
def _fidelity(a: Array, b: Array) -> Array:
    # tr (A^{1/2} B A^{1/2})^{1/2} is the nuclear norm of A^{1/2} B^{1/2}: nothing small is squared.
    return jnp.sum(jnp.linalg.svd(_roots(a)[0] @ _roots(b)[0], compute_uv=False))


@_fidelity.defjvp
def _fidelity_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    (root_a, inverse_a), (root_b, inverse_b) = _roots(a), _roots(b)
    u, s, vt = jnp.linalg.svd(root_a @ root_b)
    # dF = tr(T_ab dA)/2 + tr(T_ba dB)/2, with the map T_ab = A^{-1/2} (A^{1/2} B A^{1/2})^{1/2} A^{-1/2}.
    map_ab = inverse_a @ (u * s[None, :]) @ u.T @ inverse_a
    map_ba = inverse_b @ (vt.T * s[None, :]) @ vt @ inverse_b
    return jnp.sum(s), (jnp.sum(map_ab * da) + jnp.sum(map_ba * db)) / 2


def _power(value: Array, exponent: Scalar) -> Array:
    # The root has no derivative at zero: taken to be zero. A NaN stays.
    zero = value == 0
    return jnp.where(zero, 0, jnp.where(zero, 1, value) ** exponent)


def _sorted_cost(x: Array, y: Array, p: Scalar) -> Array:
    """Mean of |x - y|^p under the monotone coupling, for every column."""
    n, m = len(x), len(y)
    x, y = jnp.sort(x, axis=0), jnp.sort(y, axis=0)
    if n != m:
        # Both quantile functions are constant between the merged levels i/n and j/m, known before running.
        levels = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))
        weight = jnp.asarray(np.diff(levels) / (n * m), x.dtype)
        x, y = x[levels[:-1] // m], y[levels[:-1] // n]
    else:
        weight = jnp.full(n, 1 / n, x.dtype)
    return jnp.sum(weight[:, None] * _power(jnp.abs(x - y), p), axis=0)


def _assign(x: Array | np.ndarray, y: Array | np.ndarray, metric: Metric) -> np.ndarray:
    from scipy.spatial.distance import cdist

    cost = cdist(np.asarray(x, np.float64), np.asarray(y, np.float64), metric)
    # Something to return for a diverged sample: its distance is NaN whatever the plan.
    return assign(np.where(np.isfinite(cost), cost, 0.0))


def _assigned_cost(x: Samples, y: Samples, metric: Metric, power: int) -> Array:
    x, y = pair(x, y)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} samples: expected equally many; drop some at random")
    shape = jax.ShapeDtypeStruct((len(x),), jnp.int32)
    plan = on_host(lambda a, b: _assign(a, b, metric), shape, *jax.lax.stop_gradient((x, y)))
    return _planned_cost(x, y, plan, power)


@program
def _planned_cost(x, y, plan, power):
    square = jnp.sum((x - y[plan]) ** 2, axis=1)
    return _power(jnp.mean(square), 0.5) if power == 2 else jnp.mean(_power(square, 0.5))
