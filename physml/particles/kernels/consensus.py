r"""Consensus-based optimisation: particles drift to a weighted mean and diffuse by their distance from it.

$$v_\alpha = \frac{\sum_i x_i e^{-\alpha f(x_i)}}{\sum_i e^{-\alpha f(x_i)}}, \qquad
  dx_i = -\lambda (x_i - v_\alpha)\,dt + \sigma D(x_i - v_\alpha)\,dW_i,$$

$D(u) = |u|$ (isotropic) or $\mathrm{diag}(u)$ (anisotropic). No gradient of f is used; in the limit of large alpha and
$\lambda h = 1$ the consensus point performs a stochastic gradient descent on the envelope of f.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.noise import normal, uniform
from physml.core.program import program
from physml.core.types import Key, Scalar
from physml.particles.kernels.base import AbstractKernel, Info, check_position


class Swarm(NamedTuple):
    """Positions (N, d), their energies (N,), the best points seen with theirs, and the consensus point (d,)."""

    position: Array
    best: Array
    best_energy: Array
    consensus: Array


class Consensus(AbstractKernel):
    """See `consensus`."""

    energy: Callable
    step_size: Array
    alpha: Array
    drift: Array
    diffusion: Array
    memory: Array
    truncation: Array
    anisotropic: bool = eqx.field(static=True)
    batch: int | None = eqx.field(static=True)
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: Array, rng_key: Key | None = None) -> Swarm:
        check_position(position)
        x = jnp.asarray(position)
        if x.ndim - self.lanes != 2:
            raise ValueError(f"consensus needs positions (N, d), got {x.shape[: x.ndim - self.lanes]}")
        n = x.shape[0]
        if self.batch is not None:
            check.count(self.batch, "batch", most=n)
        start = jax.vmap(self._start, -1, -1) if self.lanes else self._start
        return start(x)

    def _start(self, x):
        energies = jax.vmap(self.energy)(x)
        if energies.ndim != 1:
            raise ValueError(f"energy must return a scalar for each particle, got shape {energies.shape[1:]}")
        return Swarm(x, x, energies, consensus_point(x, energies, self.alpha))

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        n, dtype = position.shape[0], position.dtype
        order = None if self.batch is None else uniform(key, 1, jax.ShapeDtypeStruct((n,), dtype), lanes)
        return normal(key, 0, position, lanes), order

    def move(self, state: Swarm, noise: PyTree) -> tuple[Swarm, Info]:
        new = (jax.vmap(self._move, -1, -1) if self.lanes else self._move)(state, noise)
        x = new.position
        return new, Info(jnp.ones(x.shape[x.ndim - self.lanes :], x.dtype))

    def _move(self, state, noise):
        (x, best, best_energy, _), (xi, order) = state, noise
        h = self.step_size
        seen, energies = x, jax.vmap(self.energy)(x)
        if self.batch is not None:
            rows = jnp.argsort(order)[: self.batch]
            seen, energies = x[rows], energies[rows]
        point = consensus_point(seen, energies, self.alpha)
        away = x - point[None, :]
        size = jnp.abs(away) if self.anisotropic else jnp.linalg.norm(away, axis=1, keepdims=True)
        spread = jnp.minimum(size, self.truncation)
        x = x - self.drift * h * away + self.diffusion * jnp.sqrt(h) * spread * xi
        x = x - self.memory * h * (state.position - best)
        values = jax.vmap(self.energy)(x)
        better = values < best_energy
        best = jnp.where(better[:, None], x, best)
        return Swarm(x, best, jnp.where(better, values, best_energy), point)


@program
def consensus_point(x: Array, energies: Array, alpha: Scalar) -> Array:
    r"""$v_\alpha = \sum_i x_i e^{-\alpha f_i}/\sum_i e^{-\alpha f_i}$, (d,): x (N, d), energies (N,).

    Energies that are not finite carry no weight. **See** Pinnau, Totzeck, Tse and Martin (2017), eq. 1.2.
    """
    log_w = jnp.where(jnp.isfinite(energies), -jnp.asarray(alpha, x.dtype) * energies, -jnp.inf)
    return jax.nn.softmax(log_w) @ x


def consensus(
    energy: Callable,
    step_size: Scalar = 0.01,
    alpha: Scalar = 1e3,
    drift: Scalar = 1.0,
    diffusion: Scalar = 0.7,
    *,
    noise: str = "anisotropic",
    batch: int | None = None,
    memory: Scalar = 0.0,
    truncation: Scalar = float("inf"),
) -> Consensus:
    r"""Consensus-based optimisation of an energy over R^d, by N particles.

    $$x_i' = x_i - \lambda h (x_i - v) - \kappa h (x_i - y_i) + \sigma \sqrt h\,\min(D(x_i - v), M)\,\xi_i$$

    with v the consensus point and $y_i$ the best point particle i has seen.

    **Arguments.** `energy`: `x -> scalar` of one particle (d,). `step_size`: h > 0. `alpha`: > 0. `drift`: $\lambda$.
    `diffusion`: $\sigma$. `noise`: D. `batch`: v from that many random particles. `memory`: $\kappa \ge 0$.
    `truncation`: M, a bound on the noise that keeps moments of the swarm finite.
    **State.** `position` (N, d), `consensus` (d,), `best`, `best_energy`: report the consensus point; the best point
    ever seen by N particles in many steps is found by any random search.
    **Cost.** Two energies a particle. **Errors.** `ValueError` for parameters below zero, positions that are not (N,
    d). See `mean_square_rate` for whether the swarm contracts. **See** Pinnau et al. (2017); Carrillo, Jin, Li and Zhu
    (2021) for anisotropic noise and batches; Riedl, Klock, Geldhauser and Fornasier (2023) for the descent it performs.
    """
    check.choice(noise, "noise", ("isotropic", "anisotropic"))
    check.function(energy, "energy", "of the position of one particle")
    return Consensus(
        energy,
        check.number(step_size, "step_size", above=0),
        check.number(alpha, "alpha", above=0),
        check.number(drift, "drift", above=0),
        check.number(diffusion, "diffusion", least=0),
        check.number(memory, "memory", least=0),
        check.number(truncation, "truncation", above=0, finite=False),
        noise == "anisotropic",
        batch,
    )


def mean_square_rate(kernel: Consensus, dim: int) -> Array:
    r"""Growth of $E|x - v|^2$ over one step at fixed v, $(1 - \lambda h)^2 + \sigma^2 h \kappa$: below 1 it contracts.

    $\kappa$ = d for isotropic noise, 1 for anisotropic. For small h that is the condition $2\lambda > \sigma^2 \kappa$.
    A discrete swarm can look stable on one side and not be on the other: $\lambda h$ near 1 contracts by itself.
    """
    h = kernel.step_size
    kappa = 1 if kernel.anisotropic else dim
    return (1 - kernel.drift * h) ** 2 + kernel.diffusion**2 * h * kappa
