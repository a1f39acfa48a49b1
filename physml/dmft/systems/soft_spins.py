r"""Langevin dynamics of soft spins with symmetric Gaussian couplings: Sherrington and Kirkpatrick's model in motion.

$$\dot x_i = -V'(x_i) + \sum_j J_{ij} x_j + \sqrt{2T}\,\xi_i, \quad J_{ij} = J_{ji},\ \langle J_{ij}^2\rangle = J^2/N$$

For N to infinity a spin sees a Gaussian field u with the correlation of the others, and itself through their response:

$$\dot x = -V'(x) + u + J^2\int_0^t R(t,s)\,x(s)\,ds + \sqrt{2T}\,\xi, \qquad \langle u(t)u(s)\rangle = J^2 C(t,s),$$
$$C(t,s) = \langle x(t)x(s)\rangle, \quad R(t,s) = \Bigl\langle\frac{\delta x(t)}{\delta u(s)}\Bigr\rangle, \qquad
  E = \langle V(x)\rangle - J^2\int_0^t R(t,s)\,C(t,s)\,ds.$$
"""

from collections.abc import Callable
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
from physml.dmft.systems.p_spin import TwoTime


class Quartic(eqx.Module):
    r"""$V(x) = \frac k2 x^2 + \frac u4 x^4$; a double well for k < 0."""

    k: Scalar = -1.0
    u: Scalar = 1.0

    def __call__(self, x: Array) -> Array:
        k, u = (jnp.asarray(a, x.dtype) for a in (self.k, self.u))
        return 0.5 * k * x**2 + 0.25 * u * x**4


class SoftSpinSK(AbstractModel):
    r"""Soft spins after a quench from independent Gaussian values; see the module for the equations.

    **Arguments.** `temperature` T >= 0. `coupling` J. `potential`: V, applied elementwise: `Quartic(k, u)`, with
    numbers that may be differentiated, or any function. `t_max`, `dt`: the grid; dt must divide t_max and resolve V' at
    the largest |x| that occurs. `spread`: standard deviation of x(0).

    **Solution.** `TwoTime(t, C, R, energy)`, second order in dt. The unknowns are C, R and V, the mean potential. A
    `start` whose C is no covariance ends as `not_positive`, one whose R has a future as `acausal`; a potential that
    does not confine, or too long a step, as `diverged`.
    **Cost.** Of an iteration, samples x 4 (t_max/dt)^2 multiplications; a gradient holds 3 such arrays.
    **See** Sompolinsky and Zippelius, Phys. Rev. B 25, 6860 (1982).
    """

    temperature: Scalar
    coupling: Scalar = 1.0
    potential: Callable[[Array], Array] = Quartic()
    t_max: float = eqx.field(static=True, default=5.0)
    dt: float = eqx.field(static=True, default=0.05)
    spread: Scalar = 1.0

    scheme: ClassVar[Any] = SelfConsistent(Damped(1.0), tol=1e-3, max_steps=100)
    average: ClassVar[Any] = MonteCarlo(2000)
    precise: ClassVar[bool] = False

    def __check_init__(self):
        grid_steps(self.t_max, self.dt)
        check.within(self.temperature, "temperature", least=0)
        check.within(self.spread, "spread", least=0)
        check.function(self.potential, "potential", "of x")

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return grid_steps(self.t_max, self.dt)

    def noise_shape(self):
        # The field, the start with the white noise, and directions: on one axis, so that they are matched together.
        return (3 * (self.steps + 1),)

    def _force(self, x):
        return -jax.jvp(self.potential, (x,), (jnp.ones_like(x),))[1]

    def init(self):
        """Spins that stay where they are, with a response that is yet to be found."""
        size = self.steps + 1
        dtype = jnp.result_type(self.temperature, float)
        eye = jnp.eye(size, dtype=dtype)
        spread = jnp.asarray(self.spread, dtype)
        return {"C": spread**2 * jnp.ones((size, size), dtype) + 1e-3 * eye, "R": eye, "V": jnp.zeros(size, dtype)}

    def update(self, order, noise):
        dtype = order["C"].dtype
        J, T, spread = (jnp.asarray(a, dtype) for a in (self.coupling, self.temperature, self.spread))
        normals = noise.z.T.reshape(3, self.steps + 1, -1)
        weights = noise.weights.astype(dtype)
        kicks = jnp.sqrt(2 * T * self.dt) * normals[1, 1:]
        found = site_paths(
            self._force,
            lambda x: x,
            spread * normals[1, 0],
            J * (field_root(order["C"]) @ normals[0]),
            J**2 * order["R"],
            jnp.sign(normals[2]),
            weights,
            self.dt,
            kicks,
        )
        return unless_improper(order, {"C": found.C, "R": found.R, "V": self.potential(found.x) @ weights})

    def finish(self, order):
        C, R = order["C"], order["R"]
        weight = trapezoid_matrix(self.steps, self.dt, C.dtype)
        energy = order["V"] - jnp.asarray(self.coupling, C.dtype) ** 2 * jnp.sum(weight * R * C, 1)
        return TwoTime(self.dt * jnp.arange(self.steps + 1, dtype=C.dtype), C, R, energy)

    def verdict(self, order):
        return proper(order.C, order.R)

    @program
    def finite_n(self, n: int, *, key: Key) -> TwoTime:
        """One system of n spins by Heun's rule; entries of R have errors of order 1 / sqrt(n dt)."""
        couple, begin, kick, probe = jax.random.split(key, 4)
        dt = self.dt
        upper = jnp.triu(jax.random.normal(couple, (n, n)), 1)
        J = self.coupling / n**0.5 * (upper + upper.T)
        kicks = jnp.sqrt(2 * self.temperature * dt) * jax.random.normal(kick, (self.steps, n))
        start = self.spread * jax.random.normal(begin, (n,))
        force = lambda x: self._force(x) + J @ x

        def path(field):
            def step(x, row):
                kick, h, later = row
                slope = force(x) + h
                x = x + dt / 2 * (slope + force(x + dt * slope + kick) + later) + kick
                return x, x

            _, xs = lax.scan(step, start, (kicks, field[:-1], field[1:]))
            return jnp.concatenate([start[None], xs])

        x, R = respond(path, jax.random.rademacher(probe, (self.steps + 1, n), start.dtype), dt)
        energy = jnp.mean(self.potential(x), 1) - 0.5 * jnp.mean(x * (x @ J), 1)
        t = dt * jnp.arange(self.steps + 1, dtype=x.dtype)
        return TwoTime(t, x @ x.T / n, R + jnp.eye(self.steps + 1), energy)
