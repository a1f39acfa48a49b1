r"""The light Schrodinger bridge: a Gaussian-mixture potential that makes the whole bridge closed.

For the cost $|x_0 - x_1|^2/2$ at temperature $\epsilon$ every entropic plan is a product
$\pi(x_0, x_1) \propto e^{x_0 \cdot x_1/\epsilon}\, u(x_0)\, v(x_1)$. With
$v = \sum_k a_k N(r_k, \epsilon S_k)$, $S_k$ diagonal, the conditional plan is

$$\pi(x_1 | x_0) = \sum_k w_k(x_0)\, N(r_k + S_k x_0, \epsilon S_k),\qquad
  \ln w_k = \ln a_k + \frac{x_0^\top S_k x_0 + 2 r_k^\top x_0}{2\epsilon} - \ln c(x_0),$$

and the drift of the bridge, from the same Gaussian integrals (derived in the theory pages),

$$g(t, x) = \sum_k w_k(t, x)\, \frac{r_k + (S_k - 1) x}{D_k},\quad D_k = 1 + (S_k - 1) t,\quad
  \ln w_k = \ln a_k + \tfrac12 \sum_d \Big[\frac{(S_k - 1) x^2 + 2 x r_k - t r_k^2}{\epsilon D_k} - \ln D_k\Big] + c,$$

which is regular up to t = 1. **See** Korotin, Gushchin and Burnaev, Light Schrodinger bridge (2024).
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from physml.core.types import Key, Scalar
from physml.integrate import Dynamics, Trajectory, integrate
from physml.train import fit


class Conditional(NamedTuple):
    """The Gaussian mixture x1 | x0: log-weights (K,), means (K, d), diagonal variances (K, d)."""

    log_weights: Array
    means: Array
    variances: Array


class LightBridge(eqx.Module):
    r"""An entropic plan and its bridge: `log_a` (K,), `r` (K, d), `log_s` (K, d), temperature `epsilon`."""

    log_a: Array
    r: Array
    log_s: Array
    epsilon: Array

    def conditional(self, x: Array) -> Conditional:
        """The law of x1 given one source sample x (d,)."""
        s = jnp.exp(self.log_s)
        return Conditional(self._log_weights(0.0, x), self.r + s * x[None, :], self.epsilon * s)

    def sample(self, x: Array, *, key: Key) -> Array:
        """One x1 for one source sample x (d,), exactly; batches by vmap over (x, key)."""
        which, normal = jax.random.split(key)
        law = self.conditional(x)
        k = jax.random.categorical(which, law.log_weights)
        return law.means[k] + jnp.sqrt(law.variances[k]) * jax.random.normal(normal, x.shape, x.dtype)

    def mean(self, x: Array) -> Array:
        """The barycentric projection E[x1 | x0 = x]."""
        law = self.conditional(x)
        return jnp.exp(law.log_weights) @ law.means

    def drift(self, t: Any, x: Array, args: Any = None) -> Array:
        r"""The drift of the bridge $dx = g\,dt + \sqrt\epsilon\,dW$ at one (t, x), t in [0, 1]."""
        t = jnp.asarray(t, x.dtype)
        s1 = jnp.expm1(self.log_s)
        pull = (self.r + s1 * x[None, :]) / (1.0 + s1 * t)
        return jnp.exp(self._log_weights(t, x)) @ pull

    def simulate(self, x: Array, ts: Array, *, key: Key) -> Trajectory:
        """The bridge from one source sample along the times ts, by Euler and Maruyama; `.xs` (len(ts), d)."""
        return integrate(Dynamics(self.drift, lambda t, x, args: jnp.sqrt(self.epsilon)), x, ts, key=key)

    def log_normaliser(self, x: Array) -> Array:
        """ln c(x), the log-partition function of the conditional plan."""
        return jax.scipy.special.logsumexp(self._energies(0.0, x))

    def log_potential(self, y: Array) -> Array:
        """ln v(y)."""
        var = self.epsilon * jnp.exp(self.log_s)
        log_n = -0.5 * ((y[None, :] - self.r) ** 2 / var + jnp.log(2 * jnp.pi * var)).sum(1)
        return jax.scipy.special.logsumexp(self.log_a + log_n)

    def _energies(self, t: Any, x: Array) -> Array:
        s1 = jnp.expm1(self.log_s)
        d = 1.0 + s1 * t
        quadratic = (s1 * x[None, :] ** 2 + 2.0 * x[None, :] * self.r - t * self.r**2) / (self.epsilon * d)
        # At t = 0 the terms without s drop from the weights; |x|^2 is put back so that c(x) is the paper's.
        shift = 0.5 * jnp.sum(x * x) / self.epsilon
        return self.log_a + 0.5 * (quadratic - jnp.log(d)).sum(1) + shift

    def _log_weights(self, t: Any, x: Array) -> Array:
        return jax.nn.log_softmax(self._energies(t, x))


def bridge_loss(plan: LightBridge, batch: tuple[Array, Array], *, key: Key | None = None) -> Array:
    r"""$E_{x_0} \ln c(x_0) - E_{x_1} \ln v(x_1)$: KL of the true plan to this one, up to a constant (their eq. 12)."""
    x0, x1 = batch
    return jnp.mean(jax.vmap(plan.log_normaliser)(x0)) - jnp.mean(jax.vmap(plan.log_potential)(x1))


def light_bridge(
    x0: Array,
    x1: Array,
    *,
    epsilon: Scalar,
    components: int = 50,
    key: Key,
    steps: int = 5000,
    batch_size: int = 256,
    learning_rate: Scalar = 0.03,
    progress: bool = False,
) -> LightBridge:
    r"""Fit the Schrodinger bridge between two samples, at temperature epsilon, by maximum likelihood.

    **Arguments.** `x0` (n, d), `x1` (m, d): unpaired samples. `components`: K. `steps`, `batch_size`,
    `learning_rate`: of Adam with a cosine schedule. **Returns** a `LightBridge` with `sample`, `drift`, `conditional`.
    **Cost** O(batch K d) a step. **Errors** `ValueError` for samples of different dimension, epsilon <= 0.
    """
    x0, x1 = jnp.asarray(x0), jnp.asarray(x1)
    if x0.ndim != 2 or x1.ndim != 2 or x0.shape[1] != x1.shape[1]:
        raise ValueError(f"x0 and x1 must be (n, d) and (m, d); got {x0.shape} and {x1.shape}")
    if isinstance(epsilon, int | float) and epsilon <= 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    if components < 1:
        raise ValueError(f"components must be at least 1, got {components}")
    start_key, fit_key = jax.random.split(key)
    model = _start(x0, x1, epsilon, components, start_key)

    def batches(key):
        k0, k1 = jax.random.split(key)
        rows = lambda k, x: x[jax.random.randint(k, (batch_size,), 0, len(x))]
        return rows(k0, x0), rows(k1, x1)

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps, alpha=1e-2))
    trainable = eqx.tree_at(lambda p: p.epsilon, jax.tree.map(lambda _: True, model), False)
    return fit(
        bridge_loss,
        model,
        batches,
        optimizer=optimizer,
        steps=steps,
        trainable=trainable,
        key=fit_key,
        progress=progress,
        chunk=500,
    ).model


def _start(x0: Array, x1: Array, epsilon: Scalar, components: int, key: Key) -> LightBridge:
    """Components that would carry a typical source sample near data points: r + S x0 = y, all weights equal."""
    dtype = x1.dtype
    eps = jnp.asarray(epsilon, dtype)
    y = x1[jax.random.randint(key, (components,), 0, len(x1))]
    # Each component is to be narrow in units of the data: eps s = var / 10, and s at most 1.
    s = jnp.clip(0.1 * jnp.var(x1, axis=0) / eps, 1e-3, 1.0)
    log_s = jnp.broadcast_to(jnp.log(s)[None, :], y.shape)
    r = y - s[None, :] * x0.mean(0, keepdims=True)
    # Weights that make the components equally likely at the mean of the source.
    x = x0.mean(0)
    log_a = -0.5 * (s[None, :] * x[None, :] ** 2 + 2 * r * x[None, :]).sum(1) / eps
    return LightBridge(log_a, r, log_s, eps)
