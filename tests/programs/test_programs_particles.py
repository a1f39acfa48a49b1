"""Programs that calls of `particles` compile: few in the first, none in an equal second."""

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_compiles_once

from physml import particles as p

KEY = jax.random.key(0)
MEAN, EYE, TIMES = jnp.zeros(2), jnp.eye(2), jnp.linspace(0.0, 1.0, 5)


def _half(x):
    return jnp.sum(x**2) / 2


def _field(t, x, args):
    return -x


def _force(x, y):
    return (x - y) / (jnp.sum((x - y) ** 2) + 0.1)


def _attraction(x, y):
    return jnp.sum((x - y) ** 2)


def _pull(x, average):
    return average - x


def _first(x):
    return x[0]


def _same(x):
    return x


def _drift(x, measure, key):
    return measure.mean[None, :] - 2 * x


def _payoff(mu, nu):
    return jnp.sum(mu.expect(_same) * nu.expect(_same))


def _points():
    return jnp.sin(jnp.arange(8.0)).reshape(4, 2)


def _data():
    return p.MinibatchEnergy(_attraction, _points(), 2)


def _game():
    return p.Game(_payoff, _half, _half, 0.5)


def _spread(measure):
    return measure.expect(_half)


KERNELS = {
    "overdamped": (lambda: p.overdamped(_half, 0.1), lambda: _points()[0]),
    "mala": (lambda: p.mala(_half, 0.1), lambda: _points()[0]),
    "hmc": (lambda: p.hmc(_half, 0.1, 3), lambda: _points()[0]),
    "underdamped": (lambda: p.underdamped(_half, 0.1), lambda: _points()[0]),
    "proximal": (lambda: p.proximal(_half, p.L1(0.5), 0.1, 0.1), lambda: _points()[0]),
    "mirror": (lambda: p.mirror(_half, 0.1, p.HyperbolicEntropy()), lambda: _points()[0]),
    "microcanonical": (lambda: p.microcanonical(_half), lambda: _points()[0]),
    "adjusted": (lambda: p.microcanonical(_half, adjusted=True), lambda: _points()[0]),
    "tempered": (lambda: p.tempered(p.mala(_half, 0.1), (1.0, 2.0, 4.0)), lambda: _points()[0]),
    "constrained": (lambda: p.mala(p.constrained(_half, p.Positive()), 0.1), lambda: _points()[0]),
    "sgld": (lambda: p.sgld(_data(), 0.1), lambda: _points()[0]),
    "sghmc": (lambda: p.sghmc(_data(), 0.1), lambda: _points()[0]),
    "structured": (lambda: p.structured(_data(), jnp.asarray([0, 1]), 0.1), lambda: _points()[0]),
    "proximal_mala": (lambda: p.proximal_mala(_half, p.L1(0.5), 0.1, 0.1), lambda: _points()[0]),
    "bregman_proximal": (
        lambda: p.bregman_proximal(_half, p.L1(0.5), 0.1, 0.1, p.HyperbolicEntropy()),
        lambda: _points()[0],
    ),
    "mean_field_langevin": (lambda: p.mean_field_langevin(_spread, 0.1, 0.5), _points),
    "underdamped_mean_field": (lambda: p.underdamped_mean_field(_spread, 0.1), _points),
    "consensus": (lambda: p.consensus(_half), _points),
    "interacting": (lambda: p.interacting(_drift, 0.1), _points),
    "descent_ascent": (lambda: p.descent_ascent(_game(), 0.1), lambda: p.Players(_points(), _points())),
    "averaged_gradient": (lambda: p.averaged_gradient(_game(), 0.1), lambda: p.Players(_points(), _points())),
    "anchored": (lambda: p.anchored_best_response(_game(), 0.1), lambda: p.Players(_points(), _points())),
}


@pytest.mark.parametrize("name", KERNELS)
def test_one_step(name):
    make, start = KERNELS[name]
    state = make().init(start())

    def fresh():
        kernel = make()
        return lambda: kernel.step(KEY, state)

    assert_compiles_once(fresh)


@pytest.mark.parametrize("name", ["mala", "consensus"])
def test_runs(name):
    make, start = KERNELS[name]

    def fresh():
        kernel, x0 = make(), start()[None]
        return lambda: p.run_chains(kernel, x0, 4, key=KEY)

    assert_compiles_once(fresh, first=8)


def _stiff(x, args):
    return args["k"] * jnp.sum(x**2)


@pytest.mark.parametrize("make", [p.overdamped, p.mala, p.hmc, p.underdamped, p.microcanonical])
def test_a_sweep_over_arguments_of_the_energy_compiles_once(make):
    """Another number in args is no other program."""
    numbers = iter((0.5, 0.7, 0.9))

    def fresh():
        kernel, x0 = make(_stiff, 0.1, args={"k": next(numbers)}), _points()
        return lambda: p.run_chains(kernel, x0, 4, key=KEY, stats=False)

    assert_compiles_once(fresh, first=6)


def test_tune():
    def fresh():
        kernel, x0s = p.underdamped(_half, 0.1), _points()
        return lambda: p.tune(kernel, x0s, 40, key=KEY)

    # HMC's start and loop, what it hands over, the kernel's own loop and end.
    assert_compiles_once(fresh, first=9)


def _on_points(call, **parts):
    def make():
        x, made = _points(), {name: part() for name, part in parts.items()}
        return lambda: call(x, **made)

    return make


CALLS = {
    "laplace": _on_points(lambda x: p.laplace(_half, x, key=KEY, steps=3)),
    "round_trips": _on_points(
        lambda x, k: p.round_trips(p.run_chains(k, x, 2, key=KEY).state),
        k=lambda: p.tempered(p.mala(_half, 0.1), (1.0, 2.0)),
    ),
    "PairSum": _on_points(lambda x, f: f(x, p.Particles(x)), f=lambda: p.PairSum(_force)),
    "PairSum, cells": _on_points(
        lambda x, f: f(x, p.Particles(x)), f=lambda: p.PairSum(_force, p.Cells(0.5, (1.0, 1.0)))
    ),
    "PairSum, random": _on_points(
        lambda x, f: f(x, p.Particles(x), key=KEY), f=lambda: p.PairSum(_force, p.RandomBatch(2))
    ),
    "PairEnergy": _on_points(lambda x, f: f(x), f=lambda: p.PairEnergy(_attraction)),
    "Feature": _on_points(lambda x, f: f(x, p.Particles(x)), f=lambda: p.Feature(_same, _pull)),
    "coulomb_gas": _on_points(p.coulomb_gas),
    "hyperspherical_energy": _on_points(p.hyperspherical_energy),
    "hyperspherical_energy, s 0": _on_points(lambda x: p.hyperspherical_energy(x, 0.0)),
    "total variation": _on_points(lambda x, g: g.prox(x, 0.1), g=lambda: p.TotalVariation(0.5)),
    "ginibre": lambda: lambda: p.ginibre(3, key=KEY),
    "limit_variance": lambda: lambda: p.limit_variance(_first),
    "linear_statistic_cumulants": lambda: lambda: p.linear_statistic_cumulants(_first, 2),
    "gibbs_equilibrium": _on_points(lambda x, game: p.gibbs_equilibrium(game, x, x), game=_game),
    "exploitability": _on_points(
        lambda x, game, law: p.exploitability(game, law, law),
        game=_game, law=lambda: p.Histogram(jnp.full(4, 0.25), _points()),
    ),
    "entropy_production": _on_points(lambda x: p.entropy_production(_field, _field, 1.0, x)),
    "implicit_loss": _on_points(lambda x: p.implicit_loss(_field, 1.0, x, key=KEY)),
    "work_rate": _on_points(lambda x: p.work_rate(_field, 1.0, x)),
    "linear_entropy_production": lambda: lambda: p.linear_entropy_production(EYE, TIMES[1:3]),
    "stationary_covariance": _on_points(lambda x, k: p.stationary_covariance(k, x[0]), k=KERNELS["overdamped"][0]),
    "integrated_time": _on_points(lambda x, k: p.integrated_time(k, x[0]), k=KERNELS["underdamped"][0]),
    "moreau_envelope": _on_points(lambda x, g: p.moreau_envelope(g, x[0], 0.1), g=lambda: p.L1(0.5)),
    "bregman_envelope": _on_points(
        lambda x, g: p.bregman_envelope(g, x[0], 0.1, p.Quadratic(1.0)), g=lambda: p.L1(0.5)
    ),
    "bregman_divergence": _on_points(lambda x: p.bregman_divergence(p.HyperbolicEntropy(), x[0], x[1])),
    "curvature": _on_points(lambda x: p.curvature(p.HyperbolicEntropy(), x[0])),
    "soft_threshold": _on_points(lambda x: p.soft_threshold(x[0], x[1])),
    "consensus_point": _on_points(lambda x: p.consensus_point(x, x[:, 0], 2.0)),
    "consensus_point_gaussian": lambda: lambda: p.consensus_point_gaussian(MEAN, EYE, EYE, 2.0),
    "mean_square_rate": _on_points(lambda x, k: p.mean_square_rate(k, 2), k=lambda: p.consensus(_half)),
    "first_variation": _on_points(lambda x: p.first_variation(_spread, p.Particles(x))(x[0])),
    "ginibre_density": _on_points(lambda x: p.ginibre_density(jnp.abs(x[:, 0]), 3)),
    "virial_law": lambda: lambda: p.virial_law(3, 2.0),
    "probability_velocity": _on_points(lambda x: p.probability_velocity(_field, _field, 1.0)(0.0, x[0], None)),
    "gaussian_limit": lambda: lambda: p.gaussian_limit(_drift, MEAN, EYE, TIMES),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_programs(name):
    # Unit matrices, slices and sums of the cases themselves are programs of their own.
    assert_compiles_once(CALLS[name], first=10)


def test_thomson():
    assert_compiles_once(lambda: lambda: p.thomson(3, key=KEY, chains=2, sweeps=2, moves=3), first=30)
