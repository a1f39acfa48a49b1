r"""Entropy production of $dx = b(x)\,dt + \sqrt{2D}\,dW$ from its score, learned or exact.

With $s = \nabla\ln p$ the density flows with $v = b - D s$, $\partial_t p = -\nabla\cdot(v p)$, and

$$\dot S = E[v^T D^{-1} v] = \underbrace{E[b^T D^{-1} v]}_{\mathrm{medium}} + \underbrace{E[-s^T v]}_{\mathrm{system}},
\qquad E[-s^T v] = E[\nabla\cdot v] = \tfrac{d}{dt} \Bigl(-\int p \ln p\Bigr).$$

In a stationary state the system's part vanishes, and all of it is housekeeping heat. Every coordinate counts as even
under reversal of time; D is diagonal, without zeros. x is one array of any shape, all of its entries one state.

**See** Seifert (2005) for the split; Boffi and Vanden-Eijnden, Deep learning probability flows and entropy production
rates in active matter (2024), for learning it.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.derivative import divergence
from physml.core.float64 import float64_program
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Field, Key, Scalar


class EntropyProduction(NamedTuple):
    """Rates of entropy production, averages over the samples.

    `total` = `medium` + `system`; `error`, the standard error of the total for independent samples; `parts`, like one
    state: what each entry contributes to the total.
    """

    total: Array
    medium: Array
    system: Array
    error: Array
    parts: Array


def probability_velocity(drift: Field, score: Field, diffusion: Scalar) -> Field:
    r"""The field $v = b - D s$ whose flow carries the density; `diffusion`: D, a number or one for each entry of x."""
    _check_fields(drift=drift, score=score)
    _check_diffusion(diffusion, None)
    return _Velocity(drift, score, jnp.asarray(diffusion))


class _Velocity(eqx.Module):
    """See `probability_velocity`."""

    drift: Field
    score: Field
    diffusion: Array

    def __call__(self, t: Any, x: Array, args: Any = None) -> Array:
        return self.drift(t, x, args) - _like(self.diffusion, x) * self.score(t, x, args)


def entropy_production(
    drift: Field, score: Field, diffusion: Scalar, x: Array, *, t: Scalar = 0.0, args: PyTree = None
) -> EntropyProduction:
    r"""$E[v^T D^{-1} v]$ with $v = b - D s$, and its parts, over samples x (n, ...) of the law at time t.

    An error $\delta$ of the score changes the total by $-2 E[v^T \delta] + E[\delta^T D \delta]$, whose first term
    vanishes in a stationary state if $\delta$ is a gradient. **Cost.** One evaluation of both fields for each sample.
    """
    if x.ndim < 2:
        raise ValueError(f"entropy_production needs samples (n, ...), got shape {x.shape}")
    _check_fields(drift=drift, score=score)
    _check_diffusion(diffusion, x)
    return _production(drift, score, diffusion, x, t, args)


@program
def _production(drift, score, diffusion, x, t, args):
    def one(x):
        b, s, D = drift(t, x, args), score(t, x, args), _like(diffusion, x)
        v = b - D * s
        return v * v / D, jnp.sum(b * v / D), -jnp.sum(s * v)

    parts, medium, system = jax.vmap(one)(x)
    totals = jnp.sum(parts, axis=tuple(range(1, parts.ndim)))
    error = jnp.std(totals) / len(x) ** 0.5
    return EntropyProduction(jnp.mean(totals), jnp.mean(medium), jnp.mean(system), error, jnp.mean(parts, axis=0))


def implicit_loss(
    score: Field, diffusion: Scalar, x: Array, *, key: Key | None = None, t: Scalar = 0.0, args: PyTree = None
) -> Array:
    r"""$E\bigl[\tfrac12 s^T D s + \nabla\cdot(D s)\bigr]$, whose least value is at the score.

    It is $\tfrac12 E[(\hat v - v)^T D^{-1} (\hat v - v)]$ and a constant: half the entropy production
    that the error of $v$ would make. x (n, ...): samples. With a `key` the divergence is one product with random signs
    (unbiased); without, exact. **Cost.** One jvp of the score for each sample, or one for each entry of x.
    **See** Hyvärinen (2005), theorem 1.
    """
    if x.ndim < 2:
        raise ValueError(f"implicit_loss needs samples (n, ...), got shape {x.shape}")
    _check_fields(score=score)
    _check_diffusion(diffusion, x)
    if key is not None:
        check_key(key)
    return _implicit(score, diffusion, x, key, t, args)


@program
def _implicit(score, diffusion, x, key, t, args):
    def one(x, sign):
        weighted = lambda x: _like(diffusion, x) * score(t, x, args)
        value, trace = divergence(weighted, x, sign)
        return jnp.sum(value**2 / _like(diffusion, x)) / 2 + trace

    if key is None:
        return jnp.mean(jax.vmap(lambda x: one(x, None))(x))
    return jnp.mean(jax.vmap(one)(x, jax.random.rademacher(key, x.shape, x.dtype)))


def work_rate(
    drift: Field, diffusion: Scalar, x: Array, *, t: Scalar = 0.0, args: PyTree = None
) -> tuple[Array, Array]:
    r"""$\langle b^T D^{-1} \circ \dot x\rangle = E[b^T D^{-1} b + \nabla\cdot b]$, the medium's part without the score.

    The work of the drift along the path in Stratonovich's sense, over the temperature; in a stationary state it is all
    there is. The divergence is exact. x (n, ...): samples. **Returns** the mean and its standard error for independent
    samples. **Cost.** One jvp of the drift for each entry of x.
    """
    if x.ndim < 2:
        raise ValueError(f"work_rate needs samples (n, ...), got shape {x.shape}")
    _check_fields(drift=drift)
    _check_diffusion(diffusion, x)
    return _work(drift, diffusion, x, t, args)


@program
def _work(drift, diffusion, x, t, args):
    def one(x):
        b, trace = divergence(lambda x: drift(t, x, args), x)
        return jnp.sum(b * b / _like(diffusion, x)) + trace

    rates = jax.lax.map(one, x, batch_size=min(len(x), 64))
    return jnp.mean(rates), jnp.std(rates) / len(x) ** 0.5


def linear_entropy_production(M: Array, D: Array) -> tuple[Array, Array]:
    r"""Exact stationary rate of $dx = -Mx\,dt + \sqrt{2D}\,dW$, and the covariance S, $MS + SM^T = 2D$.

    $$\dot S_\mathrm{tot} = \mathrm{Tr}(M^T D^{-1} M S) - \mathrm{Tr}\,M$$

    Zero if and only if $MD$ is symmetric (detailed balance). M (d, d) with eigenvalues of positive real part; D (d,)
    or (d, d). **Cost.** O(d^6): a dense Lyapunov equation. **Errors.** ValueError for other shapes and for
    an M that is not stable or a D that is not positive, which leave no stationary law; NaN where these are traced.
    """
    D = jnp.diag(D) if D.ndim == 1 else D
    if M.ndim != 2 or M.shape != D.shape or M.shape[0] != M.shape[1]:
        raise ValueError(f"expected M (d, d) and D (d,) or (d, d), got {M.shape} and {D.shape}")
    m, noise = check.known(M), check.known(D)
    if m is not None and not np.linalg.eigvals(m.astype(np.float64)).real.min() > 0:
        raise ValueError(
            "M must have eigenvalues of positive real part: dx = -Mx dt runs away, and nothing is stationary"
        )
    if noise is not None and not np.linalg.eigvalsh(noise.astype(np.float64) + noise.T)[0] > 0:
        raise ValueError("D must be positive definite")
    return _stationary_rate(M, D)


@float64_program
def _stationary_rate(M, D):
    eye = jnp.eye(len(M), dtype=M.dtype)
    S = jnp.linalg.solve(jnp.kron(M, eye) + jnp.kron(eye, M), 2 * D.reshape(-1)).reshape(M.shape)
    # The solution is a covariance if and only if M is stable.
    stable = jnp.isfinite(jnp.linalg.cholesky((S + S.T) / 2)).all()
    rate = jnp.trace(M.T @ jnp.linalg.solve(D, M) @ S) - jnp.trace(M)
    return jnp.where(stable, rate, jnp.nan), jnp.where(stable, S, jnp.nan)


def _check_fields(**fields):
    for name, field in fields.items():
        check.function(field, name, "(t, x, args)")


def _check_diffusion(diffusion, x):
    """D is a number, or one for each entry of a state."""
    shape, state = np.shape(diffusion), () if x is None else x.shape[1:]
    fits = len(shape) <= len(state) and all(m in (1, n) for m, n in zip(shape[::-1], state[::-1], strict=False))
    if x is not None and not fits:
        raise ValueError(f"diffusion must be a number, or one for each entry of a state {state}; got shape {shape}")
    check.within(diffusion, "diffusion", above=0)


def _like(diffusion, x):
    return jnp.broadcast_to(jnp.asarray(diffusion, x.dtype), x.shape)
