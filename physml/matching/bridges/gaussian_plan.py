r"""Entropic plans in closed form: between any two Gaussians, and between mixtures made from Gaussian potentials.

For the cost $|x - y|^2/2$ at temperature $\epsilon$ the plan is the pair of ends of the bridge
$dx = g\,dt + \sqrt\epsilon\,dW$, and $\pi(x, y) = u(x)\, e^{-|x - y|^2/2\epsilon}\, v(y)$ for two potentials.

*Gaussians* $N(m_0, A)$, $N(m_1, B)$. The joint precision has $-I/\epsilon$ off its diagonal, so that
$y | x \sim N(m_1 + K(x - m_0),\ \epsilon K)$ with a symmetric slope K, and the law of y asks for

$$K A K + \epsilon K = B, \qquad K = L \big[\tfrac\epsilon2 + (L^\top A L + \tfrac{\epsilon^2}4)^{1/2}\big]^{-1} L^\top,
  \quad B = L L^\top.$$

At $\epsilon \to 0$ this is the map of Bures and Wasserstein, at $\epsilon \to \infty$ the independent plan.

*Mixtures.* With $u = \sum_i a_i N(p_i, U_i)$, $v = \sum_k b_k N(r_k, V_k)$ the bridge is a mixture over the pairs
(i, k), whose weights do not depend on time:

$$p_t = \sum_{ik} w_{ik}\, N\big(p_i + U_t \Sigma^{-1} (r_k - p_i),\ U_t \Sigma^{-1} V_t\big), \qquad
  w_{ik} \propto a_i b_k N(r_k - p_i; 0, \Sigma),$$

$U_t = U_i + \epsilon t$, $V_t = V_k + \epsilon(1 - t)$, $\Sigma = U_i + V_k + \epsilon$. Both ends are known
mixtures.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from physml.core import in_float64
from physml.core.types import Key, Scalar, widest
from physml.integrate import Dynamics, Trajectory, integrate
from physml.matching.exact.mixture import MixtureLike, mixture_log_prob, mixture_sample

Mixture = tuple[Array, Array, Array]


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

    def joint(self) -> tuple[Array, Array]:
        """Mean (2d,) and covariance (2d, 2d) of the pair (x, y)."""
        cross = self.cov0 @ self.slope
        return jnp.concatenate([self.mean0, self.mean1]), jnp.block([[self.cov0, cross], [cross.T, self.cov1]])

    def mean(self, x: Array) -> Array:
        """E[y | x], an affine map of x (d,)."""
        return self.mean1 + self.slope @ (x - self.mean0)

    def conditional(self, x: Array) -> tuple[Array, Array]:
        """Mean (d,) and covariance (d, d) of y given x."""
        return self.mean(x), self.epsilon * self.slope

    def sample(self, x: Array, *, key: Key) -> Array:
        """One y for one x (d,)."""
        z = jax.random.normal(key, x.shape, x.dtype)
        return self.mean(x) + jnp.linalg.cholesky(self.epsilon * self.slope) @ z

    def drift(self, t: Any, x: Array, args: Any = None) -> Array:
        r"""$g = D^{-1} [(K - 1)(x - m_0) + m_1 - m_0]$, $D = 1 + t (K - 1)$, at one (t, x), t in [0, 1]."""
        pull = self.slope - jnp.eye(len(x), dtype=x.dtype)
        d = jnp.eye(len(x), dtype=x.dtype) + jnp.asarray(t, x.dtype) * pull
        return jnp.linalg.solve(d, pull @ (x - self.mean0) + self.mean1 - self.mean0)

    def marginal(self, t: Scalar) -> tuple[Array, Array]:
        """Mean (d,) and covariance (d, d) of the bridge at time t."""
        t = jnp.asarray(t, self.cov0.dtype)
        s, cross = 1 - t, self.cov0 @ self.slope
        noise = self.epsilon * s * t * jnp.eye(len(cross), dtype=cross.dtype)
        cov = s**2 * self.cov0 + t**2 * self.cov1 + s * t * (cross + cross.T) + noise
        return s * self.mean0 + t * self.mean1, cov

    def simulate(self, x: Array, ts: Array, *, key: Key) -> Trajectory:
        """The bridge from one x along the times ts, by Euler and Maruyama; `.xs` (len(ts), d)."""
        return _simulate(self, x, ts, key)


def gaussian_plan(source: tuple[Any, Any], target: tuple[Any, Any], *, epsilon: Scalar) -> GaussianPlan:
    r"""The entropic plan $\min_\pi E_\pi |x - y|^2/2 + \epsilon\,\mathrm{KL}(\pi | p_0 \otimes p_1)$ of two Gaussians.

    **Arguments.** `source`, `target`: (mean (d,), covariance (d, d)); that of the source may be singular, that of the
    target may not. `epsilon` > 0. **Returns** a `GaussianPlan`, solved in float64, in the dtype of the arguments;
    differentiable in all of them, also where eigenvalues coincide. **Cost** O(d^3).
    **Errors.** `ValueError` for shapes that do not fit, epsilon <= 0.
    **See** Janati, Muzellec, Peyre and Cuturi (2020); Bunne, Hsieh, Cuturi and Krause (2023).
    """
    _check_epsilon(epsilon)
    (m0, a), (m1, b) = (tuple(jnp.asarray(part) for part in law) for law in (source, target))
    if m0.ndim != 1 or m1.shape != m0.shape or a.shape != 2 * m0.shape or b.shape != a.shape:
        raise ValueError(
            "source and target must be (mean (d,), covariance (d, d)) of one d; "
            f"got {m0.shape}, {a.shape} and {m1.shape}, {b.shape}"
        )
    dtype = widest(m0.dtype, a.dtype, m1.dtype, b.dtype)
    return GaussianPlan(*_solve(*(jnp.asarray(v, dtype) for v in (m0, a, m1, b, epsilon))))


@jax.custom_jvp
def _solve(*law):
    return in_float64(_solved)(*law)


@_solve.defjvp
def _(primals, tangents):
    # Differentiation of a compiled caller comes here when its float64 context is gone: take derivatives in one of our
    # own.
    return in_float64(lambda p, t: jax.jvp(_solved, p, t))(primals, tangents)


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


class MixturePlan(eqx.Module):
    r"""The plan $\pi \propto u(x)\, e^{-|x - y|^2/2\epsilon}\, v(y)$ of two mixtures u, v; made by `mixture_plan`.

    `u`, `v`: (weights (K,), means (K, d), covariances (K, d, d)).
    """

    u: Mixture
    v: Mixture
    epsilon: Array

    def marginal(self, t: Scalar) -> Mixture:
        """The law of the bridge at t, a mixture of I K components: the source at t = 0, the target at t = 1."""
        (_, p, us), (_, _, vs), eye = self.u, self.v, self._eye
        ut = us + jnp.asarray(t, p.dtype) * self.epsilon * eye
        vt = vs + (1 - jnp.asarray(t, p.dtype)) * self.epsilon * eye
        log_w, gap, inverse = self._pairs()
        gain = ut[:, None] @ inverse
        means = p[:, None] + (gain @ gap[..., None])[..., 0]
        return _flat(log_w, means, gain @ vt[None])

    def joint(self) -> Mixture:
        """The law of the pair (x, y) in dimension 2d, a mixture of I K components."""
        (_, p, us), (_, r, vs), eye = self.u, self.v, self._eye
        log_w, gap, inverse = self._pairs()
        into_u, into_v = us[:, None] @ inverse, vs[None] @ inverse
        x = p[:, None] + (into_u @ gap[..., None])[..., 0]
        y = r[None] - (into_v @ gap[..., None])[..., 0]
        cross = into_u @ vs[None]
        xx, yy = into_u @ (vs + self.epsilon * eye)[None], into_v @ (us + self.epsilon * eye)[:, None]
        rows = [jnp.concatenate([xx, cross], -1), jnp.concatenate([jnp.swapaxes(cross, -1, -2), yy], -1)]
        return _flat(log_w, jnp.concatenate([x, y], -1), jnp.concatenate(rows, -2))

    def log_prob(self, x: Array, y: Array) -> Array:
        """The log-density of the plan at one pair (d,), (d,)."""
        return mixture_log_prob(self.joint(), jnp.concatenate([x, y]))

    def conditional(self, x: Array) -> Mixture:
        r"""The law of y given x: $w_k \propto b_k N(x; r_k, V_k + \epsilon)$, slopes $V_k (V_k + \epsilon)^{-1}$."""
        log_w, u = self._posterior(0.0, x)
        vs = self.v[2]
        # V (V + eps)^-1 (x - r) = (x - r) - eps u
        slope = vs @ jnp.linalg.inv(vs + self.epsilon * self._eye)
        return jax.nn.softmax(log_w), x[None] - self.epsilon * u, self.epsilon * slope

    def mean(self, x: Array) -> Array:
        """E[y | x]."""
        return x + self.drift(0.0, x)

    def sample(self, x: Array, *, key: Key) -> Array:
        """One y for one x (d,)."""
        return mixture_sample(self.conditional(x), 1, key=key)[0]

    def drift(self, t: Any, x: Array, args: Any = None) -> Array:
        r"""$\epsilon \nabla \ln (v * N(0, \epsilon(1 - t)))$ at one (t, x), t in [0, 1]."""
        log_w, u = self._posterior(t, x)
        return -self.epsilon * (jax.nn.softmax(log_w) @ u)

    def simulate(self, x: Array, ts: Array, *, key: Key) -> Trajectory:
        """The bridge from one x along the times ts, by Euler and Maruyama; `.xs` (len(ts), d)."""
        return _simulate(self, x, ts, key)

    @property
    def _eye(self) -> Array:
        return jnp.eye(self.u[1].shape[1], dtype=self.u[1].dtype)[None]

    def _posterior(self, t, x):
        """Log-weights of v's components seen from (t, x), and (V_k + eps (1 - t))^-1 (x - r_k)."""
        b, r, vs = self.v
        chol = jnp.linalg.cholesky(vs + (1 - jnp.asarray(t, x.dtype)) * self.epsilon * self._eye)
        gap = x[None] - r
        u = jax.vmap(lambda c, g: jax.scipy.linalg.cho_solve((c, True), g))(chol, gap)
        return jnp.log(b) - 0.5 * (gap * u).sum(-1) - _half_log_det(chol), u

    def _pairs(self):
        """ln w (I, K), r - p (I, K, d) and Sigma^-1 (I, K, d, d)."""
        (a, p, us), (b, r, vs) = self.u, self.v
        chol = jnp.linalg.cholesky(us[:, None] + vs[None] + self.epsilon * self._eye[None])
        gap = r[None] - p[:, None]
        inverse = jax.scipy.linalg.cho_solve((chol, True), jnp.broadcast_to(self._eye[None], chol.shape))
        square = jnp.einsum("ikd,ikde,ike->ik", gap, inverse, gap)
        return jnp.log(a)[:, None] + jnp.log(b)[None] - 0.5 * square - _half_log_det(chol), gap, inverse


def mixture_plan(u: MixtureLike, v: MixtureLike, *, epsilon: Scalar) -> MixturePlan:
    r"""The plan and bridge of the potentials u and v; its ends, `marginal(0)` and `marginal(1)`, are then known laws.

    The plan is the entropic optimum between its own ends: pairs of laws with everything known, for tests. The slopes
    $V (V + \epsilon)^{-1}$ are below one: components spread by noise alone. `LightBridge` has any diagonal slopes and
    any source, but its target is then no mixture.

    **Arguments.** `u`, `v`: (weights (K,), means (K, d), covariances (K, d, d)), positive definite. `epsilon` > 0.
    **Returns** a `MixturePlan`, differentiable. **Cost** of its ends: I K factors of d x d matrices; of `drift` and
    `conditional`: K. **Errors.** `ValueError` for shapes that do not fit, epsilon <= 0.
    """
    _check_epsilon(epsilon)
    parts = [[jnp.asarray(part) for part in law] for law in (u, v)]
    dtype = widest(*(part.dtype for law in parts for part in law))
    for name, (w, m, c) in zip("uv", parts, strict=True):
        if w.ndim != 1 or m.ndim != 2 or len(m) != len(w) or c.shape != (*m.shape, m.shape[1]):
            raise ValueError(
                f"{name} must be (weights (K,), means (K, d), covariances (K, d, d)); "
                f"got {w.shape}, {m.shape}, {c.shape}"
            )
    if parts[0][1].shape[1] != parts[1][1].shape[1]:
        raise ValueError(f"u and v must share d; got {parts[0][1].shape[1]} and {parts[1][1].shape[1]}")
    u, v = ((w.astype(dtype), m.astype(dtype), c.astype(dtype)) for w, m, c in parts)
    return MixturePlan(u, v, jnp.asarray(epsilon, dtype))


def _flat(log_w, means, covs):
    """One axis of components out of two."""
    covs = 0.5 * (covs + jnp.swapaxes(covs, -1, -2))
    join = lambda x: x.reshape(-1, *x.shape[2:])
    return jax.nn.softmax(log_w.ravel()), join(means), join(covs)


def _half_log_det(chol):
    return jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)


def _simulate(plan, x, ts, key):
    return integrate(Dynamics(plan.drift, lambda t, x, args: jnp.sqrt(plan.epsilon)), x, ts, key=key)


def _check_epsilon(epsilon):
    if isinstance(epsilon, int | float) and epsilon <= 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
