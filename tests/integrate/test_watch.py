"""Functions of the state in place of the state, and events: closed forms, first passages, derivatives."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_gradient, assert_refused, z_score

from physml.integrate import Diffrax, Dynamics, ensemble, integrate

KEY = jax.random.key(0)
TS = jnp.linspace(0.0, 2.0, 201)


def fall(t, x, args):
    return {"y": x["v"], "v": -args * jnp.ones_like(x["v"])}


def height(t, x, args):
    return x["y"]


def at(y, v=0.0):
    return {"y": jnp.asarray(y, jnp.float32), "v": jnp.asarray(v, jnp.float32)}


class TestEvents:
    def test_a_stone_reaches_the_ground(self):
        out = integrate(Dynamics(fall), at(5.0), TS, args=9.81, until=height).check()
        exact = (2 * 5 / 9.81) ** 0.5
        # On a straight line between steps: an error of h^2 g / 8 / v in time.
        np.testing.assert_allclose(out.stopped, exact, atol=0.01**2)
        late = np.asarray(out.ts) > exact + 0.01
        np.testing.assert_allclose(out.xs["y"][late], 0, atol=1e-5)
        np.testing.assert_allclose(out.xs["v"][late], -9.81 * exact, rtol=1e-3)
        free = integrate(Dynamics(fall), at(5.0), TS, args=9.81)
        np.testing.assert_allclose(out.xs["y"][~late][:-1], free.xs["y"][~late][:-1], rtol=1e-4)

    def test_some_stop_and_some_do_not(self):
        heights = jnp.array([-1.0, 1.0, 500.0])
        out = ensemble(Dynamics(fall), at(heights, jnp.zeros(3)), TS, args=9.81, until=height, save_every=50).check()
        np.testing.assert_allclose(out.stopped, [0.0, (2 / 9.81) ** 0.5, np.inf], atol=1e-4)
        np.testing.assert_allclose(out.xs["y"][:, 0], -1)
        one = integrate(Dynamics(fall), at(1.0), TS, args=9.81, until=height, progress=True)
        np.testing.assert_allclose(one.stopped, out.stopped[1], rtol=1e-6)

    def test_first_passage_of_drifting_brownian_motion(self):
        """Mean a/mu and variance a sigma^2/mu^3 of the inverse Gaussian law; steps of h see a barrier that is further
        off by 0.5826 sigma sqrt(h) (Siegmund 1979)."""
        a, mu, h = 1.0, 1.5, 0.01
        dyn = Dynamics(lambda t, x, args: args * jnp.ones_like(x), lambda t, x, args: jnp.ones((), x.dtype))
        ts = jnp.linspace(0.0, 12.0, 1201)
        out = ensemble(dyn, jnp.zeros(4000), ts, key=KEY, args=mu, until=lambda t, x, args: a - x, save_every=1200)
        assert bool(jnp.isfinite(out.stopped).all())
        seen = a + 0.5826 * h**0.5
        # Interpolation takes back a part of the last step, on average half of it.
        assert abs(z_score(out.stopped + h / 2, seen / mu)) < 5
        assert abs(z_score((np.asarray(out.stopped) - np.mean(out.stopped)) ** 2, seen / mu**3)) < 5
        np.testing.assert_allclose(out.xs[-1], a, atol=1e-5)
        lane = integrate(dyn, jnp.zeros(()), ts, key=KEY, args=mu, until=lambda t, x, args: a - x, lane=7)
        np.testing.assert_allclose(lane.stopped, out.stopped[7], rtol=1e-4)

    def test_gradient_of_the_time_of_an_event(self):
        time = lambda y: integrate(Dynamics(fall), {"y": y, "v": jnp.zeros(())}, TS, args=9.81, until=height).stopped
        assert_gradient(time, jnp.array(3.0), step=3e-2, rtol=1e-2)
        np.testing.assert_allclose(jax.grad(time)(jnp.array(3.0)), 1 / (9.81 * (6 / 9.81) ** 0.5), rtol=1e-2)


class TestObservations:
    dyn = Dynamics(lambda t, x, args: -x, lambda t, x, args: jnp.ones((), x.dtype))
    look = staticmethod(lambda t, x, args: {"t": t, "square": jnp.sum(x**2)})

    @pytest.mark.parametrize("progress", [False, True])
    def test_they_are_those_of_the_states(self, progress):
        x0 = jnp.ones((5, 2))
        options = {"key": KEY, "save_every": 20, "progress": progress}
        states = ensemble(self.dyn, x0, TS, **options)
        seen = ensemble(self.dyn, x0, TS, observe=self.look, **options)
        np.testing.assert_allclose(seen.xs["square"], jnp.sum(states.xs**2, -1), rtol=1e-5)
        np.testing.assert_allclose(seen.xs["t"], np.broadcast_to(states.ts[:, None], (11, 5)), rtol=1e-6)

    def test_adaptive_solves_and_events_too(self):
        still = Dynamics(lambda t, x, args: -x)
        seen = integrate(still, jnp.ones(2), TS, observe=self.look, method=Diffrax(diffrax.Tsit5()), save_every=100)
        np.testing.assert_allclose(seen.xs["square"], 2 * np.exp(-2 * np.asarray(seen.ts)), rtol=1e-3)
        both = integrate(still, jnp.ones(2), TS, observe=self.look, until=lambda t, x, args: x[0] - 0.5)
        np.testing.assert_allclose(both.stopped, np.log(2), atol=1e-4)
        np.testing.assert_allclose(both.xs["square"][-1], 0.5, rtol=1e-3)

    def test_a_state_that_diverges_is_seen_though_not_observed(self):
        out = integrate(Dynamics(lambda t, x, args: x**3), jnp.ones(1) * 3, TS, observe=lambda t, x, args: t)
        assert not bool(out.status.ok)


def test_mistakes():
    dyn = Dynamics(lambda t, x, args: -x)
    assert_refused(lambda: integrate(dyn, jnp.ones(2), TS, until=lambda t, x, args: x), "one real number")
    assert_refused(lambda: integrate(dyn, jnp.ones(2), TS, until=lambda t, x, args: x[0] > 0), "one real number")
    assert_refused(lambda: integrate(dyn, jnp.ones(2), TS, observe=3), "observe")
    assert_refused(
        lambda: integrate(dyn, jnp.ones(2), TS, until=lambda t, x, a: x[0], method=Diffrax(diffrax.Tsit5())),
        "diffrax.Event",
    )
