"""Sinkhorn's algorithm: the entropic plan of two empirical measures, in the log domain between scalings."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.iterations import largest
from physml.core.program import program
from physml.core.types import Key, Scalar

_SCALINGS = 20  # updates of the scalings between two in the log domain


class Plan(Checked):
    """An entropic plan of two empirical measures: `log_p` (n, m), log-probabilities of pairs; `potentials` f, g;
    `residual`: the largest error of a row's marginal, in log; `status`: `not_converged` above the tolerance, `diverged`
    for costs that are not numbers or forbid a row altogether."""

    computation: ClassVar[str] = "sinkhorn"

    log_p: Array
    f: Array
    g: Array
    residual: Array
    steps: Array
    status: Status

    def sample(self, n: int, *, key: Key) -> tuple[Array, Array]:
        """Indices (i, j) of n pairs drawn from the plan."""
        # A row, then its partner: n (rows + columns) Gumbels, where the joint law would take n rows columns.
        row_key, column_key = jax.random.split(key)
        i = jax.random.categorical(row_key, logsumexp(self.log_p, axis=1), shape=(n,))
        return i, jax.random.categorical(column_key, self.log_p[i], axis=1)


def sinkhorn(
    cost: Array,
    epsilon: Scalar,
    *,
    a: Array | None = None,
    b: Array | None = None,
    tol: Scalar | None = None,
    max_steps: int = 2000,
) -> Plan:
    r"""The entropic plan of marginals a and b, $\min_P \langle P, C\rangle + \epsilon\, \mathrm{KL}(P | a b^\top)$.

    $$f_i = -\epsilon \ln \sum_j b_j e^{(g_j - C_{ij})/\epsilon},\qquad
      g_j = -\epsilon \ln \sum_i a_i e^{(f_i - C_{ij})/\epsilon}$$

    in the log domain, until the marginals agree to `tol` (1e-3 by default). An infinite cost forbids a pair. Between
    two updates in the log domain, 20 scale the absorbed kernel $e^{(f_i + g_j - C_{ij})/\epsilon}$ by matrix products,
    which take no exponentials.

    **Arguments.** `cost` (n, m). `epsilon` > 0. `a` (n,), `b` (m,): weights of the points, uniform by default.
    **Returns** a `Plan`, with the status `not_converged` where `max_steps` were not enough. **Cost** O(n m) a step;
    more steps for smaller epsilon / max C. **Errors** `ValueError` for weights that are negative or do not sum to 1.
    **See** Cuturi (2013); Schmitzer, Stabilized sparse scaling algorithms (2019), section 3.1; Peyre and Cuturi (2019),
    section 4.4.
    """
    epsilon = check.number(epsilon, "epsilon", above=0)
    cost = jnp.asarray(cost)
    if cost.ndim != 2 or 0 in cost.shape:
        raise ValueError(f"cost must be a matrix (n, m), got shape {cost.shape}")
    max_steps = check.count(max_steps, "max_steps")
    limit = None if tol is None else check.number(tol, "tol", above=0)
    a, b = _weights(a, "a", cost.shape[0], cost.dtype), _weights(b, "b", cost.shape[1], cost.dtype)
    return _sinkhorn(cost, epsilon, a, b, limit, max_steps)


def _weights(weights, name, n, dtype):
    if weights is None:
        return None
    weights = jnp.asarray(weights, dtype)
    if weights.shape != (n,):
        raise ValueError(f"{name} must be the weights of {n} points, got shape {weights.shape}")
    check.within(weights, name, least=0)
    known = check.known(weights)
    if known is not None and not abs(known.astype(np.float64).sum() - 1) < 1e-3:
        raise ValueError(f"{name} must sum to 1, got {known.sum():g}")
    return weights


@program
def _sinkhorn(cost, epsilon, a, b, tol, max_steps):
    n, m = cost.shape
    a = jnp.full(n, 1 / n, cost.dtype) if a is None else a
    b = jnp.full(m, 1 / m, cost.dtype) if b is None else b
    log_a, log_b = jnp.log(a), jnp.log(b)
    kernel = -cost / jnp.asarray(epsilon, cost.dtype)
    limit = jnp.asarray(1e-3 if tol is None else tol, cost.dtype)
    rows = lambda v: -logsumexp(kernel + (v + log_b)[None, :], axis=1)
    columns = lambda u: -logsumexp(kernel + (u + log_a)[:, None], axis=0)
    # A sum that underflows must not turn into an infinite scaling: the next update in the log domain repairs it.
    bounded = lambda scaling: jnp.clip(scaling, 1e-20, 1e20)

    def step(carry):
        _, _, u, _, k = carry
        v = columns(u)
        # The columns agree; the rows are off by what the next row update changes.
        new = rows(v)
        absorbed = jnp.exp(kernel + new[:, None] + v[None, :])
        scale = lambda _, s: bounded(1 / (absorbed @ (b * bounded(1 / ((a * s) @ absorbed)))))
        s = jax.lax.fori_loop(0, _SCALINGS, scale, jnp.ones(n, cost.dtype))
        return u, v, new + jnp.log(s), largest(new - u), k + 1 + _SCALINGS

    zeros = jnp.zeros(m, cost.dtype)
    first = rows(zeros)
    start = (first, zeros, first, jnp.asarray(jnp.inf, cost.dtype), jnp.zeros((), jnp.int32))
    u, v, _, residual, k = jax.lax.while_loop(lambda c: (c[3] > limit) & (c[4] < max_steps), step, start)
    log_p = kernel + (u + log_a)[:, None] + (v + log_b)[None, :]
    scale = jnp.asarray(epsilon, cost.dtype)
    code = jnp.where(residual <= limit, Code.ok, jnp.where(jnp.isfinite(residual), Code.not_converged, Code.diverged))
    return Plan(log_p, scale * u, scale * v, residual, k, status(code, k))


class Divergence(Checked):
    """`value` of a Sinkhorn divergence, and the `plan` between the two sets; `status`: the worst of its three plans."""

    computation: ClassVar[str] = "sinkhorn_divergence"

    value: Array
    plan: Plan
    status: Status


def half_square(x: Array, y: Array) -> Array:
    """|x - y|^2 / 2 of two samples."""
    return jnp.sum((x - y) ** 2) / 2


def sinkhorn_divergence(
    x: Array,
    y: Array,
    epsilon: Scalar,
    *,
    cost: Callable[[Array, Array], Array] = half_square,
    a: Array | None = None,
    b: Array | None = None,
    tol: Scalar | None = None,
    max_steps: int = 2000,
) -> Divergence:
    r"""The debiased entropic distance of two weighted sets of samples,

    $$S_\epsilon(x, y) = W_\epsilon(x, y) - \tfrac12 W_\epsilon(x, x) - \tfrac12 W_\epsilon(y, y), \qquad
      W_\epsilon = \min_P \langle P, C\rangle + \epsilon\,\mathrm{KL}(P | ab^\top),$$

    zero for equal sets, the cost of transport for $\epsilon \to 0$ and half the squared distance of the means for
    $\epsilon \to \infty$ with the default cost.

    **Arguments.** `x` (n, ...), `y` (m, ...): samples. `epsilon` > 0, in units of the cost. `cost`: of two samples,
    $|x - y|^2/2$ by default; symmetric. `a`, `b`, `tol`, `max_steps`: as in `sinkhorn`.
    **Returns** a `Divergence`, differentiable once in the samples, the weights and epsilon: at the optimum the plan
    does not move. **Cost** three calls of `sinkhorn`. **See** Feydy et al., Interpolating between optimal transport and
    MMD using Sinkhorn divergences (2019), eq. 3.
    """
    epsilon = check.number(epsilon, "epsilon", above=0)
    check.function(cost, "cost", "of two samples")
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim == 0 or y.ndim == 0 or x.shape[1:] != y.shape[1:] or 0 in (len(x), len(y)):
        raise ValueError(f"x (n, ...) and y (m, ...) must hold samples of one shape, got {x.shape} and {y.shape}")
    a, b = _weights(a, "a", len(x), x.dtype), _weights(b, "b", len(y), x.dtype)
    limit = None if tol is None else check.number(tol, "tol", above=0)
    return _divergence(x, y, epsilon, cost, a, b, limit, check.count(max_steps, "max_steps"))


@program
def _divergence(x, y, epsilon, cost, a, b, tol, max_steps):
    a = jnp.full(len(x), 1 / len(x), x.dtype) if a is None else a
    b = jnp.full(len(y), 1 / len(y), x.dtype) if b is None else b
    pairs = lambda x, y: jax.vmap(lambda p: jax.vmap(lambda q: cost(p, q))(y))(x)
    eps = jnp.asarray(epsilon, x.dtype)

    def work(C, a, b):
        still = jax.lax.stop_gradient
        plan = still(_sinkhorn(still(C), still(eps), still(a), still(b), tol, max_steps))
        P, (f, g) = jnp.exp(plan.log_p), (plan.f, plan.g)
        value = jnp.sum(a * f) + jnp.sum(b * g)
        kl = (value - jnp.sum(P * C)) / eps
        # Envelope theorem: the derivative in C is P, in epsilon the relative entropy, in the weights the potentials.
        return value + jnp.sum(P * (C - still(C))) + still(kl) * (eps - still(eps)), plan

    across, plan = work(pairs(x, y), a, b)
    within = [work(pairs(z, z), w, w) for z, w in ((x, a), (y, b))]
    codes = jnp.stack([p.status.code for p in (plan, within[0][1], within[1][1])])
    value = across - (within[0][0] + within[1][0]) / 2
    return Divergence(value, plan, status(jnp.max(codes), plan.steps))
