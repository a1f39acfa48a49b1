"""One idiom of validation: numbers of Python, NumPy and JAX are seen alike, and traced values are left alone.

Static mistakes raise a `ValueError` that names the argument, what was expected and what came. Values are read with
NumPy: inside `jit` an operation of JAX on a concrete array would be staged, and its outcome unknown.
"""

import inspect
import operator
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml.core.types import Scalar, is_traced

Bound: TypeAlias = float | int | None


def known(value: Any) -> np.ndarray | None:
    """The value as a NumPy array; None where it is traced, or spread over devices that are not all of this process."""
    if is_traced(value):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    return np.asarray(value)


_RULES: dict[str, tuple[str, Callable]] = {
    "above": ("above", operator.gt),
    "least": ("at least", operator.ge),
    "below": ("below", operator.lt),
    "most": ("at most", operator.le),
}


def _asked(bounds: dict[str, Bound]) -> str:
    words = lambda rule, bound: "positive" if (rule, bound) == ("above", 0) else f"{_RULES[rule][0]} {bound:g}"
    return " and ".join(words(rule, bound) for rule, bound in bounds.items() if bound is not None)


def within(
    value: Any,
    name: str,
    *,
    above: Bound = None,
    least: Bound = None,
    below: Bound = None,
    most: Bound = None,
    finite: bool = True,
) -> None:
    """Every entry of `value` obeys the bounds and is finite, where it is known; NaN obeys nothing.

    `finite` False admits infinities.
    """
    entries = known(value)
    if entries is None:
        return
    bounds = {"above": above, "least": least, "below": below, "most": most}
    with np.errstate(invalid="ignore"):
        good = ~np.isnan(entries) if not finite else np.isfinite(entries)
        for rule, bound in bounds.items():
            if bound is not None:
                good &= _RULES[rule][1](entries, bound)
    if not np.all(good):
        asked = _asked(bounds) or ("finite" if finite else "not NaN")
        shown = f"{value}" if entries.ndim == 0 else f"{entries[~good].ravel()[0]:g} among its {entries.size} entries"
        raise ValueError(f"{name} must be {asked}, got {shown}")


def number(
    value: Scalar,
    name: str,
    *,
    above: Bound = None,
    least: Bound = None,
    below: Bound = None,
    most: Bound = None,
    finite: bool = True,
) -> Array:
    """One real number within bounds, as a floating array: another value then compiles nothing again.

    Python's numbers stay weakly typed: they take the dtype of what they meet.
    """
    if isinstance(value, bool | str) or value is None or np.shape(value) != ():
        raise ValueError(f"{name} must be one real number (jax.vmap for many), got {value!r}")
    kind = np.asarray(value).dtype if isinstance(value, int | float) else jnp.result_type(value)
    if not (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)):
        raise ValueError(f"{name} must be one real number, got {value!r}")
    within(value, name, above=above, least=least, below=below, most=most, finite=finite)
    if isinstance(value, int | float) and not isinstance(value, np.generic):
        return jnp.asarray(float(value))
    array = jnp.asarray(value)
    return array if jnp.issubdtype(kind, jnp.floating) else array.astype(float)


def count(value: Any, name: str, *, least: int = 1, most: int | None = None, divides: int | None = None) -> int:
    """A whole number within bounds, as Python's int; one that divides a number of steps if that is given."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be an integer of at most {most}, got {value!r}")
    if divides is not None and divides % value:
        raise ValueError(f"{name} must be a positive divisor of the {divides} steps, got {value!r}")
    return int(value)


def choice(value: Any, name: str, options: Collection[str]) -> None:
    """One of some words."""
    if not isinstance(value, str) or value not in options:
        words = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} must be one of {words}, got {value!r}")


def function(value: Any, name: str, signature: str = "") -> None:
    """Something to call; `signature` tells how it will be called, as "(t, x, args)" or in words."""
    if not callable(value):
        raise ValueError(f"{name} must be a function{' ' * bool(signature)}{signature}, got {type(value).__name__}")
    if not (signature.startswith("(") and signature.endswith(")")) or " or " in signature:
        return
    places, _, keywords = signature.strip("()").partition("*, ")
    try:
        takes = inspect.signature(value)
    except (TypeError, ValueError):  # some built-in functions do not say what they take
        return
    try:
        takes.bind(*filter(None, places.split(", ")), **dict.fromkeys(filter(None, keywords.split(", "))))
    except TypeError as error:
        raise ValueError(f"{name} is called as {signature}, and takes {takes}: {error}") from error


def instance(value: Any, name: str, kinds: type | tuple[type, ...], examples: str) -> None:
    """An object of some classes, of which `examples` shows how to make one."""
    if not isinstance(value, kinds):
        shown = f"the class {value.__name__}" if isinstance(value, type) else f"{value!r:.80}"
        raise ValueError(f"{name} must be {examples}, got {shown}")
