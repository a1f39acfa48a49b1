r"""The Coulomb gas of the plane, $e^{-\beta H}$ with $H = \sum_i |x_i|^2/2 - \sum_{i<j} \ln|x_i - x_j|$: what is exact.

At $\beta = 2$ these are the eigenvalues of a Ginibre matrix: a determinantal process with orthonormal functions
$\varphi_k(z) = z^k e^{-|z|^2/2}/\sqrt{\pi k!}$, $k < N$.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml.core import check, in_float64
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.quadrature import gauss_legendre
from physml.core.types import Key, Scalar
from physml.particles.energies.pair_energy import PairEnergy


def coulomb_gas(x: Array) -> Array:
    r"""$H(x) = \tfrac12 \sum_i |x_i|^2 - \sum_{i<j} \ln |x_i - x_j|$ of charges x (N, 2); a scalar.

    The quadratic term is a uniform background. The gas at inverse temperature $\beta$ is
    `hmc(coulomb_gas, ..., temperature=1 / beta)`. It fills the disc of
    radius $\sqrt N$ with density $1/\pi$. **Cost** and **errors** as in `PairEnergy`; ValueError unless d = 2.
    """
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"coulomb_gas needs points (N, 2) of the plane; got {x.shape}")
    return _gas(x)


@program
def _gas(x):
    return jnp.sum(x**2) / 2 + PairEnergy(_repulsion)(x)


def _repulsion(x, y):
    return -0.5 * jnp.log(jnp.sum((x - y) ** 2))


class Gamma(NamedTuple):
    """The law with density proportional to s^(shape - 1) e^(-rate s)."""

    shape: Array
    rate: Array

    @property
    def cumulants(self) -> Array:
        """The first three: mean, variance, third central moment."""
        k, r = self.shape, self.rate
        return jnp.stack([k / r, k / r**2, 2 * k / r**3])


def virial_law(n: int, beta: Scalar) -> Gamma:
    r"""The exact law of $\sum_i |x_i|^2$ of n charges: Gamma of shape $N + \beta N(N-1)/4$ and rate $\beta/2$.

    The interaction is homogeneous: x = r u with |u| = 1 gives $r^{2N - 1 + \beta N(N-1)/2} e^{-\beta r^2/2}$.
    """
    n, beta = check.count(n, "n"), check.number(beta, "beta", above=0)
    return Gamma(n + beta * (n * (n - 1) / 4), beta / 2)


def ginibre(n: int, *, key: Key, dtype: jnp.dtype = jnp.float32) -> Array:
    r"""An exact sample (n, 2) at $\beta = 2$: the eigenvalues of a matrix of complex normals with $E|g|^2 = 1$.

    **Cost.** About 30 n^3, on a CPU. **See** Ginibre (1965).
    """
    check_key(key)
    return _ginibre(check.count(n, "n"), key, dtype)


@program
def _ginibre(n, key, dtype):
    parts = jax.random.normal(key, (2, n, n), dtype) / math.sqrt(2)
    z = jnp.linalg.eigvals(jax.lax.complex(parts[0], parts[1]))
    return jnp.stack([z.real, z.imag], axis=-1)


def ginibre_density(r: Array, n: int) -> Array:
    r"""$\rho(r) = \frac1\pi e^{-r^2} \sum_{k<n} r^{2k}/k! = Q(n, r^2)/\pi$, the density of n charges at $\beta = 2$."""
    return jax.scipy.special.gammaincc(jnp.asarray(n, r.dtype), r**2) / math.pi


def linear_statistic_cumulants(f: Callable[[Array], Array], n: int, *, extra: int = 40) -> Array:
    r"""The first three cumulants of $\sum_i f(x_i)$ at $\beta = 2$, exact for n charges, (3,).

    $$\ln E e^{s \sum f(x_i)} = \ln\det\bigl(\langle\varphi_j| e^{sf} |\varphi_k\rangle\bigr),$$
    $$\kappa_1 = \mathrm{Tr}\,M_1, \qquad \kappa_2 = \mathrm{Tr}(M_2 - M_1^2),$$
    $$\kappa_3 = \mathrm{Tr}(M_3 - 3 M_1 M_2 + 2 M_1^3),$$

    $M_p = \langle\varphi_j|f^p|\varphi_k\rangle$. Quadrature on a polar grid, in float64: geometric convergence for
    smooth f that vary on scales above 1; `extra` adds nodes to both directions. `f`: of one point (2,), a scalar.
    **Cost.** O(n^2) times the nodes, some 20 n + 80 `extra`.
    """
    check.function(f, "f", "of one point")
    return _cumulants(f, check.count(n, "n"), check.count(extra, "extra", least=0))


@in_float64
@program
def _cumulants(f, n, extra):
    reach = math.sqrt(n) + 6.0  # e^{-36} of the outermost function is beyond
    r, w = map(jnp.asarray, gauss_legendre(int(4 * math.sqrt(n)) + extra, 0.0, reach))
    directions = _circle(2 * (n + extra))
    points = r[:, None, None] * directions[None]
    values = jax.vmap(jax.vmap(f))(points)  # (radii, angles)
    k = jnp.arange(n, dtype=r.dtype)
    log_size = k[None, :] * jnp.log(r)[:, None] - (r**2 / 2)[:, None] - jax.lax.lgamma(k + 1)[None, :] / 2
    radial = jnp.exp(log_size) * jnp.sqrt(2 * r * w)[:, None]  # rows of squares sum to one
    # <j|f^p|k> needs the Fourier coefficient j - k of f^p on every circle.
    shift = (k[:, None] - k[None, :]).astype(int)

    def matrix(p):
        modes = jnp.fft.fft(values**p, axis=1) / len(directions)
        return jnp.einsum("rj,rk,rjk->jk", *(radial.astype(modes.dtype),) * 2, modes[:, shift])

    one, two, three = (matrix(p) for p in (1, 2, 3))
    trace = lambda a: jnp.trace(a).real
    cubic = trace(three) - 3 * trace(one @ two) + 2 * trace(one @ one @ one)
    return jnp.stack([trace(one), trace(two) - trace(one @ one), cubic])


def limit_variance(f: Callable[[Array], Array], beta: Scalar = 2.0, *, nodes: int = 128) -> Array:
    r"""The variance of $\sum_i f(x_i/\sqrt N)$ as $N \to \infty$, for smooth f.

    $$\frac{1}{2\pi\beta} \int_{|x|<1} |\nabla f|^2\,dx + \frac1\beta \sum_{k} |k|\,|\hat f_k|^2, \qquad
    \hat f_k = \int_0^{2\pi} f(e^{i\theta}) e^{-ik\theta} \frac{d\theta}{2\pi}$$

    It does not grow with N: the charges are far more evenly spread than independent ones.
    **See** Rider and Virág (2007) at $\beta = 2$; Leblé and Serfaty (2018) for any.
    """
    check.function(f, "f", "of one point")
    beta = check.number(beta, "beta", above=0)
    at_one = _limit_variance(f, check.count(nodes, "nodes"))
    return at_one / beta.astype(at_one.dtype)


@in_float64
@program
def _limit_variance(f, nodes):
    r, w = map(jnp.asarray, gauss_legendre(nodes))
    circle = _circle(nodes)
    slopes = jax.vmap(jax.vmap(lambda z: jnp.sum(jax.grad(f)(z) ** 2)))(r[:, None, None] * circle[None])
    bulk = jnp.sum(w * r * jnp.mean(slopes, axis=1))  # the integral over 2 pi
    modes = jnp.fft.fft(jax.vmap(f)(circle)) / nodes
    edge = jnp.sum(jnp.abs(jnp.fft.fftfreq(nodes, 1 / nodes)) * jnp.abs(modes) ** 2)
    return bulk + edge


def _circle(count):
    angle = 2 * math.pi * np.arange(count) / count
    return jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], -1))
