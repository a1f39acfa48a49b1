r"""Mean-field Langevin dynamics: particles that minimise a functional of their own law,

$$\mathcal F(\mu) = F(\mu) + T \int \mu \ln \mu, \qquad
  dX = -\nabla \frac{\delta F}{\delta\mu}(\mu_t, X)\,dt + \sqrt{2T}\,dW, \qquad \mu_t = \mathrm{law}(X).$$

With N particles $F(\mu_X)$ is a function of X, and
$\nabla_{x_i} [N F(\mu_X)] = \nabla \frac{\delta F}{\delta\mu}(\mu_X, x_i)$: the N-particle system is ordinary Langevin
dynamics of the energy $N F(\mu_X)$, so every kernel of this room serves.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.program import program
from physml.core.types import Key, Scalar
from physml.particles.kernels.base import (
    AbstractKernel,
    Info,
    Position,
    check_position,
    normals as _normals,
    plus,
    scaled,
)
from physml.particles.kernels.langevin import Overdamped, overdamped
from physml.particles.kernels.underdamped import Underdamped, underdamped
from physml.particles.pairs.measure import AbstractMeasure, Particles

Functional = Callable[[AbstractMeasure], Any]


class ParticleEnergy(eqx.Module):
    r"""$E(X) = N F(\mu_X)$ of positions (N, d): the energy whose Langevin dynamics is the mean-field one."""

    functional: Functional

    def __call__(self, x: Array) -> Array:
        return len(x) * self.functional(Particles(x))


def first_variation(functional: Functional, measure: AbstractMeasure) -> Callable[[Array], Array]:
    r"""$\frac{\delta F}{\delta\mu}(\mu, x) = \frac{d}{d\epsilon} F((1 - \epsilon)\mu + \epsilon\,\delta_x)$ at 0,
    whose average over $\mu$ is zero, as a function of one point x (d,).

    **Arguments.** `functional`: measure -> scalar; it sees a `Particles` on the nodes of `measure` and one more.
    **Cost.** One evaluation with its derivative for each x.
    """
    return _Variation(functional, *measure.nodes())


class _Variation(eqx.Module):
    functional: Functional
    points: Array
    weights: Array

    def __call__(self, x: Array) -> Array:
        return _variation(self.functional, self.points, self.weights, x)


@program
def _variation(functional, points, weights, x):
    support = jnp.concatenate([points, x[None, :].astype(points.dtype)])
    along = lambda epsilon: functional(Particles(support, jnp.append((1 - epsilon) * weights, epsilon)))
    return jax.jvp(along, (jnp.zeros((), points.dtype),), (jnp.ones((), points.dtype),))[1]


def mean_field_langevin(functional: Functional, step_size: Scalar, temperature: Scalar) -> Overdamped:
    r"""Mean-field Langevin dynamics of N particles: `overdamped` for the energy $N F(\mu_X)$.

    $$x_i' = x_i - h\,\nabla \frac{\delta F}{\delta\mu}(\mu_X, x_i) + \sqrt{2Th}\,\xi_i$$

    **Arguments.** `functional`: measure -> scalar, of a `Particles` here; write it with `measure.expect(f)` and the
    same functional takes a `Gaussian`. `step_size`: h > 0. `temperature`: T >= 0, the weight of the entropy.
    **State.** positions (N, d): `run(kernel, x0, ...)` with x0 (N, d). **Cost.** One gradient of the functional.
    **Errors** as in `overdamped`. **See** Hu, Ren, Siska and Szpruch (2021); Nitanda, Wu and Suzuki (2022), eq. 5.

    **Example.**
    ```python
    functional = lambda measure: jnp.sum(measure.expect(lambda x: x) ** 2) + measure.expect(lambda x: jnp.sum(x**2))
    kernel = mean_field_langevin(functional, step_size=0.01, temperature=0.1)
    ```
    """
    return overdamped(ParticleEnergy(functional), step_size, temperature)


def underdamped_mean_field(
    functional: Functional,
    step_size: Scalar,
    friction: Scalar = 1.0,
    temperature: Scalar = 1.0,
    scheme: str = "exact",
) -> Underdamped:
    r"""Underdamped mean-field Langevin dynamics of N particles; with `exact`, the N-ULA of its spacetime
    discretisation.

    $$dx_i = p_i\,dt, \qquad
      dp_i = -\nabla \frac{\delta F}{\delta\mu}(\mu_X, x_i)\,dt - \gamma p_i\,dt + \sqrt{2\gamma T}\,dW_i$$

    For a quadratic functional positions and momenta are Gaussian and their covariance obeys a linear recursion, whose
    fixed point `stationary_covariance` gives. **Arguments, errors** as in `underdamped`.
    **See** Fu and Wilson, Mean-field underdamped Langevin dynamics and its spacetime discretization (2024), section 3.
    """
    return underdamped(ParticleEnergy(functional), step_size, friction, temperature, scheme)


class Interacting(AbstractKernel):
    """See `interacting`."""

    drift: Callable
    step_size: Array
    temperature: Array
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: Array, rng_key: Key | None = None) -> Position:
        check_position(position)
        return Position(position)

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> tuple:
        fresh = lambda lane: jax.random.fold_in(jax.random.fold_in(key, 1), lane)
        keys = jax.vmap(fresh, out_axes=-1)(lanes) if jnp.ndim(lanes) else fresh(lanes)
        return _normals(key, position, lanes), keys

    def move(self, state: Position, noise: tuple) -> tuple[Position, Info]:
        step = jax.vmap(self._one, -1, -1) if self.lanes else self._one
        x = step(state.position, *noise)
        return Position(x), Info(jnp.ones(x.shape[x.ndim - self.lanes :], x.dtype))

    def _one(self, x, xi, key):
        kick = scaled(jnp.sqrt(2 * self.temperature * self.step_size), xi)
        return plus(x, scaled(self.step_size, self.drift(x, Particles(x), key)), kick)


def interacting(drift: Callable, step_size: Scalar, temperature: Scalar = 0.0) -> Interacting:
    r"""Particles that drive each other by any drift, reciprocal or not: the Euler step of

    $$dx_i = b(x_i, \mu_X)\,dt + \sqrt{2T}\,dW_i.$$

    **Arguments.** `drift`: (x, measure, key) -> velocities, for all positions x (N, d) at once, such as
    `lambda x, measure, key: -x + force(x, measure, key=key)` with a `PairSum` or a `Feature`; the key is fresh in each
    step, for random batches. `step_size`: h > 0. `temperature`: T >= 0. **State.** positions (N, d).
    `gaussian_limit` solves the mean-field limit of linear drifts; `mean_field_langevin` is for drifts with a
    functional.
    """
    check.function(drift, "drift", "(x, measure, key)")
    return Interacting(
        drift, check.number(step_size, "step_size", above=0), check.number(temperature, "temperature", least=0)
    )
