r"""Legendre functions $\varphi$, their maps $y = \nabla\varphi(x)$ to dual coordinates and back, and Bregman envelopes.

They act entry by entry, and their duals are all of R^d:

| Legendre function | domain | $y$ | $\varphi''$ |
|---|---|---|---|
| `Quadratic(m)` | all | $mx$ | $m$ |
| `Entropy` | $x > 0$ | $\ln x$ | $1/x$ |
| `SimplexEntropy` | $x > 0,\ \sum x = 1$ | $\ln x$, up to a constant | $1/x$ |
| `BoxEntropy(a, b)` | $a < x < b$ | $\ln\frac{x - a}{b - x}$ | $\frac1{x - a} + \frac1{b - x}$ |
| `LogBarrier(a, b)` | $a < x < b$ | $\frac1{b - x} - \frac1{x - a}$ | $\frac1{(x - a)^2} + \frac1{(b - x)^2}$ |
| `HyperbolicEntropy(b)` | all | $\mathrm{arsinh}(x/b)$ | $1/\sqrt{x^2 + b^2}$ |
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from physml.core import check
from physml.core.program import program
from physml.core.types import Scalar
from physml.particles.energies.nonsmooth import AbstractNonsmooth, ordered, soft_threshold


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


@program
def curvature(legendre: AbstractLegendre, x: Array) -> Array:
    r"""$\varphi_i''(x_i)$, like x."""
    return jax.jvp(legendre.dual, (x,), (jnp.ones_like(x),))[1]


@program
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

    def prox(self, x: Array, smoothing: Scalar) -> Array:
        y, amount = self.legendre.dual(x), jnp.asarray(smoothing * self.weight, x.dtype)
        if self.centre is None:
            return self.legendre.primal(y - amount)
        middle = self.legendre.dual(jnp.broadcast_to(self.centre.astype(x.dtype), x.shape))
        return self.legendre.primal(middle + soft_threshold(y - middle, amount))


@program
def bregman_envelope(nonsmooth: AbstractNonsmooth, x: Array, smoothing: Scalar, legendre: AbstractLegendre) -> Array:
    r"""The left Bregman-Moreau envelope $g_\lambda(x) = \min_z g(z) + D_\varphi(z, x)/\lambda$; z is `nonsmooth.prox`.

    Its gradient is $\varphi''(x)\,(x - z)/\lambda$. For `Quadratic(1)` it is `moreau_envelope`.
    **Arguments.** `nonsmooth`: its `prox` must be the left Bregman one of `legendre`, as that of `BregmanL1` is, and of
    `Box`, whose projection is the same for every entrywise Legendre function.
    """
    near = nonsmooth.prox(x, smoothing)
    return nonsmooth(near) + bregman_divergence(legendre, near, x) / jnp.asarray(smoothing, x.dtype)


def _bounds(lower, upper):
    check.within(lower, "lower")
    check.within(upper, "upper")
    return ordered(lower, upper)
