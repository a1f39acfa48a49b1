r"""Dense associative memories: patterns that interact p spins at a time.

$$H = -\sum_{\mu=1}^{K}\frac{N}{p}\, m_\mu^p \quad\text{(raw)},\qquad
  H = -\frac{(p-1)!}{N^{p-1}}\sum_\mu\sum_{i_1<\dots<i_p}\prod_{k=1}^p\xi^\mu_{i_k}s_{i_k}\quad\text{(distinct)}$$

They differ in sums with equal indices, which for $K = a N^{p-1}/(p-1)!$ patterns are of the order of the noise. With
$V = a q^{p-1}$ (distinct) or $V = a\sum_k \frac{c_k^2 k!}{(p-1)!}q^k$, $x^{p-1} = \sum_k c_k\mathrm{He}_k(x)$ (raw),

$$m = \int Dz\tanh\beta(m^{p-1} + \sqrt V z),\qquad q = \int Dz\tanh^2\beta(m^{p-1} + \sqrt V z)$$

$$f = \frac{p-1}{p}m^p - \frac\beta2\bigl[\Gamma(1) - \Gamma(q) - (1 - q)\Gamma'(q)\bigr]
  - T\int Dz\ln 2\cosh\beta(m^{p-1} + \sqrt V z),\qquad \Gamma' = V$$

For p = 3 the raw sum leaves $V = a(q^2 + \tfrac12)$, an exact random field. At T = 0, where q = 1, one convention is
the other at a load $(2p-3)!!/(p-1)!$ times as large.

**See** Gardner, J. Phys. A 20, 3453 (1987); Krotov and Hopfield (2016) for the raw power.
"""

import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array

from physml.core import check
from physml.core.types import Scalar
from physml.hopfield.theory.replica import Convention, Memory, Order, check_order, check_state, line, solve


def dense(
    p: int,
    load: Scalar,
    temperature: Scalar,
    *,
    convention: Convention = "distinct",
    start: Literal["retrieval", "glass"] = "retrieval",
) -> Order:
    r"""The replica-symmetric state of a memory with p-spin interactions; see the module for its equations.

    **Arguments.** `p` >= 2; p = 2 is `amit`, in both conventions. `load` $a = (p-1)!\,K/N^{p-1} \ge 0$, in both
    conventions. `temperature` >= 0. `start`: the branch from m = 1, or m = 0.
    **Returns** an `Order`; where retrieval does not exist, the state with m = 0. **Derivatives** are implicit.
    """
    check_order(p, convention)
    check_state(load, temperature, "load")
    return solve(Memory(p, convention), load, temperature, start)


def critical_load(p: int = 2, temperature: Scalar = 0.0, *, convention: Convention = "distinct") -> Array:
    r"""The load at which retrieval ends: $a_c$ = .137906, .252191, .197860 for p = 2, 3, 4 at T = 0.

    A fold of the retrieval branch, found by Newton's method in two unknowns; NaN above the temperature where retrieval
    ends without load. In the raw convention at T = 0 it is smaller by $(p-1)!/(2p-3)!!$. Differentiable in T.
    """
    return transition(p, temperature, "fold", convention=convention)


def transition(
    p: int,
    temperature: Scalar,
    kind: Literal["fold", "coexistence", "stability"],
    *,
    convention: Convention = "distinct",
) -> Array:
    """The load at which, at this temperature, retrieval ends (`fold`), ceases to be the lowest state (`coexistence`) or
    starts to break replica symmetry (`stability`). NaN where it does none of this."""
    check_order(p, convention)
    check.choice(kind, "kind", ("fold", "coexistence", "stability"))
    check_state(0.0, temperature, "load")
    return line(Memory(p, convention), kind, "temperature", temperature)[1]


def raw_load(p: int, load: Scalar) -> Array:
    r"""At T = 0 the raw convention at this load is the distinct one at `load`: $a (p-1)!/(2p-3)!!$."""
    check_order(p, "raw")
    if p == 2:
        return jnp.asarray(load, jnp.result_type(float))
    return jnp.asarray(load, jnp.result_type(float)) * (math.factorial(p - 1) / math.prod(range(2 * p - 3, 0, -2)))
