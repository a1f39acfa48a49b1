"""What is known of a game on grids: its mixed equilibrium, and how far a pair of laws is from one."""

from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.float64 import in_float64
from physml.core.program import program
from physml.core.types import Scalar
from physml.particles.kernels.game import Game
from physml.particles.pairs.measure import Histogram, Particles


def exploitability(game: Game, mu: Histogram, nu: Histogram) -> Array:
    r"""Nikaido and Isoda's error of a pair of laws, for an objective that is linear in each of them:

    $$\mathrm{NI}(\mu, \nu) = \max_{\nu'} L_T(\mu, \nu') - \min_{\mu'} L_T(\mu', \nu) \ge 0,$$

    zero at the equilibrium alone; $L_T$ includes both relative entropies. The optima are Gibbs laws, so

    $$\min_{\mu'} = -T_x \ln \sum e^{-\delta_\mu L/T_x - r_x} + \dots$$

    **Arguments.** Laws as `Histogram` on grids of points (K, d), the same grids for every law compared: the sums run
    over the grid. **Returns** NI (energy), computed in float64.
    """
    return _exploitability(game, mu.points, mu.p, nu.points, nu.p)


@in_float64
@program
def _exploitability(game, x, p, y, q):
    tx, ty = game.temperature_x, game.temperature_y
    mu, nu = Particles(x, p), Particles(y, q)
    payoff_x = jax.grad(lambda w: game.objective(Particles(x, w), nu))(p)
    payoff_y = jax.grad(lambda w: game.objective(mu, Particles(y, w)))(q)
    reference_x, reference_y = -jax.vmap(game.confine_x)(x), -jax.vmap(game.confine_y)(y)
    entropy = lambda w, reference: jnp.sum(jax.scipy.special.xlogy(w, w) - w * reference)
    # L is linear in each measure, so L(mu', nu) is the sum of mu' times the payoff.
    best_y = ty * jax.nn.logsumexp(payoff_y / ty + reference_y) + tx * entropy(p, reference_x)
    best_x = -tx * jax.nn.logsumexp(-payoff_x / tx + reference_x) - ty * entropy(q, reference_y)
    return best_y - best_x


class Equilibrium(Checked):
    """Both laws on their grids, `mu` and `nu`; what the best responses differ from them by (`residual`), after `steps`.

    Unpacks as `mu, nu = equilibrium`. `status`: `not_converged`, or `diverged` for a residual that is not finite.
    """

    computation: ClassVar[str] = "gibbs_equilibrium"
    counted: ClassVar[str] = "iteration"

    mu: Histogram
    nu: Histogram
    residual: Array
    steps: Array
    status: Status

    def __iter__(self) -> Iterator[Histogram]:
        return iter((self.mu, self.nu))


def gibbs_equilibrium(
    game: Game, x: Array, y: Array, *, damping: Scalar = 0.2, tol: Scalar = 1e-10, max_steps: int = 5000
) -> Equilibrium:
    r"""The mixed equilibrium on two grids of points: damped iteration of the Gibbs laws of the best responses.

    - `x` (K, d), `y` (M, d'): the grids.
    - `damping`: in (0, 1], the part of the way to the best responses that each iteration goes.
    - `tol`: on the sum of the absolute changes of all probabilities.

    **Returns** `Equilibrium(mu, nu, residual, steps, status)`, computed in float64.
    """
    check.instance(game, "game", Game, "a Game(objective, confine_x, confine_y, temperature)")
    check.within(damping, "damping", above=0, most=1)
    check.within(tol, "tol", least=0)
    max_steps = check.count(max_steps, "max_steps")
    p, q, residual, steps = _iterate(game, x, y, damping, tol, max_steps)
    failed = jnp.where(jnp.isfinite(residual), Code.not_converged, Code.diverged)
    code = jnp.where(residual <= tol, Code.ok, failed)
    laws = {"mu": Histogram(p, x), "nu": Histogram(q, y)}
    return Equilibrium(**laws, residual=residual, steps=steps, status=status(code, steps))


@in_float64
@program
def _iterate(game, x, y, damping, tol, max_steps):
    reference_x, reference_y = -jax.vmap(game.confine_x)(x), -jax.vmap(game.confine_y)(y)

    def step(carry):
        lp, lq, _, k = carry
        p, q = jax.nn.softmax(lp), jax.nn.softmax(lq)
        mu, nu = Particles(x, p), Particles(y, q)
        payoff_x = jax.grad(lambda w: game.objective(Particles(x, w), nu))(p)
        payoff_y = jax.grad(lambda w: game.objective(mu, Particles(y, w)))(q)
        to_p = jax.nn.log_softmax(-payoff_x / game.temperature_x + reference_x)
        to_q = jax.nn.log_softmax(payoff_y / game.temperature_y + reference_y)
        change = jnp.sum(jnp.abs(jnp.exp(to_p) - p)) + jnp.sum(jnp.abs(jnp.exp(to_q) - q))
        mix = lambda old, new: jax.nn.log_softmax(old + damping * (new - old))
        return mix(lp, to_p), mix(lq, to_q), change, k + 1

    start = jax.nn.log_softmax(reference_x), jax.nn.log_softmax(reference_y), jnp.asarray(jnp.inf), jnp.asarray(0)
    lp, lq, change, steps = lax.while_loop(lambda c: (c[2] > tol) & (c[3] < max_steps), step, start)
    return jnp.exp(lp), jnp.exp(lq), change, steps
