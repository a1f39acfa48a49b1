"""Dynamical mean-field theory: self-consistent order parameters, and the finite systems they describe."""

from physml.dmft.equations.average import (
    AbstractAverage as AbstractAverage,
    MonteCarlo as MonteCarlo,
    Quadrature as Quadrature,
    Sample as Sample,
)
from physml.dmft.equations.branches import (
    Fold as Fold,
    SolutionCurve as SolutionCurve,
    curve as curve,
    cusp as cusp,
    fold as fold,
    folds as folds,
    leading_eigenvalue as leading_eigenvalue,
)
from physml.dmft.equations.causal import fill as fill
from physml.dmft.equations.site_paths import Paths as Paths, site_paths as site_paths
from physml.dmft.equations.solve import (
    AbstractCausalModel as AbstractCausalModel,
    AbstractModel as AbstractModel,
    AbstractScheme as AbstractScheme,
    Causal as Causal,
    SelfConsistent as SelfConsistent,
    Solution as Solution,
    solve as solve,
)
from physml.dmft.gaussian import weight_ensembles as weight_ensembles
from physml.dmft.gaussian.edge_of_chaos import (
    EdgeOfChaos as EdgeOfChaos,
    Propagation as Propagation,
    correlation_depth as correlation_depth,
    edge_of_chaos as edge_of_chaos,
)
from physml.dmft.gaussian.finite_width import (
    FiniteWidth as FiniteWidth,
    NetworkSample as NetworkSample,
    edgeworth_density as edgeworth_density,
    excess_kurtosis as excess_kurtosis,
    quartic as quartic,
    sample_network as sample_network,
)
from physml.dmft.gaussian.infinite_width import (
    nngp as nngp,
    ntk as ntk,
    residual_nngp as residual_nngp,
    residual_ntk as residual_ntk,
)
from physml.dmft.impurity.hubbard import BetheHubbard as BetheHubbard, Green as Green
from physml.dmft.impurity.hubbard_real import RealBetheHubbard as RealBetheHubbard, Spectrum as Spectrum
from physml.dmft.impurity.spectra import SpectralBand as SpectralBand, discrepancy as discrepancy, pade as pade
from physml.dmft.learning import polynomial_regression as polynomial_regression
from physml.dmft.learning.descent import Descent as Descent
from physml.dmft.learning.narrow_network import NarrowNetwork as NarrowNetwork
from physml.dmft.learning.residual_dynamics import LinearResidual as LinearResidual, ResidualKernels as ResidualKernels
from physml.dmft.learning.wide_network import Training as Training, WideNetwork as WideNetwork
from physml.dmft.systems.lotka_volterra import (
    Abundances as Abundances,
    LotkaVolterra as LotkaVolterra,
    critical_spread as critical_spread,
)
from physml.dmft.systems.lotka_volterra_dynamics import (
    Community as Community,
    LotkaVolterraDynamics as LotkaVolterraDynamics,
)
from physml.dmft.systems.p_spin import (
    Ageing as Ageing,
    SphericalPSpin as SphericalPSpin,
    TwoTime as TwoTime,
    ageing as ageing,
    dynamic_temperature as dynamic_temperature,
    threshold_energy as threshold_energy,
)
from physml.dmft.systems.random_network import RandomNetwork as RandomNetwork, Stationary as Stationary
from physml.dmft.systems.soft_spins import Quartic as Quartic, SoftSpinSK as SoftSpinSK
