"""Langevin kernels, measures and interactions, mean-field dynamics: particles beside their limits."""

from physml.particles.chains._laplace import Mode as Mode, laplace as laplace
from physml.particles.chains._tune import Tuned as Tuned, tune as tune
from physml.particles.chains.interop import from_blackjax as from_blackjax
from physml.particles.chains.run import Run as Run, run as run, run_chains as run_chains
from physml.particles.chains.statistics import Stats as Stats
from physml.particles.chains.tuning import TuningHistory as TuningHistory
from physml.particles.energies.constrained import (
    AbstractBijection as AbstractBijection,
    Constrained as Constrained,
    Interval as Interval,
    Ordered as Ordered,
    Positive as Positive,
    Simplex as Simplex,
    constrained as constrained,
)
from physml.particles.energies.legendre import (
    AbstractLegendre as AbstractLegendre,
    BoxEntropy as BoxEntropy,
    BregmanL1 as BregmanL1,
    Entropy as Entropy,
    HyperbolicEntropy as HyperbolicEntropy,
    LogBarrier as LogBarrier,
    Quadratic as Quadratic,
    SimplexEntropy as SimplexEntropy,
    bregman_divergence as bregman_divergence,
    bregman_envelope as bregman_envelope,
    curvature as curvature,
)
from physml.particles.energies.nonsmooth import (
    L1 as L1,
    AbstractNonsmooth as AbstractNonsmooth,
    Ball as Ball,
    Box as Box,
    GroupL2 as GroupL2,
    SquaredL2 as SquaredL2,
    TotalVariation as TotalVariation,
    moreau_envelope as moreau_envelope,
    nonnegative as nonnegative,
    soft_threshold as soft_threshold,
)
from physml.particles.energies.pair_energy import PairEnergy as PairEnergy
from physml.particles.kernels.base import (
    AbstractKernel as AbstractKernel,
    AbstractTunable as AbstractTunable,
    Attempt as Attempt,
    Info as Info,
    over_lanes as over_lanes,
)
from physml.particles.kernels.consensus import (
    Consensus as Consensus,
    consensus as consensus,
    consensus_point as consensus_point,
    mean_square_rate as mean_square_rate,
)
from physml.particles.kernels.game import (
    Game as Game,
    Players as Players,
    anchored_best_response as anchored_best_response,
    averaged_gradient as averaged_gradient,
    descent_ascent as descent_ascent,
)
from physml.particles.kernels.hamiltonian import Hmc as Hmc, hmc as hmc
from physml.particles.kernels.langevin import (
    Mala as Mala,
    Overdamped as Overdamped,
    mala as mala,
    overdamped as overdamped,
)
from physml.particles.kernels.mean_field import (
    first_variation as first_variation,
    interacting as interacting,
    mean_field_langevin as mean_field_langevin,
    underdamped_mean_field as underdamped_mean_field,
)
from physml.particles.kernels.microcanonical import (
    AdjustedMicrocanonical as AdjustedMicrocanonical,
    Microcanonical as Microcanonical,
    microcanonical as microcanonical,
)
from physml.particles.kernels.minibatch import (
    MinibatchEnergy as MinibatchEnergy,
    StochasticGradient as StochasticGradient,
    sghmc as sghmc,
    sgld as sgld,
)
from physml.particles.kernels.mirror import (
    Mirror as Mirror,
    bregman_proximal as bregman_proximal,
    mirror as mirror,
)
from physml.particles.kernels.precondition import Preconditioner as Preconditioner
from physml.particles.kernels.proximal import (
    Proximal as Proximal,
    ProximalMala as ProximalMala,
    proximal as proximal,
    proximal_mala as proximal_mala,
)
from physml.particles.kernels.structured import Structured as Structured, structured as structured
from physml.particles.kernels.tempered import (
    Ladder as Ladder,
    RoundTrips as RoundTrips,
    Tempered as Tempered,
    round_trips as round_trips,
    tempered as tempered,
)
from physml.particles.kernels.underdamped import Underdamped as Underdamped, underdamped as underdamped
from physml.particles.matter.coulomb import (
    coulomb_gas as coulomb_gas,
    ginibre as ginibre,
    ginibre_density as ginibre_density,
    limit_variance as limit_variance,
    linear_statistic_cumulants as linear_statistic_cumulants,
    virial_law as virial_law,
)
from physml.particles.matter.hypersphere import (
    Charges as Charges,
    hyperspherical_energy as hyperspherical_energy,
    thomson as thomson,
)
from physml.particles.pairs.backends import (
    AllPairs as AllPairs,
    Cells as Cells,
    Force as Force,
    RandomBatch as RandomBatch,
)
from physml.particles.pairs.interaction import Feature as Feature, PairSum as PairSum
from physml.particles.pairs.measure import (
    Gaussian as Gaussian,
    Histogram as Histogram,
    Measure as Measure,
    Particles as Particles,
)
from physml.particles.theory.entropy_production import (
    EntropyProduction as EntropyProduction,
    entropy_production as entropy_production,
    implicit_loss as implicit_loss,
    linear_entropy_production as linear_entropy_production,
    probability_velocity as probability_velocity,
    work_rate as work_rate,
)
from physml.particles.theory.fokker_planck import (
    StationaryDensity as StationaryDensity,
    stationary_density as stationary_density,
)
from physml.particles.theory.game import (
    Equilibrium as Equilibrium,
    exploitability as exploitability,
    gibbs_equilibrium as gibbs_equilibrium,
)
from physml.particles.theory.linear import (
    consensus_point_gaussian as consensus_point_gaussian,
    gaussian_limit as gaussian_limit,
    integrated_time as integrated_time,
    stationary_covariance as stationary_covariance,
)
from physml.particles.theory.systems import (
    CoulombGas as CoulombGas,
    Covariance as Covariance,
    MeanFieldParticles as MeanFieldParticles,
    Moments as Moments,
    QuadraticChains as QuadraticChains,
    Virial as Virial,
)
