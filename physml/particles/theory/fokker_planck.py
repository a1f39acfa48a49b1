r"""The stationary Fokker-Planck equation in the plane on a grid: density, currents and entropy production."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from physml.core import check

Pair = tuple[float | int, float | int]


class StationaryDensity(NamedTuple):
    """`x`, `y`: centres of the cells; `density` (nx, ny), of integral one; `entropy_production`, its rate."""

    x: np.ndarray
    y: np.ndarray
    density: np.ndarray
    entropy_production: float


def stationary_density(
    drift: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    diffusion: Pair,
    bounds: tuple[Pair, Pair],
    cells: tuple[int, int],
    *,
    periodic: tuple[bool, bool] = (False, False),
) -> StationaryDensity:
    r"""Solve $\nabla\cdot(b p - D\nabla p) = 0$ on a rectangle, closed or periodic in each direction.

    A Markov chain on the cells: the rates of hopping across a face of width h are $\frac{D}{h^2} B(\mp bh/D)$,
    $B(z) = z/(e^z - 1)$, whose currents are exact for constant b and current (Scharfetter and Gummel); the density is
    positive, and second order in h. The rate of entropy production is that of the chain,
    $\sum_{\mathrm{faces}} (k_+ p - k_- p') \ln\frac{k_+ p}{k_- p'}$.

    **Arguments.** `drift(x, y)` of arrays returns both components. `diffusion`: $D_x, D_y > 0$. `bounds`: of x and of
    y. `cells`: how many of each. **Cost.** A sparse solve on the host in float64, a second for 200 x 200.
    **Errors.** ValueError for a diffusion that is not positive, empty bounds or fewer than 3 cells.
    """
    check.function(drift, "drift", "(x, y) of arrays, both components")
    for name, value, shape in (("diffusion", diffusion, (2,)), ("cells", cells, (2,)), ("bounds", bounds, (2, 2))):
        if np.shape(value) != shape:
            raise ValueError(f"{name} must be of shape {shape}, the plane's x and y; got {np.shape(value)}")
    check.within(diffusion, "diffusion", above=0)
    cells = (check.count(cells[0], "cells", least=3), check.count(cells[1], "cells", least=3))
    if any(not high > low for low, high in bounds):
        raise ValueError(f"bounds must be pairs low < high, got {bounds}")
    from scipy.sparse import coo_matrix, identity
    from scipy.sparse.linalg import splu

    h = [(high - low) / n for (low, high), n in zip(bounds, cells, strict=True)]
    x, y = (low + step * (np.arange(n) + 0.5) for (low, _), step, n in zip(bounds, h, cells, strict=True))
    number = np.arange(cells[0] * cells[1]).reshape(cells)
    here, there, forth, back = [], [], [], []
    for axis, (D, step) in enumerate(zip(diffusion, h, strict=True)):
        centres = np.meshgrid(x + step / 2 * (axis == 0), y + step / 2 * (axis == 1), indexing="ij")
        z = np.asarray(drift(*centres)[axis]) * step / D
        faces = (number, np.roll(number, -1, axis), _bernoulli(-z), _bernoulli(z))
        if not periodic[axis]:
            faces = tuple(np.delete(face, -1, axis) for face in faces)
        for parts, face, scale in zip((here, there, forth, back), faces, (1, 1, D / step**2, D / step**2), strict=True):
            parts.append(scale * face.ravel())
    here, there, forth, back = (np.concatenate(parts) for parts in (here, there, forth, back))
    size = number.size
    rows, columns = np.concatenate([there, here, here, there]), np.concatenate([here, here, there, there])
    entries = np.concatenate([forth, -forth, back, -back])
    generator = coo_matrix((entries, (rows, columns)), (size, size)).tocsc()
    # Inverse iteration: shifted by a little the matrix is regular, and its inverse has no negative entries.
    shift = 1e-9 * np.abs(generator.diagonal()).max()
    inverse = splu(shift * identity(size, format="csc") - generator)
    p = np.full(size, 1 / size)
    for _ in range(5):
        p = np.maximum(inverse.solve(p), 0)
        p = p / p.sum()
    out, into = forth * p[here], back * p[there]
    alive = (out > 0) & (into > 0)
    rate = np.sum((out - into)[alive] * np.log(out[alive] / into[alive]))
    return StationaryDensity(x, y, p.reshape(cells) / (h[0] * h[1]), float(rate))


def _bernoulli(z):
    """z / (e^z - 1)."""
    small = np.abs(z) < 1e-5
    safe = np.where(small, 1.0, z)
    return np.where(small, 1 - z / 2 + z**2 / 12, safe / np.expm1(safe))
