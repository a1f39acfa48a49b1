"""Data sets that ship inside packages, their exact maps to real numbers, and toy laws in the plane."""

from physml.data.images import Images as Images
from physml.data.images import digits as digits
from physml.data.images import mnist_small as mnist_small
from physml.data.levels import bits_per_dim as bits_per_dim
from physml.data.levels import dequantise as dequantise
from physml.data.levels import log_jacobian as log_jacobian
from physml.data.levels import quantise as quantise
from physml.data.levels import scale as scale
from physml.data.levels import unscale as unscale
from physml.data.toys import Mixture as Mixture
from physml.data.toys import checkerboard as checkerboard
from physml.data.toys import circles as circles
from physml.data.toys import eight_gaussians as eight_gaussians
from physml.data.toys import eight_gaussians_mixture as eight_gaussians_mixture
from physml.data.toys import grid_gaussians as grid_gaussians
from physml.data.toys import grid_gaussians_mixture as grid_gaussians_mixture
from physml.data.toys import moons as moons
from physml.data.toys import pinwheel as pinwheel
from physml.data.toys import swiss_roll as swiss_roll
