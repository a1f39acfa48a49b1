r"""Random recurrent networks: the stationary chaos of Sompolinsky, Crisanti and Sommers.

$$\dot x_i = -x_i + g\sum_j J_{ij}\phi(x_j), \qquad J_{ij} \sim N(0, 1/N)$$

One unit sees Gaussian noise whose correlation it must reproduce: $C''(\tau) = C - g^2\langle\phi(x)\phi(y)\rangle$ for
Gaussian x, y of variance C(0) and covariance C. With Hermite coefficients
$c_k = \langle\phi(\sqrt{C(0)}\,z)\,h_k(z)\rangle$ and $\rho = C/C(0)$ the average is $\sum_k c_k^2\rho^k$: the force
of a ball that rolls from rest at C(0) to rest at 0, so

$$C(0) = 2g^2\sum_k \frac{c_k^2}{k + 1}, \qquad
  C'^2 = 2g^2 C(0)\rho^2\sum_k \frac{c_k^2}{k+1}\bigl(1 - \rho^{k-1}\bigr).$$

Neighbouring trajectories part at the rate $\lambda = -1 + \sqrt{1 - E_0}$, $E_0$ the lowest level of
$-\partial_\tau^2 + 1 - g^2\langle\phi'\phi'\rangle_{C(\tau)}$.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core._status import Code
from physml.core.iterations import Newton
from physml.core.program import program
from physml.core.quadrature import gauss_hermite
from physml.core.types import Key, Scalar
from physml.dmft.equations.solve import AbstractModel, SelfConsistent
from physml.integrate import rk4


class Stationary(eqx.Module):
    """Variance `C0`, autocorrelation `C` at the lags `tau`, and the largest Lyapunov exponent `lyapunov`."""

    C0: Array
    tau: Array
    C: Array
    lyapunov: Array

    def at(self, tau: Scalar) -> Array:
        """C(|tau|), linear between the lags of the grid and 0 beyond them."""
        return jnp.interp(jnp.abs(jnp.asarray(tau, self.tau.dtype)), self.tau, self.C, right=0.0)


class RandomNetwork(AbstractModel):
    r"""The stationary state of a random network; see the module for its equations.

    **Arguments.** `g` > 0: coupling. `phi`: odd activation, applied elementwise. `tau_max`, `points`: lags reported.
    `terms`: of the Hermite series, which converges like $e^{-c\sqrt k}$ for an activation analytic near the real line.

    **Solution.** `Stationary(C0, tau, C, lyapunov)`; the unknown is log C(0). For $g\phi'(0) \le 1$ the state is
    silent: C = 0 and $\lambda = g\phi'(0) - 1$. Status `unphysical` where the series has not converged (more `terms`).

    **Cost.** `terms` numbers for every lag, and one eigenvalue problem of size `points`.
    **See** Sompolinsky, Crisanti and Sommers, Phys. Rev. Lett. 61, 259 (1988).
    """

    g: Scalar
    phi: Callable[[Array], Array] = eqx.field(static=True, default=jnp.tanh)
    tau_max: float = eqx.field(static=True, default=60.0)
    points: int = eqx.field(static=True, default=301)
    terms: int = eqx.field(static=True, default=128)

    scheme: ClassVar[Any] = SelfConsistent(Newton(), max_steps=100)

    def __check_init__(self):
        check.number(self.g, "g", above=0)
        check.function(self.phi, "phi", "of an array, such as jnp.tanh")
        check.within(self.tau_max, "tau_max", above=0)
        check.count(self.points, "points", least=3)
        check.count(self.terms, "terms", least=2)
        with jax.ensure_compile_time_eval():
            x = jnp.asarray([0.3, 1.7])
            odd = np.allclose(self.phi(x), -self.phi(-x), atol=1e-5)
        if not odd:
            raise ValueError("phi must be odd: the correlation decays to 0 only then")

    def _gain(self):
        return self.g * jax.grad(self.phi)(jnp.zeros(()))

    def _powers(self, c0):
        """c_k^2 for k = 0, ..., terms - 1, and what is left of <phi^2>."""
        z, w = gauss_hermite(2 * self.terms, c0.dtype)
        values = self.phi(jnp.sqrt(c0) * z)

        def next_one(carry, k):
            before, now = carry
            c = jnp.sum(w * values * now)
            return (now, (z * now - jnp.sqrt(k) * before) / jnp.sqrt(k + 1)), c

        ks = jnp.arange(self.terms).astype(c0.dtype)
        _, c = lax.scan(next_one, (jnp.zeros_like(z), jnp.ones_like(z)), ks)
        return ks, c**2, 1 - jnp.sum(c**2) / jnp.sum(w * values**2)

    def init(self):
        gain = self._gain()
        return jnp.log(jnp.maximum(gain - 1, 1e-6) * gain)

    def update(self, order, noise=None):
        """log C(0); a silent network keeps what it is given."""
        ks, c2, _ = self._powers(jnp.exp(order))
        return jnp.where(self._gain() > 1, jnp.log(2 * jnp.square(self.g) * jnp.sum(c2 / (ks + 1))), order)

    def finish(self, order):
        c0 = jnp.exp(order)
        g2 = jnp.square(jnp.asarray(self.g, c0.dtype))
        ks, c2, _ = self._powers(c0)
        half = self.tau_max / (self.points - 1) / 2

        # C = C(0) / cosh^2 u turns the ball's path into u' = f(u) with f positive and smooth on all of u >= 0.
        def log_rho(u):
            return -2 * (jnp.logaddexp(u, -u) - jnp.log(2.0).astype(u.dtype))

        def speed(u):
            steep = jnp.abs(u) > 1e-4
            safe = jnp.where(steep, u, 1.0)
            far = -jnp.expm1((ks - 1) * log_rho(safe)) / jnp.tanh(safe) ** 2
            total = jnp.sum(c2 / (ks + 1) * jnp.where(steep, far, ks - 1) * (ks != 0).astype(c0.dtype))
            return jnp.sqrt(g2 * total / (2 * c0))

        step = lambda u, _: (rk4(lambda _, u: speed(u), 0.0, u, half), u)
        _, u = lax.scan(step, jnp.zeros_like(c0), length=2 * self.points - 1)
        log_ratio = log_rho(u)
        chaotic = self._gain() > 1
        C = jnp.where(chaotic, c0 * jnp.exp(log_ratio[::2]), 0.0)
        weights = ks * c2 / c0
        slopes = jax.vmap(lambda x: jnp.sum(weights * jnp.exp(jnp.maximum(ks - 1, 0.0) * x)))(log_ratio[1::2])
        level = _lowest_even_level(1 - g2 * slopes, 2 * half)
        lyapunov = jnp.where(chaotic, jnp.sqrt(jnp.maximum(1 - level, 0.0)) - 1, self._gain() - 1)
        tau = 2 * half * jnp.arange(self.points, dtype=c0.dtype)
        return Stationary(jnp.where(chaotic, c0, 0.0), tau, C, lyapunov)

    def verdict(self, order):
        # The neglected part of C(0) is below rest / terms of it.
        *_, rest = self._powers(jnp.maximum(order.C0, 1e-12))
        return jnp.where(rest < 1e-4 * self.terms, Code.ok, Code.unphysical).astype(jnp.int32)

    def finite_n(
        self, n: int, *, key: Key, t_max: float = 200.0, warm_up: float = 50.0, dt: float = 0.2, copies: int = 4
    ) -> Stationary:
        """One network of n units from `copies` starts, by classical Runge-Kutta steps; the correlation is averaged over
        units, copies and times after `warm_up`, and the exponent is that of a tangent vector.

        Lags of the grid are rounded to multiples of dt. Cost: 8 n^2 copies t_max / dt multiplications.
        """
        stride = max(1, round(self.tau_max / (self.points - 1) / dt))
        saved = round((t_max - warm_up) / (stride * dt))
        lags = min(self.points, saved // 2)
        if lags < 2:
            raise ValueError(f"t_max - warm_up = {t_max - warm_up} holds no lags of the grid: take it longer")
        return self._simulated(n, key, dt, copies, round(warm_up / dt), stride, saved, lags)

    @program
    def _simulated(self, n, key, dt, copies, warm_up, stride, saved, lags):
        j_key, x_key, v_key = jax.random.split(key, 3)
        J = self.g * jax.random.normal(j_key, (n, n)) / n**0.5
        move = lambda x: rk4(lambda _, x: self.phi(x) @ J.T - x, 0.0, x, dt)

        def one(carry, _):
            x, v = carry
            x, v = jax.jvp(move, (x,), (v,))
            size = jnp.linalg.norm(v)
            return (x, v / size), jnp.log(size)

        def interval(carry, _):
            carry, growth = lax.scan(one, carry, length=stride)
            return carry, (carry[0], jnp.sum(growth))

        x = jax.random.normal(x_key, (copies, n))
        v = jax.random.normal(v_key, (copies, n))
        start, _ = lax.scan(lambda c, _: (one(c, None)[0], None), (x, v), length=warm_up)
        _, (xs, growth) = lax.scan(interval, start, length=saved)
        # One lag at a time: the averages run over all pairs of saved times that far apart.
        C = jnp.stack([jnp.mean(xs[: saved - k] * xs[k:]) for k in range(lags)])
        tau = stride * dt * jnp.arange(lags, dtype=C.dtype)
        return Stationary(C[0], tau, C, jnp.sum(growth) / (saved * stride * dt))


def _lowest_even_level(potential: Array, h: float) -> Array:
    r"""Lowest level of $-\partial^2 + $ `potential` among even functions; the potential at (j + 1/2) h.

    On that grid the second derivative of a band-limited even function is a full matrix (Colbert and Miller, 1992),
    accurate to all orders. The derivative of a level is the expectation of that of the potential.
    """
    n = len(potential)
    i = jnp.arange(n, dtype=jnp.int32)

    def kinetic(m):
        safe = jnp.where(m == 0, 1, m).astype(potential.dtype)
        return jnp.where(m == 0, jnp.pi**2 / 3, 2 * jnp.where(m % 2 == 0, 1.0, -1.0) / safe**2) / h**2

    matrix = kinetic(i[:, None] - i[None, :]) + kinetic(i[:, None] + i[None, :] + 1)
    frozen = lax.stop_gradient(matrix + jnp.diag(potential))
    psi = lax.stop_gradient(jnp.linalg.eigh(frozen)[1][:, 0])
    return psi @ matrix @ psi + jnp.sum(psi**2 * potential)
