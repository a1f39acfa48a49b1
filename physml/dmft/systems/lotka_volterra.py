r"""Many interacting species with random couplings: Lotka and Volterra's equations at their mean-field fixed point.

$$\dot N_i = N_i\Bigl(1 - N_i - \sum_j a_{ij} N_j\Bigr), \quad a_{ij} = \frac{\mu}{S} + \frac{\sigma}{\sqrt S} z_{ij},
  \quad \langle z_{ij} z_{ji}\rangle = \gamma$$

A species sees a Gaussian field and its own past through the others; at a fixed point

$$N = \max\Bigl(0, \frac{1 - \mu m + \sigma\sqrt q\, z}{1 - \gamma\sigma^2 v}\Bigr), \quad
  m = \langle N\rangle,\ q = \langle N^2\rangle,\ v = \langle\partial N/\partial h\rangle.$$
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from physml.core import check
from physml.core._status import Code
from physml.core.iterations import Newton
from physml.core.program import program
from physml.core.types import Key, Scalar
from physml.dmft.equations.solve import AbstractModel, SelfConsistent


class Abundances(eqx.Module):
    r"""`m` mean abundance, `q` mean square, `phi` fraction of survivors, `v` integrated response; `margin`: $(1 -
    \gamma\sigma^2 v)^2 - \phi\sigma^2$, negative where the fixed point is unstable."""

    m: Array
    q: Array
    phi: Array
    v: Array
    margin: Array


def truncated_moments(delta: Array) -> tuple[Array, Array, Array]:
    r"""$w_k = \int_{-\Delta}^\infty Dz\,(z + \Delta)^k$ for k = 0, 1, 2."""
    tail = 0.5 * jax.scipy.special.erfc(-delta / jnp.sqrt(2.0).astype(delta.dtype))
    density = jnp.exp(-0.5 * delta**2) / jnp.sqrt(2 * jnp.pi).astype(delta.dtype)
    first = density + delta * tail
    return tail, first, tail + delta * first


class LotkaVolterra(AbstractModel):
    r"""Generalised Lotka and Volterra equations with random interactions; see the module for the equations.

    **Arguments.** `mu`: mean competition. `sigma` >= 0: spread. `gamma` in [-1, 1]: symmetry of the couplings. Sign: a
    positive entry $a_{ij}$ harms i.

    **Solution.** `Abundances(m, q, phi, v, margin)`; the unknown is $\sigma\Delta$. Beyond
    $\sigma_c = \sqrt2/(1 + \gamma)$ the fixed point is unstable (many attractors or chaos): status `unphysical`;
    likewise where m diverges.

    **See** Bunin, Phys. Rev. E 95, 042414 (2017); Galla, EPL 123, 48004 (2018).
    """

    mu: Scalar
    sigma: Scalar
    gamma: Scalar = 0.0

    scheme: ClassVar[Any] = SelfConsistent(Newton(), max_steps=100)

    def __check_init__(self):
        check.within(self.mu, "mu")
        check.within(self.gamma, "gamma", least=-1, most=1)
        check.within(self.sigma, "sigma", least=0)

    def init(self):
        return jnp.ones(())

    def _spread(self, order):
        # sigma = 0 leaves a sharp law, delta infinite: a spread of 1e-8 is as sharp as float64 sees.
        sigma = jnp.maximum(jnp.asarray(self.sigma, order.dtype), 1e-8)
        return sigma, order / sigma

    def update(self, order, noise=None):
        sigma, delta = self._spread(order)
        w0, _, w2 = truncated_moments(delta)
        return order + jnp.sqrt(w2) / ((w2 + self.gamma * w0) * sigma) - 1

    def finish(self, order):
        sigma, delta = self._spread(order)
        w0, w1, w2 = truncated_moments(delta)
        own = sigma * jnp.sqrt(w2)
        m = w1 / (delta * own + self.mu * w1)
        root_q = m * own / (sigma * w1)
        return Abundances(m, root_q**2, w0, w0 / own, own**2 - w0 * sigma**2)

    def verdict(self, order):
        good = (order.margin >= 0) & (order.m > 0) & (order.q >= 0) & (order.v >= 0)
        return jnp.where(good, Code.ok, Code.unphysical).astype(jnp.int32)

    def finite_n(self, n: int, *, key: Key, t_max: float = 200.0, dt: float = 0.05) -> Abundances:
        """n species from random abundances, in logarithms so that none turns negative; `v` is not measured but follows
        from the survivors' linear response."""
        return self._simulated(n, key, round(t_max / dt), dt)

    @program
    def _simulated(self, n, key, steps, dt):
        first, second, start = jax.random.split(key, 3)
        a, b = jax.random.normal(first, (n, n)), jax.random.normal(second, (n, n))
        # z_ij = c a_ij + s a_ji has <z_ij z_ji> = 2 c s = gamma with c^2 + s^2 = 1.
        upper = jnp.triu(a, 1)
        partner = self.gamma * upper + jnp.sqrt(1 - self.gamma**2) * jnp.triu(b, 1)
        couplings = self.mu / n + self.sigma / n**0.5 * (upper + partner.T)
        couplings = couplings - jnp.diag(jnp.diag(couplings))

        def step(log_n, _):
            rate = lambda u: jnp.clip(1 - jnp.exp(u) - couplings @ jnp.exp(u), -50.0, 50.0)
            half = log_n + 0.5 * dt * rate(log_n)
            return jnp.maximum(log_n + dt * rate(half), -30.0), None

        log_n, _ = jax.lax.scan(step, jnp.log(jax.random.uniform(start, (n,), minval=0.1)), length=steps)
        abundance = jnp.exp(log_n)
        # Who would grow when rare stays; those who would not may take very long to vanish.
        alive = couplings @ abundance < 1
        # dN/dh on the survivors: (1 + A)^{-1}; the others do not respond.
        on = alive[:, None] & alive[None, :]
        response = jnp.where(alive, jnp.diag(jnp.linalg.inv(jnp.eye(n) + jnp.where(on, couplings, 0.0))), 0.0)
        phi, v = jnp.mean(alive.astype(log_n.dtype)), jnp.mean(response)
        margin = jnp.asarray((1 - self.gamma * self.sigma**2 * v) ** 2 - phi * self.sigma**2)
        return Abundances(jnp.mean(abundance), jnp.mean(abundance**2), phi, v, margin)


def critical_spread(gamma: Scalar) -> Array:
    r"""$\sigma_c = \sqrt2/(1 + \gamma)$: beyond it the fixed point of `LotkaVolterra` is unstable."""
    return jnp.sqrt(2.0) / (1 + jnp.asarray(gamma, jnp.result_type(float)))
