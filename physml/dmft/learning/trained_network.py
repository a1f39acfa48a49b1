"""Networks of finite width, trained by gradient flow from random weights: what the theory of wide networks predicts."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.core.types import Key, Scalar
from physml.dmft.equations.covariance import root
from physml.integrate import rk4


class TrainedNetwork(eqx.Module):
    r"""$f = w\cdot\phi(h^L)/(\gamma N)$, $h^{l+1} = W^l\phi(h^l)/\sqrt N$, descending at rate $\gamma^2N$.

    `kernel` (p, p) of the inputs; `error(f)`: $\Delta$ of outputs f (p,), zero on test points; `phi`: None for a linear
    network; `momentum`: the time constant of a heavy ball, or None.
    """

    kernel: Array
    error: Callable[[Array], Array]
    depth: int = eqx.field(static=True)
    gamma: Scalar
    phi: Callable[[Array], Array] | None = eqx.field(static=True)
    momentum: Scalar | None

    def _layers(self, weights, shifts):
        """Outputs, and phi(h) of every layer (depth, p, n); `shifts` are added to the h."""
        n = len(weights[-1])
        phi = (lambda h: h) if self.phi is None else self.phi
        x, seen = root(jnp.asarray(self.kernel, weights[-1].dtype)), []
        for i, (W, shift) in enumerate(zip(weights[:-1], shifts, strict=True)):
            h = x @ W / (1.0 if i == 0 else n**0.5) + shift
            x = phi(h)
            seen.append(x)
        return x @ weights[-1] / (jnp.asarray(self.gamma, x.dtype) * n), jnp.stack(seen)

    def _observe(self, weights, still):
        """Outputs, phi(h) and g = gamma n df/dh."""
        f, values = self._layers(weights, still)
        # Inputs do not mix, so the gradient of the sum of outputs holds every df_mu / dh_mu.
        g = jax.grad(lambda shifts: jnp.sum(self._layers(weights, shifts)[0]))(still)
        return f, values, jnp.asarray(self.gamma, f.dtype) * len(weights[-1]) * jnp.stack(g)

    def train(self, n: int, steps: int, dt: float, substeps: int, *, key: Key) -> tuple[Array, Array, Array]:
        """Outputs (k, p) less those at the start, and the kernels Phi and G (depth, k, p, k, p), k = steps + 1 times;
        `substeps` of Runge and Kutta for every dt."""
        dtype = jnp.result_type(self.kernel, float)
        keys, p = jax.random.split(key, self.depth + 1), len(self.kernel)
        weights = [jax.random.normal(keys[0], (p, n), dtype)]
        weights += [jax.random.normal(k, (n, n), dtype) for k in keys[1:-1]]
        weights += [jax.random.normal(keys[-1], (n,), dtype)]
        still = [jnp.zeros((p, n), dtype)] * self.depth
        f0 = self._layers(weights, still)[0]
        gamma = jnp.asarray(self.gamma, dtype)
        loss = lambda weights: 0.5 * jnp.sum(self.error(self._layers(weights, still)[0] - f0) ** 2)
        flow = lambda weights: jax.tree.map(lambda g: -(gamma**2) * n * g, jax.grad(loss)(weights))

        def rates(state):
            weights, speed = state
            if self.momentum is None:
                return flow(weights), ()
            tau = jnp.asarray(self.momentum, dtype)
            return speed, jax.tree.map(lambda force, v: (force - v) / tau, flow(weights), speed)

        move = lambda state, _: (rk4(lambda _, state: rates(state), 0.0, state, dt / substeps), None)

        def one(state, _):
            seen = self._observe(state[0], still)
            return lax.scan(move, state, length=substeps)[0], seen

        start: Any = (weights, () if self.momentum is None else jax.tree.map(jnp.zeros_like, weights))
        (weights, _), seen = lax.scan(one, start, length=steps)
        last = self._observe(weights, still)
        f, values, gradients = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), seen, last)
        kernel = lambda a: jnp.einsum("klan,slbn->lkasb", a, a) / n
        return f - f0[None, :], kernel(values), kernel(gradients)
