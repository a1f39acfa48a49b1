r"""Branches of solutions through their folds: pseudo-arclength, the fold itself, and the cusp where two folds merge.

For $x = f(x; p)$ with $J = I - \partial_x f$, the null vectors of J come from one bordered system each,

$$\begin{pmatrix} J & b\\ c^\top & 0\end{pmatrix}\begin{pmatrix} v\\ g\end{pmatrix} =
  \begin{pmatrix} 0\\ 1\end{pmatrix}, \qquad
  \begin{pmatrix} J^\top & c\\ b^\top & 0\end{pmatrix}\begin{pmatrix} u\\ g\end{pmatrix} =
  \begin{pmatrix} 0\\ 1\end{pmatrix},$$

and g = 0 exactly where J is singular: a fold of (x, p). Along the folds of a second parameter q the curvature
$\kappa = u\cdot\partial_x^2 f[v, v]$ vanishes at the cusp, beyond which the branches are one. Each system is square
and regular at its solution, so Newton's method converges quadratically and the implicit function theorem
differentiates the result.

**See** Govaerts, Numerical methods for bifurcations of dynamical equilibria (2000), chapters 3 and 4.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core._fixed_point import fixed_point
from physml.core._status import Checked, Code, Status, status
from physml.core.float64 import in_float64
from physml.core.iterations import Newton
from physml.core.program import program
from physml.core.types import Scalar
from physml.dmft.equations.solve import AbstractModel


class SolutionCurve(Checked):
    """Solutions in the order in which a curve meets them: `params` (n,), unknowns `values` with a leading axis n,
    `turn` (n,) the cosine of the tangent with the parameter's axis, whose sign changes at folds, `residual` and
    `status` (n,)."""

    computation: ClassVar[str] = "curve"
    counted: ClassVar[str] = "iteration"

    params: Array
    values: PyTree
    turn: Array
    residual: Array
    status: Status


class Fold(Checked):
    """The fold: parameter `p`, unknowns `value`, null vector `vector` of I - df, `residual`, `status`. For a cusp `q`
    is the second parameter; `curvature` is u . f_xx[v, v] with |v| = |u| = 1."""

    computation: ClassVar[str] = "fold"
    counted: ClassVar[str] = "iteration"

    p: Array
    value: PyTree
    vector: PyTree
    curvature: Array
    residual: Array
    status: Status
    q: Array | None = None


def _check_model(model, *parameters):
    check.function(model, "model", "of the parameter")
    built = model(*parameters)
    check.instance(built, "what model returns", AbstractModel, "a model such as BetheHubbard(...)")
    if built.average is not None:
        raise ValueError(f"{type(built).__name__} averages over noise: branches need equations without an average")


def _root(residual, y, tol, max_steps):
    return fixed_point(lambda y: y - residual(y), y, method=Newton(), tol=tol, max_steps=max_steps)


def curve(
    model: Callable[[Any], AbstractModel],
    p: Scalar,
    start: PyTree,
    *,
    step: float,
    steps: int,
    toward: float = 1.0,
    scale: float = 1.0,
    tol: float = 1e-10,
) -> SolutionCurve:
    r"""Follow the solutions of `model(p)` along their arc length, through folds and along unstable branches.

    $$x = f(x; p), \qquad t\cdot\bigl((x/s, p) - (x_0/s, p_0) - h\,t\bigr) = 0$$

    with t the unit tangent; h is halved where Newton fails or the tangent turns sharply, and grows back.

    **Arguments.** `model`: parameter -> model. `p`, `start`: where the curve starts and unknowns near the solution
    there. `step`: the largest h > 0; `steps`: how many. `toward`: the sign of the first dp. `scale`: s, the size of
    the unknowns in the arc length.
    **Returns** a `SolutionCurve` of `steps` + 1 points in float64 arithmetic. **Fails** with the status of the Newton
    iteration that did not converge; the curve then stays where it was.
    **Cost.** A dense linear solve per Newton step, some three per point.
    """
    check.number(step, "step", above=0)
    check.number(scale, "scale", above=0)
    steps = check.count(steps, "steps")
    if toward == 0:
        raise ValueError("toward must not be 0: its sign chooses the direction")
    _check_model(model, p)
    return _curve(model, p, start, step, steps, toward, scale, tol)


@in_float64
@program
def _curve(model, p, start, step, steps, toward, scale, tol):
    x, restore = _flat(start)
    p = jnp.asarray(p, x.dtype)
    first = fixed_point(lambda x: _map(model, restore, x, p), x, method=Newton(), tol=tol, max_steps=50)
    residual = lambda y: y[:-1] - _map(model, restore, scale * y[:-1], y[-1]) / scale

    def tangent(y, before):
        # The null vector of the n x (n + 1) Jacobian, bordered by the tangent before, which also keeps its sense.
        matrix = jnp.concatenate([jax.jacfwd(residual)(y), before[None, :]])
        t = jnp.linalg.solve(matrix, jnp.zeros_like(y).at[-1].set(1.0))
        return t / jnp.linalg.norm(t)

    def attempt(y, t, h):
        guess = y + h * t
        full = lambda z: jnp.append(residual(z), t @ (z - guess))
        out = _root(full, guess, tol, 30)
        ahead = tangent(out.value, t)
        # A tangent that turns by more than some 30 degrees has cut a corner.
        return out, ahead, out.status.ok & (ahead @ t > 0.85)

    def advance(carry, _):
        y, t, h = carry
        trial = lambda h: (h, *attempt(y, t, h))
        again = lambda c: ~c[3] & (c[0] > step / 1000)
        h, out, ahead, good = lax.while_loop(again, lambda c: trial(c[0] / 2), trial(h))
        code = jnp.where(out.status.ok & ~good, Code.stagnated, out.status.code)
        y, t = jnp.where(good, out.value, y), jnp.where(good, ahead, t)
        return (y, t, jnp.minimum(1.5 * h, step)), (y, t[-1], out.residual, code, out.steps)

    y0 = jnp.append(first.value / scale, p)
    # tangents point to growing p where the border says so; at the start `toward` chooses.
    t0 = tangent(y0, jnp.zeros_like(y0).at[-1].set(jnp.sign(jnp.asarray(toward, x.dtype))))
    _, (ys, turn, res, code, count) = lax.scan(advance, (y0, t0, jnp.asarray(step, x.dtype)), length=steps)
    join = lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b])
    ys, turn, res = join(y0, ys), join(t0[-1], turn), join(first.residual, res)
    state = status(join(first.status.code, code), join(first.steps, count))
    return SolutionCurve(ys[:, -1], jax.vmap(restore)(scale * ys[:, :-1]), turn, res, state)


def fold(
    model: Callable[[Any], AbstractModel], p: Scalar, start: PyTree, *, tol: float = 1e-10, max_steps: int = 50
) -> Fold:
    """The fold of `model(p)` next to parameter `p` and unknowns `start`, such as the point of a `SolutionCurve` where
    `turn` changes sign. Arrays that `model` captures may be differentiated: their effect on the fold, dp/dq = -u . f_q
    / (u . f_p)."""
    _check_model(model, p)
    return _fold(model, p, start, tol, max_steps)


@in_float64
@program
def _fold(model, p, start, tol, max_steps):
    x, restore = _flat(start)
    f = lambda x, p: _map(model, restore, x, p)
    y0 = jnp.append(x, jnp.asarray(p, x.dtype))
    border = lax.stop_gradient(_border(lambda x: f(x, y0[-1]), x))
    residual = lambda y: jnp.append(y[:-1] - f(y[:-1], y[-1]), _singular(lambda x: f(x, y[-1]), y[:-1], border)[0])
    out = _root(residual, y0, tol, max_steps)
    x, p = out.value[:-1], out.value[-1]
    _, v, u = _singular(lambda x: f(x, p), x, border)
    curvature = _curvature(lambda x: f(x, p), x, v, u)
    return Fold(p, restore(x), restore(v), curvature, out.residual, _sound(out, u, f, x, p))


def folds(
    model: Callable[[Any], AbstractModel], curve: SolutionCurve, *, tol: float = 1e-10, max_steps: int = 50
) -> list[Fold]:
    """Every fold that a `SolutionCurve` passes, refined; outside jit, because their number is not known before."""
    turns = np.flatnonzero(np.diff(np.sign(np.asarray(curve.turn))))
    at = lambda i: jax.tree.map(lambda a: a[i], (curve.params, curve.values))
    refine = lambda p, x: fold(model, p, x, tol=tol, max_steps=max_steps)
    # The end of the interval where the curve has turned less is the nearer one.
    nearest = [i + int(abs(curve.turn[i + 1]) < abs(curve.turn[i])) for i in turns]
    return [refine(*at(i)) for i in nearest]


def cusp(
    model: Callable[[Any, Any], AbstractModel],
    p: Scalar,
    q: Scalar,
    start: PyTree,
    *,
    tol: float = 1e-10,
    max_steps: int = 50,
) -> Fold:
    """The cusp of `model(p, q)` near the fold (`p`, `start`) at `q`: there the two folds in p merge and the
    coexistence of branches ends."""
    _check_model(model, p, q)
    return _cusp(model, p, q, start, tol, max_steps)


@in_float64
@program
def _cusp(model, p, q, start, tol, max_steps):
    x, restore = _flat(start)
    f = lambda x, p, q: ravel_pytree(model(p, q).update(restore(x), None))[0]
    p, q = jnp.asarray(p, x.dtype), jnp.asarray(q, x.dtype)
    border = lax.stop_gradient(_border(lambda x: f(x, p, q), x))

    def residual(y):
        x, at = y[:-2], lambda x: f(x, y[-2], y[-1])
        g, v, u = _singular(at, x, border)
        return jnp.concatenate([x - at(x), jnp.stack([g, _curvature(at, x, v, u)])])

    out = _root(residual, jnp.concatenate([x, jnp.stack([p, q])]), tol, max_steps)
    x, p, q = out.value[:-2], out.value[-2], out.value[-1]
    _, v, u = _singular(lambda x: f(x, p, q), x, border)
    curvature = _curvature(lambda x: f(x, p, q), x, v, u)
    state = _sound(out, u, lambda x, p: f(x, p, q), x, p)
    return Fold(p, restore(x), restore(v), curvature, out.residual, state, q)


def leading_eigenvalue(model: AbstractModel, unknowns: PyTree) -> Array:
    """The eigenvalue of df with the largest real part at a solution: below 1 on a stable branch, 1 at a fold."""
    return _leading(model, unknowns)


@in_float64
@program
def _leading(model, unknowns):
    x, restore = _flat(unknowns)
    values = jnp.linalg.eigvals(jax.jacfwd(lambda x: ravel_pytree(model.update(restore(x), None))[0])(x))
    return jnp.max(values.real)


def _flat(start):
    x, restore = ravel_pytree(jax.tree.map(lambda a: jnp.asarray(a, float), start))
    return x, restore


def _map(model, restore, x, p):
    return ravel_pytree(model(p).update(restore(x), None))[0]


def _border(f, x):
    """Left and right singular vectors of I - df with the smallest singular value: b and c."""
    left, _, right = jnp.linalg.svd(jnp.eye(x.size) - jax.jacfwd(f)(x))
    return left[:, -1], right[-1]


def _singular(f, x, border):
    """g, and the null vectors v and u, of unit length."""
    b, c = border
    jacobian = jnp.eye(x.size) - jax.jacfwd(f)(x)
    matrix = jnp.block([[jacobian, b[:, None]], [c[None, :], jnp.zeros((1, 1))]])
    one = jnp.zeros(x.size + 1).at[-1].set(1.0)
    right, left = jnp.linalg.solve(matrix, one), jnp.linalg.solve(matrix.T, one)
    unit = lambda v: v / jnp.linalg.norm(v)
    return right[-1], unit(right[:-1]), unit(left[:-1])


def _curvature(f, x, v, u):
    slope = lambda s: jax.jvp(f, (x + s * v,), (v,))[1]
    return u @ jax.jvp(slope, (jnp.zeros(()),), (jnp.ones(()),))[1]


def _sound(out, u, f, x, p):
    """`stagnated` in place of `ok` where the branch does not depend on p at all, as at a symmetric bifurcation."""
    _, rate = jax.jvp(lambda p: f(x, p), (p,), (jnp.ones_like(p),))
    flat = jnp.abs(u @ rate) <= 1e-8 * jnp.linalg.norm(rate)
    code = jnp.where(out.status.ok & flat, Code.stagnated, out.status.code)
    return status(code, out.steps)
