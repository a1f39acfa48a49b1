"""A memory with both sides, for `physml.compare`: replica theory, and Glauber dynamics of n spins."""

import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from physml.core import Checked, Status, check
from physml.core.types import Key, Scalar
from physml.hopfield.spins.glauber import Dense, glauber
from physml.hopfield.spins.patterns import random_patterns
from physml.hopfield.theory._dense import dense


class Overlap(NamedTuple):
    """The overlap `m` with the pattern that is retrieved."""

    m: Array


class Retrieved(Checked):
    """The overlap in theory, and whether its equations were solved."""

    computation: ClassVar[str] = "replica theory"

    order: Overlap
    status: Status


class MemoryNetwork(eqx.Module):
    r"""A Hopfield memory with p-spin interactions: the replica-symmetric overlap, and one network of n spins.

    **Theory.** m of `dense(p, load, temperature)`, the branch of retrieval; at p = 2 that of Amit, Gutfreund and
    Sompolinsky. **Finite system.** $K = a n^{p-1}/(p-1)!$ random patterns of n spins, rounded; `replicas` start from
    patterns of their own and move by `sweeps` sweeps of Glauber dynamics, of which the first third is left out. The
    theory is approached as 1/n.

    - `load`: a >= 0; `temperature` > 0.
    - `p`: spins that interact, at least 2.
    """

    load: Scalar
    temperature: Scalar
    p: int = eqx.field(static=True, default=2)
    replicas: int = eqx.field(static=True, default=64)
    sweeps: int = eqx.field(static=True, default=60)

    def __check_init__(self):
        check.within(self.temperature, "temperature", above=0)
        check.within(self.load, "load", least=0)
        check.count(self.sweeps, "sweeps", least=3)

    def theory(self) -> Retrieved:
        order = dense(self.p, self.load, self.temperature)
        return Retrieved(Overlap(order.m), order.status)

    def finite_n(self, n: int, *, key: Key) -> Overlap:
        pattern_key, run_key = jax.random.split(key)
        load = check.known(self.load)
        if load is None:
            raise ValueError("the number of patterns is a shape: load must be a number of Python's in finite_n")
        count = max(1, round(float(load) * n ** (self.p - 1) / math.factorial(self.p - 1)))
        patterns = random_patterns(count, n, key=pattern_key)
        start = patterns[jnp.arange(self.replicas) % len(patterns)]
        own = jax.tree_util.Partial(_own_overlap, start)
        memory = Dense(patterns, self.p)
        out = glauber(memory, start, self.sweeps, temperature=self.temperature, key=run_key, observe=own)
        return Overlap(jnp.mean(out.observed[self.sweeps // 3 :]))


def _own_overlap(start, spins):
    """Overlap of each replica with the pattern it started from."""
    return jnp.mean(start * spins, 1)
