r"""Random matrices for the hidden layers: independent entries, and beyond.

Every ensemble has entries of mean square 1/n, so the mean of $|W\phi|^2/n$ given $\phi$ is that of independent entries.
What differs is how $q_i = (1/n)\sum_j\ldots\phi_j^2$ scatters from neuron to neuron and from network to network;
`scatter` gives the fresh variance that one layer adds, which `finite_width.quartic` propagates.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from physml.core import check
from physml.core.types import Key


class Scatter(eqx.Module):
    """Per layer: `neuron` 1/fan-in; `shared` r: a factor chi^2_r / r of the variance, common to the layer (inf: none);
    `spherical`: whether W preserves norms."""

    neuron: float
    shared: float
    spherical: bool


class AbstractWeights(eqx.Module):
    """An ensemble of n x n matrices with entries of variance 1/n."""

    @abc.abstractmethod
    def draw(self, n: int, *, key: Key, dtype: DTypeLike = float) -> Float[Array, "n n"]:
        """One matrix."""

    @abc.abstractmethod
    def scatter(self, n: int) -> Scatter:
        """What it adds to the scatter of variances."""


class GaussianWeights(AbstractWeights):
    r"""Independent $N(0, 1/n)$ entries."""

    def draw(self, n, *, key, dtype=float):
        return jax.random.normal(key, (n, n), dtype) / n**0.5

    def scatter(self, n):
        return Scatter(1 / n, float("inf"), False)


class OrthogonalWeights(AbstractWeights):
    r"""Uniform on the orthogonal group, by QR with the signs fixed. The limit is that of Gaussian entries; norms are
    preserved, which removes the scatter of a linear layer."""

    def draw(self, n, *, key, dtype=float):
        q, r = jnp.linalg.qr(jax.random.normal(key, (n, n), dtype))
        return q * jnp.sign(jnp.diagonal(r))[None, :]

    def scatter(self, n):
        return Scatter(1 / n, float("inf"), True)


class LowRankWeights(AbstractWeights):
    r"""$W = AB/\sqrt{rn}$, A (n, r) and B (r, n) with independent standard normal entries.

    Given $\phi$, $W\phi$ has independent Gaussian entries of variance $|\phi|^2/n \cdot \chi^2_r/r$: a linear layer of
    width r in between. The limit is kept when $r \propto n$ and changed, to a mixture of Gaussians, when r stays fixed.
    """

    rank: int = eqx.field(static=True)

    def __check_init__(self):
        check.count(self.rank, "rank")

    def draw(self, n, *, key, dtype=float):
        a, b = jax.random.split(key)
        A, B = jax.random.normal(a, (n, self.rank), dtype), jax.random.normal(b, (self.rank, n), dtype)
        return A @ B / (self.rank * n) ** 0.5

    def scatter(self, n):
        return Scatter(1 / n, float(self.rank), False)


class BlockSparseWeights(AbstractWeights):
    r"""`blocks` dense Gaussian blocks on the diagonal after a random permutation of the inputs: fan-in n / blocks.

    The limit is kept while the size of a block grows; blocks of fixed size shift the variance by O(1/size), because
    neurons of different blocks have different variances.
    """

    blocks: int = eqx.field(static=True)

    def __check_init__(self):
        check.count(self.blocks, "blocks")

    def draw(self, n, *, key, dtype=float):
        if n % self.blocks:
            raise ValueError(f"the width must be a multiple of the {self.blocks} blocks, got {n}")
        size = n // self.blocks
        entries, order = jax.random.split(key)
        dense = jax.random.normal(entries, (self.blocks, size, size), dtype) / size**0.5
        return jax.scipy.linalg.block_diag(*dense)[:, jax.random.permutation(order, n)]

    def scatter(self, n):
        return Scatter(self.blocks / n, float("inf"), False)


class DilutedWeights(AbstractWeights):
    r"""Each neuron reads `fan_in` inputs chosen at random, with Gaussian weights of variance 1/fan_in. As for
    `BlockSparseWeights`, the limit is kept while the fan-in grows and shifted by O(1/fan_in) where it does not."""

    fan_in: int = eqx.field(static=True)

    def __check_init__(self):
        check.count(self.fan_in, "fan_in")

    def draw(self, n, *, key, dtype=float):
        if n < self.fan_in:
            raise ValueError(f"the width must be at least fan_in = {self.fan_in}, got {n}")
        entries, chosen = jax.random.split(key)
        columns = jax.lax.top_k(jax.random.uniform(chosen, (n, n)), self.fan_in)[1]
        values = jax.random.normal(entries, (n, self.fan_in), dtype) / self.fan_in**0.5
        return jnp.zeros((n, n), dtype).at[jnp.arange(n)[:, None], columns].set(values)

    def scatter(self, n):
        return Scatter(1 / self.fan_in, float("inf"), False)
