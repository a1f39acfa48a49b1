r"""Between grey levels and real numbers, with the constant that makes bits per dimension exact.

A density model of integers $k \in \{0..L-1\}^d$ is a density $p$ of $y = 2(k + u)/L - 1$ with
$u \sim U[0, 1)^d$:

$$P(k) = \int_{[0,1]^d} q(k + u)\,du, \qquad q(k + u) = p(y)\,(2/L)^d
\quad\Rightarrow\quad -\log_2 P(k) \le \mathbb E_u\bigl[-\log_2 p(y)\bigr] + d\,\log_2(L/2)$$

A model that knows only the range of the levels has $p = 2^{-d}$ on the cube $[-1, 1]^d$ and scores
$\log_2 L$ bits per dimension.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from physml.core import check
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Key, Scalar


def dequantise(x: Num[Array | np.ndarray, "..."], levels: int, *, key: Key, high: Scalar = 1.0) -> Float[Array, "..."]:
    r"""Spread each level over its cell: $(k + u)/L \in [0, 1]$ with $u \sim U[0, h)$.

    **Arguments.** `x`: raw levels 0..L-1, any shape. `levels`: L. `key`: of the noise. `high`: h in (0, 1];
    below one it leaves gaps and the bits per dimension lose their meaning. **Returns** an array like x.
    **Errors.** ValueError for fewer than two levels, x or h out of range. **See** Theis, van den Oord and
    Bethge (2016), "A note on the evaluation of generative models".
    """
    _check(levels)
    check_key(key)
    check.within(high, "high", above=0, most=1)
    check.within(x, "x, raw levels,", least=0, most=levels - 1)
    x = jnp.asarray(x)
    return _spread(x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float), levels, key, high)


@program
def _spread(x, levels, key, high):
    u = jax.random.uniform(key, x.shape, x.dtype)
    # Rounding may lift (k + u)/L onto the edge of the next cell, by one grain of the dtype.
    return (x + u * jnp.asarray(high, x.dtype)) / levels


def quantise(x: Float[Array, "..."], levels: int) -> Float[Array, "..."]:
    r"""The level of a number in [0, 1]: $\min(\max(\lfloor L x \rfloor, 0), L - 1)$, the inverse of
    `dequantise`.

    Its gradient is zero. **Errors.** ValueError for fewer than two levels.
    """
    _check(levels)
    return jnp.clip(jnp.floor(x * levels), 0, levels - 1)


def scale(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$y = 2x - 1$: the unit cube to $[-1, 1]^d$; log-Jacobian $d \log 2$, inverse `unscale`."""
    return 2 * x - 1


def unscale(y: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$x = (y + 1)/2$, the inverse of `scale`."""
    return (y + 1) / 2


def log_jacobian(levels: int, dim: int) -> float:
    r"""$\log|\partial y/\partial(k + u)| = d\,\log(2/L)$ of level -> `dequantise` -> `scale`, in nats.

    **Arguments.** `levels`: L. `dim`: d, the number of pixels. **Returns** a Python float.
    """
    _check(levels)
    return dim * float(np.log(2.0 / levels))


def bits_per_dim(log_prob: Float[Array, "..."], levels: int, dim: int) -> Float[Array, "..."]:
    r"""Bits per dimension of the integers from the log-density of $y$ (`scale` after `dequantise`).

    $$b = -\frac{\log p(y) + d \log(2/L)}{d \log 2} = -\frac{\log p(y)}{d \log 2} + \log_2 \frac L2$$

    Averaged over the noise it is an upper bound on that of the discrete law, tight when p is flat on every
    cell.

    **Arguments.** `log_prob`: log p(y) in nats, any shape. `levels`: L. `dim`: d. **Returns** an array like
    log_prob.

    ```python
    bits_per_dim(-64 * jnp.log(2.0), 17, 64)  # log2(17) = 4.087: the uniform model
    ```
    """
    _check(levels)
    return -log_prob / (dim * float(np.log(2.0))) + float(np.log2(levels / 2.0))


def _check(levels: int) -> None:
    check.count(levels, "levels", least=2)
