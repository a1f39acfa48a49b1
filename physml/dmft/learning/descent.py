r"""Order parameters of gradient descent on many samples in many dimensions, and their measurement in a network.

Responses are measured as they are defined, by a perturbation: a random sign $\zeta$ on every entry that could be
perturbed, one directional derivative of the whole run, and the product with $\zeta$, in which other entries' signs
average out.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from physml.core.types import Key, Scalar


class Descent(eqx.Module):
    r"""Order parameters of descent at the times `t` (n,), N hidden units.

    `C` (n, N, n, N): $W_k W_s^\top$. `m` (n, N): $W_k\beta_*$. `R` (n, N, n, N): response of $W_k$ to a force $\eta
    b_s$ in step s, zero for $s \ge k$. `Gamma` (n, N, n, N): $\langle\partial g_k/\partial u_s\rangle$, with its
    equal-time part; `Gamma_star` (n, N): $\langle dg_k/dh_*\rangle$ at fixed u. `G` (n, N, n, N): $\langle
    g_kg_s^\top\rangle$. `train`, `test` (n,): mean squares $\langle(f - y)^2\rangle$.
    """

    t: Array
    C: Array
    R: Array
    m: Array
    Gamma: Array
    Gamma_star: Array
    G: Array
    train: Array
    test: Array

    def at(self, t: Scalar) -> tuple[Array, Array]:
        """`train` and `test` at time t, interpolated."""
        t = jnp.asarray(t, self.t.dtype)
        return jnp.interp(t, self.t, self.train), jnp.interp(t, self.t, self.test)


def propagator(steps: int, step_size: Scalar, decay: Scalar, dtype: DTypeLike) -> tuple[Array, Array]:
    r"""$S_{ks} = \eta a^{k-1-s}$ for s < k, (n, n), and $a^k$ (n,), with $a = 1 - \lambda\eta$: weights without
    samples."""
    k = jnp.arange(steps + 1, dtype=jnp.int32)
    a = jnp.asarray(1 - decay * step_size, dtype)
    late = k[:, None] - 1 - k[None, :]
    S = jnp.where(late >= 0, step_size * a ** jnp.maximum(late, 0).astype(dtype), 0.0)
    return S, a ** k.astype(dtype)


def simulate(
    force: Callable[[Array, Array], Array],
    error: Callable[[Array, Array], Array],
    test: Callable[[Array, Array, Key], Array],
    m0: Array,
    *,
    dim: int,
    samples: int,
    steps: int,
    step_size: Scalar,
    decay: Scalar,
    key: Key,
) -> Descent:
    r"""Train one network of N hidden units on `samples` points of `dim` coordinates, and measure.

    **Arguments.** `force(h, h*)`: g (N,) of one sample; `error(h, h*)`: f - y; `test(gram, m, key)`: the test loss of
    weights with these overlaps. `m0` (N,): the first overlaps, exactly (chance overlaps are taken off). **Cost.**
    Four times that of training; memory $n(3PN + 3ND)$.
    """
    units, n, dtype = len(m0), steps + 1, m0.dtype
    x_key, w_key, zeta_key, v_key, star_key, test_key = jax.random.split(key, 6)
    # The law of x is isotropic: the teacher is the first axis.
    x = jax.random.normal(x_key, (samples, dim), dtype)
    hs = x[:, 0]
    w = (jax.random.normal(w_key, (units, dim), dtype) / dim**0.5).at[:, 0].set(m0)
    zeta = jax.random.rademacher(zeta_key, (n, units, dim), dtype)
    v = jax.random.rademacher(v_key, (n, samples, units), dtype)
    star = jax.random.rademacher(star_key, (samples,), dtype)
    batch = jax.vmap(force)
    keep = 1 - decay * step_size

    def step(w, push, field, hs):
        h = x @ w.T + field
        g = batch(h, hs)
        return keep * w - step_size / dim * g.T @ x + step_size * push, g

    def advance(carry, signs):
        w, dw = carry
        zeta, v = signs
        zero = (jnp.zeros_like(w), jnp.zeros_like(v))
        nudges = [(dw[0], zeta, zero[1], 0 * hs), (dw[1], zero[0], v, 0 * hs), (dw[2], *zero, star)]
        nudges = jax.tree.map(lambda *a: jnp.stack(a), *nudges)
        (new, g), push = jax.linearize(step, w, *zero, hs)
        dnew, dg = jax.vmap(push)(*nudges)
        h = x @ w.T
        J = jax.vmap(jax.jacfwd(force))(h, hs)
        late = dg[1] - jnp.einsum("pij,pj->pi", J, v)
        out = {
            "w": w,
            "dw": dw[0],
            "g": g,
            "late": late,
            "now": jnp.mean(J, 0),
            "star": jnp.mean(dg[2] * star[:, None], 0),
        }
        return (new, dnew), out | {"train": jnp.mean(jax.vmap(error)(h, hs) ** 2)}

    _, run = lax.scan(advance, (w, jnp.zeros((3, *w.shape), dtype)), (zeta, v))
    S, _ = propagator(steps, step_size, decay, dtype)
    eye = jnp.eye(units, dtype=dtype)
    # What an undisturbed weight answers is known: only the rest is measured.
    rest = run["dw"] - jnp.einsum("ks,sid->kid", S, zeta)
    R = S[:, None, :, None] * eye[None, :, None, :] + jnp.einsum("kid,sjd->kisj", rest, zeta) / dim
    k = jnp.arange(n, dtype=jnp.int32)
    past = (k[:, None] > k[None, :])[:, None, :, None]
    same = (k[:, None] == k[None, :])[:, None, :, None]
    Gamma = jnp.where(past, jnp.einsum("kpi,spj->kisj", run["late"], v) / samples, 0.0)
    C = jnp.einsum("kid,sjd->kisj", run["w"], run["w"])
    m = run["w"][:, :, 0]
    gram = jnp.einsum("kid,kjd->kij", run["w"], run["w"])
    return Descent(
        t=jnp.asarray(step_size, dtype) * k.astype(dtype),
        C=C,
        R=jnp.where(past, R, 0.0) / step_size,
        m=m,
        Gamma=Gamma + jnp.where(same, run["now"][:, :, None, :], 0.0),
        Gamma_star=run["star"],
        G=jnp.einsum("kpi,spj->kisj", run["g"], run["g"]) / samples,
        train=run["train"],
        test=jax.vmap(test, (0, 0, None))(gram, m, test_key),
    )
