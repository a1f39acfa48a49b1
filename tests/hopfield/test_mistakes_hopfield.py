"""Mistakes that are named before anything compiles, and concrete arrays that a `jit` closes over, which are none."""

import jax
import jax.numpy as jnp
import pytest

from physml import hopfield
from physml.hopfield.learning.boltzmann import monotone_boltzmann
from physml.hopfield.spins.glauber import Dense, Pairwise, glauber
from physml.hopfield.spins.patterns import dilute, examples, hebbian, overlaps, random_patterns

KEY, X = jax.random.key(0), jnp.ones((5, 4))


def _retrieve(**options):
    return hopfield.retrieve(jnp.ones(4), X, beta=1.0, **options)


MISTAKES = {
    "a layer of another width": (lambda: hopfield.Hopfield(6, key=KEY)(X), "one sample"),
    "a batch without vmap": (lambda: hopfield.Hopfield(4, key=KEY)(X[None]), "vmap|state"),
    "a chunk that is no integer": (lambda: _retrieve(chunk=2.0, return_weights=False), "chunk"),
    "weights in place of a potential": (lambda: _retrieve(separation=jax.nn.softmax), "potential"),
    "spins of another size": (lambda: overlaps(X, jnp.ones((3, 5))), "expected|spins"),
    "a machine without variables": (lambda: monotone_boltzmann((), key=KEY), "sizes"),
    "replicas on the last axis": (lambda: glauber(Dense(X), jnp.ones((4, 3)), 2, temperature=0.3, key=KEY), "first"),
    "an energy that is none": (lambda: glauber(X, jnp.ones((3, 4)), 2, temperature=0.3, key=KEY), "energy"),  # type: ignore[arg-type]
    "a legacy key": (lambda: random_patterns(2, 3, key=jnp.zeros(2, jnp.uint32)), "key"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_arrays_that_a_jit_closes_over():
    patterns, h = random_patterns(2, 4, key=KEY), jnp.asarray(0.3)

    def all_of_them(s):
        moved = glauber(Pairwise(hebbian(patterns)), s, 2, temperature=h, key=KEY).spins
        noisy = examples(dilute(patterns, h, key=KEY), 2, quality=h, key=KEY)
        machine = monotone_boltzmann((2, 2), key=KEY, margin=h)
        return moved, noisy, machine.mean_field().q, hopfield.retrieve(s, patterns, beta=h).x

    out = jax.jit(all_of_them)(patterns)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in out)
