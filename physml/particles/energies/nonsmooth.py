r"""Energies that are not smooth, and what stands in for their gradients: proximity operators and Moreau envelopes.

$$\mathrm{prox}_{\lambda g}(x) = \arg\min_y\, g(y) + \tfrac{1}{2\lambda}|x - y|^2, \qquad
g_\lambda(x) = \min_y\, g(y) + \tfrac{1}{2\lambda}|x - y|^2, \qquad
\nabla g_\lambda(x) = \tfrac{1}{\lambda}\bigl(x - \mathrm{prox}_{\lambda g}(x)\bigr)$$

The envelope lies below g, tends to it as $\lambda \to 0$, and its gradient is $1/\lambda$-Lipschitz where g is
convex. Each energy here is a Module: called on x it is g(x), an indicator being 0 inside and infinite outside.

**See** Moreau (1965); Parikh and Boyd, Proximal algorithms (2014), section 6, for the closed forms.
"""

import abc
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.program import program
from physml.core.tree import total
from physml.core.types import Scalar


class AbstractNonsmooth(eqx.Module):
    """An energy g with its proximity operator: `g(x)` and `g.prox(x, smoothing)`, on one position."""

    @abc.abstractmethod
    def __call__(self, x: PyTree) -> Array:
        """g(x)."""

    @abc.abstractmethod
    def prox(self, x: PyTree, smoothing: Scalar) -> PyTree:
        r"""$\mathrm{prox}_{\lambda g}(x)$ for $\lambda$ = `smoothing`."""


@program
def moreau_envelope(nonsmooth: AbstractNonsmooth, x: PyTree, smoothing: Scalar) -> Array:
    r"""$g_\lambda(x) = \min_y g(y) + |x - y|^2/2\lambda$, at the minimiser that `nonsmooth.prox` gives.

    **Arguments.** `smoothing`: $\lambda > 0$. **Returns** a scalar, differentiable in all it is given.
    **Cost.** One proximity operator and one g.
    """
    near = nonsmooth.prox(x, smoothing)
    distance = total(jax.tree.map(lambda a, b: (a - b) ** 2, x, near), 0)
    return nonsmooth(near) + distance / (2 * jnp.asarray(smoothing, distance.dtype))


class L1(AbstractNonsmooth):
    r"""$w \sum_i |x_i - c_i|$: the prox shrinks towards c by $\lambda w$. `weight` w > 0, `centre` c by default 0."""

    weight: Array
    centre: Array | None

    def __init__(self, weight: Scalar = 1.0, centre: Any = None):
        self.weight = check.number(weight, "weight", least=0)
        self.centre = None if centre is None else jnp.asarray(centre)

    def __call__(self, x: PyTree) -> Array:
        size = total(jax.tree.map(jnp.abs, _from(x, self.centre)), 0)
        return self.weight.astype(size.dtype) * size

    def prox(self, x: PyTree, smoothing: Scalar) -> PyTree:
        shrink = lambda z: soft_threshold(z, jnp.asarray(smoothing * self.weight, z.dtype))
        return _onto(jax.tree.map(shrink, _from(x, self.centre)), self.centre)


class SquaredL2(AbstractNonsmooth):
    r"""$\frac w2 |x|^2$, smooth, with the prox $x/(1 + \lambda w)$: everything about it is Gaussian."""

    weight: Array

    def __init__(self, weight: Scalar = 1.0):
        self.weight = check.number(weight, "weight", least=0)

    def __call__(self, x: PyTree) -> Array:
        square = total(jax.tree.map(jnp.square, x), 0)
        return self.weight.astype(square.dtype) * square / 2

    def prox(self, x: PyTree, smoothing: Scalar) -> PyTree:
        return jax.tree.map(lambda leaf: leaf / (1 + jnp.asarray(smoothing * self.weight, leaf.dtype)), x)


class GroupL2(AbstractNonsmooth):
    r"""$w \sum_k |x_k|_2$ over groups, the entries along `axis` of an array: whole groups shrink, or vanish.

    `axis`: None makes one group of all entries.
    """

    weight: Array
    axis: int | tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, weight: Scalar = 1.0, axis: int | tuple[int, ...] | None = -1):
        self.weight, self.axis = check.number(weight, "weight", least=0), axis

    def __call__(self, x: Array) -> Array:
        return self.weight.astype(x.dtype) * jnp.sum(_norm(x, self.axis))

    def prox(self, x: Array, smoothing: Scalar) -> Array:
        norm = _norm(x, self.axis)
        amount = jnp.asarray(smoothing * self.weight, x.dtype)
        return x * jnp.where(norm > amount, 1 - amount / jnp.where(norm > amount, norm, 1), 0)


class Box(AbstractNonsmooth):
    """The indicator of lower <= x <= upper, numbers or arrays like x, finite or not: the prox clips."""

    lower: Array
    upper: Array

    def __init__(self, lower: Any = 0.0, upper: Any = jnp.inf):
        self.lower, self.upper = ordered(lower, upper)

    def __call__(self, x: Array) -> Array:
        return _indicator(jnp.all((x >= self.lower.astype(x.dtype)) & (x <= self.upper.astype(x.dtype))), x)

    def prox(self, x: Array, smoothing: Scalar) -> Array:
        return jnp.clip(x, self.lower.astype(x.dtype), self.upper.astype(x.dtype))


def nonnegative() -> Box:
    """The indicator of x >= 0."""
    return Box(0.0, jnp.inf)


class Ball(AbstractNonsmooth):
    """The indicator of |x - centre| <= radius: the prox projects."""

    radius: Array
    centre: Array | None

    def __init__(self, radius: Scalar = 1.0, centre: Any = None):
        self.radius = check.number(radius, "radius", above=0)
        self.centre = None if centre is None else jnp.asarray(centre)

    def __call__(self, x: Array) -> Array:
        # A projected point may lie outside by rounding.
        bound = self.radius.astype(x.dtype) * (1 + 8 * jnp.finfo(x.dtype).eps)
        return _indicator(_norm(_from(x, self.centre), None).reshape(()) <= bound, x)

    def prox(self, x: Array, smoothing: Scalar) -> Array:
        z, radius = _from(x, self.centre), self.radius.astype(x.dtype)
        norm = _norm(z, None)
        return _onto(z * jnp.where(norm > radius, radius / jnp.where(norm > radius, norm, 1), 1), self.centre)


class TotalVariation(AbstractNonsmooth):
    r"""$w \sum_{ij} |(\nabla x)_{ij}|$ of an image (rows, columns, ...), differences forward, none across the edge.

    The prox has no closed form. Its dual, $\min_{|p_{ij}| \le 1} |x - \lambda w \nabla^T p|^2$, is solved by
    `iterations` accelerated projected gradient steps of length 1/8 from p = 0; the error of the image is
    $O(1/\text{iterations})$.

    **See** Chambolle (2004) for the dual; Beck and Teboulle (2009), section 4, for the acceleration.
    """

    weight: Array
    iterations: int = eqx.field(static=True)

    def __init__(self, weight: Scalar = 1.0, iterations: int = 20):
        self.weight = check.number(weight, "weight", least=0)
        self.iterations = check.count(iterations, "iterations")

    def __call__(self, x: Array) -> Array:
        square = sum(d**2 for d in _differences(x))
        return self.weight.astype(x.dtype) * jnp.sum(_root(square))

    def prox(self, x: Array, smoothing: Scalar) -> Array:
        return _least_variation(x, jnp.asarray(smoothing, x.dtype) * self.weight.astype(x.dtype), self.iterations)


@program
def _least_variation(x, amount, iterations):
    """The image that the dual's steps lead to; `amount`: lambda w."""
    still = amount == 0
    amount = jnp.where(still, 1, amount)
    momentum = [1.0]
    for _ in range(iterations):
        momentum.append((1 + (1 + 4 * momentum[-1] ** 2) ** 0.5) / 2)
    pushes = jnp.asarray([(a - 1) / b for a, b in itertools.pairwise(momentum)], x.dtype)

    def step(carry, push):
        p, ahead = carry
        slope = _differences(x / amount - _adjoint(ahead))
        new = [a + d / 8 for a, d in zip(ahead, slope, strict=True)]
        length = jnp.maximum(_root(new[0] ** 2 + new[1] ** 2), 1)
        new = (new[0] / length, new[1] / length)
        return (new, (new[0] + push * (new[0] - p[0]), new[1] + push * (new[1] - p[1]))), None

    zero = (jnp.zeros_like(x), jnp.zeros_like(x))
    (p, _), _ = lax.scan(step, (zero, zero), pushes)
    return jnp.where(still, x, x - amount * _adjoint(p))


def ordered(lower: ArrayLike, upper: ArrayLike) -> tuple[Array, Array]:
    """Both edges of a box as arrays; a `ValueError` unless lower < upper, where they are known."""
    low, high = check.known(lower), check.known(upper)
    if low is not None and high is not None and not np.all(low < high):
        raise ValueError(f"a box needs lower < upper, got {lower} and {upper}")
    return jnp.asarray(lower), jnp.asarray(upper)


def soft_threshold(x: Array, amount: Array) -> Array:
    r"""$\mathrm{sign}(x)\,(|x| - a)_+$."""
    return x - jnp.clip(x, -amount, amount)


def _differences(x):
    pad = lambda axis: [(0, 1) if k == axis else (0, 0) for k in range(x.ndim)]
    return jnp.pad(x[1:] - x[:-1], pad(0)), jnp.pad(x[:, 1:] - x[:, :-1], pad(1))


def _adjoint(p):
    """Transpose of `_differences`; entries on the last row and column are zero."""
    down = [jnp.concatenate([-p[0][:1], p[0][:-2] - p[0][1:-1], p[0][-2:-1]])]
    right = [jnp.concatenate([-p[1][:, :1], p[1][:, :-2] - p[1][:, 1:-1], p[1][:, -2:-1]], axis=1)]
    return down[0] + right[0]


def _root(square):
    """A root whose derivative at zero is zero."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _norm(x, axis):
    return _root(jnp.sum(x**2, axis=axis, keepdims=True))


def _indicator(inside, x):
    return jnp.where(inside, jnp.zeros((), x.dtype), jnp.inf)


def _from(x, centre):
    return x if centre is None else x - centre.astype(x.dtype)


def _onto(x, centre):
    return x if centre is None else x + centre.astype(x.dtype)
