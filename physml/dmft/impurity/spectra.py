r"""Spectral functions from imaginary frequencies, with the uncertainty that the continuation leaves.

Continuing $G(i\omega_n)$ to the real axis amplifies errors exponentially: below an energy resolution set by the lowest
frequencies and the precision of the data the answer depends on choices that nothing fixes. Pade approximants have one,
the number of points; the spread over it is returned as a band.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.core._status import Checked, Code, Status, status
from physml.core.float64 import float64_program


class SpectralBand(Checked):
    """Spectral function `A` (n,) at energies `w`, its band from `low` to `high`, and the `members` (k, n) it comes
    from; `used` (k,) which of them entered. `misfit`: the largest difference of the band's members from the data used
    (k,)."""

    computation: ClassVar[str] = "analytic continuation"

    w: Array
    A: Array
    low: Array
    high: Array
    members: Array
    used: Array
    misfit: Array
    status: Status


def pade(
    frequencies: Array,
    G: Array,
    w: Array,
    *,
    points: tuple[int, int] = (8, 40),
    broadening: float = 1e-3,
    negative: float = 0.02,
    tol: float = 1e-5,
) -> SpectralBand:
    r"""Pade approximants through the first n points, for every n of `points`; Thiele's continued fraction serves them
    all.

    $$G(z) = \cfrac{a_0}{1 + \cfrac{a_1(z - i\omega_0)}{1 + \cfrac{a_2(z - i\omega_1)}{1 + \cdots}}}$$

    **Arguments.** `frequencies` (m,) > 0 and complex `G` (m,): data, exact to nearly double precision (float64; noise
    of 1e-4 ruins it). `w` (k,): real energies. `points`: the range of n. `broadening`: A is taken at w + i times this.
    A member is used if it is nowhere below -`negative` times its maximum and meets the data at points it has not seen
    within `tol`.

    **Returns** a `SpectralBand`: the median of the members used, and their least and greatest. **Fails** with
    `unphysical` where none can be used.

    **See** Vidberg and Serene, J. Low Temp. Phys. 29, 179 (1977); Schoett et al., Phys. Rev. B 93, 075104 (2016).
    """
    first, last = points
    if not 2 <= first <= last <= len(frequencies) - 2:
        raise ValueError(f"points must be a range within 2 and {len(frequencies) - 2}, got {points}")
    return _pade(frequencies, G, w, first, last, broadening, negative, tol)


@float64_program(static=("first", "last"))
def _pade(frequencies, G, w, first, last, broadening, negative, tol):
    z = lax.complex(jnp.zeros(last), frequencies[:last])

    def reciprocal(row, i):
        # g_{i+1}(z) = (g_i(z_i)/g_i(z) - 1)/(z - z_i); entries up to i are not used again.
        a = row[i]
        step = jnp.where(jnp.arange(last) > i, z - z[i], 1)
        return (a / row - 1) / step, a

    _, a = lax.scan(reciprocal, G[:last].astype(z.dtype), jnp.arange(last))

    def evaluate(at):
        # Numerators and denominators forward, all orders at once, kept near one.
        def step(carry, i):
            (p0, q0), (p1, q1) = carry
            factor = a[i] * (at - z[i - 1])
            p, q = p1 + factor * p0, q1 + factor * q0
            size = jnp.maximum(jnp.abs(p), jnp.abs(q)).astype(p.dtype)
            return ((p1 / size, q1 / size), (p / size, q / size)), p / q

        zero, one = jnp.zeros_like(at), jnp.ones_like(at)
        start = ((zero, one), (one * a[0], one))
        _, values = lax.scan(step, start, jnp.arange(1, last))
        return values[first - 2 :]

    members = -evaluate(lax.complex(w, jnp.full_like(w, broadening))).imag / jnp.pi
    seen = evaluate(lax.complex(jnp.zeros_like(frequencies), frequencies))
    misfit = jnp.max(jnp.abs(seen - G.astype(z.dtype)[None, :]), axis=1)
    used = (misfit < tol) & (members.min(1) > -negative * members.max(1)) & jnp.isfinite(members).all(1)
    return _band(w, members, used, misfit)


def _band(w, members, used, misfit):
    masked = jnp.where(used[:, None], members, jnp.nan)
    code = jnp.where(used.any(), Code.ok, Code.unphysical)
    return SpectralBand(
        w, jnp.nanmedian(masked, axis=0), jnp.nanmin(masked, axis=0), jnp.nanmax(masked, axis=0), members, used, misfit,
        status(code),
    )  # fmt: skip


def discrepancy(a: Array, b: Array, w: Array) -> Array:
    r"""$\int |a - b|\,dw$ by the trapezoid rule: 0 for equal spectra, 2 for disjoint ones of unit weight."""
    return jax.scipy.integrate.trapezoid(jnp.abs(a - b), w)
