r"""Spherical p-spin glass: the equations of Cugliandolo and Kurchan, in and out of equilibrium.

$$H = -\sum_{i_1 < \dots < i_p} J_{i_1 \dots i_p} s_{i_1} \cdots s_{i_p}, \quad
  \langle J^2\rangle = \frac{p!}{2N^{p-1}}, \quad \sum_i s_i^2 = N, \qquad \dot s = -\nabla H - \mu s + \sqrt{2T}\,\xi$$

For N to infinity, with $\Sigma = \frac{p(p-1)}{2} C^{p-2} R$, $D = \frac p2 C^{p-1}$ and $t > t'$,

$$\partial_t C(t,t') = -\mu C + \int_0^t \Sigma(t,s) C(s,t')\,ds + \int_0^{t'} D(t,s) R(t',s)\,ds
  + \beta_0 \tfrac p2 C(t,0)^{p-1} C(t',0),$$
$$\partial_t R(t,t') = -\mu R + \int_{t'}^t \Sigma(t,s) R(s,t')\,ds, \qquad \mu = T - pE, \quad
  E = -\int_0^t D R\,ds - \tfrac{\beta_0}{2} C(t,0)^p.$$
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.program import program
from physml.core.quadrature import trapezoid_weights
from physml.core.types import Key, Scalar
from physml.dmft.equations.causal import product
from physml.dmft.equations.site_paths import grid_steps
from physml.dmft.equations.solve import AbstractCausalModel, Causal

LARGEST_TENSOR = 2**27  # entries of the couplings that a finite system may hold


class TwoTime(eqx.Module):
    """Times `t` (n,), correlation `C` (n, n) symmetric, response `R` (n, n) with R[i, j] the response at t_i to a field
    at t_j <= t_i (1 at equal times, the limit from later times), and `energy` per spin (n,)."""

    t: Array
    C: Array
    R: Array
    energy: Array

    def at(self, t: Scalar, waiting: Scalar = 0.0) -> Array:
        """C(t, waiting) by bilinear interpolation."""
        position = jnp.asarray([t, waiting], self.t.dtype) / (self.t[1] - self.t[0])
        return jax.scipy.ndimage.map_coordinates(self.C, list(position), order=1, mode="nearest")


class SphericalPSpin(AbstractCausalModel):
    r"""The spherical p-spin glass after a quench; see the module for its equations.

    **Arguments.** `p` >= 2. `temperature` T >= 0 of the dynamics. `t_max`, `dt`: the grid; dt must divide t_max.
    `initial_temperature`: $1/\beta_0$, of the configuration at t = 0; the default is infinite. It must be at least
    `dynamic_temperature(p)`, since lower ones need replicas; equal to `temperature` it gives equilibrium dynamics.

    **Solution.** `TwoTime(t, C, R, energy)`, second order in dt (predictor and corrector, trapezoidal integrals).
    **Cost.** n = t_max/dt steps of eight products with the filled corner of two (n, n) matrices; memory 2 n^2 numbers
    in float64. A gradient takes four times as long.
    **See** Cugliandolo and Kurchan, Phys. Rev. Lett. 71, 173 (1993).
    """

    p: int = eqx.field(static=True)
    temperature: Scalar
    t_max: float = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    initial_temperature: Scalar = math.inf
    coupling: Scalar = 1.0  # multiplies H

    scheme: ClassVar[Any] = Causal()

    def __check_init__(self):
        check.count(self.p, "p", least=2)
        check.within(self.temperature, "temperature", least=0)
        check.within(self.initial_temperature, "initial_temperature", above=0, finite=False)
        check.within(self.coupling, "coupling")
        grid_steps(self.t_max, self.dt)

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return max(1, round(self.t_max / self.dt))

    def init(self):
        n = self.steps + 1
        corner = jnp.zeros((n, n)).at[0, 0].set(1.0)
        energy = jnp.zeros(n).at[0].set(self._energy(corner[0], corner[0], jnp.zeros(n)))
        # The unknowns are the triangles t >= t'; at equal times R holds its limit from later times, 1.
        return {"C": corner, "R": corner, "energy": energy}

    def row(self, order, k):
        C, R = order["C"], order["R"]
        index = jnp.arange(len(C), dtype=jnp.int32)
        new = index == k + 1
        old = (index <= k).astype(C.dtype)
        c, r = C[k] * old, R[k] * old
        to_c, to_r = self._rates(C, R, c, r, k, fresh=False)
        move = lambda x, dx: jnp.where(new, 1.0, (x + self.dt * dx) * old)
        later = self._rates(C, R, move(c, to_c), move(r, to_r), k + 1, fresh=True)
        c, r = move(c, (to_c + later[0]) / 2), move(r, (to_r + later[1]) / 2)
        return {"C": c, "R": r, "energy": self._energy(c, r, self._weights(k + 1, len(C)))}

    def corner(self, order, m):
        return {"C": order["C"][:m, :m], "R": order["R"][:m, :m], "energy": order["energy"][:m]}

    def _weights(self, k, n):
        """Trapezoidal weights (n,) of an integral from 0 to t_k."""
        return trapezoid_weights(jnp.asarray(k), n, self.dt, jnp.result_type(float))

    def _energy(self, c, r, weights):
        memory = jnp.sum(weights * c ** (self.p - 1) * r) * self.p / 2
        return -(self.coupling**2) * (memory + c[0] ** self.p / (2 * self.initial_temperature))

    def _rates(self, C, R, c, r, k, fresh):
        """Time derivatives of row k of C and R. A `fresh` row is not yet among those of C and R."""
        g2, p, n = self.coupling**2, self.p, len(c)
        weights = self._weights(k, n)
        kernel = g2 * p * (p - 1) / 2 * c ** (p - 2) * r
        noise = g2 * p / 2 * c ** (p - 1)

        index = jnp.arange(n, dtype=jnp.int32)
        below = (index < k).astype(c.dtype)
        known = below if fresh else 1.0
        s = weights * kernel * known
        start = g2 * p / (2 * self.initial_temperature) * c[0] ** (p - 1)
        # A triangle stands for the symmetric C: both of its sides, the diagonal, 1, once.
        drift = product(C, jnp.where(index == 0, s + start, s)) + product(s, C) - s
        # To t' only: half weights at s = 0 and at s = t', where R is 1.
        drift = drift + self.dt * (product(R, jnp.where(index == 0, noise / 2, noise)) - noise * known / 2)
        # From t' on: half weight at s = t', and nothing is left of it at t' = t.
        response = product(s, R) - s + self.dt / 2 * below * kernel
        if fresh:
            at_k = jnp.sum(jnp.where(index == k, weights * kernel, 0.0))
            drift, response = drift + at_k * c, response + at_k * r
        mu = self.temperature - p * self._energy(c, r, weights)
        return -mu * c + drift, -mu * r + response

    def finish(self, order):
        C = jnp.tril(order["C"])
        t = self.dt * jnp.arange(self.steps + 1, dtype=C.dtype)
        return TwoTime(t, C + jnp.tril(C, -1).T, jnp.tril(order["R"]), order["energy"])

    def verdict(self, order):
        # Schwarz: |C| <= 1; a step too long for the equations breaks it first.
        good = jnp.max(jnp.abs(order.C)) <= 1 + self.dt**2
        return jnp.where(good, Code.ok, Code.unphysical).astype(jnp.int32)

    @program
    def finite_n(self, n: int, *, key: Key, probes: int = 1) -> TwoTime:
        """One system of n spins with all its couplings (p <= 4, n^p numbers), by Heun steps projected on the sphere.

        `R` is measured along `probes` random fields that are independent at every time: its entries carry errors of
        order sqrt(n_t / (n probes)) / dt that average out in integrals. Starts at infinite temperature.
        """
        hot = check.known(self.initial_temperature)
        if hot is not None and not math.isinf(hot):
            raise ValueError("finite_n starts at infinite temperature; leave initial_temperature at its default")
        if n**self.p > LARGEST_TENSOR:
            raise ValueError(f"n^p = {n}^{self.p} couplings are more than {LARGEST_TENSOR}: take n smaller")
        couple_key, start_key, noise_key, probe_key = jax.random.split(key, 4)
        p, dt = self.p, self.dt
        # A tensor of independent entries, contracted p - 1 times on every side in turn, has the gradient of the
        # symmetric one; of its p! orderings each carries a share of the variance.
        scale = self.coupling * math.sqrt(1 / (2 * n ** (p - 1)))
        J = scale * jax.random.normal(couple_key, (n,) * p)

        def energy(s):
            value = J
            for _ in range(p):
                value = value @ s
            return -value

        def spin(s):
            return s * jnp.sqrt(n / jnp.sum(s**2))

        xi = jax.random.normal(noise_key, (self.steps, n)) * jnp.sqrt(2 * self.temperature * dt)
        s0 = spin(jax.random.normal(start_key, (n,)))
        force = lambda s: -jax.grad(energy)(s)

        def path(field):
            def step(s, xi_h):
                xi, h = xi_h
                first = force(s) + h
                there = spin(s + dt * first + xi)
                new = spin(s + dt / 2 * (first + force(there) + h) + xi)
                return new, new

            _, later = lax.scan(step, s0, (xi, field))
            return jnp.concatenate([s0[None], later])

        fields = jax.random.rademacher(probe_key, (probes, self.steps, n), xi.dtype)
        zero = jnp.zeros_like(xi)
        paths = path(zero)
        moved = jax.vmap(lambda v: jax.jvp(path, (zero,), (v,))[1])(fields)
        response = jnp.einsum("ati,asi->ts", moved, fields) / (n * probes * dt)
        response = jnp.tril(jnp.pad(response, ((0, 0), (0, 1))), -1) + jnp.eye(self.steps + 1)
        t = dt * jnp.arange(self.steps + 1, dtype=paths.dtype)
        return TwoTime(t, paths @ paths.T / n, response, jnp.asarray(jax.vmap(energy)(paths) / n))


def dynamic_temperature(p: int) -> float:
    r"""$T_d = \sqrt{p (p-2)^{p-2} / (2 (p-1)^{p-1})}$, below which the quench ages; p >= 3 (p = 2: T_d = 1)."""
    return math.sqrt(p * (p - 2) ** (p - 2) / (2 * (p - 1) ** (p - 1)))


def threshold_energy(p: int) -> float:
    r"""$E_{th} = -\sqrt{2 (p-1)/p}$: per spin, where a quench to T = 0 ends."""
    return -math.sqrt(2 * (p - 1) / p)


class Ageing(Checked):
    """Long after a quench below T_d: plateau `q`, effective temperature T / `x`, `energy`; `status` `unphysical` where
    a temperature that was traced is none below T_d."""

    computation: ClassVar[str] = "ageing"

    q: Array
    x: Array
    energy: Array
    status: Status


def ageing(p: int, temperature: Scalar) -> Ageing:
    r"""Plateau, effective temperature and energy of the ageing p-spin glass, p >= 3 and 0 < T < T_d.

    $$\frac{p(p-1)}{2} q^{p-2} (1-q)^2 = T^2, \quad X = (p-2)\frac{1-q}{q}, \quad E = -\frac{1 - (1-X) q^p}{2T},$$

    q the larger root. **See** Cugliandolo and Kurchan (1993), eqs. 20 to 25.
    """
    if check.count(p, "p", least=2) < 3:
        raise ValueError(f"ageing with a plateau needs p >= 3, got {p}")
    known = check.known(temperature)
    if known is not None and not 0 < float(known) < dynamic_temperature(p):
        raise ValueError(f"the system ages for 0 < T < T_d = {dynamic_temperature(p):.6f}, got T = {float(known)}")
    return _ageing(p, temperature)


@program
def _ageing(p, temperature):
    T = jnp.asarray(temperature, jnp.result_type(temperature, float))

    # sqrt of the equation, 1 - q = T / (sqrt(p (p-1)/2) q^{(p-2)/2}), contracts to the larger root.
    def newton(q, _):
        f = lambda q: jnp.sqrt(p * (p - 1) / 2) * q ** ((p - 2) / 2) * (1 - q) - T
        value, slope = jax.jvp(f, (q,), (jnp.ones_like(q),))
        return q - value / slope, None

    q, _ = lax.scan(newton, jnp.ones_like(T), length=30)
    x = (p - 2) * (1 - q) / q
    ages = (T > 0) & (dynamic_temperature(p) > T)
    outcome = status(jnp.where(ages, Code.ok, Code.unphysical))
    return Ageing(q, x, -(1 - (1 - x) * q**p) / (2 * T), outcome)
