"""Spectra of the Hubbard model: closed forms, sum rules, imaginary against real frequencies, and bands that hold the
truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import Code
from physml.dmft import solve
from physml.dmft.impurity.hubbard import BetheHubbard
from physml.dmft.impurity.hubbard_real import RealBetheHubbard
from physml.dmft.impurity.spectra import discrepancy, pade

W = np.linspace(-4.0, 4.0, 401)


def _both(u, start="metal", **options):
    real = solve(RealBetheHubbard(U=jnp.asarray(u), start=start, **options)).check().order
    return solve(BetheHubbard(U=jnp.asarray(u), start=start)).check().order, real


@pytest.mark.parametrize(
    ("u", "start", "tol"),
    [
        (0.0, "metal", 1e-4),
        (2.0, "metal", 5e-5),
        (2.8, "metal", 6e-4),
        (2.8, "insulator", 6e-4),
        (3.5, "insulator", 6e-4),
    ],
)
def test_two_axes_agree_and_the_band_of_pade_holds_the_spectrum(u, start, tol):
    """The two solvers share nothing but the equations. Without interaction the band has sharp edges, and a sum over
    the grid errs as its spacing to the power 3/2."""
    with jax.enable_x64(True):
        imaginary, real = _both(u, start)
        w = imaginary.w[:50]
        np.testing.assert_allclose(real.matsubara(w), imaginary.G.imag[:50], atol=tol)
        spacing = real.w[1] - real.w[0]
        np.testing.assert_allclose(jnp.sum(real.A) * spacing, 1, atol=2e-5 if u else 2e-4)
        if start == "metal":
            # -Im Sigma/pi has the weight U^2/4 (an insulator keeps much of it in a pole between grid points).
            np.testing.assert_allclose(-jnp.sum(real.sigma.imag) * spacing / jnp.pi, u**2 / 4, rtol=1e-3)
        band = jax.jit(pade)(imaginary.w[:64], imaginary.G[:64], jnp.asarray(W)).check()
        truth = jnp.interp(band.w, real.w, real.A)
        assert discrepancy(band.A, truth, band.w) <= discrepancy(band.low, band.high, band.w) + 2e-3
        np.testing.assert_allclose(jax.scipy.integrate.trapezoid(band.A, band.w), 1, atol=0.02)
        if u == 0:
            exact = 2 / np.pi * np.sqrt(np.maximum(1 - W**2, 0))
            assert discrepancy(truth, jnp.asarray(exact), band.w) < 2e-3


def test_second_order_in_the_spacing():
    with jax.enable_x64(True):
        error = []
        for points in (2001, 4001):
            imaginary, real = _both(2.8, points=points, broadening=0.0)
            error.append(np.max(np.abs(real.matsubara(imaginary.w[:20]) - imaginary.G.imag[:20])))
        assert abs(np.log2(error[0] / error[1]) - 2) < 0.3


def test_pade_returns_a_rational_function():
    """Two poles on each side below the axis: every number of points from 8 on is exact."""
    with jax.enable_x64(True):
        poles, weight = np.array([0.5, 1.5]), np.array([0.3, 0.2])
        f = lambda z: sum(b / (z - e + 0.2j) + b / (z + e + 0.2j) for e, b in zip(poles, weight, strict=True))
        z = (2 * np.arange(24) + 1) * np.pi / 20
        continued = jax.jit(lambda g: pade(jnp.asarray(z), g, jnp.asarray(W), points=(8, 14), broadening=0.0))
        band = continued(jnp.asarray(f(1j * z)))
        np.testing.assert_allclose(band.check().A, -f(W).imag / np.pi, atol=1e-5)
        noisy = f(1j * z) * (1 + 1e-3 * np.random.default_rng(0).normal(size=24))
        assert continued(jnp.asarray(noisy)).status.code == Code.unphysical


def test_gradient_of_the_spectrum():
    with jax.enable_x64(True):
        height = lambda u: solve(RealBetheHubbard(U=u, points=201, reach=8.0)).order.A[90]
        u, e = jnp.asarray(1.5), 1e-3
        slope, f = jax.jit(jax.grad(height))(u), jax.jit(height)
        np.testing.assert_allclose(slope, (f(u + e) - f(u - e)) / (2 * e), rtol=1e-4)


def test_both_precisions_and_errors():
    low = solve(RealBetheHubbard(U=jnp.asarray(2.0))).check().order
    assert low.A.dtype == jnp.float32 and abs(jnp.sum(low.A) * (low.w[1] - low.w[0]) - 1) < 1e-3
    with pytest.raises(ValueError, match="points"):
        RealBetheHubbard(points=100)
    with pytest.raises(ValueError, match="broadening"):
        RealBetheHubbard(broadening=-1.0)
    assert not hasattr(RealBetheHubbard, "finite_n")
    with pytest.raises(ValueError, match="range within"):
        pade(jnp.ones(10), jnp.ones(10, complex), jnp.ones(3))
    # A grid too short for the spectrum loses weight.
    short = solve(RealBetheHubbard(U=jnp.asarray(3.0), start="insulator", reach=1.5, points=401))
    assert not short.status.ok
