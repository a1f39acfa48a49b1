r"""Full replica symmetry breaking: the glass of Sherrington and Kirkpatrick below T = 1.

Two replicas have an overlap below q with probability x(q). With the solution of Parisi's equation,

$$\partial_q\phi = -\tfrac12\bigl(\phi'' + x\,\phi'^2\bigr), \quad \phi(1, y) = \ln2\cosh\beta y; \qquad
  -\beta f = \min_{x}\Bigl[\phi(0, 0) - \tfrac{\beta^2}2\int_0^1q\,x(q)\,dq\Bigr],$$

convex in x. With x constant on intervals of q every step is a Gaussian average of $e^{x\phi}$, exactly, and the minimum
bounds f from below. The law of the cavity fields is the derivative of $\phi(0, 0)$ with respect to $\phi$ at the
largest overlap, so reverse-mode differentiation is the forward equation.

**See** Parisi, J. Phys. A 13, 1101 (1980); Auffinger and Chen, Commun. Math. Phys. 335, 1429 (2015).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from physml.core import check
from physml.core._status import Code, status
from physml.core.float64 import float64_program
from physml.core.special import log_2cosh
from physml.core.types import Scalar
from physml.hopfield.theory.spin_glass import SpinGlassOrder, SpinGlassPhase

REACH, POINTS = 8.0, 257  # the grid of cavity fields, in units of the root of the largest overlap
HIGHEST = 0.9995  # above, the overlap 1 - T is nothing to the grid
LOWEST = 0.05  # the temperature to which this grid resolves ln 2 cosh, with an error of 1e-6 in f


def parisi(temperature: Scalar, *, levels: int = 16) -> SpinGlassOrder:
    r"""The glass without magnetisation ($J_0 \le 1$) with full replica symmetry breaking.

    **Arguments.** `temperature` >= .05; from 1 on the paramagnet. `levels` K >= 1: steps of x(q) on K equal intervals;
    f is then a lower bound, too low by O(K^-4).
    **Returns** `overlaps` (K + 1,) with their `weights`; their mean is 1 - T, and `stability` is 1, the more exactly
    the larger K: the glass is marginal. Status `not_converged` where the slope of the pressure stayed above 1e-7.
    **Cost.** Some 50 Newton steps in K + 1 unknowns: a second at K = 16, with 5 s to compile.
    **Derivatives** with respect to the temperature are those of the solution; at T >= 1 those of the paramagnet.

    **Example.** `parisi(0.05).energy` is -.76315; at T = 0 it is -.76317.
    """
    check.number(temperature, "temperature", least=LOWEST)
    return _parisi(temperature, check.count(levels, "levels"))


@functools.lru_cache(maxsize=8)
def _kernel(levels: int) -> tuple[np.ndarray, int, np.ndarray]:
    """Grid u (n,), points r added at either end, and the average over one interval of q, (n, n + 2 r)."""
    u = np.linspace(-REACH, REACH, POINTS)
    step, width = u[1] - u[0], 1 / math.sqrt(levels)
    r = math.ceil(9 * width / step)
    far = np.abs((np.arange(-r, POINTS + r) * step - REACH)[None, :] - u[:, None]) / width
    weights = np.where(far < 9, np.exp(-0.5 * far**2), 0.0)
    return u, r, weights / weights.sum(1, keepdims=True)


def _profile(v):
    """x (K,) on the intervals and the largest overlap, from unconstrained numbers (K + 1,)."""
    return jnp.cumsum(jax.nn.softmax(jnp.append(v[:-1], 0.0))[:-1]), jax.nn.sigmoid(v[-1])


def _grid(levels, top):
    return jnp.sqrt(top) * _kernel(levels)[0]


def _flow(x, top, beta, phi):
    """phi at q = 0, y = 0 from phi (n,) on the grid at the largest overlap."""
    u, r, weights = _kernel(x.size)
    # Beyond the grid phi is linear, with the slope of ln 2 cosh.
    ramp = beta * jnp.sqrt(top) * (u[1] - u[0]) * np.arange(1.0, r + 1)

    def step(phi, x):
        phi = jnp.concatenate([phi[0] + ramp[::-1], phi, phi[-1] + ramp])
        largest = jnp.max(phi)
        return largest + jnp.log(weights @ jnp.exp(x * (phi - largest))) / x, None

    return lax.scan(step, phi, x[::-1])[0][POINTS // 2]


def _at_largest(levels, top, beta):
    """phi on the grid at the largest overlap: between there and q = 1 x is 1, and the average is explicit."""
    return log_2cosh(beta * _grid(levels, top)) + 0.5 * beta**2 * (1 - top)


def _pressure(x, top, beta):
    """-beta f, to be minimised."""
    q = top * np.linspace(0.0, 1.0, x.size + 1)
    quadratic = 0.25 * beta**2 * (x @ (q[1:] ** 2 - q[:-1] ** 2) + 1 - top**2)
    return _flow(x, top, beta, _at_largest(x.size, top, beta)) - quadratic


def _minimise(pressure, start, *, tol=1e-9, steps=80):
    """v with the smallest pressure and the largest entry of the slope there, which is a float as `custom_root` wants.

    Newton's method with the absolute values of the curvatures, damped until the pressure falls. Fine structure of x(q)
    has curvatures down to rounding: derivatives of the solution leave it alone.
    """
    slope = jax.grad(pressure)
    curvature = jax.jacfwd(lambda v: (slope(v),) * 2, has_aux=True)

    def more(carry):
        return (carry[3] > tol) & (carry[4] < steps)

    def step(carry):
        v, value, damping, _, k = carry
        hessian, gradient = curvature(v)
        e, axes = jnp.linalg.eigh(hessian)
        new = v - jnp.clip(axes @ ((axes.T @ gradient) / (jnp.abs(e) + damping)), -2.0, 2.0)
        lower = pressure(new) <= value + 1e-15
        v, value = jnp.where(lower, new, v), jnp.where(lower, pressure(new), value)
        return v, value, damping * jnp.where(lower, 0.1, 10.0), jnp.max(jnp.abs(gradient)), k + 1

    def run(_, v):
        one = jnp.ones((), v.dtype)
        v, _, _, size, _ = lax.while_loop(more, step, (v, pressure(v), 1e-3 * one, one, jnp.zeros((), jnp.int32)))
        return v, size

    invert = lambda linear, b: jnp.linalg.pinv(jax.jacfwd(linear)(b), rtol=1e-12, hermitian=True) @ b
    return lax.custom_root(slope, start, run, invert, has_aux=True)


def _start(beta, levels):
    """Near T = 1 the overlap is 1 - T and x(q) = q."""
    q = jnp.clip(1 - 1 / beta, 1e-3, 0.999)
    largest = jnp.clip(0.6 * q, 0.01, 0.7)
    return jnp.append(jnp.full(levels, jnp.log(largest / levels / (1 - largest))), jnp.log(q / (1 - q)))


@float64_program(static=("levels",))
def _parisi(t, levels):
    frozen = t < HIGHEST
    beta = 1 / jnp.where(frozen, t, HIGHEST)
    start = _start(lax.stop_gradient(beta), levels)
    v, size = _minimise(lambda v: _pressure(*_profile(v), beta), start)
    x, top = _profile(v)
    # The paramagnet is the glass without overlap.
    top, beta = jnp.where(frozen, top, 1e-12), 1 / t
    rho = jax.grad(lambda phi: _flow(x, top, beta, phi))(_at_largest(levels, top, beta))
    c, spread = _grid(levels, top), 1 - top
    overlaps, weights = top * np.linspace(0.0, 1.0, levels + 1), jnp.diff(x, prepend=0.0, append=1.0)
    square = rho @ (c**2 + 2 * beta * spread * c * jnp.tanh(beta * c)) + spread + (beta * spread) ** 2
    order = jnp.where(frozen, SpinGlassPhase.glass, SpinGlassPhase.paramagnet).astype(jnp.int32)
    good = ~frozen | (size < 1e-7)
    state = status(jnp.where(good, Code.ok, Code.not_converged))
    zero, q = jnp.zeros_like(t), jnp.where(frozen, top, 0.0)
    stability = beta**2 * rho @ (1 / jnp.cosh(beta * c) ** 4)
    energy = -0.5 * beta * (1 - weights @ overlaps**2)
    f = -_pressure(x, top, beta) / beta
    return SpinGlassOrder(zero, q, overlaps, weights, f, energy, stability, zero, square, c, rho, t, order, state)
