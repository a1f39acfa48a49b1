"""Types, status codes, step-indexed noise, loops, fixed points, continuation, quadrature, float64."""

from physml.core import noise as noise
from physml.core._continuation import Branch as Branch, Branches as Branches, continuation as continuation
from physml.core._fixed_point import (
    AbstractIteration as AbstractIteration,
    Anderson as Anderson,
    Damped as Damped,
    FixedPoint as FixedPoint,
    History as History,
    Newton as Newton,
    fixed_point as fixed_point,
    largest as largest,
    solve_linear as solve_linear,
)
from physml.core._status import Code as Code, Failure as Failure, Status as Status, status as status
from physml.core.float64 import in_float64 as in_float64
from physml.core.loops import march as march, scan_range as scan_range
from physml.core.quadrature import gauss_hermite as gauss_hermite, gaussian_average as gaussian_average
from physml.core.special import (
    log_2cosh as log_2cosh,
    log_erfc as log_erfc,
    log_gaussian_tail as log_gaussian_tail,
    log_mean_exp as log_mean_exp,
    log_sub_exp as log_sub_exp,
    normalise_log_weights as normalise_log_weights,
)
