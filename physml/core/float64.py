"""The float64 rule: theory and sums of log-weights compute in float64 and return the caller's dtype."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from physml.core.types import is_traced, widest

F = TypeVar("F", bound=Callable[..., Any])

_UP = {"float16": "float64", "bfloat16": "float64", "float32": "float64", "complex64": "complex128"}


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _cast_up(leaf):
    name = str(leaf.dtype) if _is_number(leaf) else ""
    return jnp.asarray(leaf).astype(_UP[name]) if name in _UP else leaf


def _callers(tree: PyTree) -> tuple[Any, Any]:
    """The dtypes in which results go back: the widest floating one among the arrays, and the default integer."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if _is_number(leaf)]
    floats = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    down = jax.dtypes.canonicalize_dtype(jnp.finfo(widest(*floats)).dtype if floats else float)
    return down, jax.dtypes.canonicalize_dtype(int)


def _cast_down(tree: PyTree, dtypes: tuple[Any, Any]) -> PyTree:
    down, integer = dtypes

    def one(leaf):
        if not _is_number(leaf):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return jnp.asarray(leaf).astype(widest(down, jnp.complex64))
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(leaf).astype(down)
        return jnp.asarray(leaf).astype(integer) if jnp.issubdtype(leaf.dtype, jnp.signedinteger) else leaf

    return jax.tree.map(one, tree)


def in_float64(function: F) -> F:
    """Decorator: compute in float64, return the caller's dtype, leave the global x64 flag as it is.

    Floating arrays among the arguments are cast up inside `jax.enable_x64(True)` and results are cast down
    before leaving it, because a float64 array that leaks out silently becomes float32 later. The caller's
    dtype is the widest floating dtype among the array arguments, or jax's default (float32 unless x64 is on)
    when there are none. Static leaves, integers and typed keys pass through; integer results come back as the
    default integer.

    Holds inside jit, grad, vmap and scan. More than 7 digits in the result need x64 switched on, or float64
    input.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        dtypes = _callers((args, kwargs))
        with jax.enable_x64(True):
            args, kwargs = jax.tree.map(_cast_up, (args, kwargs))
            return _cast_down(function(*args, **kwargs), dtypes)

    return wrapped  # type: ignore[return-value]


def float64_program(function: F | None = None, *, static: tuple[str, ...] = ()) -> F:
    """Decorator of a function of arrays: one compiled program in float64, with derivatives of the same precision.

    What `in_float64` does, and two things more. Outside jit the whole function, casts included, is one program: numbers
    become arrays, so that another value does not compile again; only the arguments named in `static` (and words, None,
    functions) make programs of their own. And derivatives are taken in float64 wherever the caller takes them: JAX
    differentiates after the function has returned, where wide numbers are no longer known. Forward and reverse mode,
    also one over the other, with `vmap` and `jit`; not reverse over reverse. The function must not close over traced
    values.
    """
    if function is None:
        return functools.partial(float64_program, static=static)  # type: ignore[return-value]
    signature = inspect.signature(function)

    def body(arrays, fixed, dtypes):
        return _cast_down(function(**eqx.combine(jax.tree.map(_cast_up, arrays), fixed)), dtypes)

    program, tangents = eqx.filter_jit(body), _Tangents(body)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        dtypes = _callers(bound.arguments)
        named = {name: v if name in static else jax.tree.map(_exactly, v) for name, v in bound.arguments.items()}
        with jax.enable_x64(True):
            arrays, fixed = eqx.partition(named, _is_number)
            if is_traced(arrays):
                return _differentiable(program, tangents, arrays, fixed, dtypes)
            return program(arrays, fixed, dtypes)

    return wrapped  # type: ignore[return-value]


def _exactly(leaf: Any) -> Any:
    """Numbers of Python as NumPy's, with all their digits: they do not count for the caller's dtype."""
    if isinstance(leaf, bool) or not isinstance(leaf, int | float | complex):
        return leaf
    return np.asarray(leaf, np.complex128 if isinstance(leaf, complex) else np.float64)


def _differentiable(program, tangents, arrays, fixed, dtypes):
    """The program of arrays that may be traced, with a derivative that is computed in this context."""
    call = lambda arrays: program(arrays, fixed, dtypes)

    @jax.custom_jvp
    def run(arrays):
        return eqx.filter(call(arrays), eqx.is_array)

    @run.defjvp
    def _(primals, moves):
        # JAX comes here at a time of its own choosing.
        with jax.enable_x64(True):
            return tangents(primals[0], moves[0], fixed, dtypes)

    out = eqx.filter_eval_shape(call, arrays)
    return eqx.combine(run(arrays), eqx.filter(out, lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct)))


class _Tangents:
    """Values and tangents of a function, compiled; its linear map carries its transpose with it."""

    def __init__(self, body: Callable[..., Any]):
        self.body, self.program = body, eqx.filter_jit(self._move)

    def __call__(self, arrays, moves, fixed, dtypes):
        real = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact), arrays)
        moved, still = eqx.partition(arrays, real)
        out, move = self.program(moved, eqx.filter(moves, real), still, fixed, dtypes)
        none = lambda v: np.zeros(v.shape, jax.dtypes.float0)
        moving = jax.tree.map(lambda v, t: none(v) if t is None else t, out, move, is_leaf=lambda leaf: leaf is None)
        return out, moving

    def _move(self, moved, moves, still, fixed, dtypes):
        def of_moved(moved):
            out = self.body(eqx.combine(moved, still), fixed, dtypes)
            return eqx.partition(eqx.filter(out, eqx.is_array), eqx.is_inexact_array)

        out, push, rest = jax.linearize(of_moved, moved, has_aux=True)
        return eqx.combine(out, rest), _linear(push, moves, out)


def _linear(push: Callable[[PyTree], PyTree], t: PyTree, out: PyTree) -> PyTree:
    r"""`push(t)`, a linear map J whose transpose is traced now and not when it is wanted, in whatever context.

    A linear system carries its transpose with it: here that of $x = (t, v + Jt)$ from $b = (t, v)$ with v = 0.
    """
    flat, tree = ravel_pytree(t)
    zero, out_tree = ravel_pytree(jax.tree.map(jnp.zeros_like, out))
    try:
        pull = jax.linear_transpose(push, t)
        jax.eval_shape(pull, out)
    except Exception:  # loops of unknown length move forward only; reverse mode then says so itself
        return push(t)
    forward = lambda u: ravel_pytree(push(tree(u)))[0]
    backward = lambda v: ravel_pytree(pull(out_tree(v))[0])[0]
    parts = lambda b: lax.split(b, (flat.size, zero.size))

    def matrix(x):
        u, v = parts(x)
        return jnp.concatenate([u, v - forward(u)])

    def solve(_, b):
        u, v = parts(b)
        return jnp.concatenate([u, v + forward(u)])

    def transposed(_, b):
        u, v = parts(b)
        return jnp.concatenate([u + backward(v), v])

    # All of b depends on t: half of a right-hand side cannot be transposed.
    b = jnp.concatenate([flat, jnp.broadcast_to(0 * jnp.sum(flat), zero.shape).astype(zero.dtype)])
    return out_tree(parts(lax.custom_linear_solve(matrix, b, solve, transposed))[1])
