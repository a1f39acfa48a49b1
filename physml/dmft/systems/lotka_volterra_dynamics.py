r"""Many interacting species with random couplings in time: Lotka and Volterra's equations for one species and its past.

$$\dot N_i = N_i\Bigl(1 - N_i - \sum_j a_{ij} N_j + h_i\Bigr) + \lambda, \quad
  a_{ij} = \frac{\mu}{S} + \frac{\sigma}{\sqrt S} z_{ij}, \quad \langle z_{ij} z_{ji}\rangle = \gamma$$

For S to infinity, with $\langle\eta(t)\eta(s)\rangle = C(t,s)$,

$$\dot N = N\Bigl(1 - N - \mu m(t) + \sigma\eta(t) + \gamma\sigma^2\int_0^t R(t,s)\,N(s)\,ds + h\Bigr) + \lambda,$$
$$m(t) = \langle N(t)\rangle, \quad C(t,s) = \langle N(t) N(s)\rangle, \quad
  R(t,s) = \Bigl\langle\frac{\delta N(t)}{\delta h(s)}\Bigr\rangle.$$
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core.iterations import Damped
from physml.core.program import program
from physml.core.quadrature import trapezoid_matrix
from physml.core.types import Key, Scalar
from physml.dmft.equations.average import MonteCarlo
from physml.dmft.equations.site_paths import (
    field_root,
    grid_steps,
    proper,
    respond,
    site_paths,
    unless_improper,
)
from physml.dmft.equations.solve import AbstractModel, SelfConsistent

FLOOR = -50.0  # logarithm of the abundance below which immigration acts as there


class Community(eqx.Module):
    """A community on the times `t` (k,).

    `m`, `q` (k,): mean abundance and mean square. `C` (k, k): correlation. `R` (k, k): response of N(t_i) to h(t_j),
    j <= i, with m on its diagonal, and `v` (k,) its integral over t_j. `phi` (k,): fraction of species above `alive`.
    """

    t: Array
    m: Array
    q: Array
    C: Array
    R: Array
    v: Array
    phi: Array


class LotkaVolterraDynamics(AbstractModel):
    r"""Generalised Lotka and Volterra equations with random interactions, in time; see the module for the equations.

    **Arguments.** `mu`: mean competition. `sigma` >= 0: spread. `gamma` in [-1, 1]: symmetry of the couplings. A
    positive entry $a_{ij}$ harms i, as in `LotkaVolterra`. `immigration`: lambda >= 0. `t_max`, `dt`: the grid; dt must
    divide t_max and be well below 1 / N. `alive`: abundance above which a species counts in phi. `start`: N(0) is
    uniform between these two.

    **Solution.** `Community(t, m, q, C, R, v, phi)`, second order in dt, in logarithms so that no abundance turns
    negative. Below `critical_spread(gamma)` m, q and v tend to those of `LotkaVolterra`, and phi from above while
    species die out. Communities that grow without bound end as `diverged`. The unknowns are m, C, R and phi; where
    `solve` starts from a C that is no covariance it ends as `not_positive`, from an R with a future as `acausal`.
    **Cost.** Of an iteration, samples x 4 (t_max/dt)^2 multiplications; a gradient holds 3 such arrays. `phi` carries
    no gradient.
    **See** Roy, Biroli, Bunin and Cammarota, J. Phys. A 52, 484001 (2019).
    """

    mu: Scalar
    sigma: Scalar
    gamma: Scalar = 0.0
    immigration: Scalar = 1e-4
    t_max: float = eqx.field(static=True, default=20.0)
    dt: float = eqx.field(static=True, default=0.1)
    alive: float = eqx.field(static=True, default=0.01)
    start: tuple[float, float] = eqx.field(static=True, default=(0.1, 1.0))

    scheme: ClassVar[Any] = SelfConsistent(Damped(1.0), tol=1e-3, max_steps=100)
    average: ClassVar[Any] = MonteCarlo(2000)
    precise: ClassVar[bool] = False

    def __check_init__(self):
        grid_steps(self.t_max, self.dt)
        check.within(self.gamma, "gamma", least=-1, most=1)
        check.within(self.sigma, "sigma", least=0)
        check.within(self.immigration, "immigration", least=0)
        if not 0 < self.start[0] < self.start[1]:
            raise ValueError(f"start must be (low, high) with 0 < low < high, got {self.start}")

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return grid_steps(self.t_max, self.dt)

    def noise_shape(self):
        # The field, directions and the start: on one axis, so that they are matched together.
        return (2 * (self.steps + 1) + 1,)

    def _drift(self, u):
        """Growth rate of log N without the others."""
        immigration = jnp.asarray(self.immigration, u.dtype)
        return 1 - jnp.exp(u) + immigration * jnp.exp(-jnp.maximum(u, FLOOR))

    def init(self):
        """Abundances that stay where they are."""
        low, high = self.start
        size = self.steps + 1
        dtype = jnp.result_type(self.mu, float)
        m, spread = 0.5 * (low + high), (high - low) / 12**0.5
        C = (m**2 + spread**2) * jnp.ones((size, size), dtype) + 1e-3 * jnp.eye(size, dtype=dtype)
        m = m * jnp.ones(size, dtype)
        return {"m": m, "C": C, "R": jnp.diag(m), "phi": jnp.ones(size, dtype)}

    def update(self, order, noise):
        dtype, size = order["C"].dtype, self.steps + 1
        mu, sigma, gamma = (jnp.asarray(a, dtype) for a in (self.mu, self.sigma, self.gamma))
        normals = noise.z.T
        weights = noise.weights.astype(dtype)
        low, high = self.start
        field = sigma * (field_root(order["C"]) @ normals[:size])
        found = site_paths(
            self._drift,
            jnp.exp,
            jnp.log(low + (high - low) * jax.scipy.special.ndtr(normals[-1])),
            field,
            gamma * sigma**2 * order["R"],
            jnp.sign(normals[size : 2 * size]),
            weights,
            self.dt,
            common=-mu,
        )
        phi = (found.x > self.alive).astype(dtype) @ weights
        return unless_improper(order, {"m": found.m, "C": found.C, "R": found.R, "phi": phi})

    def finish(self, order):
        return self._community(order["m"], order["C"], order["R"], order["phi"])

    def _community(self, m, C, R, phi):
        v = jnp.sum(trapezoid_matrix(self.steps, self.dt, C.dtype) * R, 1)
        t = self.dt * jnp.arange(self.steps + 1, dtype=C.dtype)
        return Community(t, m, jnp.diagonal(C), C, R, v, phi)

    def verdict(self, order):
        return proper(order.C, order.R)

    @program
    def finite_n(self, n: int, *, key: Key) -> Community:
        """One community of n species by Heun's rule in logarithms; entries of R have errors of order 1 / sqrt(n dt)."""
        first, second, begin, probe = jax.random.split(key, 4)
        dt, (low, high) = self.dt, self.start
        # z_ij = a_ij and z_ji = gamma a_ij + sqrt(1 - gamma^2) b_ij.
        upper = jnp.triu(jax.random.normal(first, (n, n)), 1)
        other = jnp.triu(jax.random.normal(second, (n, n)), 1)
        partner = self.gamma * upper + jnp.sqrt(1 - self.gamma**2) * other
        couplings = self.mu / n + self.sigma / n**0.5 * (upper + partner.T)
        couplings = couplings - jnp.diag(jnp.diagonal(couplings))
        start = jnp.log(jax.random.uniform(begin, (n,), minval=low, maxval=high))
        rate = lambda u: self._drift(u) - couplings @ jnp.exp(u)

        def path(field):
            def step(u, ends):
                h, later = ends
                slope = rate(u) + h
                u = u + dt / 2 * (slope + rate(u + dt * slope) + later)
                return u, u

            _, us = lax.scan(step, start, (field[:-1], field[1:]))
            return jnp.exp(jnp.concatenate([start[None], us]))

        N, R = respond(path, jax.random.rademacher(probe, (self.steps + 1, n), start.dtype), dt)
        m, phi = jnp.mean(N, 1), jnp.mean((self.alive < N).astype(N.dtype), 1)
        return self._community(m, N @ N.T / n, R + jnp.diag(m), phi)
