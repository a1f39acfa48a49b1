"""`tune`: a kernel's step size, length and preconditioner, learned by many chains in one compiled program."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check, noise
from physml.core._status import Checked, Code, Status, status
from physml.core.program import program
from physml.core.progress import progress_bar
from physml.core.types import Key, Scalar, is_traced
from physml.particles.chains import tuning
from physml.particles.chains.run import checked, count_chains, lanes_first
from physml.particles.chains.tuning import TuningHistory
from physml.particles.kernels.base import AbstractKernel, AbstractTunable, check_start, over_lanes
from physml.particles.kernels.hamiltonian import Hmc

# Durations of mean t, evenly spread, leave x the correlation sinc 2t and x^2 that of (1 + sinc 4t)/2, for a Gaussian of
# frequency 1. The radius changes most for its work at t = 0.78; at t = 1.1 x and x^2 need the same work for a draw.
# Isokinetic trajectories are there already.
_LONGER = 1.4


class Tuned(Checked):
    """What `tune` found: the `kernel`, the chains' `state` to go on from, the `history`, the `status` of all chains.

    `r_hat`: the largest of the last window, far from 1 where chains sit in different modes. Status `not_converged` when
    the steps ran out before two windows agreed, with the number of steps made.
    """

    computation: ClassVar[str] = "tune"

    kernel: Any
    state: PyTree
    history: TuningHistory
    r_hat: Array
    status: Status


def tune(
    kernel: AbstractKernel,
    x0s: PyTree,
    steps: int = 500,
    *,
    key: Key,
    metric: str = "dense",
    acceptance: Scalar | None = None,
    bias: Scalar = 0.02,
    most: int = 1000,
    first_lane: ArrayLike = 0,
    progress: bool = False,
) -> Tuned:
    r"""Fit a kernel to its target with many chains, x0s (chains, ...), that learn together.

    In windows of doubling length the chains learn the preconditioner from their pooled draws, and all the time

    - the step size: to an `acceptance` (`hmc` 0.8, `mala` 0.574, adjusted `microcanonical` 0.9), or, for kernels that
      reject nothing, to a relative `bias` b of variances, where the error W of a step in energy (over T) has
      $\langle W^2\rangle = 4b^3d$, as it has for Gaussians of any frequency;
    - the length of trajectories of `hmc` and of adjusted `microcanonical`: that which changes the squared radius most
      for its work, with quasi-random durations;
    - the friction of `underdamped`, $1/\sqrt{\lambda}$, and the length of `microcanonical`, $\sqrt{d\lambda}$, with the
      largest variance $\lambda$ that is left in whitened coordinates: there the slowest coordinate and its square
      decorrelate equally fast.

    **Arguments.** `kernel`: `overdamped`, `underdamped` (BAOAB, OBABO), `mala`, `hmc`, `microcanonical`. `steps`: at
    most; it stops as soon as a window agrees with the one before: spread within a factor 1.5, mean within 0.5 standard
    deviations, acceptance within 0.1 (error in energy within a factor 4) of its target, and r_hat below 1.3; up to half
    of them are moves of HMC where the kernel rejects nothing. `metric`: "dense" (all correlations up to 100 entries,
    the ten leading directions beyond; it starts from that of `laplace`, if the kernel has it), "diagonal", or "none",
    which keeps the kernel's own scale. `most`: leapfrog steps of a trajectory. `first_lane`: as in `run_chains`.
    `progress`: show a bar.
    **Returns** `Tuned`; go on with `run_chains(tuned.kernel, tuned.state, ...)` and another key.
    **Cost.** That of the moves; early trajectories are short. One program for a kernel and a shape, which any number of
    starts of that shape uses again. Few chains learn in longer windows.
    **Errors.** `ValueError` for other kernels and for starts of infinite energy. A chain that would leave the finite
    numbers stays where it is.
    **See** `chains/adaptation.py` for the equations and their sources.

    **Example.**
    ```python
    tuned = tune(hmc(energy, step_size=0.1), x0s, 500, key=key).check()
    run = run_chains(tuned.kernel, tuned.state, 2000, key=key2)
    ```
    """
    many: Any = over_lanes(kernel)
    kernels = "overdamped, underdamped, mala, hmc or microcanonical to be tuned"
    check.instance(many, "kernel", AbstractTunable, kernels)
    check.choice(metric, "metric", ("dense", "diagonal", "none"))
    steps, most = check.count(steps, "steps", least=20), check.count(most, "most")
    check.number(many.temperature, "the kernel's temperature", above=0)
    bias = check.number(bias, "bias", above=0, below=1)
    rate = check.number(many.target if acceptance is None else acceptance, "acceptance", least=0, below=1)
    noise.check_key(key)
    x0s = getattr(x0s, "position", x0s)
    lanes = noise.lanes(first_lane, count_chains(x0s))
    x0s = checked(many, x0s, lanes)
    if isinstance(many, Hmc):
        many = dataclasses.replace(many, duration="quasirandom", length=many.steps * many.step_size)
    # What rejects nothing starts where HMC has found the target and its shape.
    scout, budget = (many, steps) if many.rejects else (_scout(many), steps // 2)
    found, energies = tuning.begin(scout, x0s, key, lanes, steps, budget, metric)
    for values, message in energies:
        check_start(values, message)
    with progress_bar(steps, "tune", "step", show=progress) as bar:

        def go(kernel, found, target, budget):
            bounds = range(50, budget + 50, 50) if progress else (budget,)
            if progress and is_traced(found):
                raise ValueError("progress=True needs concrete arrays: call it outside jit, or drop the bar")
            for bound in bounds:  # of one program: the bound is traced
                bound = jnp.int32(min(bound, budget))
                before, found = found, tuning.go_on(kernel, found, key, lanes, target, bound, budget, metric, most)
                if progress:
                    bar.update(int(found.k) - int(before.k))
            return found

        found = go(scout, found, rate if many.rejects else jnp.asarray(scout.target), budget)
        if not many.rejects:
            found = go(many, tuning.hand_over(many, found, bias, steps, metric), 4 * bias**3, steps)
    return _end(many, found, metric)


def _scout(kernel):
    h = kernel.step_size
    return Hmc(kernel.energy, h, 1, kernel.temperature, "quasirandom", kernel.scale, h, kernel.lanes)


@program
def _end(kernel, found, metric):
    length = jnp.exp(found.length.average) * (_LONGER if isinstance(kernel, Hmc) else 1.0)
    tuned = tuning.with_numbers(kernel, jnp.exp(found.step.average), length, found.scale, metric)
    code = jnp.where(found.settled, Code.ok, Code.not_converged)
    tuned = dataclasses.replace(tuned, lanes=0)
    return Tuned(tuned, lanes_first(found.state), found.history, found.r_hat, status(code, found.k))
