r"""Variational continual learning of the binary perceptron: overlaps and errors after each of two tasks.

Weights are distributions of means m; task 1 minimises
$-\sum\ln\Phi(ym\cdot x/\sqrt{N(1-q)}) + \lambda\,\mathrm{KL}(m|0)$ with $q = \overline{m^2}$, task 2 the same on
its own examples with $\mathrm{KL}(m|m^0)$ to the outcome of task 1. The replica-symmetric theory of a minimum has per
weight an effective scalar problem, per example another,

$$\lambda(\theta - \theta^0) + \Lambda\tanh\theta = \sqrt\kappa z + \eta W, \qquad
  u = \omega + \frac{\chi}{\sqrt{1-q}}g\Bigl(\frac u{\sqrt{1-q}}\Bigr), \quad \omega = \sqrt qz,\ g = \frac{\Phi'}\Phi$$

and closes with $q = \langle m^2\rangle$, $r = \langle Wm\rangle$,
$\chi = \langle(\Lambda + \lambda/(1-m^2))^{-1}\rangle$
and, with $c = r/\sqrt{q-r^2}$, $t = u/\sqrt{1-q}$ and averages $\langle\cdot\rangle = 2\int Dz\,\Phi(cz)\cdot$,

$$\kappa = \frac\alpha{\chi^2}\langle(u-\omega)^2\rangle, \quad
  \eta = \frac{2\alpha}\chi\sqrt{\frac q{q-r^2}}\int Dz\,\Phi'(cz)(u-\omega), \quad
  \Lambda = \alpha\Bigl\langle\frac{1 - u'}\chi - \frac{t\,g(t)}{1-q}\Bigr\rangle, \quad u' = \frac{du}{d\omega}$$

The second part of Lambda is the pressure towards certain weights, because q is also in the noise of the fields. In
task 2 the averages over weights include those of $\theta^0$, which sees $W^1$, and $W^2$ agrees with $W^1$ in the mean
$r_0$. The label of a new input is that of $m\cdot x$, wrong with probability $\arccos(r_t/\sqrt q)/\pi$.

**See** Li, Huang, Zou and Huang, Statistical mechanics of continual learning (2023); derived here for the minimum.
"""

import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtr
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.float64 import float64_program
from physml.core.roots import descend, newton
from physml.core.special import mills
from physml.core.types import Scalar
from physml.hopfield.theory.site import nodes

COARSE = 61  # nodes of each field in the average over weights


class VariationalOrder(Checked):
    """After each task (2,): `q` mean square of the means, `r1`, `r2` overlaps with the teachers, `error1`, `error2` of
    generalisation; `p` overlap of the means after both tasks; `status`."""

    computation: ClassVar[str] = "variational_tasks"

    q: Array
    r1: Array
    r2: Array
    error1: Array
    error2: Array
    p: Array
    status: Status


def variational_tasks(alpha1: Scalar, alpha2: Scalar, similarity: Scalar, *, weight: Scalar = 1.0) -> VariationalOrder:
    r"""Two tasks with `alpha1`, `alpha2` >= 0 examples per weight and teachers of `similarity` $r_0$ in [-1, 1].

    **Arguments.** `weight` lambda > 0 of the prior: a large one learns little, a small one forgets.
    **Returns** a `VariationalOrder`, whose arguments may be differentiated. Status `not_converged` also where a small
    weight, below about 0.5, makes the scalar problem ambiguous. **Cost.** Some hundred averages over 61^2 nodes.
    """
    check.number(alpha1, "alpha1", least=0)
    check.number(alpha2, "alpha2", least=0)
    check.number(similarity, "similarity", least=-1, most=1)
    check.number(weight, "weight", above=0)
    return _variational_tasks(alpha1, alpha2, similarity, weight)


def _certain(force, prior, stiff, weight):
    """theta with weight (theta - prior) + stiff tanh(theta) = force."""
    g = lambda x: weight * (x - prior) + stiff * jnp.tanh(x) - force
    f, p, s, w = lax.stop_gradient((force, prior, stiff, weight))
    reach = jnp.abs(s) / w

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        up = w * (middle - p) + s * jnp.tanh(middle) < f
        return jnp.where(up, middle, low), jnp.where(up, high, middle)

    low, high = lax.fori_loop(0, 10, halve, (p + f / w - reach, p + f / w + reach))
    newton_step = lambda x, g, w, s: x - g(x) / (w + s / jnp.cosh(x) ** 2)
    close = lambda x: w * (x - p) + s * jnp.tanh(x) - f
    x = lax.fori_loop(0, 4, lambda _, x: newton_step(x, close, w, s), 0.5 * (low + high))
    return newton_step(x, g, weight, stiff)  # carries the derivatives


def _moved(omega, chi, gap):
    """u of every omega; Newton's steps rise monotonically because the slope g is convex."""
    root = jnp.sqrt(gap)

    def step(u, omega, chi, root):
        t = u / root
        g = mills(t)
        return u - (u - omega - chi / root * g) / (1 + chi / root**2 * g * (g + t))

    held = lax.stop_gradient((omega, chi, root))
    return step(lax.fori_loop(0, 15, lambda _, u: step(u, *held), held[0]), omega, chi, root)


def _examples(alpha, q, r, chi):
    """Lambda, kappa and eta."""
    gap, rest = 1 - q, q - r**2
    c = r / jnp.sqrt(rest)
    z, w = lax.stop_gradient(nodes(jnp.zeros(()), 1 / jnp.maximum(jnp.maximum(jnp.abs(c), jnp.sqrt(q / gap)), 1.0)))
    omega = jnp.sqrt(q) * z
    u = _moved(omega, chi, gap)
    t = u / jnp.sqrt(gap)
    g = mills(t)
    bend = g * (g + t) / gap
    weight = 2 * w * ndtr(c * z)
    ridge = 2 * w * jnp.exp(-0.5 * (c * z) ** 2) / math.sqrt(2 * math.pi)
    # (1 - u') / chi = bend / (1 + chi bend).
    stiff = alpha * weight @ (bend / (1 + chi * bend) - t * g / gap)
    push = g / jnp.sqrt(gap)  # (u - omega) / chi
    return stiff, alpha * weight @ push**2, alpha * jnp.sqrt(q / rest) * (ridge @ push)


def _grid():
    z = np.linspace(-7.0, 7.0, COARSE)
    w = np.exp(-0.5 * z**2)
    return z, w / w.sum()


def _task(alpha, weight, prior, teacher, measure, start):
    """The state of one task whose sites have the fields `prior`, the `teacher`'s signs and the `measure`, all (s,).

    Returns theta (s, COARSE), the measure of its entries, and whether the equations were solved.
    """
    z, share = _grid()

    def sites(v, prior, weight, measure):
        stiff, kappa, eta = v
        force = jnp.sqrt(kappa) * z[None, :] + eta * teacher[:, None]
        theta = _certain(force, prior[:, None], stiff, weight)
        m, full = jnp.tanh(theta), measure[:, None] * share[None, :]
        chi = jnp.sum(full / (stiff + weight * jnp.cosh(theta) ** 2))
        return theta, full, (jnp.sum(full * m**2), jnp.sum(full * m * teacher[:, None]), chi)

    def update(v, alpha, prior, weight, measure):
        return jnp.stack(_examples(alpha, *sites(v, prior, weight, measure)[2]))

    held = lax.stop_gradient((alpha, prior, weight, measure))
    v = descend(lambda v: update(v, *held), start, tol=1e-9, max_steps=3000)
    v, state = newton(lambda v: update(v, alpha, prior, weight, measure) - v, v, tol=1e-9)
    theta, full, _ = sites(v, prior, weight, measure)
    # Below this the scalar problem has several solutions.
    good = state.ok & (v[0] > -weight)
    return theta, full, good


@float64_program
def _variational_tasks(alpha1, alpha2, r0, weight):
    # Without examples the fields have no spread, and averages need one.
    alphas = jnp.maximum(jnp.stack([alpha1, alpha2]), 1e-8)
    small = jnp.asarray([0.0, 1e-2, 1e-2])
    # The first teacher's signs are all +1, those of the second follow by shares.
    second = jnp.asarray(np.repeat([1.0, -1.0], COARSE))
    agree = 0.5 * (1 + r0 * second)
    sites = jnp.ones_like(second)

    def task(carry, x):
        """A scan over both tasks compiles one; all sites of the first are alike."""
        prior, measure = carry
        theta, full, good = _task(x[0], weight, prior, x[1], measure, small)
        return (jnp.tile(theta[0], 2), agree * jnp.tile(jnp.sum(full, 0), 2)), (theta, full, good)

    first = (0 * sites, sites / sites.size)
    xs = alphas, jnp.stack([sites, second])
    _, (theta, full, good) = lax.scan(task, first, xs)
    theta1, full1 = theta[0], jnp.sum(full[0], 0, keepdims=True)
    theta2, full2, prior = theta[1], full[1], jnp.tile(theta[0][0], 2)
    good1, good2 = good
    m1, m2 = jnp.tanh(theta1[0]), jnp.tanh(theta2)
    mean = lambda x: jnp.sum(full2 * x)
    first = full1[0] @ m1
    q = jnp.stack([full1[0] @ m1**2, mean(m2**2)])
    r1 = jnp.stack([first, mean(m2)])
    r2 = jnp.stack([r0 * first, mean(m2 * second[:, None])])
    error = lambda r: jnp.arccos(r / jnp.sqrt(q)) / math.pi
    p = mean(m2 * jnp.tanh(prior)[:, None])
    state = status(jnp.where(good1 & good2, Code.ok, Code.not_converged))
    return VariationalOrder(q, r1, r2, error(r1), error(r2), p, state)
