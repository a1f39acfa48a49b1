"""What many tests need: gradients against finite differences, z-scores, and the programs that a call compiles."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest


def assert_gradient(
    f: Callable[[Any], Any], x: Any, *, step: float = 1e-3, rtol: float = 1e-3, atol: float = 0.0
) -> None:
    """The gradient of a scalar function at x, any pytree of real arrays, against central differences.

    Along every entry if there are at most 20, else along ten random directions. `step`: of the differences; their
    error is O(step^2) and rounding over step, so float32 wants 1e-2 and a tolerance to match.
    """
    flat, tree = jax.flatten_util.ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), x))
    value = jax.jit(lambda v: f(tree(v)))
    gradient = np.asarray(jax.jit(jax.grad(lambda v: f(tree(v))))(flat))
    assert np.isfinite(gradient).all(), gradient
    directions = np.eye(flat.size) if flat.size <= 20 else np.random.default_rng(0).normal(size=(10, flat.size))
    for direction in directions:
        move = jnp.asarray(step * direction, flat.dtype)
        difference = (float(value(flat + move)) - float(value(flat - move))) / (2 * step)
        np.testing.assert_allclose(gradient @ direction, difference, rtol=rtol, atol=atol)


def z_score(samples: Any, expected: Any, axis: int = 0) -> np.ndarray:
    """(mean - expected) / standard error of independent samples along an axis, in float64."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis, ddof=1) / np.sqrt(samples.shape[axis])
    return (samples.mean(axis) - np.asarray(expected, np.float64)) / error


@contextlib.contextmanager
def programs() -> Iterator[list[str]]:
    """The names of the programs that XLA compiles (or finds in the persistent cache) inside the block."""
    names: list[str] = []

    def listen(event: str, _: float, **about) -> None:
        name = str(about.get("fun_name", "?"))
        # A number becomes an array by a tiny program, once for each dtype in a process.
        if event == "/jax/core/compile/backend_compile_duration" and name != "jit(stage)":
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def assert_compiles_once(make: Callable[[], Callable[[], Any]], first: int = 4) -> None:
    """A call compiles at most `first` programs, and an equal one none: fresh but equal Modules, new arrays.

    `make()` builds what is called and its arguments anew, with functions that are defined once.
    """
    call = make()
    jax.clear_caches()  # what other tests compiled is none of this call's
    with programs() as compiled:
        jax.block_until_ready(jax.tree.leaves(call()))
    again = make()
    with programs() as repeated:
        jax.block_until_ready(jax.tree.leaves(again()))
    assert not repeated, f"an equal second call compiled {repeated}"
    assert len(compiled) <= first, f"{len(compiled)} programs in the first call: {compiled}"


def assert_refused(call: Callable[[], Any], words: str) -> None:
    """`call()` raises a `ValueError` that matches `words`; as for users, without this suite's run-time type checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=words):
            call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
