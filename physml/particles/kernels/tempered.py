r"""Parallel tempering: replicas at temperatures $T_1 < \dots < T_R$ that move by a kernel and exchange their places.

Neighbours i, i + 1 exchange with probability $\min\bigl(1, e^{(1/T_i - 1/T_{i+1})(E_i - E_{i+1})}\bigr)$; pairs with
even i at even moves, those with odd i at odd ones. Exchanges that always succeed then carry a replica straight to the
other end, where at random it would diffuse. If energies forget their past between exchanges, the replicas together make

$$\tau = \Bigl(2 + 2\sum_i\frac{r_i}{1 - r_i}\Bigr)^{-1}$$

round trips a move, from the coldest level to the hottest and back, with the rates $r_i$ at which exchanges are refused:
`round_trips` measures both sides.

**See** Okabe et al. (2001); Syed, Bouchard-Côté, Deligiannidis and Doucet, Non-reversible parallel tempering (2022),
theorem 3.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from physml.core import check, noise as streams
from physml.core._status import Checked, Code, Status, status
from physml.core.program import program
from physml.core.types import Key, Numbers
from physml.particles.kernels.base import AbstractKernel, AbstractTunable, Info, over_lanes


class Ladder(NamedTuple):
    """States of all levels, levels first; `position` is the coldest.

    `heading`: 1 for a replica that was last at the cold end, -1 at the hot one, 0 at none yet. `count`: moves so far;
    `trips`: round trips; `refused`: sums of the probabilities with which each pair was refused, (R - 1, ...).
    """

    position: PyTree
    levels: Any
    heading: Array
    count: Array
    trips: Array
    refused: Array


class Tempered(AbstractKernel):
    """See `tempered`."""

    rejects: ClassVar[bool] = True

    kernel: AbstractTunable
    temperatures: Array
    step_sizes: Array
    lanes: int = eqx.field(static=True, default=0)

    @property
    def scale(self) -> PyTree:
        """That of the kernel."""
        return self._at(0).scale

    def _at(self, level):
        kernel: Any = over_lanes(self.kernel) if self.lanes else self.kernel
        return dataclasses.replace(kernel, temperature=self.temperatures[level], step_size=self.step_sizes[level])

    def init(self, position: PyTree, rng_key: Key | None = None) -> Ladder:
        R = len(self.temperatures)
        one = self._at(0).init(position)
        levels = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (R, *leaf.shape)), one)
        shape = one.energy.shape
        nothing = jnp.zeros(shape, jnp.int32)
        heading = jnp.zeros((R, *shape), jnp.int32).at[0].set(1).at[-1].set(-1)
        return Ladder(position, levels, heading, nothing, nothing, jnp.zeros((R - 1, *shape), one.energy.dtype))

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        R = len(self.temperatures)
        dtype = jnp.result_type(jax.tree.leaves(position)[0])
        inner = jax.vmap(lambda r: self.kernel.draw(jax.random.fold_in(key, r), position, lanes))
        exchange = streams.uniform(key, 2, jax.ShapeDtypeStruct((R - 1,), dtype), lanes)
        return inner(jnp.arange(R, dtype=jnp.uint32)), exchange

    def move(self, state: Ladder, noise: PyTree) -> tuple[Ladder, Info]:
        inner, uniform = noise
        T, R = self.temperatures.astype(uniform.dtype), len(self.temperatures)
        levels, _ = jax.vmap(lambda r, s, xi: self._at(r).move(s, xi))(jnp.arange(R), state.levels, inner)

        per_pair = lambda a: jnp.expand_dims(a, tuple(range(1, uniform.ndim)))
        log_ratio = per_pair(1 / T[:-1] - 1 / T[1:]) * (levels.energy[:-1] - levels.energy[1:])
        rate = jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))
        turn = (jnp.arange(R - 1) % 2).reshape(per_pair(T[1:]).shape) == (state.count % 2)[None]
        swap = turn & (uniform < rate)
        # Where the replica of each level comes from: itself, or the neighbour that it exchanges with.
        none = jnp.zeros((1, *swap.shape[1:]), jnp.int32)
        up, down = (jnp.concatenate(pair) for pair in ((swap.astype(jnp.int32), none), (none, swap.astype(jnp.int32))))
        source = jnp.arange(R, dtype=jnp.int32).reshape(R, *(1,) * (swap.ndim - 1)) + up - down

        def exchanged(leaf):
            index = jnp.expand_dims(source, tuple(range(1, 1 + leaf.ndim - source.ndim)))
            return jnp.take_along_axis(leaf, jnp.broadcast_to(index, leaf.shape), axis=0)

        levels, heading = jax.tree.map(exchanged, levels), exchanged(state.heading)
        trips = state.trips + (heading[0] == -1).astype(jnp.int32)
        tried = jnp.sum(turn, 0).astype(rate.dtype)
        info = Info(jnp.sum(jnp.where(turn, rate, 0), 0) / jnp.maximum(tried, 1))
        coldest = jax.tree.map(lambda leaf: leaf[0], levels.position)
        heading = heading.at[0].set(1).at[-1].set(-1)
        refused = state.refused + jnp.where(turn, 1 - rate, 0)
        return Ladder(coldest, levels, heading, state.count + 1, trips, refused), info


def tempered(kernel: AbstractKernel, temperatures: Numbers, *, step_sizes: Numbers | None = None) -> Tempered:
    r"""Replicas of one chain at several temperatures, which exchange so that the coldest crosses barriers.

    **Arguments.** `kernel`: `mala`, `hmc` or adjusted `microcanonical` for the energy; its own temperature does not
    count. `temperatures` (R,), rising; the first is that of the samples. `step_sizes` (R,): of the levels, by default
    the kernel's own (momenta grow with the temperature; at unit speed, as in `microcanonical`, it grows as
    $\sqrt{T}$). **State.** `Ladder`; all levels start at the same position.
    **Cost.** R moves of the kernel. `info.acceptance` is that of the exchanges that were tried.
    **Errors.** `ValueError` for fewer than two temperatures, for those that do not rise, for other kernels. Levels that
    never exchange are found by `round_trips(state).check()`.

    **Example.**
    ```python
    kernel = tempered(hmc(energy, 0.2), [1.0, 2.0, 4.0, 8.0])
    run = run_chains(kernel, x0s, 5000, key=key)
    trips = round_trips(run.state).check()  # trips.rate beside trips.theory
    ```
    """
    check.instance(kernel, "kernel", AbstractTunable, "mala, hmc or adjusted microcanonical")
    if not kernel.rejects:
        raise ValueError("tempered needs a kernel that knows its energy: mala, hmc or adjusted microcanonical")
    inner: Any = kernel
    check.within(temperatures, "temperatures", above=0)
    temperatures = jnp.asarray(temperatures, float)
    if temperatures.ndim != 1 or len(temperatures) < 2:
        raise ValueError(f"temperatures are two or more in a row, got shape {temperatures.shape}")
    known = check.known(temperatures)
    if known is not None and not (np.diff(known) > 0).all():
        raise ValueError(f"temperatures must rise from the one that is sampled, got {known}")
    if step_sizes is None:
        power = 0.5 if hasattr(inner, "length") and not hasattr(inner, "steps") else 0.0
        h = inner.step_size * (temperatures / temperatures[0]) ** power
    else:
        check.within(step_sizes, "step_sizes", above=0)
        h = jnp.asarray(step_sizes, float)
    if h.shape != temperatures.shape:
        raise ValueError(f"step_sizes must be one for each of {len(temperatures)} temperatures, got shape {h.shape}")
    return Tempered(inner, temperatures, h)


class RoundTrips(Checked):
    r"""`rate`: round trips of all replicas a move, with its standard `error` over chains; `theory`: $\tau$ of the
    module, from the measured `refusal` (R - 1,); `barrier`: their sum, which says how many levels are needed.

    Status `apart`, with the number of the pair, where two levels never exchanged.
    """

    computation: ClassVar[str] = "tempered"
    counted: ClassVar[str] = "pair"

    rate: Array
    error: Array
    theory: Array
    refusal: Float[Array, " pairs"]
    barrier: Array
    status: Status


def round_trips(state: Ladder) -> RoundTrips:
    """What the replicas did in a run, from its last state: of one chain, or of many."""
    check.instance(state, "state", Ladder, "the state of a run of `tempered`, such as run.state")
    return _round_trips(state)


@program
def _round_trips(state):
    pairs = state.refused.shape[-1]
    refused, moves = jnp.reshape(state.refused, (-1, pairs)), jnp.ravel(state.count)[0]
    tries = jnp.maximum((moves + 1 - jnp.arange(pairs) % 2) // 2, 1).astype(refused.dtype)
    refusal = jnp.mean(refused, 0) / tries
    rates = jnp.ravel(state.trips).astype(refused.dtype) / moves.astype(refused.dtype)
    error = jnp.std(rates) / np.sqrt(len(rates) - 1) if len(rates) > 1 else jnp.full((), np.nan, rates.dtype)
    never = refusal > 1 - 1e-6
    theory = 1 / (2 + 2 * jnp.sum(refusal / jnp.where(never, 1, 1 - refusal)))
    theory = jnp.where(jnp.any(never), 0, theory)
    code = jnp.where(jnp.any(never), Code.apart, Code.ok)
    return RoundTrips(jnp.mean(rates), error, theory, refusal, jnp.sum(refusal), status(code, jnp.argmax(never)))
