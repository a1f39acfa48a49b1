r"""The entropic plan between any two Gaussians in closed form, and its bridge.

For the cost $|x - y|^2/2$ at temperature $\epsilon$ the plan is the pair of ends of the bridge
$dx = g\,dt + \sqrt\epsilon\,dW$, and $\pi(x, y) = u(x)\, e^{-|x - y|^2/2\epsilon}\, v(y)$ for two potentials. For
$N(m_0, A)$ and $N(m_1, B)$ the joint precision has $-I/\epsilon$ off its diagonal, so that
$y | x \sim N(m_1 + K(x - m_0),\ \epsilon K)$ with a symmetric slope K, and the law of y asks for

$$K A K + \epsilon K = B, \qquad K = L \big[\tfrac\epsilon2 + (L^\top A L + \tfrac{\epsilon^2}4)^{1/2}\big]^{-1} L^\top,
  \quad B = L L^\top.$$

At $\epsilon \to 0$ this is the map of Bures and Wasserstein, at $\epsilon \to \infty$ the independent plan.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from physml.core import check, float64_program
from physml.core.program import program
from physml.core.types import Key, Scalar, widest
from physml.integrate import Dynamics, Trajectory, integrate


class GaussianPlan(eqx.Module):
    r"""The entropic plan of two Gaussians and its bridge; made by `gaussian_plan`.

    `slope` (d, d): K. `cost`: $E|x - y|^2/2$ under the plan. `kl`: $\mathrm{KL}(\pi | p_0 \otimes p_1)$, the mutual
    information. `value` = cost + epsilon kl is the minimum that defines the plan.
    """

    mean0: Array
    cov0: Array
    mean1: Array
    cov1: Array
    slope: Array
    cost: Array
    kl: Array
    epsilon: Array

    @property
    def value(self) -> Array:
        r"""$\min_\pi E|x - y|^2/2 + \epsilon\,\mathrm{KL}(\pi | p_0 \otimes p_1)$."""
        return self.cost + self.epsilon * self.kl

    @program
    def joint(self) -> tuple[Array, Array]:
        """Mean (2d,) and covariance (2d, 2d) of the pair (x, y)."""
        cross = self.cov0 @ self.slope
        return jnp.concatenate([self.mean0, self.mean1]), jnp.block([[self.cov0, cross], [cross.T, self.cov1]])

    @program
    def mean(self, x: Array) -> Array:
        """E[y | x], an affine map of x (d,)."""
        return self.mean1 + self.slope @ (x - self.mean0)

    @program
    def conditional(self, x: Array) -> tuple[Array, Array]:
        """Mean (d,) and covariance (d, d) of y given x."""
        return self.mean(x), self.epsilon * self.slope

    @program
    def sample(self, x: Array, *, key: Key) -> Array:
        """One y for one x (d,)."""
        z = jax.random.normal(key, x.shape, x.dtype)
        return self.mean(x) + jnp.linalg.cholesky(self.epsilon * self.slope) @ z

    @program
    def drift(self, t: Scalar, x: Array, args: PyTree = None) -> Array:
        r"""$g = D^{-1} [(K - 1)(x - m_0) + m_1 - m_0]$, $D = 1 + t (K - 1)$, at one (t, x), t in [0, 1]."""
        pull = self.slope - jnp.eye(len(x), dtype=x.dtype)
        d = jnp.eye(len(x), dtype=x.dtype) + jnp.asarray(t, x.dtype) * pull
        return jnp.linalg.solve(d, pull @ (x - self.mean0) + self.mean1 - self.mean0)

    @program
    def marginal(self, t: Scalar) -> tuple[Array, Array]:
        """Mean (d,) and covariance (d, d) of the bridge at time t."""
        t = jnp.asarray(t, self.cov0.dtype)
        s, cross = 1 - t, self.cov0 @ self.slope
        noise = self.epsilon * s * t * jnp.eye(len(cross), dtype=cross.dtype)
        cov = s**2 * self.cov0 + t**2 * self.cov1 + s * t * (cross + cross.T) + noise
        return s * self.mean0 + t * self.mean1, cov

    def simulate(self, x: Array, ts: Array, *, key: Key) -> Trajectory:
        """The bridge from one x along the times ts, by Euler and Maruyama; `.xs` (len(ts), d)."""
        return simulate_bridge(self.drift, self.epsilon, x, ts, key=key)


def gaussian_plan(source: tuple[Any, Any], target: tuple[Any, Any], *, epsilon: Scalar) -> GaussianPlan:
    r"""The entropic plan $\min_\pi E_\pi |x - y|^2/2 + \epsilon\,\mathrm{KL}(\pi | p_0 \otimes p_1)$ of two Gaussians.

    **Arguments.** `source`, `target`: (mean (d,), covariance (d, d)); that of the source may be singular, that of the
    target may not. `epsilon` > 0. **Returns** a `GaussianPlan`, solved in float64, in the dtype of the arguments;
    differentiable in all of them, also where eigenvalues coincide. **Cost** O(d^3).
    **Errors.** `ValueError` for shapes that do not fit, epsilon <= 0.
    **See** Janati, Muzellec, Peyre and Cuturi (2020); Bunne, Hsieh, Cuturi and Krause (2023).
    """
    epsilon = check.number(epsilon, "epsilon", above=0)
    (m0, a), (m1, b) = (tuple(jnp.asarray(part) for part in law) for law in (source, target))
    if m0.ndim != 1 or m1.shape != m0.shape or a.shape != 2 * m0.shape or b.shape != a.shape:
        raise ValueError(
            "source and target must be (mean (d,), covariance (d, d)) of one d; "
            f"got {m0.shape}, {a.shape} and {m1.shape}, {b.shape}"
        )
    dtype = widest(m0.dtype, a.dtype, m1.dtype, b.dtype)
    for name, cov in (("source", a), ("target", b)):
        if (known := check.known(cov)) is not None:
            _check_covariance(name, known, positive=name == "target")
    return GaussianPlan(*_solved(*(jnp.asarray(v, dtype) for v in (m0, a, m1, b, epsilon))))


def _check_covariance(name, cov, *, positive):
    size = max(float(np.max(np.abs(cov))), np.finfo(cov.dtype).tiny)
    slack = 10 * len(cov) * float(np.finfo(cov.dtype).eps) * size
    if not np.allclose(cov, cov.T, rtol=0, atol=1e-3 * size):
        raise ValueError(f"the covariance of {name} must be symmetric and finite, got {cov.tolist()}")
    least = float(np.linalg.eigvalsh(cov.astype(np.float64))[0])
    if least < -slack or (positive and least <= 0):
        wanted = "positive definite" if positive else "positive semidefinite"
        raise ValueError(f"the covariance of {name} must be {wanted}, its smallest eigenvalue is {least:g}")


@float64_program
def _solved(m0, a, m1, b, epsilon):
    a, b, eye = 0.5 * (a + a.T), 0.5 * (b + b.T), jnp.eye(len(a), dtype=a.dtype)
    low = jnp.linalg.cholesky(b)
    inner = 0.5 * epsilon * eye + _root(low.T @ a @ low + 0.25 * epsilon**2 * eye)
    slope = low @ jnp.linalg.solve(inner, low.T)
    slope = 0.5 * (slope + slope.T)
    cost = 0.5 * (jnp.sum((m0 - m1) ** 2) + jnp.trace(a) + jnp.trace(b)) - jnp.trace(a @ slope)
    return m0, a, m1, b, slope, cost, 0.5 * jnp.linalg.slogdet(inner / epsilon)[1], epsilon


@jax.custom_jvp
def _root(a):
    """The symmetric root; its derivative by eigenvectors would divide by gaps between eigenvalues."""
    values, vectors = jnp.linalg.eigh(a)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :]) @ vectors.T


@_root.defjvp
def _(primals, tangents):
    root = _root(*primals)
    return root, _lyapunov(root, *tangents)


@jax.custom_jvp
def _lyapunov(h, c):
    """X with hX + Xh = c, for a symmetric positive h."""
    values, vectors = jnp.linalg.eigh(h)
    return vectors @ ((vectors.T @ c @ vectors) / (values[:, None] + values[None, :])) @ vectors.T


@_lyapunov.defjvp
def _(primals, tangents):
    (h, c), (dh, dc) = primals, tangents
    x = _lyapunov(h, c)
    return x, _lyapunov(h, dc - dh @ x - x @ dh)


def simulate_bridge(drift: Callable, epsilon: Array, x: Array, ts: Array, *, key: Key) -> Trajectory:
    r"""$dx = g\,dt + \sqrt\epsilon\,dW$ from one x along the times ts, by Euler and Maruyama."""
    return integrate(Dynamics(drift, Partial(_spread, epsilon)), x, ts, key=key)


def _spread(epsilon, t, x, args):
    return jnp.sqrt(epsilon)
