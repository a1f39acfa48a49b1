r"""What is integrated: a drift, a noise amplitude and the calculus that gives their product a meaning."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from physml.core import check

Calculus = Literal["ito", "stratonovich"]


class Matrix(eqx.Module):
    r"""Correlated noise $G(t, x)\,dW$ with $m$ independent Brownian motions.

    `value` is a pytree like the state with one more axis at the end, leaves (*event, m), or a function
    (t, x, args) of that value: `Dynamics(drift, noise=Matrix(lambda t, x, args: G))`.
    """

    value: PyTree

    def __call__(self, t: Any, x: PyTree, args: Any) -> "Matrix":
        return Matrix(self.value(t, x, args) if callable(self.value) else self.value)


class Dynamics(eqx.Module):
    r"""The SDE $dx = f(t, x)\,dt + g(t, x)\,dW$, or without noise the ODE $\dot x = f(t, x)$.

    **Arguments.** `drift(t, x, args)`: a field on one sample; x is any pytree of floating arrays and the
    drift has its structure. `noise(t, x, args)`, or None for an ODE: a number (every entry of x has a
    Brownian motion of its own, all with this amplitude), a pytree like x (diagonal noise: entry i depends on
    entry i of x alone), or a `Matrix`. `calculus`: the meaning of the product for a g that depends on x.

    **See** `in_calculus`, which adds the drift that turns one calculus into the other, and `integrate`.
    """

    drift: Callable[..., PyTree]
    noise: Callable[..., Any] | None = None
    calculus: Calculus = eqx.field(static=True, default="ito", kw_only=True)

    def __check_init__(self):
        if self.calculus not in ("ito", "stratonovich"):
            raise ValueError(f"calculus must be 'ito' or 'stratonovich', got {self.calculus!r}")
        if self.noise is not None and not callable(self.noise):
            raise ValueError(
                f"noise must be a function (t, x, args) or a Matrix, got {type(self.noise).__name__}; "
                "for a constant write noise=lambda t, x, args: value"
            )
        for name, function in (("drift", self.drift), ("noise", self.noise)):
            if function is not None:
                check.function(function, name, "(t, x, args)")

    def in_calculus(self, calculus: Calculus) -> "Dynamics":
        r"""The same process written in the other calculus.

        $$f_{\rm Strat} = f_{\rm Ito} - \tfrac12 \sum_k (G_k \cdot \nabla) G_k,$$

        $G_k$ being the amplitude of the k-th Brownian motion; $\tfrac12 g_i \partial_i g_i$ for diagonal
        noise. By forward differentiation: one pass for diagonal noise, d for scalar and m for matrix noise;
        nothing is left of it after compilation when g does not depend on x.
        """
        if self.noise is None or calculus == self.calculus:
            return Dynamics(self.drift, self.noise, calculus=calculus)
        sign = -1.0 if calculus == "stratonovich" else 1.0
        return Dynamics(_Corrected(self.drift, self.noise, sign), self.noise, calculus=calculus)


class _Corrected(eqx.Module):
    """A drift with sign/2 times the sum over k of (G_k . grad) G_k added to it."""

    drift: Callable[..., PyTree]
    noise: Callable[..., Any]
    sign: float = eqx.field(static=True)

    def __call__(self, t, x, args):
        shift = spurious_drift(lambda x: self.noise(t, x, args), x)
        return jax.tree.map(lambda f, s: f + 0.5 * self.sign * s, self.drift(t, x, args), shift)


def spurious_drift(noise: Callable[[PyTree], Any], x: PyTree) -> PyTree:
    r"""$\sum_k (G_k \cdot \nabla) G_k$ at x, leaves like x."""
    value = noise(x)
    kind = noise_kind(value, x)
    if kind == "matrix":

        def column(k):
            direction = jax.tree.map(lambda leaf: leaf[..., k], value.value)
            slope = jax.jvp(lambda x: noise(x).value, (x,), (direction,))[1]
            return jax.tree.map(lambda leaf: leaf[..., k], slope)

        count = jax.tree.leaves(value.value)[0].shape[-1]
        return jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(column)(jnp.arange(count)))
    if kind == "scalar":
        # One number g(x) times the identity: g grad g.
        slope = jax.grad(lambda x: _one_number(noise(x)).astype(float))(x)
        return jax.tree.map(lambda leaf: _one_number(value).astype(leaf.dtype) * leaf, slope)
    return jax.jvp(lambda x: like(noise(x), x), (x,), (like(value, x),))[1]


def noise_kind(value: Any, x: PyTree) -> Literal["scalar", "diagonal", "matrix"]:
    """How the noise amplitude acts on the state x; a `ValueError` when its shape fits neither way."""
    describe = lambda tree: str(jax.tree.map(lambda leaf: jnp.shape(leaf), tree))
    if isinstance(value, Matrix):
        same = jax.tree.structure(value.value) == jax.tree.structure(x)
        pairs = zip(jax.tree.leaves(value.value), jax.tree.leaves(x), strict=False)
        if not same or any(jnp.shape(g)[:-1] != jnp.shape(leaf) or jnp.ndim(g) == 0 for g, leaf in pairs):
            raise ValueError(
                f"Matrix noise needs leaves (*event, m); got {describe(value.value)} for a state {describe(x)}"
            )
        if len({jnp.shape(g)[-1] for g in jax.tree.leaves(value.value)}) != 1:
            raise ValueError(f"all leaves of a Matrix share the last axis m; got {describe(value.value)}")
        return "matrix"
    if jax.tree.structure(value) == jax.tree.structure(x):
        pairs = list(zip(jax.tree.leaves(value), jax.tree.leaves(x), strict=True))
        if all(jnp.shape(g) == jnp.shape(leaf) for g, leaf in pairs):
            return "diagonal"
    if len(jax.tree.leaves(value)) == 1 and jnp.shape(jax.tree.leaves(value)[0]) == ():
        return "scalar"
    raise ValueError(
        f"noise must return a number, a pytree like the state {describe(x)}, or a Matrix; got {describe(value)}"
    )


def _one_number(value):
    return jnp.asarray(jax.tree.leaves(value)[0])


def like(value: Any, x: PyTree) -> PyTree:
    """A scalar or diagonal amplitude as a pytree like x, in its dtypes."""
    if noise_kind(value, x) == "scalar":
        return jax.tree.map(lambda leaf: jnp.broadcast_to(_one_number(value).astype(leaf.dtype), leaf.shape), x)
    return jax.tree.map(lambda g, leaf: jnp.asarray(g, leaf.dtype), value, x)


def apply_noise(value: Any, dw: PyTree, x: PyTree) -> PyTree:
    """g dW as a pytree like x, for any kind of amplitude."""
    if isinstance(value, Matrix):
        return jax.tree.map(
            lambda g, leaf: jnp.tensordot(g.astype(leaf.dtype), dw.astype(leaf.dtype), 1), value.value, x
        )
    if noise_kind(value, x) == "scalar":
        return jax.tree.map(lambda w: _one_number(value).astype(w.dtype) * w, dw)
    return jax.tree.map(lambda g, w: jnp.asarray(g, w.dtype) * w, value, dw)


def brownian_like(value: Any, x: PyTree) -> PyTree:
    """Shapes and dtypes of dW for the amplitude `value`: like x, or m numbers for a `Matrix`."""
    if noise_kind(value, x) == "matrix":
        leaf = jax.tree.leaves(value.value)[0]
        return jax.ShapeDtypeStruct(leaf.shape[-1:], jax.tree.leaves(x)[0].dtype)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
