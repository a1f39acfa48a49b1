r"""Paths of one site in a Gaussian field with memory, and what they correlate and respond to.

$$\dot y = f(y) + c\,m(t) + u(t) + h(t) + \int_0^t\! K(t,s)\, x(s)\,ds + \sqrt{2T}\,\xi, \quad x = x(y),$$
$$m(t) = \langle x(t)\rangle, \quad C(t,s) = \langle x(t) x(s)\rangle, \quad
  R(t,s) = \Bigl\langle\frac{\delta x(t)}{\delta h(s)}\Bigr\rangle$$

Heun's rule with trapezoidal integrals of the memory: second order in dt, weakly so where there is noise $\xi$.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core._status import Code
from physml.core.quadrature import trapezoid_matrix
from physml.core.types import Scalar
from physml.dmft.equations.covariance import root

ROUNDING = 8.0  # times the size and the spacing of the dtype
FUTURE = 1e-6  # of the largest response: a response to the future beyond this is none of rounding


class Paths(eqx.Module):
    """Paths `x` (k, samples), their mean `m` (k,), correlation `C` (k, k) and response `R` (k, k), zero for j > i."""

    x: Array
    m: Array
    C: Array
    R: Array


def grid_steps(t_max: float, dt: float) -> int:
    """Number of steps of a grid that dt divides."""
    check.within(dt, "dt", above=0)
    check.within(t_max, "t_max", above=0)
    steps = max(1, round(t_max / dt))
    if abs(t_max / dt - steps) > 1e-6 * steps:
        raise ValueError(f"dt must divide t_max, got dt={dt}, t_max={t_max}")
    return steps


def site_paths(
    drift: Callable[[Array], Array],
    observe: Callable[[Array], Array],
    start: Array,
    field: Array,
    memory: Array,
    directions: Array,
    weights: Array,
    dt: float,
    kicks: Array | None = None,
    common: Scalar = 0.0,
) -> Paths:
    r"""Integrate a site for every sample and average.

    **Arguments.** `drift`, `observe`: f(y) and x(y), elementwise. `start` (samples,): y(0). `field` (k, samples): u.
    `memory` (k, k): K. `directions` (k, samples): random signs. `weights` (samples,). `kicks` (k - 1, samples):
    increments of the white noise. `common`: c. A response to h is taken at fixed m.

    What a field does without the memory's help is averaged sample by sample; only what comes back through the memory is
    estimated along one random direction per sample. Its errors, $|K| / \sqrt{\text{samples}\,dt}$ in every entry,
    average out in integrals. **Cost.** 4 k^2 multiplications a sample; the gradient holds 3 k^2 numbers a sample.
    """
    size, samples = field.shape
    weight = trapezoid_matrix(size - 1, dt, field.dtype)
    kernel = weight * memory
    own, c = jnp.diag(kernel), jnp.asarray(common, field.dtype)
    earlier = jnp.tril(kernel, -1)
    kicks = jnp.zeros((size - 1, samples), field.dtype) if kicks is None else kicks
    derivative = lambda f, y: jax.jvp(f, (y,), (jnp.ones_like(y),))
    force = lambda y, g: derivative(lambda y: drift(y) + g * observe(y), y)

    write = lambda a, x, k: lax.dynamic_update_index_in_dim(a, x, k, 0)
    index = jnp.arange(size, dtype=jnp.int32)[:, None]

    def step(carry, row):
        y, b, xs, moved, along, local, free, each = carry
        k, past, g, g_later, u, v_now, v, kick = row
        later, along_later = u + past @ xs, v + past @ moved
        now, bend = force(y, g)
        now = now + c * (observe(y) @ weights)
        guess = y + dt * (now + b) + kick
        there, bend_there = force(guess, g_later)
        there = there + c * (observe(guess) @ weights)
        new = y + 0.5 * dt * (now + b + there + later) + kick
        # dy_{k+1} by y_k and by the fields of both ends of the step.
        by_y = 1 + 0.5 * dt * (bend + bend_there * (1 + dt * bend))
        by_b, by_later = 0.5 * dt * (1 + dt * bend_there), 0.5 * dt
        local = by_y * local + by_b * along + by_later * along_later
        free = by_y * free + by_b * v_now + by_later * v
        # Row j: dy_{k+1} / dh_j without memory. A field acts at the end of one step and the beginning of the next.
        each = by_y[None, :] * each + jnp.where(index == k, by_b[None, :], 0.0)
        each = jnp.where(index == k + 1, by_later, each)
        x, slope = derivative(observe, new)
        xs, moved = write(xs, x, k + 1), write(moved, slope * local, k + 1)
        seen = ((slope[None, :] * each) @ weights, slope * (local - free), slope @ weights)
        return (new, later, xs, moved, along_later, local, free, each), seen

    empty = jnp.zeros((size, samples), field.dtype)
    still = jnp.zeros(samples, field.dtype)
    x0, slope0 = derivative(observe, start)
    begin = (start, field[0], empty.at[0].set(x0), empty, directions[0], still, still, empty)
    rows = (index[:-1, 0], earlier[1:], own[:-1], own[1:], field[1:], directions[:-1], directions[1:], kicks)
    (_, _, xs, *_), (bare, returned, instant) = lax.scan(step, begin, rows)
    first = slope0 @ weights
    through = (returned * weights[None, :]) @ directions.T
    response = jnp.tril((bare + through) / jnp.where(weight[1:] > 0, weight[1:], 1.0))
    response = jnp.tril(jnp.concatenate([jnp.zeros((1, size), field.dtype), response]), -1)
    response = response + jnp.diag(jnp.concatenate([first[None], instant]))
    # Means apart: paths that all do the same would lose positivity to rounding.
    m = xs @ weights
    rest = xs - m[:, None]
    C = (rest * weights[None, :]) @ rest.T + m[:, None] * m[None, :]
    return Paths(xs, m, C, response)


def respond(path: Callable[[Array], Array], signs: Array, dt: float) -> tuple[Array, Array]:
    """Paths (k, n) of a finite system in a field (k, n), and its response (k, k) along random `signs`.

    The response is zero at equal times, where the caller knows it.
    """
    size, n = signs.shape
    x, moved = jax.jvp(path, (jnp.zeros_like(signs),), (signs,))
    weight = trapezoid_matrix(size - 1, dt, x.dtype)
    return x, jnp.tril(moved @ signs.T / (n * jnp.where(weight > 0, weight, 1.0)), -1)


def field_root(C: Array) -> Array:
    """`root` of the correlations times the standard deviations, which may differ by orders of magnitude.

    A diagonal of what sums over samples lose to rounding is added: late times may be almost copies of each other.
    """
    variance = jnp.diagonal(C)
    still = variance == 0
    ridge = ROUNDING * len(C) * jnp.finfo(C.dtype).eps * jnp.eye(len(C), dtype=C.dtype)
    scale = jnp.sqrt(jnp.where(still, 1.0, variance))
    return jnp.where(still, 0.0, scale)[:, None] * root(C / (scale[:, None] * scale[None, :]) + ridge)


def proper(C: Array, R: Array) -> Array:
    """A `Code`: ok, `not_positive` if C has no square root, `acausal` if R responds to the future."""
    future = jnp.max(jnp.abs(jnp.triu(R, 1)))
    bad = ~jnp.isfinite(field_root(C)).all() & jnp.isfinite(C).all()
    causal = ~(future > FUTURE * jnp.max(jnp.abs(R)))
    return jnp.where(causal, jnp.where(bad, Code.not_positive, Code.ok), Code.acausal).astype(jnp.int32)


def unless_improper(order: PyTree, new: PyTree) -> PyTree:
    """`new`; but an `order` that is no correlation and response is kept, for the verdict to name it."""
    code = lax.stop_gradient(proper(lax.stop_gradient(order["C"]), lax.stop_gradient(order["R"])))
    return jax.tree.map(lambda a, b: jnp.where(code == Code.ok, b, a), order, new)
