"""What a field knows besides its state: features of the time and of the condition `args`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from physml.core import check
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Key, Scalar


def time_features(
    t: Scalar, pairs: int = 8, *, low: Scalar = 1.0, high: Scalar = 100.0, dtype: DTypeLike | None = None
) -> Float[Array, " size"]:
    r"""The time and its Fourier features at geometrically spaced frequencies.

    $$\phi(t) = \bigl(t,\ \sin\omega_1 t, \dots, \sin\omega_p t,\ \cos\omega_1 t, \dots, \cos\omega_p t\bigr),
    \qquad \omega_j = \omega_\text{low}\,(\omega_\text{high}/\omega_\text{low})^{(j-1)/(p-1)}$$

    The defaults suit $t \in [0, 1]$: the slowest wave is monotone there, and the fastest keeps
    $|\partial_t\phi|$ small enough to differentiate the field in time.

    **Arguments.** `t`: a number, or a vector of k times (features are concatenated). `pairs`: p >= 0; 0
    leaves the raw time. `low`, `high`: angular frequencies (1/time). `dtype`: of the result; by default
    that of t. **Returns** (k (1 + 2p),). **Errors.** ValueError for negative `pairs` or a t with two axes.
    **See** Tancik et al. (2020), "Fourier features let networks learn high frequency functions".

    ```python
    time_features(0.25, pairs=2)  # (5,)
    ```
    """
    check.count(pairs, "pairs", least=0)
    if dtype is None:
        dtype = jnp.result_type(t, float) if isinstance(t, int | float) else jnp.asarray(t).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.result_type(float)
    t = jnp.asarray(t, dtype)
    if t.ndim > 1:
        raise ValueError(f"t has shape {t.shape}: expected a scalar or a vector of times; vmap over a batch")
    return _features(t, pairs, low, high, dtype)


@program
def _features(t, pairs, low, high, dtype):
    t = jnp.atleast_1d(t)[:, None]
    # On the host in double precision: the same constants whatever the dtype of the program.
    exponent = np.linspace(0.0, 1.0, pairs) if pairs > 1 else np.zeros(pairs)
    omega = jnp.asarray(low, dtype) * (jnp.asarray(high, dtype) / jnp.asarray(low, dtype)) ** jnp.asarray(
        exponent, dtype
    )
    angle = t * omega[None, :]
    return jnp.concatenate([t, jnp.sin(angle), jnp.cos(angle)], axis=1).reshape(-1)


def check_state(x: Any, shape: tuple[int, ...]) -> Array:
    """The state of a field, one array of numbers in floating point; a `ValueError` unless it has that shape.

    A length of -1 is any.
    """
    if np.ndim(x) != len(shape) or any(n not in (-1, m) for n, m in zip(shape, np.shape(x), strict=True)):
        wanted = "(" + ", ".join("n" if n < 0 else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"x has shape {np.shape(x)}: expected {wanted}, of f(t, x, args); vmap over a batch")
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)


def check_sizes(key: Key, activation: Any, **sizes: Any) -> None:
    """What every network is made with: a typed key, a function, and numbers of at least 1."""
    check_key(key)
    check.function(activation, "activation", "of an array, such as jax.nn.silu")
    for name, size in sizes.items():
        check.count(size, name)


def forward(network: Any, *inputs: Any) -> Array:
    """A network at one state: one program, where it is called outside jit, also for another time or label."""
    numbers = lambda leaf: jnp.asarray(leaf) if isinstance(leaf, int) and not isinstance(leaf, bool) else leaf
    return _evaluated(network, *jax.tree.map(numbers, inputs))


@program
def _evaluated(network, *inputs):
    return network._evaluate(*inputs)


class Condition(eqx.Module):
    r"""Features of (t, args) as one vector: $\bigl(\phi(t),\ \sqrt{K}\,e_\text{label}\bigr)$ or $(\phi(t),
    \text{args})$.

    It has no parameters: the dense layer that reads it holds the embedding, since a one-hot vector picks
    one row of that layer's weights. The factor $\sqrt K$ gives every entry a mean square near one.

    **Arguments.** `classes`: K, then `args` is an integer label in 0..K-1; the label -1 is the null
    condition of classifier-free guidance (zero features) and any other label gives NaN. `cond_dim`: then
    `args` is a vector of that length. Neither: `args` is ignored. `frequencies`: pairs of Fourier features
    of the time, 0 for the raw time, None for a field that does not see the time. `times`: how many times t
    holds (2 for an average velocity between two times).

    **Calling** `condition(t, args, dtype)` returns `(condition.size,)`.
    **Errors.** ValueError for `classes` together with `cond_dim`, or args of the wrong kind.
    """

    classes: int | None = eqx.field(static=True, default=None)
    cond_dim: int | None = eqx.field(static=True, default=None)
    frequencies: int | None = eqx.field(static=True, default=8)
    times: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if self.classes is not None and self.cond_dim is not None:
            raise ValueError(
                f"classes={self.classes} and cond_dim={self.cond_dim}: "
                "args is either a label or a vector; give one of them"
            )
        for name in ("classes", "cond_dim", "times"):
            value = getattr(self, name)
            if value is not None:
                check.count(value, name)
        if self.frequencies is not None:
            check.count(self.frequencies, "frequencies (None ignores the time)", least=0)

    @property
    def size(self) -> int:
        """Length of the feature vector."""
        time = 0 if self.frequencies is None else self.times * (1 + 2 * self.frequencies)
        return time + (self.classes or 0) + (self.cond_dim or 0)

    def __call__(self, t: Any, args: Any, dtype: Any) -> Float[Array, " size"]:
        parts = [jnp.zeros(0, dtype)]
        if self.frequencies is not None:
            if np.size(t) != self.times:
                raise ValueError(
                    f"t has shape {np.shape(t)}: expected {self.times} time(s), the first argument of f(t, x, args); "
                    "set times= accordingly"
                )
            parts.append(time_features(t, self.frequencies, dtype=dtype))
        if self.classes is not None:
            parts.append(_one_hot(args, self.classes, dtype))
        if self.cond_dim is not None:
            if args is None or np.shape(args) != (self.cond_dim,):
                shape = None if args is None else np.shape(args)
                raise ValueError(f"args has shape {shape}: expected a vector of length cond_dim={self.cond_dim}")
            parts.append(jnp.asarray(args, dtype))
        return jnp.concatenate(parts)


def _one_hot(label: Any, classes: int, dtype: Any) -> Array:
    if label is None:
        raise ValueError(f"args=None: expected a label in 0..{classes - 1}, or -1 for no condition")
    label = jnp.asarray(label)
    if label.ndim != 0 or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(
            f"args is {label.dtype} of shape {label.shape}: expected one integer label in 0..{classes - 1}; "
            "vmap over a batch of labels"
        )
    hot = np.sqrt(classes).astype(dtype) * jax.nn.one_hot(label, classes, dtype=dtype)
    # A wrong label must not pass as "no condition".
    known = (label >= -1) & (label < classes)
    return jnp.where(known, hot, jnp.full_like(hot, jnp.nan))
