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
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from physml.core import check
from physml.core.float64 import float64_program
from physml.core.program import program
from physml.core.types import Scalar
from physml.particles.kernels.base import AbstractKernel, check_kernel
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
        parts = rebuild(z)
        begin: Any = kernel.init
        begun = begin(parts[0]) if momentum is None else begin(parts[0], momentum=parts[1])
        state, _ = kernel.move(begun, shape(xi))
        return ravel_pytree((state.position,) if momentum is None else (state.position, state.momentum))[0]

    return jax.jacfwd(move)(flat, xi), jax.jacfwd(move, 1)(flat, xi)


def stationary_covariance(kernel: AbstractKernel, position: Array) -> Array:
    r"""The covariance a kernel leaves invariant on a quadratic energy: $\Sigma = A \Sigma A^\top + B B^\top$.

    **Returns** the covariance of the flattened state (positions, then momenta if there are any). Differentiable in the
    kernel's parameters. For ULA on $x^2/2$ it is $T/(1 - h/2)$; for BAOAB (T, T(1 - h^2/4)).
    **Cost.** A linear system of the squared dimension, by doubling: $O(n^3 \ln(1/(1 - \rho)))$.
    **Errors.** `ValueError` for kernels that reject, whose law this is not; for a move that is not linear, because the
    energy is not quadratic; and for a step that is unstable (a spectral radius of A of at least 1). Where the kernel is
    traced the last two are NaN.
    """
    _check_linear(kernel)
    return _sound(*_covariance(kernel, position))


def _check_linear(kernel):
    check_kernel(kernel)
    if kernel.rejects:
        raise ValueError(
            f"{type(kernel).__name__} rejects moves, so that it is no linear map: it leaves the law of its energy "
            "invariant, whatever the step"
        )


def _sound(value, linear):
    """The value, which must be finite, of a map that must be linear."""
    straight, entries = check.known(linear), check.known(value)
    if straight is not None and not straight:
        raise ValueError("the kernel is not linear: its energy must be quadratic, in one array of numbers")
    if entries is not None and not np.isfinite(entries).all():
        raise ValueError("the kernel is unstable: its step is too large for its energy, and no law is stationary")
    return value


@program
def _covariance(kernel, position):
    (a, b), linear = _linear_everywhere(kernel, position)
    return jnp.where(linear, discrete_lyapunov(a, b), jnp.nan), linear


def _linear_everywhere(kernel, position):
    """The map at a position, and whether it is the same at another."""
    here = linear_map(kernel, position)
    there = linear_map(kernel, jax.tree.map(lambda x: x + 1 + jnp.abs(x), position))
    flat, other = ravel_pytree(here)[0], ravel_pytree(there)[0]
    tol = float(jnp.finfo(flat.dtype).eps) ** 0.5
    return here, jnp.max(jnp.abs(flat - other)) <= tol * (1 + jnp.max(jnp.abs(flat)))


def discrete_lyapunov(a: Array, b: Array) -> Array:
    r"""$\Sigma = \sum_k A^k B B^\top (A^\top)^k$ by doubling: after j rounds $2^j$ terms are summed."""

    def double(_, carry):
        power, total = carry
        return power @ power, total + power @ total @ power.T

    power, total = jax.lax.fori_loop(0, 40, double, (a, b @ b.T))
    return jnp.where(jnp.isfinite(total).all() & (jnp.max(jnp.abs(power)) < 1), total, jnp.nan)


def integrated_time(kernel: AbstractKernel, position: Array) -> Array:
    r"""Integrated autocorrelation time $1 + 2\sum_{k \ge 1} \rho_k$ of every coordinate, on a quadratic energy.

    $\langle z_k z_0^\top\rangle = A^k \Sigma$, so the sum is $(I - A)^{-1} A \Sigma$. In steps of the kernel.
    **Errors** as in `stationary_covariance`.
    """
    _check_linear(kernel)
    return _sound(*_times(kernel, position))


@program
def _times(kernel, position):
    (a, b), linear = _linear_everywhere(kernel, position)
    cov = discrete_lyapunov(a, b)
    later = jnp.linalg.solve(jnp.eye(len(a), dtype=a.dtype) - a, a @ cov)
    return jnp.where(linear, 1 + 2 * jnp.diag(later) / jnp.diag(cov), jnp.nan), linear


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

    check.function(drift, "drift", "(x, measure, key)")
    mean, cov = jnp.asarray(mean), jnp.asarray(cov)
    start = Gaussian(mean, cov, order)
    try:
        jax.eval_shape(lambda measure: drift(measure.nodes()[0], measure, None), start)
    except TypeError as error:
        raise ValueError(
            f"drift must be a function (x, measure, key) -> velocities like x; it raised {error}"
        ) from error
    heat = jnp.asarray(check.number(temperature, "temperature", least=0), mean.dtype)
    return integrate(Dynamics(_Closure(drift, heat, order)), (mean, cov), ts).xs


class _Closure(eqx.Module):
    """The velocity of mean and covariance."""

    drift: Callable
    temperature: Array
    order: int = eqx.field(static=True)

    def __call__(self, t, state, args):
        m, c = state
        measure = Gaussian(m, c, self.order)
        x, w = measure.nodes()
        b = self.drift(x, measure, None)
        outer = jnp.einsum("n,ni,nj->ij", w, b, x - m[None, :])
        return w @ b, outer + outer.T + 2 * self.temperature * jnp.eye(len(m), dtype=m.dtype)


@float64_program
def consensus_point_gaussian(mean: Array, cov: Array, hessian: Array, alpha: Scalar) -> Array:
    r"""Consensus point of $N(m, S)$ for $f = x^\top H x/2$: $(I + \alpha S H)^{-1} m$."""
    return jnp.linalg.solve(jnp.eye(len(mean)) + alpha * cov @ hessian, mean)
