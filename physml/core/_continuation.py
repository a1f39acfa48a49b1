"""Follow the solutions of x = f(x, p) along a parameter, forward and backward, keeping every branch found."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core._fixed_point import fixed_point
from physml.core._status import Checked, Status
from physml.core.program import program


class Branch(Checked):
    """Fixed points along `params` (n,), in the order of `params` whichever way they were followed: `values`
    is a pytree like x0 with a leading axis n; `residual`, `steps` and `status` have one entry per point."""

    computation: ClassVar[str] = "continuation"
    counted: ClassVar[str] = "iteration"

    params: Array
    values: PyTree
    residual: Array
    steps: Array
    status: Status


class Branches(eqx.Module):
    """The branch reached from the first parameter and the one reached from the last; in a bistable region
    they differ, which is hysteresis."""

    forward: Branch
    backward: Branch

    def check(self) -> "Branches":
        """Raise `Failure` unless every point of both branches converged; return self otherwise."""
        self.forward.check()
        self.backward.check()
        return self

    def bistable(self, tol: float = 1e-3) -> Array:
        """(n,) True where the two branches differ by more than `tol` in some entry."""
        gap = lambda a, b: jnp.max(jnp.abs(a - b).reshape(len(a), -1), axis=1)
        gaps = jax.tree.leaves(jax.tree.map(gap, self.forward.values, self.backward.values))
        return jnp.stack(gaps).max(0) > tol


def continuation(
    f: Callable[[PyTree, Any], PyTree],
    params: PyTree,
    x0: PyTree,
    *,
    direction: Literal["forward", "backward", "both"] = "forward",
    predictor: Literal["last", "secant"] = "last",
    **options: Any,
) -> Branch | Branches:
    """Solve x = f(x, p) at every p of `params`, each from the solution before.

    **Arguments.** `params` (n,): parameters in order; n is the resolution at which a branch is followed.
    `x0`: where the first solve starts (for "both" also the backward one: pass a pair (x0_first, x0_last) in a
    `dict` with keys `forward` and `backward` for two starts). `direction`: from the first parameter on, from
    the last one back, or both. `predictor`: start from the last solution, or from the secant through the last
    two (follows steep branches with fewer iterations, but can jump off near a fold). `options`: those of
    `fixed_point`; with `Damped` only stable branches are followed, with `Newton` unstable ones too, up to
    their folds.

    **Returns** a `Branch`, or `Branches(forward, backward)` for "both". A point that does not converge says
    so in its status and hands its last iterate on.

    **Example.** Curie and Weiss in a field: `continuation(lambda m, h: jnp.tanh(2 * m + h),
    jnp.linspace(-1, 1, 101), -1.0, direction="both").bistable()`.
    """
    params = jnp.asarray(params)
    if params.ndim != 1 or len(params) == 0:
        raise ValueError(f"params must be a vector of parameter values, got shape {params.shape}")
    check.choice(direction, "direction", ("forward", "backward", "both"))
    check.choice(predictor, "predictor", ("last", "secant"))
    if direction != "both":
        return _follow(f, params, x0, direction == "backward", predictor, options)
    pair = isinstance(x0, dict) and set(x0) == {"forward", "backward"}
    first, last = (x0["forward"], x0["backward"]) if pair else (x0, x0)
    return Branches(
        _follow(f, params, first, False, predictor, options),
        _follow(f, params, last, True, predictor, options),
    )


@program
def _follow(f, params, x0, reverse: bool, predictor: str, options: dict) -> Branch:
    x0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf, float)), x0)

    def solve(carry, p):
        last, before = carry
        guess = last
        if predictor == "secant":
            guess = jax.tree.map(lambda a, b: 2.0 * a - b, last, before)
        out = fixed_point(lambda x: f(x, p), guess, **options)
        return (out.value, last), (out.value, out.residual, out.steps, out.status)

    _, (values, residual, steps, state) = lax.scan(solve, (x0, x0), params, reverse=reverse)
    return Branch(params, values, residual, steps, state)
