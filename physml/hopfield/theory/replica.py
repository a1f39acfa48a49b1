r"""The replica-symmetric theory shared by all Hebbian memories, of two and of more spins per interaction.

A spin sees the signal $h = m^{p-1}$ of the retrieved pattern and Gaussian noise of variance V from all the others,

$$m = \langle\tanh\beta(h + \sqrt V z)\rangle, \quad \chi = \beta\langle\mathrm{sech}^2\rangle, \quad q = 1 - T\chi,
  \qquad V = \begin{cases}a\, q/(1 - \chi)^2 & p = 2\\ a\sum_k g_k q^k & p \ge 3\end{cases}$$

With t = T/h and $y = h/\sqrt V$ every quantity is an explicit function of (t, y): the averages are those of the field
1 + z/y at temperature t, then $h = m^{p-1}$, T = h t, $\chi$ is divided by h, and the load follows from V. The plane
(t, y) is thus mapped onto the phase diagram without solving anything; the map folds where its Jacobian is singular,
which is where retrieval ends, and a line of the diagram is a root of two equations in two unknowns.
"""

import math
from enum import IntEnum
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from physml.core.fixed_point import FixedPoint, Newton, fixed_point
from physml.core.status import Code, Status, status
from physml.core.types import is_traced
from physml.hopfield.theory.site import COLDEST, Site, bisect, site

Convention = Literal["distinct", "raw"]


def noise_series(p: int, convention: str) -> tuple[tuple[int, float], ...]:
    r"""(k, g_k) of the noise $V = a\sum_k g_k q^k$ that $K = a N^{p-1}/(p-1)!$ patterns cause, p >= 3.

    Distinct indices: $q^{p-1}$. The raw power: $x^{p-1} = \sum_k c_k \mathrm{He}_k(x)$ of a Gaussian overlap x, so
    $g_k = c_k^2 k!/(p-1)!$, with $c_{n-2j} = n!/(2^j j! (n-2j)!)$; they add up to $(2p-3)!!/(p-1)!$.
    """
    n = p - 1
    if convention == "distinct":
        return ((n, 1.0),)
    c = {n - 2 * j: math.factorial(n) // (2**j * math.factorial(j) * math.factorial(n - 2 * j)) for j in range((n // 2) + 1)}
    return tuple((k, v**2 * math.factorial(k) / math.factorial(n)) for k, v in sorted(c.items()))


def check_order(p: int, convention: str) -> None:
    if not isinstance(p, int) or p < 2:
        raise ValueError(f"p must be an integer >= 2, the number of spins in an interaction; got {p!r}")
    if convention not in ("distinct", "raw"):
        raise ValueError(f"convention must be 'distinct' or 'raw', got {convention!r}")


class Memory(eqx.Module):
    """Order of the interaction and the way its sums are written; all methods take and return float64 scalars."""

    p: int = eqx.field(static=True)
    convention: str = eqx.field(static=True, default="distinct")

    def noise(self, load: Any, q: Array, chi: Array) -> Array:
        """V."""
        if self.p == 2:
            return load * q / (1 - chi) ** 2
        return load * sum(g * q**k for k, g in noise_series(self.p, self.convention))

    def gain(self, load: Any, q: Array, chi: Array) -> Array:
        """dV/dq at fixed chi: times kappa it is 1 where replica symmetry breaks."""
        if self.p == 2:
            return load / (1 - chi) ** 2
        return load * sum(g * k * q ** (k - 1) for k, g in noise_series(self.p, self.convention) if k)

    def free_energy(self, load: Any, m: Array, chi: Array, temperature: Array, log: Array) -> Array:
        """Per spin; `log` is T <ln 2 cosh>."""
        p, t = self.p, temperature
        q = 1 - t * chi
        signal = (p - 1) / p * m**p - log
        if p == 2:
            return signal + 0.5 * load * (1 + q * (2 * chi - 1) / (1 - chi) ** 2 + t * jnp.log(jnp.abs(1 - chi)))
        # (1 - q^n - n (1 - q) q^(n-1)) / (1 - q)^2 written out, because T = 0 divides a small difference by T.
        rest = sum(
            g / (k + 1) * sum((j + 1) * q**j for j in range(k)) for k, g in noise_series(self.p, self.convention) if k
        )
        return signal - 0.5 * load * t * chi**2 * rest

    def averages(self, x: tuple[Array, Array], load: Any, temperature: Array) -> Site:
        m, chi = x
        q = 1 - temperature * chi
        return site(m ** (self.p - 1), self.noise(load, q, chi), temperature)

    def update(self, x: tuple[Array, Array], load: Any, temperature: Array) -> tuple[Array, Array]:
        """The map whose fixed points (m, chi) are."""
        s = self.averages(x, load, temperature)
        return s.m, s.chi

    def starts(self, load: Array, temperature: Array) -> tuple[Array, Array]:
        """(m, chi) by iteration, two of each: the branch reached from the pattern, and m = 0. The first is the second
        where there is no retrieval."""
        load, t = lax.stop_gradient((load, temperature))
        step = lambda x: self.update(x, load, t)
        one, zero = jnp.ones_like(t), jnp.zeros_like(t)
        if self.p == 2:
            # Iterating m = 0 runs into chi >= 1, a false glass: the physical root has chi < 1, q in (1 - T, 1).
            high = jnp.minimum(1.0, 1 / jnp.maximum(t, COLDEST))
            chi = bisect(lambda chi: step((zero, chi))[1] - chi, zero, high * (1 - 1e-13))
            glass = zero, jnp.where(t < 1 + jnp.sqrt(load), chi, high)
        else:
            glass = _descend(step, (zero, zero))
        pattern = _descend(step, (one, zero))
        found = (pattern[0] > 1e-5) & (pattern[1] < 1 if self.p == 2 else True)
        both = jax.tree.map(lambda a, b: jnp.stack([jnp.where(found, a, b), b]), pattern, glass)
        return lax.stop_gradient(both)

    def branches(self, load: Array, temperature: Array) -> FixedPoint:
        """`starts`, refined by Newton's method, with implicit derivatives."""

        def polish(x):
            step = lambda x: self.update(x, load, temperature)
            return fixed_point(step, x, method=Newton(), tol=1e-12, max_steps=40)

        out = jax.vmap(polish)(self.starts(load, temperature))
        false = (out.value[1] > 1) & (load > 0) & (temperature < 1) if self.p == 2 else jnp.zeros(2, bool)
        code = jnp.where(out.status.ok & false, Code.unphysical, out.status.code)
        return FixedPoint(out.value, out.residual, out.steps, status(code, out.steps))

    def order(self, load: Array, temperature: Array) -> Any:
        """(m, q, chi, variance of the noise, free energy, stability) of both branches, and their status."""
        t = temperature
        out = self.branches(load, temperature)

        def measure(m, chi):
            q, s = 1 - t * chi, self.averages((m, chi), load, t)
            f = self.free_energy(load, m, chi, t, s.log)
            return m, q, chi, self.noise(load, q, chi), f, self.gain(load, q, chi) * s.kappa

        return jax.vmap(measure)(*out.value), out.status

    def coexistence(self, given: str, value: Array) -> tuple[Array, Array, Status]:
        """(T, load) where the pattern and the state without it have one free energy; NaN where they never do.

        Newton's method in T or the load and the (m, chi) of both states, all five at once, from a bisection.
        """
        limit_t, limit_load, _ = lax.stop_gradient(self.line("fold", given, value))
        at = (lambda x: (x, value)) if given == "temperature" else (lambda x: (value, x))
        limit = limit_load if given == "temperature" else limit_t

        def free(x, load, t):
            return self.free_energy(load, x[0], x[1], t, self.averages(x, load, t).log)

        def gap(x):
            m, chi = self.starts(*at(x))
            f = jax.vmap(lambda m, chi: free((m, chi), *at(x)))(m, chi)
            return f[1] - f[0]

        low = 1e-4 * limit
        x = bisect(gap, low, limit * (1 - 1e-9), 30)
        m, chi = self.starts(*at(x))

        def residual(u):
            load, t = at(u[4])
            states = [(u[0], u[1]), (u[2], u[3])]
            moved = [self.update(s, load, t) for s in states]
            parts = [a - b for s, new in zip(states, moved, strict=True) for a, b in zip(s, new, strict=True)]
            return jnp.stack([*parts, free(states[1], load, t) - free(states[0], load, t)])

        start = lax.stop_gradient(jnp.stack([m[0], chi[0], m[1], chi[1], x]))
        out = fixed_point(lambda u: u - residual(u), start, method=Newton(), tol=1e-10, max_steps=20)
        load, temperature = at(jnp.where(out.status.ok & (gap(low) > 0), out.value[4], jnp.nan))
        return temperature, load, out.status

    def point(self, t: Array, y: Array) -> tuple[Array, Array, Array, Array]:
        """(T, load, stability, m) at t = T/h and y = h / sqrt(V); stability < 1 is that of replica symmetry."""
        s = site(jnp.ones_like(t), 1 / y**2, t)
        h = s.m ** (self.p - 1)
        q, chi = 1 - t * s.chi, s.chi / h
        load = (h / y) ** 2 / self.noise(1.0, q, chi)
        return h * t, load, self.gain(load, q, chi) * s.kappa / h**2, s.m

    def line(self, kind: str, given: str, value: Array) -> tuple[Array, Array, Status]:
        """(T, load) where the line `kind` (`fold`: retrieval ends, `stability`) has temperature or load `value`."""
        entry = ("temperature", "load").index(given)
        # Newton's unknowns are t, which may be 0, and log y; a load spans decades, a temperature does not.
        scale = jnp.asarray if entry == 0 else lambda v: jnp.log(jnp.maximum(v, 1e-30))

        def residual(u):
            t, load, stability, _ = self.point(u[0], jnp.exp(u[1]))
            second = jnp.log(stability) if kind == "stability" else _twist(self._place, u)
            return jnp.stack([scale((t, load)[entry]) - scale(value), second])

        start = lax.stop_gradient(self._start(residual))
        out = fixed_point(lambda u: u - residual(u), start, method=Newton(), tol=1e-10, max_steps=60)
        t, load, *_ = self.point(out.value[0], jnp.exp(out.value[1]))
        nan = lambda v: jnp.where(out.status.ok, v, jnp.nan)
        return nan(t), nan(load), out.status

    def _place(self, u):
        t, load, *_ = self.point(u[0], jnp.exp(u[1]))
        return jnp.stack([t, jnp.log(load)])

    def _start(self, residual):
        """In every row of fixed t come down from the strongest signal to where the line is met; the row that meets it
        nearest to the target."""
        ts = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-5, 0.02, 20), jnp.geomspace(0.021, 50.0, 70)])
        log_y = jnp.linspace(math.log(30.0), math.log(0.05), 64)

        def row(t):
            values = jax.vmap(lambda log_y: residual(jnp.stack([t, log_y])))(log_y)
            beyond = ~(values[:, 1] < 0)
            first = jnp.argmax(beyond)
            gap = jnp.where((first > 0) & beyond[first], jnp.abs(values[first, 0]), jnp.inf)
            return gap, jnp.stack([t, log_y[first]])

        gap, u = lax.map(row, ts)
        return u[jnp.argmin(gap)]


def _twist(f, u):
    """Determinant of the 2 x 2 Jacobian."""
    j = jax.jacfwd(f)(u)
    return j[0, 0] * j[1, 1] - j[0, 1] * j[1, 0]


def _descend(step, x, max_steps: int = 20000):
    """Damped iteration from above, which stops at the first solution it meets."""

    def more(carry):
        _, change, k = carry
        return (change > 1e-11) & (k < max_steps)

    def go(carry):
        x, _, k = carry
        new = step(x)
        # Half steps: the response feeds back on itself with a negative sign for p = 2.
        x2 = jax.tree.map(lambda a, b: 0.5 * (a + b), x, new)
        return x2, jnp.maximum(jnp.abs(x2[0] - x[0]), jnp.abs(x2[1] - x[1])), k + 1

    out, _, _ = lax.while_loop(more, go, (x, jnp.ones_like(x[0]), jnp.zeros((), jnp.int32)))
    return out


class Order(eqx.Module):
    r"""Order parameters of one state, scalars.

    `m` overlap with the pattern, `q` that of two replicas, `chi` $= \beta(1 - q)$, `noise` the variance V of the field,
    `r` $= V/\alpha$ (1 at load 0), `free_energy` per spin, `stability`: replica symmetry is stable below 1; `phase`: a
    `Phase`; `status`.
    """

    m: Array
    q: Array
    r: Array
    chi: Array
    noise: Array
    free_energy: Array
    stability: Array
    phase: Array
    status: Status

    def check(self) -> "Order":
        """Raise `Failure` unless the equations were solved; return self otherwise."""
        self.status.check("replica theory", lambda step: f"iteration {step}")
        return self


class Phase(IntEnum):
    """`metastable`: the pattern is a local minimum above the glass or the paramagnet; `retrieval`: it is the lowest."""

    paramagnet = 0
    glass = 1
    metastable = 2
    retrieval = 3


@eqx.filter_jit
def solve(memory: Memory, load: Array, temperature: Array, start: str) -> Order:
    """The branch `start` of a memory at one load and temperature."""
    (m, q, chi, noise, f, stability), state = memory.order(load, temperature)
    i = ("retrieval", "glass").index(start)
    remembers = jnp.abs(m[i]) > 1e-5
    without = jnp.where(q[i] > 1e-7, Phase.glass, Phase.paramagnet)
    phase = jnp.where(remembers, jnp.where(f[0] <= f[1], Phase.retrieval, Phase.metastable), without)
    r = jnp.where(load > 0, noise[i] / jnp.where(load > 0, load, 1.0), memory.noise(1.0, q[i], chi[i]))
    state = status(state.code[i], state.step[i])
    return Order(m[i], q[i], r, chi[i], noise[i], f[i], stability[i], phase.astype(jnp.int32), state)


@eqx.filter_jit
def line(memory: Memory, kind: str, given: str, value: Array) -> tuple[Array, Array, Status]:
    """(T, load) of the line `kind`: fold, coexistence or stability, at this temperature or load."""
    return memory.coexistence(given, value) if kind == "coexistence" else memory.line(kind, given, value)


def check_state(load: Any, temperature: Any, name: str) -> None:
    for label, value in ((name, load), ("temperature", temperature)):
        if not is_traced(value) and not (np.ndim(value) == 0 and 0 <= float(value) < math.inf):
            raise ValueError(f"{label} must be a finite number >= 0 (use jax.vmap for many), got {value!r}")
