r"""Interactions: what every particle feels of a measure, $f_i = \sum_j w_j\, k(x_i, y_j)$, or of its averages."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from physml.core import check
from physml.core.program import program
from physml.core.types import Key
from physml.particles.pairs.backends import AbstractBackend, AllPairs, Force
from physml.particles.pairs.measure import AbstractMeasure


class PairSum(eqx.Module):
    r"""$f_i = \sum_j w_j\, k(x_i, y_j)$ over the points of a measure, whose weights sum to one.

    **Arguments.** `kernel`: of two points (d,), returns an array of any shape. `backend`: `AllPairs` (the default),
    `Cells` (a kernel of finite range), `RandomBatch` (a few random partners each, unbiased).

    **Call** `force(x, measure, key=None)`: x (N, d), returns (N, ...); the key is for random partners. With a
    `Gaussian` or a `Histogram` the sum is the integral over it. `force.evaluate(...)` returns `Force(value, status)`.

    **Cost.** 1 to 3 ns a pair on one CPU core for simple kernels in two dimensions, `AllPairs`. Differentiable in x,
    the measure and whatever the kernel closes over; a gradient costs about three forward passes and the same memory.
    Outside jit a kernel that is written anew in the call compiles anew: define it once.

    **Errors.** `ValueError` for points of different dimension and a missing key. A cell list that overflows is the
    status `overflow` of `evaluate`; a plain call returns NaN for the particles concerned rather than a wrong sum.

    **Example.**
    ```python
    force = PairSum(lambda x, y: (x - y) / (jnp.sum((x - y) ** 2) + 0.01))
    f = force(x, Particles(x))
    ```
    """

    kernel: Callable
    backend: AbstractBackend = AllPairs()

    def __call__(self, x: Array, measure: AbstractMeasure, *, key: Key | None = None) -> Array:
        return self.evaluate(x, measure, key=key).value

    def evaluate(self, x: Array, measure: AbstractMeasure, *, key: Key | None = None) -> Force:
        """The force and its status."""
        x, (y, w) = jnp.asarray(x), measure.nodes()
        check.function(self.kernel, "kernel", "of two points")
        check.instance(self.backend, "backend", AbstractBackend, "AllPairs(), Cells(...) or RandomBatch(...)")
        if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
            raise ValueError(f"PairSum needs points (N, d) and (M, d); got {x.shape} and {y.shape}")
        # Particles and their own partners are one array, which a program would not see in two arguments.
        return _sum(self.backend, self.kernel, x, None if y is x else y, w, key)


@program
def _sum(backend, kernel, x, y, w, key):
    return backend.sum(kernel, x, x if y is None else y, w, key)


class Feature(eqx.Module):
    r"""$f_i = r\bigl(x_i, \int \phi\,d\mu\bigr)$: an interaction through averages, O(N).

    **Arguments.** `phi`: of one point, any pytree. `readout`: (point, averages) -> force on it. **Call**
    `force(x, measure)`: x (N, d), returns (N, ...).
    """

    phi: Callable
    readout: Callable

    def __call__(self, x: Array, measure: AbstractMeasure, *, key: Key | None = None) -> Array:
        return _readout(self, x, measure)


@program
def _readout(feature, x, measure):
    return jax.vmap(feature.readout, (0, None))(x, measure.expect(feature.phi))
