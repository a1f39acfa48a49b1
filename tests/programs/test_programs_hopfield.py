"""Programs that calls of `hopfield` compile: few in the first, none in an equal second."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_compiles_once

from physml import hopfield
from physml.hopfield import theory
from physml.hopfield.memory import bounds
from physml.hopfield.spins.glauber import Dense, glauber
from physml.hopfield.spins.patterns import overlaps

KEY = jax.random.key(0)
SIGNS = np.random.default_rng(0).choice([-1.0, 1.0], (3, 12)).astype(np.float32)
QUERY, MEMORY = SIGNS[:2, :4], np.linspace(-1.0, 1.0, 20, dtype=np.float32).reshape(5, 4)


def _phi(z):
    return jax.nn.logsumexp(z)


def _retrieve(**options):
    return lambda: lambda: hopfield.retrieve(jnp.asarray(QUERY), jnp.asarray(MEMORY), beta=2.0, **options)


def _glauber(**options):
    def make():
        patterns = jnp.asarray(SIGNS)
        observe = jax.tree_util.Partial(overlaps, patterns)
        return lambda: glauber(Dense(patterns), patterns, 2, temperature=0.5, key=KEY, observe=observe, **options)

    return make


def _layer():
    layer = hopfield.Hopfield(4, 2, key=KEY)
    x = jnp.asarray(MEMORY)
    return lambda: layer(x)


def _energy(name):
    return lambda: lambda: hopfield.energy(jnp.asarray(QUERY), jnp.asarray(MEMORY), beta=2.0, separation=name)


CASES = {
    "retrieve": _retrieve(),
    "retrieve tol": _retrieve(tol=1e-3, separation="sparsemax"),
    "retrieve potential": _retrieve(separation=_phi),
    "energy": _energy("softmax"),
    "energy sparsemax": _energy("sparsemax"),
    "glauber": _glauber(),
    "glauber parallel": _glauber(order="parallel"),
    "layer": _layer,
    "capacity": lambda: lambda: bounds.capacity(1.0, 20),
    "gaps": lambda: lambda: bounds.gaps(jnp.asarray(MEMORY)),
    "attractor": lambda: lambda: bounds.attractor(jnp.asarray(QUERY), jnp.asarray(MEMORY), beta=2.0),
    "amit": lambda: lambda: theory.amit(0.05, 0.3),
    "sherrington_kirkpatrick": lambda: lambda: theory.sherrington_kirkpatrick(0.5),
    "teacher_student": lambda: lambda: theory.teacher_student(0.7),
    "gradient of sherrington_kirkpatrick": lambda: (
        lambda: jax.grad(lambda t: theory.sherrington_kirkpatrick(t).free_energy)(0.6)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_programs(name):
    assert_compiles_once(CASES[name], first=20 if "gradient" in name else 4)
