"""The linear residual network: its equations against networks, the exact shallow case, gradients and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.dmft.equations.solve import solve
from physml.dmft.learning.residual_dynamics import LinearResidual


def model(**options):
    return LinearResidual(**({"depth": 2, "t_max": 0.4, "dt": 0.1} | options))


def test_kernels_start_at_the_compound_growth_of_depth_and_end_where_networks_do(key):
    m = model()
    order = solve(m).check().order
    np.testing.assert_allclose(order.Phi[:, 0, 0], [1, 1.5], rtol=1e-6)
    np.testing.assert_allclose(order.G[:, 0, 0], [1.5, 1], rtol=1e-6)
    runs = jax.lax.map(lambda k: m.finite_n(300, key=k), jax.random.split(key, 12))
    for name in ("error", "Phi", "G"):
        got, wanted = np.asarray(getattr(runs, name)), np.asarray(getattr(order, name))
        error = got.std(0, ddof=1) / 12**0.5
        # Twelve networks, and a bias of order 1/n.
        assert (np.abs(got.mean(0) - wanted) < 5 * error + 3 / 300).all(), name


def test_the_first_step_is_exact():
    # f_1 - f_0 = dt Theta y, Theta = h.h + the sum of G Phi / L over branches, plus terms of order dt^2.
    with jax.enable_x64(True):
        dt = 1e-4
        error = solve(model(t_max=4 * dt, dt=dt)).check().order.error
        grow = (1 + 1 / 2) ** 2
        theta = grow + grow / (1 + 1 / 2)
        np.testing.assert_allclose((error[0] - error[1]) / dt, theta, rtol=1e-3)


def test_gradient_against_differences():
    with jax.enable_x64(True):
        final = jax.jit(jax.value_and_grad(lambda gamma: solve(model(gamma=gamma)).order.loss[4]))
        h = 1e-5
        np.testing.assert_allclose(final(1.2)[1], (final(1.2 + h)[0] - final(1.2 - h)[0]) / (2 * h), rtol=1e-4)


def test_precisions_status_and_errors():
    assert solve(model()).order.loss.dtype == jnp.float32
    blown = solve(model(t_max=16.0, dt=4.0, gamma=5.0))
    assert not bool(blown.status.ok)
    for options, message in (({"depth": 0}, "depth"), ({"dt": 0.0}, "dt"), ({"gamma": 0.0}, "gamma")):
        with pytest.raises(ValueError, match=message):
            model(**options)
