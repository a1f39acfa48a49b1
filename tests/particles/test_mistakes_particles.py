"""What particles refuse, with the words that say so; jax scalars closed over in jit, and integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_refused

from physml import particles as p

KEY, X = jax.random.key(0), jnp.ones(3)
M, D = jnp.eye(2), jnp.ones(2)


def half(x):
    return jnp.sum(x**2) / 2


def field(t, x, args):
    return -x


def run(kernel, x0=X, **options):
    return p.run(kernel, x0, 2, key=KEY, **options)


class OneChain(p.AbstractKernel):
    """A kernel without lanes."""

    def init(self, position, rng_key=None):
        return position

    def draw(self, key, position, lanes):
        return ()

    def move(self, state, noise):
        return state, p.Info(jnp.ones(()))


DATA = p.MinibatchEnergy(lambda x, z: (x - z) ** 2, jnp.arange(4.0), 2)
MISTAKES = {
    # kernels
    "a function for kernel": (lambda: run(half), r"kernel must be a kernel, such as overdamped\(energy, step_size\)"),
    "a function for kernel, chains": (lambda: p.run_chains(half, X[None], 2, key=KEY), "kernel must be a kernel"),
    "no lanes": (lambda: p.run_chains(OneChain(), X[None], 2, key=KEY), "OneChain moves one chain"),
    "observe": (lambda: run(p.overdamped(half, 0.1), observe=3), "observe must be a function"),
    "float of an array": (lambda: run(p.mala(lambda x: float(half(x)), 0.1)), "energy must return an array of JAX"),
    "no energy": (lambda: run(p.mala(3.0, 0.1)), "energy must be a function"),
    "first": (lambda: run(p.overdamped(half, 0.1), first=-1), "first must be at least 0"),
    "legacy key": (lambda: p.run(p.overdamped(half, 0.1), X, 2, key=jax.random.PRNGKey(0)), "typed key"),
    "float steps": (lambda: p.run(p.overdamped(half, 0.1), X, 2.0, key=KEY), "steps must be an integer"),
    "word for a step": (lambda: p.hmc(half, "0.1"), "step_size must be one real number"),
    "nan step": (lambda: p.mala(half, np.nan), "step_size must be positive"),
    "float leaps": (lambda: p.hmc(half, 0.1, 2.5), "steps must be an integer"),
    "scale, nan": (lambda: p.mala(half, 0.1, scale=jnp.asarray([1.0, jnp.nan, 1.0])), "scale must be finite"),
    "scale, zero": (lambda: run(p.mala(half, 0.1, scale=jnp.asarray([1.0, 0.0, 1.0]))), "scale must be regular"),
    "scale, rank": (lambda: run(p.overdamped(half, 0.1, scale=jnp.ones((3, 3)))), "scale must be regular"),
    "scale, chains": (
        lambda: p.run_chains(p.hmc(half, 0.1, scale=jnp.ones((3, 3))), X[None], 2, key=KEY), "scale must be regular",
    ),
    "start of mirror": (lambda: run(p.mirror(half, 0.1, p.Entropy()), -X), "outside the domain of Entropy"),
    "legendre": (lambda: p.mirror(half, 0.1, p.Entropy), "legendre must be"),
    "mass": (lambda: p.Quadratic(0.0), "mass must be positive"),
    "box": (lambda: p.Box(1.0, 0.0), "lower < upper"),
    "nonsmooth": (lambda: run(p.proximal(None, half, 0.1, 0.1)), "nonsmooth must be"),
    "iterations": (lambda: p.TotalVariation(1.0, 2.5), "iterations must be an integer"),
    "labels": (lambda: p.structured(DATA, jnp.asarray([0.5]), 0.1), "labels must be integers"),
    "keep": (lambda: p.structured(DATA, jnp.asarray(0), 0.1, keep=0.0), "keep"),
    "swarm": (lambda: p.consensus(half, noise="white"), "noise must be one of"),
    "rate": (lambda: p.anchored_best_response(None, 0.1, rate=1.5), "rate must be"),
    # measures and pairs
    "weights, sum": (lambda: p.Particles(X[:, None], jnp.asarray([1.0, 0.5, 0.5])), "sum to 1, got a sum of 2"),
    "weights, negative": (lambda: p.Particles(X[:, None], jnp.asarray([1.0, 0.5, -0.5])), "nonnegative"),
    "weights, zero": (lambda: p.Particles(X[:, None], jnp.zeros(3)), "got a sum of 0"),
    "no particles": (lambda: p.Particles(jnp.zeros((0, 2))), "N >= 1"),
    "covariance, negative": (lambda: p.Gaussian(jnp.zeros(2), -jnp.eye(2)), "positive definite"),
    "covariance, asymmetric": (lambda: p.Gaussian(jnp.zeros(2), jnp.asarray([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
    "cells, word": (lambda: p.Cells(0.1, "box"), "box must be"),
    "cells, number": (lambda: p.Cells(0.1, 1.0), "box must be the sides"),
    "pair kernel": (lambda: p.PairSum(3.0)(X[:, None], p.Particles(X[:, None])), "kernel must be a function"),
    "backend": (lambda: p.PairSum(half, p.AllPairs)(X[:, None], p.Particles(X[:, None])), "backend must be"),
    "pair energy": (lambda: p.PairEnergy(half, p.RandomBatch(2)), "backend must be"),
    "zero direction": (lambda: p.hyperspherical_energy(jnp.asarray([[1.0, 0.0], [0.0, 0.0]])), "a row of x is zero"),
    "negative s": (lambda: p.hyperspherical_energy(M, -1.0), "s must be at least 0"),
    "thomson": (lambda: p.thomson(1, key=KEY), "at least 2 points"),
    # theory
    "covariance of MALA": (lambda: p.stationary_covariance(p.mala(half, 0.1), X), "Mala rejects moves"),
    "covariance of HMC": (lambda: p.stationary_covariance(p.hmc(half, 0.1), X), "Hmc rejects moves"),
    "unstable": (lambda: p.stationary_covariance(p.overdamped(half, 2.5), X), "unstable"),
    "not quadratic": (
        lambda: p.stationary_covariance(p.overdamped(lambda x: jnp.sum(x**4), 0.01), X), "energy must be quadratic",
    ),
    "time of MALA": (lambda: p.integrated_time(p.mala(half, 0.1), X), "rejects moves"),
    "unstable linear": (lambda: p.linear_entropy_production(-M, M), "eigenvalues of positive real part"),
    "D of no sign": (lambda: p.linear_entropy_production(M, jnp.asarray([1.0, -1.0])), "D must be positive"),
    "matrix D": (lambda: p.entropy_production(field, field, M, jnp.ones((5, 2))), "diffusion must be a number, or one"),
    "matrix D, loss": (lambda: p.implicit_loss(field, M, jnp.ones((5, 2))), "diffusion must be a number, or one"),
    "matrix D, work": (lambda: p.work_rate(field, M, jnp.ones((5, 2))), "diffusion must be a number, or one"),
    "negative D": (lambda: p.probability_velocity(field, field, -1.0), "diffusion must be positive"),
    "matrix D, grid": (
        lambda: p.stationary_density(lambda x, y: (x, y), np.eye(2), ((0, 1), (0, 1)), (5, 5)), "diffusion must be of",
    ),
    "two-argument drift": (
        lambda: p.gaussian_limit(lambda x, m: x, jnp.zeros(2), M, jnp.linspace(0.0, 1.0, 3)), r"\(x, measure, key\)",
    ),
    "damping": (
        lambda: p.gibbs_equilibrium(p.Game(lambda m, n: 0.0, half, half, 1.0), M, M, damping=0.0), "damping must be",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    assert_refused(*MISTAKES[name])


H, LABEL, SIDES = jnp.asarray(0.1), jnp.asarray(0), jnp.ones(1)
CLOSED_OVER = {
    "overdamped": lambda x: run(p.overdamped(half, H, H, scale=H), x).samples,
    "mala": lambda x: run(p.mala(half, H), x).samples,
    "underdamped": lambda x: run(p.underdamped(half, H, H, H, "exact"), x).samples,
    "hmc": lambda x: run(p.hmc(half, H, 2), x).samples,
    "proximal": lambda x: run(p.proximal(half, p.L1(H), H, H), x).samples,
    "proximal_mala": lambda x: run(p.proximal_mala(half, p.Ball(3 + H), H, H), x).samples,
    "mirror": lambda x: run(p.mirror(half, H, p.BoxEntropy(-H, 1 + H)), x * H).samples,
    "barrier": lambda x: run(p.mirror(half, H, p.LogBarrier(-H, 1 + H)), x * H).samples,
    "hyperbolic": lambda x: run(p.mirror(half, H, p.HyperbolicEntropy(H)), x).samples,
    "consensus": lambda x: run(p.consensus(half, H, H, H, H, memory=H, truncation=H), x[:, None]).samples,
    "sgld": lambda x: run(p.sgld(DATA, H, H), x[0]).samples,
    "sghmc": lambda x: run(p.sghmc(DATA, H, H, H), x[0]).samples,
    "structured": lambda x: run(p.structured(DATA, LABEL, H, H, keep=0.5), x[0]).samples,
    "interacting": lambda x: run(p.interacting(lambda x, m, k: -x, H, H), x[:, None]).samples,
    "descent_ascent": lambda x: (
        run(
            p.descent_ascent(p.Game(lambda m, n: m.expect(half), half, half, H), H, H),
            p.Players(x[:, None], x[:, None]),
        ).samples.x
    ),
    "stationary_covariance": lambda x: p.stationary_covariance(p.overdamped(half, H), x),
    "Histogram": lambda x: p.Histogram(jnp.stack([H, 1 - H])).mean + x[0],
    "Gaussian": lambda x: p.Gaussian(H * jnp.ones(1), jnp.eye(1)).mean + x[0],
    "Particles": lambda x: p.Particles(x[:2, None], jnp.stack([H, 1 - H])).mean,
    "Box": lambda x: p.Box(H, 1 + H).prox(x, H),
    "Cells": lambda x: p.PairSum(lambda a, b: a - b, p.Cells(0.5, SIDES))(x[:, None], p.Particles(x[:, None])),
    "hyperspherical_energy": lambda x: p.hyperspherical_energy(x[:, None] * M[:1] + M, H),
    "linear_entropy_production": lambda x: p.linear_entropy_production(M, D)[0] + x[0],
    "virial_law": lambda x: p.virial_law(3, H).cumulants + x,
}


@pytest.mark.parametrize("name", CLOSED_OVER)
def test_parameters_closed_over_in_jit(name):
    if name == "hyperspherical_energy":
        call = lambda x: p.hyperspherical_energy(x[:2, None] * M, H)
    else:
        call = CLOSED_OVER[name]
    assert bool(jnp.isfinite(jax.jit(call)(X)).all())
    assert bool(jnp.isfinite(call(X)).all())


def test_integers_are_numbers():
    mean = p.Particles(np.asarray([[1, 2], [2, 4], [6, 0]])).expect(lambda x: x)
    np.testing.assert_allclose(mean, [3.0, 2.0], rtol=1e-6)


def test_what_is_unstable_in_jit_is_not_a_number():
    assert jnp.isnan(jax.jit(p.linear_entropy_production)(-M, M)[0])
    assert jnp.isnan(jax.jit(lambda h: p.stationary_covariance(p.overdamped(half, h), X))(2.5)).all()
