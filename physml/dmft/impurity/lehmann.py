r"""A compact basis for Green functions in imaginary time: a few poles hold every spectral function.

A fermionic Green function with a symmetric spectrum A of unit weight is

$$G(\tau) = -\int d\epsilon\, A(\epsilon)\,\frac{\cosh((\beta/2 - \tau)\epsilon)}{2\cosh(\beta\epsilon/2)}, \qquad
  G(i\omega_n) = -i\int d\epsilon\, \frac{A(\epsilon)\,\omega_n}{\omega_n^2 + \epsilon^2}.$$

The kernel is smooth and its singular values fall geometrically, so for $|\epsilon| \le \Lambda/\beta$ a handful of
poles $\epsilon_k$ reproduces all such functions to a tolerance, tails included, and as many times or frequencies fix
the weights. Columns of the kernel chosen by pivoted QR are the poles, rows the sampling points. With $x = \tau/\beta$
and $y = \beta\epsilon$ nothing depends on the temperature.

**See** Kaye, Chen and Parcollet, Phys. Rev. B 105, 235115 (2022), whose poles lie on both sides; symmetry halves them
here.
"""

import functools
from typing import NamedTuple

import numpy as np

from physml.core import check
from physml.core.quadrature import gauss_legendre_panels


class Lehmann(NamedTuple):
    """Poles `y` (r,), times `x` (r,) in [0, 1/2] and indices `n` (r,) of Matsubara frequencies that determine each
    other.

    `tau_from_w` (r, r) takes Im G(i w_n)/beta at `n` to G at `x`; `w_from_tau` (r, r) goes back.
    """

    y: np.ndarray
    x: np.ndarray
    n: np.ndarray
    tau_from_w: np.ndarray
    w_from_tau: np.ndarray

    def times(self, x: np.ndarray) -> np.ndarray:
        """Matrix from G at the sampling times to G at times x = tau/beta in [0, 1]."""
        return _right_divide(time_kernel(x, self.y), time_kernel(self.x, self.y))

    def frequencies(self, n: np.ndarray) -> np.ndarray:
        """Matrix from G at the sampling times to Im G(i w_n)/beta at indices n >= 0."""
        return _right_divide(frequency_kernel(n, self.y), time_kernel(self.x, self.y))


def time_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    r"""$-\cosh((1/2 - x) y)/(2 \cosh(y/2))$, without overflow: (times, poles)."""
    x, y = np.asarray(x, np.float64)[:, None], np.asarray(y, np.float64)[None, :]
    return -(np.exp(-x * y) + np.exp(-(1 - x) * y)) / (2 * (1 + np.exp(-y)))


def frequency_kernel(n: np.ndarray, y: np.ndarray) -> np.ndarray:
    r"""$-\nu_n/(\nu_n^2 + y^2)$ with $\nu_n = (2n + 1)\pi$: (frequencies, poles)."""
    nu, y = (2 * np.asarray(n, np.float64)[:, None] + 1) * np.pi, np.asarray(y, np.float64)[None, :]
    return -nu / (nu**2 + y**2)


def _right_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.solve(b.T, a.T).T


def _panels(edges: np.ndarray, order: int = 24) -> np.ndarray:
    return gauss_legendre_panels(edges, order)[0]


@functools.lru_cache(maxsize=16)
def lehmann(cutoff: float, eps: float = 1e-13) -> Lehmann:
    r"""The basis for $\Lambda = \beta\epsilon_{max}$ = `cutoff` > 0, to the relative tolerance `eps`."""
    from scipy.linalg import qr

    check.within(cutoff, "cutoff", above=1)
    check.within(eps, "eps", above=1e-15, below=1e-2)
    doublings = int(np.ceil(np.log2(cutoff)))
    dyadic = np.concatenate([[0.0], 2.0 ** np.arange(-doublings, 1)])
    fine_y = np.concatenate([[0.0], _panels(cutoff * dyadic), [cutoff]])
    fine_x = np.concatenate([[0.0], _panels(0.5 * dyadic), [0.5]])
    kernel = time_kernel(fine_x, fine_y)
    _, r, columns = qr(kernel, mode="economic", pivoting=True)  # type: ignore[misc]
    rank = int(np.sum(np.abs(np.diag(r)) > eps * abs(r[0, 0])))
    y = np.sort(fine_y[columns[:rank]])

    def rows(candidates, matrix):
        return np.sort(candidates[qr(matrix.T, mode="r", pivoting=True)[-1][:rank]])

    x = rows(fine_x, time_kernel(fine_x, y))
    # All indices up to 64, then a geometric ladder: the kernel has no detail finer than that.
    ladder = np.unique(np.concatenate([np.arange(64), np.geomspace(64, 4 * cutoff, 200).round()]).astype(np.int64))
    n = rows(ladder, frequency_kernel(ladder, y))
    at_x, at_n = time_kernel(x, y), frequency_kernel(n, y)
    return Lehmann(y, x, n, _right_divide(at_x, at_n), _right_divide(at_n, at_x))
