"""One loss for every path and every prediction target."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Field, Key
from physml.matching._checks import check_batch, shaped
from physml.matching.couplings.couple import check_coupling, couple
from physml.matching.paths.path import Path
from physml.matching.paths.times import draw_times


def match(
    field: Field,
    path: Path,
    x0: Array,
    x1: Array,
    *,
    key: Key,
    args: PyTree = None,
    target: str = "velocity",
    coupling: Callable[..., Any] | None = None,
    weight: Callable[[Array], Array] | None = None,
    times: Callable[[Array], Array] | None = None,
) -> Array:
    r"""Regress a field on a path: the mean over a batch of $w(t)\, |f(t, x_t) - y_t|^2 / d$, t uniform on [0, 1].

    | target | y | the minimiser |
    |---|---|---|
    | velocity | $\dot\alpha x_0 + \dot\beta x_1 + \dot\gamma z$ | $E[\dot x_t \mid x_t]$ |
    | denoiser | $x_1$ | $E[x_1 \mid x_t]$ |
    | noise | $z$ ($x_0$ on a one-sided path) | $E[z \mid x_t]$ |
    | score | $-z/\gamma$, weighted by $\gamma^2$: $\lvert\gamma f + z\rvert^2$ | $\nabla \ln p_t$ |

    with $\alpha$ for $\gamma$ on one-sided paths, whose source is N(0, I).

    **Arguments.** `field`: f(t, x, args) on one sample. `x0`, `x1` (n, ...): source and data. `args`: None or a
    pytree with leading axis n, handed to the field sample by sample. `coupling`: re-pairs the batch, and may keep a
    part of it; `args` are the condition of x1 and move with it (see `couple`). `weight`: w(t), 1 by default.
    `times`: the law of t by its quantile function, u in (0, 1) to t, such as `logit_normal()` or `log_snr(path)`; the
    batch covers it evenly, and the cuts of the path truncate it. Uniform by default.

    **Returns** a scalar in the dtype of x1. Outside jit a field, weight or coupling that is a new function in each
    call compiles in each call: define it once, or make it a Module.
    **Errors** `ValueError` for batches that do not match, an unknown target and a field whose output is not shaped
    like x.
    **See** Lipman et al. (2022), eq. 14; Albergo et al. (2023), eqs. 2.13 and 2.16.
    """
    check_key(key)
    check.choice(target, "target", ("velocity", "score", "denoiser", "noise"))
    check.instance(path, "path", Path, "a Path, such as linear()")
    check.function(field, "field", "(t, x, args)")
    x0, x1 = jnp.asarray(x0), jnp.asarray(x1)
    check_batch(x0, x1, args)
    check_coupling(coupling)
    return _match(field, path, x0, x1, key, args, target, coupling, weight, times)


@program
def _match(field, path, x0, x1, key, args, target, coupling, weight, times):
    t_key, z_key, pair_key = jax.random.split(key, 3)
    if coupling is not None:
        x0, x1, args = couple(coupling, x0, x1, key=pair_key, args=args)
    n = len(x1)
    t = draw_times(path, n, times, key=t_key, dtype=x1.dtype)
    z = jax.random.normal(z_key, x1.shape, x1.dtype)

    def one(t, x0, x1, z, args):
        record = path.at(t, x0, x1, z)
        value = shaped("field", field(t, record.x, args), x1)
        if target == "velocity":
            error = value - record.velocity
        elif target == "denoiser":
            error = value - x1
        elif target == "noise":
            error = value - record.z
        else:
            (alpha, _, gamma), _ = path.coefficients(t)
            error = (alpha if path.one_sided else gamma) * value + record.z
        return jnp.mean(error**2)

    losses = jax.vmap(one)(t, x0, x1, z, args)
    weights = jnp.ones_like(losses) if weight is None else jax.vmap(weight)(t)
    if weights.shape != losses.shape:
        raise ValueError(f"weight(t) must be one number for each time, got shape {weights.shape[1:]}")
    return jnp.mean(weights * losses)
