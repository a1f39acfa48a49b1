r"""One step of a fixed-step method: a deterministic map of (state, standard normals).

| method | for | strong | weak | evaluations of f, g |
|---|---|---|---|---|
| `EulerMaruyama` | Ito | 1/2 (additive 1) | 1 | 1, 1 |
| `Heun` | Stratonovich, ODE | 1/2 (additive, commutative 1) | 1 (ODE 2) | 2, 2 |
| `Milstein` | Ito, diagonal | 1 | 1 | 1, 1 and a tangent |
| `SRA1` | additive | 3/2 | 2 | 2, 2 |
| `RK4` | ODE | 4 | | 4, 0 |
| `Leapfrog` | separable Hamiltonian (q, p) | 2, symplectic | | 1 force |

A method acts on ONE sample; `ensemble` maps it over lanes that go last.
"""

import abc
import math
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from physml.core.program import program
from physml.core.tree import add, plus
from physml.core.types import Scalar, is_traced, shape_of
from physml.integrate.dynamics import Dynamics, apply_noise, like, noise_kind
from physml.integrate.stepping import rk4


class AbstractMethod(eqx.Module):
    """A fixed-step method.

    `calculus` is the one it converges in, `any` when the noise must not depend on x, and `ode` when there
    must be none; `normals` counts the standard normals it takes for each Brownian motion.
    """

    calculus: ClassVar[Literal["ito", "stratonovich", "any", "ode"]]
    normals: ClassVar[int] = 1

    @abc.abstractmethod
    def step(self, dynamics: Dynamics, t: Scalar, h: Scalar, x: PyTree, xi: PyTree, args: PyTree) -> PyTree:
        """The state after a step of length h from (t, x), with standard normals xi (a tuple of `normals`)."""

    def validate(self, dynamics: Dynamics, t: Scalar, x: PyTree, args: PyTree) -> None:
        """Raise a `ValueError` for a system this method is not made for, judged at the start (t, x)."""


def _kick(dynamics: Dynamics, t: Any, x: PyTree, xi: PyTree, h: Any, args: Any) -> PyTree:
    """g(t, x) sqrt(h) xi."""
    assert dynamics.noise is not None
    scaled = jax.tree.map(lambda z: jnp.sqrt(h).astype(z.dtype) * z, xi)
    return apply_noise(dynamics.noise(t, x, args), scaled, x)


class EulerMaruyama(AbstractMethod):
    r"""$x' = x + f h + g \sqrt h\, \xi$: strong order 1/2, weak order 1, for an ODE Euler's order 1.

    **See** Kloeden and Platen, Numerical Solution of Stochastic Differential Equations (1992), section 10.2.
    """

    calculus = "ito"

    def step(self, dynamics, t, h, x, xi, args):
        moved = add(x, (h, dynamics.drift(t, x, args)))
        return moved if dynamics.noise is None else plus(moved, _kick(dynamics, t, x, xi[0], h, args))


class Heun(AbstractMethod):
    r"""Stochastic Heun: a step of Euler's predicts, the mean of both ends corrects.

    $$\tilde x = x + f h + g\,\Delta W,\qquad
      x' = x + \tfrac12 (f + \tilde f) h + \tfrac12 (g + \tilde g) \Delta W$$

    Converges to the Stratonovich solution, strong order 1 for commutative noise; order 2 for an ODE.
    **See** Ruemelin, SIAM J. Numer. Anal. 19, 604 (1982).
    """

    calculus = "stratonovich"

    def step(self, dynamics, t, h, x, xi, args):
        f = dynamics.drift(t, x, args)
        if dynamics.noise is None:
            f_end = dynamics.drift(t + h, add(x, (h, f)), args)
            return add(x, (0.5 * h, f), (0.5 * h, f_end))
        kick = _kick(dynamics, t, x, xi[0], h, args)
        guess = plus(add(x, (h, f)), kick)
        kick_end = _kick(dynamics, t + h, guess, xi[0], h, args)
        return add(x, (0.5 * h, f), (0.5 * h, dynamics.drift(t + h, guess, args)), (0.5, kick), (0.5, kick_end))


class Milstein(AbstractMethod):
    r"""$x' = x + f h + g\,\Delta W + \tfrac12 g g' (\Delta W^2 - h)$: strong order 1 for diagonal noise.

    The derivative is a tangent of g along g, exact for amplitudes whose entry i depends on $x_i$ alone.
    **See** Kloeden and Platen (1992), section 10.3.
    """

    calculus = "ito"

    def step(self, dynamics, t, h, x, xi, args):
        moved = add(x, (h, dynamics.drift(t, x, args)))
        noise = dynamics.noise
        if noise is None:
            return moved
        amplitude = lambda x: like(noise(t, x, args), x)
        g = amplitude(x)
        _, slope = jax.jvp(amplitude, (x,), (g,))
        second = jax.tree.map(lambda s, z: s * (z * z - 1.0), slope, xi[0])
        return add(moved, (1.0, _kick(dynamics, t, x, xi[0], h, args)), (0.5 * h, second))

    def validate(self, dynamics, t, x, args):
        if dynamics.noise is None:
            return
        value = dynamics.noise(t, x, args)
        kind = noise_kind(value, x)
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(x))
        if kind == "matrix" or (kind == "scalar" and size > 1 and depends_on_state(dynamics, t, x, args)):
            raise ValueError(
                f"Milstein is for diagonal noise; got {kind} noise. Use Heun, or EulerMaruyama for order 1/2"
            )
        check_elementwise(dynamics, t, x, args)


class SRA1(AbstractMethod):
    r"""Stochastic Runge-Kutta for additive noise $g(t)$: strong order 3/2, deterministic order 2.

    $$\tilde x = x + \tfrac34 f h + \tfrac32 g(t+h)\, I_{10}/h,\qquad
      x' = x + \tfrac13 f h + \tfrac23 f(t + \tfrac34 h, \tilde x) h
      + g(t+h)\,\Delta W + [g(t) - g(t+h)]\, I_{10}/h$$

    with $I_{10} = \int_t^{t+h} (W_s - W_t)\,ds = \tfrac h2 (\Delta W + \sqrt{h/3}\,\xi_2)$.
    **See** Roessler, SIAM J. Numer. Anal. 48, 922 (2010), SRA1.
    """

    calculus = "any"
    normals = 2

    def step(self, dynamics, t, h, x, xi, args):
        f = dynamics.drift(t, x, args)
        if dynamics.noise is None:
            middle = dynamics.drift(t + 0.75 * h, add(x, (0.75 * h, f)), args)
            return add(x, (h / 3, f), (2 * h / 3, middle))
        area = jax.tree.map(lambda a, b: 0.5 * a + 0.5 / math.sqrt(3.0) * b, xi[0], xi[1])
        kick = _kick(dynamics, t + h, x, xi[0], h, args)
        late, early = (_kick(dynamics, s, x, area, h, args) for s in (t + h, t))
        middle = dynamics.drift(t + 0.75 * h, add(x, (0.75 * h, f), (1.5, late)), args)
        return add(x, (h / 3, f), (2 * h / 3, middle), (1.0, kick), (1.0, early), (-1.0, late))

    def validate(self, dynamics, t, x, args):
        if depends_on_state(dynamics, t, x, args):
            raise ValueError("SRA1 is for additive noise; here g depends on x. Use Milstein or Heun")


class RK4(AbstractMethod):
    """The classical fourth-order Runge-Kutta method, for ODEs."""

    calculus = "ode"

    def step(self, dynamics, t, h, x, xi, args):
        return rk4(lambda t, x: dynamics.drift(t, x, args), t, x, h)


class Leapfrog(AbstractMethod):
    r"""Velocity Verlet for a state (q, p) with $\dot q = v(p)$, $\dot p = F(q)$: order 2, symplectic.

    $$p_{1/2} = p + \tfrac h2 F(q),\quad q' = q + h\, v(p_{1/2}),\quad p' = p_{1/2} + \tfrac h2 F(q')$$

    The drift returns the pair $(\dot q, \dot p)$; the half that a stage does not use is compiled away.
    """

    calculus = "ode"

    def step(self, dynamics, t, h, x, xi, args):
        q, p = x
        p = add(p, (0.5 * h, dynamics.drift(t, (q, p), args)[1]))
        q = add(q, (h, dynamics.drift(t + 0.5 * h, (q, p), args)[0]))
        p = add(p, (0.5 * h, dynamics.drift(t + h, (q, p), args)[1]))
        return q, p

    def validate(self, dynamics, t, x, args):
        if not (isinstance(x, tuple) and len(x) == 2):
            raise ValueError(f"Leapfrog needs a state (q, p); got {jax.tree.structure(x)}")
        q, p = x
        for name, fixed, moved, part in (("dq/dt", p, q, 0), ("dp/dt", q, p, 1)):
            if _varies(_Part(dynamics.drift, part), (t, fixed), moved, (args,)):
                raise ValueError(f"Leapfrog needs q' = v(p), p' = F(q); {name} depends on {'qp'[part]} here")


def _direction(x: PyTree, seed: int) -> PyTree:
    """A random pytree like x."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape).astype(leaf.dtype)), x)


@program
def _slope(function: Any, before: tuple, x: PyTree, after: tuple, along: PyTree) -> PyTree:
    """The derivative of `function(*before, x, *after)` by x along a direction."""
    return jax.jvp(lambda x: function(*before, x, *after), (x,), (along,))[1]


def _varies(function: Any, before: tuple, x: PyTree, after: tuple) -> bool:
    """Whether `function` has a nonzero derivative by x; False while its value is only traced."""
    slope = _slope(function, before, x, after, _direction(x, 0))
    leaves = [leaf for leaf in jax.tree.leaves(slope) if leaf.dtype != jax.dtypes.float0]  # float0: of an integer
    return not is_traced(leaves) and any((np.asarray(leaf) != 0).any() for leaf in leaves)


def depends_on_state(dynamics: Dynamics, t: Scalar, x: PyTree, args: PyTree) -> bool:
    """Whether the noise amplitude changes with x at (t, x)."""
    return dynamics.noise is not None and _varies(dynamics.noise, (t,), x, (args,))


def check_elementwise(dynamics: Dynamics, t: Scalar, x: PyTree, args: PyTree) -> None:
    """Raise when the diagonal amplitude's entry i depends on another entry of x.

    A Jacobian J is diagonal if and only if u * (J v) = v * (J u) for almost every pair of vectors u, v.
    """
    noise = dynamics.noise
    if noise is None or noise_kind(shape_of(noise, t, x, args), x) != "diagonal":
        return
    u, v = _direction(x, 1), _direction(x, 2)
    ju, jv = (_slope(_Like(noise), (t,), x, (args,), along) for along in (u, v))
    if is_traced((ju, jv)):
        return
    product = lambda a, b: np.asarray(a) * np.asarray(b)
    one, other = jax.tree.map(product, u, jv), jax.tree.map(product, v, ju)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        size = float(np.max(np.abs(a), initial=0.0))
        # Infinite derivatives (a square root at zero) say nothing about coupling.
        if not np.allclose(a, b, rtol=1e-4, atol=1e-5 * size, equal_nan=True):
            raise ValueError(
                "diagonal noise must be elementwise (entry i a function of x_i alone) where its derivative "
                "is needed; return Matrix(jnp.diag(g)) for an amplitude that couples entries"
            )


class _Like(eqx.Module):
    """An amplitude of noise in the shape of the state."""

    noise: Any

    def __call__(self, t, x, args):
        return like(self.noise(t, x, args), x)


class _Part(eqx.Module):
    """One half of the drift of a pair (q, p), as a function of the other coordinate alone."""

    drift: Any
    part: int = eqx.field(static=True)

    def __call__(self, t, fixed, moved, args):
        pair = (moved, fixed) if self.part == 0 else (fixed, moved)
        return self.drift(t, pair, args)[self.part]
