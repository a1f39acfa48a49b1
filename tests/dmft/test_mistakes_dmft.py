"""Mistakes that are named before anything compiles, and concrete arrays that a `jit` closes over, which are none."""

import jax
import jax.numpy as jnp
import pytest

from physml import dmft

KEY = jax.random.key(0)

MISTAKES = {
    "unknowns of another shape": (lambda: dmft.solve(dmft.LotkaVolterra(4.0, 0.5), start=jnp.ones(3)), "shapes"),
    "an activation by name": (lambda: dmft.RandomNetwork(1.5, "tanh"), "phi"),  # type: ignore[arg-type]
    "many couplings": (lambda: dmft.RandomNetwork(jnp.ones(2)), "vmap"),
    "a scheme that is a class": (lambda: dmft.solve(dmft.LotkaVolterra(4.0, 0.5), scheme=dmft.Causal), "scheme"),
    "a legacy key": (lambda: dmft.solve(dmft.LotkaVolterra(4.0, 0.5), key=jnp.zeros(2, jnp.uint32)), "key"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_whole_numbers_to_start_from():
    model = dmft.LotkaVolterra(4.0, 0.5)
    assert jnp.allclose(dmft.solve(model, start=1).check().order.m, dmft.solve(model).order.m, rtol=1e-5)


def test_arrays_that_a_jit_closes_over():
    h = jnp.asarray(0.4)

    def solved(x):
        first = dmft.LotkaVolterra(4.0, h, gamma=h)
        models = dmft.SphericalPSpin(3, h, 0.5, 0.1), dmft.BetheHubbard(U=h, beta=20.0), dmft.SoftSpinSK(h, spread=h)
        return x * dmft.solve(first).order.m + dmft.ageing(3, h).q, len(models)

    assert jnp.isfinite(jax.jit(solved)(1.0)[0])
