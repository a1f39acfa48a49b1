"""Data sets that ship inside packages, their exact maps to real numbers, and toy laws in the plane."""

from physml.data.images import Images as Images, digits as digits, mnist_small as mnist_small
from physml.data.levels import (
    bits_per_dim as bits_per_dim,
    dequantise as dequantise,
    log_jacobian as log_jacobian,
    quantise as quantise,
    scale as scale,
    unscale as unscale,
)
from physml.data.toys import (
    Mixture as Mixture,
    checkerboard as checkerboard,
    circles as circles,
    eight_gaussians as eight_gaussians,
    eight_gaussians_mixture as eight_gaussians_mixture,
    grid_gaussians as grid_gaussians,
    grid_gaussians_mixture as grid_gaussians_mixture,
    moons as moons,
    pinwheel as pinwheel,
    swiss_roll as swiss_roll,
)
