"""Dynamical mean-field theory: self-consistent order parameters, and the finite systems they describe."""

from physml.dmft.average import (
    AbstractAverage as AbstractAverage,
    MonteCarlo as MonteCarlo,
    Quadrature as Quadrature,
    Sample as Sample,
)
from physml.dmft.causal import fill as fill
from physml.dmft.lotka_volterra import (
    Abundances as Abundances,
    LotkaVolterra as LotkaVolterra,
    critical_spread as critical_spread,
)
from physml.dmft.p_spin import (
    Ageing as Ageing,
    SphericalPSpin as SphericalPSpin,
    TwoTime as TwoTime,
    ageing as ageing,
    dynamic_temperature as dynamic_temperature,
    threshold_energy as threshold_energy,
)
from physml.dmft.random_network import RandomNetwork as RandomNetwork, Stationary as Stationary
from physml.dmft.solve import (
    AbstractCausalModel as AbstractCausalModel,
    AbstractModel as AbstractModel,
    AbstractScheme as AbstractScheme,
    Causal as Causal,
    FixedPoint as FixedPoint,
    Solution as Solution,
    solve as solve,
)
from physml.dmft.wide_network import Training as Training, WideNetwork as WideNetwork
