"""Langevin kernels, measures and interactions, mean-field dynamics: particles beside their limits."""

from physml.particles.backends import Cells as Cells, Dense as Dense, Force as Force, RandomBatch as RandomBatch
from physml.particles.hamiltonian import Hmc as Hmc, hmc as hmc
from physml.particles.interaction import Feature as Feature, PairSum as PairSum
from physml.particles.interop import from_blackjax as from_blackjax
from physml.particles.kernel import AbstractKernel as AbstractKernel, Info as Info, over_lanes as over_lanes
from physml.particles.langevin import Mala as Mala, Overdamped as Overdamped, mala as mala, overdamped as overdamped
from physml.particles.measure import (
    Gaussian as Gaussian,
    Histogram as Histogram,
    Measure as Measure,
    Particles as Particles,
)
from physml.particles.run import Run as Run, run as run, run_chains as run_chains
from physml.particles.statistics import Stats as Stats
from physml.particles.underdamped import Underdamped as Underdamped, underdamped as underdamped
