r"""Fixed points $x^* = f(x^*)$: damped and Anderson iteration, Newton, and the implicit derivative.

$$\frac{dx^*}{d\theta} = \left(I - \partial_x f\right)^{-1} \partial_\theta f$$

so a gradient costs one linear solve and no memory for the iterations. Parameters may be captured by `f`.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.iterations import AbstractIteration, Damped, largest, solve_linear
from physml.core.program import program
from physml.core.types import Scalar, shape_of, widest


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
