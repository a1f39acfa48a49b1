r"""Underdamped Langevin dynamics $dx = p\,dt,\ dp = -\nabla E\,dt - \gamma p\,dt + \sqrt{2\gamma T}\,dW$ by splitting.

| scheme | one step of length h | normals | stationary variances for $E = x^2/2$, $T = 1$: x, p |
|---|---|---|---|
| `BAOAB` | B(h/2) A(h/2) O(h) A(h/2) B(h/2) | 1 | $1,\ 1 - h^2/4$ |
| `OBABO` | O(h/2) B(h/2) A(h) B(h/2) O(h/2) | 2 | $1/(1 - h^2/4),\ 1$ |
| `exact` | A and O together, exactly, with the force of the start | 2 | see `stationary_covariance` |

A moves $x$ with $p$, B kicks $p$ with the force, O is the exact Ornstein-Uhlenbeck step of $p$. One gradient each.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.noise import check_key
from physml.core.types import Energy, Key, Scalar
from physml.particles.kernels.base import (
    AbstractTunable,
    Attempt,
    Info,
    accepted,
    bind,
    check_energy,
    check_start,
    normals,
    plus,
    scaled,
    total,
    value_and_gradient,
)
from physml.particles.kernels.precondition import as_scale, pull, push


class PhasePoint(NamedTuple):
    """Position, momentum, and the gradient of the energy at the position."""

    position: PyTree
    momentum: PyTree
    gradient: PyTree


class Underdamped(AbstractTunable):
    """See `underdamped`."""

    energy: Energy
    step_size: Array
    friction: Array
    temperature: Array
    scheme: str = eqx.field(static=True)
    scale: PyTree | None = None
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None, *, momentum: PyTree | None = None) -> PhasePoint:
        if rng_key is not None:  # not a momentum, whose place this is not
            check_key(rng_key)
        check_energy(self.energy, position, self.lanes, self.scale)
        value, grad = value_and_gradient(self.energy, position, self.lanes)
        check_start(value)
        rest = jax.tree.map(jnp.zeros_like, position) if momentum is None else momentum
        return PhasePoint(position, rest, grad)

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        return normals(key, (position,) * (1 if self.scheme == "BAOAB" else 2), lanes)

    def attempt(self, state: PhasePoint, noise: PyTree) -> tuple[PhasePoint, Info, Attempt]:
        lanes, h = self.lanes, self.step_size
        if self.scheme == "exact":
            raise ValueError("the exact scheme has no energy error: tune BAOAB or OBABO")
        if self.scheme == "BAOAB":
            before = self._kick(state.momentum, state.gradient, h / 2)
            x = self._drift(state.position, before, h / 2)
            (xi,) = noise
            after = self._refresh(before, xi, h)
            x = self._drift(x, after, h / 2)
            value, gradient = value_and_gradient(self.energy, x, lanes)
            p = self._kick(after, gradient, h / 2)
            kinetic = _kinetic(p, lanes) - _kinetic(after, lanes) + _kinetic(before, lanes)
            kinetic = kinetic - _kinetic(state.momentum, lanes)
        else:
            xi, eta = noise
            after = self._refresh(state.momentum, xi, h / 2)
            p = self._kick(after, state.gradient, h / 2)
            x = self._drift(state.position, p, h)
            value, gradient = value_and_gradient(self.energy, x, lanes)
            before = self._kick(p, gradient, h / 2)
            p = self._refresh(before, eta, h / 2)
            kinetic = _kinetic(before, lanes) - _kinetic(after, lanes)
        # The change of the energy that no heat bath made.
        start, _ = value_and_gradient(self.energy, state.position, lanes)
        log_ratio = (start - value - kinetic) / self.temperature
        attempt = Attempt(x, log_ratio, start / self.temperature, jnp.ones_like(log_ratio))
        return PhasePoint(x, p, gradient), accepted(x, lanes), attempt

    def move(self, state: PhasePoint, noise: PyTree) -> tuple[PhasePoint, Info]:
        if self.scheme == "exact":
            return self._frozen(state, *noise), accepted(noise, self.lanes)
        new, info, _ = self.attempt(state, noise)
        return new, info

    def _kick(self, p, gradient, h):
        return plus(p, scaled(-h, pull(self.scale, gradient, self.lanes)))

    def _drift(self, x, p, h):
        return plus(x, scaled(h, push(self.scale, p, self.lanes)))

    def _refresh(self, p, xi, h):
        decay = -self.friction * h
        return plus(scaled(jnp.exp(decay), p), scaled(jnp.sqrt(-self.temperature * jnp.expm1(2 * decay)), xi))

    def _frozen(self, state, xi, eta):
        c = frozen_force(self.step_size, self.friction, self.temperature)
        x, p, g = state.position, state.momentum, pull(self.scale, state.gradient, self.lanes)
        shift = plus(scaled(c.x_p, p), scaled(-c.x_g, g), scaled(c.x_xi, xi), scaled(c.x_eta, eta))
        p = plus(scaled(c.p_p, p), scaled(-c.x_p, g), scaled(c.p_xi, xi))
        x = plus(x, push(self.scale, shift, self.lanes))
        return PhasePoint(x, p, value_and_gradient(self.energy, x, self.lanes)[1])


def _kinetic(p, lanes):
    return total(jax.tree.map(jnp.square, p), lanes) / 2


def underdamped(
    energy: Callable,
    step_size: Scalar,
    friction: Scalar = 1.0,
    temperature: Scalar = 1.0,
    scheme: str = "BAOAB",
    *,
    scale: PyTree | None = None,
    args: PyTree = None,
) -> Underdamped:
    r"""Underdamped (kinetic) Langevin dynamics of unit mass, which leaves $e^{-(E(x) + |p|^2/2)/T}$ invariant.

    $$dx = p\,dt, \qquad dp = -\nabla E\,dt - \gamma p\,dt + \sqrt{2 \gamma T}\,dW$$

    `BAOAB` has the smallest bias in x (none for quadratic energies), `OBABO` is the splitting that Metropolis
    corrections build on, `exact` integrates the linear part exactly under a frozen force (the discretisation of
    underdamped Langevin Monte Carlo and of N-particle underdamped dynamics, biased at first order in h).

    **Arguments.** `energy`: `x -> scalar`, x any pytree. `step_size`: h > 0. `friction`: $\gamma \ge 0$ (1/time; > 0
    for `exact`). `temperature`: T >= 0. `scale`: L with $x = L y$, the dynamics is that of y (mass $(L L^T)^{-1}$).
    `args`: as in `overdamped`.
    **State.** position, momentum, gradient; starts at rest unless `init(position, momentum=p)`.
    **Cost.** One gradient. **Errors** as in `overdamped`, and for an unknown scheme.
    **See** Leimkuhler and Matthews (2013) for BAOAB; Bussi and Parrinello (2007) for OBABO; Cheng et al. (2018),
    eq. 5, for `exact`.
    """
    check.choice(scheme, "scheme", ("BAOAB", "OBABO", "exact"))
    return Underdamped(
        bind(energy, args),
        check.number(step_size, "step_size", above=0),
        check.number(friction, "friction", least=0, above=0 if scheme == "exact" else None),
        check.number(temperature, "temperature", least=0),
        scheme,
        as_scale(scale),
    )


class Coefficients(NamedTuple):
    """x' = x + x_p p - x_g g + x_xi xi + x_eta eta, p' = p_p p - x_p g + p_xi xi."""

    x_p: Array
    x_g: Array
    p_p: Array
    p_xi: Array
    x_xi: Array
    x_eta: Array


def frozen_force(step_size: Array, friction: Array, temperature: Array) -> Coefficients:
    r"""The exact law of (x, p) after a step under a constant force, with $z = \gamma h$:

    $$x' = x + \tfrac{1 - e^{-z}}{\gamma}\,p - \tfrac{z - 1 + e^{-z}}{\gamma^2}\,g + X, \qquad
    p' = e^{-z} p - \tfrac{1 - e^{-z}}{\gamma}\,g + P,$$
    $$\langle PP\rangle = T(1 - e^{-2z}),\quad \langle XP\rangle = \tfrac{T}{\gamma}(1 - e^{-z})^2,\quad
    \langle XX\rangle = \tfrac{2T}{\gamma^2}\bigl(z - 2(1 - e^{-z}) + \tfrac12(1 - e^{-2z})\bigr).$$
    """
    gamma, T = friction, temperature
    z = gamma * step_size
    lost = -jnp.expm1(-z)
    slow = _alternating(z, 2, lambda n: 1.0, z - lost)
    spread = _alternating(z, 3, lambda n: 2.0 - 2.0 ** (n - 1), z - 2 * lost - jnp.expm1(-2 * z) / 2)
    p_xi = jnp.sqrt(-T * jnp.expm1(-2 * z))
    # What X has in common with P, and what is left.
    common = lost**3 / (1 + jnp.exp(-z))
    x_xi = jnp.sqrt(T * common) / gamma
    x_eta = jnp.sqrt(T * (2 * spread - common)) / gamma
    return Coefficients(lost / gamma, slow / gamma**2, jnp.exp(-z), p_xi, x_xi, x_eta)


def _alternating(z, first, weight, direct):
    """sum_{n >= first} weight(n) (-z)^n / n!, by its series where the closed form cancels."""
    small = jnp.where(z < 1, z, 0)
    series = jnp.zeros_like(z)
    for n in range(first + 21, first - 1, -1):
        series = series * -small + weight(n) / math.factorial(n)
    return jnp.where(z < 1, series * (-small) ** first, direct)
