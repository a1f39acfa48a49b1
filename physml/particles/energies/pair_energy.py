r"""The energy of pairs, $E(x) = \sum_{i<j} \phi(x_i, x_j)$, whose gradient is one sum over pairs."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core.program import program
from physml.core.types import is_traced, shape_of
from physml.particles.pairs.backends import AbstractBackend, AllPairs, _finite_on_diagonal


class PairEnergy(eqx.Module):
    r"""$E(x) = \sum_{i<j} \phi(x_i, x_j)$ for a symmetric $\phi$; $\nabla_i E = \sum_{j \ne i} \nabla \phi(x_i, x_j)$.

    **Arguments.** `kernel`: $\phi$ of two points (d,), a scalar with $\phi(x, y) = \phi(y, x)$. `backend`:
    `AllPairs`.

    **Call** `energy(x)`: x (N, d), returns a scalar in the dtype of x. Differentiable any number of times in x and in
    whatever the kernel closes over. Distinct particles at one place count where $\phi$ and its derivative are finite
    there, and contribute nothing where they are not.

    **Cost.** N^2 pairs for the energy, N^2 pairs of $\nabla_1 \phi$ for the gradient; nothing is kept for a backward
    pass but x. Outside jit a kernel that is written anew in the call compiles anew: define it once.

    **Errors.** `ValueError` for x that is not (N, d), a kernel that is not a scalar, another backend, and, outside of
    jit and grad, for a kernel that is not symmetric.

    **Example.**
    ```python
    energy = PairEnergy(lambda x, y: -0.5 * jnp.log(jnp.sum((x - y) ** 2)))
    force = -jax.grad(energy)(x)
    ```
    """

    kernel: Callable
    backend: AbstractBackend = AllPairs()

    def __check_init__(self):
        check.function(self.kernel, "kernel", "of two points")
        check.instance(self.backend, "backend", AllPairs, "AllPairs(...) (for a force with another, use PairSum)")

    def __call__(self, x: Array) -> Array:
        if x.ndim != 2:
            raise ValueError(f"PairEnergy needs points (N, d); got {x.shape}")
        self._check(x)
        return _total(self.kernel, self.backend, x)

    def _check(self, x):
        out = shape_of(self.kernel, x[0], x[0])
        if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != ():
            raise ValueError(f"the kernel of a PairEnergy must return a scalar; got {out}")
        if len(x) > 1 and not is_traced((x, self.kernel)):
            pair = check.known(_both_ways(self.kernel, x))
            if pair is not None and abs(pair[0] - pair[1]) > 1e-3 * (1 + abs(pair[0])):
                raise ValueError(f"the kernel must be symmetric; got {pair[0]:g} and {pair[1]:g} for one pair")


@program
def _both_ways(kernel, x):
    return jnp.stack([kernel(x[0], x[1]), kernel(x[1], x[0])])


@program
def _total(kernel, backend, x):
    # What the kernel closes over becomes an argument, so that derivatives reach it.
    phi, closed = jax.closure_convert(kernel, x[0], x[0])
    return _energy(phi, backend)(x, closed)


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
    """sum_{j != i} kernel(x_i, x_j), where it and its derivative are finite.

    A particle is told from the others by its number, carried as a coordinate, not by a distance of zero: a compiler may
    compute the coordinates twice, for rows and for columns, with different rounding.
    """
    n, d = x.shape
    keep = jax.vmap(lambda z: _finite_on_diagonal(kernel, z))(lax.stop_gradient(x))
    marks = jnp.stack([jnp.arange(n, dtype=x.dtype), keep.astype(x.dtype)], axis=1)

    def pair(a, b):
        touching = jnp.sum(jnp.abs(a[:d] - b[:d])) == 0
        counted = (a[d] != b[d]) & (~touching | (a[d + 1] > 0))
        # Both branches must be finite for their derivatives to be: what is not counted is moved apart.
        value = kernel(a[:d], b[:d] + jnp.where(counted, jnp.zeros((), b.dtype), 1))
        return jnp.where(counted, value, jnp.zeros((), value.dtype))

    marked = jnp.concatenate([x, marks], axis=1)
    return backend.sum(pair, marked, marked, jnp.ones(n, x.dtype), None).value
