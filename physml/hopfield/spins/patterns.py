r"""Patterns of binary spins and the couplings that store them: Hebb's rule, the pseudo-inverse, examples, dilution.

Patterns are (K, N) arrays with entries of either sign, 0 where a diluted pattern is blank; spins are $\pm1$.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from physml.core import check
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Key, Scalar

Patterns = Float[Array, "K N"]


def check_patterns(patterns: Array) -> None:
    """A `ValueError` unless `patterns` is (K, N), K and N at least 1, and finite where its values are known."""
    if patterns.ndim != 2 or 0 in patterns.shape:
        raise ValueError(f"patterns must have shape (K, N) with K, N >= 1, got {patterns.shape}")
    entries = check.known(patterns)
    if entries is not None and not np.isfinite(entries).all():
        raise ValueError("patterns contain NaN or infinite entries: clean them before they are stored")


def random_patterns(k: int, n: int, *, key: Key) -> Patterns:
    r"""K independent patterns of N fair signs."""
    check_key(key)
    k, n = check.count(k, "k"), check.count(n, "n")
    return jax.random.rademacher(key, (k, n), jnp.result_type(float))


def hebbian(patterns: Patterns) -> Float[Array, "N N"]:
    r"""$J_{ij} = \frac1N\sum_\mu \xi_i^\mu\xi_j^\mu$ off the diagonal, 0 on it."""
    check_patterns(patterns)
    return _hebbian(patterns)


@program
def _hebbian(patterns):
    couplings = patterns.T @ patterns / patterns.shape[1]
    return couplings - jnp.diag(jnp.diag(couplings))


def pseudo_inverse(patterns: Patterns, *, diagonal: bool = False) -> Float[Array, "N N"]:
    r"""$J = \frac1N\xi^\top C^{-1}\xi$ with $C = \frac1N\xi\xi^\top$: the projector on the patterns, J xi = xi exactly.

    `diagonal` False sets $J_{ii} = 0$, after which every pattern is still a fixed point at T = 0, with fields $1 -
    J_{ii}$, for K < N. Singular for dependent patterns: entries are then not finite.
    """
    check_patterns(patterns)
    k, n = patterns.shape
    if k > n:
        raise ValueError(f"a projector needs at most N = {n} patterns, got {k}")
    return _pseudo_inverse(patterns, diagonal)


@program
def _pseudo_inverse(patterns, diagonal):
    couplings = patterns.T @ jnp.linalg.solve(patterns @ patterns.T, patterns)
    return couplings if diagonal else couplings - jnp.diag(jnp.diag(couplings))


def examples(patterns: Patterns, count: int, *, quality: Scalar, key: Key) -> Float[Array, "M K N"]:
    r"""`count` noisy copies $\eta = \xi\chi$ with independent signs $\langle\chi\rangle$ = `quality` in (0, 1]."""
    check_patterns(patterns)
    check_key(key)
    count = check.count(count, "count")
    check.number(quality, "quality", above=0, most=1)
    keep = jax.random.uniform(key, (count, *patterns.shape), patterns.dtype) < (1 + quality) / 2
    return jnp.where(keep, patterns, -patterns)


def dilute(patterns: Patterns, blank: Scalar, *, key: Key) -> Patterns:
    r"""Every entry is 0 with probability `blank`, d in [0, 1)."""
    check_patterns(patterns)
    check_key(key)
    check.number(blank, "blank", least=0, below=1)
    return jnp.where(jax.random.uniform(key, patterns.shape, patterns.dtype) < blank, 0.0, patterns)


def overlaps(patterns: Patterns, spins: Float[Array, "*R N"]) -> Float[Array, "*R K"]:
    r"""$m_\mu = \frac1N\sum_i\xi_i^\mu s_i$ of spins (..., N), for every pattern: (..., K)."""
    if spins.shape[-1:] != patterns.shape[1:]:
        raise ValueError(f"spins {spins.shape}: expected (..., {patterns.shape[1]}), one for each entry of a pattern")
    return spins @ patterns.T / patterns.shape[1]
