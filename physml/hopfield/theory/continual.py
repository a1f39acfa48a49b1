r"""Two tasks in a row: the potential of Franz and Parisi of the binary perceptron, forgetting included.

Teachers $W^1, W^2$ agree with mean product $r_0$. A reference $\tilde w$, typical among the solutions of
$\alpha_1N$ examples of task 1, has overlap $\tilde r$ with $W^1$ (`teacher_student`). A student w solves $\alpha_2N$
examples of task 2 at overlap p with the reference. The examples of task 2 know $W^2$ alone, and the sites know
$\tilde w$ and $W^2$, whose product has mean $\omega = r_0\tilde r$; so

$$s(p) = \operatorname*{extr}\Bigl\{-\tfrac12\hat q(1-q) - \hat r_2r_2 - \hat pp
  + \sum_{\sigma=\pm}\tfrac{1+\sigma\omega}2\int Dz\ln2\cosh(\sqrt{\hat q}z + \hat r_2 + \sigma\hat p)
  + \alpha_2E(q, r_2)\Bigr\}$$

with the energy E of one perceptron. With $T_\sigma = \int Dz\tanh(\cdot)$

$$r_2 = \tfrac{1+\omega}2T_+ + \tfrac{1-\omega}2T_-, \quad p = \tfrac{1+\omega}2T_+ - \tfrac{1-\omega}2T_-, \quad
  r_1 = \tfrac{r_0+\tilde r}2T_+ + \tfrac{r_0-\tilde r}2T_-,$$

the last because $W^1$ agrees with $\tilde w$ in the mean $(\tilde r\pm r_0)/(1\pm\omega)$ where $\tilde w = \pm W^2$.
The errors of generalisation are $\arccos(r_t)/\pi$. Where $\hat p = 0$ the student knows task 2 alone,
$q = r_2$, $p = \omega r_2$, $r_1 = r_0r_2$; without examples s(p) is the entropy of mixing. The symmetry of replicas is
stable where $\alpha_2\langle(\partial^2\ln\Phi)^2\rangle\langle\mathrm{sech}^4\rangle < 1$.

**See** Franz and Parisi, J. Phys. I France 5, 1401 (1995); Li, Huang, Zou and Huang, Statistical mechanics of continual
learning (2023).
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.float64 import float64_program
from physml.core.roots import bisect, descend, newton
from physml.core.types import Scalar
from physml.hopfield.theory.perceptron import output, solve_student
from physml.hopfield.theory.site import site


class TwoTaskOrder(Checked):
    """Overlaps of the student: `q` with another, `r1`, `r2` with the teachers, `p` with the reference, whose overlap
    with its own teacher is `reference`; `field` hat p, `entropy` s(p) per weight, `error1`, `error2` of generalisation;
    replica symmetry is stable where `stability` < 1; `status`."""

    computation: ClassVar[str] = "two_tasks"

    q: Array
    r1: Array
    r2: Array
    p: Array
    reference: Array
    field: Array
    entropy: Array
    error1: Array
    error2: Array
    stability: Array
    status: Status


def two_tasks(
    alpha1: Scalar,
    alpha2: Scalar,
    similarity: Scalar,
    *,
    field: Scalar | None = None,
    overlap: Scalar | None = None,
) -> TwoTaskOrder:
    r"""A student of task 2 held near a solution of task 1; see the module for its equations.

    **Arguments.** `alpha1`, `alpha2` >= 0: examples per weight. `similarity` $r_0$ in [-1, 1], of the teachers. One of
    `field`, hat p, the weight of the overlap in the student's measure, which message passing takes too, and `overlap`
    p in (-1, 1), which gives the whole potential s(p).
    **Returns** a `TwoTaskOrder`, the state that is reached without knowledge of task 2. All arguments may be
    differentiated. **Cost.** Some hundred to thousand averages over 321 nodes.
    **Errors.** Status `unphysical` where a constraint drives q to 1: no solutions are left there.
    """
    check.number(alpha1, "alpha1", least=0)
    check.number(alpha2, "alpha2", least=0)
    check.number(similarity, "similarity", least=-1, most=1)
    if (field is None) == (overlap is None):
        raise ValueError(f"give either field or overlap, got field={field}, overlap={overlap}")
    if overlap is not None:
        check.number(overlap, "overlap", above=-1, below=1)
        return _two_tasks(alpha1, alpha2, similarity, overlap, True)
    check.number(field, "field")  # type: ignore[arg-type]  # one of both is given
    return _two_tasks(alpha1, alpha2, similarity, field, False)


SIGNS = (1.0, -1.0)


def _equations(omega, alpha):
    """Shares of the two kinds of sites, their averages in the fields hat q, hat r, hat p, and the fields' update."""
    share = 0.5 * jnp.stack([1 + omega, 1 - omega])

    def sites(x, h, f):
        return jax.vmap(lambda sign: site(h + sign * f, x, jnp.ones(())))(jnp.asarray(SIGNS))

    def update(x, h, f):
        s = sites(x, h, f)
        gap = share @ s.chi
        out = output(1 - gap, share @ s.m, gap)
        return alpha * out.noise, alpha * out.signal

    return share, sites, update


def _start(omega, alpha, value, held):
    """Fields met from small ones, without derivatives."""
    share, sites, update = _equations(omega, alpha)

    def pull(x, h):
        reach = 20.0 + 10.0 * x + jnp.abs(h)
        overlap = lambda f: share @ (jnp.asarray(SIGNS) * sites(x, h, f).m)
        return bisect(lambda f: value - overlap(f), -reach, reach, 50) if held else value

    small = jnp.full((), 1e-3)

    def step(u):
        x, h = u
        return update(x, h, pull(x, h))

    x, h = descend(step, (small, small), tol=1e-8, max_steps=2000)
    return jnp.stack([x, h, pull(x, h)])


@float64_program(static=("held",))
def _two_tasks(alpha1, alpha2, r0, value, held):
    reference = solve_student(alpha1, "typical").r
    # Without examples, or without a mean, the fields' spread q - r^2 vanishes, and their averages need it.
    alpha = jnp.maximum(alpha2, 1e-11)
    omega, signs = r0 * reference, jnp.asarray(SIGNS)
    share, sites, update = _equations(omega, alpha)

    def residual(u):
        new_x, new_h = update(u[0], u[1], u[2])
        p = share @ (signs * sites(u[0], u[1], u[2]).m)
        return jnp.stack([u[0] - new_x, u[1] - new_h, (p if held else u[2]) - value])

    start = _start(*lax.stop_gradient((omega, alpha, value)), held)
    (x, h, f), state = newton(residual, start, tol=1e-10)
    s = sites(x, h, f)
    gap, r2, p = share @ s.chi, share @ s.m, share @ (signs * s.m)
    r1 = 0.5 * jnp.stack([r0 + reference, r0 - reference]) @ s.m
    out = output(1 - gap, r2, gap)
    entropy = -0.5 * x * gap - h * r2 - f * p + share @ s.log + alpha * out.energy
    error = lambda r: jnp.arccos(r) / math.pi
    stability = alpha * out.bend * (share @ s.kappa)
    # No solutions are left where the students shrink to a point.
    code = jnp.where(gap > 1e-6, state.code, Code.unphysical)
    return TwoTaskOrder(
        1 - gap, r1, r2, p, reference, f, entropy, error(r1), error(r2), stability, status(code, state.step)
    )
