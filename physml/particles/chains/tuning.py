"""The loop of `tune`: moves of many chains, what each teaches, and what is made of a window of them."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from physml.core.program import program
from physml.core.tree import flat
from physml.particles.chains import adaptation
from physml.particles.chains.adaptation import Average, Moments
from physml.particles.chains.run import begin as start_chains
from physml.particles.kernels.base import choose
from physml.particles.kernels.langevin import Overdamped
from physml.particles.kernels.precondition import Preconditioner, push


class TuningHistory(NamedTuple):
    """Step by step, (steps,): `step_size`; `acceptance`, pooled; `length` of trajectories, of the memory of a direction
    or 1/friction, NaN for kernels without; `gradients` taken so far by one chain. NaN after an early stop."""

    step_size: Float[Array, " steps"]
    acceptance: Float[Array, " steps"]
    length: Float[Array, " steps"]
    gradients: Float[Array, " steps"]


class Window(NamedTuple):
    """The moves from `begin` to `end`: of the last two thirds the pooled `moments`, and the sums of each chain's
    positions and of their squares (d, chains); of the last half the sum of acceptances, or of errors in energy.
    `recent`: the acceptance of each chain over its last ten moves or so."""

    begin: Array
    end: Array
    moments: Moments
    sums: tuple[Array, Array]
    seen: Array
    recent: Array

    def next(self, end: Array) -> "Window":
        """The one that follows, with nothing in it."""
        empty = jax.tree.map(jnp.zeros_like, self)
        return empty._replace(begin=self.end, end=end, recent=jnp.ones_like(self.recent))

    @property
    def r_hat(self) -> Array:
        """The largest of all entries."""
        draws = self.moments.count / self.sums[0].shape[1]
        mean = self.sums[0] / draws
        within = jnp.mean(self.sums[1] / draws - mean**2, 1)
        return jnp.max(jnp.sqrt(1 + jnp.var(mean, 1) / jnp.maximum(within, jnp.finfo(within.dtype).tiny)))


class Tuning(NamedTuple):
    """All that is known after k steps: `mean` is that of the window before, `finish` the step to stop at."""

    state: PyTree
    step: Average
    length: Average
    scale: Preconditioner
    window: Window
    mean: Array
    r_hat: Array
    k: Array
    finish: Array
    settled: Array
    history: TuningHistory


def _first_window(chains):
    return int(np.clip(-(-256 // chains), 16, 100))


def _tail(budget):
    """Steps at the end in which only the step size is learned."""
    return max(10, min(50, budget // 5))


def with_numbers(kernel, h, length, scale, metric):
    """The kernel with these numbers, of which it takes those that it has."""
    numbers = {"step_size": h} | ({} if metric == "none" else {"scale": scale})
    if hasattr(kernel, "friction"):
        numbers["friction"] = 1 / length
    elif hasattr(kernel, "length"):
        numbers["length"] = length
    return dataclasses.replace(kernel, **numbers)


def _follows(kernel):
    """Whether its moves are trajectories, of a length to be learned."""
    return kernel.rejects and hasattr(kernel, "length")


@program
def begin(kernel, x0s, key, lanes, steps, budget, metric):
    """Nothing learned yet, and the energies of the start; a history of `steps`, of which `budget` are to be used."""
    state, energies = start_chains(kernel, x0s, key, lanes)
    x = flat(state.position, 1)
    number = lambda value: jnp.asarray(value, x.dtype)
    length = getattr(kernel, "length", 1 / number(getattr(kernel, "friction", np.nan)))
    none, moments = jnp.int32(0), Moments.begin(x, len(x) <= adaptation.DENSE)
    end = jnp.int32(min(_first_window(x.shape[1]), budget - _tail(budget)))
    empty = jnp.full(steps, np.nan, x.dtype)
    scale, given = adaptation.identity(x, metric), kernel.scale
    if isinstance(given, Preconditioner) and given.vectors.shape == scale.vectors.shape:
        scale = jax.tree.map(number, given)
    tuning = Tuning(
        state=state,
        step=Average.begin(number(kernel.step_size)),
        length=Average.begin(number(length)),
        scale=scale,
        window=Window(none, end, moments, (jnp.zeros_like(x), jnp.zeros_like(x)), number(0), jnp.ones_like(x[0])),
        mean=jnp.full(len(x), np.inf, x.dtype),
        r_hat=number(np.nan),
        k=none,
        finish=jnp.int32(budget),
        settled=jnp.bool_(False),
        history=TuningHistory(empty, empty, empty, empty),
    )
    return tuning, energies


@program
def hand_over(kernel, tuning, bias, steps, metric):
    """What HMC has learned, for a kernel that rejects nothing, with the step that a standard Gaussian asks for."""
    d, root = len(tuning.mean), 2 * jnp.sqrt(bias)
    if isinstance(kernel, Overdamped):
        h, length = 2 * bias, 1.0
    else:
        length = 1.0 if hasattr(kernel, "friction") else d**0.5
        h = root * length
    number = lambda value: jnp.asarray(value, tuning.mean.dtype)
    kernel = with_numbers(kernel, number(h), number(length), tuning.scale, metric)
    k, chains = tuning.k, tuning.window.sums[0].shape[1]
    return tuning._replace(
        state=kernel.init(tuning.state.position),
        step=Average.begin(number(h)),
        length=Average.begin(number(length)),
        window=tuning.window._replace(end=k).next(jnp.minimum(k + _first_window(chains), steps - _tail(steps))),
        finish=jnp.int32(steps),
        settled=jnp.bool_(False),
    )


@program
def go_on(kernel, tuning, key, lanes, target, bound, budget, metric, most):
    """Moves until step `bound`, or until two windows agree."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[:-1], x.dtype), tuning.state.position)

    def step(tuning):
        tuning = _move(kernel, tuning, key, lanes, target, one, metric, most)
        renew = lambda t: _renew(kernel, t, target, budget, metric)
        return lax.cond(tuning.k == tuning.window.end, renew, lambda t: t, tuning)

    return lax.while_loop(lambda t: (t.k < bound) & (t.k < t.finish), step, tuning)


def _move(kernel, tuning, key, lanes, target, one, metric, most):
    """One move of all chains, and what it teaches."""
    k, window = tuning.k, tuning.window
    h, length = jnp.exp(tuning.step.now), jnp.exp(tuning.length.now)
    now = with_numbers(kernel, h, length, tuning.scale, metric)
    new, _, attempt = now.attempt(tuning.state, kernel.draw(jax.random.fold_in(key, k), one, lanes))
    before, error = flat(tuning.state.position, 1), attempt.log_ratio
    rates = adaptation.acceptance(error)
    rate, recent = jnp.mean(rates), 0.9 * window.recent + 0.1 * rates
    square = adaptation.square_error(error, attempt.energy, len(before))
    if kernel.rejects:
        # No chain is left behind on the way down: where one hardly moves, the mean of the others does not count.
        # Later quarter steps lead back from what is rare.
        early = window.end <= 7 * _first_window(before.shape[1])
        step = tuning.step.dual(target - jnp.where(early, jnp.minimum(rate, 2 * jnp.min(recent)), rate))
    else:
        step = tuning.step.dual(adaptation.too_large(square, target))
        # A step that leaves the finite numbers, or nearly so, is not made.
        new = choose(jnp.abs(error) < 1e3 * len(before), new, tuning.state)
    state = jax.tree.map(lambda a, b: a.astype(b.dtype), new, tuning.state)

    ahead = tuning.length
    if _follows(kernel):
        y, velocity, white = flat(attempt.position, 1), attempt.velocity, tuning.scale.whiten
        if metric == "none":
            white, velocity = (lambda v: v), push(kernel.scale, velocity, 1)
        slope = adaptation.length_slope(white(before), white(y), flat(velocity, 1), attempt.duration, error)
        # In the first windows nothing is known yet that would be worth long trajectories.
        longest = jnp.minimum(8 * window.end // _first_window(before.shape[1]), most // 2)
        ahead = tuning.length.ascend(slope, h * longest.astype(h.dtype))

    x, place = flat(state.position, 1), (k - window.begin) / (window.end - window.begin)
    add = lambda m, s: (m.plus(x, 1.5 * place - 0.5), (s[0] + x, s[1] + x**2))
    moments, sums = lax.cond(place >= 1 / 3, add, lambda *same: same, window.moments, window.sums)
    seen = window.seen + jnp.where(place >= 0.5, rate if kernel.rejects else square, 0)
    past = jnp.where(k > 0, tuning.history.gradients[k - 1], 0)
    row = TuningHistory(h, rate, length, past + jnp.mean(attempt.gradients))
    return tuning._replace(
        state=state,
        step=step,
        length=ahead,
        window=window._replace(moments=moments, sums=sums, seen=seen, recent=recent),
        k=k + 1,
        history=jax.tree.map(lambda a, v: a.at[k].set(v.astype(a.dtype)), tuning.history, row),
    )


def _renew(kernel, tuning, target, budget, metric):
    """The end of a window: a new preconditioner, and whether it was needed."""
    window, d = tuning.window, len(tuning.mean)
    moments, length_of = window.moments, window.end - window.begin
    narrow, wide, shift = adaptation.departure(moments, tuning.scale, tuning.mean)
    reached = 2 * window.seen / length_of.astype(window.seen.dtype)
    aimed = jnp.abs(reached - target) < 0.1 if kernel.rejects else jnp.abs(jnp.log(reached / target)) < np.log(4)
    if metric == "none":
        scale, narrow, wide = tuning.scale, jnp.ones_like(narrow), jnp.ones_like(wide)
        widest = _widest(moments) if kernel.scale is None else jnp.ones_like(wide)
    else:
        scale, widest = adaptation.preconditioner(moments, metric)
    r_hat = window.r_hat
    settled = aimed & (narrow > 1 / 1.5) & (wide < 1.5) & (shift < 0.5) & (r_hat < 1.3)

    # In the new coordinates the narrowest direction, which bounds the step, and the widest are as wide as any.
    h = jnp.exp(tuning.step.average) / jnp.clip(narrow, 1e-3, 1e3)
    if _follows(kernel):
        length = jnp.maximum(jnp.exp(tuning.length.average) / jnp.clip(wide, 1e-3, 1e3), h)
    else:
        length = jnp.sqrt(widest) * (1.0 if hasattr(kernel, "friction") else d**0.5)

    # The next window is twice as long; one that would leave no room for another takes all that is left.
    tail, last = _tail(budget), budget - _tail(budget)
    end = window.end + 2 * length_of
    end = jnp.where(end + 2 * length_of > last, last, end)
    end = jnp.where(settled | (window.end >= last), budget + 1, end)
    return tuning._replace(
        step=Average.begin(h),
        length=Average.begin(length),
        scale=scale,
        window=window.next(end),
        mean=moments.mean,
        r_hat=r_hat,
        finish=jnp.where(settled, jnp.minimum(window.end + tail, budget), tuning.finish),
        settled=settled,
    )


def _widest(moments):
    """The largest variance of the draws themselves."""
    covariance = moments.covariance
    return jnp.linalg.eigvalsh(covariance)[-1] if covariance.ndim == 2 else jnp.max(covariance)
