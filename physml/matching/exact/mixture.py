r"""Exact velocity, score and denoiser of every path between Gaussian mixtures.

Given the components (i, j) that $x_0 \sim N(m_i, S_i)$ and $x_1 \sim N(\mu_j, C_j)$ come from, everything is Gaussian:
$x_t \sim N(M_{ij}, \Sigma_{ij})$ with $M = \alpha m_i + \beta \mu_j$ and
$\Sigma = \alpha^2 S_i + \beta^2 C_j + \gamma^2 I$, and with $u = \Sigma^{-1}(x - M)$

$$E[x_0] = m_i + \alpha S_i u, \quad E[x_1] = \mu_j + \beta C_j u, \quad E[z] = \gamma u, \quad \nabla \ln p_t = -u.$$

The fields are averages of these over the posterior of (i, j).
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml.core.check import count, known
from physml.core.program import program
from physml.core.types import Field, Key
from physml.matching.paths.path import Path

# weights (K,), means (K, d), covs (K, d, d)
MixtureLike = tuple[Any, ...]


class Fields(NamedTuple):
    """Fields f(t, x, args=None) of one path; the denoiser is $E[x_1 | x_t]$."""

    velocity: Field
    score: Field
    denoiser: Field


def exact_fields(path: Path, source: MixtureLike | None, target: MixtureLike) -> Fields:
    r"""The fields of `path` with independent ends drawn from two Gaussian mixtures.

    **Arguments.** `source`, `target`: (weights (K,), means (K, d), covs (K, d, d)); a source None is N(0, I).
    **Returns** `Fields(velocity, score, denoiser)`. Differentiable in the mixtures.
    **Cost.** K0 K1 Cholesky factors of d x d for each time, K0 K1 d^2 for each x.
    **Errors.** `ValueError` for shapes that do not fit.
    """
    target = _check_mixture("target", target)
    dim = target[1].shape[1]
    if source is None:
        source = (np.ones(1), np.zeros((1, dim)), np.eye(dim)[None])
    source = _check_mixture("source", source)
    if source[1].shape[1] != dim:
        raise ValueError(f"source and target must share the dimension; got {source[1].shape[1]} and {dim}")

    parts = (_Exact(path, source, target, part) for part in range(3))
    return Fields(*parts)


class _Exact(eqx.Module):
    """One of E[dx_t/dt], the score, E[x1] at (t, x), for x0 and x1 from two mixtures."""

    path: Path
    source: tuple[Array, Array, Array]
    target: tuple[Array, Array, Array]
    part: int = eqx.field(static=True)

    @program
    def __call__(self, t: Any, x: Array, args: Any = None) -> Array:
        dim = self.target[1].shape[1]
        if x.shape != (dim,):
            raise ValueError(f"x is one sample of shape ({dim},), got {x.shape}; vmap over a batch")
        (w, m, s), (v, mu, c) = (tuple(a.astype(x.dtype) for a in mixture) for mixture in (self.source, self.target))
        (a, b, g), (da, db, dg) = self.path.coefficients(jnp.asarray(t, x.dtype))
        mean = a * m[:, None, :] + b * mu[None, :, :]
        cov = a**2 * s[:, None, :, :] + b**2 * c[None, :, :, :] + g**2 * jnp.eye(dim, dtype=x.dtype)[None, None]
        chol = jnp.linalg.cholesky(cov)
        gap = x[None, None, :] - mean
        # The inverse depends on t alone: a batch of x at one time shares it, where triangular solves would not.
        eye = jnp.broadcast_to(jnp.eye(dim, dtype=x.dtype), cov.shape)
        u = jnp.einsum("ijde,ije->ijd", jax.scipy.linalg.cho_solve((chol, True), eye), gap)
        log_det = jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)
        log_r = jnp.log(w)[:, None] + jnp.log(v)[None, :] - 0.5 * (gap * u).sum(-1) - log_det
        r = jax.nn.softmax(log_r.ravel()).reshape(log_r.shape)
        e0 = jnp.einsum("ij,ijd->d", r, m[:, None, :] + a * jnp.einsum("ide,ije->ijd", s, u))
        e1 = jnp.einsum("ij,ijd->d", r, mu[None, :, :] + b * jnp.einsum("jde,ije->ijd", c, u))
        mean_u = jnp.einsum("ij,ijd->d", r, u)
        return (da * e0 + db * e1 + dg * g * mean_u, -mean_u, e1)[self.part]


@program
def mixture_log_prob(mixture: MixtureLike, x: Array) -> Array:
    """Log-density of a Gaussian mixture at one sample x (d,)."""
    w, m, s = (jnp.asarray(a, x.dtype) for a in _check_mixture("mixture", mixture))
    chol = jnp.linalg.cholesky(s)
    gap = (x[None, :] - m)[..., None]
    white = jax.scipy.linalg.solve_triangular(chol, gap, lower=True)[..., 0]
    log_det = jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)
    constant = 0.5 * m.shape[1] * jnp.log(2 * jnp.pi).astype(x.dtype)
    return jax.scipy.special.logsumexp(jnp.log(w) - 0.5 * (white**2).sum(-1) - log_det) - constant


def mixture_sample(mixture: MixtureLike, n: int, *, key: Key) -> Array:
    """n samples (n, d) of a Gaussian mixture."""
    n = count(n, "n", least=0)
    return _mixture_sample(_check_mixture("mixture", mixture), n, key)


@program
def _mixture_sample(mixture, n, key):
    w, m, s = mixture
    which, normal = jax.random.split(key)
    k = jax.random.choice(which, len(w), (n,), p=w)
    z = jax.random.normal(normal, (n, m.shape[1]), m.dtype)
    return m[k] + jnp.einsum("nde,ne->nd", jnp.linalg.cholesky(s)[k], z)


def _check_mixture(name: str, mixture: MixtureLike) -> tuple[Array, Array, Array]:
    weights, means, covs = mixture = tuple(jnp.asarray(a) for a in mixture)
    k = weights.shape[0] if weights.ndim == 1 else -1
    d = means.shape[1] if means.ndim == 2 else -1
    if means.shape != (k, d) or covs.shape != (k, d, d):
        raise ValueError(
            f"{name} must be (weights (K,), means (K, d), covs (K, d, d)); got {weights.shape}, {means.shape}, "
            f"{covs.shape}"
        )
    if (numbers := known(mixture[0])) is None:
        return weights / weights.sum(), means, covs
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.sum() > 0):
        raise ValueError(f"the weights of {name} must be at least 0 and not all 0, got {numbers}")
    return jnp.asarray(numbers / numbers.sum()), means, covs
