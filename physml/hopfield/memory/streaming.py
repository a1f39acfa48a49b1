r"""An association with memories in chunks: one chunk of weights at a time, exact to rounding, any number of memories.

With the weights $p_i = \pi(z_i, c)$ of logits $z_i = q\cdot x_i$ and $o = \sum_i p_i v_i$, two sets of memories merge
as

$$o = f_1 o_1 + f_2 o_2, \qquad (c, f_1, f_2) = \text{merge}(c_1, c_2)$$

(for softmax $c = \ln(e^{c_1} + e^{c_2})$, $f_k = e^{c_k - c}$: the running log-sum-exp). The derivative keeps no
weights either, since c is fixed by $h_0(c) + \sum_i h(z_i, c) = 1$:

$$\dot o = \sum_i (\partial_z\pi\,\dot z_i + \partial_c\pi\,\dot c)\,v_i + p_i\dot v_i, \qquad
  \dot c = -\frac{\sum_i \partial_z h\,\dot z_i}{h_0' + \sum_i \partial_c h}, \qquad \dot\Phi = \sum_i p_i\dot z_i$$

is one more pass that is linear in the tangents. Its transpose recomputes the weights chunk by chunk, so reverse mode
keeps no more than the result.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.hopfield.memory.separation import AbstractStreamed, shown


def associate(
    sep: AbstractStreamed, chunk: int, q: Array, keys: Array, values: Array, where: Array | None
) -> tuple[Array, Array]:
    """o = sum_i p_i v_i (..., v) and Phi (...) for scaled states q (..., d), keys (N, d), values (N, v).

    `where` (N,) or (..., N). **Cost.** A chunk of logits at a time; three passes with a derivative in reverse.
    """
    return _associate(sep, chunk, q, keys, values, where)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _associate(sep, chunk, q, keys, values, where):
    return _forward(sep, chunk, q, keys, values, where)[:2]


@_associate.defjvp
def _(sep, chunk, primals, tangents):
    q, keys, values, where = primals
    o, potential, c = _forward(sep, chunk, q, keys, values, where)
    moves = [jnp.zeros_like(x) if _symbolic(t) else t for x, t in zip((q, keys, values), tangents[:3], strict=True)]
    return (o, potential), _tangent(sep, chunk, c, (q, keys, values, where), tuple(moves))


def _symbolic(t):
    return t is None or t.dtype == jax.dtypes.float0


def _forward(sep, chunk, q, keys, values, where):
    """o, Phi and the normaliser."""
    rows = q.shape[:-1]
    logits = lambda part: _logits(q, part[0], part[2])
    if sep.merges:

        def absorb(carry, part):
            o, c = carry
            w, r, c2 = sep.split(logits(part))
            c, f1, f2 = sep.merge(c, c2)
            return o * f1[..., None] + (w @ part[1]) * (r * f2)[..., None], c

        start = jnp.zeros((*rows, values.shape[-1]), values.dtype), jnp.full(rows, sep.empty(), q.dtype)
        o, c = _over_chunks(absorb, start, (keys, values, where), chunk)
        return o, sep.given_potential(c, jnp.zeros((), c.dtype)), c

    zero = jnp.zeros(rows, q.dtype)
    add = lambda f: lambda total, part: total + jnp.sum(f(logits(part)), -1)
    total = lambda f: _over_chunks(add(f), zero, (keys, values, where), chunk)
    higher = lambda top, part: jnp.maximum(top, jnp.max(logits(part), -1))
    peak = _over_chunks(higher, jnp.full(rows, -jnp.inf, q.dtype), (keys, values, where), chunk)
    none = jnp.isneginf(peak)
    c = sep.search(jnp.where(none, 0.0, peak), total)

    def gather(carry, part):
        o, squares = carry
        p = sep.given(logits(part), c[..., None])
        return o + p @ part[1], squares + jnp.sum(p * p, -1) / 2

    start = jnp.zeros((*rows, values.shape[-1]), values.dtype), zero
    o, squares = _over_chunks(gather, start, (keys, values, where), chunk)
    return o, sep.given_potential(jnp.where(none, -jnp.inf, c), squares), c


def _tangent(sep, chunk, c, primals, moves):
    """The tangents of o and Phi: sums over memories, with weights recomputed in each chunk."""
    (q, keys, values, where), (dq, dkeys, dvalues) = primals, moves
    rows, width = q.shape[:-1], values.shape[-1]
    zero, flat = jnp.zeros(rows, q.dtype), jnp.zeros((*rows, width), values.dtype)
    c1, one = c[..., None], jnp.ones((), q.dtype)

    @jax.checkpoint
    def body(carry, part):
        do, leak, top, bottom, dphi = carry
        k, v, visible, dk, dv = part
        z = _logits(q, k, visible)
        dz = dq @ k.T + q @ dk.T
        p = sep.given(z, c1)
        slope = lambda f, argument: jax.jvp(f, (argument,), (jnp.broadcast_to(one, argument.shape),))[1]
        p_z, h_z = (slope(lambda x, f=f: f(x, c1), z) for f in (sep.given, sep.share))
        wide = jnp.broadcast_to(c1, z.shape)
        p_c, h_c = (slope(lambda x, f=f: f(z, x), wide) for f in (sep.given, sep.share))
        do = do + (p_z * dz) @ v + p @ dv
        return (
            do,
            leak + p_c @ v,
            top + jnp.sum(h_z * dz, -1),
            bottom + jnp.sum(h_c, -1),
            dphi + jnp.sum(p * dz, -1),
        )

    parts = (keys, values, where, dkeys, dvalues)
    do, leak, top, bottom, dphi = _over_chunks(body, (flat, flat, zero, zero, zero), parts, chunk)
    bottom = bottom + jax.jvp(sep.null, (c,), (jnp.ones_like(c),))[1]
    dc = -top / jnp.where(bottom == 0, 1.0, bottom)
    return do + leak * dc[..., None], dphi


def _logits(q, keys, where):
    return shown(q @ keys.T, where, -jnp.inf)


def _over_chunks(body, carry, parts, chunk):
    """Fold `body` over rows of (keys, values, where, ...), `chunk` at a time; what is left over goes last."""
    count = len(parts[0])
    whole, rest = divmod(count, chunk)
    where = parts[2]
    columns = where is not None and where.ndim > 1

    def piece(x, is_mask, start, stop):
        if x is None:
            return None
        return x[..., start:stop] if is_mask else x[start:stop]

    def stack(x, is_mask):
        x = piece(x, is_mask, 0, whole * chunk)
        if x is None:
            return None
        if is_mask:
            return jnp.moveaxis(x.reshape(*x.shape[:-1], whole, chunk), -2, 0)
        return x.reshape(whole, chunk, *x.shape[1:])

    masks = [i == 2 and columns for i in range(len(parts))]
    if whole:
        stacked = tuple(stack(x, m) for x, m in zip(parts, masks, strict=True))
        carry, _ = lax.scan(lambda carry, part: (body(carry, part), None), carry, stacked)
    if rest:
        carry = body(carry, tuple(piece(x, m, whole * chunk, count) for x, m in zip(parts, masks, strict=True)))
    return carry
