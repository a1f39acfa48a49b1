"""The types that signatures share."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

# A number, written by hand or traced.
Scalar: TypeAlias = float | int | Array | np.ndarray | np.floating | np.integer

# A field f(t, x, args) acts on one sample; batches are jax.vmap at the edge.
Field: TypeAlias = Callable[..., PyTree]

# An energy x -> scalar; the law is exp(-energy / temperature), with k_B = 1.
Energy: TypeAlias = Callable[[PyTree], Any]

Key: TypeAlias = PRNGKeyArray
