"""Samplers: the probability-flow ODE and the family of SDEs with the same marginals."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.program import program
from physml.core.types import Field, Key, Scalar
from physml.integrate import AbstractMethod, Diffrax, Dynamics, Heun, ensemble, integrate

Epsilon = Scalar | Callable[[Any], Any]


def sample(
    field: Field,
    x0: Array,
    *,
    steps: int,
    args: PyTree = None,
    method: AbstractMethod | Diffrax | None = None,
) -> Array:
    r"""Carry one source sample to t = 1 by the probability-flow ODE $\dot x = v(t, x)$.

    **Arguments.** `field`: the velocity. `x0`: the state at t = 0, `path.start(x0)` of a source sample. `steps`:
    equal steps of `method`, by default Heun's (order 2, two evaluations each). **Returns** the state at t = 1.
    Batches by `jax.vmap`. **Errors** as `integrate`.
    """
    check.function(field, "field", "(t, x, args)")
    grid = _grid(steps, x0)
    return _last(integrate(Dynamics(field), x0, grid, args=args, method=method or Heun(), save_every=steps).xs)


def sample_sde(
    velocity: Field,
    score: Field,
    x0: Array,
    *,
    epsilon: Epsilon,
    steps: int,
    key: Key,
    args: PyTree = None,
    method: AbstractMethod | None = None,
) -> Array:
    r"""Carry one source sample to t = 1 by $dx = [v + \epsilon s]\,dt + \sqrt{2\epsilon}\,dW$.

    The marginals are those of the ODE for every $\epsilon(t) \ge 0$ when v and s are exact; noise forgets the errors
    of earlier steps. **Arguments.** `epsilon`: a number or a function of t; let it decay towards t = 1 where the
    score is steep. `steps`: equal steps of `method`, by default Euler and Maruyama's. Else as `sample`.

    **See** Albergo, Boffi and Vanden-Eijnden (2023), eq. 2.33.
    """
    grid = _grid(steps, x0)
    dynamics = _sde(velocity, score, epsilon, grid)
    return _last(integrate(dynamics, x0, grid, key=key, args=args, method=method, save_every=steps).xs)


def sample_sde_batch(
    velocity: Field,
    score: Field,
    x0: Array,
    *,
    epsilon: Epsilon,
    steps: int,
    key: Key,
    args: PyTree = None,
    method: AbstractMethod | None = None,
) -> Array:
    """As `sample_sde` for a batch x0 (n, ...) with one key, sample c seeing the noise of lane c.

    `args` is shared by the batch; for a condition per sample put it into the state or vmap `sample_sde`.
    """
    grid = _grid(steps, x0)
    dynamics = _sde(velocity, score, epsilon, grid)
    return _last(ensemble(dynamics, x0, grid, key=key, args=args, method=method, save_every=steps).xs)


@program
def _last(xs):
    """Where the simulation ends."""
    return jax.tree.map(lambda leaf: leaf[-1], xs)


def _grid(steps: int, x0: Array) -> Array:
    steps = check.count(steps, "steps")
    if not jnp.issubdtype(jnp.result_type(x0), jnp.floating):
        raise ValueError(f"x0 must be floating point, got {jnp.result_type(x0)}")
    return jnp.asarray(np.linspace(0.0, 1.0, steps + 1, dtype=jnp.result_type(x0)))


def _sde(velocity: Field, score: Field, epsilon: Epsilon, grid: Array) -> Dynamics:
    eps = _Level(epsilon if callable(epsilon) else check.number(epsilon, "epsilon", least=0))
    if callable(epsilon):
        check.within(_levels(eps, grid), "epsilon(t)", least=0)
    return Dynamics(_Drift(velocity, score, eps), _Diffusion(eps))


# Modules, not closures: they are equal from call to call, so a program compiled once is found again.


class _Level(eqx.Module):
    epsilon: Any

    def __call__(self, t):
        return jnp.asarray(self.epsilon(t) if callable(self.epsilon) else self.epsilon).astype(t.dtype)


@program
def _levels(level, grid):
    return jax.vmap(level)(grid)


class _Drift(eqx.Module):
    velocity: Field
    score: Field
    level: _Level

    def __call__(self, t, x, args):
        e = self.level(t)
        return jax.tree.map(lambda v, s: v + e * s, self.velocity(t, x, args), self.score(t, x, args))


class _Diffusion(eqx.Module):
    level: _Level

    def __call__(self, t, x, args):
        # Additive noise: an epsilon that reaches zero at t = 1 must not put an infinite slope into a gradient.
        return _root(2.0 * self.level(t))


def _root(x: Array) -> Array:
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
