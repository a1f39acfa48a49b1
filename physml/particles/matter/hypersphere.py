r"""Energies of directions on the sphere: repelling charges, Thomson's problem, and neurons kept apart."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array

from physml.core import in_float64
from physml.core.types import Key
from physml.particles.chains.run import run_chains
from physml.particles.energies.pair_energy import PairEnergy
from physml.particles.kernels.langevin import overdamped

# Distances of unit vectors in more dimensions than this come from one matrix product.
_BY_COORDINATES = 4


def hyperspherical_energy(x: Array, s: float = 1.0, *, half_space: bool = False) -> Array:
    r"""$E_s(x) = \sum_{i<j} \phi_s(|\hat x_i - \hat x_j|)$, $\hat x = x/|x|$; $\phi_s = r^{-s}$, $\phi_0 = -\ln r$.

    s = d - 2 is the Coulomb energy on the sphere in d dimensions. Minimal for evenly spread directions; as a
    regulariser it keeps the neurons of a layer apart. With `half_space` every pair adds
    $\phi_s(|\hat x_i + \hat x_j|)$: a direction and its opposite count as one line.

    **Arguments.** `x` (N, d), rows of any length but zero. `s`: exponent, at least 0. **Returns** a scalar; divide by
    N(N-1)/2 for the mean over pairs. **Cost.** N^2 pairs up to d = 4; above, a product (N, d) (d, N), whose distances
    lose digits below a tenth of a degree in float32 and are cut off there. **Errors.** ValueError for a negative s and
    fewer than two directions. **See** Liu et al., Learning towards minimum hyperspherical energy (2018).
    """
    if s < 0:
        raise ValueError(f"s must be at least 0 (0 is the logarithmic energy), got {s}")
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"hyperspherical_energy needs at least two directions (N, d), got shape {x.shape}")
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    if x.shape[1] > _BY_COORDINATES:
        return _by_product(x, s, half_space, 16 * float(jnp.finfo(x.dtype).eps))
    phi = lambda a, b: _riesz(jnp.sum((a - b) ** 2), s)
    line = lambda a, b: phi(a, b) + _riesz(jnp.sum((a + b) ** 2), s)
    return PairEnergy(line if half_space else phi)(x)


def _by_product(x, s, half_space=False, least=0.0, soft=0.0):
    """The energy of unit vectors x with |x - y|^2 = 2 - 2 x.y + soft, at least `least`."""
    apart = ~jnp.eye(len(x), dtype=bool)
    cosine = jnp.where(apart, x @ x.T, 0)
    phi = lambda c: _riesz(jnp.maximum(2 - 2 * c + soft, least), s)
    pairs = phi(cosine) + phi(-cosine) if half_space else phi(cosine)
    return jnp.sum(jnp.where(apart, pairs, 0)) / 2


def _riesz(r2, s):
    return -jnp.log(r2) / 2 if s == 0 else r2 ** (-s / 2)


def thomson(
    n: int, *, key: Key, d: int = 3, s: float = 1.0, chains: int = 16, sweeps: int = 10, moves: int = 50
) -> tuple[Array, Array]:
    r"""Minima of $E_s$ for n points on the sphere: Langevin dynamics cooled in stages, then a descent by BFGS.

    Each of `chains` starts anneals in `sweeps` stages of `moves` steps, at half the temperature each; the repulsion is
    softened below a third of the spacing, and a spring holds the length of every point near one, which leaves the law
    of the directions as it is. The descent, of $E_s$ itself, is in float64.

    **Returns** points (chains, n, d) on the sphere and energies (chains,): local minima, of which the least is the
    candidate for the global one. **Cost.** chains x (sweeps x moves + some 100) gradients.
    **Errors.** ValueError for n or d below 2. **See** Thomson (1904).

    ```python
    x, energy = thomson(12, key=jax.random.key(0))  # min energy 49.165253: the icosahedron
    ```
    """
    if n < 2 or d < 2:
        raise ValueError(f"thomson needs at least 2 points in at least 2 dimensions, got n = {n}, d = {d}")
    start, heat = jax.random.split(key)
    x = jax.random.normal(start, (chains, n, d))
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    spacing = n ** (-1 / (d - 1))
    energy = _Sprung(s, (spacing / 3) ** 2)
    for k in range(sweeps):
        kernel = overdamped(energy, 0.02 * spacing ** (2 + s), 0.3 * 0.5**k)
        x = run_chains(kernel, x, moves, key=jax.random.fold_in(heat, k), keep=False, stats=False).state.position
    return _descend(x, s)


class _Sprung(eqx.Module):
    """The softened energy of the directions, with lengths held near one."""

    s: float = eqx.field(static=True)
    soft: float = eqx.field(static=True)

    def __call__(self, x):
        lengths = jnp.linalg.norm(x, axis=1, keepdims=True)
        return _by_product(x / lengths, self.s, soft=self.soft) + 10 * jnp.sum((lengths - 1) ** 2)


@in_float64
def _descend(x, s):
    solver = optx.BFGS(rtol=1e-10, atol=1e-10)
    energy = lambda x, _: _by_product(x / jnp.linalg.norm(x, axis=1, keepdims=True), s)

    def one(x):
        best = optx.minimise(energy, solver, x, throw=False, max_steps=2000).value
        best = best / jnp.linalg.norm(best, axis=1, keepdims=True)
        return best, energy(best, None)

    return jax.jit(jax.vmap(one))(x)
