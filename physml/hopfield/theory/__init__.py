"""Replica theory of associative memory: order parameters, free energies and every line of the phase diagrams."""

from physml.hopfield.theory.amit import Lines as Lines, Phase as Phase, amit as amit, amit_lines as amit_lines
from physml.hopfield.theory.dense import (
    critical_load as critical_load,
    dense as dense,
    raw_load as raw_load,
    transition as transition,
)
from physml.hopfield.theory.replica import Order as Order
