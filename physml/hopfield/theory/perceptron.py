r"""The binary perceptron with a teacher: what it learns, when it knows the teacher, how many solutions there are where.

A student $w \in \{\pm1\}^N$ fits $\alpha N$ Gaussian inputs labelled by a teacher. Two solutions have overlap q, a
solution and the teacher r; replica symmetry gives the entropy of solutions per weight

$$s = \operatorname*{extr}\Bigl\{-\tfrac12\hat q(1-q) - \hat rr + \int Dz\ln2\cosh(\sqrt{\hat q}z + \hat r)
  + \alpha E(q, r)\Bigr\}, \qquad E = 2\int Dz\,\Phi\Bigl(\frac{rz}{\sqrt{q-r^2}}\Bigr)\ln\Phi\Bigl(\sqrt{\frac q{1-q}}z
  \Bigr)$$

with, by parts on the Gaussian and with $g = \Phi'/\Phi$, $t = \sqrt{q/(1-q)}$, $c = r/\sqrt{q-r^2}$,

$$\hat q = -2\alpha\partial_qE = \frac{2\alpha}{1-q}\int Dz\,\Phi(cz)g(tz)^2, \qquad
  \hat r = \alpha\partial_rE = \frac{2\alpha t}{\sqrt{q-r^2}}\int Dz\,\Phi'(cz)g(tz)$$

A typical solution sees the teacher as it sees another solution, so q = r, $\hat q = \hat r$, and everything is explicit
in $\hat q$: $\alpha = \hat q(1-q)/2\int Dz\,\Phi'(tz)g(tz)$. The maximum of $\alpha(\hat q)$ is the spinodal of poor
generalisation; the teacher itself, r = 1 and s = 0, solves the equations at every load and wins where s < 0.

**See** Györgyi, Phys. Rev. A 41, 7097 (1990); Krauth and Mézard, J. Phys. France 50, 3057 (1989).
"""

import functools
import math
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtr
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.float64 import float64_program
from physml.core.roots import bisect, descend, newton
from physml.core.special import normal_tail
from physml.core.types import Scalar
from physml.hopfield.theory.site import nodes, site

LARGEST = 60.0  # hat q up to which branches are followed: 1 - r is 1e-13 there


class StudentOrder(Checked):
    """`r` overlap with the teacher, `field` hat q, `entropy` per weight, `error` of generalisation arccos(r) / pi."""

    computation: ClassVar[str] = "teacher_student"

    r: Array
    field: Array
    entropy: Array
    error: Array
    status: Status


class PlantedEntropy(Checked):
    """`entropy` s(r) per weight of the solutions at overlap r with the teacher, `q` the overlap between two of them,
    `slope` ds/dr."""

    computation: ClassVar[str] = "planted_entropy"

    entropy: Array
    q: Array
    slope: Array
    status: Status


class Output(eqx.Module):
    r"""The constraints on one side: `energy` E(q, r), `noise` $-2\partial_qE$, `signal` $\partial_rE$, and `bend`
    $\langle(\partial^2\ln\Phi)^2\rangle$, which enters the stability of replica symmetry."""

    energy: Array
    noise: Array
    signal: Array
    bend: Array


def output(q: Array, r: Array, gap: Array) -> Output:
    """Averages over the fields of an input; `gap` is 1 - q, which is known to full accuracy near q = 1."""
    rest = q - r**2
    t, c = jnp.sqrt(q / gap), r / jnp.sqrt(rest)
    width = 1 / jnp.maximum(jnp.maximum(t, jnp.abs(c)), 1.0)
    z, w = lax.stop_gradient(nodes(jnp.zeros(()), width))
    x = t * z
    log, g = normal_tail(x)
    weight = 2 * w * ndtr(c * z)
    ridge = 2 * w * jnp.exp(-0.5 * (c * z) ** 2) / math.sqrt(2 * math.pi)
    bend = g * (g + x) / gap
    return Output(weight @ log, weight @ g**2 / gap, t / jnp.sqrt(rest) * (ridge @ g), weight @ bend**2)


def _point(v):
    """r, 1 - r, alpha, the entropy, on the line of typical solutions, at hat q = exp(v)."""
    x = jnp.exp(v)
    s = site(x, x, jnp.ones(()))
    gap = s.chi
    r = 1 - gap
    out = output(r, r, gap)
    alpha = x / out.noise
    return r, gap, alpha, -0.5 * x * (1 + r) + s.log + alpha * out.energy


def _turn():
    """ln hat q at the spinodal."""
    slope = jax.grad(lambda v: jnp.log(_point(v)[2]))
    return bisect(slope, jnp.full((), -2.0), jnp.full((), 3.0), 50)


def teacher_student(
    alpha: Scalar, *, branch: Literal["typical", "poor", "unstable", "perfect"] = "typical"
) -> StudentOrder:
    r"""A typical solution of the teacher's examples, which is also the mean of the posterior's square.

    **Arguments.** `alpha` >= 0: examples per weight. `branch`: "poor" generalisation, up to the spinodal at 1.493; the
    "unstable" solution between it and the teacher; "perfect", r = 1; "typical", the one of the largest entropy: poor up
    to 1.2447, then perfect. **Returns** a `StudentOrder`; status `unphysical` and NaN where the branch has ended.
    **Cost.** Some hundred averages over 321 nodes.
    """
    check.number(alpha, "alpha", least=0)
    check.choice(branch, "branch", ("typical", "poor", "unstable", "perfect"))
    return _teacher_student(alpha, branch)


@float64_program
def _teacher_student(alpha, branch):
    return solve_student(alpha, branch)


def solve_student(alpha: Array, branch: str) -> StudentOrder:
    """`teacher_student` in float64, part of a program."""
    if branch == "perfect":
        zero, one = jnp.zeros(()), jnp.ones(())
        return StudentOrder(one, jnp.full((), jnp.inf), zero, zero, status(Code.ok))
    end = jnp.log(jnp.asarray(LARGEST)) if branch == "unstable" else jnp.full((), -32.0)
    return _student(alpha, end, jnp.asarray(branch == "typical"))


def _student(alpha, end, typical):
    turn = _turn()
    goal = jnp.maximum(alpha, 1e-13)  # without examples the equations hold at hat q = 0, the end of a logarithm
    over = lambda v, goal=goal: jnp.log(goal) - jnp.log(_point(v)[2])
    exists = goal <= _point(turn)[2]
    start = bisect(functools.partial(over, goal=lax.stop_gradient(goal)), end, turn)
    v, ok = newton(lambda u: over(u[0])[None], start[None], tol=1e-9, steps=8)
    r, gap, _, entropy = _point(v[0])
    # arccos(1 - gap) loses half its digits near the teacher.
    error = 2 * jnp.arcsin(jnp.sqrt(0.5 * gap)) / math.pi
    wins = typical & ((entropy < 0) | ~exists)
    lost = ~exists & ~typical
    pick = lambda value, perfect: jnp.where(wins, perfect, jnp.where(lost, jnp.nan, value))
    code = jnp.where(wins, Code.ok, jnp.where(lost, Code.unphysical, ok.code))
    return StudentOrder(pick(r, 1.0), pick(jnp.exp(v[0]), jnp.inf), pick(entropy, 0.0), pick(error, 0.0), status(code))


def student_transitions() -> tuple[Array, Array]:
    """The loads of perfect generalisation, 1.2447 where the entropy of the poor branch vanishes, and of the spinodal
    1.493 where that branch ends."""
    return _student_transitions()


@float64_program
def _student_transitions():
    turn = _turn()
    first = bisect(lambda v: _point(v)[3], jnp.full((), -2.0), turn)
    return _point(first)[2], _point(turn)[2]


def random_label_capacity() -> Array:
    """Random labels per weight that a binary perceptron can hold: the zero of the entropy of solutions, .83308."""
    return _random_label_capacity()


@float64_program
def _random_label_capacity():
    def at(v):
        # Without a teacher r = hat r = 0, and E holds the average over labels.
        x = jnp.exp(v)
        s = site(jnp.zeros(()), x, jnp.ones(()))
        out = output(1 - s.chi, jnp.zeros(()), s.chi)
        alpha = x / out.noise
        return alpha, -0.5 * x * s.chi + s.log + alpha * out.energy

    return at(bisect(lambda v: at(v)[1], jnp.full((), -2.0), jnp.full((), 3.0)))[0]


def planted_entropy(alpha: Scalar, r: Scalar) -> PlantedEntropy:
    r"""s(r), the potential of Franz and Parisi with the teacher as its reference.

    **Arguments.** `alpha` >= 0; `r` in (-1, 1). Its maximum is the typical solution; s < 0 means that there are none.
    **Returns** a `PlantedEntropy`; status `not_converged` where q runs to 1, far on the side of the opposite teacher.
    **Cost.** A few thousand averages over 321 nodes.
    """
    check.number(alpha, "alpha", least=0)
    check.number(r, "r", above=-1, below=1)
    return _planted_entropy(alpha, r)


@float64_program
def _planted_entropy(alpha, r):
    # Without examples the fields' spread q - r^2 vanishes, and their averages need it.
    alpha = jnp.maximum(alpha, 1e-11)
    one, fixed, held = jnp.ones(()), *lax.stop_gradient((alpha, r))

    def inner(x):
        """hat r that gives the overlap r at this hat q."""
        reach = 20.0 + 10.0 * x
        return bisect(lambda h: held - site(h, x, one).m, -reach, reach, 50)

    def step(x):
        s = site(inner(x), x, one)
        return fixed * output(1 - s.chi, held, s.chi).noise

    def residual(u):
        s = site(u[1], u[0], one)
        return jnp.stack([u[0] - alpha * output(1 - s.chi, r, s.chi).noise, s.m - r])

    x = descend(step, jnp.full((), 1e-3), tol=1e-8, max_steps=2000)
    u, ok = newton(residual, jnp.stack([x, inner(x)]), tol=1e-10)
    x, h = u
    s = site(h, x, one)
    out = output(1 - s.chi, r, s.chi)
    value = -0.5 * x * s.chi - h * r + s.log + alpha * out.energy
    return PlantedEntropy(value, 1 - s.chi, alpha * out.signal - h, ok)
