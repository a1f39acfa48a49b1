r"""Amit, Gutfreund and Sompolinsky: the replica-symmetric phase diagram of the Hopfield model.

$K = \alpha N$ random patterns, $H = -\frac{1}{2N}\sum_\mu\bigl(\sum_i \xi_i^\mu s_i\bigr)^2$:

$$m = \int Dz \tanh\beta(m + \sqrt{\alpha r}\,z),\quad q = \int Dz \tanh^2\beta(m + \sqrt{\alpha r}\,z),\quad
  r = \frac{q}{(1 - \chi)^2},\quad \chi = \beta(1 - q)$$

$$f = \frac{m^2}{2} + \frac\alpha2\Bigl[1 + r\chi + T\ln(1 - \chi) - \frac{q}{1 - \chi}\Bigr]
  - T\int Dz \ln 2\cosh\beta(m + \sqrt{\alpha r}\,z)$$

Below $T_g = 1 + \sqrt\alpha$ the spins freeze; below $T_M$ patterns are metastable, below $T_c$ they are the ground
state; below $T_R$ replica symmetry breaks in the retrieval state. At T = 0 retrieval ends at $\alpha_c = 0.1379056$.

**See** Amit, Gutfreund and Sompolinsky, Ann. Phys. 173, 30 (1987).
"""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from physml.core.float64 import float64_program
from physml.core.types import Scalar
from physml.hopfield.theory.replica import Memory, Order, Phase as Phase, check_state, line, solve


class Lines(eqx.Module):
    """Temperatures of the transitions at one load: `glass` T_g, `retrieval` T_M, `coexistence` T_c, `stability` T_R.
    NaN where a line does not exist at this load."""

    glass: Array
    retrieval: Array
    coexistence: Array
    stability: Array


def amit(alpha: Scalar, temperature: Scalar, *, start: Literal["retrieval", "glass"] = "retrieval") -> Order:
    r"""The state at load `alpha` and `temperature`; see the module for its equations.

    **Arguments.** `alpha` >= 0: patterns per spin. `temperature` >= 0; 0 is exact to some $10^{-10}$. `start`: the
    branch followed down from m = 1, or the one with m = 0.
    **Returns** an `Order`. Where retrieval does not exist the state without it is returned, as `phase` and m = 0 say.
    Status `unphysical` where m = 0, T < 1 and alpha is so small that chi comes out at or above 1.
    **Cost.** Some hundred averages over 321 nodes, milliseconds; the iteration slows down next to T_M.
    **Derivatives** with respect to both arguments are those of the solution (implicit function theorem).

    **Example.** `amit(0.1, 0.2).m` is 0.98909.
    """
    check_state(alpha, temperature, "alpha")
    return solve(Memory(2), alpha, temperature, start)


def amit_lines(alpha: Scalar) -> Lines:
    r"""Every transition temperature at load `alpha` > 0.

    $T_g = 1 + \sqrt\alpha$; $T_M$ is a fold, found by Newton's method in two unknowns; $T_c$ equates free energies; at
    $T_R$ the retrieval branch has $\frac{\alpha}{(1-\chi)^2}\beta^2\int Dz\,\mathrm{sech}^4 = 1$. NaN where a line does
    not exist: $T_M$ above .1382, $T_c$ above .052, $T_R$ below .055, where it is under $10^{-5}$ and not resolved.
    """
    check_state(alpha, 0.0, "alpha")
    at = lambda kind: line(Memory(2), kind, "load", alpha)[0]
    return Lines(_glass(alpha), at("fold"), at("coexistence"), at("stability"))


@float64_program
def _glass(alpha):
    return 1 + jnp.sqrt(alpha)
