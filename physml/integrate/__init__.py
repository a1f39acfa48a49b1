"""Time: stochastic and ordinary differential equations, one system or an ensemble."""

from physml.integrate.adaptive import Diffrax as Diffrax
from physml.integrate.dynamics import Dynamics as Dynamics, Matrix as Matrix
from physml.integrate.methods import (
    RK4 as RK4,
    SRA1 as SRA1,
    AbstractMethod as AbstractMethod,
    EulerMaruyama as EulerMaruyama,
    Heun as Heun,
    Leapfrog as Leapfrog,
    Milstein as Milstein,
)
from physml.integrate.simulate import Trajectory as Trajectory, ensemble as ensemble, integrate as integrate
from physml.integrate.stepping import rk4 as rk4
