r"""Boltzmann machines whose mean-field equations have one solution, however deep and however they are connected.

Variables i with $k_i$ states, one-hot vectors $x_i$, energy $-\frac12x^T\Phi x - b\cdot x$ without couplings inside a
variable. Mean field, with q the probabilities of all states,

$$q_i = \operatorname{softmax}\bigl((\Phi q + b)_i\bigr) \quad\Longleftrightarrow\quad
  0 \in (I - \Phi)q - b + \partial f(q), \qquad f(q) = \sum q\ln q - \tfrac12|q|^2$$

on the simplices, where f is convex because q <= 1. If $I - \Phi \succeq m > 0$, the free energy
$\frac12q^T(I - \Phi)q - b\cdot q + f(q)$ is strongly convex and q unique. Any symmetric W can be brought
there: couplings inside a variable are dropped, so is what is the same for all its states and belongs to the bias, and
if the largest eigenvalue exceeds 1 - m everything is scaled down to it,

$$\Phi = W\min\bigl(1, \tfrac{1-m}{\lambda_{\max}(W)}\bigr).$$

Forward and backward steps of length $\alpha \le 1/|I - \Phi|$ never raise the free energy and converge at rate
$1 - \alpha m$:

$$q \leftarrow \operatorname{prox}_{\alpha f}\bigl(q - \alpha[(I - \Phi)q - b]\bigr), \qquad
  \operatorname{prox}_{\alpha f}(y): \ \alpha\ln q + (1-\alpha)q = y + \lambda,\ \sum q = 1$$

**See** Feng, Winston and Kolter, Monotone deep Boltzmann machines, TMLR (2023).
"""

import functools
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from physml.core import check
from physml.core._fixed_point import fixed_point
from physml.core._status import Checked, Status
from physml.core.iterations import AbstractIteration, Damped
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Key, Scalar

NEWTON = 60  # steps of the proximal map at most; quadratic, started at softmax


def _number(value: Scalar, name: str) -> float:
    """A number that is part of the program, whatever library it comes from."""
    check.number(value, name)
    known = check.known(value)
    if known is None:
        raise ValueError(f"{name} is part of the program: a number that is known, got {value}")
    return float(known)


class MeanField(Checked):
    """`q` (states,): probabilities of the states of all variables, one after the other; `residual` and `status`."""

    computation: ClassVar[str] = "mean field"
    counted: ClassVar[str] = "iteration"

    q: Array
    residual: Array
    status: Status


class MonotoneBoltzmann(eqx.Module):
    r"""A machine with a unique mean-field solution; see the module for the equations.

    **Fields.** `weights` W (states, states), any matrix: its symmetric part counts, between variables. `bias` b
    (states,). `sizes`: states of each variable: pixels, hidden units and labels in any order. `connected` (variables,
    variables): which of them are, as in a layered machine; None for all. `margin` m in (0, 1).

    **Cost.** One eigenvalue problem, O(states^3), then states^2 multiplications an iteration; the gradient one linear
    solve. First derivatives only: the largest eigenvalue's is $v^T dW v$.
    """

    weights: Array
    bias: Array
    sizes: tuple[int, ...] = eqx.field(static=True)
    connected: ArrayLike | None = None
    margin: float = eqx.field(static=True, default=0.1, converter=lambda value: _number(value, "margin"))

    def __check_init__(self):
        states = sum(self.sizes)
        if not self.sizes or min(self.sizes) < 2:
            raise ValueError(f"every variable needs two states or more, got sizes {self.sizes}")
        check.number(self.margin, "margin", above=0, below=1)
        if np.shape(self.weights) != (states, states) or np.shape(self.bias) != (states,):
            found = f"weights {np.shape(self.weights)}, bias {np.shape(self.bias)}"
            raise ValueError(f"{found}: expected a matrix and a vector of {states} states")
        if self.connected is not None and np.shape(self.connected) != (len(self.sizes),) * 2:
            raise ValueError(f"connected must be ({len(self.sizes)},) * 2, got shape {np.shape(self.connected)}")

    def couplings(self) -> Array:
        r"""$\Phi$ (states, states), zero inside a variable, with $I - \Phi \succeq m$."""
        return self._couplings()[0]

    def _couplings(self):
        """And the smallest eigenvalue."""
        owner, count = jnp.asarray(_owner(self.sizes)), len(self.sizes)
        sizes = jnp.asarray(self.sizes, self.weights.dtype)
        centred = lambda W: W - (jax.ops.segment_sum(W, owner, count) / sizes[:, None])[owner]
        W = centred(centred(0.5 * (self.weights + self.weights.T)).T)
        W = jnp.where(jnp.asarray(_same(self.sizes)), 0.0, W)
        if self.connected is not None:
            both = jnp.asarray(self.connected, bool) & jnp.asarray(self.connected, bool).T
            W = jnp.where(both[owner][:, owner], W, 0.0)
        values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(W))
        largest = vectors[:, -1] @ W @ vectors[:, -1]
        scale = (1 - self.margin) / jnp.maximum(largest, 1 - self.margin)
        return W * scale, values[0] * jax.lax.stop_gradient(scale)

    def mean_field(
        self,
        clamped: Array | None = None,
        values: Array | None = None,
        *,
        step: Scalar | None = None,
        start: Array | None = None,
        method: AbstractIteration | None = None,
        tol: Scalar | None = None,
        max_steps: int = 500,
    ) -> MeanField:
        r"""The solution of the mean-field equations, with some variables held.

        **Arguments.** `clamped` (variables,): True for variables held at their part of `values` (states,), one-hot or
        any probabilities. `step`: $\alpha$ in (0, 1]; None for $1/|I - \Phi|$. `start` (states,): q does not
        depend on it. `method`, `tol`, `max_steps` as in `core.fixed_point`; None for the plain steps, which never raise
        the free energy, where `Anderson()` takes several times fewer. Derivatives are implicit.
        **Returns** `MeanField`; status `not_converged` where `max_steps` did not do.
        """
        if step is not None:
            check.number(step, "step", above=0, most=1)
        if (clamped is None) != (values is None):
            raise ValueError("clamped and values go together: which variables are held, and at what")
        return self._mean_field(clamped, values, step, start, method, tol, max_steps)

    @program
    def _mean_field(self, clamped, values, step, start, method, tol, max_steps):
        (phi, smallest), owner = self._couplings(), jnp.asarray(_owner(self.sizes))
        dtype = phi.dtype
        alpha = jnp.minimum(1.0, 1 / (1 - smallest)) if step is None else jnp.asarray(step, dtype)
        held = jnp.zeros(len(owner), bool) if clamped is None else jnp.asarray(clamped)[owner]
        given = jnp.zeros_like(self.bias) if values is None else jnp.asarray(values, dtype)
        fix = lambda q: jnp.where(held, given, q)
        counts = jnp.asarray([1 / n for n in self.sizes], dtype)[owner]
        q0 = fix(counts if start is None else jnp.asarray(start, dtype))
        move = lambda q: fix(proximal(self.sizes, q - alpha * (q - phi @ q - self.bias), alpha))
        out = fixed_point(move, q0, method=Damped(1.0) if method is None else method, tol=tol, max_steps=max_steps)
        return MeanField(out.value, out.residual, out.status)

    @program
    def free_energy(self, q: Array) -> Array:
        r"""$-\frac12q^T\Phi q - b\cdot q + \sum q\ln q$, stationary at the solution."""
        entropy = -jnp.sum(jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1.0)), 0.0))
        return -0.5 * q @ (self.couplings() @ q) - self.bias @ q - entropy


def monotone_boltzmann(
    sizes: tuple[int, ...],
    *,
    key: Key,
    connected: ArrayLike | None = None,
    margin: Scalar = 0.1,
    scale: float = 0.5,
) -> MonotoneBoltzmann:
    """A machine with random weights whose largest eigenvalue is about `scale`, and no bias."""
    check_key(key)
    sizes = tuple(check.count(n, "an entry of sizes", least=2) for n in sizes)
    if not sizes:
        raise ValueError("sizes must hold the states of one variable or more, got ()")
    check.number(scale, "scale", least=0)
    states = sum(sizes)
    dtype = jnp.result_type(float)
    weights = scale / (2 * states) ** 0.5 * jax.random.normal(key, (states, states), dtype)
    return MonotoneBoltzmann(weights, jnp.zeros(states), sizes, connected, margin)


@functools.lru_cache(maxsize=32)
def _owner(sizes: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


@functools.lru_cache(maxsize=32)
def _same(sizes: tuple[int, ...]) -> np.ndarray:
    owner = _owner(sizes)
    return owner[:, None] == owner[None, :]


def log_softmax(sizes: tuple[int, ...], y: Array) -> Array:
    """Logarithms of the softmax over the states of every variable."""
    owner, count = jnp.asarray(_owner(sizes)), len(sizes)
    y = y - jax.lax.stop_gradient(jax.ops.segment_max(y, owner, count))[owner]
    return y - jnp.log(jax.ops.segment_sum(jnp.exp(y), owner, count))[owner]


def softmax(sizes: tuple[int, ...], y: Array) -> Array:
    """Softmax over the states of every variable."""
    return jnp.exp(log_softmax(sizes, y))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def proximal(sizes: tuple[int, ...], y: Array, alpha: Array) -> Array:
    r"""q with $\alpha\ln q + (1-\alpha)q = y + \lambda$, $\sum q = 1$ in every variable; softmax at $\alpha = 1$.

    Newton's method in $\ln q$ and $\lambda$ together.
    """
    owner, count = jnp.asarray(_owner(sizes)), len(sizes)
    total = lambda a: jax.ops.segment_sum(a, owner, count)

    def newton(carry):
        u, _, k = carry
        e = jnp.exp(u)
        slope = alpha + (1 - alpha) * e
        gap = y - alpha * u - (1 - alpha) * e
        # du = (gap + lambda) / slope with sum e (1 + du) = 1; upward the exponential must not run away.
        lam = (1 - total(e) - total(e * gap / slope)) / total(e / slope)
        move = (gap + lam[owner]) / slope
        return u + jnp.minimum(move, 1.0), jnp.max(jnp.abs(move) * jnp.maximum(e, alpha)), k + 1

    more = lambda carry: (carry[1] > 8 * jnp.finfo(y.dtype).eps * (1 + jnp.max(jnp.abs(y)))) & (carry[2] < NEWTON)
    start = (log_softmax(sizes, y), jnp.full((), jnp.inf, y.dtype), jnp.zeros((), jnp.int32))
    u = jax.lax.while_loop(more, newton, start)[0]
    q = jnp.exp(u)
    return q / total(q)[owner]


@proximal.defjvp
def _(sizes: Any, primals: Any, tangents: Any) -> Any:
    y, alpha = primals
    owner, count = jnp.asarray(_owner(sizes)), len(sizes)
    total = lambda a: jax.ops.segment_sum(a, owner, count)
    q = proximal(sizes, y, alpha)
    w = q / (alpha + (1 - alpha) * q)
    # A state of vanishing probability stays there, whatever its logarithm.
    move = tangents[0] - tangents[1] * (jnp.log(jnp.maximum(q, jnp.finfo(q.dtype).tiny)) - q)
    return q, w * (move - (total(w * move) / total(w))[owner])
