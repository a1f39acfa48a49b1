"""Distances between samples, two-sample tests, and diagnostics of chains and weights."""

from physml.metrics.chains import (
    autocorrelation_time as autocorrelation_time,
    ess as ess,
    ess_log_weights as ess_log_weights,
    r_hat as r_hat,
)
from physml.metrics.estimate import (
    Estimate as Estimate,
    jackknife as jackknife,
    mean_and_error as mean_and_error,
    power_law as power_law,
    straight_line as straight_line,
)
from physml.metrics.kernels import (
    PermutationTest as PermutationTest,
    energy_distance as energy_distance,
    median_distance as median_distance,
    mmd as mmd,
    permutation_test as permutation_test,
)
from physml.metrics.transport import (
    gaussian_wasserstein2 as gaussian_wasserstein2,
    wasserstein1 as wasserstein1,
    wasserstein2 as wasserstein2,
    wasserstein2_sliced as wasserstein2_sliced,
    wasserstein_1d as wasserstein_1d,
)
