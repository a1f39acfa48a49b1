r"""Averages over the noise of one site: quadrature, or Monte Carlo with the same samples at every iteration.

A `Sample` holds draws z of standard normal noise and their weights, so that $\langle f \rangle = \sum_i w_i f(z_i)$.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.quadrature import gauss_hermite_grid
from physml.core.types import Key


class Sample(eqx.Module):
    """Draws `z` (n, ...) of standard normal noise with `weights` (n,) that sum to 1."""

    z: Array
    weights: Array

    def average(self, f: Callable[[Array], PyTree]) -> PyTree:
        """sum_i w_i f(z_i), for f of one draw."""
        return jax.tree.map(lambda v: jnp.tensordot(self.weights.astype(v.dtype), v, 1), jax.vmap(f)(self.z))


class AbstractAverage(eqx.Module):
    """How the noise of one site is averaged."""

    @abc.abstractmethod
    def draw(self, shape: tuple[int, ...], key: Key | None, dtype: DTypeLike) -> Sample:
        """Draws of noise of this shape."""


class Quadrature(AbstractAverage):
    """Gauss and Hermite's `nodes` in each of at most three dimensions: for noise that is a few numbers."""

    nodes: int = eqx.field(static=True, default=64)

    def __check_init__(self):
        check.count(self.nodes, "nodes")

    def draw(self, shape, key, dtype):
        size = 1 if shape == () else shape[0]
        if len(shape) > 1 or size > 3:
            raise ValueError(
                f"quadrature serves noise of at most 3 numbers, this model's has shape {shape}: MonteCarlo"
            )
        grid, weight = gauss_hermite_grid(self.nodes, size, dtype)
        return Sample(grid.reshape(-1, *shape), weight)


class MonteCarlo(AbstractAverage):
    """`samples` draws, frozen while the equations are solved, so that the map iterated is deterministic.

    `batches`: groups of samples whose scatter gives the error bars of the solution. `matched`: where there are at least
    twice as many samples as numbers along the last axis of the noise, the samples are recombined so that their means
    are 0 and their covariance along that axis is 1 exactly, which removes the sampling error of everything quadratic.
    A key is needed.
    """

    samples: int = eqx.field(static=True, default=1000)
    batches: int = eqx.field(static=True, default=10)
    matched: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        check.count(self.batches, "batches", least=2)
        if check.count(self.samples, "samples", least=2 * self.batches) % self.batches:
            raise ValueError(f"samples must be a multiple of batches; got {self.samples}, {self.batches}")

    def draw(self, shape, key, dtype):
        if key is None:
            raise ValueError("MonteCarlo draws noise: solve(..., key=jax.random.key(0))")
        weights = jnp.full((self.samples,), 1 / self.samples, dtype)
        # One noise for both precisions; bits for float64 cannot be drawn inside a program of single precision.
        z = jax.random.normal(key, (self.samples, *shape), jnp.float32).astype(dtype)
        last = shape[-1] if shape else 1
        if self.matched and self.samples >= 2 * last:
            blocks = jnp.moveaxis(z.reshape(self.samples, -1, last), 1, 0)
            z = jnp.moveaxis(jax.lax.map(_match, blocks), 0, 1).reshape(z.shape)
        return Sample(z, weights)

    def split(self, sample: Sample) -> Sample:
        """The batches of a sample, on a new leading axis."""
        z = sample.z.reshape(self.batches, -1, *sample.z.shape[1:])
        return Sample(z, sample.weights.reshape(self.batches, -1) * self.batches)


AT_ONCE = 2**24  # numbers in an array of one entry of the noise for each of a batch of samples


def in_batches(summed: Callable[[Array, Array], PyTree], z: Array, weights: Array) -> PyTree:
    """`summed(z, weights)`, sums over samples, of which only as many at once as memory should hold.

    **Arguments.** `z` (..., k, n): samples last. `weights` (n,); samples without weight must not count.
    """
    *shape, samples = z.shape
    batches = -(-samples * shape[-1] // AT_ONCE)
    if batches <= 1:
        return summed(z, weights)
    missing = -samples % batches
    z = jnp.pad(z, [(0, 0)] * len(shape) + [(0, missing)])
    split = jnp.moveaxis(z.reshape(*shape, batches, -1), -2, 0), jnp.pad(weights, (0, missing)).reshape(batches, -1)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(summed, *jax.tree.map(lambda a: a[0], split)))
    add = lambda total, batch: (jax.tree.map(jnp.add, total, summed(*batch)), None)
    return jax.lax.scan(add, zero, split)[0]


def _match(z: Array) -> Array:
    """Samples (n, k) recombined to mean 0 and covariance 1."""
    z = z - jnp.mean(z, axis=0, keepdims=True)
    root = jnp.linalg.cholesky(z.T @ z / len(z))
    return jax.scipy.linalg.solve_triangular(root, z.T, lower=True).T
