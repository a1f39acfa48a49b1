r"""Games between two laws:
$\min_\mu \max_\nu\ L(\mu, \nu) + T_x \mathrm{KL}(\mu | e^{-r_x}) - T_y \mathrm{KL}(\nu | e^{-r_y})$.

Its mixed equilibrium satisfies $\mu \propto e^{-\frac{1}{T_x} \delta_\mu L - r_x}$,
$\nu \propto e^{\frac{1}{T_y} \delta_\nu L - r_y}$. Three dynamics of two sets of particles find it:

| kernel | what a particle descends | remembers |
|---|---|---|
| `descent_ascent` | the present measures; the second player is `ratio` times as fast | nothing |
| `averaged_gradient` | a weighted average of the gradients against all past measures | past measures |
| `anchored_best_response` | measures that move slowly to best responses, found by an inner loop | two anchors |
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.noise import normal, uniform
from physml.core.types import Key, Scalar
from physml.particles.kernels.base import AbstractKernel, Info, check_position
from physml.particles.pairs.measure import Particles


class Players(NamedTuple):
    """Positions of the two sets of particles: x (N, d) minimises, y (M, d') maximises."""

    x: Array
    y: Array


class Game(eqx.Module):
    r"""An objective $L(\mu, \nu)$ of two measures with confinements $r_x, r_y$ and temperatures.

    **Arguments.** `objective`: (mu, nu) -> scalar; `confine_x`, `confine_y`: $r(x)$ of one point, whose $e^{-r}$ is the
    reference of the relative entropy. `temperature`: $T_x = T_y$, or a pair.
    """

    objective: Callable
    confine_x: Callable
    confine_y: Callable
    temperature_x: Array
    temperature_y: Array

    def __init__(self, objective: Callable, confine_x: Callable, confine_y: Callable, temperature: Any):
        both = temperature if isinstance(temperature, tuple | list) else (temperature, temperature)
        for name, function in (("objective", objective), ("confine_x", confine_x), ("confine_y", confine_y)):
            check.function(function, name)
        self.objective, self.confine_x, self.confine_y = objective, confine_x, confine_y
        self.temperature_x, self.temperature_y = (check.number(T, "temperature", above=0) for T in both)

    def gradients(self, at: Players, mu: Particles, nu: Particles) -> Players:
        r"""$\nabla \delta_\mu L(\mu, \nu, x_i)$ and $\nabla \delta_\nu L(\mu, \nu, y_j)$ at any points, against
        measures.

        The gradient of the first variation at x is that of L in the position of a particle of vanishing weight at x,
        over the weight.
        """

        def slope(points, value):
            # dL/dw_i of particles added with weight zero is the first variation at them; its gradient is ours.
            zero = jnp.zeros(len(points), points.dtype)
            return jax.grad(lambda p: jnp.sum(jax.grad(lambda w: value(p, w))(zero)))(points)

        with_x = lambda p, w: self.objective(_append(mu, p, w), nu)
        with_y = lambda p, w: self.objective(mu, _append(nu, p, w))
        return Players(slope(at.x, with_x), slope(at.y, with_y))

    def drift(self, at: Players, slopes: Players) -> Players:
        """Down the regularised objective for x, up for y."""
        down = jax.vmap(jax.grad(self.confine_x))(at.x)
        up = jax.vmap(jax.grad(self.confine_y))(at.y)
        return Players(-slopes.x - self.temperature_x * down, slopes.y - self.temperature_y * up)


def _append(measure, points, weights):
    return Particles(jnp.concatenate([measure.x, points]), jnp.concatenate([measure.weights, weights]))


class Play(NamedTuple):
    """The players now, and the points and weights of the measures a kernel remembers."""

    position: Players
    memory: PyTree
    step: Array


class AbstractPlay(AbstractKernel):
    """What the three dynamics share: noise of both players and an Euler step of each."""

    def _noise(self, key, position, lanes):
        return normal(key, 0, Players(*position), lanes)

    def _langevin(self: Any, at, drift, xi, ratio: Any = 1.0):
        h, game = self.step_size, self.game
        return Players(
            at.x + h * drift.x + jnp.sqrt(2 * game.temperature_x * h) * xi.x,
            at.y + ratio * h * drift.y + jnp.sqrt(2 * game.temperature_y * ratio * h) * xi.y,
        )


def _accepted(position):
    return Info(jnp.ones((), position.x.dtype))


def _begin(position):
    check_position(position)
    at = Players(*position)
    if at.x.ndim != 2 or at.y.ndim != 2:
        raise ValueError(f"players are positions (N, d) and (M, d'); got {at.x.shape} and {at.y.shape}")
    return at


class DescentAscent(AbstractPlay):
    """See `descent_ascent`."""

    game: Game
    step_size: Array
    ratio: Array
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Play:
        return Play(_begin(position), None, jnp.zeros((), jnp.int32))

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> Players:
        return self._noise(key, position, lanes)

    def move(self, state: Play, noise: Players) -> tuple[Play, Info]:
        at = state.position
        slopes = self.game.gradients(at, Particles(at.x), Particles(at.y))
        new = self._langevin(at, self.game.drift(at, slopes), noise, self.ratio)
        return Play(new, None, state.step + 1), _accepted(new)


def descent_ascent(game: Game, step_size: Scalar, ratio: Scalar = 1.0) -> DescentAscent:
    r"""Mean-field Langevin gradient descent-ascent; with `ratio` $\eta \ne 1$ on two time scales:

    $$dx = -\nabla [\delta_\mu L + T_x r_x]\,dt + \sqrt{2 T_x}\,dW, \qquad
      dy = \eta \nabla [\delta_\nu L - T_y r_y]\,dt + \sqrt{2 T_y \eta}\,dW'.$$

    A fast second player ($\eta \gg 1$) stays near its best response, a slow one lets the first stay near its own; each
    converges to the mixed equilibrium where equal speeds may circle.
    **State.** `position` = `Players(x, y)`. **Cost.** One gradient of L in each measure.
    **See** Lu, Two-scale gradient descent ascent dynamics (2023), eq. 1.4.
    """
    return DescentAscent(game, check.number(step_size, "step_size", above=0), check.number(ratio, "ratio", above=0))


class AveragedGradient(AbstractPlay):
    """See `averaged_gradient`."""

    game: Game
    step_size: Array
    power: Array
    slots: int = eqx.field(static=True)
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Play:
        at = _begin(position)
        copies = jax.tree.map(lambda z: jnp.broadcast_to(z[None], (self.slots, *z.shape)), at)
        return Play(at, (copies, jnp.zeros((), at.x.dtype)), jnp.zeros((), jnp.int32))

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        slots = jax.ShapeDtypeStruct((self.slots,), jnp.result_type(position[0]))
        return self._noise(key, position, lanes), uniform(key, 1, slots, lanes)

    def move(self, state: Play, noise: PyTree) -> tuple[Play, Info]:
        (xi, chance), (past, total) = noise, state.memory
        at = state.position
        weight = (state.step + 1).astype(total.dtype) ** self.power
        total = total + weight
        # Each slot takes the present with probability w_k / (w_1 + ... + w_k): it then holds a draw from the past by
        # weight.
        fresh = chance * total < weight
        past = jax.tree.map(lambda old, z: jnp.where(fresh[:, None, None], z[None], old), past, at)
        slopes = lax.map(lambda then: self.game.gradients(at, Particles(then.x), Particles(then.y)), past)
        new = self._langevin(at, self.game.drift(at, jax.tree.map(lambda g: jnp.mean(g, 0), slopes)), xi)
        return Play(new, (past, total), state.step + 1), _accepted(new)


def averaged_gradient(game: Game, step_size: Scalar, power: Scalar = 1.0, slots: int = 16) -> AveragedGradient:
    r"""Mean-field Langevin averaged gradient (MFL-AG): both players follow the average of past gradients,

    $$dx = -\Bigl[\tfrac{1}{B_k} \sum_{j \le k} \beta_j \nabla \delta_\mu L(\mu_j, \nu_j, x) + T_x \nabla r_x\Bigr] dt
      + \sqrt{2 T_x}\,dW, \qquad \beta_j = j^r,\ B_k = \sum_{j \le k} \beta_j,$$

    and y likewise upwards. The average over all k past measures is estimated without bias from `slots` of them, drawn
    with the weights $\beta_j$ as the past grows, so memory and cost do not.
    **Arguments.** `power`: r >= 0. `slots`: measures remembered. **Cost.** `slots` gradients of L.
    **See** Kim, Yamamoto, Oko, Yang and Suzuki, Symmetric mean-field Langevin dynamics (2024), algorithm 1.
    """
    h, power = check.number(step_size, "step_size", above=0), check.number(power, "power", least=0)
    return AveragedGradient(game, h, power, check.count(slots, "slots"))


class AnchoredBestResponse(AbstractPlay):
    """See `anchored_best_response`."""

    game: Game
    step_size: Array
    rate: Array
    inner: int = eqx.field(static=True)
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Play:
        at = _begin(position)
        return Play(at, at, jnp.zeros((), jnp.int32))

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        at = Players(*position)
        ahead = jax.tree.map(lambda z: jax.ShapeDtypeStruct((self.inner, *z.shape), z.dtype), at)
        each = jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape[:1], z.dtype), at)
        return normal(key, 0, ahead, lanes), uniform(key, 1, each, lanes)

    def move(self, state: Play, noise: PyTree) -> tuple[Play, Info]:
        xis, chance = noise
        anchor = state.position
        mu, nu = Particles(anchor.x), Particles(anchor.y)

        def respond(at, xi):
            return self._langevin(at, self.game.drift(at, self.game.gradients(at, mu, nu)), xi), None

        response, _ = lax.scan(respond, state.memory, xis)
        swap = lambda u, new, old: jnp.where((u < self.rate)[:, None], new, old)
        new = jax.tree.map(swap, chance, response, anchor)
        return Play(new, response, state.step + 1), _accepted(new)


def anchored_best_response(game: Game, step_size: Scalar, rate: Scalar = 0.1, inner: int = 20) -> AnchoredBestResponse:
    r"""Mean-field Langevin anchored best response (MFL-ABR): measures move towards their best responses,

    $$\mu_{k+1} = (1 - \beta)\mu_k + \beta \hat\mu_k, \qquad
      \hat\mu_k \propto \exp\bigl(-\tfrac{1}{T_x} \delta_\mu L(\mu_k, \nu_k, \cdot) - r_x\bigr),$$

    and $\nu$ likewise. The responses are followed by `inner` Langevin steps against the held measures, from where they
    were; every particle is then replaced by its response with probability $\beta$ = `rate`.
    **Cost.** `inner` gradients of L a move. **See** Kim et al. (2024), algorithm 2.
    """
    h, rate = check.number(step_size, "step_size", above=0), check.number(rate, "rate", above=0, most=1)
    return AnchoredBestResponse(game, h, rate, check.count(inner, "inner"))
