r"""Mirror Langevin: dynamics in the coordinates $y = \nabla\varphi(x)$ of a Legendre function on its own domain.

With $\varphi'' = \nabla^2 \varphi$ both diffusions below leave $e^{-E/T}$ on the domain of $\varphi$ invariant:

| scheme | one step, $\xi \sim N(0, I)$, then $x' = \nabla\varphi^*(y')$ |
|---|---|
| `riemannian` | $y' = y - h\nabla E(x) + \sqrt{2Th\,\varphi''(x)}\,\xi$ |
| `dual` | $y' = y - h\nabla_y\bigl[E(x) + T \ln\det\varphi''(x)\bigr] + \sqrt{2Th}\,\xi,\quad x = \nabla\varphi^*(y)$ |

The Legendre functions of `physml.particles.energies.legendre` act entry by entry and their duals are all of R^d, so
that no step is lost.

**See** Zhang, Peyre, Fadili and Pereyra (2020) for `riemannian`; Hsieh, Kavis, Rolland and Cevher (2018) for `dual`;
Lau and Liu, Bregman proximal Langevin Monte Carlo via Bregman-Moreau envelopes (2022).
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.types import Energy, Key, Scalar
from physml.particles.energies.legendre import AbstractLegendre, bregman_envelope, curvature
from physml.particles.energies.nonsmooth import AbstractNonsmooth
from physml.particles.kernels.base import (
    AbstractKernel,
    Info,
    accepted,
    check_energy,
    check_position,
    check_start,
    gradient,
    normals,
    plus,
    scaled,
    value_and_gradient,
)

Scheme = Literal["riemannian", "dual"]


class Mirrored(NamedTuple):
    """A position and its dual coordinates, which keep their digits near the edge of the domain."""

    position: Array
    dual: Array


class Mirror(AbstractKernel):
    """See `mirror` and `bregman_proximal`."""

    energy: Energy | None
    legendre: AbstractLegendre
    step_size: Array
    temperature: Array
    scheme: Scheme = eqx.field(static=True)
    nonsmooth: AbstractNonsmooth | None = None
    smoothing: Array | None = None
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: Array, rng_key: Key | None = None) -> Mirrored:
        check_position(position)
        dual = self._map(self.legendre.dual, position)
        largest = jnp.max(jnp.abs(dual), axis=tuple(range(dual.ndim - self.lanes)))
        largest = jnp.where(jnp.isnan(dual).any(tuple(range(dual.ndim - self.lanes))), jnp.nan, largest)
        check_start(largest, f"the start lies outside the domain of {type(self.legendre).__name__}{{}}")
        if self.energy is not None:
            check_energy(self.energy, position, self.lanes)
            check_start(value_and_gradient(self.energy, position, self.lanes)[0])
        if self.nonsmooth is not None:
            check_energy(self.nonsmooth, position, self.lanes)
        return Mirrored(position, dual)

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        return normals(key, position, lanes)

    def move(self, state: Mirrored, noise: Array) -> tuple[Mirrored, Info]:
        x, y, h = state.position, state.dual, self.step_size
        kick = scaled(jnp.sqrt(2 * self.temperature * h), noise)
        if self.scheme == "dual":
            y = plus(y, scaled(-h, gradient(self._dual_energy, y, self.lanes)), kick)
        else:
            bend = self._map(lambda x: curvature(self.legendre, x), x)
            y = plus(y, scaled(-h, self._force(x, bend)), jnp.sqrt(bend) * kick)
        return Mirrored(self._map(self.legendre.primal, y), y), accepted(noise, self.lanes)

    def _map(self, f, x):
        return f(x) if self.lanes == 0 else jax.vmap(f, -1, -1)(x)

    def _force(self, x, bend):
        force = jnp.zeros_like(x) if self.energy is None else gradient(self.energy, x, self.lanes)
        g, smoothing = self.nonsmooth, self.smoothing
        if g is None or smoothing is None:
            return force
        near = self._map(lambda x: g.prox(x, smoothing), x)
        return force + bend * scaled(1 / smoothing, x - near)

    def _dual_energy(self, y):
        x = self.legendre.primal(y)
        volume = jnp.sum(jnp.log(curvature(self.legendre, x)))
        value = jnp.asarray(0.0, x.dtype) if self.energy is None else self.energy(x)
        if self.nonsmooth is not None and self.smoothing is not None:
            value = value + bregman_envelope(self.nonsmooth, x, self.smoothing, self.legendre)
        return value + self.temperature.astype(volume.dtype) * volume


def mirror(
    energy: Energy,
    step_size: Scalar,
    legendre: AbstractLegendre,
    temperature: Scalar = 1.0,
    *,
    scheme: Scheme = "riemannian",
) -> Mirror:
    r"""Mirror Langevin on the domain of a Legendre function, which no step leaves:

    $$y' = \nabla\varphi(x) - h\,\nabla E(x) + \sqrt{2Th\,\varphi''(x)}\,\xi, \qquad x' = \nabla\varphi^*(y').$$

    Biased at first order in h; for `Quadratic(m)` the step is that of `overdamped` with $P = 1/m$.

    **Arguments.** `energy`: `x -> scalar`, x one array. `step_size`: h > 0. `legendre`: such as `Entropy()`.
    `temperature`: T >= 0. `scheme`: `riemannian`, or `dual`, whose noise does not depend on x.
    **Cost.** One gradient, and one map back; `dual` also differentiates the map.
    **Errors.** `ValueError` for a start outside the domain, and as in `overdamped`.
    """
    _check_legendre(legendre)
    T = check.number(temperature, "temperature", least=0)
    h = check.number(step_size, "step_size", above=0)
    return Mirror(energy=energy, legendre=legendre, step_size=h, temperature=T, scheme=_checked(scheme))


def bregman_proximal(
    smooth: Energy | None,
    nonsmooth: AbstractNonsmooth,
    step_size: Scalar,
    smoothing: Scalar,
    legendre: AbstractLegendre,
    temperature: Scalar = 1.0,
    *,
    scheme: Scheme = "riemannian",
) -> Mirror:
    r"""Mirror Langevin for $e^{-(f + g_\lambda)/T}$ with the left Bregman-Moreau envelope $g_\lambda$ of a nonsmooth g:

    $$y' = \nabla\varphi(x) - h\,\nabla f(x) - \tfrac h\lambda \varphi''(x)\,(x - z) + \sqrt{2Th\,\varphi''(x)}\,\xi,
    \qquad z = \arg\min_z\, g(z) + \tfrac1\lambda D_\varphi(z, x).$$

    For `Quadratic(1)` it is the MYULA of `proximal`.

    **Arguments** of `mirror` and `proximal`; `nonsmooth.prox` is the left Bregman operator, see `bregman_envelope`.
    """
    T = check.number(temperature, "temperature", least=0)
    h, lam = check.number(step_size, "step_size", above=0), check.number(smoothing, "smoothing", above=0)
    check.instance(nonsmooth, "nonsmooth", AbstractNonsmooth, "an AbstractNonsmooth such as BregmanL1(...)")
    _check_legendre(legendre)
    parts = {"energy": smooth, "nonsmooth": nonsmooth, "smoothing": lam, "legendre": legendre}
    return Mirror(**parts, step_size=h, temperature=T, scheme=_checked(scheme))


def _check_legendre(legendre):
    check.instance(legendre, "legendre", AbstractLegendre, "a Legendre function such as Entropy()")


def _checked(scheme):
    check.choice(scheme, "scheme", ("riemannian", "dual"))
    return scheme
