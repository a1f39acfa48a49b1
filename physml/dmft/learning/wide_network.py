r"""Feature learning at infinite width: the mean-field theory of deep networks under gradient flow.

$$f_\mu = \frac{1}{\gamma N}\,w\cdot\phi(h^L_\mu), \quad h^{l+1} = \frac{1}{\sqrt N} W^l\phi(h^l), \quad
  \dot\theta = \gamma^2 N\sum_\nu\Delta_\nu\,\partial_\theta f_\nu, \quad \Delta = y - f$$

In the limit the units of a layer are independent. One unit sees Gaussian fields $u \sim N(0, \Phi^{l-1})$ forward and
$r \sim N(0, G^{l+1})$ backward, and what it and all others have learned:

$$h = u + \int_0^t\!ds\sum_\nu\bigl[A^{l-1} + \gamma\Phi^{l-1}\Delta_\nu(s)\bigr] g_\nu(s), \qquad
  z = r + \int_0^t\!ds\sum_\nu\bigl[B^l + \gamma G^{l+1}\Delta_\nu(s)\bigr]\phi(h_\nu(s)), \qquad g = \phi'(h)\,z,$$
$$\Phi^l = \langle\phi(h)\phi(h)\rangle, \quad G^l = \langle g g\rangle, \quad
  A^l = \Bigl\langle\frac{\delta\phi(h)}{\delta r}\Bigr\rangle, \quad
  B^{l-1} = \Bigl\langle\frac{\delta g}{\delta u}\Bigr\rangle, \quad
  \dot f = \sum_{l=0}^L G^{l+1}\Phi^l\,\Delta,$$

with $\Phi^0$ the kernel of the inputs and $G^{L+1} = 1$. A is strictly causal. B also acts at equal times, with
$\langle\phi''(h) z\rangle$ on its diagonal (plus $\phi'^2$ times that of the layer above): it vanishes for linear
networks.

With momentum, $\tau\ddot\theta + \dot\theta = \gamma^2N\sum\Delta\,\partial f$, what was learned at s counts
$1 - e^{-(t-s)/\tau}$ at t: both $\gamma\Delta(s)$ take this factor, and with the kernels at two times

$$\dot f_\mu(t) = \int_0^t\frac{ds}\tau e^{-(t-s)/\tau}
  \sum_{l,\nu}G^{l+1}_{\mu\nu}(t,s)\,\Phi^l_{\mu\nu}(t,s)\,\Delta_\nu(s).$$
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core.iterations import Damped
from physml.core.program import program
from physml.core.quadrature import trapezoid_matrix
from physml.core.types import Key, Scalar, is_traced
from physml.dmft.equations.average import MonteCarlo, in_batches
from physml.dmft.equations.covariance import root
from physml.dmft.equations.site_paths import grid_steps
from physml.dmft.equations.solve import AbstractModel, SelfConsistent
from physml.dmft.learning.trained_network import TrainedNetwork


class Training(eqx.Module):
    r"""A network while it learns, on the times `t` (k,) and n inputs, training inputs first.

    `f` (k, n): outputs, by the equation of the loss. `loss` (k,): $\frac12\sum\Delta^2$ over the training inputs.
    `output` (k, n): outputs as the average of their last layer, $\langle z\phi\rangle/\gamma$, which must agree with
    `f`. `Phi`, `G` (depth, k, n, k, n): kernels of the hidden layers, forward and backward. `ntk` (k, n, n): the
    tangent kernel.
    """

    t: Array
    f: Array
    loss: Array
    output: Array
    Phi: Array
    G: Array
    ntk: Array

    def at(self, t: Scalar) -> Array:
        """f(t) (n,), linear between the times of the grid."""
        return jax.vmap(lambda f: jnp.interp(t, self.t, f), in_axes=1)(self.f)


class WideNetwork(AbstractModel):
    r"""A network of `depth` hidden layers in the limit of infinite width; see the module for the equations.

    **Arguments.** `kernel` (n, n): $x_\mu\cdot x_\nu/d$ of the inputs, positive. `targets` (P,), P <= n: of the first P
    inputs; the others are test points. `gamma` > 0: feature learning, lazy for gamma -> 0. `phi`: activation, applied
    elementwise; None for a linear network. `t_max`, `dt`: the grid, second order in dt, which must divide
    t_max and be below 1 / (largest eigenvalue of the tangent kernel). `momentum`: the time constant tau of a heavy
    ball, at least 2 dt; None for gradient flow.

    **Solution.** `Training`. The site is averaged over `MonteCarlo` samples, frozen during the iterations (pass a key);
    responses are taken along one random direction for every sample, which costs one tangent of the site.
    **Cost.** With m = n t_max/dt: samples x m^2 x depth x about 10 multiplications an iteration, 4 depth m^2 numbers
    of memory.
    **See** Bordelon and Pehlevan, Self-consistent dynamical field theory of kernel evolution in wide neural networks
    (2022).
    """

    kernel: Array
    targets: Array
    depth: int = eqx.field(static=True, default=1)
    gamma: Scalar = 1.0
    phi: Callable[[Array], Array] | None = eqx.field(static=True, default=jnp.tanh)
    t_max: float = eqx.field(static=True, default=10.0)
    dt: float = eqx.field(static=True, default=0.05)
    momentum: Scalar | None = None

    scheme: ClassVar[Any] = SelfConsistent(Damped(1.0), tol=1e-3, max_steps=60)
    average: ClassVar[Any] = MonteCarlo(2000)
    precise: ClassVar[bool] = False

    def __check_init__(self):
        shape = np.shape(self.kernel)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"kernel must be (n, n), got shape {shape}")
        if np.ndim(self.targets) != 1 or not 1 <= len(self.targets) <= shape[0]:
            raise ValueError(f"targets must be (P,) with 1 <= P <= n = {shape[0]}, got shape {np.shape(self.targets)}")
        check.count(self.depth, "depth")
        check.within(self.gamma, "gamma", above=0)  # small values are the lazy limit
        grid_steps(self.t_max, self.dt)
        if self.momentum is not None:
            check.within(self.momentum, "momentum", least=2 * self.dt)
        if not is_traced(self.kernel):
            values = np.linalg.eigvalsh(np.asarray(self.kernel, np.float64))
            if values[0] < -1e-5 * abs(values[-1]) or not np.allclose(
                self.kernel, np.asarray(self.kernel).T, atol=1e-5
            ):
                raise ValueError(
                    f"kernel must be symmetric and positive, its eigenvalues span {values[0]} to {values[-1]}"
                )

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return max(1, round(self.t_max / self.dt))

    @property
    def _size(self):
        return (self.steps + 1) * len(self.kernel)

    def noise_shape(self):
        # Fields u and r of every layer and the directions of their responses.
        return (self.depth, 4, self._size)

    def _derivatives(self, h):
        """phi, phi' and phi'' of h."""
        if self.phi is None:
            return h, jnp.ones_like(h), jnp.zeros_like(h)
        phi = self.phi
        first = lambda h: jax.jvp(phi, (h,), (jnp.ones_like(h),))
        (value, slope), (_, bend) = jax.jvp(first, (h,), (jnp.ones_like(h),))
        return value, slope, bend

    def _times(self, block):
        """A kernel (n, n) of the inputs, the same at all times."""
        return jnp.tile(block, (self.steps + 1, self.steps + 1))

    def _error(self, f):
        """Delta (k, n), zero on test points."""
        P = len(self.targets)
        y = jnp.zeros(f.shape[-1], f.dtype).at[:P].set(jnp.asarray(self.targets, f.dtype))
        trained = (jnp.arange(f.shape[-1]) < P).astype(f.dtype)
        each = lambda f: trained * (y - f)
        return each(f) if f.ndim == 1 else jax.vmap(each)(f)

    def init(self):
        """Kernels that do not move and the outputs they learn: an error that never fell would make features explode."""
        kernel = jnp.asarray(self.kernel, jnp.result_type(self.kernel, float))
        size = (self.depth, self._size, self._size)
        scale = jnp.mean(jnp.diag(kernel))
        eye = self._times(kernel / scale)
        Phi = G = jnp.broadcast_to(eye, size)
        zero, f = jnp.zeros(size, kernel.dtype), self._outputs(Phi, G)
        return {"f": f, "output": f, "Phi": Phi, "G": G, "A": zero, "B": zero, "local": zero[:, 0]}

    def update(self, order, noise):
        dtype = order["f"].dtype
        n, size = len(self.kernel), self._size
        delta = self._error(order["f"]).reshape(-1)
        kernel = jnp.asarray(self.kernel, dtype)
        # Below a layer: Phi and A of the one before; above it: G and B of the one after.
        Phi = jnp.concatenate([self._times(kernel)[None], order["Phi"][:-1]])
        G = jnp.concatenate([order["G"][1:], jnp.ones((1, size, size), dtype)])
        zero = jnp.zeros((1, size, size), dtype)
        A = jnp.concatenate([zero, order["A"][:-1]])
        B = jnp.concatenate([order["B"][1:], zero])
        local = jnp.concatenate([order["local"][1:], zero[:, 0]])

        def site(layer):
            l, Phi, G, A, B, local = layer
            z = lax.dynamic_index_in_dim(noise.z, l, 1, keepdims=False)
            return self._site(Phi, G, A, B, local, jnp.moveaxis(z, 0, -1), delta, noise.weights)

        found = lax.map(site, (jnp.arange(self.depth, dtype=jnp.int32), Phi, G, A, B, local))
        output = found.pop("output")[-1].reshape(-1, n)
        return found | {"f": self._outputs(found["Phi"], found["G"]), "output": output}

    def _site(self, Phi, G, A, B, local, normals, delta, weights):
        """Averages over one layer's units in the field of the layers around it; `normals` (4, size, samples)."""
        n, steps, size = len(self.kernel), self.steps, self._size
        step_of = jnp.arange(size, dtype=jnp.int32) // n
        until = step_of[:, None] >= step_of[None, :]
        past = step_of[:, None] > step_of[None, :]
        # Trapezoidal weights of the integrals; responses to one step's field carry theirs already.
        end = (step_of[None, :] == 0) | ~past
        rate = jnp.asarray(self.gamma, delta.dtype) * self.dt * jnp.where(end, 0.5, 1.0) * delta[None, :]
        rate = jnp.where(until & (step_of[:, None] > 0), rate, 0.0)
        if self.momentum is not None:
            rate = rate * (1 - self._fading(delta.dtype)[step_of[:, None], step_of[None, :]])
        forward, backward = jnp.where(until, A, 0.0) + rate * Phi, jnp.where(until, B, 0.0) + rate * G
        earlier = lambda a: jnp.where(past, a, 0.0).reshape(steps + 1, n, size)
        now = lambda a: jnp.einsum("kakb->kab", a.reshape(steps + 1, n, steps + 1, n))
        rows = (earlier(forward), earlier(backward), now(forward), now(backward))
        roots = root(Phi), root(G)

        def unit(u, r):
            samples = u.shape[-1]

            def step(carry, k_row):
                k, (F, K, F_now, K_now), u, r = k_row
                values, gradients, g = carry  # phi(h) and g of the past, zero from k on; and the last g
                u, r = u + F @ gradients, r + K @ values
                # The present counts with weight dt / 2: a few iterations of a strong contraction.
                value = slope = bend = z = g
                for _ in range(INNER):
                    h = u + F_now @ g
                    value, slope, bend = self._derivatives(h)
                    z = r + K_now @ value
                    g = slope * z
                at = (k * n, jnp.zeros_like(k))
                write = lambda a, x: lax.dynamic_update_slice(a, x, at)
                return (write(values, value), write(gradients, g), g), (bend * z, slope, z)

            empty = jnp.zeros((size, samples), u.dtype)
            cut = lambda a: a.reshape(steps + 1, n, samples)
            start = (empty, empty, jnp.zeros((n, samples), u.dtype))
            ks = jnp.arange(steps + 1, dtype=jnp.int32)
            (values, gradients, _), seen = lax.scan(step, start, (ks, rows, cut(u), cut(r)))
            return values, gradients, *(a.reshape(size, samples) for a in seen)

        def summed(normals, weights):
            """Sums over some of the samples, normals (4, size, samples)."""
            u, r = roots[0] @ normals[0], roots[1] @ normals[1]
            v, w = jnp.sign(normals[2]), jnp.sign(normals[3])
            (values, gradients, bends, slopes, z), tangents = jax.jvp(unit, (u, r), (v, w))
            weights = weights.astype(u.dtype)
            mean = lambda a, b: (a * weights[None, :]) @ b.T
            # Equal-time responses are known exactly; along random directions they would drown the memory in noise.
            bends = bends + slopes**2 * local[:, None]
            to_r = tangents[0] - slopes * v
            to_u = tangents[1] - bends * v - slopes * w
            return {
                "Phi": mean(values, values),
                "G": mean(gradients, gradients),
                "A": mean(to_r, w),
                "B": mean(to_u, v),
                "local": bends @ weights,
                "output": (z * values) @ weights / jnp.asarray(self.gamma, u.dtype),
            }

        found = in_batches(summed, normals, weights)
        cut = lambda a: jnp.where(until, a, 0.0)
        return found | {"A": cut(found["A"]), "B": cut(found["B"]) + jnp.diag(found["local"])}

    def _fading(self, dtype):
        """exp(-(t - s) / tau) on the times of the grid (k, k)."""
        t = self.dt * jnp.arange(self.steps + 1, dtype=dtype)
        return jnp.exp(-jnp.abs(t[:, None] - t[None, :]) / jnp.asarray(self.momentum, dtype))

    def _layer_sum(self, Phi, G):
        """Sum of G^{l+1} Phi^l over the layers, for kernels of any two times or of equal ones."""
        kernel = jnp.broadcast_to(jnp.asarray(self.kernel, Phi.dtype), Phi.shape[1:-2] + self.kernel.shape)
        below = jnp.concatenate([kernel[None], Phi])
        return jnp.sum(below * jnp.concatenate([G, jnp.ones_like(G[:1])]), 0)

    def _square(self, kernel):
        """(depth, size, size) as (depth, k, k, n, n)."""
        k, n = self.steps + 1, len(self.kernel)
        return jnp.moveaxis(kernel.reshape(-1, k, n, k, n), 2, 3)

    def _tangent_kernel(self, Phi, G):
        """(k, n, n) at equal times."""
        equal = lambda a: jnp.einsum("lkkab->lkab", self._square(a))
        return self._layer_sum(equal(Phi), equal(G))

    def _outputs(self, Phi, G):
        """f by Heun's rule."""
        start = jnp.zeros(len(self.kernel), Phi.dtype)
        fs = self._descended(Phi, G, start) if self.momentum is None else self._rolled(Phi, G, start)
        return jnp.concatenate([start[None], fs])

    def _descended(self, Phi, G, start):
        """f after the start, by gradient flow."""
        ntk = self._tangent_kernel(Phi, G)

        def step(f, pair):
            now, later = pair
            slope = now @ self._error(f)
            guess = f + self.dt * slope
            f = f + self.dt / 2 * (slope + later @ self._error(guess))
            return f, f

        return lax.scan(step, start, (ntk[:-1], ntk[1:]))[1]

    def _rolled(self, Phi, G, start):
        """f after the start, with momentum: its slope remembers all errors."""
        memory = self._layer_sum(self._square(Phi), self._square(G))
        fading = self._fading(Phi.dtype) * self.dt / jnp.asarray(self.momentum, Phi.dtype)
        weight = trapezoid_matrix(self.steps, 1.0, Phi.dtype)
        memory = memory * (weight * fading)[:, :, None, None]
        slope = lambda k, errors: jnp.einsum("sab,sb->a", memory[k], errors)

        def step(carry, k):
            f, now, errors = carry
            guess = f + self.dt * now
            then = slope(k, errors.at[k].set(self._error(guess)))
            f = f + self.dt / 2 * (now + then)
            errors = errors.at[k].set(self._error(f))
            return (f, slope(k, errors), errors), f

        errors = jnp.zeros((self.steps + 1, len(start)), Phi.dtype).at[0].set(self._error(start))
        return lax.scan(step, (start, jnp.zeros_like(start), errors), 1 + jnp.arange(self.steps, dtype=jnp.int32))[1]

    def finish(self, order):
        k, n = self.steps + 1, len(self.kernel)
        square = lambda a: a.reshape(-1, k, n, k, n)
        f = order["f"]
        t = self.dt * jnp.arange(k, dtype=f.dtype)
        loss = 0.5 * jnp.sum(self._error(f) ** 2, 1)
        ntk = self._tangent_kernel(order["Phi"], order["G"])
        return Training(t, f, loss, order["output"], square(order["Phi"]), square(order["G"]), ntk)

    @program
    def finite_n(self, n: int, *, key: Key, substeps: int = 1) -> Training:
        """A network of width n trained from its own random weights by gradient flow, `substeps` of Runge and Kutta for
        every dt.

        Its output at the start, which vanishes as n^{-1/2}, is subtracted.
        """
        network = TrainedNetwork(self.kernel, self._error, self.depth, self.gamma, self.phi, self.momentum)
        f, Phi, G = network.train(n, self.steps, self.dt, substeps, key=key)
        t = self.dt * jnp.arange(self.steps + 1, dtype=f.dtype)
        return Training(t, f, 0.5 * jnp.sum(self._error(f) ** 2, 1), f, Phi, G, self._tangent_kernel(Phi, G))


INNER = 3  # iterations of the implicit half of a step
