r"""Couplings: which source sample is paired with which data sample.

A coupling is a frozen Module with one method, `pair(x0, x1, *, key, condition=None) -> Pairs(i, j, cost)`: rows i of
the source meet rows j of the data. `couple` takes the rows, and whatever belongs to the data moves with it; `match`
calls it. `coupling(x0, x1, key=key)` returns the paired samples alone. No gradient passes through a choice of rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.program import program
from physml.core.types import Key, Scalar
from physml.matching._checks import check_batch
from physml.matching.couplings.sinkhorn import sinkhorn
from physml.metrics._assignment import assign, on_host


class Pairs(NamedTuple):
    r"""Rows `i` of the source and `j` of the data that belong together, each (k,), and `cost`: the mean of
    $|x_{0,i} - x_{1,j}|^2$ over them, the transport cost of the batch."""

    i: Array
    j: Array
    cost: Array


def couple(
    coupling: Callable[..., Any], x0: Array, x1: Array, *, key: Key, args: PyTree = None
) -> tuple[Array, Array, PyTree]:
    r"""The batch re-paired: $(x_{0,i}, x_{1,j}, a_j)$, where `args` (leading axis n, or None) belongs to the data.

    Couple a batch larger than the training batch once and train on its rows, or give several losses the same pairs:
    ```python
    x0, x1, labels = couple(Assignment(), x0, x1, key=key, args=labels)  # n = 4096, one plan
    fit(loss, model, (x0, x1, labels), batch_size=256, key=key)  # 16 batches of it
    ```
    A coupling without a method `pair`, a plain `coupling(x0, x1, key=key) -> (x0, x1)`, leaves `args` as they are.

    **Errors** `ValueError` for batches or args that do not match.
    """
    n = check_batch(x0, x1, args)
    if not hasattr(coupling, "pair"):
        shape = x0.shape
        x0, x1 = coupling(x0, x1, key=key)
        if x0.shape != shape or x1.shape != shape:
            raise ValueError(f"the coupling returned shapes {x0.shape}, {x1.shape} for batches of {shape}")
        return x0, x1, args
    i, j, _ = coupling.pair(x0, x1, key=key, condition=args)
    if i.shape != j.shape or i.ndim != 1:
        raise ValueError(f"the coupling returned rows of shapes {i.shape}, {j.shape} for batches of {n}: expected (k,)")
    return _rows(x0, x1, args, i, j)


@program
def _rows(x0, x1, args, i, j):
    return x0[i], x1[j], jax.tree.map(lambda leaf: leaf[j], args)


def check_coupling(coupling: Any) -> None:
    """A `ValueError` for a coupling that is a class or a word, not an object to call."""
    if coupling is not None and (isinstance(coupling, type) or not callable(coupling)):
        shown = f"the class {coupling.__name__}" if isinstance(coupling, type) else repr(coupling)
        raise ValueError(f"coupling must be Assignment(), Entropic(epsilon), Keep(...) or a function, got {shown}")


@program
def squared_distances(x0: Array, x1: Array) -> Array:
    """(n, m) squared Euclidean distances of flattened samples, by a matrix product; never negative."""
    a, b = x0.reshape(len(x0), -1), x1.reshape(len(x1), -1)
    # Distances do not change under a shift; about the common mean the product cancels fewer digits.
    centre = b.mean(0, keepdims=True)
    a, b = a - centre, b - centre
    return jnp.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2.0 * a @ b.T, 0.0)


class Independent(eqx.Module):
    """The pairing the batch came with."""

    def pair(self, x0: Array, x1: Array, *, key: Key, condition: PyTree = None) -> Pairs:
        """Row i with row i."""
        rows = jnp.arange(check_batch(x0, x1, condition), dtype=jnp.int32)
        return _pairs(x0, x1, rows, rows)

    def __call__(self, x0: Array, x1: Array, *, key: Key) -> tuple[Array, Array]:
        return x0, x1


class Assignment(eqx.Module):
    r"""Minibatch optimal transport: the permutation of least cost, exactly.

    $$\min_\sigma \sum_i |x_{0,i} - x_{1,\sigma(i)}|^2 + w\, |c_i - c_{\sigma(i)}|^2$$

    Inside jit by a call back to SciPy's Jonker-Volgenant solver on the host, in float64: about 2 ms for 256 samples,
    O(n^3). The potentials of a few Sinkhorn steps are taken off the costs before, which leaves the optimum where it is
    and its search several times shorter. Source samples stay where they are.

    **Arguments.** `batches`: solve blocks of n / batches samples apart (1: the whole batch). `condition_weight`: w, for
    data with a condition c. Without it the optimum pairs the source of one condition with the data of another, and the
    model is trained on a source $p(x_0 | c)$ that no sampler draws from. Each source sample bears the condition of its
    row; a label (integers) counts 1 where it differs, and `jnp.inf` keeps every pair within its label: transport class
    by class, with $p(x_0 | c) = p(x_0)$ exactly. A finite w, for continuous c, trades some of that for lower cost.
    **Errors** `ValueError` for batches that do not match or do not divide, and for a weight without a condition.
    **See** Tong et al., Improving and generalizing flow-based generative models with minibatch OT (2023), section 3.2;
    Cheng and Schwing, The curse of conditions: C2OT (2025); Kerrigan et al., Dynamic conditional OT (2024).
    """

    batches: int = eqx.field(static=True, default=1)
    condition_weight: Scalar | None = None

    def pair(self, x0: Array, x1: Array, *, key: Key, condition: PyTree = None) -> Pairs:
        """Row i with row sigma(i), for all i in order."""
        n = check_batch(x0, x1, condition)
        if self.batches < 1 or n % self.batches:
            raise ValueError(f"Assignment needs a batch divisible by batches={self.batches}; got {x0.shape}")
        _check_weight(condition, self.condition_weight)
        costs = _block_costs(x0, x1, condition, self.condition_weight, self.batches)
        order = on_host(_assign, jax.ShapeDtypeStruct(costs.shape[:2], jnp.int32), costs)
        return _block_pairs(x0, x1, order)

    def __call__(self, x0: Array, x1: Array, *, key: Key) -> tuple[Array, Array]:
        return couple(self, x0, x1, key=key)[:2]


class Keep(eqx.Module):
    r"""A batch for transport larger than the training batch: couple all n pairs, train on `pairs` of them at random.

    The plan of n samples is closer to that of the population: its bias falls with n and not with the training batch.
    `match(..., coupling=Keep(Assignment(), 256))` then takes batches of n = 1024, say. `couple` once and train on the
    rows where the plan is what costs.

    **Errors** `ValueError` for `pairs` beyond the batch.
    """

    coupling: Any
    pairs: int = eqx.field(static=True)

    def pair(self, x0: Array, x1: Array, *, key: Key, condition: PyTree = None) -> Pairs:
        """`pairs` of the pairs, without replacement."""
        n = check_batch(x0, x1, condition)
        if not 1 <= self.pairs <= n:
            raise ValueError(f"Keep(pairs={self.pairs}) of a batch of {n}: expected between 1 and {n}")
        choice_key, pair_key = jax.random.split(key)
        i, j, _ = self.coupling.pair(x0, x1, key=pair_key, condition=condition)
        kept = jax.random.choice(choice_key, len(i), (self.pairs,), replace=False)
        return _pairs(x0, x1, i[kept], j[kept])

    def __call__(self, x0: Array, x1: Array, *, key: Key) -> tuple[Array, Array]:
        return couple(self, x0, x1, key=key)[:2]


class Entropic(eqx.Module):
    r"""Pairs drawn from the entropic plan of the batch for the cost $|x - y|^2/2$ at temperature epsilon.

    With $\epsilon = \sigma^2$ and `brownian_bridge(sigma)` this is the Schrodinger bridge by matching, SF2M. Every
    source sample is taken once, in order, and its partner drawn from its row of the plan.

    **Arguments.** `epsilon`: the temperature. `max_steps`: of `sinkhorn`, whose `residual` says whether they suffice
    for an epsilon as small beside the cost as yours. `condition_weight`: w, adds
    $w |c_i - c_j|^2/2$ to the cost, as in `Assignment`.
    **See** Tong et al., Simulation-free Schrodinger bridges via score and flow matching (2023), algorithm 1.
    """

    epsilon: Scalar
    max_steps: int = eqx.field(static=True, default=2000)
    condition_weight: Scalar | None = None

    def __check_init__(self):
        check.within(self.epsilon, "epsilon", above=0)
        check.count(self.max_steps, "max_steps")

    def pair(self, x0: Array, x1: Array, *, key: Key, condition: PyTree = None) -> Pairs:
        """Row i with a row drawn from the plan, for all i in order."""
        n = check_batch(x0, x1, condition)
        _check_weight(condition, self.condition_weight)
        cost = _block_costs(x0, x1, condition, self.condition_weight, 1)[0]
        plan = sinkhorn(0.5 * cost, self.epsilon, max_steps=self.max_steps)
        return _pairs(x0, x1, jnp.arange(n, dtype=jnp.int32), jax.random.categorical(key, plan.log_p, axis=1))

    def __call__(self, x0: Array, x1: Array, *, key: Key) -> tuple[Array, Array]:
        return couple(self, x0, x1, key=key)[:2]


def _check_weight(condition: PyTree, weight: Scalar | None) -> None:
    if weight is not None and not jax.tree.leaves(condition):
        raise ValueError(
            f"condition_weight={weight} needs a condition: give match or couple the condition of x1 as args"
        )
    if weight is not None:
        check.within(weight, "condition_weight", least=0, finite=False)


@program
def _block_costs(x0, x1, condition, weight, batches):
    """(batches, size, size)."""
    blocks = jax.tree.map(lambda x: x.reshape(batches, -1, *x.shape[1:]), (x0, x1, condition))
    return jax.vmap(lambda a, b, c: _cost(a, b, c, weight))(*blocks)


@program
def _block_pairs(x0, x1, order):
    batches, size = order.shape
    flat = (order + size * jnp.arange(batches, dtype=jnp.int32)[:, None]).ravel()
    return _pairs(x0, x1, jnp.arange(len(flat), dtype=jnp.int32), flat)


def _cost(x0: Array, x1: Array, condition: PyTree, weight: Scalar | None) -> Array:
    """(n, n) costs of all pairs; forbidden pairs cost inf. Constant under differentiation."""
    x0, x1, condition = jax.lax.stop_gradient((x0, x1, condition))
    cost = squared_distances(x0, x1)
    if weight is None:
        return cost
    differ = sum(_mismatch(leaf, cost.dtype) for leaf in jax.tree.leaves(condition))
    # 0 inf is not a number: pairs of one condition cost nothing at any weight.
    return cost + jnp.where(differ > 0, jnp.asarray(weight, cost.dtype) * differ, 0.0)


def _mismatch(c: Array, dtype: Any) -> Array:
    """|c_i - c_j|^2, or whether the labels differ."""
    c = c.reshape(len(c), -1)
    if jnp.issubdtype(c.dtype, jnp.floating):
        return jnp.sum((c[:, None] - c[None]) ** 2, -1).astype(dtype)
    return jnp.any(c[:, None] != c[None], -1).astype(dtype)


@program
def _pairs(x0: Array, x1: Array, i: Array, j: Array) -> Pairs:
    difference = jax.lax.stop_gradient((x0[i] - x1[j]).reshape(len(i), -1))
    return Pairs(i, j, jnp.mean(jnp.sum(difference**2, axis=1)))


def _assign(costs: Any) -> np.ndarray:
    # A sample that is not a number must reach the loss, which says at which step; any pairing serves for that.
    return np.stack([assign(cost) for cost in np.asarray(costs, np.float64)])
