r"""Iterated perturbation theory on the real axis: the spectrum of `BetheHubbard` without analytic continuation.

With $A_0 = -\mathrm{Im}\,G_0/\pi$ and the Fermi function f, the particle part $h(\omega) = A_0(\omega) f(-\omega)$
gives

$$-\tfrac1\pi\mathrm{Im}\,\Sigma(\omega) = U^2\bigl[(h * h * h)(\omega) + (h * h * h)(-\omega)\bigr], \qquad
  \Sigma(\omega) = \int d\epsilon\,\frac{-\mathrm{Im}\,\Sigma(\epsilon)/\pi}{\omega + i0 - \epsilon},$$

$$G_0^{-1} = \zeta - \tfrac{D^2}{4} G, \qquad G = \frac{2}{\xi + \sqrt{\xi^2 - D^2}},\ \xi = \zeta - \Sigma, \qquad
  \zeta = \omega + i\eta,$$

the second being $G^{-1} = \xi - D^2 G/4$ solved for G. In the insulator $A_0$ has a pole at zero, narrower than any
grid: its weight is kept by averaging $1/z$ over each cell with $z = G_0^{-1}$ linear there, $\log(z_+/z_-)/(z_+ -
z_-)$, and the pole that it causes in Sigma is kept apart.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core._status import Code
from physml.core.iterations import Damped
from physml.core.types import Scalar
from physml.dmft.equations.solve import AbstractModel, SelfConsistent


class Spectrum(eqx.Module):
    """Spectral function `A` at energies `w`, retarded Green function `G` and self-energy `sigma`."""

    w: Array
    A: Array
    G: Array
    sigma: Array

    def matsubara(self, w: Array) -> Array:
        r"""Im G at imaginary frequencies w (n,) from the spectrum: $-w\int A/(w^2 + \epsilon^2)\,d\epsilon$."""
        kernel = w[:, None] / (w[:, None] ** 2 + self.w[None, :] ** 2)
        return -(kernel @ self.A) * (self.w[1] - self.w[0])


class RealBetheHubbard(AbstractModel):
    r"""The half-filled Hubbard model of `BetheHubbard` at real frequencies.

    **Arguments.** `U`, `beta`, `D`, `start`: as there. `broadening` >= 0: eta. `reach`: the grid covers [-reach,
    reach], to hold three times the support of G0; `points`: of it, odd.
    **Solution.** `Spectrum(w, A, G, sigma)`; status `unphysical` where A < 0 or its weight is not 1 within 1%.
    **Cost.** Five FFTs of 4 `points` per iteration. No finite system, as there.

    **See** Zhang, Rozenberg and Kotliar, Phys. Rev. Lett. 70, 1666 (1993).
    """

    U: Scalar = 2.0
    beta: Scalar = 50.0
    D: Scalar = 1.0
    broadening: Scalar = 1e-7
    start: str = eqx.field(static=True, default="metal")
    reach: float = eqx.field(static=True, default=10.0)
    points: int = eqx.field(static=True, default=4001)

    scheme: ClassVar[Any] = SelfConsistent(Damped(1.0), tol=1e-8, max_steps=2000)

    def __check_init__(self):
        check.choice(self.start, "start", ("metal", "insulator"))
        if check.count(self.points, "points", least=3) % 2 == 0:
            raise ValueError(f"points must be odd, got {self.points}")
        check.within(self.reach, "reach", above=0)
        check.within(self.broadening, "broadening", least=0)

    @property
    def _w(self):
        return jnp.linspace(-self.reach, self.reach, self.points)

    @property
    def _zeta(self):
        return lax.complex(self._w, jnp.broadcast_to(jnp.asarray(self.broadening, self._w.dtype), self._w.shape))

    def _lattice(self, xi):
        d = jnp.asarray(self.D, xi.real.dtype).astype(xi.dtype)
        return 2 / (xi + jnp.sqrt(xi - d) * jnp.sqrt(xi + d))

    def init(self):
        # No self-energy, or that of one site alone.
        z = self._zeta + 0.02j
        u = jnp.asarray(self.U, z.real.dtype) if self.start == "insulator" else jnp.zeros((), z.real.dtype)
        return _pair(self._lattice(z - (u**2 / 4).astype(z.dtype) / z))

    def _self_energy(self, g):
        w, n = self._w, self.points
        spacing = w[1] - w[0]
        z = self._zeta - (jnp.asarray(self.D, w.dtype) ** 2 / 4).astype(g.dtype) * g
        edges = jnp.concatenate([1.5 * z[:1] - 0.5 * z[1:2], (z[1:] + z[:-1]) / 2, 1.5 * z[-1:] - 0.5 * z[-2:-1]])
        h = -(jnp.diff(jnp.log(edges)) / jnp.diff(edges)).imag / jnp.pi * jax.nn.sigmoid(self.beta * w)
        # h * h * h starts at -3 reach; its middle n entries lie on the grid.
        size = 4 * n
        cube = jnp.fft.irfft(jnp.fft.rfft(h, size) ** 3, size)[n - 1 : 2 * n - 1] * spacing**2
        rho = jnp.asarray(self.U, w.dtype) ** 2 * (cube + cube[::-1])
        # A pole of Sigma at zero appears as one point far above its neighbours, and is taken as a point mass.
        middle = n // 2
        above = rho[middle] - (rho[middle - 1] + rho[middle + 1]) / 2
        pole = jnp.where(above > rho[middle] / 2, above, 0)
        rho = rho.at[middle].add(-pole)
        # Principal value over piecewise linear rho: the second difference of m log|m|.
        m = np.arange(-n, n + 1)
        x = m * np.log(np.maximum(np.abs(m), 1))
        hilbert = jnp.asarray(x[2:] - 2 * x[1:-1] + x[:-2])
        real = jnp.fft.irfft(jnp.fft.rfft(rho, size) * jnp.fft.rfft(hilbert, size), size)[n - 1 : 2 * n - 1]
        away = lax.complex(w, jnp.full_like(w, 1e-4) * spacing)
        return lax.complex(real, -jnp.pi * rho) + (pole * spacing).astype(away.dtype) / away

    def update(self, order, noise=None):
        g = lax.complex(*order)
        return _pair(self._lattice(self._zeta - self._self_energy(g)))

    def finish(self, order):
        g = lax.complex(*order)
        return Spectrum(self._w, -g.imag / jnp.pi, g, self._self_energy(g))

    def verdict(self, order):
        weight = jnp.sum(order.A) * (order.w[1] - order.w[0])
        good = (order.A > -1e-6).all() & (jnp.abs(weight - 1) < 0.01)
        return jnp.where(good, Code.ok, Code.unphysical).astype(jnp.int32)


def _pair(z):
    return jnp.stack([z.real, z.imag])
