"""Distances between samples, two-sample tests, and diagnostics of chains and weights."""

from physml.metrics.chains import autocorrelation_time as autocorrelation_time
from physml.metrics.chains import ess as ess
from physml.metrics.chains import ess_log_weights as ess_log_weights
from physml.metrics.chains import r_hat as r_hat
from physml.metrics.kernels import PermutationTest as PermutationTest
from physml.metrics.kernels import energy_distance as energy_distance
from physml.metrics.kernels import median_distance as median_distance
from physml.metrics.kernels import mmd as mmd
from physml.metrics.kernels import permutation_test as permutation_test
from physml.metrics.transport import gaussian_wasserstein2 as gaussian_wasserstein2
from physml.metrics.transport import wasserstein1 as wasserstein1
from physml.metrics.transport import wasserstein2 as wasserstein2
from physml.metrics.transport import wasserstein2_sliced as wasserstein2_sliced
from physml.metrics.transport import wasserstein_1d as wasserstein_1d
