r"""Langevin dynamics with the gradient of a minibatch: the indices of the batch are part of the noise of a move.

For data $z_1, \ldots, z_N$ the energy is $E(x) = E_0(x) + \sum_i e(x, z_i)$. A batch B of n indices, drawn with
replacement, gives the gradient $\hat g = \nabla E_0 + \frac Nn \sum_{i \in B} \nabla e(x, z_i)$, of covariance
$\frac{N^2}{n}\,\mathrm{Cov}_i \nabla e(x, z_i)$. With `control`, a point c, the same holds for
$\hat g = \nabla E(c) + \nabla E_0(x) - \nabla E_0(c) + \frac Nn \sum_{i \in B} \nabla e(x, z_i) - \nabla e(c, z_i)$,
which has no noise at c.

| kernel | step |
|---|---|
| `sgld` | $x' = x - h\hat g(x) + \sqrt{2Th}\,\xi$ |
| `sghmc` | a splitting of $dx = p\,dt,\ dp = -\hat g\,dt - \gamma p\,dt + \sqrt{2\gamma T}\,dW$, one batch a step |

Constant steps keep the noise of the batches: for `sgld` it adds $h\,\mathrm{Cov}(\hat g)/2T$ to the temperature.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check, noise as streams
from physml.core.types import Energy, Key, Scalar
from physml.particles.kernels.base import (
    AbstractKernel,
    Info,
    Position,
    accepted,
    check_position,
    normals,
    plus,
    scaled,
)

Scheme = Literal["euler", "BAOAB", "OBABO", "OABAO", "ABOBA"]


class Moving(NamedTuple):
    """Position and momentum."""

    position: PyTree
    momentum: PyTree


class MinibatchEnergy(eqx.Module):
    r"""$E_0(x) + \sum_i e(x, z_i)$ and its estimate from a batch.

    `term(x, z)`: e, for ONE datum z. `data`: a pytree of arrays (N, ...). `prior`: $E_0$, or None. `batch_size`: n.
    `control`: the point c of control variates, or None; the gradient of E there is computed when it is given.
    """

    term: Callable[[PyTree, PyTree], Any]
    data: PyTree
    prior: Energy | None
    batch_size: int = eqx.field(static=True)
    control: PyTree | None
    at_control: PyTree | None

    def __init__(
        self,
        term: Callable[[PyTree, PyTree], Any],
        data: PyTree,
        batch_size: int,
        prior: Energy | None = None,
        *,
        control: PyTree | None = None,
    ):
        data = jax.tree.map(jnp.asarray, data)
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
        if len(sizes) != 1 or sizes & {(), (0,)}:
            raise ValueError(f"data must be arrays (N, ...) of one N; got {[x.shape for x in jax.tree.leaves(data)]}")
        check.function(term, "term", "of a position and one datum")
        self.term, self.data, self.prior = term, data, prior
        self.batch_size = check.count(batch_size, "batch_size")
        self.control = self.at_control = None
        if control is not None:
            self.at_control, self.control = jax.grad(self.__call__)(control), control

    @property
    def size(self) -> int:
        """N."""
        return jax.tree.leaves(self.data)[0].shape[0]

    def __call__(self, x: PyTree) -> Array:
        """The whole energy."""
        return self._prior(x) + jnp.sum(jax.vmap(self.term, (None, 0))(x, self.data))

    def estimate(self, x: PyTree, indices: Array) -> Array:
        """A scalar whose gradient in x is the estimate from the batch; without control also unbiased itself."""
        batch = jax.tree.map(lambda leaf: leaf[indices], self.data)
        scale = self.size / indices.shape[0]
        sums = lambda x: self._prior(x) + scale * jnp.sum(jax.vmap(self.term, (None, 0))(x, batch))
        if self.control is None:
            return sums(x)
        # The gradient of the batch at c enters linearly in x, and so does that of all data.
        there = jax.grad(sums)(self.control)
        shift = jax.tree.map(lambda g, b, x: jnp.sum((g - b) * x), self.at_control, there, x)
        return sums(x) + sum(jax.tree.leaves(shift))

    def _prior(self, x):
        return 0.0 if self.prior is None else self.prior(x)


class StochasticGradient(AbstractKernel):
    """See `sgld` and `sghmc`."""

    energy: MinibatchEnergy
    step_size: Array
    friction: Array | None
    temperature: Array
    scheme: str = eqx.field(static=True)
    shuffle: bool = eqx.field(static=True)
    lanes: int = eqx.field(static=True, default=0)

    def init(
        self, position: PyTree, rng_key: Key | None = None, *, momentum: PyTree | None = None
    ) -> Position | Moving:
        if rng_key is not None:  # not a momentum, whose place this is not
            streams.check_key(rng_key)
        check_position(position)
        if self.friction is None:
            return Position(position)
        return Moving(position, jax.tree.map(jnp.zeros_like, position) if momentum is None else momentum)

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        count = max(1, self.scheme.count("O"))
        if not self.shuffle:
            return normals(key, (position,) * count, lanes), draw_batch(key, self.energy, lanes)
        steps = self.energy.size // self.energy.batch_size
        stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype), (position,) * count)
        u = streams.uniform(key, 1, jax.ShapeDtypeStruct((self.energy.size,), jnp.float32), lanes)
        order = jnp.argsort(u, axis=0).astype(jnp.int32)
        return normals(key, stacked, lanes), order.reshape(steps, self.energy.batch_size, *u.shape[1:])

    def move(self, state: PyTree, noise: PyTree) -> tuple[Any, Info]:
        if self.shuffle:
            state, _ = lax.scan(lambda state, noise: (self._step(state, *noise), None), state, noise)
        else:
            state = self._step(state, *noise)
        return state, accepted(state.position, self.lanes)

    def _step(self, state, xi, batch):
        h, T, x = self.step_size, self.temperature, state.position
        if self.friction is None:
            kick = scaled(jnp.sqrt(2 * T * h), xi[0])
            return Position(plus(x, scaled(-h, self._gradient(x, batch)), kick))
        p, xi = state.momentum, list(xi)
        if self.scheme == "euler":
            kick = scaled(jnp.sqrt(2 * self.friction * T * h), xi[0])
            p = plus(scaled(1 - self.friction * h, p), scaled(-h, self._gradient(x, batch)), kick)
            return Moving(plus(x, scaled(h, p)), p)
        for letter in self.scheme:
            part = h / self.scheme.count(letter)
            if letter == "A":
                x = plus(x, scaled(part, p))
            elif letter == "B":
                p = plus(p, scaled(-part, self._gradient(x, batch)))
            else:
                decay = -self.friction * part
                p = plus(scaled(jnp.exp(decay), p), scaled(jnp.sqrt(-T * jnp.expm1(2 * decay)), xi.pop()))
        return Moving(x, p)

    def _gradient(self, x, batch):
        return batch_gradient(self.energy, x, batch, self.lanes)


def draw_batch(key: Key, energy: MinibatchEnergy, lanes: ArrayLike) -> Array:
    """Indices (n,), with replacement; stream 1 of a key."""
    u = streams.uniform(key, 1, jax.ShapeDtypeStruct((energy.batch_size,), jnp.float32), lanes)
    return jnp.minimum((u * energy.size).astype(jnp.int32), energy.size - 1)


def batch_gradient(energy: MinibatchEnergy, x: PyTree, batch: Array, lanes: int) -> PyTree:
    """The estimate of the gradient."""
    grad = jax.grad(energy.estimate)
    return grad(x, batch) if lanes == 0 else jax.vmap(grad, (-1, -1), -1)(x, batch)


def sgld(
    energy: MinibatchEnergy, step_size: Scalar, temperature: Scalar = 1.0, *, shuffle: bool = False
) -> StochasticGradient:
    r"""Stochastic gradient Langevin dynamics: $x' = x - h\,\hat g(x) + \sqrt{2Th}\,\xi$.

    For $e(x, z) = a|x - z|^2/2$ the stationary variance is, with $k = Na$, exactly
    $(2Th + h^2 a^2 N^2 \mathrm{Var}(z)/n)/(1 - (1 - kh)^2)$: h must be far below $T n/(a^2 N^2 \mathrm{Var}(z))$, or
    the energy have a `control`.

    **Arguments.** `energy`: a `MinibatchEnergy`. `step_size`: h > 0. `temperature`: T >= 0. `shuffle`: a move is an
    epoch, N/n steps over all data in random order, instead of one step with a batch drawn with replacement.
    **Cost.** n gradients of a term (2 n with a control) a step. **Errors.** `ValueError` for an energy of another kind,
    a batch larger than the data or, shuffled, one that does not divide them. **See** Welling and Teh (2011).
    """
    return _stochastic(energy, step_size, None, temperature, "", shuffle)


def sghmc(
    energy: MinibatchEnergy,
    step_size: Scalar,
    friction: Scalar = 1.0,
    temperature: Scalar = 1.0,
    scheme: Scheme = "BAOAB",
    *,
    shuffle: bool = False,
) -> StochasticGradient:
    r"""Underdamped Langevin dynamics with one batch a step: $dx = p\,dt$,

    $$dp = -\hat g(x)\,dt - \gamma p\,dt + \sqrt{2\gamma T}\,dW.$$

    `euler` is stochastic gradient Hamiltonian Monte Carlo as first written; the others are splittings, with the letters
    of `underdamped`. With all data `BAOAB`, `OBABO`, `OABAO` and `ABOBA` have the weak order 2. Batches with
    replacement make every scheme of order 1: they add $h\,\mathrm{Cov}(\hat g)/2\gamma$ to the temperature.
    With `shuffle` the noise of an epoch cancels at leading order.

    **Arguments, errors** as in `sgld`; `friction`: $\gamma > 0$. **Cost.** One batch gradient for each B.
    **See** Chen, Fox and Guestrin (2014); Franzese et al., Hamiltonian SDEs with minibatches.
    """
    check.choice(scheme, "scheme", ("euler", "BAOAB", "OBABO", "OABAO", "ABOBA"))
    return _stochastic(energy, step_size, check.number(friction, "friction", above=0), temperature, scheme, shuffle)


def _stochastic(energy, step_size, friction, temperature, scheme, shuffle):
    check_data(energy)
    if shuffle and energy.size % energy.batch_size:
        raise ValueError(f"an epoch needs a batch_size that divides the {energy.size} data, got {energy.batch_size}")
    h, T = check.number(step_size, "step_size", above=0), check.number(temperature, "temperature", least=0)
    return StochasticGradient(
        energy=energy, step_size=h, friction=friction, temperature=T, scheme=scheme, shuffle=shuffle
    )


def check_data(energy):
    """Raise a `ValueError` unless `energy` is a `MinibatchEnergy` whose batches are no larger than its data."""
    check.instance(energy, "energy", MinibatchEnergy, "a MinibatchEnergy(term, data, batch_size)")
    if energy.batch_size > energy.size:
        raise ValueError(f"batch_size must be at most the {energy.size} data, got {energy.batch_size}")
