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

import jax
import jax.numpy as jnp
from jaxtyping import Array

from physml.core import in_float64
from physml.core.derivative import divergence
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
    return lambda t, x, args=None: drift(t, x, args) - _like(diffusion, x) * score(t, x, args)


def entropy_production(
    drift: Field, score: Field, diffusion: Scalar, x: Array, *, t: Scalar = 0.0, args: Any = None
) -> EntropyProduction:
    r"""$E[v^T D^{-1} v]$ with $v = b - D s$, and its parts, over samples x (n, ...) of the law at time t.

    An error $\delta$ of the score changes the total by $-2 E[v^T \delta] + E[\delta^T D \delta]$, whose first term
    vanishes in a stationary state if $\delta$ is a gradient. **Cost.** One evaluation of both fields for each sample.
    """
    if x.ndim < 2:
        raise ValueError(f"entropy_production needs samples (n, ...), got shape {x.shape}")

    def one(x):
        b, s, D = drift(t, x, args), score(t, x, args), _like(diffusion, x)
        v = b - D * s
        return v * v / D, jnp.sum(b * v / D), -jnp.sum(s * v)

    parts, medium, system = jax.vmap(one)(x)
    totals = jnp.sum(parts, axis=tuple(range(1, parts.ndim)))
    error = jnp.std(totals) / len(x) ** 0.5
    return EntropyProduction(jnp.mean(totals), jnp.mean(medium), jnp.mean(system), error, jnp.mean(parts, axis=0))


def implicit_loss(
    score: Field, diffusion: Scalar, x: Array, *, key: Key | None = None, t: Scalar = 0.0, args: Any = None
) -> Array:
    r"""$E\bigl[\tfrac12 s^T D s + \nabla\cdot(D s)\bigr]$, whose least value is at the score.

    It is $\tfrac12 E[(\hat v - v)^T D^{-1} (\hat v - v)]$ and a constant: half the entropy production
    that the error of $v$ would make. x (n, ...): samples. With a `key` the divergence is one product with random signs
    (unbiased); without, exact. **Cost.** One jvp of the score for each sample, or one for each entry of x.
    **See** Hyvärinen (2005), theorem 1.
    """
    if x.ndim < 2:
        raise ValueError(f"implicit_loss needs samples (n, ...), got shape {x.shape}")

    def one(x, sign):
        weighted = lambda x: _like(diffusion, x) * score(t, x, args)
        value, trace = divergence(weighted, x, sign)
        return jnp.sum(value**2 / _like(diffusion, x)) / 2 + trace

    if key is None:
        return jnp.mean(jax.vmap(lambda x: one(x, None))(x))
    return jnp.mean(jax.vmap(one)(x, jax.random.rademacher(key, x.shape, x.dtype)))


def work_rate(drift: Field, diffusion: Scalar, x: Array, *, t: Scalar = 0.0, args: Any = None) -> tuple[Array, Array]:
    r"""$\langle b^T D^{-1} \circ \dot x\rangle = E[b^T D^{-1} b + \nabla\cdot b]$, the medium's part without the score.

    The work of the drift along the path in Stratonovich's sense, over the temperature; in a stationary state it is all
    there is. The divergence is exact. x (n, ...): samples. **Returns** the mean and its standard error for independent
    samples. **Cost.** One jvp of the drift for each entry of x.
    """

    def one(x):
        b, trace = divergence(lambda x: drift(t, x, args), x)
        return jnp.sum(b * b / _like(diffusion, x)) + trace

    rates = jax.lax.map(one, x, batch_size=min(len(x), 64))
    return jnp.mean(rates), jnp.std(rates) / len(x) ** 0.5


@in_float64
def linear_entropy_production(M: Array, D: Array) -> tuple[Array, Array]:
    r"""Exact stationary rate of $dx = -Mx\,dt + \sqrt{2D}\,dW$, and the covariance S, $MS + SM^T = 2D$.

    $$\dot S_\mathrm{tot} = \mathrm{Tr}(M^T D^{-1} M S) - \mathrm{Tr}\,M$$

    Zero if and only if $MD$ is symmetric (detailed balance). M (d, d) with eigenvalues of positive real part; D (d,)
    or (d, d). **Errors.** ValueError for other shapes. **Cost.** O(d^6): a dense Lyapunov equation.
    """
    D = jnp.diag(D) if D.ndim == 1 else D
    if M.ndim != 2 or M.shape != D.shape or M.shape[0] != M.shape[1]:
        raise ValueError(f"expected M (d, d) and D (d,) or (d, d), got {M.shape} and {D.shape}")
    eye = jnp.eye(len(M), dtype=M.dtype)
    S = jnp.linalg.solve(jnp.kron(M, eye) + jnp.kron(eye, M), 2 * D.reshape(-1)).reshape(M.shape)
    return jnp.trace(M.T @ jnp.linalg.solve(D, M) @ S) - jnp.trace(M), S


def _like(diffusion, x):
    return jnp.broadcast_to(jnp.asarray(diffusion, x.dtype), x.shape)
