r"""Learning in a deep linear residual network at infinite width: closed equations for its kernels over depth and time.

$$h^{l+1} = h^l + \frac{1}{\sqrt{Ln}} W_l h^l, \quad f = \frac{1}{\gamma n}\, v\cdot h^L, \quad
  \dot\theta = -\gamma^2 n\,\partial_\theta \tfrac12 (y - f)^2$$

on one sample with a frozen embedding $h^0 \sim N(0, 1)$. With $g^l = \gamma n\,\partial f/\partial h^l$, $\Delta = y -
f$ and times as indices, the fields of one neuron obey linear equations in Gaussian sources $u^l \sim N(0, \Phi^l)$,
$r^l \sim N(0, G^{l+1})$:

$$h^{l+1} = h^l + \tfrac{1}{\sqrt L}\bigl(u^l + A^l g^{l+1}\bigr) + \tfrac{\gamma}{L}\,[\Phi^l\Delta]_<\, g^{l+1}, \quad
  g^l = g^{l+1} + \tfrac{1}{\sqrt L}\bigl(r^l + B^l h^l\bigr) + \tfrac{\gamma}{L}\,[G^{l+1}\Delta]_<\, h^l,$$

$h^0 = \xi$, $g^L = v_0 + \gamma[\Delta]_< h^L$, where $[X\Delta]_<$ sums $dt\,X(t, s)\Delta(s)$ over s < t. They close
by $\Phi^l = \langle h^l h^l\rangle$, $G^l = \langle g^l g^l\rangle$, $A^l = \partial h^l/\partial r^l$, $B^l = \partial
g^{l+1}/\partial u^l$ and $f = \langle g^L h^L\rangle/\gamma$. At finite dt they are exact for gradient descent with
that step.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core.iterations import Damped
from physml.core.program import program
from physml.core.types import Key, Scalar
from physml.dmft.equations.solve import AbstractModel, SelfConsistent

SWEEPS = 3  # before the next time enters
LARGEST = 1e6  # kernels beyond are `diverged`


class ResidualKernels(eqx.Module):
    r"""`t` (T,), `loss` $\Delta^2/2$ and `error` $\Delta$ (T,), `Phi` $\Phi^l(t, s)$ and `G` $G^{l+1}(t, s)$ for
    l = 0, ..., L - 1 (L, T, T), and the responses `A`, `B` (L, T, T), zero where a finite network was measured."""

    t: Array
    loss: Array
    error: Array
    Phi: Array
    G: Array
    A: Array
    B: Array


class LinearResidual(AbstractModel):
    r"""Gradient descent on a linear residual network, branches of scale $L^{-1/2}$; equations in the module.

    **Arguments.** `depth` L: branches. `target` y. `gamma` > 0: strength of feature learning. `t_max`, `dt`: duration,
    and the step of gradient descent. The limit of infinite depth is that of growing L, with error O(1/L).

    **Solution.** `ResidualKernels`. Causality makes the iteration exact after finitely many steps; a step dt too large
    for gradient descent is `diverged`. **Cost** of an iteration: one inverse of size 2 (L + 1)(t_max/dt + 1).

    **See** Bordelon, Noci, Li, Hanin and Pehlevan, Depthwise hyperparameter transfer in residual networks (2023).
    """

    depth: int = eqx.field(static=True)
    target: Scalar = 1.0
    gamma: Scalar = 1.0
    t_max: float = eqx.field(static=True, default=3.0)
    dt: float = eqx.field(static=True, default=0.1)

    scheme: ClassVar[Any] = SelfConsistent(Damped(1.0), max_steps=2000)

    def __check_init__(self):
        check.count(self.depth, "depth")
        check.within(self.dt, "dt", above=0, most=self.t_max)
        check.within(self.gamma, "gamma", above=0)  # small values are the lazy limit

    @property
    def times(self) -> int:
        """Points of time, the start among them."""
        return round(self.t_max / self.dt) + 1

    def init(self):
        L, T = self.depth, self.times
        zero = jnp.zeros((L, T, T))
        return {"Phi": zero, "G": zero, "A": zero, "B": zero, "f": jnp.zeros(T), "reach": jnp.asarray(0.0)}

    def update(self, order, noise=None):
        L, T = self.depth, self.times
        N, l, root = (L + 1) * T, jnp.arange(L), L**-0.5
        # Times enter one after the other, each given a few sweeps before the next: rows computed from a wrong past
        # would grow beyond all bounds. At the solution all are in.
        on = (jnp.arange(T, dtype=float) < 1 + T * lax.stop_gradient(order["reach"])).astype(order["f"].dtype)
        both = on[:, None] * on[None, :]
        Phi, G, A, B = (order[name] * both[None] for name in ("Phi", "G", "A", "B"))
        past = jnp.tril(both, -1) * self.dt * (self.target - order["f"])[None, :]
        C = root * A + self.gamma / L * Phi * past[None]
        D = root * B + self.gamma / L * G * past[None]
        # Rows: h^0, ..., h^L, then g^0, ..., g^L, each with T times; what is not on the left is a source.
        empty = jnp.zeros((L + 1, T, L + 1, T))
        to_g = empty.at[l + 1, :, l + 1, :].set(-C).reshape(N, N)
        to_h = empty.at[l, :, l, :].set(-D).at[L, :, L, :].set(-self.gamma * past).reshape(N, N)
        line = jnp.eye(N) - jnp.kron(jnp.eye(L + 1, k=-1), jnp.eye(T))
        S = jnp.linalg.inv(jnp.block([[line, to_g], [to_h, line.T]]))
        start = jnp.ones((1, T, T))
        sources = jnp.concatenate([start, Phi / L, G / L, start])
        spread = jnp.einsum("ijs,jst->ijt", S.reshape(2 * N, 2 * (L + 1), T), sources).reshape(2 * N, 2 * N)
        covariance, response = (X.reshape(2, L + 1, T, 2, L + 1, T) for X in (spread @ S.T, S))
        reach = jnp.minimum(order["reach"] + 1 / (SWEEPS * T), 1.0)
        # Beyond this size a residual relative to the largest entry would no longer see the times that are still out.
        f = jnp.diagonal(covariance[1, L, :, 0, L, :]) / self.gamma
        f = jnp.where(jnp.max(jnp.abs(covariance)) < LARGEST, f, jnp.nan)
        return {
            "Phi": covariance[0, l, :, 0, l, :],
            "G": covariance[1, l + 1, :, 1, l + 1, :],
            "A": root * response[0, l, :, 1, l, :],
            "B": root * response[1, l + 1, :, 0, l + 1, :],
            "f": f,
            "reach": reach,
        }

    def finish(self, order):
        error = self.target - order["f"]
        t = self.dt * jnp.arange(self.times, dtype=float)
        return ResidualKernels(t, 0.5 * error**2, error, order["Phi"], order["G"], order["A"], order["B"])

    @program
    def finite_n(self, n: int, *, key: Key) -> ResidualKernels:
        """Gradient descent on a network of n neurons; its output at the start, O(n^{-1/2}), is left as it is."""
        L, T = self.depth, self.times
        a, b, c = jax.random.split(key, 3)
        h0, v, W = jax.random.normal(a, (n,)), jax.random.normal(b, (n,)), jax.random.normal(c, (L, n, n))
        scale = (L * n) ** -0.5

        def step(state, _):
            W, v = state
            forward = lambda h, w: (h + scale * (w @ h), h)
            last, h = lax.scan(forward, h0, W)
            backward = lambda g, w: (g + scale * (w.T @ g), g)
            _, g = lax.scan(backward, v, W, reverse=True)
            error = self.target - v @ last / (self.gamma * n)
            W = W + self.dt * self.gamma * error * scale * g[:, :, None] * h[:, None, :]
            return (W, v + self.dt * self.gamma * error * last), (error, h, g)

        _, (error, h, g) = lax.scan(step, (W, v), length=T)
        gram = lambda x: jnp.einsum("tln,sln->lts", x, x) / n
        zero = jnp.zeros((L, T, T))
        t = self.dt * jnp.arange(T, dtype=error.dtype)
        return ResidualKernels(t, 0.5 * error**2, error, gram(h), gram(g), zero, zero)
