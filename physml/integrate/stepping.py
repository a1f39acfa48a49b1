r"""Single steps of $\dot x = f(t, x)$, for loops of one's own; x is any pytree."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from physml.core.tree import add
from physml.core.types import Scalar


def rk4(f: Callable[[Any, PyTree], PyTree], t: Scalar, x: PyTree, h: Scalar) -> PyTree:
    """One step h of the classical method of Runge and Kutta, order 4: four evaluations of f(t, x)."""
    k1 = f(t, x)
    k2 = f(t + 0.5 * h, add(x, (0.5 * h, k1)))
    k3 = f(t + 0.5 * h, add(x, (0.5 * h, k2)))
    k4 = f(t + h, add(x, (h, k3)))
    return add(x, (h / 6, k1), (h / 3, k2), (h / 3, k3), (h / 6, k4))
