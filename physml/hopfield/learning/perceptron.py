r"""The binary perceptron at finite size: tasks, approximate message passing, training of weight distributions.

A task is $y_\mu = \mathrm{sgn}(W\cdot x^\mu)$ with Gaussian inputs. `messages` finds the means
$m_i = \langle w_i\rangle$ over $w \in \{\pm1\}^N$ that fit all examples, with weight $e^{b\cdot w}$:

$$\omega = \frac{Xm}{\sqrt N} - Vg, \quad V = 1 - \overline{m^2}, \quad g = \frac{y\,\Phi'(t)}{\sqrt V\,\Phi(t)},
  \ t = \frac{y\omega}{\sqrt V}, \qquad m = \tanh\Bigl(b + \frac{X^\top g}{\sqrt N} - \frac{m}{N}\sum_\mu\partial_\omega
  g\Bigr)$$

whose overlaps for large N are those of `theory.teacher_student` and, with $b = \hat p\tilde w$, of `theory.two_tasks`.
Its cost is two products with X (M, N) a step.

**See** Mézard, J. Phys. A 22, 2181 (1989); Donoho, Maleki and Montanari, PNAS 106, 18914 (2009).
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Key


class Messages(Checked):
    """`m` (N,) means of the weights, `change` of the last step, `status` with the number of steps."""

    computation: ClassVar[str] = "messages"

    m: Array
    change: Array
    status: Status


def flipped(weights: Float[Array, " n"], product: float, *, key: Key) -> Float[Array, " n"]:
    """Signs that agree with `weights` in the mean `product`, in [-1, 1], entry by entry."""
    check_key(key)
    check.number(product, "product", least=-1, most=1)
    return jnp.where(jax.random.uniform(key, weights.shape, weights.dtype) < 0.5 * (1 + product), weights, -weights)


def examples_of(teacher: Float[Array, " n"], count: int, *, key: Key) -> tuple[Float[Array, "m n"], Float[Array, " m"]]:
    """`count` Gaussian inputs and the labels +-1 that the teacher gives them."""
    check_key(key)
    return _examples_of(teacher, check.count(count, "count"), key)


@program
def _examples_of(teacher, count, key):
    x = jax.random.normal(key, (count, teacher.size), teacher.dtype)
    return x, jnp.where(x @ teacher > 0, 1.0, -1.0).astype(teacher.dtype)


def check_examples(inputs: Array, labels: Array) -> None:
    """Raise a `ValueError` unless inputs are finite and labels +-1, as far as they are known."""
    if 0 in inputs.shape:
        raise ValueError(f"inputs must hold examples of weights, got shape {inputs.shape}")
    entries, signs = check.known(inputs), check.known(labels)
    if entries is not None and not np.isfinite(entries).all():
        raise ValueError("inputs contain NaN or infinite entries")
    if signs is not None and not (np.abs(signs) == 1).all():
        raise ValueError("labels must be +1 or -1")


def messages(
    inputs: Float[Array, "m n"],
    labels: Float[Array, " m"],
    *,
    bias: Float[Array, " n"] | float = 0.0,
    damping: float = 1.0,
    tol: float = 1e-4,
    max_steps: int = 300,
) -> Messages:
    r"""Means of the weights that fit all examples, see the module.

    **Arguments.** `inputs`, of unit variance; `labels` +-1; `bias` b; `damping`: the share of the new means in a step;
    `tol` on the root mean square change of m. **Returns** `Messages`; status `not_converged` or `diverged`.
    """
    check_examples(inputs, labels)
    check.number(damping, "damping", above=0, most=1)
    check.number(tol, "tol", least=0)
    return _messages(inputs, labels, bias, damping, tol, check.count(max_steps, "max_steps"))


@program
def _messages(x, y, b, damping, tol, max_steps):
    b, damping, tol = (jnp.asarray(v, x.dtype) for v in (b, damping, tol))
    count, n = x.shape
    root = jnp.asarray(math.sqrt(n), x.dtype)

    def more(carry):
        *_, change, k = carry
        return (change > tol) & (k < max_steps)

    def step(carry):
        m, g, _, k = carry
        variance = 1 - jnp.mean(m**2) + 1e-6
        scale = jnp.sqrt(variance)
        t = y * (x @ m / root - variance * g) / scale
        slope = jnp.exp(-0.5 * t**2 - 0.5 * math.log(2 * math.pi) - log_ndtr(t))
        g = y * slope / scale
        gain = jnp.sum(slope * (slope + t)) / (n * variance)
        new = jnp.tanh(b + g @ x / root + gain * m)
        new = m + damping * (new - m)
        return new, g, jnp.sqrt(jnp.mean((new - m) ** 2)), k + 1

    start = jnp.broadcast_to(jnp.tanh(b), (n,)), jnp.zeros(count, x.dtype), jnp.asarray(jnp.inf, x.dtype), 0
    m, _, change, k = lax.while_loop(more, step, start)
    code = jnp.where(jnp.isfinite(change), jnp.where(change <= tol, Code.ok, Code.not_converged), Code.diverged)
    return Messages(m, change, status(code, k))
