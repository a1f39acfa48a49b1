r"""Transport between many laws at once: interpolants on the simplex.

With $x_k \sim \rho_k$, k = 1..K, and weights $a$ on the simplex let $x(a) = \sum_k a_k x_k$. Its conditional means

$$g_k(a, x) = E[x_k | x(a) = x]$$

know every way through the simplex: along a curve a(t) the law of x(a(t)) is carried by
$v = \sum_k \dot a_k g_k(a(t), x)$, from the law at one vertex to that at another. So the curve is chosen after
training: the one of least energy $\int_0^1 E|v|^2\, dt$ is found by gradients through the exact sampler of x(a). If
one of the laws is N(0, I) the score of x(a) is $-g_k/a_k$.

**See** Albergo, Boffi, Lindsey and Vanden-Eijnden, Multimarginal generative modeling with stochastic interpolants
(2023), eqs. 5-9 and section 2.3.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.program import program
from physml.core.types import Field, Key, Scalar, shape_of
from physml.matching.exact.mixture import MixtureLike, _check_mixture
from physml.train import fit


@program
def simplex_match(field: Field, xs: Array, *, key: Key, args: PyTree = None, concentration: Scalar = 1.0) -> Array:
    r"""Regress the means $g_k$: the batch average of $\sum_k |f_k(a, x(a)) - x_k|^2 / d$ over weights from a
    Dirichlet law.

    **Arguments.** `field`: f(a (K,), x, args) -> (K, *x.shape) on one sample. `xs` (K, n, ...): a batch of every law.
    `args`: None or a pytree with leading axis n. `concentration`: of the Dirichlet law of a, 1 for uniform on the
    simplex; a fifth of the batch lies on edges, which a uniform law would never visit. **Returns** a scalar.
    **Errors** `ValueError` for fewer than two laws and a field of the wrong shape.
    """
    xs = jnp.asarray(xs)
    if xs.ndim < 2 or len(xs) < 2:
        raise ValueError(f"xs must be (laws, n, ...) with two laws or more; got {xs.shape}")
    laws, n = xs.shape[:2]
    weights = simplex_weights(laws, n, key=key, concentration=concentration, dtype=xs.dtype)

    def one(a, x, args):
        value = field(a, jnp.tensordot(a, x, 1), args)
        if jnp.shape(value) != x.shape:
            raise ValueError(f"the field must return (laws, *sample) = {x.shape}; got {jnp.shape(value)}")
        return jnp.sum((value - x) ** 2) / (x.size // laws)

    return jnp.mean(jax.vmap(one, in_axes=(0, 1, 0))(weights, xs, args))


def simplex_weights(
    laws: int, n: int, *, key: Key, concentration: Scalar = 1.0, dtype: DTypeLike = jnp.float32
) -> Array:
    """Weights (n, laws) for training: four fifths Dirichlet, the rest uniform on random edges."""
    inside, first, second, place = jax.random.split(key, 4)
    a = jax.random.dirichlet(inside, jnp.full(laws, concentration, dtype), (n,), dtype)
    i = jax.random.randint(first, (n,), 0, laws)
    j = (i + jax.random.randint(second, (n,), 1, laws)) % laws
    u = jax.random.uniform(place, (n, 1), dtype)
    edge = u * jax.nn.one_hot(i, laws, dtype=dtype) + (1.0 - u) * jax.nn.one_hot(j, laws, dtype=dtype)
    return jnp.where((jnp.arange(n) % 5 == 0)[:, None], edge, a)


class Curve(eqx.Module):
    r"""A curve on the simplex from vertex `start` to vertex `end`:
    $a(t) \propto e(u) + [\sum_m c_m \sin(m \pi u)]^2$, u = u(t).

    e(u) is the straight edge and the square, taken law by law, keeps a inside. The clock u(t) has a positive rate
    that is linear between equal nodes. `coefficients` (modes, K) and `log_rate` (nodes,): zero for the edge at
    constant speed.
    """

    coefficients: Array
    log_rate: Array
    start: int = eqx.field(static=True)
    end: int = eqx.field(static=True)

    def __check_init__(self):
        laws = self.coefficients.shape[-1]
        if not (0 <= self.start < laws and 0 <= self.end < laws and self.start != self.end):
            raise ValueError(f"start and end must be different laws in 0..{laws - 1}; got {self.start}, {self.end}")

    def clock(self, t: Scalar) -> Array:
        """u(t), from 0 to 1."""
        rate = jnp.exp(self.log_rate)
        nodes = len(rate) - 1
        past = jnp.concatenate([jnp.zeros(1, rate.dtype), jnp.cumsum(0.5 * (rate[1:] + rate[:-1]))])
        k = jnp.clip(jnp.floor(t * nodes).astype(int), 0, nodes - 1)
        inside = t * nodes - k.astype(rate.dtype)
        return (past[k] + inside * (rate[k] + 0.5 * inside * (rate[k + 1] - rate[k]))) / past[-1]

    def __call__(self, t: Any) -> Array:
        modes, laws = self.coefficients.shape
        u = self.clock(jnp.asarray(t, self.coefficients.dtype))
        start, end = (jax.nn.one_hot(k, laws, dtype=u.dtype) for k in (self.start, self.end))
        wave = jnp.sin(jnp.pi * u * jnp.arange(1, modes + 1, dtype=u.dtype))
        a = (1.0 - u) * start + u * end + (wave @ self.coefficients) ** 2
        return a / jnp.sum(a)


def edge(laws: int, start: int, end: int, *, modes: int = 1, nodes: int = 2, dtype: DTypeLike = jnp.float32) -> Curve:
    """The straight edge of the simplex between two laws, at constant speed."""
    return Curve(jnp.zeros((modes, laws), dtype), jnp.zeros(nodes, dtype), start, end)


def along(field: Field, curve: Callable) -> Field:
    r"""The velocity $v(t, x) = \sum_k \dot a_k(t)\, g_k(a(t), x)$: a field for `sample`, `log_prob` and the rest."""

    return _Along(field, curve)


class _Along(eqx.Module):
    field: Field
    curve: Callable

    def __call__(self, t: Any, x: Array, args: PyTree = None) -> Array:
        t = jnp.asarray(t, x.dtype)
        a, slope = jax.jvp(self.curve, (t,), (jnp.ones_like(t),))
        return jnp.tensordot(slope, self.field(a, x, args), 1)


@program
def transport_energy(field: Field, curve: Callable, xs: Array, *, args: PyTree = None) -> Array:
    r"""$\int_0^1 E|v|^2\,dt$ along a curve, one time for each of the n columns of xs (K, n, ...), evenly spread."""
    n = xs.shape[1]
    t = (jnp.arange(n, dtype=xs.dtype) + 0.5) / n
    velocity = along(field, curve)
    power = lambda t, x, args: jnp.sum(velocity(t, jnp.tensordot(curve(t), x, 1), args) ** 2)
    return jnp.mean(jax.vmap(power, in_axes=(0, 1, 0))(t, xs, args))


def learn_curve(
    field: Field,
    sampler: Callable,
    start: int,
    end: int,
    *,
    key: Key,
    modes: int = 4,
    nodes: int = 9,
    steps: int = 500,
    learning_rate: float = 0.02,
    progress: bool = False,
) -> Curve:
    r"""The curve from one vertex to another that lowers the energy of the transport, for known or learned $g_k$.

    **Arguments.** `field`: g(a, x, args) -> (K, ...). `sampler`: `sampler(key) -> xs` (K, n, ...), fresh samples of
    every law. `modes`, `nodes`: of the curve and its clock. Adam with a cosine schedule from a small bulge; the field
    is not changed.
    **Returns** a `Curve`. **Cost** steps x n gradients of the field.
    """
    shape = shape_of(sampler, key).shape
    begin, train_key = jax.random.split(key)
    # The square has no slope at zero: start from one bulge of every law, which no wave of higher order cuts in two.
    curve = edge(shape[0], start, end, modes=modes, nodes=nodes)
    bulge = 0.02 * jax.random.normal(begin, (modes, shape[0])) + 0.4 * jnp.eye(modes, 1)
    curve = eqx.tree_at(lambda c: c.coefficients, curve, bulge)

    optimizer = _adam(float(learning_rate), check.count(steps, "steps"))
    loss = _CurveEnergy(field)
    return fit(loss, curve, sampler, optimizer=optimizer, steps=steps, key=train_key, progress=progress).model


@functools.cache
def _adam(learning_rate, steps):
    """One object for equal numbers: an optimiser written anew would be compiled anew."""
    return optax.adam(optax.cosine_decay_schedule(learning_rate, steps))


class _CurveEnergy(eqx.Module):
    """The energy at times that move with the step, so that no node of the quadrature can be exploited."""

    field: Field

    def __call__(self, curve, xs, *, key):
        return transport_energy(self.field, _Shifted(curve, jax.random.uniform(key) / xs.shape[1]), xs)


class _Shifted(eqx.Module):
    curve: Callable
    shift: Array

    def __call__(self, t):
        return self.curve((t + self.shift) % 1.0)


def exact_means(mixtures: Sequence[MixtureLike]) -> Field:
    r"""The exact $g_k(a, x)$ of independent Gaussian mixtures, a field f(a (K,), x (d,), args) -> (K, d).

    Given the component of each law everything is Gaussian, $\Sigma = \sum_k a_k^2 C_k$ and
    $E[x_k] = m_k + a_k C_k \Sigma^{-1}(x - \sum_j a_j m_j)$; these are averaged over the posterior of the components.
    **Cost** the product of the numbers of components. **Errors** `ValueError` for shapes that do not fit.
    """
    laws = [_check_mixture(f"mixture {k}", mixture) for k, mixture in enumerate(mixtures)]
    dims = {law[1].shape[1] for law in laws}
    if len(laws) < 2 or len(dims) != 1:
        raise ValueError(f"give two mixtures or more of one dimension; got {len(laws)} of dimensions {sorted(dims)}")
    return _ExactMeans(tuple(laws))


class _ExactMeans(eqx.Module):
    laws: tuple

    @program
    def __call__(self, a: Array, x: Array, args: Any = None) -> Array:
        parts = [tuple(part.astype(x.dtype) for part in law) for law in self.laws]
        counts = [np.arange(len(law[0])) for law in parts]
        grid = np.stack(np.meshgrid(*counts, indexing="ij"), -1).reshape(-1, len(parts))
        log_w = sum(jnp.log(w)[grid[:, k]] for k, (w, _, _) in enumerate(parts))
        m = jnp.stack([m[grid[:, k]] for k, (_, m, _) in enumerate(parts)])
        c = jnp.stack([c[grid[:, k]] for k, (_, _, c) in enumerate(parts)])
        gap = x[None, :] - jnp.tensordot(a, m, 1)
        chol = jnp.linalg.cholesky(jnp.tensordot(a * a, c, 1))
        u = jax.scipy.linalg.cho_solve((chol, True), gap[..., None])[..., 0]
        log_det = jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)
        r = jax.nn.softmax(log_w - 0.5 * (gap * u).sum(-1) - log_det)
        means = m + a[:, None, None] * jnp.einsum("kcde,ce->kcd", c, u)
        return jnp.einsum("c,kcd->kd", r, means)
