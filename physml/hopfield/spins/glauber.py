r"""Glauber dynamics of binary memories: many replicas at once, pairwise and p-body energies, no p-tensor.

$$P(s_i \to +1) = \frac{1}{1 + e^{-2\beta h_i}}, \qquad h_i = \tfrac12\bigl[E(s_i = -1) - E(s_i = +1)\bigr]$$

The p-body energies depend on the spins through the overlaps $M_\mu = \sum_i \xi_i^\mu s_i$ alone. With spin i taken
out, $M' = M - \xi_i s_i$, the field is $h_i = \sum_\mu \xi_i^\mu g(M'_\mu)$, a polynomial of degree p - 1, exact for
either way of writing the sums; a flip moves the K overlaps. So an update costs O(K) and memory is O(K + N) a replica.

Spins are (replicas, N). Replicas see the same site at the same time, each with noise of its own; inside a sweep they
lie on the last axis, where the processor adds them up together.
"""

import abc
import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from physml.core import check
from physml.core.loops import march
from physml.core.noise import check_key, uniform
from physml.core.program import program
from physml.core.types import Key, Scalar
from physml.hopfield.spins.patterns import check_patterns


class AbstractSpinEnergy(eqx.Module):
    """An energy whose fields follow from a summary of the spins that is cheap to keep up to date.

    The energy of spins takes replicas first; `summary`, `field` and `moved`, for the inside of a sweep, replicas last.
    """

    @abc.abstractmethod
    def rows(self) -> PyTree:
        """What the field of a spin needs of the energy: a pytree with one row per spin."""

    @abc.abstractmethod
    def summary(self, spins: Array) -> PyTree:
        """What a flip moves, from spins (N, R)."""

    @abc.abstractmethod
    def field(self, summary: PyTree, row: PyTree, spin: Array) -> Array:
        """h_i (R,) of every replica, from the row of i and s_i (R,)."""

    @abc.abstractmethod
    def moved(self, summary: PyTree, row: PyTree, change: Array) -> PyTree:
        """The summary after s_i has changed by `change` (R,)."""

    @abc.abstractmethod
    def __call__(self, spins: Array) -> Array:
        """E (R,) of spins (R, N)."""


class Pairwise(AbstractSpinEnergy):
    r"""$E = -\frac12\sum_{i\ne j} J_{ij}s_is_j - \sum_i b_is_i$; `couplings` (N, N), symmetric, whose diagonal does not
    count; `bias` (N,) or None. A field costs O(N)."""

    couplings: Array
    bias: Array | None = None

    def __check_init__(self):
        if self.couplings.ndim != 2 or self.couplings.shape[0] != self.couplings.shape[1] or not self.couplings.size:
            raise ValueError(f"couplings must be a square matrix, got shape {self.couplings.shape}")
        check.within(self.couplings, "couplings")

    def rows(self):
        return self.couplings, jnp.arange(self.couplings.shape[0], dtype=jnp.int32)

    def summary(self, spins):
        return self.couplings @ spins if self.bias is None else self.couplings @ spins + self.bias[:, None]

    def field(self, summary, row, spin):
        couplings, i = row
        return summary[i] - couplings[i] * spin

    def moved(self, summary, row, change):
        return summary + row[0][:, None] * change[None, :]

    def __call__(self, spins):
        diagonal = jnp.diag(self.couplings)
        e = -0.5 * (jnp.sum(spins * (spins @ self.couplings.T), 1) - jnp.sum(diagonal))
        return e if self.bias is None else e - spins @ self.bias


class Dense(AbstractSpinEnergy):
    r"""p spins at a time; `patterns` (K, N), `strength` a factor on the energy.

    Raw: $E = -\frac{N}{p}\sum_\mu (M_\mu/N)^p$. Distinct: $E = -\frac{(p-1)!}{N^{p-1}}\sum_\mu e_p$ with the elementary
    symmetric polynomials of the $\xi^\mu_is_i$, $k\,e_k = M e_{k-1} - (n_\mu - k + 2)e_{k-2}$, $n_\mu$ the number of
    entries that are not blank; entries are then $\pm1$ or 0. Real entries: raw with every p, distinct with p <= 3.
    """

    patterns: Float[Array, "K N"]
    p: int = eqx.field(static=True, default=2)
    convention: Literal["distinct", "raw"] = eqx.field(static=True, default="distinct")
    strength: Scalar = 1.0

    def __check_init__(self):
        check_patterns(self.patterns)
        check.count(self.p, "p", least=2)
        check.choice(self.convention, "convention", ("distinct", "raw"))
        entries = check.known(self.patterns)
        signs = entries is None or np.isin(entries, (-1, 0, 1)).all()
        if self.convention == "distinct" and self.p > 3 and not signs:
            raise ValueError("distinct sums with p > 3 need entries -1, 0 or 1; use convention='raw' for real ones")

    def _symmetric(self, order, total, squares):
        """e_order of entries with this sum and this sum of squares."""
        before, now = jnp.ones_like(total), total
        if order == 0:
            return before
        for k in range(2, order + 1):
            before, now = now, (total * now - (squares - (k - 2)) * before) / k
        return now

    def rows(self):
        return self.patterns.T

    def summary(self, spins):
        return self.patterns @ spins, jnp.sum(self.patterns**2, 1)

    def field(self, summary, row, spin):
        total, squares = summary
        p, n, x = self.p, self.patterns.shape[1], row[:, None]
        others = total - x * spin[None, :]
        if self.convention == "distinct":
            terms = math.factorial(p - 1) * self._symmetric(p - 1, others, squares[:, None] - x**2)
        else:
            terms = sum(math.comb(p, k) / p * others ** (p - k) * x ** (k - 1) for k in range(1, p + 1, 2))
        # A sum over the leading axis, written as a product: XLA vectorises only that.
        return self.strength / n ** (p - 1) * jnp.matmul(row, terms, precision="highest")

    def moved(self, summary, row, change):
        return summary[0] + row[:, None] * change[None, :], summary[1]

    def __call__(self, spins):
        total, squares = self.summary(spins.T)
        p, n = self.p, self.patterns.shape[1]
        if self.convention == "raw":
            return -self.strength * n / p * jnp.sum((total / n) ** p, 0)
        if p == 3:  # for real entries e_3 needs their cubes, whose signs are those of the spins
            cubes = self.patterns**3 @ spins.T
            e = (total**3 - 3 * total * squares[:, None] + 2 * cubes) / 6
        else:
            e = self._symmetric(p, total, squares[:, None])
        return -self.strength * math.factorial(p - 1) / n ** (p - 1) * jnp.sum(e, 0)


class GlauberRun(eqx.Module):
    """The last `spins` (R, N), and what was observed after every `save_every`-th sweep, stacked on a leading axis."""

    spins: Array
    observed: PyTree


def glauber(
    energy: AbstractSpinEnergy,
    spins: Float[Array, "R N"],
    sweeps: int,
    *,
    temperature: Scalar,
    key: Key,
    order: Literal["random", "typewriter", "parallel"] = "random",
    save_every: int = 1,
    observe: Any = None,
) -> GlauberRun:
    r"""`sweeps` times N updates of R replicas at `temperature` T >= 0.

    **Arguments.**

    - `spins` (R, N): $\pm1$, one row a replica; their dtype is that of the run.
    - `sweeps`: of N updates each, at least 1. `save_every`: of them one is observed; it divides `sweeps`.
    - `order`: the sites in a new random order every sweep, in turn, or all at once. The first two leave $e^{-E/T}$
      invariant; the third does not (pairwise: it has Peretto's pseudo-Hamiltonian, and cycles of length 2 at T = 0).
    - `observe`: spins (R, N) -> pytree, by default the energy per spin (R,). A new function compiles anew, so define it
      once or wrap its arrays, as in `jax.tree_util.Partial(overlaps, patterns)`.

    At T = 0 a spin follows its field and keeps its value where that is 0.
    **Cost.** N fields a sweep: O(K) each for `Dense`, O(N) for `Pairwise`. Noise is indexed by sweep, site and
    replica: a replica does not depend on how many run beside it.
    """
    check_key(key)
    check.instance(energy, "energy", AbstractSpinEnergy, "Pairwise(couplings) or Dense(patterns)")
    if spins.ndim != 2:
        raise ValueError(f"spins must have shape (replicas, N), got {spins.shape}")
    size = energy.couplings.shape[0] if isinstance(energy, Pairwise) else getattr(energy, "patterns", spins).shape[-1]
    if size != spins.shape[1]:
        raise ValueError(f"the energy has {size} spins, the state {spins.shape[1]}: replicas go on the first axis")
    check.choice(order, "order", ("random", "typewriter", "parallel"))
    check.number(temperature, "temperature", least=0)
    sweeps = check.count(sweeps, "sweeps")
    save_every = check.count(save_every, "save_every", divides=sweeps)
    if observe is not None:
        check.function(observe, "observe", "of spins (replicas, N)")
    return _run(energy, spins, sweeps, temperature, key, order, save_every, observe)


TILE = 64  # replicas at a time on a CPU


@program
def _run(energy, spins, sweeps, temperature, key, order, save_every, observe):
    replicas, n = spins.shape
    temperature = jnp.asarray(temperature, spins.dtype)
    lanes = jnp.arange(replicas, dtype=jnp.uint32)
    noise_key, site_key = jax.random.split(key)
    rows = energy.rows()

    def draw(k):
        """T ln(1/u - 1): the spin is 1 where that is below 2 h, which has probability 1 / (1 + exp(-2 h / T))."""
        u = uniform(noise_key, k, jax.ShapeDtypeStruct((n,), spins.dtype), lanes)
        u = jnp.minimum(u, 1 - jnp.finfo(u.dtype).epsneg)
        return temperature * (jnp.log1p(-u) - jnp.log(u))

    def decide(old, field, threshold):
        drive = 2 * field - threshold
        return jnp.where(drive == 0, old, jnp.sign(drive))

    def at_once(spins, k, thresholds):
        summary = energy.summary(spins)
        fields = lax.map(lambda row_spin: energy.field(summary, *row_spin), (rows, spins))
        return decide(spins, fields, thresholds)

    def one_by_one(spins, k, thresholds):
        # Rows go through the scan as inputs and spins as outputs: a state written in place would be copied each time.
        def update(summary, inputs):
            row, old, threshold = inputs
            new = decide(old, energy.field(summary, row, old), threshold)
            return energy.moved(summary, row, new - old), new

        site = jax.random.permutation(jax.random.fold_in(site_key, k), n)
        ordered = (lambda v: v) if order == "typewriter" else lambda v: v[site]
        taken = jax.tree.map(ordered, rows)

        def some(spins, thresholds):
            inputs = (taken, ordered(spins), ordered(thresholds))
            return lax.scan(update, energy.summary(spins), inputs)[1]

        def tiled(spins, thresholds):
            """In groups, so that what a flip moves stays in the cache of a core."""
            tile = lambda a: jnp.moveaxis(a.reshape(n, -1, TILE), 1, 0)
            new = lax.map(lambda a: some(*a), (tile(spins), tile(thresholds)))
            return jnp.moveaxis(new, 0, 1).reshape(n, replicas)

        if replicas > TILE and replicas % TILE == 0:
            new = lax.platform_dependent(spins, thresholds, cpu=tiled, default=some)
        else:
            new = some(spins, thresholds)
        # A gather: scattering the rows back would cost more than the sweep.
        return new if order == "typewriter" else new[jnp.argsort(site)]

    if observe is None:
        observe = lambda spins: energy(spins) / n
    sweep = at_once if order == "parallel" else one_by_one
    watch = lambda s: observe(s.T)
    last, observed = march(sweep, spins.T, sweeps, draw=draw, save_every=save_every, observe=watch)
    return GlauberRun(last.T, observed)
