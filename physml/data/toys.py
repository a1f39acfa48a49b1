r"""Laws in the plane, sampled inside jit: `toy(n, key=key)` returns `(n, 2)`, by one program outside.

Where the density is a Gaussian mixture, `..._mixture()` returns its `(weights, means, covs)`: exact scores,
exact optimal plans and mode coverage come from there.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from physml.core import check, noise as streams
from physml.core.program import program
from physml.core.types import Key, Scalar

F = TypeVar("F", bound=Callable[..., Any])


def _toy(sample: F) -> F:
    """Decorator: the number of points and the key are checked, and the sample is one program."""
    compiled = program(sample)

    @functools.wraps(sample)
    def checked(n: int, *, key: Key, **options: Any) -> Array:
        streams.check_key(key)
        return compiled(check.count(n, "n", least=0), key=key, **options)

    return checked  # type: ignore[return-value]


class Mixture(NamedTuple):
    r"""The parameters of $\sum_k w_k N(m_k, C_k)$: weights (k,), means (k, 2), covs (k, 2, 2)."""

    weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    covs: Float[Array, "k d d"]


def _mixture(means: Array, variance: Scalar, dtype: Any) -> Mixture:
    k = len(means)
    covs = jnp.asarray(variance, dtype) * jnp.broadcast_to(jnp.eye(2, dtype=dtype)[None], (k, 2, 2))
    return Mixture(jnp.full(k, 1 / k, dtype), means, covs)


def _sample_round(mixture: Mixture, key: Key, n: int, stratified: bool) -> Float[Array, "n 2"]:
    # All covariances of this file are v I with equal weights.
    label_key, noise_key = jax.random.split(key)
    k = len(mixture.weights)
    if stratified:
        label = jax.random.permutation(label_key, jnp.arange(n) % k)
    else:
        label = jax.random.randint(label_key, (n,), 0, k)
    noise = jax.random.normal(noise_key, (n, 2), mixture.means.dtype)
    return mixture.means[label] + jnp.sqrt(mixture.covs[0, 0, 0]) * noise


def _float(dtype: Any) -> Any:
    return jnp.result_type(float) if dtype is None else dtype


@program
def eight_gaussians_mixture(*, scale: Scalar = 5.0, variance: Scalar = 0.1, dtype: DTypeLike | None = None) -> Mixture:
    r"""Eight equal modes on a circle: $m_k = r(\cos\tfrac{\pi k}{4}, \sin\tfrac{\pi k}{4})$, $C = v I$.

    **Arguments.** `scale`: r. `variance`: v of one coordinate. **See** `eight_gaussians`.
    """
    angle = np.arange(8) * np.pi / 4
    circle = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1), _float(dtype))
    return _mixture(jnp.asarray(scale, _float(dtype)) * circle, variance, _float(dtype))


@_toy
def eight_gaussians(
    n: int,
    *,
    key: Key,
    scale: Scalar = 5.0,
    variance: Scalar = 0.1,
    stratified: bool = False,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n 2"]:
    """Samples of `eight_gaussians_mixture`; the defaults are the benchmark of conditional flow matching.

    So it is written. Its code, torchcfm 1.0, passes sqrt(0.1) times the identity as the *covariance*:
    `variance=0.1**0.5` is what that code draws. With `stratified` every mode has its share of the n points, to within
    one, in random order, as torchdyn 1.0 draws them: exchangeable, not independent, and much nearer to the law.

    **See** Tong et al. (2024), "Improving and generalizing flow-based generative models with minibatch OT".
    """
    return _sample_round(eight_gaussians_mixture(scale=scale, variance=variance, dtype=dtype), key, n, stratified)


@program
def grid_gaussians_mixture(
    *, side: int = 5, spacing: Scalar = 2.0, std: Scalar = 0.05, dtype: DTypeLike | None = None
) -> Mixture:
    r"""side^2 equal modes on a square grid centred at the origin, $C = s^2 I$.

    **Arguments.** `side`: modes per axis. `spacing`: between neighbours. `std`: s. **See**
    `grid_gaussians`.
    """
    check.count(side, "side")
    axis = np.arange(side) - (side - 1) / 2
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2), _float(dtype))
    spread = jnp.asarray(std, _float(dtype))
    return _mixture(jnp.asarray(spacing, _float(dtype)) * grid, spread * spread, _float(dtype))


@_toy
def grid_gaussians(
    n: int,
    *,
    key: Key,
    side: int = 5,
    spacing: Scalar = 2.0,
    std: Scalar = 0.05,
    stratified: bool = False,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n 2"]:
    """Samples of `grid_gaussians_mixture`: 25 narrow modes, where interpolation between modes shows.

    With `stratified` every mode has its share of the n points, to within one.
    """
    return _sample_round(grid_gaussians_mixture(side=side, spacing=spacing, std=std, dtype=dtype), key, n, stratified)


@_toy
def moons(
    n: int,
    *,
    key: Key,
    noise: Scalar = 0.2,
    scale: Scalar = 3.0,
    shift: Scalar = -1.0,
    diagonal: bool = False,
    stratified: bool = False,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n 2"]:
    r"""Two interleaved half circles, as in scikit-learn, then $x \mapsto \text{scale}\,x + \text{shift}$.

    $$(\cos\theta, \sin\theta) \ \text{or}\ (1 - \cos\theta, \tfrac12 - \sin\theta), \quad
    \theta \sim U[0, \pi], \qquad + \ \text{noise} \cdot N(0, I)$$

    The defaults have the constants of conditional flow matching (Tong et al., 2024); noise=0.05, scale=1, shift=0
    is the usual picture. With `diagonal` the noise is $\text{noise} \cdot u\,(1, 1)$, $u \sim U[0, 1]$: the thin band
    of torchdyn 1.0, which the code of that paper calls. With `stratified` half of the points are on each arc at evenly
    spaced angles, in random order, as scikit-learn and torchdyn draw them; without it the samples are independent.
    """
    dtype = _float(dtype)
    arc_key, angle_key, noise_key = jax.random.split(key, 3)
    if stratified:
        place = jax.random.permutation(arc_key, n)
        lower = place >= n // 2
        step = jnp.where(lower, math.pi / max(n - n // 2 - 1, 1), math.pi / max(n // 2 - 1, 1))
        angle = step.astype(dtype) * jnp.where(lower, place - n // 2, place).astype(dtype)
    else:
        lower = jax.random.bernoulli(arc_key, 0.5, (n,))
        angle = jax.random.uniform(angle_key, (n,), dtype, 0.0, math.pi)
    c, s = jnp.cos(angle), jnp.sin(angle)
    x = jnp.stack([jnp.where(lower, 1 - c, c), jnp.where(lower, 0.5 - s, s)], axis=1)
    z = jax.random.uniform(noise_key, (n, 1), dtype) if diagonal else jax.random.normal(noise_key, (n, 2), dtype)
    x = x + jnp.asarray(noise, dtype) * z
    return jnp.asarray(scale, dtype) * x + jnp.asarray(shift, dtype)


@_toy
def checkerboard(
    n: int, *, key: Key, side: int = 4, width: Scalar = 1.0, dtype: DTypeLike | None = None
) -> Float[Array, "n 2"]:
    """Uniform on the even cells (i + j even) of a side x side board of cells of the given width, centred at
    zero.

    **Errors.** ValueError for an odd or non-positive `side`.
    """
    if check.count(side, "side", least=2) % 2:
        raise ValueError(f"side must be an even number of cells, got {side}")
    dtype = _float(dtype)
    column_key, row_key, place_key = jax.random.split(key, 3)
    column = jax.random.randint(column_key, (n,), 0, side)
    row = 2 * jax.random.randint(row_key, (n,), 0, side // 2) + column % 2
    cell = jnp.stack([column, row], axis=1).astype(dtype)
    x = cell + jax.random.uniform(place_key, (n, 2), dtype) - side / 2
    return jnp.asarray(width, dtype) * x


@_toy
def swiss_roll(
    n: int, *, key: Key, noise: Scalar = 0.1, turns: Scalar = 1.5, dtype: DTypeLike | None = None
) -> Float[Array, "n 2"]:
    r"""A spiral: $r(\cos 2\pi\tau r', \sin 2\pi\tau r')$ with $r' \sim U[\tfrac13, 1]$ and radius $r = 3 r'$.

    **Arguments.** `noise`: standard deviation added to both coordinates. `turns`: tau, of the full spiral
    from its centre.
    """
    dtype = _float(dtype)
    radius_key, noise_key = jax.random.split(key)
    r = jax.random.uniform(radius_key, (n,), dtype, 1 / 3, 1.0)
    angle = 2 * math.pi * jnp.asarray(turns, dtype) * r
    x = 3 * r[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return x + jnp.asarray(noise, dtype) * jax.random.normal(noise_key, (n, 2), dtype)


@_toy
def circles(
    n: int,
    *,
    key: Key,
    radii: tuple[Scalar, ...] = (1.0, 2.0, 3.0),
    noise: Scalar = 0.08,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n 2"]:
    """Concentric circles of equal weight with Gaussian noise of the given standard deviation on both
    coordinates.
    """
    if not radii:
        raise ValueError("radii must hold at least one radius, got none")
    dtype = _float(dtype)
    ring_key, angle_key, noise_key = jax.random.split(key, 3)
    r = jnp.asarray(radii, dtype)[jax.random.randint(ring_key, (n,), 0, len(radii))]
    angle = jax.random.uniform(angle_key, (n,), dtype, 0.0, 2 * math.pi)
    x = r[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return x + jnp.asarray(noise, dtype) * jax.random.normal(noise_key, (n, 2), dtype)


@_toy
def pinwheel(
    n: int,
    *,
    key: Key,
    arms: int = 5,
    radial: Scalar = 0.3,
    tangential: Scalar = 0.05,
    rate: Scalar = 0.25,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n 2"]:
    r"""Gaussian arms bent by a rotation that grows with the radius.

    $$R\bigl(\tfrac{2\pi k}{K} + \text{rate}\,e^{a}\bigr)\,(a, b), \qquad
    a \sim N(1, \text{radial}^2),\ b \sim N(0, \text{tangential}^2)$$

    **Arguments.** `arms`: K. `radial`, `tangential`: standard deviations along and across an arm. `rate`:
    of the bend. **See** Johnson et al. (2016), "Composing graphical models with neural networks".
    """
    check.count(arms, "arms")
    dtype = _float(dtype)
    arm_key, noise_key = jax.random.split(key)
    z = jax.random.normal(noise_key, (n, 2), dtype)
    a, b = 1 + jnp.asarray(radial, dtype) * z[:, 0], jnp.asarray(tangential, dtype) * z[:, 1]
    turn = (2 * math.pi / arms) * jax.random.randint(arm_key, (n,), 0, arms).astype(dtype)
    angle = turn + jnp.asarray(rate, dtype) * jnp.exp(a)
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([c * a - s * b, s * a + c * b], axis=1)
