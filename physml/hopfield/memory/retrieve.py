r"""Retrieval from a continuous Hopfield memory $x_1, \dots, x_N$, without any learned weights.

$$x \leftarrow X^T p(\beta X x), \qquad
  E(x) = -\frac1\beta\ln\sum_i e^{\beta x_i\cdot x} + \frac{|x|^2}{2} + \frac{\ln N}{\beta} + \frac{\max_i|x_i|^2}{2}
  \ge 0$$

for softmax; `physml.hopfield.separation` holds p and the energy of the others. One step of a softmax memory is
attention with the memories as keys and values.
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from physml.core import check
from physml.core._fixed_point import fixed_point
from physml.core._status import Checked, Code, Status, status
from physml.core.iterations import Damped
from physml.core.program import program
from physml.core.types import Scalar, widest
from physml.hopfield.memory.separation import AbstractStreamed, Potential, energy_constant, separation as _separation
from physml.hopfield.memory.streaming import associate

MOST = 100  # steps with a tolerance, when none are given


class Retrieval(Checked):
    """What `retrieve` returns; `...` are the axes of the queries.

    `x` (..., d): the state. `energy` (...): of x. `weights` (..., N): of the last association, x = weights @ memory,
    None if not asked for. `steps` (...): taken. `value` (..., v): weights @ values, where values were given.
    """

    computation: ClassVar[str] = "retrieve"
    counted: ClassVar[str] = "step"

    x: Array
    energy: Array
    weights: Array | None
    steps: Array
    status: Status
    value: Array | None = None


def retrieve(
    query: Float[Array | np.ndarray, "..."],
    memory: Float[Array | np.ndarray, "..."],
    *,
    beta: Scalar,
    steps: int | None = None,
    tol: Scalar | None = None,
    separation: Any = "softmax",
    mask: Bool[Array | np.ndarray, "..."] | None = None,
    values: Float[Array | np.ndarray, "..."] | None = None,
    return_weights: bool = True,
    chunk: int | None = None,
    adjoint: Literal["implicit", "unrolled"] | None = None,
) -> Retrieval:
    r"""$x \leftarrow X^T p(\beta X x)$ from a query, `steps` times or until it stands still.

    **Arguments.** `query` `(d,)` or `(..., d)`, `memory` `(N, d)`. `beta` > 0: a number or one per query `(...)`;
    it may be learned. `steps`: by default 1; with `tol` the most, by default 100. `tol`: on max|x' - x| / (1 + max|x|),
    for each query by itself. `separation`: softmax, softmax1, sparsemax, polynomial, a module of
    `physml.hopfield.separation`, or a convex function of the logits. `mask`, `(N,)` or `(..., N)`: False for memories
    that cannot be seen; where nothing can be seen, x and the weights are zero and the energy is $|x|^2/2$.
    `values` `(N, v)`: read by the weights of the last association. `return_weights`: keep them, N for each query.
    `chunk`: memories handled at a time; with `return_weights=False` no array has the length N, in the gradient
    neither (beside that of the memory itself). A divisor of N avoids one copy. `adjoint`: with `tol`, implicit
    (default) differentiates the fixed point by one linear solve; unrolled goes through the steps, the only way
    without `tol`.

    **Returns** `Retrieval(x, energy, weights, steps, status, value)`. Status `diverged` where the state is no longer
    finite (memories or queries that are not numbers), `unphysical` where a traced beta is not positive,
    `not_converged` where `steps` did not reach `tol`.

    **Cost.** 2 N d multiply-adds a step and query; in chunks with sparsemax one more pass for each Newton step.
    **Errors.** ValueError for an empty memory, beta <= 0, shapes, steps < 1, an adjoint without `tol`.
    **See** Ramsauer et al., Hopfield networks is all you need (2021), eqs. 1-3.

    ```python
    out = retrieve(query, memory, beta=8.0, steps=3)  # memory (N, d), query (d,)
    ```
    """
    sep = _separation(separation)
    query, memory, beta, mask = _prepare(query, memory, beta, mask, sep, chunk)
    if steps is None:
        steps = 1 if tol is None else MOST
    steps = check.count(steps, "steps")
    if tol is not None:
        check.number(tol, "tol", least=0)
    if adjoint not in (None, "implicit", "unrolled") or (adjoint == "implicit" and tol is None):
        raise ValueError(f"adjoint={adjoint!r}: expected 'unrolled', or 'implicit' together with tol")
    if values is not None and (values.ndim != 2 or len(values) != len(memory)):
        raise ValueError(f"values {values.shape}: expected ({len(memory)}, v), one row for each memory")

    values = None if values is None else jnp.asarray(values, query.dtype)
    return _retrieve(sep, query, memory, beta, mask, values, steps, tol, return_weights, chunk, adjoint)


def energy(
    x: Float[Array | np.ndarray, "..."],
    memory: Float[Array | np.ndarray, "..."],
    *,
    beta: Scalar,
    separation: Any = "softmax",
    mask: Bool[Array | np.ndarray, "..."] | None = None,
    chunk: int | None = None,
) -> Array:
    r"""$E(x) = -\Phi(\beta X x)/\beta + |x|^2/2 + \text{constant}$, which no step of `retrieve` increases.

    The constant makes it non-negative: $\max_i|x_i|^2/2$ and, for N visible memories, $\ln N/\beta$ (softmax),
    $\ln(N+1)/\beta$ (softmax1), $(1 - 1/N)/(2\beta)$ (sparsemax); $N^{2/n}\max_i|x_i|^2/2$ alone for powers.

    **Arguments** as in `retrieve`. **Returns** `(...)`. **Cost.** N d multiply-adds for each x. **See** Ramsauer et al.
    (2021), eq. 2.
    """
    sep = _separation(separation)
    x, memory, beta, mask = _prepare(x, memory, beta, mask, sep, chunk)
    return _energy_alone(sep, x, memory, beta, mask, chunk)


@program
def _retrieve(sep, query, memory, beta, mask, values, steps, tol, return_weights, chunk, adjoint):
    def associated(x, beta, mask, rows):
        """The rows weighted by x, and Phi."""
        q = x * beta[..., None]
        if isinstance(sep, AbstractStreamed) and chunk is not None:
            return associate(sep, chunk, q, memory, rows, mask)
        w, r, _ = sep.split(q @ memory.T, mask)
        return (w @ rows) * r[..., None], None

    advance = lambda x, beta, mask: associated(x, beta, mask, memory)[0]
    wide = jnp.broadcast_to(beta, query.shape[:-1])
    if tol is None:
        last = _repeat(lambda x: advance(x, wide, mask), query, steps - 1)
        x = advance(last, wide, mask)
        taken = jnp.full(query.shape[:-1], steps, jnp.int32)
        code = jnp.full(query.shape[:-1], Code.ok, jnp.int32)
    else:
        found = _until_still(advance, query, wide, mask, tol, steps, adjoint or "implicit")
        last = x = found.value.reshape(query.shape)
        taken, code = (a.reshape(query.shape[:-1]) for a in (found.steps, found.status.code))
    finite = jnp.isfinite(x).all(-1)
    code = jnp.where(wide > 0, jnp.where(finite, code, Code.diverged), Code.unphysical)
    weights = sep.weights((last * wide[..., None]) @ memory.T, mask) if return_weights else None
    value = None if values is None else associated(last, wide, mask, values)[0]
    return Retrieval(x, _energy(sep, x, memory, wide, mask, chunk), weights, taken, status(code, taken), value)


def _energy(sep, x, memory, beta, mask, chunk):
    q, squares = x * beta[..., None], jnp.sum(memory * memory, -1)
    if isinstance(sep, AbstractStreamed) and chunk is not None:
        # Phi is the second result; the empty rows beside it cost nothing.
        phi = associate(sep, chunk, q, memory, memory[:, :0], mask)[1]
    else:
        phi = sep.potential(q @ memory.T, mask)
    if mask is None:
        count, radius = jnp.asarray(len(memory), x.dtype), jnp.sqrt(jnp.max(squares))
    else:
        count = jnp.sum(mask, -1).astype(x.dtype)
        radius = jnp.sqrt(jnp.max(jnp.where(mask, jnp.broadcast_to(squares, mask.shape), 0.0), -1))
    phi = jnp.where(count > 0, phi, 0.0)
    return jnp.sum(x * x, -1) / 2 - phi / beta + energy_constant(sep, count, beta, radius)


@program
def _energy_alone(sep, x, memory, beta, mask, chunk):
    return _energy(sep, x, memory, jnp.broadcast_to(beta, x.shape[:-1]), mask, chunk)


def _repeat(advance, x, steps):
    if steps <= 1:
        return advance(x) if steps else x
    return lax.scan(lambda x, _: (advance(x), None), x, length=steps)[0]


def _until_still(advance, query, beta, mask, tol, steps, adjoint):
    """One fixed point for each query, all in one loop; (queries, ...) in the leading axis."""
    flat = query.reshape(-1, query.shape[-1])
    axis = None
    if mask is not None and mask.ndim > 1:
        axis, mask = 0, jnp.broadcast_to(mask, (*query.shape[:-1], mask.shape[-1])).reshape(len(flat), -1)

    def one(x, beta, mask):
        f = lambda x: advance(x, beta, mask)
        return fixed_point(f, x, method=Damped(1.0), tol=tol, max_steps=steps, adjoint=adjoint)

    return jax.vmap(one, (0, 0, axis))(flat, beta.reshape(-1), mask)


def _fits(shape, wanted):
    return len(shape) <= len(wanted) and all(n in (1, m) for n, m in zip(shape[::-1], wanted[::-1], strict=False))


def _prepare(query, memory, beta, mask, sep, chunk):
    """Checked, and of one dtype."""
    query, memory = jnp.asarray(query), jnp.asarray(memory)
    mask = None if mask is None else jnp.asarray(mask)
    if memory.ndim != 2 or query.ndim < 1 or query.shape[-1] != memory.shape[-1]:
        raise ValueError(f"query {query.shape} and memory {memory.shape}: expected (..., d) and (N, d)")
    if len(memory) == 0:
        raise ValueError("memory is empty: expected at least one pattern; a mask hides patterns without removing them")
    check.within(beta, "beta, an inverse temperature,", above=0)
    if chunk is not None:
        check.count(chunk, "chunk")
        if not isinstance(sep, AbstractStreamed):
            raise ValueError(f"chunk={chunk} with {type(sep).__name__}: expected a named separation")
    if isinstance(sep, Potential):
        sep.fits(len(memory))
    dtype = widest(query.dtype, memory.dtype)
    beta = jnp.asarray(beta, dtype)
    if beta.ndim and not _fits(beta.shape, query.shape[:-1]):
        raise ValueError(f"beta {beta.shape}: expected a number or one for each query, {query.shape[:-1]}")
    if mask is not None:
        wanted = (*query.shape[:-1], len(memory))
        if mask.shape[-1:] != wanted[-1:] or not _fits(mask.shape, wanted):
            raise ValueError(f"mask {mask.shape}: expected ({len(memory)},) or {wanted}, True where visible")
    return query.astype(dtype), memory.astype(dtype), beta, mask
