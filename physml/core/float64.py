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
        down = _callers_dtypes((args, kwargs))
        with jax.enable_x64(True):
            args, kwargs = jax.tree.map(_cast_up, (args, kwargs))
            return _cast_down(function(*args, **kwargs), down)

    return wrapped  # type: ignore[return-value]


def _callers_dtypes(tree):
    """Names of the floating and the integer dtype of the results."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if _is_number(leaf)]
    floats = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    floating = jax.dtypes.canonicalize_dtype(jnp.finfo(widest(*floats)).dtype if floats else float)
    return floating.name, jax.dtypes.canonicalize_dtype(int).name


def _cast_down(tree, down):
    floating, integer = down
    kinds = {jnp.complexfloating: widest(floating, jnp.complex64), jnp.floating: floating, jnp.signedinteger: integer}

    def one(leaf):
        if not _is_number(leaf):
            return leaf
        for kind, dtype in kinds.items():
            if jnp.issubdtype(leaf.dtype, kind):
                return jnp.asarray(leaf).astype(dtype)
        return leaf

    return jax.tree.map(one, tree)


def float64_program(function: F | None = None, *, static: tuple[str, ...] = ()) -> F:
    """Decorator of a function of arrays: one compiled program in float64, with derivatives of the same precision.

    What `in_float64` does, and two things more. Outside jit the whole function is one program: numbers become arrays,
    so that another value does not compile again; only the arguments named in `static` (and strings, None, functions)
    make programs of their own. And derivatives are taken in float64 wherever the caller takes them: JAX differentiates
    after the function has returned, where wide numbers are no longer known. Forward and reverse mode, also one over the
    other, with `vmap` and `jit`; not reverse over reverse. The function must not close over traced values.
    """
    if function is None:
        return functools.partial(float64_program, static=static)  # type: ignore[return-value]
    signature = inspect.signature(function)
    program, tangents = eqx.filter_jit(function), _Tangents(function)

    def cast(named, down):
        return _cast_down(function(**jax.tree.map(_cast_up, named)), down)

    cast.__name__ = cast.__qualname__ = function.__name__  # what a profile shows
    cast = eqx.filter_jit(cast)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        down = _callers_dtypes(bound.arguments)
        with jax.enable_x64(True):
            # Within the context: Python's numbers keep their digits.
            named = {name: v if name in static else _as_arrays(v) for name, v in bound.arguments.items()}
            if not is_traced(named):
                return cast(named, down)
            arrays, fixed = eqx.partition(jax.tree.map(_cast_up, named), eqx.is_array)
            return _cast_down(_differentiable(program, tangents, arrays, fixed), down)

    return wrapped  # type: ignore[return-value]


def _as_arrays(value: Any) -> Any:
    """Numbers of any kind as arrays; Python's take the default floating dtype."""

    def one(leaf):
        if isinstance(leaf, bool) or not isinstance(leaf, int | float | complex | np.generic | np.ndarray):
            return leaf
        return jnp.asarray(leaf, float) if isinstance(leaf, int | float) else jnp.asarray(leaf)

    return jax.tree.map(one, value)


def _differentiable(program, tangents, arrays, fixed):
    """The program of arrays that may be traced, with a derivative that is computed in this context."""
    call = lambda arrays: program(**eqx.combine(arrays, fixed))

    @jax.custom_jvp
    def run(arrays):
        return eqx.filter(call(arrays), eqx.is_array)

    @run.defjvp
    def _(primals, moves):
        # JAX comes here at a time of its own choosing.
        with jax.enable_x64(True):
            return tangents(primals[0], moves[0], fixed)

    out = eqx.filter_eval_shape(call, arrays)
    return eqx.combine(run(arrays), eqx.filter(out, lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct)))


class _Tangents:
    """Values and tangents of a function, compiled; its linear map carries its transpose with it."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.program = function, eqx.filter_jit(self._move)

    def __call__(self, arrays, moves, fixed):
        # JAX hands on a number of Python's as such.
        arrays = jax.tree.map(jnp.asarray, arrays)
        real = jax.tree.map(eqx.is_inexact_array, arrays)
        moved, still = eqx.partition(arrays, real)
        out, move = self.program(moved, eqx.filter(moves, real), still, fixed)
        still = lambda v: None if v is None else np.zeros(v.shape, jax.dtypes.float0)
        moving = jax.tree.map(lambda v, t: still(v) if t is None else t, out, move, is_leaf=lambda leaf: leaf is None)
        return out, moving

    def _move(self, moved, moves, still, fixed):
        def of_moved(moved):
            out = self.function(**eqx.combine(moved, still, fixed))
            return eqx.partition(eqx.filter(out, eqx.is_array), eqx.is_inexact_array)

        out, push, rest = jax.linearize(of_moved, moved, has_aux=True)
        return eqx.combine(out, rest), _linear(push, moves, out)


def _linear(push: Callable[[PyTree], PyTree], t: PyTree, out: PyTree) -> PyTree:
    r"""`push(t)`, a linear map J whose transpose is traced now and not when it is wanted, in whatever context.

    A linear system carries its transpose with it: here that of $x = (t, v + Jt)$ from $b = (t, v)$ with v = 0.
    """
    real_push = lambda parts: _parted(push(_joined(parts, t)))
    flat, tree = ravel_pytree(_parted(t))
    zero, out_tree = ravel_pytree(jax.tree.map(jnp.zeros_like, _parted(out)))
    try:
        pull = jax.linear_transpose(real_push, _parted(t))
        jax.eval_shape(pull, _parted(out))
    except Exception:  # loops of unknown length move forward only; reverse mode then says so itself
        return push(t)
    forward = lambda u: ravel_pytree(real_push(tree(u)))[0]
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
    return _joined(out_tree(parts(lax.custom_linear_solve(matrix, b, solve, transposed))[1]), out)


def _parted(tree: PyTree) -> PyTree:
    """Complex leaves as pairs of real ones, which one flat vector can hold."""
    return jax.tree.map(lambda v: (v.real, v.imag) if jnp.iscomplexobj(v) else v, tree)


def _joined(parts: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda v, part: lax.complex(*part) if jnp.iscomplexobj(v) else part, like, parts)
