r"""One step instead of a hundred: the average velocity of a flow, trained without simulating it.

The flow $\dot x = v(t, x)$ carries $x_t$ to $x_r$, r >= t. Its average velocity $u(x_t, t, r)$ on the way,

$$(r - t)\, u(x_t, t, r) = \int_t^r v(s, x_s)\, ds = x_r - x_t,$$

samples in one step, $x_1 = x_0 + u(x_0, 0, 1)$. Differentiate along the flow with r fixed: the left side gives
$-u + (r - t)\,du/dt$, the right side $-v(t, x_t)$, so

$$u = v + (r - t)\,\frac{du}{dt}, \qquad \frac{du}{dt} = (v \cdot \nabla_x) u + \partial_t u .$$

This is the MeanFlow identity (the paper's u = v - (t - r) du/dt, where t = 0 is data and r <= t). It needs v only
linearly, so the velocity of a single record of the path may stand for v: its conditional mean is v.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.program import program
from physml.core.types import Field, Key, Scalar
from physml.matching._checks import check_batch, shaped
from physml.matching.paths import times as laws
from physml.matching.paths.path import Path

# Additive steps that fill the unit square evenly: 1/g and 1/g^2 with g^3 = g + 1 (Roberts, 2018).
_EVEN = (0.7548776662466927, 0.5698402909980532)


def mean_flow_loss(
    field: Field,
    path: Path,
    x0: Array,
    x1: Array,
    *,
    key: Key,
    args: PyTree = None,
    modulation: Scalar = 0.0,
    adaptive_power: Scalar = 0.0,
    adaptive_floor: Scalar = 1e-3,
    flow_ratio: float = 0.5,
    logit_normal: tuple[float, float] | None = None,
    velocity: Field | None = None,
) -> Array:
    r"""Regress an average velocity on its own identity: the batch mean of $w\,|e|^2 / d$ with

    $$e = u(x_t, t, r) - \dot x_t - (r - t)\, \mathrm{SG}_\lambda\Bigl[\frac{du}{dt}\Bigr], \qquad
    \mathrm{SG}_\lambda[z] = \lambda z + (1 - \lambda)\,\mathrm{stop\_gradient}(z), \qquad
    w = \mathrm{stop\_gradient}\,(|e|^2/d + c)^{-p}$$

    and $du/dt$ one Jacobian-vector product along $(\dot x_t, 1, 0)$ in (x, t, r). At r = t it is flow matching.

    **Arguments.** `field`: u as f((t, r), x, args) on one sample, its first argument a vector of two times, such as
    `nn.MLP(d, times=2)`. `x0`, `x1` (n, ...): source and data. `args`: None or a pytree with leading axis n.
    `modulation`: lambda in [0, 1], a number or traced (a warm-up); 0 is MeanFlow. `adaptive_power`,
    `adaptive_floor`: p >= 0 and c > 0. `flow_ratio`: the share of pairs with r = t. `logit_normal`: (mean, std) of
    the logit of the two times, which are uniform when it is None. `velocity`: v(t, x, args) in place of the velocity
    of each record: the exact one, or a teacher's (distillation).

    **What is exact.** With lambda = p = 0 the gradient vanishes on average at the true u, since e then has conditional
    mean zero and multiplies the derivative of u alone. Otherwise the noise $\dot x_t - v$ of single records enters
    twice: lambda > 0 adds a pull that shrinks $|(I + (r - t)\nabla u)(\dot x_t - v)|^2$, p > 0 one from the mean of the
    records towards their mode. Both vanish with `velocity` (or a coupling that leaves $\dot x_t$ no freedom).

    **Returns** a scalar in the dtype of x1. **Cost.** One forward-mode pass beside the gradient: about 4/3 of `match`
    at lambda = 0, twice that above. **Errors** `ValueError` for numbers out of range, batches that do not match, and a
    field whose output is not shaped like x.
    **See** Geng et al., Mean flows for one-step generative modeling (2025), eqs. 6, 9-11 and 22; You et al., Modular
    MeanFlow (2025), for lambda.
    """
    check.within(modulation, "modulation", least=0, most=1)
    check.within(flow_ratio, "flow_ratio", least=0, most=1)
    check.within(adaptive_power, "adaptive_power", least=0)
    check.within(adaptive_floor, "adaptive_floor", above=0)
    if logit_normal is not None:
        check.number(logit_normal[1], "std", above=0)
    x0, x1 = jnp.asarray(x0), jnp.asarray(x1)
    check_batch(x0, x1, args)
    # What is switched off by a plain zero is not part of the program.
    plain = lambda value: isinstance(value, int | float) and value == 0
    pull = None if plain(modulation) else modulation
    power = None if plain(adaptive_power) else (adaptive_floor, adaptive_power)
    return _mean_flow(field, path, x0, x1, key, args, pull, power, flow_ratio, logit_normal, velocity)


@program
def _mean_flow(field, path, x0, x1, key, args, modulation, adaptive, flow_ratio, logit_normal, velocity):
    n, dtype = len(x1), x1.dtype
    time_key, z_key = jax.random.split(key)
    times = _times(time_key, n, flow_ratio, logit_normal, dtype)
    times = path.cut + (1.0 - 2.0 * path.cut) * times
    z = jax.random.normal(z_key, x1.shape, dtype)

    def one(times, x0, x1, z, args):
        t, r = times[0], times[1]
        record = path.at(t, x0, x1, z)
        v = record.velocity if velocity is None else shaped("velocity", velocity(t, record.x, args), x1)
        ones = jnp.array([1.0, 0.0], dtype)
        u, du = jax.jvp(lambda times, x: shaped("field", field(times, x, args), x1), (times, record.x), (ones, v))
        still = jax.lax.stop_gradient(du)
        if modulation is not None:
            # Equal to du in value; lambda of its gradient.
            still = still + jnp.asarray(modulation, dtype) * (du - still)
        return jnp.mean((u - v - (r - t) * still) ** 2)

    losses = jax.vmap(one)(times, x0, x1, z, args)
    if adaptive is None:
        return jnp.mean(losses)
    floor, power = (jnp.asarray(a, dtype) for a in adaptive)
    return jnp.mean(jax.lax.stop_gradient((losses + floor) ** -power) * losses)


def one_step(field: Field, x0: Array, *, args: PyTree = None) -> Array:
    r"""$x_1 = x_0 + u(x_0, 0, 1)$: `sample_mean_flow` with one step."""
    return sample_mean_flow(field, x0, steps=1, args=args)


def sample_mean_flow(field: Field, x0: Array, *, steps: int = 1, args: PyTree = None) -> Array:
    r"""Carry one source sample to t = 1 by $x_r = x_t + (r - t)\, u(x_t, t, r)$ over equal intervals.

    **Arguments.** `field`: the average velocity f((t, r), x, args). `x0`: the state at t = 0, `path.start(x0)` of a
    source sample. `steps`: number of intervals, one evaluation each; every number is exact for the exact u.
    **Returns** the state at t = 1. Batches by `jax.vmap`; differentiable. **Errors** `ValueError` for `steps` below 1,
    an x0 that is not floating point and a field whose output is not shaped like x.
    """
    steps = check.count(steps, "steps")
    x0 = jnp.asarray(x0)
    if not jnp.issubdtype(x0.dtype, jnp.floating):
        raise ValueError(f"x0 must be floating point, got {x0.dtype}")
    return _sample_mean_flow(field, x0, steps, args)


@program
def _sample_mean_flow(field, x0, steps, args):
    grid = jnp.linspace(0.0, 1.0, steps + 1, dtype=x0.dtype)

    def step(x, times):
        return x + (times[1] - times[0]) * shaped("field", field(times, x, args), x), None

    return jax.lax.scan(step, x0, jnp.stack([grid[:-1], grid[1:]], axis=1))[0]


def instantaneous(field: Field) -> Field:
    r"""The velocity $v(t, x) = u(x, t, t)$ inside an average velocity, a field for `sample` and `log_prob`."""
    return _Instantaneous(field)


class _Instantaneous(eqx.Module):
    field: Field

    def __call__(self, t: Any, x: Array, args: PyTree = None) -> PyTree:
        return self.field(jnp.broadcast_to(jnp.asarray(t, x.dtype), (2,)), x, args)


def _times(key, n, flow_ratio, logit_normal, dtype):
    """Pairs t <= r (n, 2), each uniform (or logit-normal) before sorting, evenly spread over the batch."""
    shifts = jax.random.uniform(key, (3,), dtype)
    even = jnp.asarray(np.arange(n)[:, None] * np.array(_EVEN)[None, :] % 1.0, dtype)
    pair = (shifts[None, :2] + even) % 1.0
    # A block of rows around the circle: exactly its share, and every row as often as every other.
    flow = (shifts[2] + jnp.arange(n, dtype=dtype) / n) % 1.0 < flow_ratio
    pair = jnp.where(flow[:, None], pair[:, :1], jnp.sort(pair, axis=1))
    if logit_normal is None:
        return pair
    return laws.logit_normal(*logit_normal)(laws.inside(pair))
