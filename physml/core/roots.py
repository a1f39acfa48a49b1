"""Roots of small systems: lean Newton steps from a good start, bisection, descent; derivatives are implicit.

`core.fixed_point` guards Newton's method by halving its steps, which multiplies what has to be compiled. The starts
here come from grids, bisections or descents, so plain steps do.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from physml.core._status import Code, Status, status


def newton(
    f: Callable[[Array], Array], start: Array, *, tol: float = 1e-11, steps: int = 30, floor: float = 0.0
) -> tuple[Array, Status]:
    """x (n,) with f(x) = 0, and `ok` or `not_converged`: whether the last step was below `tol` (1 + max|x|).

    `floor`: values of f that are rounding; it ends there too, because a multiple root leaves no slope to go by.
    Arrays that f captures may be differentiated, to any order.
    """

    def run(f, x):
        def both(x):
            value = f(x)
            return value, value

        def more(carry):
            x, size, k = carry
            return (size > tol * (1 + jnp.max(jnp.abs(x)))) & (k < steps)

        def step(carry):
            x, _, k = carry
            jacobian, value = jax.jacfwd(both, has_aux=True)(x)
            there = jnp.max(jnp.abs(value)) <= floor
            move = jnp.where(there, 0.0, jnp.linalg.solve(jacobian, value))
            return x - move, jnp.max(jnp.abs(move)), k + 1

        zero = jnp.zeros((), jnp.int32)
        x, size, k = lax.while_loop(more, step, (x, jnp.full((), jnp.inf, x.dtype), zero))
        good = (size <= tol * (1 + jnp.max(jnp.abs(x)))) & jnp.isfinite(x).all()
        # custom_root gives its auxiliary output float tangents, so counters travel as floats.
        return x, (good.astype(x.dtype), k.astype(x.dtype))

    tangent = lambda linear, b: jnp.linalg.solve(jax.jacfwd(linear)(b), b)
    x, (good, k) = lax.custom_root(f, lax.stop_gradient(start), run, tangent, has_aux=True)
    return x, status(jnp.where(good > 0, Code.ok, Code.not_converged), k.astype(jnp.int32))


def bisect(
    f: Callable[[Array], Array], low: Array, high: Array, steps: int = 60, *, logarithmic: bool = False
) -> Array:
    """Where f changes sign between low, where f > 0, and high, entry by entry; no derivative passes through.

    Where f keeps its sign it ends at the end nearer to a change. `logarithmic`: halve the ratio of positive ends.
    """
    middle = (lambda a, b: jnp.sqrt(a * b)) if logarithmic else (lambda a, b: 0.5 * (a + b))

    def halve(_, ends):
        a, b = ends
        m = middle(a, b)
        up = f(m) > 0
        return jnp.where(up, m, a), jnp.where(up, b, m)

    return middle(*lax.fori_loop(0, steps, halve, (low, high)))


def bracketed(
    f: Callable[[Array], Array], low: Array, high: Array, steps: int = 60, *, logarithmic: bool = False
) -> Array:
    """The scalar of `bisect` with its derivative, by the implicit function theorem, in arrays that f captures."""
    search = lambda f, _: bisect(f, low, high, steps, logarithmic=logarithmic)
    return lax.custom_root(f, 0.5 * (low + high), search, lambda linear, y: y / linear(jnp.ones_like(y)))


def descend(step: Callable[[Any], Any], x: PyTree, *, tol: float = 1e-11, max_steps: int = 20000) -> PyTree:
    """Half steps x <- (x + step(x)) / 2 from above, which stop at the first fixed point they meet."""

    def more(carry):
        _, change, k = carry
        return (change > tol) & (k < max_steps)

    def go(carry):
        x, _, k = carry
        new = jax.tree.map(lambda a, b: 0.5 * (a + b), x, step(x))
        moved = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), x, new))
        return new, jnp.max(jnp.stack(moved)), k + 1

    out, _, _ = lax.while_loop(more, go, (x, jnp.full((), jnp.inf), jnp.zeros((), jnp.int32)))
    return out
