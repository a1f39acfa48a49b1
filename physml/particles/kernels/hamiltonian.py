r"""Hamiltonian Monte Carlo: a trajectory of $H = E(x) + |p|^2/2$ with fresh momenta, accepted as a whole or not."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check, noise as streams
from physml.core.types import Energy, Key, Scalar
from physml.particles.kernels.base import (
    AbstractTunable,
    Attempt,
    Evaluated,
    Info,
    bind,
    evaluated,
    gradient,
    metropolis,
    normals,
    plus,
    scaled,
    total,
    value_and_gradient,
)
from physml.particles.kernels.precondition import as_scale, pull, push


class Counted(NamedTuple):
    """A position with its energy and gradient, and how many moves led there."""

    position: PyTree
    energy: Array
    gradient: PyTree
    count: Array


class Hmc(AbstractTunable):
    """See `hmc`. `length` is the mean duration where that is quasi-random, None elsewhere."""

    rejects: ClassVar[bool] = True
    target: ClassVar[float] = 0.8

    energy: Energy
    step_size: Array
    steps: int = eqx.field(static=True)
    temperature: Array
    duration: str = eqx.field(static=True)
    scale: PyTree | None = None
    length: Array | None = None
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Evaluated | Counted:
        start = evaluated(self.energy, position, self.lanes, self.scale)
        return start if self.length is None else Counted(*start, jnp.zeros(start.energy.shape, jnp.int32))

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        dtype = jnp.result_type(jax.tree.leaves(position)[0])
        return normals(key, position, lanes), streams.uniform(key, 1, jax.ShapeDtypeStruct((2,), dtype), lanes)

    def attempt(self, state: Any, noise: PyTree) -> tuple[Any, Info, Attempt]:
        xi, (uniform, number) = noise
        h, leaps = self.step_size, self.steps
        if self.duration == "uniform":
            h = 2 * h * number
        elif self.duration == "exponential":
            h = -h * jnp.log(number)
        elif self.length is not None:
            leaps, h = quasirandom_leaps(state.count, self.length, jnp.asarray(h, state.energy.dtype))
        old = Evaluated(*state[:3])
        start = scaled(jnp.sqrt(self.temperature), xi)
        new, p = leapfrog(self.energy, old, start, h, leaps, self.scale, self.lanes)
        kinetic = total(jax.tree.map(lambda a, b: (a - b) * (a + b), start, p), self.lanes) / 2
        log_ratio = (old.energy - new.energy + kinetic) / self.temperature
        end, info = metropolis(log_ratio, uniform, new, old)
        gradients = jnp.broadcast_to(jnp.asarray(leaps, log_ratio.dtype), log_ratio.shape)
        if self.length is not None:
            end = Counted(end.position, end.energy, end.gradient, state.count + 1)
        return end, info, Attempt(new.position, log_ratio, old.energy / self.temperature, gradients, p, h * gradients)


def quasirandom_leaps(count: Array, length: Array, step_size: Array) -> tuple[Array, Array]:
    """How many steps move `count` follows, at least one, and how long they are.

    Durations fill (0, 2 length) as van der Corput's sequence, the number of the move with its bits reversed: the same
    in every chain that has made as many moves, so none waits. Each sixteenth move takes quarter steps: a chain leaves
    places that are too stiff for the others.
    """
    bits = (count + 1).astype(jnp.uint32)
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF)):
        bits = ((bits >> jnp.uint32(shift)) & jnp.uint32(mask)) | ((bits & jnp.uint32(mask)) << jnp.uint32(shift))
    share = (bits >> jnp.uint32(8)).astype(jnp.float32) * 2.0**-24
    short = share < 1 / 16
    share = jnp.where(short, 16 * share, (16 * share - 1) / 15)
    leaps = jnp.maximum(jnp.round(2 * share * (length / step_size).astype(jnp.float32)), 1).astype(jnp.int32)
    return leaps, step_size * jnp.where(short, 0.25, 1.0).astype(step_size.dtype)


def leapfrog(
    energy: Energy, start: Evaluated, p: PyTree, h: Array, leaps: int | Array, scale: PyTree, lanes: int
) -> tuple[Evaluated, PyTree]:
    """Where `leaps` steps from a position with momenta p lead: one number of steps, or one for each lane."""
    kick = lambda p, grad, h: plus(p, scaled(-h, pull(scale, grad, lanes)))
    drift = lambda x, p, h: plus(x, scaled(h, push(scale, p, lanes)))
    h = jnp.asarray(h, start.energy.dtype)

    def leap(k, carry):
        # A lane that has all but its last step behind it waits for the others.
        x, p = carry
        now = h if isinstance(leaps, int) else jnp.where(k < leaps - 1, h, 0)
        x = drift(x, p, now)
        return x, kick(p, gradient(energy, x, lanes), now)

    longest = leaps if isinstance(leaps, int) else jnp.max(leaps)
    x, p = lax.fori_loop(0, longest - 1, leap, (start.position, kick(p, start.gradient, h / 2)))
    x = drift(x, p, h)
    end = Evaluated(x, *value_and_gradient(energy, x, lanes))
    return end, kick(p, end.gradient, h / 2)


def hmc(
    energy: Callable,
    step_size: Scalar,
    steps: int = 10,
    temperature: Scalar = 1.0,
    *,
    duration: str = "fixed",
    scale: PyTree | None = None,
    args: PyTree = None,
) -> Hmc:
    r"""Hamiltonian Monte Carlo: momenta from $N(0, T)$, `steps` leapfrog steps, accepted with probability

    $$\min\bigl(1, e^{-(H(x', p') - H(x, p))/T}\bigr), \qquad H = E(x) + |p|^2/2.$$

    Leaves $e^{-E/T}$ invariant exactly. A fixed duration $\tau$ = steps x h meets its own period in every direction
    $k\tau^2 = (2\pi n)^2$, where nothing moves; a *randomised* one does not: with `duration="uniform"` or
    `"exponential"` each chain multiplies h by a random number of mean 1 (uniform on (0, 2), or exponential), one
    for a trajectory, so its duration has that law. With `"quasirandom"` h stays and the number of steps varies:
    durations fill (0, 2 `steps` h) evenly, the same for all chains, and each sixteenth move takes quarter steps; `tune`
    makes this of any duration.

    **Arguments.** `energy`: `x -> scalar`, x any pytree. `step_size`: h > 0. `steps`: leapfrog steps, at least 1.
    `temperature`: T > 0. `scale`: L; momenta are those of $y = L^{-1} x$, so the mass is $(L L^T)^{-1}$. `args`: as
    in `overdamped`.
    **Cost.** `steps` gradients; quasi-random durations have no derivative in reverse mode. Tune h to an acceptance near
    0.65 to 0.9. **Errors** as in `mala`, and for steps below 1. **See** Neal (2011), eq. 2.28 to 2.30; Bou-Rabee and
    Sanz-Serna (2017) for exponential durations.
    """
    steps = check.count(steps, "steps")
    check.choice(duration, "duration", ("fixed", "uniform", "exponential", "quasirandom"))
    h, T = check.number(step_size, "step_size", above=0), check.number(temperature, "temperature", above=0)
    length = steps * h if duration == "quasirandom" else None
    return Hmc(bind(energy, args), h, steps, T, duration, as_scale(scale), length)
