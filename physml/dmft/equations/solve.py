r"""One interface for dynamical mean-field theory: a model, a scheme, an average over noise, a solution.

A model is a map of its order parameters onto themselves: the site averages of one representative degree of freedom in
the field that the order parameters describe. At the solution the map returns what it was given.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core._fixed_point import Iterates, fixed_point
from physml.core._status import Checked, Code, Status, status
from physml.core.float64 import float64_program
from physml.core.iterations import AbstractIteration, Damped
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Key, Scalar, widest
from physml.dmft.equations.average import AbstractAverage, MonteCarlo, Sample
from physml.dmft.equations.causal import fill


class AbstractScheme(eqx.Module):
    """How the equations are solved."""

    @abc.abstractmethod
    def run(self, model: "AbstractModel", start: PyTree, noise: Sample | None) -> "Solution":
        """Solve from `start` with this noise."""


class Solution(Checked):
    """`order` satisfies the model's equations up to `residual`.

    `status`: how it ended, with the iteration or time step. `error`: standard errors of the site averages, shaped like
    `order`, for Monte Carlo only (they leave out how the equations amplify them). `history`: the iterates, where the
    scheme was asked to keep them. `unknowns`: what was solved for, to start a neighbouring problem from.
    """

    computation: ClassVar[str] = "dmft"

    order: PyTree
    residual: Array
    status: Status
    history: Iterates | None = None
    error: Any = None
    unknowns: PyTree = None


class AbstractModel(eqx.Module):
    """Order parameters and the equations they satisfy.

    A model's `scheme` and `average` are its defaults; with `precise` its equations are solved in float64 and the
    result comes back in the caller's dtype.
    """

    scheme: ClassVar[AbstractScheme | None] = None
    average: ClassVar[AbstractAverage | None] = None
    precise: ClassVar[bool] = True

    @abc.abstractmethod
    def init(self) -> PyTree:
        """Order parameters to start from: the unknowns that `update` maps onto themselves."""

    @abc.abstractmethod
    def update(self, order: PyTree, noise: PyTree) -> PyTree:
        """The site averages in the field of `order`; `noise` is a `Sample`, or None where nothing is averaged."""

    def theory(self, *, key: Key | None = None) -> "Solution":
        """`solve` with the model's own scheme and average: one side of `physml.compare`.

        The other is a method `finite_n(n, *, key)`: the same order parameters, measured in a system of n degrees of
        freedom. A model without one says so in its docstring.
        """
        return solve(self, key=key)

    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one site."""
        return ()

    def finish(self, order: PyTree) -> PyTree:
        """The order parameters reported, from the unknowns solved for."""
        return order

    def verdict(self, order: PyTree) -> Array:
        """A `Code`: whether what `finish` reports is physical."""
        return jnp.asarray(Code.ok, jnp.int32)


class AbstractCausalModel(AbstractModel):
    """A model whose order parameters at time step k + 1 follow from those up to k."""

    @abc.abstractmethod
    def row(self, order: PyTree, k: Array) -> PyTree:
        """Row k + 1 of every array of `order` from the rows up to k; later rows may hold anything."""

    def corner(self, order: PyTree, m: int) -> PyTree:
        """What the first m rows read and write: all of `order`, unless a model whose `row` takes less says so."""
        return order

    def update(self, order: PyTree, noise: PyTree = None) -> PyTree:
        """All rows at once, each from the rows before it as they stand in `order`."""
        steps = len(jax.tree.leaves(order)[0]) - 1
        rows = lax.map(lambda k: self.row(order, k), jnp.arange(steps, dtype=jnp.int32))
        return jax.tree.map(lambda old, new: jnp.concatenate([old[:1], new]), order, rows)


class SelfConsistent(AbstractScheme):
    """All order parameters at once, by `core.fixed_point` with the same options."""

    method: AbstractIteration = Damped(0.5)
    tol: Scalar | None = None
    max_steps: int = eqx.field(static=True, default=1000)
    adjoint: Any = eqx.field(static=True, default="implicit")
    history: bool = eqx.field(static=True, default=False)

    def run(self, model, start, noise):
        out = fixed_point(
            lambda order: model.update(order, noise),
            start,
            method=self.method,
            tol=self.tol,
            max_steps=self.max_steps,
            adjoint=self.adjoint,
            history=self.history,
        )
        order = model.finish(out.value)
        physical = model.verdict(lax.stop_gradient(order))
        code = jnp.where(out.status.ok & (physical > Code.precision_limited), physical, out.status.code)
        return Solution(order, out.residual, status(code, out.steps), out.history, unknowns=out.value)


class Causal(AbstractScheme):
    """Time step by time step, each once. Not-a-number at a step is `diverged` there.

    `forward`: for derivatives in forward mode (`jax.jvp`, `jax.jacfwd`), which the lean reverse mode of the default
    excludes.
    """

    forward: bool = eqx.field(static=True, default=False)

    def run(self, model, start, noise):
        if not isinstance(model, AbstractCausalModel):
            raise ValueError(f"{type(model).__name__} is no causal model: its equations need SelfConsistent")
        steps = len(jax.tree.leaves(start)[0]) - 1
        row = lambda model, order, k: model.row(order, k)
        filled = fill(row, model, start, steps, forward=self.forward, corner=model.corner)
        bad = [~jnp.isfinite(leaf).reshape(steps + 1, -1).all(1) for leaf in jax.tree.leaves(filled)]
        bad = jnp.stack(bad).any(0)
        order = model.finish(filled)
        first = jnp.where(bad.any(), lax.argmax(bad.astype(jnp.int32), 0, jnp.int32), steps)
        code = jnp.where(bad.any(), jnp.asarray(Code.diverged, jnp.int32), model.verdict(lax.stop_gradient(order)))
        residual = jnp.where(bad.any(), jnp.inf, 0.0).astype(jnp.result_type(jax.tree.leaves(start)[0]))
        return Solution(order, residual, status(code, first), unknowns=filled)


def solve(
    model: Any,
    *,
    scheme: Any = None,
    noise: PyTree = None,
    key: Key | None = None,
    start: PyTree = None,
) -> Solution:
    r"""Solve a model's self-consistent equations.

    **Arguments.** `model`: its arrays may be differentiated. `scheme`: `SelfConsistent(method, ...)` for all order
    parameters at once, `Causal()` for models with a row for every time; the model's own choice if None. `noise`:
    `Quadrature(nodes)` or `MonteCarlo(samples)` for models that average over a site. `key`: for Monte Carlo. `start`:
    unknowns to start from instead of `model.init()`, as when a branch is followed.

    **Returns** `Solution(order, residual, status, history, error)`; `status` says `not_converged`, `stagnated`,
    `diverged`, `unphysical`, `not_positive` or `acausal`, with the iteration or time step.

    **Gradients.** By the implicit function theorem (`SelfConsistent`) or by revisiting the rows backward (`Causal`);
    Monte Carlo holds its samples fixed.

    **Example.** `solve(RandomNetwork(g=1.5)).check().order.C0`
    """
    if not isinstance(model, AbstractModel):
        raise ValueError(f"solve takes a model such as SphericalPSpin(...) or RandomNetwork(...), got {model!r}")
    scheme = model.scheme if scheme is None else scheme
    check.instance(scheme, "scheme", AbstractScheme, "SelfConsistent(...) or Causal()")
    average = model.average if noise is None else noise
    if average is not None:
        check.instance(average, "noise", AbstractAverage, "Quadrature(...) or MonteCarlo(...)")
    if key is not None:
        check_key(key)
    run = _solve_precisely if model.precise else _solve_as_given
    try:
        return run(model, scheme, average, key, _floating(start))
    except TypeError as error:
        if isinstance(scheme, Causal) and "forward-mode" in str(error):
            raise TypeError(
                "derivatives of Causal() are in reverse mode; jvp and jacfwd: Causal(forward=True)"
            ) from error
        raise


def _floating(start):
    whole = lambda leaf: not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float) if whole(leaf) else leaf, start)


def _check_start(model, start):
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    wanted = shapes(jax.eval_shape(model.init))
    if shapes(start) != wanted:
        raise ValueError(f"start must be unknowns of the model, with shapes {wanted}; got {shapes(start)}")


def _solve(model, scheme, average, key, start):
    if start is None:
        start = model.init()
    else:
        _check_start(model, start)
    dtype = jnp.finfo(widest(*[jnp.result_type(leaf) for leaf in jax.tree.leaves(start)])).dtype
    sample = None if average is None else average.draw(model.noise_shape(), key, dtype)
    out = scheme.run(model, start, sample)
    if not isinstance(average, MonteCarlo) or sample is None:
        return out
    # Error bars have no derivative.
    fixed = lambda v: lax.stop_gradient(v) if eqx.is_inexact_array(v) else v
    model, unknowns = jax.tree.map(fixed, (model, out.unknowns))
    updates = lax.map(lambda batch: model.finish(model.update(unknowns, batch)), average.split(sample))
    error = jax.tree.map(lambda a: jnp.std(a, axis=0, ddof=1) / average.batches**0.5, updates)
    return eqx.tree_at(lambda out: out.error, out, error, is_leaf=lambda leaf: leaf is None)


_solve_precisely, _solve_as_given = float64_program(_solve), program(_solve)
