"""Exact likelihoods by the instantaneous change of variables."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from physml.core.derivative import divergence
from physml.core.program import program
from physml.core.types import Field, Key
from physml.integrate import RK4, AbstractMethod, Diffrax, Dynamics, integrate
from physml.matching.sampling.flow import _grid


def log_prob(
    field: Field,
    x: Array,
    base_log_prob: Callable[[Array], Any],
    *,
    steps: int,
    args: PyTree = None,
    key: Key | None = None,
    method: AbstractMethod | Diffrax | None = None,
) -> Array:
    r"""Log-density at t = 1 of the flow of `field` whose density at t = 0 is `base_log_prob`:

    $$\ln p_1(x) = \ln p_0(x_0) - \int_0^1 \nabla\!\cdot v(t, x_t)\,dt,\qquad \dot x_t = v(t, x_t),\; x_1 = x,$$

    integrated from t = 1 back to 0 by fourth-order steps.

    **Arguments.** `x`: one sample (batches by vmap). `key`: None for the exact divergence (d tangents an evaluation);
    with a key one Rademacher probe per sample, unbiased (one tangent). `steps`: of `method`, by default RK4.
    **Returns** a scalar. **See** Chen et al., Neural ODEs (2018); Grathwohl et al., FFJORD (2018).
    """
    x = jnp.asarray(x)
    grid = _grid(steps, x)
    probe = None if key is None else jax.random.rademacher(key, x.shape, x.dtype)

    start, dynamics = (x, jnp.zeros((), x.dtype)), Dynamics(_Backwards(field, probe))
    path = integrate(dynamics, start, grid, args=args, method=method or RK4(), save_every=steps)
    return _at_source(base_log_prob, path.xs)


@program
def _at_source(base_log_prob, xs):
    x0, change = jax.tree.map(lambda leaf: leaf[-1], xs)
    base = base_log_prob(x0)
    if jnp.shape(base) != ():
        raise ValueError(f"base_log_prob must return a scalar for one sample, got shape {jnp.shape(base)}")
    return jnp.asarray(base, x0.dtype) + change


class _Backwards(eqx.Module):
    """The flow in reversed time, with the integral of its divergence. A module, so that a compiled program is found
    again at the next call."""

    field: Field
    probe: Array | None

    def __call__(self, s, state, args):
        x = state[0]
        value, div = divergence(lambda x: self.field(1.0 - s, x, args), x, self.probe)
        if value.shape != x.shape:
            raise ValueError(f"the field must return the shape of one sample, {x.shape}; got {value.shape}")
        return -value, -div
