"""The Coulomb gas: energy, exact cumulants and laws against sums and integrals of other kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from physml.particles.matter.coulomb import (
    coulomb_gas,
    ginibre,
    ginibre_density,
    limit_variance,
    linear_statistic_cumulants,
    virial_law,
)


def test_energy_and_gradient_written_out():
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    gaps = x[:, None] - x[None]
    r2 = (gaps**2).sum(-1) + np.eye(6)
    energy = (x**2).sum() / 2 - np.log(r2).sum() / 4
    force = x - (gaps / r2[..., None]).sum(1)
    value, slope = jax.jit(jax.value_and_grad(coulomb_gas))(jnp.asarray(x))
    np.testing.assert_allclose(value, energy, rtol=1e-5)
    np.testing.assert_allclose(slope, force, rtol=1e-4, atol=1e-4)


def test_cumulants_of_a_radial_statistic_are_those_of_independent_gamma_variables():
    # The squared moduli of the eigenvalues are independent Gamma(k, 1), k = 1, ..., n.
    n, want = 7, np.zeros(3)
    for k in range(1, n + 1):
        m = [
            integrate.quad(lambda s, p=p, k=k: np.exp(-p * s / 4) * stats.gamma(k).pdf(s), 0, 60)[0] for p in (1, 2, 3)
        ]
        want += [m[0], m[1] - m[0] ** 2, m[2] - 3 * m[0] * m[1] + 2 * m[0] ** 3]
    got = linear_statistic_cumulants(lambda x: jnp.exp(-jnp.sum(x**2) / 4), n)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)
    with jax.enable_x64(True):
        got = linear_statistic_cumulants(lambda x: jnp.exp(-jnp.sum(x**2) / 4), n)
        np.testing.assert_allclose(got, want, rtol=1e-8)


def test_cumulants_that_are_known_for_every_n():
    # The centre of mass is Gaussian of variance n / beta, the virial has its Gamma law.
    np.testing.assert_allclose(linear_statistic_cumulants(lambda x: x[0], 9), [0, 4.5, 0], atol=1e-5)
    virial = linear_statistic_cumulants(lambda x: jnp.sum(x**2), 9)
    np.testing.assert_allclose(virial, virial_law(9, 2.0).cumulants, rtol=1e-5)


@pytest.mark.parametrize("beta", [1.0, 3.5])
def test_virial_law_of_two_charges_by_quadrature(beta):
    # Centre of mass c and distance d separate: sum |x|^2 = 2 |c|^2 + |d|^2 / 2, with density of |d|
    # d^{1 + beta} e^{-beta d^2/4}.
    weight = lambda d: d ** (1 + beta) * np.exp(-beta * d**2 / 4)
    mean = integrate.quad(lambda d: d**2 / 2 * weight(d), 0, 30)[0] / integrate.quad(weight, 0, 30)[0] + 2 / beta
    law = virial_law(2, beta)
    np.testing.assert_allclose(law.cumulants[0], mean, rtol=1e-5)
    np.testing.assert_allclose(law.cumulants, stats_cumulants(float(law.shape), float(law.rate)), rtol=1e-5)


def stats_cumulants(shape, rate):
    mean, variance, skew = stats.gamma(shape, scale=1 / rate).stats("mvs")
    return [mean, variance, skew * variance**1.5]


def test_density_integrates_to_n_and_eigenvalues_follow_it(key):
    n = 10
    r = np.linspace(0, 8, 2001, dtype=np.float32)
    assert abs(integrate.simpson(2 * np.pi * r * np.asarray(ginibre_density(jnp.asarray(r), n)), x=r) - n) < 1e-3
    z = jax.jit(jax.vmap(lambda k: ginibre(n, key=k)))(jax.random.split(key, 500))
    assert z.shape == (500, n, 2)
    virial = np.asarray(jnp.sum(z**2, axis=(1, 2)), np.float64)
    law = virial_law(n, 2.0)
    assert stats.kstest(virial, stats.gamma(float(law.shape), scale=1 / float(law.rate)).cdf).pvalue > 1e-4
    assert stats.kstest(1.1 * virial, stats.gamma(float(law.shape), scale=1 / float(law.rate)).cdf).pvalue < 1e-4


def test_limit_variance():
    np.testing.assert_allclose(limit_variance(lambda x: x[0], 3.0), 1 / 3, rtol=1e-6)  # that of the centre of mass
    bump = lambda x: jnp.exp(-4.0 * jnp.sum((x - 0.2) ** 2))
    missing = [
        1 - linear_statistic_cumulants(lambda x, n=n: bump(x / n**0.5), n)[1] / limit_variance(bump) for n in (16, 48)
    ]
    assert 0 < float(missing[1]) < 0.05
    np.testing.assert_allclose(missing[0] / missing[1], 3, rtol=0.1)


def test_errors():
    with pytest.raises(ValueError, match="points"):
        coulomb_gas(jnp.ones((3, 3)))
    with pytest.raises(ValueError, match="n must"):
        linear_statistic_cumulants(lambda x: x[0], 0)
