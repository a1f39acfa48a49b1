r"""Averages of an activation over Gaussian pairs, $\langle\phi(u)\phi(v)\rangle$ and $\langle\phi'(u)\phi'(v)\rangle$.

Closed forms for ReLU, erf and the identity. Any other activation by its Hermite coefficients: with $s = \sqrt{K_{uu}}$,
$\rho$ the correlation and $h_k$ the normalised Hermite polynomials, Mehler's formula gives

$$\langle\phi(u)\phi(v)\rangle = \sum_k \rho^k a_k(s_u) a_k(s_v), \qquad a_k(s) = \int Dz\,\phi(sz) h_k(z).$$

With the coefficients from N Gauss-Hermite nodes and the sum over k < N, the value at $\rho = 1$ is the one-dimensional
quadrature itself (the discrete transform is orthogonal), so nothing is lost as the correlation goes to 1, the
derivative in $\rho$ is finite there, and n inputs cost $n^2 N$ instead of the $n^2 N^2$ of a product grid.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from physml.core.float64 import float64_program, in_float64
from physml.core.program import program
from physml.core.types import is_traced

Activation = str | Callable[..., Any]
NAMED: dict[str, Callable[..., Any]] = {
    "relu": jax.nn.relu,
    "erf": jax.scipy.special.erf,
    "linear": lambda x: x,
    "tanh": jnp.tanh,
}


def activation(phi: Activation) -> Callable[..., Any]:
    """The function of one number that `phi` names, or `phi` itself."""
    if isinstance(phi, str):
        if phi not in NAMED:
            raise ValueError(f"phi must be one of {', '.join(NAMED)} or a function of one number; got {phi!r}")
        return NAMED[phi]
    if not callable(phi):
        raise ValueError(f"phi must be one of {', '.join(NAMED)} or a function of one number; got {phi!r}")
    return phi


def check_kernel(K: Any) -> Array:
    """K as a floating array; where its values are known it must be symmetric and positive semidefinite."""
    K = jnp.asarray(K)
    if K.ndim != 2 or K.shape[0] != K.shape[1] or not len(K):
        raise ValueError(f"a kernel is a square matrix (n, n), such as x @ x.T / d; got shape {K.shape}")
    if not jnp.issubdtype(K.dtype, jnp.floating):
        K = K.astype(float)
    if not is_traced(K):
        host = np.asarray(K, np.float64)
        slack = 100 * len(K) * float(jnp.finfo(K.dtype).eps) * max(float(np.abs(host).max()), 1e-300)
        if not np.isfinite(host).all() or np.abs(host - host.T).max() > slack:
            raise ValueError(f"a kernel is finite and symmetric; K - K.T reaches {np.abs(host - host.T).max():.3g}")
        lowest = float(np.linalg.eigvalsh(host)[0])
        if lowest < -slack:
            raise ValueError(f"a kernel is positive semidefinite; its smallest eigenvalue is {lowest:.3g}")
    return K


def of_activation(function: Callable[..., Any] | None = None, *, static: tuple[str, ...] = ()) -> Any:
    """Decorator of a function of arrays and of a keyword `phi`: `float64_program`.

    A closure may capture traced values, of which that program's derivative would not know: it is compiled alone.
    """
    if function is None:
        return functools.partial(of_activation, static=static)
    whole, alone = float64_program(function, static=("phi", *static)), in_float64(program(function))

    @functools.wraps(function)
    def wrapped(*args, phi, **options):
        inner = phi if isinstance(phi, str) else inspect.unwrap(phi)
        closed = isinstance(inner, functools.partial) or getattr(inner, "__closure__", None)
        return (alone if closed else whole)(*args, phi=phi, **options)

    return wrapped


@functools.lru_cache(maxsize=16)
def _hermite(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Hermite nodes z, and T with (T f(z))_k = <f h_k>, from the eigenvectors of the Jacobi matrix."""
    from scipy.linalg import eigh_tridiagonal

    z, vectors = eigh_tridiagonal(np.zeros(nodes), np.sqrt(np.arange(1.0, nodes)))
    vectors = vectors * np.sign(vectors[0])
    return z, vectors * vectors[0]


@jax.custom_jvp
def _clip(rho):
    """Into [-1, 1], where rounding may have left it; the derivative is the identity."""
    return jnp.clip(rho, -1.0, 1.0)


_clip.defjvp(lambda primal, tangent: (_clip(*primal), tangent[0]))


def split(K: Array) -> tuple[Array, Array]:
    """Standard deviations (n,) and correlations (n, n); a variance of zero has correlation zero."""
    q = jnp.diagonal(K)
    live = q > 0
    s = jnp.where(live, jnp.sqrt(jnp.where(live, q, 1.0)), 0.0)
    scale = jnp.where(live, s, 1.0)
    both = live[:, None] & live[None, :]
    rho = jnp.where(both, K / (scale[:, None] * scale[None, :]), 0.0)
    # Exactly 1 on the diagonal: near 1 an arc cosine turns rounding into 1e-8.
    return s, _clip(jnp.where(jnp.eye(len(q), dtype=bool) & both, 1.0, rho))


@jax.custom_jvp
def _half_plane(rho):
    """<step(u) step(v)> = (pi - arccos rho) / (2 pi)."""
    return 0.5 - jnp.arccos(rho) / (2 * jnp.pi)


@_half_plane.defjvp
def _(primal, tangent):
    # Its derivative is infinite at |rho| = 1; a diagonal entry never moves in rho, so 0 is the value that serves it.
    gap = 1 - primal[0] ** 2
    inside = gap > 8 * jnp.finfo(gap.dtype).eps
    slope = jnp.where(inside, 1 / jnp.sqrt(jnp.where(inside, gap, 1.0)), 0.0) / (2 * jnp.pi)
    return _half_plane(*primal), slope * tangent[0]


@jax.custom_jvp
def _arc_cosine(rho):
    """<relu(u) relu(v)> at unit variances."""
    return jnp.sqrt(jnp.maximum(1 - rho**2, 0.0)) / (2 * jnp.pi) + rho * _half_plane(rho)


_arc_cosine.defjvp(lambda primal, tangent: (_arc_cosine(*primal), _half_plane(*primal) * tangent[0]))


def _mehler(f: Callable[..., Any], s: Array, rho: Array, nodes: int) -> Array:
    z, transform = _hermite(nodes)
    z, transform = jnp.asarray(z, s.dtype), jnp.asarray(transform, s.dtype)
    values = jax.vmap(jax.vmap(f))(s[:, None] * z[None, :])
    coefficients = transform @ values.T
    horner = lambda total, a: (total * rho + a[:, None] * a[None, :], None)
    return lax.scan(horner, jnp.zeros_like(rho), coefficients, reverse=True)[0]


def pair_average(K: Array, phi: Activation, *, nodes: int = 256) -> Array:
    r"""$\langle\phi(u_i)\phi(u_j)\rangle$, $u \sim N(0, K)$, for every pair of inputs (n, n).

    For "relu" $s s' [\sqrt{1 - \rho^2} + (\pi - \arccos\rho)\rho]/2\pi$; for "erf"
    $\frac2\pi\arcsin\frac{2K_{ij}}{\sqrt{(1 + 2K_{ii})(1 + 2K_{jj})}}$; for "linear" K; otherwise Hermite coefficients
    from `nodes` quadrature nodes.
    """
    if phi == "linear":
        return K
    if phi == "erf":
        w = 1 + 2 * jnp.diagonal(K)
        return 2 / jnp.pi * jnp.arcsin(2 * K / jnp.sqrt(w[:, None] * w[None, :]))
    s, rho = split(K)
    if phi == "relu":
        return s[:, None] * s[None, :] * _arc_cosine(rho)
    return _mehler(activation(phi), s, rho, nodes)


def pair_slope(K: Array, phi: Activation, *, nodes: int = 256) -> Array:
    r"""$\langle\phi'(u_i)\phi'(u_j)\rangle$, by Price's theorem the derivative of `pair_average` in $K_{ij}$."""
    if phi == "linear":
        return jnp.ones_like(K)
    if phi == "erf":
        w = 1 + 2 * jnp.diagonal(K)
        return 4 / jnp.pi / jnp.sqrt(w[:, None] * w[None, :] - 4 * K**2)
    s, rho = split(K)
    if phi == "relu":
        return _half_plane(rho)
    return _mehler(jax.grad(activation(phi)), s, rho, nodes)


def moment(g: Callable[..., Any], variance: ArrayLike, *, nodes: int = 4096, reach: float = 10.0) -> Array:
    r"""$\int Dz\,g(\sqrt q z)$ by the midpoint rule, which keeps its accuracy for steep g where Gauss-Hermite does not.

    Derivatives in q act on the density instead of on g, so they hold at kinks of g, to any order.
    """
    h = 2 * reach / nodes
    z = jnp.asarray((np.arange(nodes) + 0.5) * h - reach)
    weight = jnp.exp(-0.5 * z**2) * (h / np.sqrt(2 * np.pi))
    q = jnp.asarray(variance, z.dtype)
    q0 = lax.stop_gradient(q)
    ratio = q0 / q
    return jnp.sum(weight * jnp.sqrt(ratio) * jnp.exp(-0.5 * z**2 * (ratio - 1)) * jax.vmap(g)(jnp.sqrt(q0) * z))
