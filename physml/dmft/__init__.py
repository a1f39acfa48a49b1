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
from physml.dmft.solve import (
    AbstractCausalModel as AbstractCausalModel,
    AbstractModel as AbstractModel,
    AbstractScheme as AbstractScheme,
    Causal as Causal,
    FixedPoint as FixedPoint,
    Solution as Solution,
    solve as solve,
)
