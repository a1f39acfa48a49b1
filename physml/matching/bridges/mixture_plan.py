r"""Entropic plans between mixtures that are made from Gaussian potentials, in closed form, and their bridges.

As for two Gaussians, $\pi(x, y) = u(x)\, e^{-|x - y|^2/2\epsilon}\, v(y)$. With $u = \sum_i a_i N(p_i, U_i)$ and
$v = \sum_k b_k N(r_k, V_k)$ the bridge is a mixture over the pairs (i, k), whose weights do not depend on time:

$$p_t = \sum_{ik} w_{ik}\, N\big(p_i + U_t \Sigma^{-1} (r_k - p_i),\ U_t \Sigma^{-1} V_t\big), \qquad
  w_{ik} \propto a_i b_k N(r_k - p_i; 0, \Sigma),$$

$U_t = U_i + \epsilon t$, $V_t = V_k + \epsilon(1 - t)$, $\Sigma = U_i + V_k + \epsilon$. Both ends are known
mixtures.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from physml.core.check import number
from physml.core.program import program
from physml.core.types import Key, Scalar, widest
from physml.integrate import Trajectory
from physml.matching.bridges.gaussian_plan import simulate_bridge
from physml.matching.exact.mixture import MixtureLike, mixture_log_prob, mixture_sample

Mixture = tuple[Array, Array, Array]


class MixturePlan(eqx.Module):
    r"""The plan $\pi \propto u(x)\, e^{-|x - y|^2/2\epsilon}\, v(y)$ of two mixtures u, v; made by `mixture_plan`.

    `u`, `v`: (weights (K,), means (K, d), covariances (K, d, d)).
    """

    u: Mixture
    v: Mixture
    epsilon: Array

    @program
    def marginal(self, t: Scalar) -> Mixture:
        """The law of the bridge at t, a mixture of I K components: the source at t = 0, the target at t = 1."""
        (_, p, us), (_, _, vs), eye = self.u, self.v, self._eye
        ut = us + jnp.asarray(t, p.dtype) * self.epsilon * eye
        vt = vs + (1 - jnp.asarray(t, p.dtype)) * self.epsilon * eye
        log_w, gap, inverse = self._pairs()
        gain = ut[:, None] @ inverse
        means = p[:, None] + (gain @ gap[..., None])[..., 0]
        return _flat(log_w, means, gain @ vt[None])

    @program
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

    @program
    def log_prob(self, x: Array, y: Array) -> Array:
        """The log-density of the plan at one pair (d,), (d,)."""
        return mixture_log_prob(self.joint(), jnp.concatenate([x, y]))

    @program
    def conditional(self, x: Array) -> Mixture:
        r"""The law of y given x: $w_k \propto b_k N(x; r_k, V_k + \epsilon)$, slopes $V_k (V_k + \epsilon)^{-1}$."""
        log_w, u = self._posterior(0.0, x)
        vs = self.v[2]
        # V (V + eps)^-1 (x - r) = (x - r) - eps u
        slope = vs @ jnp.linalg.inv(vs + self.epsilon * self._eye)
        return jax.nn.softmax(log_w), x[None] - self.epsilon * u, self.epsilon * slope

    @program
    def mean(self, x: Array) -> Array:
        """E[y | x]."""
        return x + self.drift(0.0, x)

    @program
    def sample(self, x: Array, *, key: Key) -> Array:
        """One y for one x (d,)."""
        return mixture_sample(self.conditional(x), 1, key=key)[0]

    @program
    def drift(self, t: Scalar, x: Array, args: PyTree = None) -> Array:
        r"""$\epsilon \nabla \ln (v * N(0, \epsilon(1 - t)))$ at one (t, x), t in [0, 1]."""
        log_w, u = self._posterior(t, x)
        return -self.epsilon * (jax.nn.softmax(log_w) @ u)

    def simulate(self, x: Array, ts: Array, *, key: Key) -> Trajectory:
        """The bridge from one x along the times ts, by Euler and Maruyama; `.xs` (len(ts), d)."""
        return simulate_bridge(self.drift, self.epsilon, x, ts, key=key)

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
    epsilon = number(epsilon, "epsilon", above=0)
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
