r"""The energy of pairs, $E(x) = \sum_{i<j} \phi(x_i, x_j)$, whose gradient is one sum over pairs."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from physml.core.types import is_traced
from physml.particles.backends import AbstractBackend, Dense, RandomBatch, _finite_on_diagonal


class PairEnergy(eqx.Module):
    r"""$E(x) = \sum_{i<j} \phi(x_i, x_j)$ for a symmetric $\phi$; $\nabla_i E = \sum_{j \ne i} \nabla \phi(x_i, x_j)$.

    **Arguments.** `kernel`: $\phi$ of two points (d,), a scalar with $\phi(x, y) = \phi(y, x)$. `backend`: `Dense`, or
    `Cells` for a $\phi$ of finite range.

    **Call** `energy(x)`: x (N, d), returns a scalar in the dtype of x. Differentiable any number of times in x and in
    whatever the kernel closes over. Distinct particles at one place count where $\phi$ and its derivative are finite
    there, and contribute nothing where they are not.

    **Cost.** N^2 pairs for the energy, N^2 pairs of $\nabla_1 \phi$ for the gradient; nothing is kept for a backward
    pass but x. **Errors.** `ValueError` for x that is not (N, d), a kernel that is not a scalar, `RandomBatch`, and,
    outside of jit and grad, for a kernel that is not symmetric.

    **Example.**
    ```python
    energy = PairEnergy(lambda x, y: -0.5 * jnp.log(jnp.sum((x - y) ** 2)))
    force = -jax.grad(energy)(x)
    ```
    """

    kernel: Callable
    backend: AbstractBackend = Dense()

    def __check_init__(self):
        if isinstance(self.backend, RandomBatch):
            raise ValueError("PairEnergy needs a backend without chance, Dense or Cells; for a force, use PairSum")

    def __call__(self, x: Array) -> Array:
        if x.ndim != 2:
            raise ValueError(f"PairEnergy needs points (N, d); got {x.shape}")
        self._check(x)
        # What the kernel closes over becomes an argument, so that derivatives reach it.
        phi, closed = jax.closure_convert(self.kernel, x[0], x[0])
        return _energy(phi, self.backend)(x, closed)

    def _check(self, x):
        out = jax.eval_shape(self.kernel, x[0], x[0])
        if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != ():
            raise ValueError(f"the kernel of a PairEnergy must return a scalar; got {out}")
        if len(x) > 1 and not is_traced((x, self.kernel)):
            there, back = self.kernel(x[0], x[1]), self.kernel(x[1], x[0])
            if not is_traced(there) and abs(float(there - back)) > 1e-3 * (1 + abs(float(there))):
                raise ValueError(f"the kernel must be symmetric; got {float(there):g} and {float(back):g} for one pair")


def _energy(phi, backend):
    slope = jax.grad(phi)

    def total(x, closed):
        return jnp.sum(_others(lambda a, b: phi(a, b, *closed), x, backend)) / 2

    @jax.custom_jvp
    def energy(x, closed):
        return total(x, closed)

    @energy.defjvp
    def _(primals, tangents):
        (x, closed), (dx, dclosed) = primals, tangents
        value = total(x, closed)
        change = jnp.sum(_others(lambda a, b: slope(a, b, *closed), x, backend) * dx)
        if closed:
            change = change + jax.jvp(lambda c: total(x, c), (closed,), (dclosed,))[1]
        return value, change

    return energy


def _others(kernel, x, backend):
    """sum_{j != i} kernel(x_i, x_j): the sum over all, less the pair of each with itself where that counted."""
    everything = backend.sum(kernel, x, x, jnp.ones(len(x), x.dtype), None).value

    def itself(z):
        keep = _finite_on_diagonal(kernel, z)
        value = kernel(z, z + jnp.where(keep, jnp.zeros((), z.dtype), 1))
        return jnp.where(keep, value, jnp.zeros((), value.dtype))

    return everything - jax.vmap(itself)(x)
