"""Folds and cusps: the cubic in closed form, and the spinodals of the Mott transition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import Code
from physml.dmft import AbstractModel, solve
from physml.dmft.equations.branches import curve, cusp, fold, folds, leading_eigenvalue
from physml.dmft.impurity.hubbard import BetheHubbard


class Cubic(AbstractModel):
    """x = x + p + q x - x^3 and a slave y = x^2: folds at p = -+2 (q/3)^{3/2}, x = +-sqrt(q/3), the cusp at zero."""

    p: jax.Array
    q: jax.Array

    def init(self):
        return {"x": jnp.asarray(-1.5), "y": jnp.asarray(2.0)}

    def update(self, order, noise=None):
        return {"x": order["x"] + self.p + self.q * order["x"] - order["x"] ** 3, "y": order["x"] ** 2}


def test_curve_goes_round_both_folds():
    with jax.enable_x64(True):
        model = lambda p: Cubic(p, jnp.asarray(1.0))
        out = jax.jit(lambda x: curve(model, -1.0, x, step=0.15, steps=60))(model(0.0).init()).check()
        x, p = np.asarray(out.values["x"]), np.asarray(out.params)
        np.testing.assert_allclose(p + x - x**3, 0, atol=1e-9)
        np.testing.assert_allclose(out.values["y"], x**2, atol=1e-9)
        assert (np.diff(x) > 0).all() and p[-1] > 1
        found = folds(model, out)
        height = 2 * 3**-1.5
        np.testing.assert_allclose([f.check().p for f in found], [height, -height], atol=1e-9)
        np.testing.assert_allclose([f.value["x"] for f in found], [-(3**-0.5), 3**-0.5], atol=1e-9)
        assert abs(leading_eigenvalue(model(found[0].p), found[0].value) - 1) < 1e-8


def test_cusp_and_the_derivative_of_a_fold():
    with jax.enable_x64(True):
        start = {"x": jnp.asarray(-0.4), "y": jnp.asarray(0.1)}
        place = jax.jit(jax.value_and_grad(lambda q: fold(lambda p: Cubic(p, q), 0.2, start).p))
        np.testing.assert_allclose(place(jnp.asarray(0.6)), [2 * 0.2**1.5, 0.2**0.5], rtol=1e-8)
        end = jax.jit(lambda x: cusp(Cubic, 0.2, 0.6, x))(start).check()
        np.testing.assert_allclose([end.p, end.q, end.value["x"]], 0, atol=1e-7)


@pytest.mark.slow
def test_spinodals_of_the_mott_transition():
    """At beta D = 50 one curve joins the metal to the insulator; its folds are U_c2 and U_c1."""
    with jax.enable_x64(True):
        model = lambda u: BetheHubbard(U=u, beta=50.0)
        start = solve(model(2.2)).check().order.unknowns
        out = jax.jit(lambda x: curve(model, 2.2, x, step=0.1, steps=45, scale=0.2))(start).check()
        upper, lower = [f.check() for f in folds(model, out)]
        assert abs(upper.p - 2.9945) < 5e-4 and abs(lower.p - 2.5748) < 5e-4
        for f in (upper, lower):
            assert abs(leading_eigenvalue(model(f.p), f.value) - 1) < 1e-7
        # Outside them the iteration from either start agrees; inside it does not.
        ends = jnp.asarray([2.5747 - 1e-3, 2.5748 + 1e-3, 2.9944, 2.9946])
        z = {
            s: jax.jit(jax.vmap(lambda u, s=s: solve(BetheHubbard(U=u, start=s)).order.Z))(ends)
            for s in ("metal", "insulator")
        }
        apart = np.abs(z["metal"] - z["insulator"]) > 1e-3
        np.testing.assert_array_equal(apart, [False, True, True, False])


def test_how_a_fold_moves_with_temperature():
    with jax.enable_x64(True):
        x = solve(BetheHubbard(U=2.675, beta=30.0)).order.unknowns
        place = lambda beta: fold(lambda u: BetheHubbard(U=u, beta=beta), 2.68, x).p
        place_and_slope = jax.jit(jax.value_and_grad(place))
        p, slope = place_and_slope(jnp.asarray(30.0))
        e = 1e-3
        difference = (place_and_slope(30.0 + e)[0] - place_and_slope(30.0 - e)[0]) / (2 * e)
        np.testing.assert_allclose(p, 2.68136, atol=1e-4)
        np.testing.assert_allclose(slope, difference, rtol=1e-4)


def test_errors_and_states():
    with pytest.raises(ValueError, match="positive"):
        curve(lambda p: BetheHubbard(U=p), 2.0, jnp.zeros(3), step=0.0, steps=1)
    # x + p - q x has one solution and no fold.
    start = {"x": jnp.asarray(0.2), "y": jnp.asarray(0.0)}
    none = jax.jit(lambda x: fold(lambda p: Cubic(p, jnp.asarray(-1.0)), 0.0, x, max_steps=20))(start)
    assert none.status.code > Code.precision_limited
