r"""Boltzmann machines whose mean-field equations have one solution, however deep and however they are connected.

Variables i with $k_i$ states, one-hot vectors $x_i$, energy $-\frac12x^T\Phi x - b\cdot x$ without couplings inside a
variable. Mean field, with q the probabilities of all states,

$$q_i = \operatorname{softmax}\bigl((\Phi q + b)_i\bigr) \quad\Longleftrightarrow\quad
  0 \in (I - \Phi)q - b + \partial f(q), \qquad f(q) = \sum q\ln q - \tfrac12|q|^2$$

on the simplices, where f is convex because q <= 1. If $I - \Phi \succeq m > 0$, the free energy
$\frac12q^T(I - \Phi)q - b\cdot q + f(q)$ is strongly convex and q unique. That holds for $\Phi_{ij} = -A_i^TA_j$,
$i \ne j$, when no block of A has a singular value above $\sqrt{1-m}$. Forward and backward steps of length
$\alpha \le 1/|I - \Phi|$ never raise the free energy and converge at rate $1 - \alpha m$:

$$q \leftarrow \operatorname{prox}_{\alpha f}\bigl(q - \alpha[(I - \Phi)q - b]\bigr), \qquad
  \operatorname{prox}_{\alpha f}(y): \ \alpha\ln q + (1-\alpha)q = y + \lambda,\ \sum q = 1$$

**See** Feng, Winston and Kolter, Monotone deep Boltzmann machines, TMLR (2023).
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml.core.fixed_point import AbstractIteration, Damped, fixed_point
from physml.core.status import Status
from physml.core.types import Key, Scalar, is_traced

NEWTON = 60  # steps of the proximal map at most; quadratic, started at softmax


class MeanField(eqx.Module):
    """`q` (states,): probabilities of the states of all variables, one after the other; `residual` and `status`."""

    q: Array
    residual: Array
    status: Status

    def check(self) -> "MeanField":
        """Raise `Failure` unless the iteration converged; return self otherwise."""
        self.status.check("mean field", lambda step: f"iteration {step}")
        return self


class MonotoneBoltzmann(eqx.Module):
    r"""A machine with a unique mean-field solution; see the module for the equations.

    **Fields.** `factors` A (rank, states), before they are scaled to the bound. `bias` b (states,). `sizes`: states of
    each variable: pixels, hidden units and labels in any order, all connected. `margin` m in (0, 1).

    **Cost.** states^2 multiplications an iteration; the gradient one linear solve.
    """

    factors: Array
    bias: Array
    sizes: tuple[int, ...] = eqx.field(static=True)
    margin: float = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        states = sum(self.sizes)
        if not self.sizes or min(self.sizes) < 2:
            raise ValueError(f"every variable needs two states or more, got sizes {self.sizes}")
        if not 0 < self.margin < 1:
            raise ValueError(f"margin must lie between 0 and 1, got {self.margin}")
        if np.ndim(self.factors) != 2 or np.shape(self.factors)[1] != states or np.shape(self.bias) != (states,):
            raise ValueError(
                f"factors {np.shape(self.factors)}, bias {np.shape(self.bias)}: expected (rank, {states}), ({states},)"
            )

    def couplings(self) -> Array:
        r"""$\Phi$ (states, states), zero inside a variable, with $I - \Phi \succeq m$."""
        A, same = self.factors, jnp.asarray(_same(self.sizes), self.factors.dtype)
        owner = jnp.asarray(_owner(self.sizes))
        square = _largest_eigenvalues(self.sizes, A.T @ A)
        A = A * jnp.sqrt((1 - self.margin) / jnp.maximum(square, 1 - self.margin))[owner][None, :]
        return (same - 1) * (A.T @ A)

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
        any probabilities. `step`: $\alpha$ in (0, 1]; None for $1/|I - \Phi|$. `start` (states,): the solution does not
        depend on it. `method`, `tol`, `max_steps` as in `core.fixed_point`; None for the plain steps, which never raise
        the free energy, where `Anderson()` takes several times fewer. Derivatives are implicit.
        **Returns** `MeanField`; status `not_converged` where `max_steps` did not do.
        """
        phi, owner = self.couplings(), jnp.asarray(_owner(self.sizes))
        dtype = phi.dtype
        if step is not None and not is_traced(step) and not 0 < float(step) <= 1:
            raise ValueError(f"step must lie in (0, 1], got {step}")
        if (clamped is None) != (values is None):
            raise ValueError("clamped and values go together: which variables are held, and at what")
        largest = 1 - jnp.linalg.eigvalsh(jax.lax.stop_gradient(phi))[0]
        alpha = jnp.minimum(1.0, 1 / largest) if step is None else jnp.asarray(step, dtype)
        held = jnp.zeros(len(owner), bool) if clamped is None else jnp.asarray(clamped)[owner]
        given = jnp.zeros_like(self.bias) if values is None else jnp.asarray(values, dtype)
        fix = lambda q: jnp.where(held, given, q)
        counts = jnp.asarray([1 / n for n in self.sizes], dtype)[owner]
        q0 = fix(counts if start is None else jnp.asarray(start, dtype))
        move = lambda q: fix(proximal(self.sizes, q - alpha * (q - phi @ q - self.bias), alpha))
        out = fixed_point(move, q0, method=Damped(1.0) if method is None else method, tol=tol, max_steps=max_steps)
        return MeanField(out.value, out.residual, out.status)

    def free_energy(self, q: Array) -> Array:
        r"""$-\frac12q^T\Phi q - b\cdot q + \sum q\ln q$, stationary at the solution."""
        entropy = -jnp.sum(jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1.0)), 0.0))
        return -0.5 * q @ (self.couplings() @ q) - self.bias @ q - entropy


def monotone_boltzmann(
    sizes: tuple[int, ...], *, rank: int, key: Key, margin: float = 0.1, scale: float = 0.5
) -> MonotoneBoltzmann:
    """A machine with random factors of this `rank`, blocks of length about `scale`, and no bias."""
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    sizes = tuple(int(n) for n in sizes)
    lengths = np.sqrt(np.asarray(sizes, np.float64) * rank)[_owner(sizes)]
    factors = jax.random.normal(key, (rank, sum(sizes))) * jnp.asarray(scale / lengths, jnp.result_type(float))[None, :]
    return MonotoneBoltzmann(factors, jnp.zeros(sum(sizes)), sizes, margin)


@functools.lru_cache(maxsize=32)
def _owner(sizes: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


@functools.lru_cache(maxsize=32)
def _same(sizes: tuple[int, ...]) -> np.ndarray:
    owner = _owner(sizes)
    return owner[:, None] == owner[None, :]


def _largest_eigenvalues(sizes: tuple[int, ...], gram: Array) -> Array:
    """Of the diagonal blocks (variables,), variables with as many states at once."""
    starts, counts = np.cumsum([0, *sizes[:-1]]), np.asarray(sizes)
    out = jnp.zeros(len(sizes), gram.dtype)
    for n in np.unique(counts):
        (which,) = np.nonzero(counts == n)
        at = starts[which][:, None] + np.arange(n)
        blocks = gram[at[:, :, None], at[:, None, :]]
        if n == 2:  # in closed form: pixels and units are many
            half = 0.5 * (blocks[:, 0, 0] - blocks[:, 1, 1])
            root = jnp.sqrt(half**2 + blocks[:, 0, 1] ** 2 + jnp.finfo(gram.dtype).tiny)
            top = 0.5 * (blocks[:, 0, 0] + blocks[:, 1, 1]) + root
        else:
            top = jnp.linalg.eigvalsh(blocks)[:, -1]
        out = out.at[which].set(top)
    return out


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
