r"""Hamiltonian Monte Carlo: a trajectory of $H = E(x) + |p|^2/2$ with fresh momenta, accepted as a whole or not."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check, noise as streams
from physml.core.types import Energy, Key, Scalar
from physml.particles.kernels.base import (
    AbstractKernel,
    Evaluated,
    Info,
    as_scale,
    check_energy,
    check_start,
    gradient,
    metropolis,
    normals,
    plus,
    pull,
    push,
    scaled,
    total,
    value_and_gradient,
)


class Hmc(AbstractKernel):
    """See `hmc`."""

    rejects: ClassVar[bool] = True

    energy: Energy
    step_size: Array
    steps: int = eqx.field(static=True)
    temperature: Array
    duration: str = eqx.field(static=True)
    scale: PyTree | None = None
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Evaluated:
        check_energy(self.energy, position, self.lanes, self.scale)
        value, grad = value_and_gradient(self.energy, position, self.lanes)
        check_start(value)
        return Evaluated(position, value, grad)

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        dtype = jnp.result_type(jax.tree.leaves(position)[0])
        return normals(key, position, lanes), streams.uniform(key, 1, jax.ShapeDtypeStruct((2,), dtype), lanes)

    def move(self, state: Evaluated, noise: PyTree) -> tuple[Evaluated, Info]:
        xi, (uniform, length) = noise
        lanes, T = self.lanes, self.temperature
        h = self.step_size
        if self.duration == "uniform":
            h = 2 * h * length
        elif self.duration == "exponential":
            h = -h * jnp.log(length)
        kick = lambda p, grad, h: plus(p, scaled(-h, pull(self.scale, grad, lanes)))
        drift = lambda x, p: plus(x, scaled(h, push(self.scale, p, lanes)))

        def leap(carry, _):
            x, p = carry
            x = drift(x, p)
            return (x, kick(p, gradient(self.energy, x, lanes), h)), None

        start = scaled(jnp.sqrt(T), xi)
        x, p = state.position, kick(start, state.gradient, h / 2)
        (x, p), _ = lax.scan(leap, (x, p), length=self.steps - 1)
        x = drift(x, p)
        new = Evaluated(x, *value_and_gradient(self.energy, x, lanes))
        p = kick(p, new.gradient, h / 2)
        kinetic = total(jax.tree.map(lambda a, b: (a - b) * (a + b), start, p), lanes) / 2
        return metropolis((state.energy - new.energy + kinetic) / T, uniform, new, state)


def hmc(
    energy: Energy,
    step_size: Scalar,
    steps: int = 10,
    temperature: Scalar = 1.0,
    *,
    duration: str = "fixed",
    scale: PyTree | None = None,
) -> Hmc:
    r"""Hamiltonian Monte Carlo: momenta from $N(0, T)$, `steps` leapfrog steps, accepted with probability

    $$\min\bigl(1, e^{-(H(x', p') - H(x, p))/T}\bigr), \qquad H = E(x) + |p|^2/2.$$

    Leaves $e^{-E/T}$ invariant exactly. A fixed duration $\tau$ = steps x h meets its own period in every direction
    $k\tau^2 = (2\pi n)^2$, where nothing moves; a *randomised* one does not: with `duration="uniform"` or
    `"exponential"` each chain multiplies h by a random number of mean 1 (uniform on (0, 2), or exponential), one
    for a trajectory, so its duration has that law.

    **Arguments.** `energy`: `x -> scalar`, x any pytree. `step_size`: h > 0. `steps`: leapfrog steps, at least 1.
    `temperature`: T > 0. `scale`: L; momenta are those of $y = L^{-1} x$, so the mass is $(L L^T)^{-1}$.
    **Cost.** `steps` gradients. Tune h to an acceptance near 0.65 to 0.9.
    **Errors** as in `mala`, and for steps below 1. **See** Neal (2011), eq. 2.28 to 2.30; Bou-Rabee and
    Sanz-Serna (2017) for exponential durations.
    """
    steps = check.count(steps, "steps")
    check.choice(duration, "duration", ("fixed", "uniform", "exponential"))
    h, T = check.number(step_size, "step_size", above=0), check.number(temperature, "temperature", above=0)
    return Hmc(energy, h, steps, T, duration, as_scale(scale))
