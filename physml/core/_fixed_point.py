r"""Fixed points $x^* = f(x^*)$: damped and Anderson iteration, Newton, and the implicit derivative.

$$\frac{dx^*}{d\theta} = \left(I - \partial_x f\right)^{-1} \partial_\theta f$$

so a gradient costs one linear solve and no memory for the iterations. Parameters may be captured by `f`.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.program import program
from physml.core.types import Scalar, shape_of, widest

DENSE_LIMIT = 1000  # largest state whose Jacobian is formed when no linear solver is chosen


class Iterates(eqx.Module):
    """Iterates (max_steps + 1, ...) and their residuals; rows beyond the last step are NaN."""

    values: PyTree
    residuals: Array


class FixedPoint(Checked):
    """`value` solves x = f(x) up to `residual` = max|f(x) - x| / (1 + max|x|), after `steps` iterations."""

    computation: ClassVar[str] = "fixed_point"
    counted: ClassVar[str] = "iteration"

    value: PyTree
    residual: Array
    steps: Array
    status: Status
    history: Iterates | None = None


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


def fixed_point(
    f: Callable[[PyTree], PyTree],
    x0: PyTree,
    *,
    method: AbstractIteration | None = None,
    tol: Scalar | None = None,
    max_steps: int = 1000,
    adjoint: Literal["implicit", "unrolled"] = "implicit",
    linear_solver: Any = None,
    history: bool = False,
) -> FixedPoint:
    r"""Solve x = f(x) from x0.

    **Arguments.** `f`: maps a pytree of real or complex floating arrays to its like; arrays it captures may
    be differentiated. `method`: `Damped(0.5)` (default), `Anderson(depth)` or `Newton()`. `tol`: on max|f(x)
    - x| / (1 + max|x|), by default eps^(3/4); one below 4 eps is raised to 4 eps and a run that reaches that
    is `precision_limited`, which counts as success. `adjoint`: the derivative, by the implicit function
    theorem or through the iterations (all `max_steps` of them are then stored). `linear_solver`: a lineax
    solver for the implicit derivative. `history`: keep all iterates.

    **Returns** `FixedPoint(value, residual, steps, status, history)`; status `not_converged`, `stagnated` or
    `diverged` with the iteration where it ended. The derivative of a value that did not converge means
    nothing.

    **Example.** `fixed_point(lambda m: jnp.tanh(beta * m), jnp.array(0.9))`, the magnetisation of Curie and
    Weiss.
    """
    method = Damped() if method is None else method
    check.instance(method, "method", AbstractIteration, "Damped(...), Anderson(...) or Newton(...)")
    check.choice(adjoint, "adjoint", ("implicit", "unrolled"))
    check.function(f, "f", "of the unknowns")
    max_steps = check.count(max_steps, "max_steps")
    if tol is not None:
        check.within(tol, "tol", least=0)
    x0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), x0)
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(x0)):
        raise ValueError(f"x0 must be floating point, got {[str(leaf.dtype) for leaf in jax.tree.leaves(x0)]}")
    out = shape_of(f, x0)
    kinds = lambda tree: [(leaf.shape, jnp.iscomplexobj(leaf)) for leaf in jax.tree.leaves(tree)]
    if jax.tree.structure(out) != jax.tree.structure(x0) or kinds(out) != kinds(x0):
        raise ValueError(f"f must return what it is given: {jax.tree.map(jnp.shape, x0)}, got {out}")

    return _solve(f, x0, method, tol, max_steps, adjoint, linear_solver, history)


@program
def _solve(f, x0, method, tol, max_steps, adjoint, linear_solver, history):
    flat0, restore = _flatten(x0)
    flat_f = lambda v: _flatten(f(restore(v)))[0].astype(v.dtype)
    eps = float(jnp.finfo(flat0.dtype).eps)
    wanted = jnp.asarray(eps**0.75 if tol is None else tol, flat0.dtype)
    floor = jnp.asarray(4 * eps, flat0.dtype)
    run = lambda f, x, loop: _iterate(f, x, method, jnp.maximum(wanted, floor), max_steps, history, loop)

    # custom_root gives its auxiliary output float tangents, so counters travel as floats.
    floats = lambda out: jax.tree.map(lambda leaf: leaf.astype(flat0.dtype), out)

    if adjoint == "unrolled":
        value, (residual, steps, code, trail) = run(flat_f, flat0, _scan_until)
    else:
        value, (residual, steps, code, trail) = lax.custom_root(
            lambda v: flat_f(v) - v,
            flat0,
            lambda _, x: floats(run(flat_f, x, _while_not)),
            lambda linear, b: solve_linear(linear, b, linear_solver),
            has_aux=True,
        )
    steps, code = steps.astype(jnp.int32), code.astype(jnp.int32)
    code = jnp.where((code == Code.ok) & (wanted < floor), Code.precision_limited, code)
    trail = None if trail is None else Iterates(jax.vmap(restore)(trail[0]), trail[1])
    return FixedPoint(restore(value), residual, steps, status(code, steps), trail)


def _iterate(f, x, method, tol, max_steps, history, loop):
    """Flat vectors: the last iterate and (residual, steps, code, (iterates, residuals) or None)."""

    def measure(x, fx):
        return largest(fx - x) / (1 + largest(x))

    def done(carry):
        x, fx, _, k, gave_up, _ = carry
        size = measure(x, fx)
        return (size <= tol) | ~jnp.isfinite(size) | gave_up | (k >= max_steps)

    def advance(carry):
        x, fx, state, k, _, trail = carry
        x, state, gave_up = method.next(f, x, fx, state)
        fx = f(x)
        return x, fx, state, k + 1, gave_up, record(trail, k + 1, x, fx)

    def record(trail, k, x, fx):
        if trail is None:
            return None
        return trail[0].at[k].set(x), trail[1].at[k].set(measure(x, fx))

    trail = None
    if history:
        nan = lambda *shape: jnp.full(shape, jnp.nan, x.dtype)
        trail = (nan(max_steps + 1, x.size), nan(max_steps + 1))
    fx, zero = f(x), jnp.asarray(0, jnp.int32)
    start = (x, fx, method.init(x), zero, jnp.asarray(False), record(trail, zero, x, fx))
    x, fx, _, k, gave_up, trail = loop(done, advance, start, max_steps)
    residual = measure(x, fx)
    failed = jnp.where(gave_up, Code.stagnated, Code.not_converged)
    code = jnp.where(jnp.isfinite(residual), jnp.where(residual <= tol, Code.ok, failed), Code.diverged)
    return x, (residual, k, code, trail)


def _while_not(done, advance, carry, max_steps):
    return lax.while_loop(lambda c: ~done(c), advance, carry)


def _scan_until(done, advance, carry, max_steps):
    """The same loop with a static length, which reverse mode can go through."""
    body = lambda c, _: (lax.cond(done(c), lambda c: c, advance, c), None)
    return lax.scan(body, carry, length=max_steps)[0]


def _flatten(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """A pytree as one real vector, complex leaves as pairs, and the way back."""
    split = jax.tree.map(lambda z: (z.real, z.imag) if jnp.iscomplexobj(z) else z, tree)
    shape = jax.tree.map(jnp.iscomplexobj, tree)
    dtype = widest(*[leaf.dtype for leaf in jax.tree.leaves(split)])
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, split)
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(dtype), split))

    def restore(vector):
        parts = jax.tree.map(lambda leaf, kind: leaf.astype(kind), unravel(vector), dtypes)
        return jax.tree.map(lambda is_pair, part: lax.complex(*part) if is_pair else part, shape, parts)

    return flat, restore
