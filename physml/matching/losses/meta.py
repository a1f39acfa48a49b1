r"""Meta flow matching: one field for many populations, told which by the population itself.

A population's flow may depend on the population, $\dot x = v(t, x, p_0)$: cells that signal, particles that interact.
The field gets a code of the source population, $v_\theta(t, x, \varphi(\{x_0\}))$ with $\varphi$ blind to order, and
both train on

$$L = E_{i}\, E_{x_0, x_1 \sim \pi_i}\, E_t\, |v_\theta(t, x_t, \varphi(P_i)) - \dot x_t|^2 ,$$

i a population, $P_i$ a sample of its source. A new population needs a code and no training.

**See** Atanackovic, Zhang, Amos, Blanchette, Lee, Bengio, Tong and Neklyudov, Meta flow matching (2025), eq. 17.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from physml.core import check
from physml.core.program import program
from physml.core.types import Field, Key
from physml.integrate import AbstractMethod, Diffrax
from physml.matching.losses.match import match
from physml.matching.paths.path import Path
from physml.matching.sampling.flow import sample


class MetaField(eqx.Module):
    """A field with its encoder: `field(t, x, code)`, `encoder(points (n, d)) -> code`; both train together."""

    field: Field
    encoder: Callable

    def transport(
        self, population: Array, *, steps: int, method: AbstractMethod | Diffrax | None = None, code: Any = None
    ) -> Array:
        """A source population (n, d) carried to t = 1 by its own flow; `code` in place of its own, if given."""
        code = self.encoder(population) if code is None else code
        return jax.vmap(lambda x: sample(self.field, x, steps=steps, args=code, method=method))(population)


def match_populations(
    model: MetaField,
    path: Path,
    sources: Array,
    targets: Array,
    *,
    key: Key,
    coupling: Callable[..., Any] | None = None,
    batch_size: int | None = None,
) -> Array:
    r"""The mean over populations of `match`, each given the code of its own source.

    **Arguments.** `sources`, `targets` (p, n, d): p populations, rows paired unless `coupling` re-pairs them. The
    code is taken from all n points; `batch_size` rows of each, without replacement, enter the regression (all by
    default).
    **Returns** a scalar. **Errors** `ValueError` for populations that do not match.
    """
    if sources.shape != targets.shape or sources.ndim < 3:
        raise ValueError(
            f"sources and targets must be (populations, n, ...) alike; got {sources.shape}, {targets.shape}"
        )
    n = sources.shape[1]
    size = n if batch_size is None else batch_size
    size = check.count(size, "batch_size", most=n)
    return _match_populations(model, path, sources, targets, key, coupling, size)


@program
def _match_populations(model, path, sources, targets, key, coupling, size):
    n = sources.shape[1]

    def one(source, target, key):
        rows_key, match_key = jax.random.split(key)
        code = model.encoder(source)
        if size < n:
            rows = jax.random.permutation(rows_key, n)[:size]
            source, target = source[rows], target[rows]
        field = lambda t, x, args: model.field(t, x, code)
        return match(field, path, source, target, key=match_key, coupling=coupling)

    return jnp.mean(jax.vmap(one)(sources, targets, jax.random.split(key, len(sources))))
