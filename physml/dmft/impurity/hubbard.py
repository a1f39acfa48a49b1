r"""The Mott transition: the half-filled Hubbard model on the Bethe lattice of infinite connectivity.

One site in the bath of its neighbours, solved by iterated perturbation theory in imaginary time,

$$G_0^{-1}(i\omega_n) = i\omega_n - \tfrac{D^2}{4} G(i\omega_n), \qquad \Sigma(\tau) = U^2 G_0(\tau)^3, \qquad
  G^{-1}(i\omega_n) = G_0^{-1}(i\omega_n) - \Sigma(i\omega_n).$$

G(tau) < 0 on (0, beta) and symmetric about beta/2; energies from the middle of the band. Exact to second order in U
and for D = 0, where $\Sigma = U^2/(4 i\omega_n)$. Below a temperature a metal and an insulator solve the same
equations between $U_{c1}$ and $U_{c2}$.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core._status import Code
from physml.core.float64 import float64_program
from physml.core.iterations import Damped
from physml.core.quadrature import gauss_legendre_panels
from physml.core.types import Scalar
from physml.dmft.equations.solve import AbstractModel, SelfConsistent
from physml.dmft.impurity.lehmann import lehmann


class Green(eqx.Module):
    r"""Green function `G` and self-energy `sigma` (complex, symmetry makes them imaginary) at Matsubara frequencies
    `w` > 0; `G_tau` at `tau` in [0, beta]; quasiparticle weight `Z` $= 1/(1 - \mathrm{Im}\Sigma(i\omega_0)/\omega_0)$;
    `docc` $= \langle n_\uparrow n_\downarrow\rangle$; `unknowns`: G at the sampling times of the basis, to start a
    solve from."""

    w: Array
    G: Array
    sigma: Array
    tau: Array
    G_tau: Array
    Z: Array
    docc: Array
    beta: Array
    unknowns: Array
    cutoff: float = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def at(self, tau: Scalar) -> Array:
        """G at any times in [0, beta], to the basis' tolerance."""
        return _at(self, tau)


@float64_program
def _at(green, tau):
    basis = lehmann(green.cutoff, green.eps)
    kernel = lambda x: -(jnp.exp(-x * y) + jnp.exp(-(1 - x) * y)) / (2 * (1 + jnp.exp(-y)))
    y = jnp.asarray(basis.y)[None, :]
    x = jnp.ravel(tau) / green.beta
    # Rows of interpolation weights first: they are moderate, the weights of the poles are not.
    weights = jnp.linalg.solve(kernel(jnp.asarray(basis.x)[:, None]).T, kernel(x[:, None]).T)
    return (green.unknowns @ weights).reshape(tau.shape)


class BetheHubbard(AbstractModel):
    r"""Hubbard's model at half filling on the Bethe lattice by iterated perturbation theory; the module has the
    equations.

    **Arguments.** `U` >= 0: repulsion; `beta` > 0: inverse temperature; `D` >= 0: half bandwidth, the unit of energy.
    `start`: "metal" or "insulator", where `init` starts; that is the branch found where both exist. `cutoff`: beta
    times the largest energy of the spectrum of G0(tau)^3; `eps`: tolerance of the basis of `lehmann`. `frequencies`,
    `times`: how many are reported.

    **Solution.** `Green(w, G, sigma, tau, G_tau, Z, docc, ...)`. Status `unphysical` where the spectrum would be
    negative (Im G > 0, or G(tau) > 0) or Z leaves (0, 1]. **Cost.** Some 35 unknowns; a millisecond.

    There is no finite system to simulate: the lattice has infinite connectivity, and its local problem is
    approximated, not sampled. Compare with one impurity diagonalised exactly instead. The second-order self-energy is
    exact for one impurity up to U^4,
    which tests check.

    **See** Georges, Kotliar, Krauth and Rozenberg, Rev. Mod. Phys. 68, 13 (1996).
    """

    U: Scalar = 2.0
    beta: Scalar = 50.0
    D: Scalar = 1.0
    start: str = eqx.field(static=True, default="metal")
    cutoff: float = eqx.field(static=True, default=2000.0)
    eps: float = eqx.field(static=True, default=1e-13)
    frequencies: int = eqx.field(static=True, default=256)
    times: int = eqx.field(static=True, default=201)

    # The equations iterated as they stand converge from every start, to a stable branch; mixed iterates of two
    # branches stall.
    scheme: ClassVar[Any] = SelfConsistent(Damped(1.0), tol=1e-11, max_steps=20000)

    def __check_init__(self):
        check.within(self.U, "U", least=0)
        check.within(self.D, "D", least=0)
        check.within(self.beta, "beta", above=0)
        check.choice(self.start, "start", ("metal", "insulator"))
        check.count(self.frequencies, "frequencies")
        check.count(self.times, "times", least=2)
        beta, D, U = (check.known(v) for v in (self.beta, self.D, self.U))
        if beta is not None and D is not None and U is not None:
            reach = float(np.max(beta * (4 * D + U)))
            if reach > self.cutoff:
                needed = 2.0 ** np.ceil(np.log2(reach))
                raise ValueError(
                    f"cutoff must exceed beta (4 D + U) = {reach:g} to hold the spectrum of the self-energy, got "
                    f"{self.cutoff:g}: cutoff={needed:g}"
                )

    @property
    def _basis(self):
        return lehmann(self.cutoff, self.eps)

    def _frequencies(self, n: np.ndarray) -> Array:
        return (2 * jnp.asarray(n).astype(float) + 1) * jnp.pi / self.beta

    def init(self):
        basis = self._basis
        w = self._frequencies(basis.n)
        if self.start == "metal":
            # 2 (sqrt(w^2 + D^2) - w) / D^2, the band without interaction
            g = -2 / (w + jnp.sqrt(w**2 + self.D**2))
        else:
            g = -w / (w**2 + self.U**2 / 4)
        return jnp.asarray(basis.tau_from_w) @ (g / self.beta)

    def _bath(self, order):
        """Im G0 at the sampling frequencies, and G0^3 at the sampling times."""
        basis = self._basis
        g = self.beta * (jnp.asarray(basis.w_from_tau) @ order)
        # With all functions imaginary, 1/(i x) = -i/x.
        g0 = -1 / (self._frequencies(basis.n) - self.D**2 / 4 * g)
        return g0, (jnp.asarray(basis.tau_from_w) @ (g0 / self.beta)) ** 3

    def update(self, order, noise=None):
        basis = self._basis
        g0, cube = self._bath(order)
        sigma = self.U**2 * self.beta * (jnp.asarray(basis.w_from_tau) @ cube)
        return jnp.asarray(basis.tau_from_w) @ (1 / (1 / g0 + sigma) / self.beta)

    def finish(self, order):
        basis, n = self._basis, np.arange(self.frequencies)
        _, cube = self._bath(order)
        to_w = jnp.asarray(basis.frequencies(n))
        w, g, sigma = self._frequencies(n), self.beta * (to_w @ order), self.U**2 * self.beta * (to_w @ cube)
        grid = np.linspace(0.0, 1.0, self.times)
        beta = jnp.asarray(self.beta, w.dtype)
        # U docc = U/4 + T sum_n Sigma G, and the sum over all frequencies is -int Sigma(tau) G(tau) dtau.
        nodes, weights = _ends(self.cutoff)
        at = jnp.asarray(basis.times(nodes))
        overlap = self.U * self.beta * (jnp.asarray(weights) @ ((at @ cube) * (at @ order)))
        return Green(
            w,
            lax.complex(jnp.zeros_like(g), g), lax.complex(jnp.zeros_like(sigma), sigma), jnp.asarray(grid) * beta,
            jnp.asarray(basis.times(grid)) @ order, 1 / (1 - sigma[0] / w[0]), 0.25 - overlap, beta, order,
            self.cutoff, self.eps,
        )  # fmt: skip

    def verdict(self, order):
        good = (order.G.imag < 0).all() & (order.G_tau < 0).all() & (order.Z > 0) & (order.Z <= 1 + 1e-9)
        return jnp.where(good, Code.ok, Code.unphysical).astype(jnp.int32)


def _ends(cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss's nodes and weights for [0, 1] on panels that halve towards both ends."""
    x, w = gauss_legendre_panels(np.concatenate([[0.0], 0.5 * 2.0 ** np.arange(-np.ceil(np.log2(cutoff)), 1)]), 16)
    return np.concatenate([x, 1 - x[::-1]]), np.concatenate([w, w[::-1]])
