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


def _on(call, *arrays, **options):
    """`call` of new arrays with these numbers."""

    def make():
        new = [jax.device_put(np.array(array)) for array in arrays]
        return lambda: call(*new, **options)

    return make


LABELS = SIGNS[:, 0]
THETA, ZERO = 0.1 * SIGNS[0][:, None], np.zeros((12, 1), np.float32)

CASES = {
    "hebbian": _on(hopfield.hebbian, SIGNS),
    "pseudo_inverse": _on(hopfield.pseudo_inverse, SIGNS),
    "random_patterns": lambda: lambda: hopfield.random_patterns(3, 12, key=KEY),
    "dilute": _on(hopfield.dilute, SIGNS, blank=0.2, key=KEY),
    "examples": _on(hopfield.examples, SIGNS, count=2, quality=0.8, key=KEY),
    "examples_of": _on(hopfield.examples_of, SIGNS[0], count=5, key=KEY),
    "flipped": _on(hopfield.flipped, SIGNS[0], product=0.5, key=KEY),
    "messages": _on(hopfield.messages, SIGNS, LABELS),
    "learn": _on(lambda x, y, p: hopfield.learn(x, y, (p,), steps=3), SIGNS, LABELS, ZERO),
    "margins": _on(lambda f, x: hopfield.margins((f,), x), THETA, SIGNS),
    "log_likelihood": _on(lambda f, x, y: hopfield.log_likelihood((f,), x, y), THETA, SIGNS, LABELS),
    "kl_divergence": _on(lambda f, p: hopfield.kl_divergence((f,), (p,)), THETA, ZERO),
    "separated": _on(hopfield.separated, MEMORY, beta=2.0),
    "step_error_bound": _on(hopfield.step_error_bound, QUERY, MEMORY, beta=2.0),
    "amit_lines": lambda: lambda: theory.amit_lines(0.05),
    "critical_load": lambda: lambda: theory.critical_load(3, 0.1),
    "dense": lambda: lambda: theory.dense(3, 0.1, 0.2),
    "raw_load": lambda: lambda: theory.raw_load(3, 0.1),
    "transition": lambda: lambda: theory.transition(3, 0.1, "fold"),
    "multitasking": lambda: lambda: theory.multitasking(3, 0.3, 0.1),
    "parisi": lambda: lambda: theory.parisi(0.4, levels=2),
    "two_tasks": lambda: lambda: theory.two_tasks(0.5, 0.5, 0.3, field=0.2),
    "variational_tasks": lambda: lambda: theory.variational_tasks(0.5, 0.5, 0.3),
    "data_set": lambda: lambda: theory.data_set(3, 0.1, 0.1, quality=0.8, count=5),
    "free_energy_one_step": lambda: lambda: theory.free_energy_one_step(3, 0.1, 0.2, 0.5, 0.1, 0.5, 0.3),
    "glass_lines": lambda: lambda: theory.glass_lines(3, 0.1),
    "ground_state_load": lambda: lambda: theory.ground_state_load(3),
    "planted_entropy": lambda: lambda: theory.planted_entropy(0.5, 0.3),
    "random_label_capacity": lambda: lambda: theory.random_label_capacity(),
    "student_transitions": lambda: lambda: theory.student_transitions(),
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
