r"""Velocity, score, denoiser and noise are one object on a one-sided Gaussian path.

With $n = E[x_0 \mid x_t]$ and $d = E[x_1 \mid x_t]$: $x_t = \alpha n + \beta d$, $v = \dot\alpha n + \dot\beta d$ and
$s = -n/\alpha$. Two of these equations give the rest.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from physml.core.check import choice, instance
from physml.core.types import Field
from physml.matching.paths.path import Path

_NAMES = ("velocity", "score", "denoiser", "noise")


def convert(field: Field, path: Path, source: str, to: str) -> Field:
    r"""The field of `source` type as one of type `to`; each of velocity, score, denoiser, noise.

    Where a conversion divides by zero (a score at t = 1, a denoiser from the noise at t = 0) the divisor is kept at
    the square root of the dtype's resolution: the field stays finite, and is accurate away from that end.

    **Errors.** `ValueError` off the one-sided Gaussian paths and for an unknown type.
    """
    choice(source, "source", _NAMES)
    choice(to, "to", _NAMES)
    instance(path, "path", Path, "a Path, such as linear()")
    if not path.one_sided:
        raise ValueError(
            "fields interconvert only on one-sided Gaussian paths (no gamma); on this one learn, or compute with "
            "exact_fields, each field that is needed"
        )
    if source == to:
        return field

    return _Converted(field, path, source, to)


class _Converted(eqx.Module):
    """A field of one type, read as another."""

    field: Field
    path: Path
    source: str = eqx.field(static=True)
    to: str = eqx.field(static=True)

    def __call__(self, t: Any, x: Array, args: Any = None) -> Array:
        (a, b, _), (da, db, _) = self.path.coefficients(jnp.asarray(t, x.dtype))
        value = self.field(t, x, args)
        if self.source == "velocity":
            det = da * b - a * db  # minus the Wronskian; -1 on the linear path
            noise, data = (b * value - db * x) / det, (da * x - a * value) / det
        elif self.source == "denoiser":
            noise, data = (x - b * value) / _away(a), value
        else:
            noise = value if self.source == "noise" else -a * value
            data = (x - a * noise) / _away(b)
        if self.to == "velocity":
            return da * noise + db * data
        return {"noise": noise, "denoiser": data, "score": -noise / _away(a)}[self.to]


def _away(a: Array) -> Array:
    """a, or the square root of the resolution where a is smaller (schedules are not negative)."""
    return jnp.maximum(a, float(jnp.finfo(a.dtype).eps) ** 0.5)
