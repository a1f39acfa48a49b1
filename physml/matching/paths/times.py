r"""Laws of the training time t, as quantile functions: u uniform on (0, 1) goes to t, in order.

`match(..., times=...)` puts its stratified u through one. A law of density q weighs the loss at t by q(t):
$E_q[\ell(t)/q(t)] = E_u[\ell(t)]$, so `weight` = 1/q gives back the loss under the uniform law, with another variance.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array

from physml.core.check import known, number
from physml.core.program import program
from physml.core.roots import bisect
from physml.core.types import Key, Scalar
from physml.matching.paths.path import Path

Quantile = Callable[[Array], Array]


def logit_normal(mean: Scalar = 0.0, std: Scalar = 1.0) -> Quantile:
    r"""$\ln\frac{t}{1-t} \sim N(\text{mean}, \text{std}^2)$: t in the middle of a path more often than at its ends.

    On `linear()` the noise over the signal is $\sigma = (1 - t)/t$ and $\ln\sigma \sim N(-\text{mean}, \text{std}^2)$;
    (1.2, 1.2) is the law of Karras et al. (2022), table 1. **Errors** `ValueError` for std <= 0.
    **See** Esser et al., Scaling rectified flow transformers (2024), eq. 19.
    """
    return Partial(_logit_normal, number(mean, "mean"), number(std, "std", above=0))


def _logit_normal(mean, std, u):
    return jax.nn.sigmoid(mean.astype(u.dtype) + std.astype(u.dtype) * jax.scipy.special.ndtri(u))


def log_snr(path: Path, start: float | None = None, stop: float | None = None) -> Quantile:
    r"""Even in $\lambda(t) = \ln(\beta/\gamma)$ from `start` to `stop`, with alpha for gamma on a one-sided path.

    $$\lambda(t) = \lambda(a) + u\,(\lambda(b) - \lambda(a)), \qquad q(t) = \dot\lambda(t) / (\lambda(b) - \lambda(a))$$

    **Arguments.** `start`, `stop`: a < b; the cuts of the path by default. Every decade of noise between them gets the
    same share. **Cost** a bisection to the last bit: some 30 evaluations of the schedules per t in float32, through
    which no gradient passes.
    **Errors** `ValueError` where lambda is infinite at an end (a path without cut needs both), or does not rise.
    """
    a, b = path.cut if start is None else start, 1.0 - path.cut if stop is None else stop
    if not 0.0 <= a < b <= 1.0:
        raise ValueError(f"log_snr needs 0 <= start < stop <= 1, got {a} and {b}")

    levels = known(_level(path, jnp.asarray(np.linspace(a, b, 65), float)))
    if levels is not None:
        if not np.isfinite([levels[0], levels[-1]]).all():
            raise ValueError(
                f"the log signal-to-noise ratio is {levels[0]} at t = {a} and {levels[-1]} at t = {b}: "
                "give start and stop inside (0, 1)"
            )
        if not np.all(np.diff(levels) > 0):
            raise ValueError(f"the log signal-to-noise ratio of the path does not rise from t = {a} to {b}")

    return _LogSnr(path, a, b)


@program
def _level(path, t):
    """The log signal-to-noise ratio at the times t (n,)."""

    def level(t):
        (alpha, beta, gamma), _ = path.coefficients(t)
        return jnp.log(beta) - jnp.log(alpha if path.one_sided else gamma)

    return jax.vmap(level)(t)


class _LogSnr(eqx.Module):
    path: Path
    start: float = eqx.field(static=True)
    stop: float = eqx.field(static=True)

    def __call__(self, u):
        low, high = _level(self.path, jnp.asarray([self.start, self.stop], u.dtype))
        level = lambda t: _level(self.path, t.ravel()).reshape(t.shape)
        return _invert(level, low + u * (high - low), self.start, self.stop)


def draw_times(path: Path, n: int, times: Quantile | None = None, *, key: Key, dtype: DTypeLike) -> Array:
    """n times of a law, spread evenly: one in each of its n-quantiles, up to a common shift around the circle.

    A law that reaches beyond the cuts of the path is conditioned on what lies between them. `times` None: uniform.
    """
    u = (jax.random.uniform(key, (), dtype) + jnp.arange(n, dtype=dtype) / n) % 1.0
    cut = path.cut
    if times is None:
        return cut + (1.0 - 2.0 * cut) * u
    if cut > 0:
        # Between the probabilities of the two cuts.
        low, high = _invert(times, jnp.asarray([cut, 1.0 - cut], dtype), 0.0, 1.0)
        u = low + (high - low) * u
    t = times(inside(u))
    if jnp.shape(t) != (n,):
        raise ValueError(f"times must map u of shape {(n,)} to t of the same shape, got {jnp.shape(t)}")
    return jnp.clip(t.astype(dtype), cut, 1.0 - cut)


def inside(u: Array) -> Array:
    """u off the ends of [0, 1] by the resolution of its dtype: quantiles there may be infinite."""
    tiny = jnp.finfo(u.dtype).eps
    return jnp.clip(u, tiny, 1.0 - tiny)


def _invert(rising: Callable[[Array], Array], value: Array, low: float, high: float) -> Array:
    """x in [low, high] where a rising function takes the value to the last bit, or the nearer end where it does not."""
    bits = 5 - int(math.log2(float(jnp.finfo(value.dtype).eps)))
    return bisect(lambda x: value - rising(x), jnp.full_like(value, low), jnp.full_like(value, high), bits)
