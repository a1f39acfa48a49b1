"""physml: differentiable statistical physics for machine learning, in JAX.

`physml.compare` draws a theory and its finite system on the same axes. The rooms, from the ground up:

- `physml.core`: status codes, step-indexed noise, fixed points, quadrature, the float64 rule
- `physml.nn`, `physml.metrics`, `physml.data`: small networks, distances and diagnostics, data sets
- `physml.integrate`, `physml.train`: time; one train step and loop
- `physml.matching`: probability paths, matching losses and samplers
- `physml.dmft`: self-consistent order parameters and the finite systems they describe
- `physml.hopfield`: associative memory, retrieval and layers, spins and their replica theory
- `physml.particles`: Langevin kernels, interacting particles and their mean-field limits
- `physml.recipes`: one file per paper, run by `physml run NAME`

A room is imported when it is first named, so `import physml` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_ROOMS = ("core", "data", "dmft", "hopfield", "integrate", "matching", "metrics", "nn", "particles", "recipes", "train")

if TYPE_CHECKING:
    from physml import core, data, dmft, hopfield, integrate, matching, metrics, nn, particles, recipes, train
    from physml._compare import Comparison, compare

_NAMES = ("Comparison", "compare")

__all__ = [
    "Comparison",
    "compare",
    "core",
    "data",
    "dmft",
    "hopfield",
    "integrate",
    "matching",
    "metrics",
    "nn",
    "particles",
    "recipes",
    "train",
]


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"physml.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module("physml._compare"), name)
    raise AttributeError(f"physml has no {name!r}; the rooms are {', '.join(_ROOMS)}; beside them {', '.join(_NAMES)}")


def __dir__():
    return sorted([*globals(), *_ROOMS, *_NAMES])
