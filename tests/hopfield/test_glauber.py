"""Glauber dynamics: exact fields by enumeration of indices, the Boltzmann law by enumeration of states, errors."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.hopfield.spins.glauber import TILE, Dense, Pairwise, glauber
from physml.hopfield.spins.patterns import dilute, examples, hebbian, overlaps, pseudo_inverse, random_patterns


def brute(patterns, spins, p, convention):
    """The energy by its definition, summing products over indices."""
    n, total = patterns.shape[1], 0.0
    for xi in patterns:
        x = xi * spins
        if convention == "raw":
            total -= n / p * (x.sum() / n) ** p
        else:
            products = [math.prod(x[list(c)]) for c in itertools.combinations(range(n), p)]
            total -= math.factorial(p - 1) / n ** (p - 1) * sum(products)
    return total


@pytest.mark.parametrize(
    ("p", "convention"), [(2, "distinct"), (3, "distinct"), (4, "distinct"), (3, "raw"), (4, "raw")]
)
def test_energies_and_fields_by_enumeration(p, convention):
    rng = np.random.default_rng(p)
    patterns = rng.choice([-1.0, 0.0, 1.0], size=(3, 7), p=[0.4, 0.2, 0.4])
    spins = rng.choice([-1.0, 1.0], size=(7, 4))
    with jax.enable_x64(True):
        energy = Dense(jnp.asarray(patterns), p, convention)
        s = jnp.asarray(spins)
        assert np.allclose(energy(s.T), [brute(patterns, c, p, convention) for c in spins.T], atol=1e-12)
        for i in range(7):
            up, down = s.at[i].set(1.0), s.at[i].set(-1.0)
            field = energy.field(energy.summary(s), energy.rows()[i], s[i])
            assert np.allclose(field, (energy(down.T) - energy(up.T)) / 2, atol=1e-12)
        # Leaving the self-interaction in the raw field, as the gradient of the energy does, is noticed.
        if (p, convention) == (4, "raw"):
            naive = patterns.T @ (patterns @ spins / 7) ** 3
            exact = [energy.field(energy.summary(s), energy.rows()[i], s[i]) for i in range(7)]
            assert np.max(np.abs(naive - np.stack(exact))) > 0.01


def test_real_patterns_of_three_spins():
    rng = np.random.default_rng(0)
    patterns, spins = rng.normal(size=(2, 6)), rng.choice([-1.0, 1.0], size=(6, 2))
    with jax.enable_x64(True):
        energy = Dense(jnp.asarray(patterns), 3, "distinct")
        exact = [brute(patterns, c, 3, "distinct") for c in spins.T]
        assert np.allclose(energy(jnp.asarray(spins.T)), exact, atol=1e-12)


def test_pairwise_is_dense_with_two(key):
    patterns = random_patterns(4, 30, key=key)
    spins = random_patterns(5, 30, key=jax.random.key(1))
    pair, dense = Pairwise(hebbian(patterns)), Dense(patterns, 2)
    assert np.allclose(pair(spins), dense(spins), atol=1e-4)
    observe = jax.tree_util.Partial(overlaps, patterns)
    out = [glauber(e, spins, 4, temperature=0.5, key=key, observe=observe).spins for e in (pair, dense)]
    assert bool((out[0] == out[1]).all())
    alone = glauber(dense, spins[:2], 4, temperature=0.5, key=key, observe=observe).spins
    assert bool((alone == out[1][:2]).all())


@pytest.mark.parametrize("order", ["random", "typewriter"])
def test_the_law_is_boltzmanns(key, order):
    """All 64 states of six spins with p = 3; chi-square of independent replicas."""
    patterns, replicas, t = random_patterns(2, 6, key=key), 8192, 0.7
    energy = Dense(patterns, 3, "raw")
    start = random_patterns(replicas, 6, key=jax.random.key(2))
    out = glauber(energy, start, 60, temperature=t, key=jax.random.key(3), order=order, save_every=60).spins
    states = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=6)))
    law = np.asarray(jax.nn.softmax(-energy(states) / t))
    index = (np.asarray(out) > 0) @ 2 ** np.arange(5, -1, -1)
    counts = np.bincount(index, minlength=64)
    chi2 = np.sum((counts - replicas * law) ** 2 / (replicas * law))
    assert abs(chi2 - 63) / np.sqrt(2 * 63) < 5
    wrong = np.asarray(jax.nn.softmax(-energy(states) / (t + 0.1)))
    assert np.sum((counts - replicas * wrong) ** 2 / (replicas * wrong)) > 63 + 10 * np.sqrt(2 * 63)


def test_parallel_dynamics_has_perettos_law():
    """Two spins with J > 0: P(s) prop. to sum_s' exp(beta s J s'), uniform here, unlike Boltzmann's."""
    energy = Pairwise(jnp.asarray([[0.0, 1.0], [1.0, 0.0]]))
    start = random_patterns(8192, 2, key=jax.random.key(4))
    out = glauber(energy, start, 30, temperature=1.0, key=jax.random.key(5), order="parallel", save_every=30).spins
    assert abs(float(jnp.mean(out[:, 0] * out[:, 1]))) < 5 / 8192**0.5
    flip = glauber(energy, jnp.asarray([[1.0, -1.0]]), 3, temperature=0.0, key=jax.random.key(5), order="parallel")
    assert flip.spins[0].tolist() == [-1.0, 1.0]


def test_stored_patterns_stay(key):
    patterns = random_patterns(12, 40, key=key)
    projector = pseudo_inverse(patterns, diagonal=True)
    assert np.allclose(projector @ patterns.T, patterns.T, atol=1e-4)
    energy = Pairwise(pseudo_inverse(patterns))
    out = glauber(energy, patterns, 4, temperature=0.0, key=key)
    assert bool((out.spins == patterns).all())
    noisy = examples(patterns, 2000, quality=0.4, key=key)
    assert abs(float(jnp.mean(noisy * patterns[None])) - 0.4) < 5 / (2000 * 480) ** 0.5
    blank = dilute(patterns, 0.3, key=key)
    assert abs(float(jnp.mean(blank == 0)) - 0.3) < 5 * (0.21 / 480) ** 0.5
    assert np.allclose(overlaps(patterns, patterns).diagonal(), 1)


def test_both_precisions_and_zero_temperature(key):
    patterns = random_patterns(3, 64, key=key)
    start = patterns.at[:, :8].multiply(-1)
    with jax.enable_x64(True):
        double = glauber(Dense(patterns.astype(float)), start.astype(float), 4, temperature=0.0, key=key)
        assert double.spins.dtype == jnp.float64 and bool((double.spins == patterns.astype(float)).all())
    single = glauber(Dense(patterns), start, 4, temperature=0.0, key=key)
    assert single.spins.dtype == jnp.float32 and bool((single.spins == patterns).all())
    assert single.observed.shape == (4, 3)
    # An update without a field changes nothing at T = 0.
    still = glauber(Pairwise(jnp.zeros((64, 64))), start, 4, temperature=0.0, key=key)
    assert bool((still.spins == start).all())


def test_errors(key):
    patterns = random_patterns(3, 8, key=key)
    with pytest.raises(ValueError, match="NaN"):
        Dense(patterns.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="shape"):
        hebbian(jnp.zeros((0, 5)))
    with pytest.raises(ValueError, match="-1, 0 or 1"):
        Dense(0.5 * patterns, 4)
    with pytest.raises(ValueError, match="first axis"):
        glauber(Dense(patterns), jnp.ones((4, 3)), 2, temperature=0.3, key=key)
    with pytest.raises(ValueError, match="temperature"):
        glauber(Dense(patterns), jnp.ones((3, 8)), 2, temperature=-0.3, key=key)
    with pytest.raises(ValueError, match="save_every"):
        glauber(Dense(patterns), jnp.ones((3, 8)), 3, temperature=0.3, key=key, save_every=2)
    with pytest.raises(ValueError, match="projector"):
        pseudo_inverse(random_patterns(9, 8, key=key))
    with pytest.raises(ValueError, match="quality"):
        examples(patterns, 3, quality=0.0, key=key)
    with pytest.raises(ValueError, match="blank"):
        dilute(patterns, 1.0, key=key)


@pytest.mark.parametrize("order", ["random", "typewriter"])
def test_replicas_in_groups_are_the_replicas_alone(order):
    """More than a group of them, on a CPU: the first as they would be without the others."""
    patterns = random_patterns(3, 20, key=jax.random.key(0))
    start = random_patterns(2 * TILE, 20, key=jax.random.key(1))
    run = lambda spins: glauber(Dense(patterns), spins, 3, temperature=0.5, key=jax.random.key(2), order=order)
    many, few = run(start), run(start[:TILE])
    np.testing.assert_array_equal(many.spins[:TILE], few.spins)
    np.testing.assert_allclose(many.observed[:, :TILE], few.observed, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(many.spins[TILE:], many.spins[:TILE])
