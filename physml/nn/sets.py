"""Permutation-invariant encoders of a set."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from physml.core import check
from physml.core.types import Key
from physml.nn.condition import check_sizes, check_state, forward as _forward
from physml.nn.mlp import MLP


class DeepSets(eqx.Module):
    r"""An encoder that does not see the order of its elements.

    $$f(x) = \rho\Bigl(\tfrac{1}{n} \sum_i \phi(x_i)\Bigr)$$

    With the mean pool it is a function of the empirical measure. With `populations=P` each element carries
    a label and the pool runs over each population by itself: P codes.

    **Arguments.** `dim`: coordinates of one element. `out_dim`: length of the code. `width`, `depth`: of
    the two perceptrons phi and rho. `pool`: "mean" (blind to n) or "sum". `populations`: how many
    populations, or None for one unlabelled set. `key`: initialises the weights. `dtype`: of the parameters;
    x must have it too.

    **Calling** `f(x, mask=None, population=None)` with x `(n, dim)`, mask `(n,)` False for absent elements
    and integer population labels `(n,)` returns `(out_dim,)`, or `(P, out_dim)`. An empty population pools
    to zero; elements with a label outside 0..P-1 belong to none. **Cost.** n perceptrons. **Errors.**
    ValueError for a wrong shape or option. **See** Zaheer et al. (2017), "Deep sets".

    ```python
    encoder = DeepSets(2, 16, key=jax.random.key(0))
    code = encoder(x)  # x (n, 2), code (16,)
    ```
    """

    phi: MLP
    rho: MLP
    pool: str = eqx.field(static=True)
    populations: int | None = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        key: Key,
        width: int = 64,
        depth: int = 2,
        pool: str = "mean",
        populations: int | None = None,
        activation: Callable = jax.nn.silu,
        dtype: Any = None,
    ):
        check_sizes(key, activation, dim=dim, out_dim=out_dim, width=width, depth=depth)
        check.choice(pool, "pool", ("mean", "sum"))
        if populations is not None:
            check.count(populations, "populations (None for one unlabelled set)")
        keys = jax.random.split(key)
        options = {
            "width": width,
            "depth": depth,
            "activation": activation,
            "frequencies": None,
            "dtype": dtype,
        }
        self.phi = MLP(dim, out_dim=width, key=keys[0], **options)
        self.rho = MLP(width, out_dim=out_dim, key=keys[1], **options)
        self.pool = pool
        self.populations = populations

    def __call__(
        self,
        x: Float[Array, "..."],
        mask: Bool[Array, " n"] | None = None,
        population: Int[Array, " n"] | None = None,
    ) -> Float[Array, "..."]:
        x = check_state(x, (-1, self.phi.dim))
        if (population is None) != (self.populations is None):
            raise ValueError(
                f"populations={self.populations} but population labels are "
                f"{'missing' if population is None else 'given'}: give both or neither"
            )
        return _forward(self, x, mask, population)

    def _evaluate(self, x, mask, population):
        n = len(x)
        if population is None or self.populations is None:
            member = jnp.ones((1, n), x.dtype)
        else:
            member = jax.nn.one_hot(population, self.populations, dtype=x.dtype).T
        if mask is not None:
            member = member * mask[None, :].astype(x.dtype)
            # An absent element may hold anything, a NaN included, and 0 * NaN is not 0.
            x = jnp.where(mask[:, None], x, jnp.zeros_like(x))
        pooled = member @ jax.vmap(lambda e: self.phi(0.0, e))(x)
        if self.pool == "mean":
            pooled = pooled / jnp.maximum(jnp.sum(member, axis=1), 1)[:, None]
        codes = jax.vmap(lambda h: self.rho(0.0, h))(pooled)
        return codes[0] if population is None else codes
