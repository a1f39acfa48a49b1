"""Sinkhorn's algorithm: the entropic plan of two empirical measures, in the log domain between scalings."""

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


def sinkhorn(cost: Array, epsilon: Scalar, *, tol: Scalar | None = None, max_steps: int = 2000) -> Plan:
    r"""The entropic plan of uniform marginals, $\min_P \langle P, C\rangle + \epsilon\, \mathrm{KL}(P | a b^\top)$.

    $$f_i = -\epsilon \ln \frac1m \sum_j e^{(g_j - C_{ij})/\epsilon},\qquad
      g_j = -\epsilon \ln \frac1n \sum_i e^{(f_i - C_{ij})/\epsilon}$$

    in the log domain, until the marginals agree to `tol` (1e-3 by default). An infinite cost forbids a pair. Between
    two updates in the log domain, 20 scale the absorbed kernel $e^{(f_i + g_j - C_{ij})/\epsilon}$ by matrix products,
    which take no exponentials.

    **Returns** a `Plan`, with the status `not_converged` where `max_steps` were not enough. **Cost** O(n m) a step;
    more steps for smaller epsilon / max C. **See** Cuturi (2013); Schmitzer, Stabilized sparse scaling algorithms
    (2019), section 3.1; Peyre and Cuturi (2019), section 4.4.
    """
    epsilon = check.number(epsilon, "epsilon", above=0)
    cost = jnp.asarray(cost)
    if cost.ndim != 2 or 0 in cost.shape:
        raise ValueError(f"cost must be a matrix (n, m), got shape {cost.shape}")
    max_steps = check.count(max_steps, "max_steps")
    limit = None if tol is None else check.number(tol, "tol", above=0)
    return _sinkhorn(cost, epsilon, limit, max_steps)


@program
def _sinkhorn(cost, epsilon, tol, max_steps):
    n, m = cost.shape
    kernel = -cost / jnp.asarray(epsilon, cost.dtype)
    limit = jnp.asarray(1e-3 if tol is None else tol, cost.dtype)
    rows = lambda v: np.log(m) - logsumexp(kernel + v[None, :], axis=1)
    columns = lambda u: np.log(n) - logsumexp(kernel + u[:, None], axis=0)
    # A sum that underflows must not turn into an infinite scaling: the next update in the log domain repairs it.
    bounded = lambda scaling: jnp.clip(scaling, 1e-20, 1e20)

    def step(carry):
        _, _, u, _, k = carry
        v = columns(u)
        # The columns agree; the rows are off by what the next row update changes.
        new = rows(v)
        absorbed = jnp.exp(kernel + new[:, None] + v[None, :])
        scale = lambda _, a: bounded(m / (absorbed @ bounded(n / (a @ absorbed))))
        a = jax.lax.fori_loop(0, _SCALINGS, scale, jnp.ones(n, cost.dtype))
        return u, v, new + jnp.log(a), largest(new - u), k + 1 + _SCALINGS

    zeros = jnp.zeros(m, cost.dtype)
    first = rows(zeros)
    start = (first, zeros, first, jnp.asarray(jnp.inf, cost.dtype), jnp.zeros((), jnp.int32))
    u, v, _, residual, k = jax.lax.while_loop(lambda c: (c[3] > limit) & (c[4] < max_steps), step, start)
    log_p = kernel + u[:, None] + v[None, :] - np.log(n) - np.log(m)
    scale = jnp.asarray(epsilon, cost.dtype)
    code = jnp.where(residual <= limit, Code.ok, jnp.where(jnp.isfinite(residual), Code.not_converged, Code.diverged))
    return Plan(log_p, scale * u, scale * v, residual, k, status(code, k))
