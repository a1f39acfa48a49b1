r"""The Sherrington-Kirkpatrick spin glass: order parameters, and the law of the local fields of one configuration.

Couplings $J_{ij}$ of mean $J_0/N$ and variance $1/N$, $H = -\sum_{i<j}J_{ij}s_is_j$. Without spin i the field on its
site would be Gaussian around a cavity mean c, with the thermal variance $\Delta = 1 - q$; the spin weighs it by
$2\cosh\beta h$. So in one equilibrium configuration the fields $h_i = \sum_jJ_{ij}s_j$ have over the sites the law

$$P(h) = \Bigl\langle\mathcal N(h; c, \Delta)\, \frac{\cosh\beta h}{e^{\beta^2\Delta/2}\cosh\beta c}\Bigr\rangle_c,$$

$$\langle h\rangle = \langle c\rangle + \beta\Delta m, \qquad
  \langle h^2\rangle = \langle c^2\rangle + 2\beta\Delta\langle c\tanh\beta c\rangle + \Delta + \beta^2\Delta^2$$

Replica symmetry: $c = J_0m + \sqrt qz$ with $m = \langle\tanh\beta c\rangle$, $q = \langle\tanh^2\beta c\rangle$,

$$f = -\tfrac\beta4(1-q)^2 + \tfrac12J_0m^2 - T\langle\ln2\cosh\beta c\rangle,$$

stable where $\beta^2\langle\mathrm{sech}^4\beta c\rangle < 1$. Beyond that `physml.hopfield.theory.parisi` has the
law of c.

**See** Sherrington and Kirkpatrick, Phys. Rev. B 17, 4384 (1978); de Almeida and Thouless, J. Phys. A 11, 983 (1978);
on the fields of one configuration, arXiv:2411.04567 (2024).
"""

import math
from enum import IntEnum
from typing import ClassVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Status
from physml.core.float64 import float64_program
from physml.core.roots import descend, newton
from physml.core.special import log_2cosh
from physml.core.types import Scalar
from physml.hopfield.theory.site import COLDEST, nodes, site


class SpinGlassPhase(IntEnum):
    """`mixed`: magnetised, with broken replica symmetry."""

    paramagnet = 0
    ferromagnet = 1
    glass = 2
    mixed = 3


class SpinGlassOrder(Checked):
    r"""A state of the spin glass, scalars unless a shape is given.

    `m` magnetisation; `q` overlap of two replicas in one state, the largest; `overlaps`, `weights` (k,): the law of the
    overlap of any two replicas; `free_energy`, `energy` per spin; `stability` of replica symmetry, below 1 where it
    holds; `field_mean`, `field_variance` over the sites of one configuration; `cavity_fields`, `cavity_weights` (n,):
    the law of c; `phase`: a `SpinGlassPhase`; `status`.
    """

    computation: ClassVar[str] = "spin glass"
    counted: ClassVar[str] = "iteration"

    m: Array
    q: Array
    overlaps: Array
    weights: Array
    free_energy: Array
    energy: Array
    stability: Array
    field_mean: Array
    field_variance: Array
    cavity_fields: Array
    cavity_weights: Array
    temperature: Array
    phase: Array
    status: Status

    def field_density(self, h: Array) -> Array:
        """P(h) of one configuration, at fields h (n,), above T = 0."""
        c, spread, beta = self.cavity_fields[None, :], 1 - self.q, 1 / self.temperature
        x = jnp.asarray(h)[:, None]
        gaussian = -((x - c) ** 2) / (2 * spread) - 0.5 * jnp.log(2 * math.pi * spread)
        tilt = log_2cosh(beta * x) - log_2cosh(beta * c) - 0.5 * beta**2 * spread
        return jnp.exp(gaussian + tilt) @ self.cavity_weights


def sherrington_kirkpatrick(temperature: Scalar, ferromagnetic: Scalar = 0.0) -> SpinGlassOrder:
    r"""The replica-symmetric state with couplings of mean `ferromagnetic` $J_0$ over N and variance 1/N.

    **Arguments.** `temperature` >= 0, in units of the couplings' standard deviation times the root of N.
    **Returns** the magnetised state where there is one, with m >= 0. It is exact where `stability` < 1. The phase
    is that of the exact solution: where replica symmetry is unstable, mixed for $J_0 > 1$ and glass otherwise, because
    without magnetisation the exact susceptibility is 1.
    **Derivatives** with respect to both arguments are those of the solution.

    **Example.** `sherrington_kirkpatrick(0.0).free_energy` is $-\sqrt{2/\pi}$; `parisi` has -.7632.
    """
    check.number(temperature, "temperature", least=0)
    check.number(ferromagnetic, "ferromagnetic")
    return _replica_symmetric(temperature, ferromagnetic)


@float64_program
def _replica_symmetric(t, j0):
    def update(u, t, j0):
        s = site(j0 * u[0], jnp.maximum(u[1], 0.0), t)
        return s.m, jnp.where(t < COLDEST, 1 - t * s.chi, s.q)

    # From full order down; m = 0 is a solution that an iteration would never leave.
    one = jnp.ones_like(t)
    below = lax.stop_gradient((t, j0))
    # Iteration slows down at the transitions, where Newton's method, still from above, goes on.
    start = descend(lambda u: update(u, *below), (one, one), tol=1e-9, max_steps=200)
    u, state = newton(lambda u: jnp.stack(update(u, t, j0)) - u, jnp.stack(start), tol=1e-9, steps=60, floor=4e-16)
    m, q = jnp.where(u > 1e-5, u, 0.0)
    b = j0 * m
    s = site(b, q, t)
    chi = s.chi
    mean = b + chi * m
    square = b**2 + q + 2 * chi * (b * m + q * chi) + t * chi + chi**2
    f = -0.25 * t * chi**2 + 0.5 * b * m - s.log
    energy = -0.5 * b * m - 0.5 * chi * (1 + q)
    spread = jnp.sqrt(q + 1e-20)
    z, w = nodes(-b / spread, jnp.maximum(t, COLDEST) / spread)
    broken = s.kappa > 1 + 1e-9
    glass = jnp.where((j0 > 1) & broken, SpinGlassPhase.mixed, SpinGlassPhase.glass)
    phase = jnp.where(broken, glass, jnp.where(m > 0, SpinGlassPhase.ferromagnet, SpinGlassPhase.paramagnet))
    return SpinGlassOrder(
        m, q, q[None], jnp.ones(1), f, energy, s.kappa, mean, square - mean**2, b + spread * z, w, t,
        phase.astype(jnp.int32), state,
    )  # fmt: skip
