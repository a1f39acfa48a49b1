r"""Mirror Langevin: dynamics in the coordinates $y = \nabla\varphi(x)$ of a Legendre function on its own domain.

With $\varphi'' = \nabla^2 \varphi$ both diffusions below leave $e^{-E/T}$ on the domain of $\varphi$ invariant:

| scheme | one step, $\xi \sim N(0, I)$, then $x' = \nabla\varphi^*(y')$ |
|---|---|
| `riemannian` | $y' = y - h\nabla E(x) + \sqrt{2Th\,\varphi''(x)}\,\xi$ |
| `dual` | $y' = y - h\nabla_y\bigl[E(x) + T \ln\det\varphi''(x)\bigr] + \sqrt{2Th}\,\xi,\quad x = \nabla\varphi^*(y)$ |

The Legendre functions act entry by entry and their duals are all of R^d, so that no step is lost:

| Legendre function | domain | $y$ | $\varphi''$ |
|---|---|---|---|
| `Quadratic(m)` | all | $mx$ | $m$ |
| `Entropy` | $x > 0$ | $\ln x$ | $1/x$ |
| `SimplexEntropy` | $x > 0,\ \sum x = 1$ | $\ln x$, up to a constant | $1/x$ |
| `BoxEntropy(a, b)` | $a < x < b$ | $\ln\frac{x - a}{b - x}$ | $\frac1{x - a} + \frac1{b - x}$ |
| `LogBarrier(a, b)` | $a < x < b$ | $\frac1{b - x} - \frac1{x - a}$ | $\frac1{(x - a)^2} + \frac1{(b - x)^2}$ |
| `HyperbolicEntropy(b)` | all | $\mathrm{arsinh}(x/b)$ | $1/\sqrt{x^2 + b^2}$ |

**See** Zhang, Peyre, Fadili and Pereyra (2020) for `riemannian`; Hsieh, Kavis, Rolland and Cevher (2018) for `dual`;
Lau and Liu, Bregman proximal Langevin Monte Carlo via Bregman-Moreau envelopes (2022).
"""

import abc
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.types import Energy, Key, Scalar
from physml.particles.energies.nonsmooth import AbstractNonsmooth, ordered, soft_threshold
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


class AbstractLegendre(eqx.Module):
    r"""A strictly convex $\varphi(x) = \sum_i \varphi_i(x_i)$: its value, its gradient, and the inverse of that."""

    @abc.abstractmethod
    def __call__(self, x: Array) -> Array:
        r"""$\varphi(x)$, a scalar."""

    @abc.abstractmethod
    def dual(self, x: Array) -> Array:
        r"""$\nabla\varphi(x)$."""

    @abc.abstractmethod
    def primal(self, y: Array) -> Array:
        r"""$\nabla\varphi^*(y)$."""


def curvature(legendre: AbstractLegendre, x: Array) -> Array:
    r"""$\varphi_i''(x_i)$, like x."""
    return jax.jvp(legendre.dual, (x,), (jnp.ones_like(x),))[1]


def bregman_divergence(legendre: AbstractLegendre, x: Array, y: Array) -> Array:
    r"""$D_\varphi(x, y) = \varphi(x) - \varphi(y) - \langle \nabla\varphi(y), x - y\rangle$."""
    return legendre(x) - legendre(y) - jnp.sum(legendre.dual(y) * (x - y))


class Quadratic(AbstractLegendre):
    r"""$\sum m x^2/2$, `mass` one number or like x: `mirror` is then Langevin with the preconditioner 1/m."""

    mass: Array

    def __init__(self, mass: Any = 1.0):
        check.within(mass, "mass", above=0)
        self.mass = jnp.asarray(mass)

    def __call__(self, x: Array) -> Array:
        return jnp.sum(self.dual(x) * x) / 2

    def dual(self, x: Array) -> Array:
        return self.mass.astype(x.dtype) * x

    def primal(self, y: Array) -> Array:
        return y / self.mass.astype(y.dtype)


class Entropy(AbstractLegendre):
    r"""$\sum x \ln x - x$ on the positive orthant."""

    def __call__(self, x: Array) -> Array:
        return jnp.sum(jax.scipy.special.xlogy(x, x) - x)

    def dual(self, x: Array) -> Array:
        return jnp.log(x)

    def primal(self, y: Array) -> Array:
        return jnp.exp(y)


class SimplexEntropy(AbstractLegendre):
    r"""$\sum x \ln x - x$ on the probability vectors x (d,); the law has its density in any d - 1 of the entries."""

    def __call__(self, x: Array) -> Array:
        return jnp.sum(jax.scipy.special.xlogy(x, x) - x)

    def dual(self, x: Array) -> Array:
        return jnp.log(x)

    def primal(self, y: Array) -> Array:
        return jax.nn.softmax(y)


class BoxEntropy(AbstractLegendre):
    r"""$\sum (x - a)\ln(x - a) + (b - x)\ln(b - x)$ on a bounded box, `lower` a and `upper` b."""

    lower: Array
    upper: Array

    def __init__(self, lower: Any = 0.0, upper: Any = 1.0):
        self.lower, self.upper = _bounds(lower, upper)

    def __call__(self, x: Array) -> Array:
        low, high = self._gaps(x)
        return jnp.sum(jax.scipy.special.xlogy(low, low) + jax.scipy.special.xlogy(high, high))

    def dual(self, x: Array) -> Array:
        low, high = self._gaps(x)
        return jnp.log(low) - jnp.log(high)

    def primal(self, y: Array) -> Array:
        a, b = self.lower.astype(y.dtype), self.upper.astype(y.dtype)
        return a + (b - a) * jax.nn.sigmoid(y)

    def _gaps(self, x):
        return x - self.lower.astype(x.dtype), self.upper.astype(x.dtype) - x


class LogBarrier(AbstractLegendre):
    r"""$-\sum \ln(x - a) + \ln(b - x)$ on a bounded box, `lower` a and `upper` b; self-concordant."""

    lower: Array
    upper: Array

    def __init__(self, lower: Any = 0.0, upper: Any = 1.0):
        self.lower, self.upper = _bounds(lower, upper)

    def __call__(self, x: Array) -> Array:
        a, b = self.lower.astype(x.dtype), self.upper.astype(x.dtype)
        return -jnp.sum(jnp.log(x - a) + jnp.log(b - x))

    def dual(self, x: Array) -> Array:
        a, b = self.lower.astype(x.dtype), self.upper.astype(x.dtype)
        return 1 / (b - x) - 1 / (x - a)

    def primal(self, y: Array) -> Array:
        a, b = self.lower.astype(y.dtype), self.upper.astype(y.dtype)
        # From the centre, u with y = 2u/(r^2 - u^2).
        radius = (b - a) / 2
        return (a + b) / 2 + y * radius**2 / (1 + jnp.sqrt(1 + (y * radius) ** 2))


class HyperbolicEntropy(AbstractLegendre):
    r"""$\sum x\,\mathrm{arsinh}(x/b) - \sqrt{x^2 + b^2}$, linear near zero and logarithmic beyond `width` b > 0."""

    width: Array

    def __init__(self, width: Scalar = 1.0):
        self.width = check.number(width, "width", above=0)

    def __call__(self, x: Array) -> Array:
        return jnp.sum(x * self.dual(x) - jnp.sqrt(x**2 + self.width.astype(x.dtype) ** 2))

    def dual(self, x: Array) -> Array:
        return jnp.arcsinh(x / self.width.astype(x.dtype))

    def primal(self, y: Array) -> Array:
        return self.width.astype(y.dtype) * jnp.sinh(y)


class BregmanL1(AbstractNonsmooth):
    r"""$w \sum |x_i - c_i|$ with its left Bregman proximity operator, a soft threshold of the dual coordinates:

    $$\arg\min_z\, w|z - c| + \tfrac1\lambda D_\varphi(z, x) =
    \nabla\varphi^*\bigl(\nabla\varphi(c) + S_{\lambda w}(\nabla\varphi(x) - \nabla\varphi(c))\bigr).$$

    `legendre`: $\varphi$. `weight`: w >= 0. `centre`: c inside the domain, or None for $c = 0$ at the lower edge of a
    domain of positive x, where the energy is linear and the threshold a shift.
    """

    legendre: AbstractLegendre
    weight: Array
    centre: Array | None

    def __init__(self, legendre: AbstractLegendre, weight: Scalar = 1.0, centre: Any = None):
        self.legendre, self.weight = legendre, check.number(weight, "weight", least=0)
        self.centre = None if centre is None else jnp.asarray(centre)

    def __call__(self, x: Array) -> Array:
        size = jnp.abs(x) if self.centre is None else jnp.abs(x - self.centre.astype(x.dtype))
        return self.weight.astype(x.dtype) * jnp.sum(size)

    def prox(self, x: Array, smoothing: Any) -> Array:
        y, amount = self.legendre.dual(x), jnp.asarray(smoothing * self.weight, x.dtype)
        if self.centre is None:
            return self.legendre.primal(y - amount)
        middle = self.legendre.dual(jnp.broadcast_to(self.centre.astype(x.dtype), x.shape))
        return self.legendre.primal(middle + soft_threshold(y - middle, amount))


def bregman_envelope(nonsmooth: AbstractNonsmooth, x: Array, smoothing: Scalar, legendre: AbstractLegendre) -> Array:
    r"""The left Bregman-Moreau envelope $g_\lambda(x) = \min_z g(z) + D_\varphi(z, x)/\lambda$; z is `nonsmooth.prox`.

    Its gradient is $\varphi''(x)\,(x - z)/\lambda$. For `Quadratic(1)` it is `moreau_envelope`.
    **Arguments.** `nonsmooth`: its `prox` must be the left Bregman one of `legendre`, as that of `BregmanL1` is, and of
    `Box`, whose projection is the same for every entrywise Legendre function.
    """
    near = nonsmooth.prox(x, smoothing)
    return nonsmooth(near) + bregman_divergence(legendre, near, x) / jnp.asarray(smoothing, x.dtype)


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

    def draw(self, key: Key, position: PyTree, lanes: Any) -> PyTree:
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
        g = self.nonsmooth
        if g is None or self.smoothing is None:
            return force
        near = self._map(lambda x: g.prox(x, self.smoothing), x)
        return force + bend * scaled(1 / self.smoothing, x - near)

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


def _bounds(lower, upper):
    check.within(lower, "lower")
    check.within(upper, "upper")
    return ordered(lower, upper)
