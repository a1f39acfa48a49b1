r"""Overdamped Langevin dynamics, $dx = -\nabla E\,dt + \sqrt{2T}\,dW$: unadjusted and Metropolis-adjusted.

`scale` L preconditions both: with $P = L L^T$ the dynamics is $dx = -P \nabla E\,dt + \sqrt{2 T P}\,dW$, whose
stationary law is the same. It is that of $y = L^{-1} x$; an L with $L L^T$ near the covariance of the target makes all
directions alike.
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.types import Energy, Key, Scalar
from physml.particles.kernels.base import (
    AbstractTunable,
    Attempt,
    Evaluated,
    Info,
    Position,
    accepted,
    bind,
    check_energy,
    check_start,
    evaluated,
    metropolis,
    normals,
    plus,
    scaled,
    total,
    uniforms,
    value_and_gradient,
)
from physml.particles.kernels.precondition import as_scale, pull, push


class Overdamped(AbstractTunable):
    """See `overdamped`."""

    energy: Energy
    step_size: Array
    temperature: Array
    scale: PyTree | None = None
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Position:
        check_energy(self.energy, position, self.lanes, self.scale)
        check_start(value_and_gradient(self.energy, position, self.lanes)[0])
        return Position(position)

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        return normals(key, position, lanes)

    def attempt(self, state: Position, noise: PyTree) -> tuple[Position, Info, Attempt]:
        here = Evaluated(state.position, *value_and_gradient(self.energy, state.position, self.lanes))
        new, attempt = _euler(self, here, noise)
        return Position(new.position), accepted(noise, self.lanes), attempt


class Mala(AbstractTunable):
    """See `mala`."""

    rejects: ClassVar[bool] = True
    target: ClassVar[float] = 0.574

    energy: Energy
    step_size: Array
    temperature: Array
    scale: PyTree | None = None
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Evaluated:
        return evaluated(self.energy, position, self.lanes, self.scale)

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        return normals(key, position, lanes), uniforms(key, position, lanes)

    def attempt(self, state: Evaluated, noise: PyTree) -> tuple[Evaluated, Info, Attempt]:
        xi, uniform = noise
        new, attempt = _euler(self, state, xi)
        return *metropolis(attempt.log_ratio, uniform, new, state), attempt


def _euler(kernel: Overdamped | Mala, state: Evaluated, xi: PyTree) -> tuple[Evaluated, Attempt]:
    """The Euler step, and ln of e^{-E(y)/T} q(x | y) over the same with x and y exchanged.

    Without adjustment only the position is used, and what the rest would cost is not computed.
    """
    (x, value, grad), lanes = state, kernel.lanes
    h, T = kernel.step_size, kernel.temperature
    here = pull(kernel.scale, grad, lanes)
    y = plus(x, push(kernel.scale, plus(scaled(-h, here), scaled(jnp.sqrt(2 * T * h), xi)), lanes))
    new = Evaluated(y, *value_and_gradient(kernel.energy, y, lanes))
    # The noise that would lead back is sqrt(h/2T) (g + g') - xi; proposals are standard normal in their noise.
    back = plus(scaled(jnp.sqrt(h / (2 * T)), plus(here, pull(kernel.scale, new.gradient, lanes))), scaled(-1.0, xi))
    proposals = total(jax.tree.map(lambda a, b: (a - b) * (a + b), xi, back), lanes) / 2
    log_ratio = (value - new.energy) / T + proposals
    return new, Attempt(y, log_ratio, value / T, jnp.ones_like(log_ratio))


def overdamped(
    energy: Callable,
    step_size: Scalar,
    temperature: Scalar = 1.0,
    *,
    scale: PyTree | None = None,
    args: PyTree = None,
) -> Overdamped:
    r"""Unadjusted Langevin (ULA): the Euler step of $dx = -\nabla E\,dt + \sqrt{2T}\,dW$.

    $$x' = x - h\,\nabla E(x) + \sqrt{2Th}\,\xi, \qquad \xi \sim N(0, I)$$

    Leaves $e^{-E/T}$ invariant up to $O(h)$; for $E = kx^2/2$ the stationary law is exactly $N(0, T/(k(1 - kh/2)))$
    and needs $kh < 2$.

    **Arguments.** `energy`: `x -> scalar`, x any pytree. `step_size`: h > 0 (time). `temperature`: T >= 0 (energy);
    zero is gradient descent. `scale`: L of a preconditioner $L L^T$, one factor for each entry of x, or a matrix
    (d, d) for a vector. `args`: the energy is then `energy(x, args)`, and a sweep over them compiles once.
    **Cost.** One gradient and as many normals as x has entries.
    **Errors.** `ValueError` for a negative step or temperature, an energy that is not a scalar, a start of infinite
    energy; a run that leaves the finite numbers has the status `diverged`.
    **See** Roberts and Tweedie (1996), section 1.4.1; `mala` removes the bias, `underdamped` mixes faster.

    **Example.**
    ```python
    kernel = overdamped(lambda x: jnp.sum(x**2) / 2, step_size=0.05)
    run = physml.particles.run(kernel, jnp.zeros(3), 10_000, key=jax.random.key(0), save_every=10)
    ```
    """
    temperature = check.number(temperature, "temperature", least=0)
    return Overdamped(bind(energy, args), check.number(step_size, "step_size", above=0), temperature, as_scale(scale))


def mala(
    energy: Callable,
    step_size: Scalar,
    temperature: Scalar = 1.0,
    *,
    scale: PyTree | None = None,
    args: PyTree = None,
) -> Mala:
    r"""Metropolis-adjusted Langevin: the step of `overdamped`, accepted with probability

    $$\min\Bigl(1,\ e^{-(E(x') - E(x))/T}\, \frac{q(x | x')}{q(x' | x)}\Bigr).$$

    Leaves $e^{-E/T}$ invariant exactly. Tune h to an acceptance (`run.info.acceptance`) near 0.57; a proposal of
    infinite or undefined energy is rejected.

    **Arguments, errors** as in `overdamped`, but T > 0. **Cost.** One gradient.
    **See** Roberts and Tweedie (1996), section 1.4.2; Roberts and Rosenthal (1998) for the acceptance.
    """
    temperature = check.number(temperature, "temperature", above=0)
    return Mala(bind(energy, args), check.number(step_size, "step_size", above=0), temperature, as_scale(scale))
