r"""A function of small arrays as a function of their entries: scalars in, scalars out.

Mapped over many points, a function of a vector (d,) makes arrays with a short axis, whose reductions a CPU compiler
neither vectorises nor fuses. Written in scalars, every operation runs along the points alone: ten times faster for
pair sums in the plane. The program of the function is evaluated on object arrays of scalars, so that its sums and
products over short axes come out unrolled.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

_LARGEST = 64

_REDUCE = {
    "reduce_sum": lax.add,
    "reduce_prod": lax.mul,
    "reduce_max": lax.max,
    "reduce_min": lax.min,
    "reduce_and": lax.bitwise_and,
    "reduce_or": lax.bitwise_or,
}
_ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "cbrt", "ceil", "clamp", "conj", "convert_element_type", "copy", "copy_p", "cos", "cosh",
    "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag",
    "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne",
    "neg", "nextafter", "not", "or", "pow", "real", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh",
    "sqrt", "square", "sub", "tan", "tanh", "xor",
}  # fmt: skip
_INLINE = ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint")


class _Unsupported(Exception):
    """An operation that is not made of scalars here."""


def by_entries(function: Callable[..., Array], *shapes: Any) -> Callable[..., np.ndarray] | None:
    """`function` of arrays like `shapes`, as a function of object arrays of scalars; its result is one as well.

    Returns None for what cannot be unrolled: loops, sorts, factorisations, functions with a derivative of their own on
    vectors, arrays of more than 64 entries. Any transformation applies to the result; captured arrays stay captured.
    """
    closed = jax.make_jaxpr(function)(*shapes)
    if len(closed.jaxpr.outvars) != 1 or not _small(closed.jaxpr):
        return None

    def unrolled(*entries: np.ndarray) -> np.ndarray:
        return _evaluate(closed.jaxpr, closed.consts, entries)[0]

    def trial(*flat):
        return list(unrolled(*(objects(f, s.shape) for f, s in zip(flat, shapes, strict=True))).ravel())

    try:
        jax.eval_shape(trial, *[[jax.ShapeDtypeStruct((), s.dtype)] * math.prod(s.shape) for s in shapes])
    except _Unsupported:
        return None
    return unrolled


def split(x: ArrayLike) -> np.ndarray:
    """An object array with the entries of x."""
    x = jax.numpy.asarray(x)
    return objects([x[index] for index in np.ndindex(x.shape)], x.shape)


def objects(items: Sequence, shape: tuple[int, ...]) -> np.ndarray:
    """An object array of scalars; numpy would turn them into numbers by itself."""
    out = np.empty(len(items), object)
    for i, item in enumerate(items):
        out[i] = item
    return out.reshape(shape)


def _small(jaxpr):
    variables = [*jaxpr.invars, *jaxpr.constvars, *(v for eqn in jaxpr.eqns for v in eqn.outvars)]
    return all(math.prod(v.aval.shape) <= _LARGEST for v in variables)


def _evaluate(jaxpr, consts, arguments):
    values: dict[Any, np.ndarray] = {}
    read = lambda v: split(v.val) if hasattr(v, "val") else values[v]
    values |= zip(jaxpr.constvars, map(split, consts), strict=True)
    values |= zip(jaxpr.invars, arguments, strict=True)
    for eqn in jaxpr.eqns:
        out = _apply(eqn, [read(v) for v in eqn.invars])
        values |= zip(eqn.outvars, out, strict=True)
    return [read(v) for v in jaxpr.outvars]


def _apply(eqn, xs) -> list[np.ndarray]:
    name, p = eqn.primitive.name, eqn.params
    shape = eqn.outvars[0].aval.shape
    if name in _INLINE:
        inner = p["jaxpr"]
        consts = inner.consts if hasattr(inner, "consts") else ()
        return _evaluate(inner.jaxpr if hasattr(inner, "jaxpr") else inner, consts, xs)
    if name == "broadcast_in_dim":
        new = [1] * len(shape)
        for axis, target in enumerate(p["broadcast_dimensions"]):
            new[target] = xs[0].shape[axis]
        return [np.broadcast_to(xs[0].reshape(new), shape)]
    if name in ("reshape", "squeeze"):
        return [xs[0].reshape(shape)]
    if name == "transpose":
        return [xs[0].transpose(p["permutation"])]
    if name == "slice":
        strides = p["strides"] or (1,) * xs[0].ndim
        return [xs[0][tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]]
    if name == "rev":
        return [np.flip(xs[0], p["dimensions"])]
    if name == "concatenate":
        return [np.concatenate(xs, axis=p["dimension"])]
    if name in _REDUCE:
        rest = [a for a in range(xs[0].ndim) if a not in p["axes"]]
        rows = xs[0].transpose([*rest, *p["axes"]]).reshape(math.prod(shape), -1)
        return [objects([_fold(_REDUCE[name], row) for row in rows], shape)]
    if name == "dot_general":
        return [_contract(p["dimension_numbers"], xs[0], xs[1], shape)]
    if name == "stack":
        return [np.stack(xs, axis=p["axis"])]
    if len(eqn.outvars) == 1 and np.broadcast_shapes(*(x.shape for x in xs)) == shape and name in _ELEMENTWISE:
        xs = [np.broadcast_to(x, shape) for x in xs]
        return [objects([eqn.primitive.bind(*row, **p) for row in zip(*(x.ravel() for x in xs), strict=True)], shape)]
    raise _Unsupported(name)


def _fold(binary, row):
    if len(row) == 0:
        raise _Unsupported("an empty reduction")
    out = row[0]
    for item in row[1:]:
        out = binary(out, item)
    return out


def _contract(numbers, a, b, shape):
    (ca, cb), (ba, bb) = numbers
    free_a = [i for i in range(a.ndim) if i not in (*ca, *ba)]
    free_b = [i for i in range(b.ndim) if i not in (*cb, *bb)]
    a = a.transpose([*ba, *free_a, *ca])
    b = b.transpose([*bb, *free_b, *cb])
    batch, inner = a.shape[: len(ba)], math.prod(a.shape[len(ba) + len(free_a) :])
    a = a.reshape(math.prod(batch), -1, inner)
    b = b.reshape(math.prod(batch), -1, inner)
    rows = itertools.chain.from_iterable(itertools.product(x, y) for x, y in zip(a, b, strict=True))
    return objects([_fold(lax.add, [lax.mul(s, t) for s, t in zip(x, y, strict=True)]) for x, y in rows], shape)
