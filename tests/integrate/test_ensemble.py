"""One path and many, saving, progress, checkpoints, transformations, compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import Code, Failure
from physml.integrate import RK4, SRA1, Dynamics, EulerMaruyama, Heun, Leapfrog, Matrix, Milstein, ensemble, integrate

TS = np.linspace(0.0, 1.0, 13)
RNG = np.random.default_rng(1)
X0 = jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32)
DYNAMICS = Dynamics(lambda t, x, a: -a * jnp.sin(x) + t, lambda t, x, a: 0.3 + 0.1 * jnp.cos(x))
ADDITIVE = Dynamics(lambda t, x, a: -a * jnp.sin(x) + t, lambda t, x, a: 0.3 + t)
COUPLED = Dynamics(lambda t, x, a: -a * x, Matrix(lambda t, x, a: jnp.array([[1.0, 0.2, 0.0], [0.0, 0.5, 1.0]])))
PENDULUM = Dynamics(lambda t, x, a: (x[1], -a * jnp.sin(x[0])))
SYSTEMS = {
    "Heun": (DYNAMICS, Heun(), X0),
    "Milstein": (DYNAMICS, Milstein(), X0),
    "SRA1": (ADDITIVE, SRA1(), X0),
    "Matrix": (COUPLED, EulerMaruyama(), X0),
    "dict": (
        Dynamics(
            lambda t, x, a: jax.tree.map(lambda leaf: -a * leaf, x), lambda t, x, a: {"u": x["u"], "v": x["v"] ** 2}
        ),
        EulerMaruyama(),
        {"u": X0, "v": X0[:, 0]},
    ),
    "Leapfrog": (PENDULUM, Leapfrog(), (X0, X0[::-1])),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_path_c_of_an_ensemble_is_lane_c(key, name):
    """Bit for bit, for a lane alone, for part of an ensemble, and for an ensemble that starts at a later lane."""
    dynamics, method, x0 = SYSTEMS[name]
    options = dict(key=key, args=1.5, method=method, save_every=3)
    every = ensemble(dynamics, x0, TS, **options).check()
    for c in (0, 4):
        one = integrate(dynamics, jax.tree.map(lambda leaf, c=c: leaf[c], x0), TS, lane=c, **options).check()
        jax.tree.map(lambda a, b, c=c: np.testing.assert_array_equal(a[:, c], b), every.xs, one.xs)
        np.testing.assert_array_equal(every.ts, one.ts)
    if name == "SRA1":
        part = ensemble(dynamics, x0[2:], TS, first_lane=2, **options)
        np.testing.assert_array_equal(every.xs[:, 2:], part.xs)
    first, last = (jax.tree.map(lambda leaf, i=i: leaf[i], every.xs) for i in (0, -1))
    jax.tree.map(np.testing.assert_array_equal, first, x0)
    assert all(np.std(np.asarray(leaf), axis=0).min() > 0.01 for leaf in jax.tree.leaves(last))
    assert every.status.code.tolist() == [0] * 5 and every.status.step.tolist() == [12] * 5


def test_saving_progress_and_checkpoints_change_no_number(key, capsys):
    dynamics, method, x0 = SYSTEMS["SRA1"]
    run = lambda **options: ensemble(dynamics, x0, TS, key=key, args=1.5, method=method, **options)
    every = run()
    assert every.xs.shape == (13, 5, 2)
    for options in (
        dict(save_every=4),
        dict(save_every=12),
        dict(save_every=4, progress=True),
        dict(save_every=12, progress=True),
        dict(save_every=2, checkpoint=True),
    ):
        out = run(**options)
        stride = options.get("save_every", 1)
        np.testing.assert_array_equal(out.ts, every.ts[::stride])
        np.testing.assert_allclose(out.xs, every.xs[::stride], rtol=2e-6, atol=2e-6, err_msg=str(options))
    assert "integrate" in capsys.readouterr().err


def test_keys_lanes_and_default_methods(key):
    run = lambda **options: np.asarray(integrate(DYNAMICS, X0[0], TS, args=1.0, **options).xs[-1])
    np.testing.assert_array_equal(run(key=key), run(key=key, method=EulerMaruyama(), lane=0))
    assert (run(key=key) != run(key=key, lane=1)).all()
    assert (run(key=key) != run(key=jax.random.key(1))).all()
    ode = Dynamics(lambda t, x, a: -x)
    np.testing.assert_array_equal(integrate(ode, X0, TS).xs, integrate(ode, X0, TS, method=RK4()).xs)
    still = integrate(DYNAMICS, X0[0], TS[:1], key=key, args=1.0).check()
    np.testing.assert_array_equal(still.xs, X0[:1])


def test_vmap_over_keys_and_parameters(key):
    keys, rates = jax.random.split(key, 3), jnp.array([0.5, 1.0, 2.0])
    one = lambda key, rate: integrate(DYNAMICS, X0[0], TS, key=key, args=rate).xs
    many = jax.jit(jax.vmap(one))(keys, rates)
    assert many.shape == (3, 13, 2)
    for i in range(3):
        np.testing.assert_allclose(many[i], one(keys[i], rates[i]), rtol=2e-6, atol=2e-6)


def test_closures_may_capture_tracers(key):
    """drift, noise, times and x0 made of traced values, inside jit and grad and vmap."""

    def last(theta, lengths):
        dynamics = Dynamics(lambda t, x, a: -theta * x, lambda t, x, a: theta * 0.1, calculus="ito")
        ts = jnp.linspace(0.0, lengths, 13)
        return integrate(dynamics, jnp.full(2, theta), ts, key=key, method=SRA1(), save_every=12).xs[-1].sum()

    value, slopes = jax.jit(jax.value_and_grad(last, argnums=(0, 1)))(1.5, 2.0)
    several = jax.jit(jax.vmap(last))
    e = 1e-2
    points = jnp.array([[1.5 + e, 2.0], [1.5 - e, 2.0], [1.5, 2.0 + e], [1.5, 2.0 - e], [1.5, 2.0]])
    values = np.asarray(several(*points.T), np.float64)
    np.testing.assert_allclose(values[4], value, rtol=1e-5)
    np.testing.assert_allclose(
        slopes, [(values[0] - values[1]) / (2 * e), (values[2] - values[3]) / (2 * e)], rtol=2e-2
    )


def test_other_values_do_not_compile_again(key):
    """Tracing calls the drift; validation calls it as often for new numbers as for old ones."""
    calls = []

    def drift(t, x, a):
        calls.append(0)
        return -a["rate"] * x + a["phase"].imag

    dynamics = Dynamics(drift, lambda t, x, a: 0.1)

    def count(rate, lane, scale, seed):
        before = len(calls)
        args = {"rate": rate, "phase": rate + 1j}
        integrate(dynamics, scale * X0[0], scale * TS, key=jax.random.key(seed), args=args, lane=lane)
        return len(calls) - before

    first, again = count(1.0, 0, 1.0, 0), count(1.0, 0, 1.0, 0)
    assert again < first
    assert count(2.0, 0, 1.0, 0) == count(1.0, 3, 1.0, 1) == count(0.5, 7, 0.5, 2) == again


def test_divergence_is_a_status_with_a_step(key):
    """x' = x^2 blows up: Euler with h = 1 doubles its exponent each step; some paths are not hurt by others."""
    dynamics = Dynamics(lambda t, x, a: x**2, lambda t, x, a: 0.0)
    x0 = jnp.array([[0.0, 0.0], [10.0, 0.0], [0.0, 2.0]])
    ts = np.arange(13.0)
    out = ensemble(dynamics, x0, ts, key=key)
    assert out.status.code.tolist() == [Code.ok, Code.diverged, Code.diverged]
    steps = []
    for x in (10.0, 2.0):
        k, x = 0, np.float32(x)
        with np.errstate(over="ignore"):
            while np.isfinite(x):
                k, x = k + 1, np.float32(x + x * x)
        steps.append(k)
    assert out.status.step.tolist() == [12, *steps]
    with pytest.raises(Failure, match=f"integrate: 2 of 3 runs failed; the first, run 1: diverged at step {steps[0]}:"):
        out.check()
    one = integrate(dynamics, x0[2], ts, key=key, save_every=4)
    assert one.status.code == Code.diverged and one.status.step == 4 * -(-steps[1] // 4)
    with pytest.raises(Failure, match="integrate: diverged at step"):
        one.check()


def test_leaves_of_different_precision(key):
    with jax.enable_x64(True):
        x0 = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones((), jnp.float64)}
        dynamics = Dynamics(lambda t, x, a: jax.tree.map(lambda leaf: -leaf, x), lambda t, x, a: 0.1)
        out = integrate(dynamics, x0, TS, key=key)
        assert out.xs["a"].dtype == jnp.float32 and out.xs["b"].dtype == out.ts.dtype == jnp.float64
