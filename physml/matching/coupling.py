r"""Couplings: which source sample is paired with which data sample. All of them are `coupling(x0, x1, key=key)`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array

from physml.core.types import Key, Scalar


def squared_distances(x0: Array, x1: Array) -> Array:
    """(n, m) squared Euclidean distances of flattened samples, by a matrix product; never negative."""
    a, b = x0.reshape(len(x0), -1), x1.reshape(len(x1), -1)
    # Distances do not change under a shift; about the common mean the product cancels fewer digits.
    centre = b.mean(0, keepdims=True)
    a, b = a - centre, b - centre
    return jnp.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2.0 * a @ b.T, 0.0)


class Independent(eqx.Module):
    """The pairing the batch came with."""

    def __call__(self, x0: Array, x1: Array, *, key: Key) -> tuple[Array, Array]:
        return x0, x1


class Assignment(eqx.Module):
    r"""Minibatch optimal transport: the permutation that minimises $\sum_i |x_{0,i} - x_{1,\sigma(i)}|^2$, exactly.

    Inside jit by a call back to SciPy's Jonker-Volgenant solver on the host: about 2 ms for 256 samples, O(n^3).
    Source samples stay where they are, so `args` that belong to x0 stay valid; give the condition of x1 through
    `condition_weight` when there is one.

    **Arguments.** `batches`: solve blocks of n / batches samples apart (1: the whole batch). A batch for transport
    larger than the training batch: draw `k n` pairs, couple them, and keep n.
    **See** Tong et al., Improving and generalizing flow-based generative models with minibatch OT (2023), section 3.2.
    """

    batches: int = eqx.field(static=True, default=1)

    def __call__(self, x0: Array, x1: Array, *, key: Key) -> tuple[Array, Array]:
        n = len(x0)
        if x1.shape != x0.shape or n % self.batches:
            raise ValueError(
                f"Assignment needs equal batches, divisible by batches={self.batches}; got {x0.shape}, {x1.shape}"
            )
        cost = lambda a, b: squared_distances(jax.lax.stop_gradient(a), jax.lax.stop_gradient(b))
        size = n // self.batches
        blocks = lambda x: x.reshape(self.batches, size, *x.shape[1:])
        costs = jax.vmap(cost)(blocks(x0), blocks(x1))
        order = jax.pure_callback(
            _assign, jax.ShapeDtypeStruct((self.batches, size), jnp.int32), costs, vmap_method="sequential"
        )
        flat = (order + size * jnp.arange(self.batches, dtype=jnp.int32)[:, None]).ravel()
        return x0, x1[flat]


def _assign(costs: Any) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    return np.stack([linear_sum_assignment(np.asarray(cost, np.float64))[1] for cost in costs]).astype(np.int32)


class Plan(eqx.Module):
    """An entropic plan of two empirical measures: `log_p` (n, m), log-probabilities of pairs; `potentials` f, g;
    `residual`: the largest error of a row's marginal, in log."""

    log_p: Array
    f: Array
    g: Array
    residual: Array
    steps: Array

    def sample(self, n: int, *, key: Key) -> tuple[Array, Array]:
        """Indices (i, j) of n pairs drawn from the plan."""
        flat = jax.random.categorical(key, self.log_p.ravel(), shape=(n,))
        return flat // self.log_p.shape[1], flat % self.log_p.shape[1]


def sinkhorn(cost: Array, epsilon: Scalar, *, tol: Scalar | None = None, max_steps: int = 2000) -> Plan:
    r"""The entropic plan of uniform marginals, $\min_P \langle P, C\rangle + \epsilon\, \mathrm{KL}(P | a b^\top)$.

    $$f_i = -\epsilon \ln \frac1m \sum_j e^{(g_j - C_{ij})/\epsilon},\qquad
      g_j = -\epsilon \ln \frac1n \sum_i e^{(f_i - C_{ij})/\epsilon}$$

    in the log domain, until the marginals agree to `tol` (1e-3 by default). **Cost** O(n m) a step; more steps for
    smaller epsilon / max C. **See** Cuturi (2013); Peyre and Cuturi (2019), section 4.4.
    """
    if isinstance(epsilon, int | float) and epsilon <= 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    if cost.ndim != 2:
        raise ValueError(f"cost must be a matrix (n, m), got shape {cost.shape}")
    n, m = cost.shape
    kernel = -cost / jnp.asarray(epsilon, cost.dtype)
    limit = jnp.asarray(1e-3 if tol is None else tol, cost.dtype)

    def step(carry):
        _, v, _, k = carry
        u = np.log(m) - logsumexp(kernel + v[None, :], axis=1)
        new = np.log(n) - logsumexp(kernel + u[:, None], axis=0)
        # After the column update the rows are off by what the next row update would change.
        row = np.log(m) - logsumexp(kernel + new[None, :], axis=1)
        return u, new, jnp.max(jnp.abs(row - u)), k + 1

    start = (jnp.zeros(n, cost.dtype), jnp.zeros(m, cost.dtype), jnp.asarray(jnp.inf, cost.dtype), 0)
    u, v, residual, k = jax.lax.while_loop(lambda c: (c[2] > limit) & (c[3] < max_steps), step, start)
    log_p = kernel + u[:, None] + v[None, :] - np.log(n) - np.log(m)
    scale = jnp.asarray(epsilon, cost.dtype)
    return Plan(log_p, scale * u, scale * v, residual, jnp.asarray(k))


class Entropic(eqx.Module):
    r"""Pairs drawn from the entropic plan of the batch for the cost $|x - y|^2/2$ at temperature epsilon.

    With $\epsilon = \sigma^2$ and `brownian_bridge(sigma)` this is the Schrodinger bridge by matching, SF2M.
    **See** Tong et al., Simulation-free Schrodinger bridges via score and flow matching (2023), algorithm 1.
    """

    epsilon: Scalar
    max_steps: int = eqx.field(static=True, default=2000)

    def __call__(self, x0: Array, x1: Array, *, key: Key) -> tuple[Array, Array]:
        cost = 0.5 * squared_distances(jax.lax.stop_gradient(x0), jax.lax.stop_gradient(x1))
        i, j = sinkhorn(cost, self.epsilon, max_steps=self.max_steps).sample(len(x0), key=key)
        return x0[i], x1[j]
