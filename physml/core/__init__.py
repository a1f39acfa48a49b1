"""Types, status codes, checks, noise by step, loops, fixed points, roots, quadrature, special functions, float64."""

from physml.core import check as check, noise as noise, tree as tree
from physml.core._continuation import Branch as Branch, Branches as Branches, continuation as continuation
from physml.core._fixed_point import FixedPoint as FixedPoint, Iterates as Iterates, fixed_point as fixed_point
from physml.core._status import (
    Checked as Checked,
    Code as Code,
    Failure as Failure,
    Status as Status,
    status as status,
)
from physml.core.derivative import divergence as divergence
from physml.core.float64 import float64_program as float64_program, in_float64 as in_float64
from physml.core.iterations import (
    AbstractIteration as AbstractIteration,
    Anderson as Anderson,
    Damped as Damped,
    Newton as Newton,
    largest as largest,
    solve_linear as solve_linear,
)
from physml.core.loops import march as march, scan_range as scan_range
from physml.core.program import program as program
from physml.core.quadrature import (
    gauss_hermite as gauss_hermite,
    gauss_hermite_grid as gauss_hermite_grid,
    gauss_legendre as gauss_legendre,
    gauss_legendre_panels as gauss_legendre_panels,
    trapezoid_matrix as trapezoid_matrix,
    trapezoid_weights as trapezoid_weights,
)
from physml.core.roots import bisect as bisect, bracketed as bracketed, descend as descend, newton as newton
from physml.core.special import (
    log_2cosh as log_2cosh,
    mills as mills,
    normal_tail as normal_tail,
    normalise_log_weights as normalise_log_weights,
    sech2 as sech2,
    tanh_family as tanh_family,
)
