r"""Microcanonical dynamics: a particle of unit speed, whose isokinetic flow leaves $e^{-E/T}$ invariant in position.

$$\dot x = u, \qquad \dot u = -\frac{(I - uu^\top)\,\nabla E/T}{d - 1}, \qquad |u| = 1$$

The law $e^{-E(x)/T}\,dx$ times the uniform one on the sphere of u is conserved, since the flow of u contracts its
sphere by exactly what the weight gains. A kick of length h under the gradient g of $E/T$, $\delta = h|g|/(d-1)$, $e =
-g/|g|$, is solved by

$$u' = \frac{u + \bigl(\sinh\delta + (e\cdot u)(\cosh\delta - 1)\bigr)\,e}{\cosh\delta + (e\cdot u)\sinh\delta},
  \qquad \Delta K = (d - 1)\ln\bigl(\cosh\delta + (e\cdot u)\sinh\delta\bigr)$$

and $\Delta K$ is minus the logarithm of its Jacobian: the error of a step in energy is $W = \Delta E/T + \sum\Delta K$.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.types import Energy, Key, Scalar
from physml.particles.kernels.base import (
    AbstractTunable,
    Attempt,
    Evaluated,
    Info,
    accepted,
    bind,
    choose,
    evaluated,
    metropolis,
    normals,
    plus,
    scaled,
    total,
    uniforms,
    value_and_gradient,
)
from physml.particles.kernels.hamiltonian import Counted, quasirandom_leaps
from physml.particles.kernels.precondition import as_scale, pull, push


class Moving(NamedTuple):
    """A position with its direction, energy and gradient."""

    position: PyTree
    direction: PyTree
    energy: Array
    gradient: PyTree


class Microcanonical(AbstractTunable):
    """See `microcanonical`."""

    energy: Energy
    step_size: Array
    length: Array
    temperature: Array
    scale: PyTree | None = None
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Moving:
        value, grad = _evaluate(self, position)
        return Moving(position, _unit(scaled(-1.0, pull(self.scale, grad, self.lanes)), self.lanes), value, grad)

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        return normals(key, position, lanes)

    def attempt(self, state: Moving, noise: PyTree) -> tuple[Moving, Info, Attempt]:
        x, u, value, grad = state
        new, u, kinetic = isokinetic(self, Evaluated(x, value, grad), u, self.step_size, 1)
        # The share of the direction that is lost decays with the length: exp(-h / length) is left.
        noisy = jnp.sqrt(jnp.expm1(2 * self.step_size / self.length) / _size(noise, self.lanes))
        u = _unit(plus(u, scaled(noisy, noise)), self.lanes)
        log_ratio = (value - new.energy) / self.temperature - kinetic
        attempt = Attempt(new.position, log_ratio, value / self.temperature, jnp.ones_like(log_ratio))
        return Moving(new.position, u, *new[1:]), accepted(noise, self.lanes), attempt


class AdjustedMicrocanonical(AbstractTunable):
    """See `microcanonical`."""

    rejects: ClassVar[bool] = True
    target: ClassVar[float] = 0.9

    energy: Energy
    step_size: Array
    length: Array
    temperature: Array
    scale: PyTree | None = None
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Counted:
        value, grad = _evaluate(self, position)
        return Counted(position, value, grad, jnp.zeros(value.shape, jnp.int32))

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        return normals(key, position, lanes), uniforms(key, position, lanes)

    def attempt(self, state: Counted, noise: PyTree) -> tuple[Counted, Info, Attempt]:
        xi, uniform = noise
        old = Evaluated(*state[:3])
        leaps, h = quasirandom_leaps(state.count, self.length, jnp.asarray(self.step_size, state.energy.dtype))
        new, u, kinetic = isokinetic(self, old, _unit(xi, self.lanes), h, leaps)
        log_ratio = (old.energy - new.energy) / self.temperature - kinetic
        end, info = metropolis(log_ratio, uniform, new, old)
        gradients = leaps.astype(log_ratio.dtype)
        energy = old.energy / self.temperature
        attempt = Attempt(new.position, log_ratio, energy, gradients, u, h * gradients)
        return Counted(end.position, end.energy, end.gradient, state.count + 1), info, attempt


def microcanonical(
    energy: Callable,
    step_size: Scalar = 0.1,
    length: Scalar = 1.0,
    temperature: Scalar = 1.0,
    *,
    adjusted: bool = False,
    scale: PyTree | None = None,
    args: PyTree = None,
) -> Microcanonical | AdjustedMicrocanonical:
    r"""Isokinetic Langevin dynamics: leapfrog steps at unit speed, whose direction is forgotten over `length`.

    Unadjusted, each step ends with $u \leftarrow (u + \nu\xi)/|u + \nu\xi|$, $\nu^2 = (e^{2h/\ell} - 1)/d$. Its bias
    shows in the error in energy, $\langle W^2\rangle/d \approx 4b^3$ for a relative bias b of variances, which `tune`
    sets. *Adjusted*, the direction is new at the start of each trajectory, whose lengths fill (0, 2 `length`)
    quasi-randomly, and its end is accepted with probability $\min(1, e^{-W})$: exact.

    **Arguments.** `energy`: `x -> scalar`, x any pytree of at least two entries. `step_size`: h > 0 and
    `length` > 0 are lengths: the particle needs $\sqrt d$ of them where `hmc` needs a time of 1. `temperature`: T > 0.
    `scale`: L, as in `hmc`. `args`: as in `overdamped`. **State.** `Moving`, which starts downhill, or `Counted`.
    **Cost.** A gradient a step, h / length of them on average for a trajectory.
    **Errors** as in `overdamped`; for a single entry, which a sphere has no directions for.
    **See** Robnik, De Luca, Silverstein and Seljak, Microcanonical Hamiltonian Monte Carlo (2023); Robnik and
    Seljak, Fluctuation without dissipation (2024); Robnik, Cohn-Gordon and Seljak (2025) for the adjusted one.

    ```python
    tuned = tune(microcanonical(energy), x0s, 500, key=key).check()
    run = run_chains(tuned.kernel, tuned.state, 2000, key=key)
    ```
    """
    positive = lambda value, name: check.number(value, name, above=0)
    kind = AdjustedMicrocanonical if adjusted else Microcanonical
    return kind(
        bind(energy, args),
        positive(step_size, "step_size"),
        positive(length, "length"),
        positive(temperature, "temperature"),
        as_scale(scale),
    )


def isokinetic(
    kernel: Any, start: Evaluated, u: PyTree, h: Array, leaps: int | Array
) -> tuple[Evaluated, PyTree, Array]:
    """Where `leaps` leapfrog steps of length h along u lead, the direction there, and the sum of Delta K."""
    lanes, h = kernel.lanes, jnp.asarray(h, start.energy.dtype)

    def kick(u, grad, h):
        g = scaled(1 / kernel.temperature, pull(kernel.scale, grad, lanes))
        return turn(u, g, h, lanes)

    drift = lambda x, u, h: plus(x, scaled(h, push(kernel.scale, u, lanes)))

    def leap(k, carry):
        x, u, K = carry
        now = h if isinstance(leaps, int) else jnp.where(k < leaps - 1, h, 0)
        x = drift(x, u, now)
        u, more = kick(u, value_and_gradient(kernel.energy, x, lanes)[1], now)
        return x, u, K + more

    u, K = kick(u, start.gradient, h / 2)
    longest = leaps if isinstance(leaps, int) else jnp.max(leaps)
    x, u, K = lax.fori_loop(0, longest - 1, leap, (start.position, u, K))
    x = drift(x, u, h)
    end = Evaluated(x, *value_and_gradient(kernel.energy, x, lanes))
    u, more = kick(u, end.gradient, h / 2)
    return end, u, K + more


def turn(u: PyTree, g: PyTree, h: Array, lanes: int) -> tuple[PyTree, Array]:
    """The direction after a kick of length h by the gradient g, and Delta K; nothing where the gradient vanishes."""
    d = _size(g, lanes)
    dot = lambda a, b: total(jax.tree.map(jnp.multiply, a, b), lanes)
    norm2 = dot(g, g)
    norm = jnp.sqrt(jnp.where(norm2 > 0, norm2, 1))
    delta = jnp.where(norm2 > 0, h * norm, 0) / (d - 1)
    e = scaled(-1 / norm, g)
    cosine = dot(e, u)
    # Divided by e^delta / 2, so that long kicks do not overflow.
    lost = jnp.exp(-delta)
    ahead, behind = (1 + cosine), (1 - cosine) * lost**2
    along = ((1 - lost) * (1 + lost + cosine * (1 - lost))) / (ahead + behind)
    u = _unit(plus(scaled(2 * lost / (ahead + behind), u), scaled(along, e)), lanes)
    return u, (d - 1) * (delta + jnp.log((ahead + behind) / 2))


def _unit(v: PyTree, lanes: int) -> PyTree:
    """v / |v|; along the diagonal where v vanishes."""
    norm2 = total(jax.tree.map(jnp.square, v), lanes)
    v = choose(norm2 > 0, v, jax.tree.map(jnp.ones_like, v))
    return scaled(lax.rsqrt(jnp.where(norm2 > 0, norm2, _size(v, lanes))), v)


def _size(v: PyTree, lanes: int) -> float:
    """How many entries one chain has."""
    leaves = jax.tree.leaves(v)
    chains = leaves[0].shape[-1] if lanes else 1
    return float(sum(leaf.size for leaf in leaves) // chains)


def _evaluate(kernel, position):
    start = evaluated(kernel.energy, position, kernel.lanes, kernel.scale)
    if _size(position, kernel.lanes) < 2:
        raise ValueError("microcanonical dynamics turns a direction and needs at least two entries; use hmc")
    return start.energy, start.gradient
