r"""What linear dynamics knows exactly: stationary covariances of kernels, and Gaussian limits of interacting particles.

On a quadratic energy a kernel is a linear map of (state, noise), $z' = A z + B \xi$, and its stationary covariance
solves the discrete Lyapunov equation $\Sigma = A \Sigma A^\top + B B^\top$: bias of the step size included, finite N
included.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from physml.core.float64 import in_float64
from physml.core.types import Scalar
from physml.particles.kernels.base import AbstractKernel
from physml.particles.pairs.measure import Gaussian


def linear_map(kernel: AbstractKernel, position: Array) -> tuple[Array, Array]:
    r"""A and B of $z' = A z + B\xi$, by differentiating one move; z is (position, momentum) or the position alone.

    **Arguments.** `kernel`: one that accepts everything, on an energy that is quadratic. `position`: any one.
    """
    start = kernel.init(position)
    momentum = getattr(start, "momentum", None)
    flat, rebuild = ravel_pytree((position,) if momentum is None else (position, momentum))
    noise = kernel.draw(jax.random.key(0), position, 0)
    xi, shape = ravel_pytree(noise)

    def move(z, xi):
        state, _ = kernel.move(kernel.init(*rebuild(z)), shape(xi))
        return ravel_pytree((state.position,) if momentum is None else (state.position, state.momentum))[0]

    return jax.jacfwd(move)(flat, xi), jax.jacfwd(move, 1)(flat, xi)


@eqx.filter_jit
def stationary_covariance(kernel: AbstractKernel, position: Array) -> Array:
    r"""The covariance a kernel leaves invariant on a quadratic energy: $\Sigma = A \Sigma A^\top + B B^\top$.

    **Returns** the covariance of the flattened state (positions, then momenta if there are any). Differentiable in the
    kernel's parameters. For ULA on $x^2/2$ it is $T/(1 - h/2)$; for BAOAB (T, T(1 - h^2/4)).
    **Cost.** A linear system of the squared dimension, by doubling: $O(n^3 \ln(1/(1 - \rho)))$.
    **Errors.** NaN if the step is unstable (a spectral radius of A of at least 1).
    """
    return discrete_lyapunov(*linear_map(kernel, position))


def discrete_lyapunov(a: Array, b: Array) -> Array:
    r"""$\Sigma = \sum_k A^k B B^\top (A^\top)^k$ by doubling: after j rounds $2^j$ terms are summed."""

    def double(_, carry):
        power, total = carry
        return power @ power, total + power @ total @ power.T

    power, total = jax.lax.fori_loop(0, 40, double, (a, b @ b.T))
    return jnp.where(jnp.isfinite(total).all() & (jnp.max(jnp.abs(power)) < 1), total, jnp.nan)


@eqx.filter_jit
def integrated_time(kernel: AbstractKernel, position: Array) -> Array:
    r"""Integrated autocorrelation time $1 + 2\sum_{k \ge 1} \rho_k$ of every coordinate, on a quadratic energy.

    $\langle z_k z_0^\top\rangle = A^k \Sigma$, so the sum is $(I - A)^{-1} A \Sigma$. In steps of the kernel.
    """
    a, b = linear_map(kernel, position)
    cov = discrete_lyapunov(a, b)
    later = jnp.linalg.solve(jnp.eye(len(a), dtype=a.dtype) - a, a @ cov)
    return 1 + 2 * jnp.diag(later) / jnp.diag(cov)


def mckean_vlasov_variance(particles: int, a: Scalar, kappa: Scalar, temperature: Scalar) -> Any:
    r"""Variance of a particle of $dx_i = -a x_i\,dt - \kappa (x_i - \bar x)\,dt + \sqrt{2T}\,dW_i$, at any N:

    $$\langle x_i^2\rangle = T \Bigl[\frac{1}{N a} + \Bigl(1 - \frac1N\Bigr) \frac{1}{a + \kappa}\Bigr]$$

    The mean $\bar x$ relaxes with rate a at temperature T/N, deviations with $a + \kappa$.
    """
    return temperature * (1 / (particles * a) + (1 - 1 / particles) / (a + kappa))


def gaussian_limit(
    drift: Callable, mean: Array, cov: Array, ts: Array, *, temperature: Scalar = 0.0, order: int = 8
) -> tuple[Array, Array]:
    r"""The mean-field limit of `interacting` particles in the Gaussian closure, exact for drifts linear in x:

    $$\dot m = E\,b(X, \mu), \qquad \dot C = E[b (X - m)^\top] + E[(X - m) b^\top] + 2T, \qquad \mu = N(m, C).$$

    **Arguments.** `drift`: (x, measure, key) -> velocities, as for `interacting`; it is handed the nodes of the
    Gaussian and the `Gaussian` itself. `mean` (d,), `cov` (d, d) at ts[0]; `ts`: times, one step of a fourth-order
    method between neighbours. **Returns** means (times, d) and covariances (times, d, d).
    """
    from physml.integrate import Dynamics, integrate

    identity = 2 * temperature * jnp.eye(len(mean), dtype=mean.dtype)

    def moments(t, state, args):
        m, c = state
        measure = Gaussian(m, c, order)
        x, w = measure.nodes()
        b = drift(x, measure, None)
        outer = jnp.einsum("n,ni,nj->ij", w, b, x - m[None, :])
        return w @ b, outer + outer.T + identity

    path = integrate(Dynamics(moments), (mean, cov), ts)
    return path.xs


@in_float64
def consensus_point_gaussian(mean: Array, cov: Array, hessian: Array, alpha: Scalar) -> Array:
    r"""Consensus point of $N(m, S)$ for $f = x^\top H x/2$: $(I + \alpha S H)^{-1} m$."""
    return jnp.linalg.solve(jnp.eye(len(mean)) + alpha * cov @ hessian, mean)
