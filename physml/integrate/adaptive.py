r"""Diffrax for what a scan of fixed steps cannot do: adaptive, stiff and implicit solves.

With a step-size controller the times of `integrate` are save points and the noise is diffrax's virtual
Brownian tree. Without one the times are the steps, and the noise is physml's own, indexed by step: diffrax
then sees the same Brownian path as the methods of this package, bit for bit, and a path costs what a scan
costs.
"""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import noise
from physml.core._status import Code
from physml.core.types import Scalar, shape_of
from physml.integrate.dynamics import Dynamics, brownian_like, like, noise_kind


class Diffrax(eqx.Module):
    r"""A diffrax solver as a method of `integrate` and `ensemble`.

    **Arguments.** `solver`: a diffrax solver, `diffrax.Tsit5()`, `diffrax.Kvaerno5()`, `diffrax.EulerHeun()`,
    ... `controller`: a diffrax step-size controller such as `diffrax.PIDController(rtol=1e-5, atol=1e-7)`;
    None steps from each time of `ts` to the next. `adjoint`: a diffrax adjoint (None: its recursive
    checkpointing). `dt0`: first step of a controller (None: chosen by it; for noise (ts[1] - ts[0])).
    `tolerance`: resolution of the virtual Brownian tree, by default half the smallest gap of ts over 1000.
    `max_steps`: of an adaptive solve.

    The solver's calculus is yours to match: it is compared with that of the dynamics where diffrax says it.
    """

    solver: Any
    controller: Any = None
    adjoint: Any = None
    dt0: Scalar | None = None
    tolerance: Scalar | None = None
    max_steps: int = eqx.field(static=True, default=16**4)

    def solve(
        self, dynamics: Dynamics, x0: PyTree, ts: Array, *, key: Any, args: PyTree, lane: ArrayLike, save_every: int
    ):
        """States at ts[::save_every], a status code and the number of steps taken; for `integrate`."""
        import diffrax

        dynamics = self._in_solver_calculus(dynamics)
        fixed = self.controller is None
        drift = diffrax.ODETerm(lambda t, x, args: _cast(dynamics.drift(t, x, args), x))
        g = dynamics.noise
        if g is None:
            terms = drift
        else:
            shape = brownian_like(shape_of(g, ts[0], x0, args), x0)
            area = self._levy_area(fixed)
            if fixed:
                path = _path_class()(ts=ts, key=key, lane=jnp.asarray(lane), like=shape, levy_area=area)
            else:
                gap = jnp.min(jnp.diff(ts))
                tol = 0.5e-3 * gap if self.tolerance is None else jnp.asarray(self.tolerance, ts.dtype)
                tree_key = jax.random.fold_in(key, lane)
                path = diffrax.VirtualBrownianTree(ts[0], ts[-1], tol, shape, tree_key, levy_area=area)
            amplitude = lambda t, x, args: _operator(g(t, x, args), x)
            terms = diffrax.MultiTerm(drift, diffrax.ControlTerm(amplitude, path))
        steps = len(ts) - 1
        dt0 = None if self.dt0 is None else jnp.asarray(self.dt0, ts.dtype)
        if dt0 is None and dynamics.noise is not None:
            dt0 = ts[1] - ts[0]
        solution = diffrax.diffeqsolve(
            terms,
            self.solver,
            ts[0],
            ts[-1],
            None if fixed else dt0,
            x0,
            args,
            saveat=diffrax.SaveAt(ts=ts[::save_every]),
            stepsize_controller=diffrax.StepTo(ts) if fixed else self.controller,
            max_steps=steps if fixed else self.max_steps,
            throw=False,
            **({} if self.adjoint is None else {"adjoint": self.adjoint}),
        )
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(solution.ys)]).all()
        failed = jnp.where(solution.result == diffrax.RESULTS.max_steps_reached, Code.max_steps, Code.diverged)
        good = (solution.result == diffrax.RESULTS.successful) & finite
        return solution.ys, jnp.where(good, Code.ok, failed), solution.stats["num_steps"]

    def _levy_area(self, fixed: bool) -> Any:
        """What the solver wants to know about the path: increments, or their areas in time too."""
        import diffrax

        needed = getattr(self.solver, "minimal_levy_area", diffrax.BrownianIncrement)
        areas = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea)
        area = next(area for area in areas if issubclass(area, needed))
        if fixed and area is diffrax.SpaceTimeTimeLevyArea:
            raise ValueError(
                f"{type(self.solver).__name__} needs space-time-time Levy areas, which noise indexed by step has "
                "not; pass a controller such as diffrax.ConstantStepSize() and a dt0"
            )
        return area

    def _in_solver_calculus(self, dynamics: Dynamics) -> Dynamics:
        import diffrax

        if dynamics.noise is None:
            return dynamics
        if isinstance(self.solver, diffrax.AbstractItoSolver):
            return dynamics.in_calculus("ito")
        if isinstance(self.solver, diffrax.AbstractStratonovichSolver):
            return dynamics.in_calculus("stratonovich")
        raise ValueError(
            f"{type(self.solver).__name__} does not say which calculus it converges in; with noise use a "
            "diffrax solver for SDEs such as Euler, EulerHeun, Heun, ItoMilstein, ShARK or SPaRK"
        )


@functools.cache
def _path_class():
    import diffrax

    class StepIndexedPath(diffrax.AbstractBrownianPath):
        """Brownian increments over the intervals of a time grid, those of `core.noise` for the same steps.

        A query is matched to a grid interval by its midpoint, so rounding in t cannot change the number.
        """

        ts: Any
        key: Any
        lane: Any
        like: PyTree = eqx.field(static=True)
        levy_area: Any = eqx.field(static=True)

        @property
        def t0(self):
            return self.ts[0]

        @property
        def t1(self):
            return self.ts[-1]

        def evaluate(self, t0, t1=None, left=True, use_levy=False):
            if t1 is None:
                raise ValueError("a step-indexed path knows increments over whole steps, not values")
            step = jnp.searchsorted(self.ts, 0.5 * (t0 + t1), side="right") - 1
            step = step.astype(jnp.int32)
            h = self.ts[step + 1] - self.ts[step]
            # The tuple is what a fixed-step method with one or two normals a step draws.
            count = 1 if self.levy_area is diffrax.BrownianIncrement else 2
            normals = noise.normal(self.key, step, (self.like,) * count, self.lane)
            scaled = jax.tree.map(lambda z: jnp.sqrt(h).astype(z.dtype) * z, normals)
            if not use_levy:
                return scaled[0]
            if count == 1:
                return diffrax.BrownianIncrement(dt=t1 - t0, W=scaled[0])
            area = jax.tree.map(lambda z: z / math.sqrt(12.0), scaled[1])
            return diffrax.SpaceTimeLevyArea(dt=t1 - t0, W=scaled[0], H=area)

    return StepIndexedPath


def _cast(tree: PyTree, x: PyTree) -> PyTree:
    return jax.tree.map(lambda f, leaf: jnp.asarray(f, leaf.dtype), tree, x)


def _operator(value: Any, x: PyTree) -> Any:
    """The noise amplitude as the linear operator that diffrax multiplies dW with."""
    import lineax

    struct = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    if noise_kind(value, x) == "matrix":
        dw = brownian_like(value, x)
        if isinstance(x, jax.Array) and x.ndim == 1:
            return lineax.MatrixLinearOperator(jnp.asarray(value.value, x.dtype))
        product = lambda w: jax.tree.map(
            lambda g, leaf: jnp.tensordot(g.astype(leaf.dtype), w.astype(leaf.dtype), 1), value.value, x
        )
        return lineax.FunctionLinearOperator(product, struct(dw))

    return lineax.DiagonalLinearOperator(like(value, x))
