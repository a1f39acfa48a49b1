"""Parallel tempering: its law by quadrature, its exchanges by hand, its round trips beside their theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_refused, z_score

from physml.particles import hmc, mala, microcanonical, overdamped, round_trips, run, run_chains, tempered

KEY = jax.random.key(0)


def double_well(x):
    return 8 * jnp.sum((x**2 - 1) ** 2) + 0.6 * jnp.sum(x)


def test_the_coldest_level_has_the_law():
    x = np.linspace(-3, 3, 4001)
    p = np.exp(-8 * (x**2 - 1) ** 2 - 0.6 * x)
    right = p[x > 0].sum() / p.sum()
    kernel = tempered(hmc(double_well, 0.1, 6), [1.0, 2.0, 4.0, 8.0])
    out = run_chains(kernel, jnp.ones((400, 1)), 300, key=KEY).check()
    seen = np.asarray(out.samples[100:, :, 0]) > 0
    # Chains all start on the right, where alone they would stay.
    assert abs(z_score(seen.mean(0), right)) < 5 and 0.2 < right < 0.3
    alone = run_chains(hmc(double_well, 0.1, 6), jnp.ones((100, 1)), 300, key=KEY).samples[-1] > 0
    assert float(alone.mean()) > 0.6


def test_exchanges_by_hand():
    """Detailed account of one move whose inner kernel is replaced by what it would have done."""
    energy = lambda x: 0.5 * jnp.sum(x**2)
    T = np.array([1.0, 1.7, 3.0, 4.0])
    kernel = tempered(mala(energy, 1e-12), T)
    state = kernel.init(jnp.zeros(2))
    x = jnp.array([[0.1, 2.0], [1.0, -1.0], [0.3, 0.2], [2.0, 2.0]])
    E = 0.5 * np.sum(np.asarray(x) ** 2, 1)
    levels = state.levels._replace(position=x, energy=jnp.asarray(E), gradient=x)
    for count, pairs in ((0, (0, 2)), (1, (1,))):
        before = state._replace(levels=levels, count=jnp.int32(count))
        inner, _ = kernel.draw(KEY, jnp.zeros(2), 0)
        rates = np.minimum(1, np.exp((1 / T[:-1] - 1 / T[1:]) * (E[:-1] - E[1:])))
        for uniform in (0.999, 1e-3):
            after, info = kernel.move(before, (inner, jnp.full(3, uniform)))
            order = list(range(4))
            for i in pairs:
                if uniform < rates[i]:
                    order[i], order[i + 1] = order[i + 1], order[i]
            np.testing.assert_allclose(after.levels.position, np.asarray(x)[order], atol=1e-4)
            np.testing.assert_allclose(after.position, np.asarray(x)[order[0]], atol=1e-4)
            np.testing.assert_allclose(info.acceptance, rates[list(pairs)].mean(), rtol=1e-3)
            refused = np.where(np.isin(np.arange(3), pairs), 1 - rates, 0)
            np.testing.assert_allclose(after.refused, refused, atol=1e-3)


@pytest.mark.parametrize("temperatures", [np.geomspace(1, 50, 6), np.geomspace(1, 50, 12)])
def test_round_trips_are_those_of_the_theory(temperatures):
    """A harmonic system after a quarter of its period, when nothing is left of its energy."""
    d = 8
    energy = lambda x: 0.5 * jnp.sum(x**2)
    kernel = tempered(hmc(energy, 2 * np.sin(np.pi / 16), 4), temperatures)
    out = run_chains(kernel, jnp.ones((32, d)), 1500, key=KEY, keep=False).check()
    trips = round_trips(out.state).check()
    assert float(trips.refusal.min()) > 0.1 and float(trips.refusal.max()) < 0.8
    np.testing.assert_allclose(trips.rate, trips.theory, rtol=0.1)
    # Refusals by the exact laws: 2 E/T is chi-squared with d degrees of freedom.
    rng = np.random.default_rng(0)
    E = 0.5 * temperatures[:, None] * rng.chisquare(d, (len(temperatures), 200_000))
    beta = 1 / temperatures
    exact = 1 - np.minimum(1, np.exp((beta[:-1] - beta[1:])[:, None] * (E[:-1] - E[1:]))).mean(1)
    np.testing.assert_allclose(trips.refusal, exact, atol=0.015)
    # Reversible exchanges would make fewer than 1 / (2 (R - 1)).
    assert float(trips.rate) > 1 / (2 * (len(temperatures) - 1) + 2 * float(np.sum(exact / (1 - exact))))


def test_perfect_exchange_is_a_conveyor():
    kernel = tempered(mala(lambda x: 0 * jnp.sum(x), 0.1), [1.0, 2.0, 3.0, 4.0, 5.0])
    trips = round_trips(run(kernel, jnp.zeros(1), 1000, key=KEY).state)
    assert trips.theory == 0.5 and abs(trips.rate - 0.5) < 0.01 and trips.barrier == 0


def test_levels_that_never_meet():
    energy = lambda x: 0.5 * jnp.sum(x**2)
    out = run_chains(tempered(hmc(energy, 0.3), [1.0, 1.2, 1e6]), jnp.ones((4, 200)), 40, key=KEY)
    with pytest.raises(RuntimeError, match="tempered: apart at pair 1"):
        round_trips(out.state).check()


def test_any_pytree_one_chain_and_unit_speed():
    energy = lambda x: 0.5 * (jnp.sum(x["a"] ** 2) + x["b"] ** 2)
    x0s = {"a": jnp.ones((3, 2)), "b": jnp.zeros(3)}
    for inner in (mala(energy, 0.3), microcanonical(energy, 0.5, adjusted=True)):
        kernel = tempered(inner, [1.0, 3.0])
        many = run_chains(kernel, x0s, 6, key=KEY).samples
        one = run(kernel, jax.tree.map(lambda leaf: leaf[2], x0s), 6, key=KEY, lane=2).samples
        np.testing.assert_allclose(many["a"][:, 2], one["a"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kernel.step_sizes, 0.5 * np.sqrt([1, 3]), rtol=1e-6)


def test_mistakes():
    energy = lambda x: jnp.sum(x**2)
    assert_refused(lambda: tempered(mala(energy, 0.1), [1.0]), "two or more")
    assert_refused(lambda: tempered(mala(energy, 0.1), [2.0, 1.0]), "rise")
    assert_refused(lambda: tempered(mala(energy, 0.1), [0.0, 1.0]), "positive")
    assert_refused(lambda: tempered(overdamped(energy, 0.1), [1.0, 2.0]), "knows its energy")
    assert_refused(lambda: tempered(mala(energy, 0.1), [1.0, 2.0], step_sizes=[0.1]), "one for each")
    assert_refused(lambda: round_trips(jnp.ones(3)), "tempered")
