r"""The replica-symmetric theory shared by all Hebbian memories, of two and of more spins per interaction.

A spin sees the signal $h = m^{p-1}$ of the retrieved pattern and Gaussian noise of variance V from all the others,

$$m = \langle\tanh\beta(h + \sqrt V z)\rangle, \quad \chi = \beta\langle\mathrm{sech}^2\rangle, \quad q = 1 - T\chi,
  \qquad V = \begin{cases}a\, q/(1 - \chi)^2 & p = 2\\ a\sum_k g_k q^k & p \ge 3\end{cases}$$

With t = T/h and $y = h/\sqrt V$ every quantity is an explicit function of (t, y): the averages are those of the field
1 + z/y at temperature t, then $h = m^{p-1}$, T = h t, $\chi$ is divided by h, and the load follows from V. The plane
(t, y) is thus mapped onto the phase diagram without solving anything, and a line of the diagram is a root of two
equations in two unknowns. Retrieval ends where det(1 - d update) vanishes.
"""

import math
from enum import IntEnum
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.float64 import float64_program
from physml.core.roots import bisect, descend, newton
from physml.core.types import Scalar
from physml.hopfield.theory.site import COLDEST, Site, site

Convention = Literal["distinct", "raw"]


def noise_series(p: int, convention: str) -> tuple[tuple[int, float], ...]:
    r"""(k, g_k) of the noise $V = a\sum_k g_k q^k$ that $K = a N^{p-1}/(p-1)!$ patterns cause, p >= 3.

    Distinct indices: $q^{p-1}$. The raw power: $x^{p-1} = \sum_k c_k \mathrm{He}_k(x)$ of a Gaussian overlap x, so
    $g_k = c_k^2 k!/(p-1)!$, with $c_{n-2j} = n!/(2^j j! (n-2j)!)$; they add up to $(2p-3)!!/(p-1)!$.
    """
    n = p - 1
    if convention == "distinct":
        return ((n, 1.0),)
    c = {
        n - 2 * j: math.factorial(n) // (2**j * math.factorial(j) * math.factorial(n - 2 * j))
        for j in range((n // 2) + 1)
    }
    return tuple((k, v**2 * math.factorial(k) / math.factorial(n)) for k, v in sorted(c.items()))


def check_order(p: int, convention: str) -> None:
    """Raise a `ValueError` unless p and the convention exist."""
    check.count(p, "p", least=2)
    check.choice(convention, "convention", ("distinct", "raw"))


class Memory(eqx.Module):
    """Order of the interaction and the way its sums are written; all methods take and return float64 scalars."""

    p: int = eqx.field(static=True)
    convention: str = eqx.field(static=True, default="distinct")

    def noise(self, load: Scalar, q: Array, chi: Array) -> Array:
        """V."""
        if self.p == 2:
            return q / (1 - chi) ** 2 * load
        return jnp.asarray(sum(g * q**k for k, g in noise_series(self.p, self.convention))) * load

    def gain(self, load: Scalar, q: Array, chi: Array) -> Array:
        """dV/dq at fixed chi: times kappa it is 1 where replica symmetry breaks."""
        if self.p == 2:
            return (1 - chi) ** -2 * load
        series = ((k, g) for k, g in noise_series(self.p, self.convention) if k)
        return jnp.asarray(sum(g * k * q ** (k - 1) for k, g in series)) * load

    def free_energy(self, load: Scalar, m: Array, chi: Array, temperature: Array, log: Array) -> Array:
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

    def averages(self, x: tuple[Array, Array], load: Scalar, temperature: Array) -> Site:
        m, chi = x
        q = 1 - temperature * chi
        return site(m ** (self.p - 1), self.noise(load, q, chi), temperature)

    def update(self, x: tuple[Array, Array], load: Scalar, temperature: Array) -> tuple[Array, Array]:
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
            chi = jnp.where(t < 1 + jnp.sqrt(load), chi, high)
            m, own = descend(step, (one, zero))
            found = (m > 1e-5) & (own < 1)
            return jnp.stack([jnp.where(found, m, zero), zero]), jnp.stack([jnp.where(found, own, chi), chi])
        return descend(jax.vmap(step), (jnp.stack([one, zero]), jnp.stack([zero, zero])))

    def branches(self, load: Array, temperature: Array) -> tuple[Array, Status]:
        """(m, chi) (2, 2), a row for each of `starts`, refined by Newton's method, with implicit derivatives."""
        gap = lambda u: jnp.stack(self.update((u[0], u[1]), load, temperature)) - u
        x, state = jax.vmap(lambda u: newton(gap, u))(jnp.stack(self.starts(load, temperature), 1))
        false = (x[:, 1] > 1) & (load > 0) & (temperature < 1) if self.p == 2 else jnp.zeros(2, bool)
        return x, status(jnp.where(state.ok & false, Code.unphysical, state.code), state.step)

    def order(self, load: Array, temperature: Array) -> Any:
        """(m, q, chi, variance of the noise, free energy, stability) of both branches, and their status."""
        x, state = self.branches(load, temperature)

        def measure(m, chi):
            q, s = 1 - temperature * chi, self.averages((m, chi), load, temperature)
            f = self.free_energy(load, m, chi, temperature, s.log)
            return m, q, chi, self.noise(load, q, chi), f, self.gain(load, q, chi) * s.kappa

        return jax.vmap(measure)(x[:, 0], x[:, 1]), state

    def point(self, t: Array, y: Array) -> tuple[Array, Array, Array, Array]:
        r"""(T, load, turn, stability) at t = T/h and $y = h/\sqrt V$.

        `turn` is det(1 - d update), which is 1 at strong signals and 0 at the fold; `stability` < 1 is that of replica
        symmetry.
        """
        p = self.p
        s = site(jnp.ones_like(t), 1 / y**2, t)
        h, slope = s.m ** (p - 1), (p - 1) * s.m ** (p - 2)
        temperature, q, chi = h * t, 1 - t * s.chi, s.chi / h
        load = (h / y) ** 2 / self.noise(jnp.ones_like(q), q, chi)
        gain = self.gain(load, q, chi)
        feedback = -temperature * gain + (2 * load * q / (1 - chi) ** 3 if p == 2 else 0.0)  # dV/dchi
        chi1, chi2 = s.chi1 / h**2, s.chi2 / h**3
        turn = (1 - slope * chi) * (1 - 0.5 * chi2 * feedback) - 0.5 * slope * chi1**2 * feedback
        return temperature, load, turn, gain * s.kappa / h**2

    def line(self, kind: Any, given: Any, value: Array) -> tuple[Array, Array, Status]:
        """(T, load) where the line `kind` (0: retrieval ends, 1: replica symmetry breaks) has the temperature (`given`
        0) or the load (1) `value`; NaN where there is none."""

        def both(u, value):
            # Newton's unknowns are t, which may be 0, and log y; a load spans decades, a temperature does not, and
            # 1 / stability is linear in t where that is small.
            t, load, turn, stability = self.point(u[0], jnp.exp(u[1]))
            place = jnp.where(given == 0, t - value, jnp.log(load) - jnp.log(jnp.maximum(value, 1e-30)))
            return jnp.stack([place, jnp.where(kind == 0, turn, 1 / stability - 1)]), turn

        start = self._start(lambda u: both(u, lax.stop_gradient(value)))
        u, state = newton(lambda u: both(u, value)[0], start, tol=1e-10, steps=60)
        t, load, turn, _ = self.point(u[0], jnp.exp(u[1]))
        good = state.ok & (turn > -1e-6)
        nan = lambda v: jnp.where(good, v, jnp.nan)
        return nan(t), nan(load), state

    def _start(self, both):
        """In every row of fixed t come down from the strongest signal to where the line is met, the branch being still
        that of retrieval; the row that meets it nearest to the target. NaN where none does."""
        ts = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-7, 0.02, 20), jnp.geomspace(0.021, 50.0, 70)])
        log_y = jnp.linspace(math.log(30.0), math.log(0.05), 64)

        def row(t):
            at = lambda v: jnp.stack([t, v])
            values, turn = jax.vmap(lambda v: both(at(v)))(log_y)
            beyond = ~(values[:, 1] > 0)
            i = jnp.argmax(beyond)
            met = (i > 0) & beyond[i] & (turn[i - 1] > 0)
            return jnp.where(met, jnp.abs(values[i, 0]), jnp.inf), at(log_y[i])

        gap, u = lax.map(row, ts)
        i = jnp.argmin(gap)
        return jnp.where(jnp.isfinite(gap[i]), u[i], jnp.nan)

    def coexistence(self, given: Any, value: Array, limit: Array) -> tuple[Array, Array, Status]:
        """(T, load) where the pattern and the state without it have one free energy; NaN where they never do;
        `limit` is the load or temperature at which retrieval ends there.

        Newton's method in T or the load and the (m, chi) of both states, all five at once, from a bisection.
        """
        at = lambda x: (jnp.where(given == 0, x, value), jnp.where(given == 0, value, x))  # load, temperature

        def free(x, load, t):
            s = self.averages(x, load, t)
            return self.free_energy(load, x[0], x[1], t, s.log), jnp.stack([s.m - x[0], s.chi - x[1]])

        fixed = lax.stop_gradient(value)

        def gap(x):
            place = jnp.where(given == 0, x, fixed), jnp.where(given == 0, fixed, x)
            f = jax.vmap(lambda *v: free(v, *place)[0])(*self.starts(*place))
            return f[1] - f[0]

        def residual(u):
            f, off = jax.vmap(lambda m, chi: free((m, chi), *at(u[4])))(u[0:4:2], u[1:4:2])
            return jnp.append(off.ravel(), f[1] - f[0])

        low = 1e-4 * limit
        x = bisect(gap, low, limit * (1 - 1e-9), 30)
        u, state = newton(residual, jnp.append(jnp.stack(self.starts(*at(x)), 1).ravel(), x), tol=1e-10)
        # Where the pattern is nowhere the lower one, bisection ends at its lower end.
        load, temperature = at(jnp.where(state.ok & (x > 1.01 * low), u[4], jnp.nan))
        return temperature, load, state


class Order(Checked):
    r"""Order parameters of one state, scalars.

    `m` overlap with the pattern, `q` that of two replicas, `chi` $= \beta(1 - q)$, `noise` the variance V of the field,
    `r` $= V/\alpha$ (1 at load 0), `free_energy` per spin, `stability`: replica symmetry is stable below 1; `phase`: a
    `Phase`; `status`.
    """

    computation: ClassVar[str] = "replica theory"
    counted: ClassVar[str] = "iteration"

    m: Array
    q: Array
    r: Array
    chi: Array
    noise: Array
    free_energy: Array
    stability: Array
    phase: Array
    status: Status


class Phase(IntEnum):
    """`metastable`: the pattern is a local minimum above the glass or the paramagnet; `retrieval`: it is the lowest."""

    paramagnet = 0
    glass = 1
    metastable = 2
    retrieval = 3


def solve(memory: Memory, load: Scalar, temperature: Scalar, start: str) -> Order:
    """The branch `start` of a memory at one load and temperature."""
    check.choice(start, "start", ("retrieval", "glass"))
    # One compiled program for both branches.
    return _solve(memory, load, temperature, np.asarray(start == "glass"))


@float64_program
def _solve(memory, load, temperature, glass):
    both, state = memory.order(load, temperature)
    pick = lambda v: v[glass.astype(jnp.int32)]
    m, q, chi, noise, own, stability = (pick(v) for v in both)
    f = both[4]
    remembers = jnp.abs(m) > 1e-5
    without = jnp.where(q > 1e-7, Phase.glass, Phase.paramagnet)
    phase = jnp.where(remembers, jnp.where(f[0] <= f[1], Phase.retrieval, Phase.metastable), without)
    r = jnp.where(load > 0, noise / jnp.where(load > 0, load, 1.0), memory.noise(1.0, q, chi))
    state = status(pick(state.code), pick(state.step))
    return Order(m, q, r, chi, noise, own, stability, phase.astype(jnp.int32), state)


def line(memory: Memory, kind: str, given: str, value: Any) -> tuple[Array, Array, Status]:
    """(T, load) of the line `kind`: fold, stability or coexistence, at this temperature or load."""
    integer = lambda names, name: np.asarray(names.index(name), np.int32)
    entry = integer(("temperature", "load"), given)
    if kind != "coexistence":
        return _line(memory, integer(("fold", "stability"), kind), entry, value)
    limit = _line(memory, integer(("fold",), "fold"), entry, lax.stop_gradient(value))
    return _coexistence(memory, entry, value, limit[1 - int(entry)])


@float64_program
def _line(memory, kind, given, value):
    return memory.line(kind, given, value)


@float64_program
def _coexistence(memory, given, value, limit):
    return memory.coexistence(given, value, limit)


def check_state(load: Scalar, temperature: Scalar, name: str) -> None:
    """Raise a `ValueError` unless known loads and temperatures are finite numbers, at least 0."""
    check.number(load, name, least=0)
    check.number(temperature, "temperature", least=0)
