r"""Separation functions: how the overlaps with the memories become the weights of a retrieval.

$$x' = X^T p(\beta X x), \qquad p = \nabla\Phi, \qquad
  E(x) = -\frac{\Phi(\beta X x)}{\beta} + \frac{|x|^2}{2} + \text{constant}$$

One convex potential $\Phi$ gives both. The step minimises the quadratic that is left when $-\Phi$, a concave function,
is replaced by its tangent, so for any convex $\Phi$ the energy never increases (concave-convex procedure).

| | $\Phi(z)$ | $p_i$ |
|---|---|---|
| `Softmax` | $\ln\sum_j e^{z_j}$ | $e^{z_i - \Phi}$ |
| `Softmax1` | $\ln(1 + \sum_j e^{z_j})$ | $e^{z_i - \Phi}$ |
| `Sparsemax` | $\max_p\, p\cdot z + \frac12(1 - |p|^2)$ on the simplex | $(z_i - \tau)_+$ |
| `Polynomial(n)` | $\lVert z_+\rVert_n$ | $(z_{i+}/\Phi)^{n-1}$ |

**See** Ramsauer et al. (2021); Hu et al., Outlier-efficient Hopfield layers (2024) for softmax_1; Martins and Astudillo
(2016) for sparsemax; Krotov and Hopfield (2016) for the power, here under a root that keeps it bounded.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.core.types import Scalar, shape_of


class AbstractSeparation(eqx.Module):
    r"""A convex potential of the logits z `(..., N)` and its gradient; `where` leaves memories out.

    Weights are written $p_i = w_i r$ so that r can be applied after a product with the memories. For memories in
    chunks a family also gives $p_i = \pi(z_i, c)$ with one normaliser c for all i, fixed by
    $h_0(c) + \sum_i h(z_i, c) = 1$.
    """

    @abc.abstractmethod
    def split(self, z: Array, where: Array | None = None) -> tuple[Array, Array, Array]:
        """w (..., N), r (...) and the normaliser c (...); without any visible memory w is zero."""

    def weights(self, z: Array, where: Array | None = None) -> Array:
        """p = grad Phi, like z."""
        w, r, _ = self.split(z, where)
        return w * r[..., None]

    @abc.abstractmethod
    def potential(self, z: Array, where: Array | None = None) -> Array:
        """Phi (...); zero without any visible memory."""

    @abc.abstractmethod
    def constant(self, count: Array, beta: Array, radius: Array) -> Array:
        """The constant of the energy that makes it non-negative for `count` memories no longer than `radius`."""


class AbstractStreamed(AbstractSeparation):
    """A separation that can be computed from memories in chunks."""

    @abc.abstractmethod
    def given(self, z: Array, c: Array) -> Array:
        """The weight of a logit z when the normaliser is c; elementwise."""

    def share(self, z: Array, c: Array) -> Array:
        """h(z, c): what a logit contributes to the sum that fixes c."""
        return self.given(z, c)

    def null(self, c: Array) -> Array:
        """h_0(c): what is in the sum without any memory."""
        return jnp.zeros_like(c)

    @abc.abstractmethod
    def empty(self) -> float:
        """The normaliser of no memory at all."""

    def merge(self, c1: Array, c2: Array) -> tuple[Array, Array, Array]:
        """The normaliser of two sets together, and the factors by which the weights of either change."""
        raise ValueError(f"{type(self).__name__} has no merge: its normaliser is found by `search`")

    def search(self, peak: Array, total: Callable[[Callable], Array]) -> Array:
        """The normaliser by several passes, for a family that cannot merge; `total(f)` sums f(z) over memories."""
        raise ValueError(f"{type(self).__name__} has neither merge nor search, and memories in chunks need one")

    @property
    def merges(self) -> bool:
        """Whether one pass is enough."""
        return type(self).merge is not AbstractStreamed.merge

    def given_potential(self, c: Array, half_squares: Array) -> Array:
        """Phi from the normaliser, and from the sum of p^2 / 2 where it is needed."""
        del half_squares
        return jnp.where(jnp.isneginf(c), 0.0, c)


def shown(z: Array, where: Array | None, hidden: float) -> Array:
    """z (..., N) with `hidden` in place of memories that `where`, (N,) or (..., N), leaves out."""
    return z if where is None else jnp.where(jnp.broadcast_to(where, z.shape), z, jnp.asarray(hidden, z.dtype))


def _peak(z):
    """The largest logit, a constant for derivatives; 0 where all are hidden."""
    top = lax.stop_gradient(jnp.max(z, -1))
    return jnp.where(jnp.isneginf(top), 0.0, top)


class Softmax(AbstractStreamed):
    r"""$p_i = e^{z_i} / \sum_j e^{z_j}$, potential $\ln\sum_j e^{z_j}$."""

    def _peak(self, z):
        return _peak(z)

    def split(self, z, where=None):
        z = shown(z, where, -jnp.inf)
        top = self._peak(z)
        w = jnp.exp(z - top[..., None])
        s = jnp.sum(w, -1) + self.null(top)
        none = s == 0
        s = jnp.where(none, 1.0, s)
        return w, 1 / s, jnp.where(none, -jnp.inf, top + jnp.log(s))

    def potential(self, z, where=None):
        return self.given_potential(self.split(z, where)[2], jnp.zeros(()))

    def constant(self, count, beta, radius):
        return jnp.log(jnp.maximum(count, 1)) / beta + radius**2 / 2

    def given(self, z, c):
        return jnp.exp(z - jnp.where(jnp.isneginf(c), 0.0, c))

    def empty(self):
        return -jnp.inf

    def merge(self, c1, c2):
        c = jnp.logaddexp(c1, c2)
        at = jnp.where(jnp.isneginf(c), 0.0, c)
        return c, jnp.exp(c1 - at), jnp.exp(c2 - at)


class Softmax1(Softmax):
    r"""$p_i = e^{z_i} / (1 + \sum_j e^{z_j})$: a softmax with one more slot, of logit zero, that holds nothing.

    Shifted by $\max(\max_j z_j, 0)$: by $\max_j z_j$ alone the one becomes $e^{200}$ at logits of -200, which float32
    cannot hold.
    """

    def _peak(self, z):
        return jnp.maximum(lax.stop_gradient(jnp.max(z, -1)), 0.0)

    def null(self, c):
        return jnp.exp(-c)

    def constant(self, count, beta, radius):
        return jnp.log1p(count) / beta + radius**2 / 2

    def empty(self):
        return 0.0

    def merge(self, c1, c2):
        # Every chunk comes with the empty slot of its own, and one of the two has to go.
        rest = jnp.where(c2 > 0, c2 + jnp.log(-jnp.expm1(-jnp.where(c2 > 0, c2, 1.0))), -jnp.inf)
        c = jnp.logaddexp(c1, rest)
        return c, jnp.exp(c1 - c), jnp.exp(c2 - c)


class Sparsemax(AbstractStreamed):
    r"""$p_i = (z_i - \tau)_+$ with $\sum_i p_i = 1$: the projection of z onto the simplex, exact zeros included.

    $\tau$ by Newton's method on a convex, piecewise linear function: from the left, finitely many passes, no sorting.
    """

    def search(self, peak, total):
        def newton(tau):
            inside = lambda z: z > tau[..., None]
            count = total(lambda z: inside(z).astype(z.dtype))
            over = total(lambda z: jnp.where(inside(z), z - peak[..., None], 0.0))
            return jnp.maximum(tau, peak + (over - 1) / jnp.maximum(count, 1)), count

        def again(carry):
            tau, count, _ = carry
            new, left = newton(tau)
            return new, left, count

        # The support only shrinks, so an unchanged count ends the search for every row.
        unequal = lambda carry: jnp.any(carry[1] != carry[2])
        start = (*newton(peak - 1), jnp.full_like(peak, -1))
        return lax.while_loop(unequal, again, start)[0]

    def split(self, z, where=None):
        z = shown(z, where, -jnp.inf)
        peak, fixed = _peak(z), lax.stop_gradient(z)
        tau = self.search(peak, lambda f: jnp.sum(f(fixed), -1))
        # One more Newton step on the support that was found carries the derivative.
        inside = fixed > tau[..., None]
        count = jnp.sum(inside, -1)
        over = jnp.sum(jnp.where(inside, z - peak[..., None], 0.0), -1)
        tau = peak + (over - 1) / jnp.maximum(count, 1).astype(z.dtype)
        # A logit that is not a number belongs to no support, and must still be seen.
        bad = jnp.isnan(z).any(-1)
        tau = jnp.where(bad, jnp.nan, tau)
        w = jnp.where(inside | bad[..., None], z - tau[..., None], 0.0)
        return w, jnp.ones_like(tau), jnp.where(jnp.isneginf(jnp.max(fixed, -1)), -jnp.inf, tau)

    def potential(self, z, where=None):
        w, _, c = self.split(z, where)
        return self.given_potential(c, jnp.sum(w * w, -1) / 2)

    def constant(self, count, beta, radius):
        return (1 - 1 / jnp.maximum(count, 1)) / (2 * beta) + radius**2 / 2

    def given(self, z, c):
        return jnp.maximum(z - c, 0.0)

    def empty(self):
        return -jnp.inf

    def given_potential(self, c, half_squares):
        return jnp.where(jnp.isneginf(c), 0.0, c + half_squares + 0.5)


class Polynomial(AbstractStreamed):
    r"""$p_i = (z_{i+} / \lVert z_+\rVert_n)^{n-1}$: powers of the overlaps, with $\sum_i p_i^{n/(n-1)} = 1$.

    The energy orders states as the dense associative memory $-\sum_i (x_i\cdot x)_+^n$ does, whose n-th root it holds.
    Homogeneous, so $\beta$ drops out; without a positive overlap the weights are zero. `degree` n >= 2.
    """

    degree: int | float = eqx.field(static=True, default=4)

    def __check_init__(self):
        if not self.degree >= 2:
            raise ValueError(f"degree={self.degree}: expected at least 2")

    def split(self, z, where=None):
        n, z = self.degree, jnp.maximum(shown(z, where, 0.0), 0.0)
        top = lax.stop_gradient(jnp.max(z, -1))
        top = jnp.where(top == 0, 1.0, top)
        u = z / top[..., None]
        s = jnp.sum(u**n, -1)
        none = s == 0
        s = jnp.where(none, 1.0, s)
        return u ** (n - 1), s ** (1 / n - 1), jnp.where(none, 0.0, top * s ** (1 / n))

    def potential(self, z, where=None):
        return self.split(z, where)[2]

    def constant(self, count, beta, radius):
        return jnp.maximum(count, 1) ** (2 / self.degree) * radius**2 / 2

    def given(self, z, c):
        return (jnp.maximum(z, 0.0) / jnp.where(c == 0, 1.0, c)) ** (self.degree - 1)

    def share(self, z, c):
        return (jnp.maximum(z, 0.0) / jnp.where(c == 0, 1.0, c)) ** self.degree

    def empty(self):
        return 0.0

    def merge(self, c1, c2):
        n, top = self.degree, jnp.maximum(c1, c2)
        at = jnp.where(top == 0, 1.0, top)
        c = at * ((c1 / at) ** n + (c2 / at) ** n) ** (1 / n)
        safe = jnp.where(c == 0, 1.0, c)
        return c, (c1 / safe) ** (n - 1), (c2 / safe) ** (n - 1)


class Potential(AbstractSeparation):
    r"""Your own: `phi`, a convex differentiable function of the logits `(N,)` of one state; weights by its gradient.

    Without masks and chunks, and without a constant in the energy.
    """

    phi: Callable[[Array], Any]

    def fits(self, count: int) -> None:
        """A `ValueError` unless phi of `count` logits is one number."""
        out = shape_of(self.phi, jax.ShapeDtypeStruct((count,), jnp.result_type(float)))
        if getattr(out, "shape", None) != ():
            raise ValueError(f"separation must map logits (N,) to one number, a potential; got {out}, as of weights")

    def _rows(self, function, z):
        return jnp.vectorize(function, signature="(n)->(n)" if function is not self.phi else "(n)->()")(z)

    def split(self, z, where=None):
        self._refuse(where)
        ones = jnp.ones(z.shape[:-1], z.dtype)
        return self._rows(jax.grad(self.phi), z), ones, ones

    def potential(self, z, where=None):
        self._refuse(where)
        return self._rows(self.phi, z)

    def constant(self, count, beta, radius):
        return jnp.zeros_like(radius)

    def _refuse(self, where):
        if where is not None:
            raise ValueError("a potential of your own has no mask: leave the memories out, or use a named separation")


_NAMED = {"softmax": Softmax(), "softmax1": Softmax1(), "sparsemax": Sparsemax(), "polynomial": Polynomial()}


def separation(which: Any) -> AbstractSeparation:
    """A separation by name (softmax, softmax1, sparsemax, polynomial), as it is, or from a convex function of logits.

    **Errors.** ValueError for a name that does not exist.
    """
    if isinstance(which, AbstractSeparation):
        return which
    if isinstance(which, str) and which in _NAMED:
        return _NAMED[which]
    if callable(which):
        return Potential(which)
    raise ValueError(f"separation={which!r}: expected one of {', '.join(_NAMED)}, a separation, or a convex function")


def energy_constant(sep: AbstractSeparation, count: Array, beta: Scalar, radius: Array) -> Array:
    """The constant of the energy for `count` visible memories (...) no longer than `radius`; zero for none."""
    constant = sep.constant(count, jnp.asarray(beta, radius.dtype), radius)
    return jnp.where(count > 0, constant, 0.0)
