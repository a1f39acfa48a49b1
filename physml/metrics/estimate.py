r"""Estimates with their errors: means, jackknife, powers and limits fitted to measured points.

For results that have been computed: NumPy in float64, outside jit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from physml.core.types import Numbers


class Estimate(NamedTuple):
    """A `value` and its standard `error`: numbers, or arrays of one shape."""

    value: Any
    error: Any

    def z(self, reference: Numbers) -> Any:
        """(value - reference) / error."""
        return (self.value - reference) / self.error


def mean_and_error(samples: Numbers, axis: int = 0) -> Estimate:
    r"""Mean over `axis` of independent samples, and its standard error $\sqrt{s^2/n}$ with $s^2$ over n - 1.

    **Errors.** `ValueError` for fewer than two samples.
    """
    samples = np.asarray(samples, np.float64)
    n = samples.shape[axis] if samples.ndim else 1
    if n < 2:
        raise ValueError(f"a standard error needs at least two samples along axis {axis}; got shape {samples.shape}")
    return Estimate(samples.mean(axis), samples.std(axis, ddof=1) / np.sqrt(n))


def jackknife(statistic: Callable[[np.ndarray], Any], samples: Numbers) -> Estimate:
    r"""`statistic` of all samples (n, ...), with the error of leaving each out in turn:
    $\sqrt{\frac{n-1}{n}\sum_i(\theta_i - \bar\theta)^2}$.

    The statistic is one that is smooth in the mean of the samples, such as a ratio or a slope; not a median.
    """
    samples = np.asarray(samples, np.float64)
    n = len(samples)
    if n < 2:
        raise ValueError(f"the jackknife needs at least two samples, got {n}")
    left = np.stack([np.asarray(statistic(np.delete(samples, i, axis=0)), np.float64) for i in range(n)])
    return Estimate(np.asarray(statistic(samples))[()], np.sqrt((n - 1) * left.var(0)))


def straight_line(x: Numbers, y: Numbers, error: Any) -> tuple[Estimate, Estimate, float]:
    r"""Intercept and slope of $y = a + b x$ by weighted least squares, and $\chi^2$ of the fit.

    **Arguments.** `x`, `y` (n,) with n >= 2; `error` (n,): standard errors of y.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    weight = 1 / np.broadcast_to(np.asarray(error, np.float64), y.shape)
    design = np.stack([np.ones_like(x), x], 1) * weight[:, None]
    covariance = np.linalg.inv(design.T @ design)
    a, b = covariance @ design.T @ (y * weight)
    misfit = float(np.sum(((y - a - b * x) * weight) ** 2))
    bars = np.sqrt(np.diag(covariance))
    return Estimate(a, bars[0]), Estimate(b, bars[1]), misfit


def power_law(x: Numbers, y: Numbers, error: Any = None) -> tuple[Estimate, Estimate]:
    r"""Exponent and prefactor of $y = c\,x^p$ from positive points, by least squares of the logarithms.

    `error` (n,): standard errors of y, whose logarithms have errors error / y; without it all points weigh alike and
    the errors come from their scatter (NaN for two points). The prefactor is that of the estimate, its error relative
    to first order.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2 or np.min(x) <= 0 or np.min(y) <= 0:
        raise ValueError(f"a power needs two or more positive points; got x = {x}, y = {y}")
    relative = np.ones_like(y) if error is None else np.asarray(error, np.float64) / y
    intercept, power, misfit = straight_line(np.log(x), np.log(y), relative)
    if error is None:
        scatter = np.sqrt(misfit / (len(x) - 2)) if len(x) > 2 else np.nan
        intercept, power = (Estimate(v.value, v.error * scatter) for v in (intercept, power))
    factor = np.exp(intercept.value)
    return power, Estimate(factor, factor * intercept.error)
