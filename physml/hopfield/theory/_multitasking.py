r"""Diluted patterns, retrieved several at a time: hierarchical and parallel regimes, learned from examples or given.

Every entry is blank with probability d, else a fair sign. A spin whose entry of the strongest pattern is blank is free
to serve the next: for K patterns, exactly, with an average over the $3^K$ values of $(\xi^1, \dots, \xi^K)$,

$$m_\mu = \Bigl\langle\xi^\mu\tanh\beta\sum_\nu\xi^\nu m_\nu\Bigr\rangle, \qquad T_c = 1 - d$$

At T = 0 the *hierarchical* state $m_k = (1-d)d^{k-1}$ exists while $1 - d > d(1 - d^{K-1})$; beyond, no pattern
outvotes the others together and they are retrieved in *parallel*. From M examples of quality r,
$\rho = (1-r^2)/(Mr^2)$, and
$H = -\frac{N}{2(1+\rho)}\sum_\mu n_\mu^2$ the field is $\sum_\nu\xi^\nu(1 + \sqrt\rho z^\nu)n_\nu/(1 + \rho)$, so

$$n_\mu = \langle\xi^\mu\tanh\rangle + \frac{\rho}{1+\rho}n_\mu\,\beta\langle(\xi^\mu)^2\,\mathrm{sech}^2\rangle$$

with the teacher's mean examples; without a teacher the state symmetric in the examples solves the same equations
when K/N vanishes, and $T_c$ is 1 - d for both.

**See** Agliari, Alessandrelli, Barra and Ricci-Tersenghi, Parallel learning by multitasking neural networks (2023).
"""

import itertools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Status
from physml.core.float64 import float64_program
from physml.core.roots import descend, newton
from physml.core.types import Scalar
from physml.hopfield.theory.replica import check_state
from physml.hopfield.theory.site import site


class TaskOrder(Checked):
    """`m` (K,) overlaps with the patterns, `n` (K,) with the mean examples, `free_energy`, `stability`: the state is a
    local minimum where it is below 1 (a diagnostic: it has no derivative); `status`."""

    computation: ClassVar[str] = "multitasking"

    m: Array
    n: Array
    free_energy: Array
    stability: Array
    status: Status


def multitasking(
    k: int,
    blank: Scalar,
    temperature: Scalar,
    *,
    rho: Scalar = 0.0,
    start: Literal["hierarchical", "parallel"] = "hierarchical",
) -> TaskOrder:
    r"""The state of K diluted patterns at low load; see the module for its equations.

    **Arguments.** `k`: patterns, 1 to 7. `blank` d in [0, 1). `temperature` >= 0. `rho` >= 0: entropy of the data set,
    0 where the patterns are given. `start`: iterate from $(1-d)d^{k-1}$, or from equal overlaps.
    **Cost.** $3^K$ averages over 321 nodes per iteration.

    **Example.** `multitasking(3, 0.4, 0.02).m` is (.600, .240, .096).
    """
    k = check.count(k, "k", most=7)
    check.number(blank, "blank", least=0, below=1)
    check_state(rho, temperature, "rho")
    check.choice(start, "start", ("hierarchical", "parallel"))
    return _multitasking(k, blank, temperature, rho, np.asarray(start == "hierarchical"))


@float64_program(static=("k",))
def _multitasking(k, d, t, rho, ordered):
    first = (1 - d) * jnp.where(ordered, d ** np.arange(float(k)), 1 / k**0.5)
    xi = jnp.asarray(list(itertools.product([-1.0, 0.0, 1.0], repeat=k)))
    blanks = jnp.sum((xi == 0).astype(d.dtype), 1)
    weight = d**blanks * (0.5 * (1 - d)) ** (k - blanks)
    scale = rho / (1 + rho)

    def sites(n):
        return jax.vmap(lambda x: site(x @ n / (1 + rho), scale / (1 + rho) * (x**2 @ n**2), t))(xi)

    def step(n):
        out = sites(n)
        return weight * out.m @ xi + scale * n * (weight * out.chi @ xi**2)

    start = jax.lax.stop_gradient(descend(step, jax.lax.stop_gradient(first)))
    n, state = newton(lambda n: step(n) - n, start, tol=1e-10)
    out = sites(n)
    free = 0.5 * jnp.sum(n**2) / (1 + rho) - weight @ out.log
    stability = jnp.max(jnp.linalg.eigvals(jax.jacfwd(step)(jax.lax.stop_gradient(n))).real)
    return TaskOrder(weight * out.m @ xi, n, free, stability, state)
