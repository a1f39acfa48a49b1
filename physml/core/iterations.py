"""How the next iterate is made: damped and Anderson iteration, Newton's method with halved steps, its linear solves."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jax import lax
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.types import Scalar

DENSE_LIMIT = 1000  # largest state whose Jacobian is formed when no linear solver is chosen


class AbstractIteration(eqx.Module):
    """How the next iterate is made from x and f(x), both flat vectors."""

    @abc.abstractmethod
    def init(self, x: Array) -> PyTree:
        """State of the iteration at its start."""

    @abc.abstractmethod
    def next(self, f: Callable[[Array], Array], x: Array, fx: Array, state: PyTree) -> tuple[Array, PyTree, Array]:
        """The next iterate, the state, and whether the iteration has given up."""


class Damped(AbstractIteration):
    r"""$x \leftarrow (1 - a) x + a f(x)$ with $a$ = `damping`; converges at rate $|1 - a + a f'|$."""

    damping: Scalar = 0.5

    def __check_init__(self):
        check.within(self.damping, "damping", above=0, most=1)

    def init(self, x):
        return ()

    def next(self, f, x, fx, state):
        return x + jnp.asarray(self.damping, x.dtype) * (fx - x), state, jnp.asarray(False)


class _Mixing(eqx.Module):
    x: Array  # (depth, n), a ring of past iterates
    r: Array  # (depth, n), their residuals f(x) - x
    count: Array
    best: Array
    stale: Array


class Anderson(AbstractIteration):
    r"""Anderson's mixing: the combination of the last `depth` iterates with the smallest linearised residual.

    $$\min_w \left|\sum_i w_i r_i\right|^2 + \lambda\, \overline{|r|^2} |w|^2,\quad \sum_i w_i = 1;\qquad
      x' = \sum_i w_i (x_i + a\, r_i)$$

    **Arguments.** `depth`: iterates kept, >= 2. `damping`: a. `ridge`: lambda, which keeps the weights
    bounded when the residuals become parallel. `growth`: a residual larger than this times the best restarts
    the memory with a damped step. `patience`: iterations without a new best residual before it stops as
    `stagnated`.

    **See** Walker and Ni, SIAM J. Numer. Anal. 49, 1715 (2011).
    """

    depth: int = eqx.field(static=True, default=5)
    damping: Scalar = 1.0
    ridge: Scalar = 1e-8
    growth: Scalar = 10.0
    patience: int = eqx.field(static=True, default=100)

    def __check_init__(self):
        if self.depth < 2:
            raise ValueError(f"Anderson needs depth >= 2, got {self.depth}; depth 1 is Damped")
        check.within(self.damping, "damping", above=0, most=1)

    def init(self, x):
        empty, zero = jnp.zeros((self.depth, x.size), x.dtype), jnp.asarray(0, jnp.int32)
        return _Mixing(empty, empty, zero, jnp.asarray(jnp.inf, x.dtype), zero)

    def next(self, f, x, fx, state):
        r = fx - x
        size = largest(r)
        better = size < state.best
        stale = jnp.where(better, 0, state.stale + 1)
        restart = size > jnp.asarray(self.growth, x.dtype) * state.best
        count = jnp.where(restart, 0, state.count)
        slot = count % self.depth
        xs, rs = state.x.at[slot].set(x), state.r.at[slot].set(r)
        # Empty slots hold a unit matrix, which excludes them; w solves (R R^T + ridge) w = 1, normalised.
        used = jnp.arange(self.depth, dtype=jnp.int32) < jnp.minimum(count + 1, self.depth)
        gram = jnp.where(used[:, None] & used[None, :], rs @ rs.T, 0.0)
        scale = jnp.trace(gram) / jnp.sum(used).astype(x.dtype) + jnp.finfo(x.dtype).tiny
        gram = gram / scale + jnp.diag(jnp.where(used, jnp.asarray(self.ridge, x.dtype), 1.0))
        w = jnp.linalg.solve(gram, used.astype(x.dtype))
        w = w / jnp.sum(w)
        mixed = w @ (xs + jnp.asarray(self.damping, x.dtype) * rs)
        x = jnp.where(restart | ~jnp.isfinite(mixed).all(), x + 0.5 * r, mixed)
        state = _Mixing(xs, rs, count + 1, jnp.minimum(size, state.best), stale)
        return x, state, stale >= self.patience


class Newton(AbstractIteration):
    r"""$x' = x + t\,(I - \partial f)^{-1} (f(x) - x)$, t halved until the residual falls.

    Converges quadratically, to unstable fixed points as readily as to stable ones. `linear_solver`: a lineax
    solver; None forms the Jacobian up to 1000 unknowns and uses GMRES above. `halvings`: of t at most.
    """

    linear_solver: Any = None
    halvings: int = eqx.field(static=True, default=12)

    def init(self, x):
        return ()

    def next(self, f, x, fx, state):
        _, tangent = jax.linearize(f, x)
        r = fx - x
        move = solve_linear(lambda v: v - tangent(v), r, self.linear_solver)
        size = jnp.linalg.norm(r)

        def too_long(t_k):
            t, k = t_k
            y = x + t * move
            worse = ~(jnp.linalg.norm(f(y) - y) < size)
            return worse & (k < self.halvings)

        one = jnp.asarray(1.0, x.dtype)
        t, k = lax.while_loop(too_long, lambda t_k: (0.5 * t_k[0], t_k[1] + 1), (one, 0))
        return x + t * move, state, k >= self.halvings


def largest(x: Array) -> Array:
    """max |x|, not a number where any entry is not: the maximum of a large array alone drops NaN on some backends."""
    return jnp.where(jnp.isfinite(x).all(), jnp.max(jnp.abs(x), initial=0.0), jnp.nan)


def solve_linear(operator: Callable[[Array], Array], b: Array, linear_solver: Any = None) -> Array:
    """x with operator(x) = b for a linear map of flat vectors, by a lineax solver.

    None: LU of the dense matrix up to `DENSE_LIMIT` unknowns, GMRES to eps^(3/4) above.
    """
    if linear_solver is None and b.size <= DENSE_LIMIT:
        return jnp.linalg.solve(jax.jacfwd(operator)(b), b)
    if linear_solver is None:
        tol = float(jnp.finfo(b.dtype).eps) ** 0.75
        linear_solver = lineax.GMRES(rtol=tol, atol=tol, restart=50, stagnation_iters=50)
    linear = lineax.FunctionLinearOperator(operator, jax.ShapeDtypeStruct(b.shape, b.dtype))
    return lineax.linear_solve(linear, b, linear_solver, throw=False).value
