r"""Energies of directions on the sphere: repelling charges, Thomson's problem, and neurons kept apart."""

from collections.abc import Iterator
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array

from physml.core import check, in_float64
from physml.core._status import Checked, Code, Status, status
from physml.core.program import program
from physml.core.types import Key, Scalar
from physml.particles.chains.run import run_chains
from physml.particles.energies.pair_energy import PairEnergy
from physml.particles.kernels.langevin import overdamped

# Distances of unit vectors in more dimensions than this come from one matrix product.
_BY_COORDINATES = 4


def hyperspherical_energy(x: Array, s: Scalar = 1.0, *, half_space: bool = False) -> Array:
    r"""$E_s(x) = \sum_{i<j} \phi_s(|\hat x_i - \hat x_j|)$, $\hat x = x/|x|$; $\phi_s = r^{-s}$, $\phi_0 = -\ln r$.

    s = d - 2 is the Coulomb energy on the sphere in d dimensions. Minimal for evenly spread directions; as a
    regulariser it keeps the neurons of a layer apart. With `half_space` every pair adds
    $\phi_s(|\hat x_i + \hat x_j|)$: a direction and its opposite count as one line.

    **Arguments.** `x` (N, d), rows of any length but zero. `s`: exponent, at least 0. **Returns** a scalar; divide by
    N(N-1)/2 for the mean over pairs. **Cost.** N^2 pairs up to d = 4; above, a product (N, d) (d, N), whose distances
    lose digits below a tenth of a degree in float32 and are cut off there. **Errors.** ValueError for a negative s and
    fewer than two directions. **See** Liu et al., Learning towards minimum hyperspherical energy (2018).
    """
    exponent = _exponent(s)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"hyperspherical_energy needs at least two directions (N, d), got shape {x.shape}")
    rows = check.known(x)
    if rows is not None and not np.all(np.any(rows != 0, axis=1)):
        raise ValueError("hyperspherical_energy needs directions: a row of x is zero")
    return _repulsion(x, exponent, half_space)


def _exponent(s):
    """s >= 0 as an array, or None for the logarithm, which is told by a zero that is known here."""
    number, value = check.number(s, "s", least=0), check.known(s)
    return None if value is not None and value == 0 else number


@program
def _repulsion(x, s, half_space):
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    if x.shape[1] > _BY_COORDINATES:
        return _by_product(x, s, half_space, 16 * float(jnp.finfo(x.dtype).eps))
    phi = lambda a, b: _riesz(jnp.sum((a - b) ** 2), s)
    line = lambda a, b: phi(a, b) + _riesz(jnp.sum((a + b) ** 2), s)
    return PairEnergy(line if half_space else phi)(x)


def _by_product(x, s, half_space=False, least: Scalar = 0.0, soft: Scalar = 0.0):
    """The energy of unit vectors x with |x - y|^2 = 2 - 2 x.y + soft, at least `least`."""
    apart = ~jnp.eye(len(x), dtype=bool)
    cosine = jnp.where(apart, x @ x.T, 0)
    phi = lambda c: _riesz(jnp.maximum(2 - 2 * c + soft, least), s)
    pairs = phi(cosine) + phi(-cosine) if half_space else phi(cosine)
    return jnp.sum(jnp.where(apart, pairs, 0)) / 2


def _riesz(r2, s):
    """s None is the logarithm."""
    return -jnp.log(r2) / 2 if s is None else r2 ** (-jnp.asarray(s, r2.dtype) / 2)


class Charges(Checked):
    """Points `x` (chains, n, d) on the sphere and their energies `energy` (chains,), with a status for each chain.

    Unpacks as `x, energy = charges`. `status`: `not_converged` where the descent used up its steps, `diverged` where
    the energy is not finite.
    """

    computation: ClassVar[str] = "thomson"
    counted: ClassVar[str] = "step of the descent"

    x: Array
    energy: Array
    status: Status

    def __iter__(self) -> Iterator[Array]:
        return iter((self.x, self.energy))


def thomson(
    n: int, *, key: Key, d: int = 3, s: Scalar = 1.0, chains: int = 16, sweeps: int = 10, moves: int = 50
) -> Charges:
    r"""Minima of $E_s$ for n points on the sphere: Langevin dynamics cooled in stages, then a descent by BFGS.

    Each of `chains` starts anneals in `sweeps` stages of `moves` steps, at half the temperature each; the repulsion is
    softened below a third of the spacing, and a spring holds the length of every point near one, which leaves the law
    of the directions as it is. The descent, of $E_s$ itself, is in float64.

    **Returns** `Charges(x, energy, status)`: local minima, of which the least is the candidate for the global one.
    **Cost.** chains x (sweeps x moves + some 100) gradients.
    **Errors.** ValueError for n or d below 2 and a negative s. **See** Thomson (1904).

    ```python
    x, energy = thomson(12, key=jax.random.key(0))  # min energy 49.165253: the icosahedron
    ```
    """
    if check.count(n, "n") < 2 or check.count(d, "d") < 2:
        raise ValueError(f"thomson needs at least 2 points in at least 2 dimensions, got n = {n}, d = {d}")
    exponent = _exponent(s)
    start, heat = jax.random.split(key)
    x = jax.random.normal(start, (check.count(chains, "chains"), n, d))
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    spacing = n ** (-1 / (d - 1))
    energy = _Sprung(exponent, jnp.asarray((spacing / 3) ** 2))
    for k in range(check.count(sweeps, "sweeps", least=0)):
        kernel = overdamped(energy, 0.02 * spacing ** (2 + s), 0.3 * 0.5**k)
        x = run_chains(kernel, x, moves, key=jax.random.fold_in(heat, k), keep=False, stats=False).state.position
    best, value, steps, found = _descend(x, energy.s, 2000)
    code = jnp.where(jnp.isfinite(value), jnp.where(found, Code.ok, Code.not_converged), Code.diverged)
    return Charges(x=best, energy=value, status=status(code, steps))


class _Sprung(eqx.Module):
    """The softened energy of the directions, with lengths held near one."""

    s: Array | None
    soft: Array

    def __call__(self, x):
        lengths = jnp.linalg.norm(x, axis=1, keepdims=True)
        soft = self.soft.astype(x.dtype)
        return _by_product(x / lengths, self.s, soft=soft) + 10 * jnp.sum((lengths - 1) ** 2)


@in_float64
@program
def _descend(x, s, max_steps):
    solver = optx.BFGS(rtol=1e-10, atol=1e-10)
    energy = lambda x, _: _by_product(x / jnp.linalg.norm(x, axis=1, keepdims=True), s)

    def one(x):
        out = optx.minimise(energy, solver, x, throw=False, max_steps=max_steps)
        best = out.value / jnp.linalg.norm(out.value, axis=1, keepdims=True)
        return best, energy(best, None), out.stats["num_steps"], out.result == optx.RESULTS.successful

    return jax.vmap(one)(x)
