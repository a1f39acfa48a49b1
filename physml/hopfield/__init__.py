"""Associative memory: energies, retrieval, layers, and their statistical mechanics."""

from physml.hopfield.bounds import (
    Attractor as Attractor,
    Capacity as Capacity,
    Kind as Kind,
    attractor as attractor,
    capacity as capacity,
    gaps as gaps,
    separated as separated,
    step_error_bound as step_error_bound,
)
from physml.hopfield.layers import (
    Hopfield as Hopfield,
    HopfieldLookup as HopfieldLookup,
    HopfieldPooling as HopfieldPooling,
)
from physml.hopfield.retrieve import Retrieval as Retrieval, energy as energy, retrieve as retrieve
from physml.hopfield.separation import (
    AbstractSeparation as AbstractSeparation,
    Polynomial as Polynomial,
    Potential as Potential,
    Softmax as Softmax,
    Softmax1 as Softmax1,
    Sparsemax as Sparsemax,
)
