"""Associative memory: energies, retrieval, layers, and their statistical mechanics."""

from physml.hopfield import theory as theory
from physml.hopfield.learning.boltzmann import (
    MeanField as MeanField,
    MonotoneBoltzmann as MonotoneBoltzmann,
    monotone_boltzmann as monotone_boltzmann,
)
from physml.hopfield.learning.perceptron import (
    Messages as Messages,
    examples_of as examples_of,
    flipped as flipped,
    messages as messages,
)
from physml.hopfield.learning.variational import (
    kl_divergence as kl_divergence,
    learn as learn,
    log_likelihood as log_likelihood,
    margins as margins,
)
from physml.hopfield.memory.bounds import (
    Attractor as Attractor,
    Capacity as Capacity,
    Kind as Kind,
    attractor as attractor,
    capacity as capacity,
    gaps as gaps,
    separated as separated,
    step_error_bound as step_error_bound,
)
from physml.hopfield.memory.layers import (
    Hopfield as Hopfield,
    HopfieldLookup as HopfieldLookup,
    HopfieldPooling as HopfieldPooling,
)
from physml.hopfield.memory.retrieve import Retrieval as Retrieval, energy as energy, retrieve as retrieve
from physml.hopfield.memory.separation import (
    AbstractSeparation as AbstractSeparation,
    Polynomial as Polynomial,
    Potential as Potential,
    Softmax as Softmax,
    Softmax1 as Softmax1,
    Sparsemax as Sparsemax,
)
from physml.hopfield.spins.glauber import (
    AbstractSpinEnergy as AbstractSpinEnergy,
    Dense as Dense,
    GlauberRun as GlauberRun,
    Pairwise as Pairwise,
    glauber as glauber,
)
from physml.hopfield.spins.patterns import (
    dilute as dilute,
    examples as examples,
    hebbian as hebbian,
    overlaps as overlaps,
    pseudo_inverse as pseudo_inverse,
    random_patterns as random_patterns,
)
from physml.hopfield.theory.network import MemoryNetwork as MemoryNetwork, Overlap as Overlap
