"""What can only be known at run time is a status in the result, and `.check()` raises it outside jit."""

from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from physml.core.types import is_traced


class Code(IntEnum):
    """Outcome of a run. Codes above `precision_limited` are failures."""

    ok = 0
    precision_limited = 1
    diverged = 2
    not_converged = 3
    stagnated = 4
    max_steps = 5
    overflow = 6
    nonfinite_weights = 7
    unphysical = 8
    not_positive = 9
    acausal = 10
    saddle = 11
    apart = 12


_REASON = {
    Code.diverged: "the state is no longer finite",
    Code.not_converged: "the residual is above the tolerance after the last step",
    Code.stagnated: "the residual stopped falling above the tolerance",
    Code.max_steps: "the adaptive solver used up its steps",
    Code.overflow: "a buffer of fixed capacity overflowed",
    Code.nonfinite_weights: "some log-weights are not finite",
    Code.unphysical: "the solution lies outside its physical range",
    Code.not_positive: "a covariance has a negative eigenvalue beyond rounding",
    Code.acausal: "a response to the future appeared",
    Code.saddle: "the point has a direction in which the energy does not rise",
    Code.apart: "two neighbouring levels never exchanged",
}


class Failure(RuntimeError):
    """Raised by `.check()`: what failed, how often and where."""


class Status(eqx.Module):
    """Outcome `code` (a `Code`) and the `step` it refers to, one entry per independent run.

    Arrays, so a status passes through jit, vmap and scan; nothing is raised before `.check()`.
    `precision_limited` counts as success: the requested tolerance was below what the dtype resolves.
    """

    code: Int[Array, "*batch"]
    step: Int[Array, "*batch"]

    @property
    def ok(self) -> Array:
        """True where the run succeeded."""
        return self.code <= Code.precision_limited

    def check(self, what: str = "run", where: Any = None) -> "Status":
        """Raise `Failure` if any run failed; return self otherwise.

        `what` names the computation, `where` turns a step into a phrase (default `step k`). Not for use
        inside jit, where the code is not known yet.
        """
        if is_traced(self.code):
            raise ValueError("check() reads numbers: call it outside jit, on the result")
        codes, steps = np.atleast_1d(_here(self.code)), np.atleast_1d(_here(self.step))
        bad = np.argwhere(codes > Code.precision_limited)
        if len(bad) == 0:
            return self
        first = tuple(map(int, bad[np.argmin(steps[tuple(bad.T)])]))
        code, step = Code(int(codes[first])), int(steps[first])
        run = first[0] if len(first) == 1 else first
        count = "" if codes.size == 1 else f"{len(bad)} of {codes.size} runs failed; the first, run {run}: "
        place = where(step) if where is not None else f"step {step}"
        raise Failure(f"{what}: {count}{code.name} at {place}: {_REASON[code]}")

    def __repr__(self) -> str:
        if is_traced(self.code):
            return "Status(traced)"
        codes = np.asarray(self.code)
        if codes.ndim == 0:
            return f"Status({Code(int(codes)).name}, step={int(self.step)})"
        names = {Code(int(c)).name: int(n) for c, n in zip(*np.unique(codes, return_counts=True), strict=True)}
        return f"Status({names})"


def status(code: Any = Code.ok, step: Any = 0) -> Status:
    """A `Status` of int32 arrays."""
    return Status(jnp.asarray(code, jnp.int32), jnp.asarray(step, jnp.int32))


def _here(array: Array) -> np.ndarray:
    """The entries that this process holds, of an array that may be spread over several."""
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    return np.concatenate([np.ravel(shard.data) for shard in array.addressable_shards])


C = TypeVar("C", bound="Checked")


class Checked(eqx.Module):
    """A result with a `status`, whose `check()` raises when the run failed and returns the result when it did not.

    A class says what it is the result of (`computation`) and what its status counts (`counted`).
    """

    computation: ClassVar[str] = "run"
    counted: ClassVar[str] = "step"

    if TYPE_CHECKING:
        status: ClassVar[Status]  # no field: the classes say where theirs stands
    else:
        status: eqx.AbstractVar[Status]

    def check(self: C) -> C:
        """Raise `Failure` with the reason if the run failed; return self otherwise. Outside jit, where it is known."""
        self.status.check(self.computation, lambda step: f"{self.counted} {step}")
        return self
