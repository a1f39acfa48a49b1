r"""What a softmax memory is guaranteed to retrieve: separation, error of one step, capacity, and kinds of attractors.

With $\Delta_i = x_i\cdot x_i - \max_{j\ne i} x_i\cdot x_j$ and $M = \max_i|x_i|$, one step f from a state x has

$$|f(x) - x_i| = \Bigl|\sum_{j\ne i} p_j (x_j - x_i)\Bigr| \le 2(N-1)M\,e^{-\beta(\Delta_i - 2M|x - x_i|)},$$

since $p_j \le e^{\beta x\cdot(x_j - x_i)}$ and $|x_j - x_i| \le 2M$. N random patterns on a sphere of radius
$K\sqrt{d-1}$ are all stored with probability 1 - p for every

$$N \le \sqrt p\,c^{(d-1)/4}, \qquad c = \frac{b}{W_0(e^{a + \ln b})}, \quad
  a = \frac{2}{d-1}\bigl(1 + \ln(2\beta K^2 p(d-1))\bigr), \quad b = \tfrac25 K^2\beta,$$

exponentially many in d.

**See** Ramsauer et al., Hopfield networks is all you need (2021), theorems 3 to 5.
"""

from enum import IntEnum
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from physml.core import check
from physml.core._status import Checked, Status
from physml.core.program import program
from physml.core.types import Scalar
from physml.hopfield.memory.retrieve import retrieve


@program
def gaps(memory: Float[Array | np.ndarray, "N d"]) -> Array:
    r"""$\Delta_i = x_i\cdot x_i - \max_{j \ne i} x_i\cdot x_j$, the separation of every pattern, `(N,)`.

    Infinite for a single pattern. **Cost.** N^2 numbers.
    """
    memory = jnp.asarray(memory)
    overlaps = memory @ memory.T
    others = jnp.where(jnp.eye(len(memory), dtype=bool), -jnp.inf, overlaps)
    return jnp.diagonal(overlaps) - jnp.max(others, -1)


@program
def separated(memory: Float[Array | np.ndarray, "N d"], beta: Scalar) -> Array:
    r"""Whether $\Delta_i \ge \frac{2}{\beta N} + \frac1\beta\ln(2(N-1)N\beta M^2)$, `(N,)`.

    Then a ball of radius $1/(\beta N M)$ around $x_i$ holds one fixed point, to which every start in the ball tends.
    """
    memory = jnp.asarray(memory)
    n, beta = len(memory), jnp.asarray(beta, memory.dtype)
    square = jnp.max(jnp.sum(memory * memory, -1))
    return gaps(memory) >= 2 / (beta * n) + jnp.log(2 * (n - 1) * n * beta * square) / beta


@program
def step_error_bound(
    query: Float[Array | np.ndarray, "*queries d"], memory: Float[Array | np.ndarray, "N d"], *, beta: Scalar
) -> Array:
    r"""$2(N-1)M e^{-\beta(\Delta_i - 2M|x - x_i|)}$ for every state and pattern, `(..., N)`.

    Bounds the distance from $x_i$ after one step of softmax retrieval; it says nothing where it is above 2M.
    **Cost.** N^2 + N d for each query.
    """
    query, memory = jnp.asarray(query), jnp.asarray(memory)
    beta, m = jnp.asarray(beta, memory.dtype), jnp.sqrt(jnp.max(jnp.sum(memory * memory, -1)))
    away = jnp.linalg.norm(query[..., None, :] - jnp.expand_dims(memory, tuple(range(query.ndim - 1))), axis=-1)
    delta = jnp.broadcast_to(gaps(memory), away.shape)
    return 2 * (len(memory) - 1) * m * jnp.exp(-beta * (delta - 2 * m * away))


class Capacity(eqx.Module):
    """`c`, the base of the capacity, and `patterns` = sqrt(p) c^((d-1)/4) that are stored."""

    c: Array
    patterns: Array


def capacity(beta: Scalar, d: int, *, radius: Scalar = 3.0, failure: Scalar = 1e-3) -> Capacity:
    r"""How many random patterns on a sphere of radius $K\sqrt{d-1}$ are stored with probability 1 - p at least.

    **Arguments.** `beta` > 0; `d` >= 2; `radius`: K; `failure`: p in (0, 1]. All but d may be traced.
    **Returns** `Capacity(c, patterns)`: the proof asks for c >= 3.1546 at (beta, K, d, p) = (1, 3, 20, 0.001), where
    patterns = 7.4. **Errors.** ValueError out of range. **See** Ramsauer et al. (2021), theorem 3.
    """
    check.number(beta, "beta", above=0)
    check.number(radius, "radius", above=0)
    check.number(failure, "failure", above=0, most=1)
    return _capacity(beta, check.count(d, "d", least=2), radius, failure)


@program
def _capacity(beta, d, radius, failure):
    beta, radius, failure = (jnp.asarray(x, jnp.result_type(float)) for x in (beta, radius, failure))
    a = 2 / (d - 1) * (1 + jnp.log(2 * beta * radius**2 * failure * (d - 1)))
    b = 0.4 * radius**2 * beta
    c = b / _lambert_of_exp(a + jnp.log(b))
    return Capacity(c, jnp.sqrt(failure) * c ** ((d - 1) / 4))


def _lambert_of_exp(y):
    """w with w + ln w = y: Newton's method in ln w, where the equation is convex; the last step carries derivatives."""
    newton = lambda u, y: u - (jnp.exp(u) + u - y) / (jnp.exp(u) + 1)
    fixed = lax.stop_gradient(y)
    start = jnp.where(fixed > 1, jnp.log(jnp.maximum(fixed, 1.0)), fixed)
    u = lax.fori_loop(0, 12, lambda _, u: newton(u, fixed), start)
    return jnp.exp(newton(lax.stop_gradient(u), y))


class Kind(IntEnum):
    """Kinds of attractors, by how many patterns share them."""

    single = 0
    metastable = 1
    everything = 2
    nobody = 3


class Attractor(Checked):
    """`x` (..., d): where the queries end; `kind` (...), a `Kind`; `members` (..., N): patterns that end there, too."""

    computation: ClassVar[str] = "attractor"

    x: Array
    kind: Array
    members: Array
    status: Status


def attractor(
    query: Float[Array | np.ndarray, "*queries d"],
    memory: Float[Array | np.ndarray, "N d"],
    *,
    beta: Scalar,
    separation: Any = "softmax",
    steps: int = 10000,
    tol: Scalar | None = None,
    same: float = 1e-2,
) -> Attractor:
    """Where retrieval ends, and which of the patterns end at the same fixed point when they are the query.

    One pattern: `single`; several: `metastable`; all of them: `everything`, the global average; none: `nobody`.
    **Arguments.** `same`: distance, in units of the longest pattern, below which two fixed points are one. Others as
    in `retrieve`; `tol` by default eps^(3/4). **Cost.** N + queries retrievals to a tolerance. **Errors** as there.
    """
    query, memory = jnp.asarray(query), jnp.asarray(memory)
    tol = float(jnp.finfo(memory.dtype).eps) ** 0.75 if tol is None else tol
    check.within(beta, "beta, an inverse temperature,", above=0)
    check.number(same, "same", above=0)
    return _attractor(query, memory, beta, separation, check.count(steps, "steps"), tol, same)


@program
def _attractor(query, memory, beta, separation, steps, tol, same):
    flat = query.reshape(-1, query.shape[-1])
    out = retrieve(
        jnp.concatenate([flat, memory]), memory, beta=beta, separation=separation, steps=steps, tol=tol,
        return_weights=False,
    )  # fmt: skip
    ends, homes = out.x[: len(flat)], out.x[len(flat) :]
    m = jnp.sqrt(jnp.max(jnp.sum(memory * memory, -1)))
    members = jnp.linalg.norm(ends[:, None] - homes[None], axis=-1) <= same * m
    count = jnp.sum(members, -1)
    kind = jnp.where(count == len(memory), Kind.everything, Kind.metastable)
    kind = jnp.where(count == 1, Kind.single, jnp.where(count == 0, Kind.nobody, kind))
    rows = query.shape[:-1]
    code, step = (s[: len(flat)].reshape(rows) for s in (out.status.code, out.status.step))
    return Attractor(ends.reshape(query.shape), kind.reshape(rows), members.reshape(*rows, -1), Status(code, step))
