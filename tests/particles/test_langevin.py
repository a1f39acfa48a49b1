"""Kernels: their exact laws on Gaussians, one chain against lanes of them, loops of ours and of blackjax, gradients."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import z_score

from physml.core._status import Failure
from physml.particles import (
    from_blackjax,
    hmc,
    integrated_time,
    mala,
    over_lanes,
    overdamped,
    run,
    run_chains,
    stationary_covariance,
    underdamped,
)
from physml.particles.kernels.hamiltonian import quasirandom_leaps

CHAINS, STEPS = 512, 400
K = jnp.asarray([0.7, 1.9])


def energy(x):
    return 0.5 * jnp.sum(K.astype(x.dtype) * x**2)


def tilted(x):
    """Not quadratic, with a minimum away from zero."""
    return jnp.sum(jnp.cosh(x - 0.3)) + 0.1 * x[0] * x[1]


KERNELS = {
    "ULA": lambda E, h: overdamped(E, h),
    "ULA, scaled": lambda E, h: overdamped(E, h, scale=jnp.asarray([1.2, 0.7])),
    "MALA": lambda E, h: mala(E, h),
    "MALA, matrix": lambda E, h: mala(E, h, scale=jnp.asarray([[1.0, 0.2], [0.0, 0.8]])),
    "BAOAB": lambda E, h: underdamped(E, h, friction=0.8),
    "OBABO": lambda E, h: underdamped(E, h, friction=0.8, scheme="OBABO"),
    "exact": lambda E, h: underdamped(E, h, friction=0.8, scheme="exact"),
    "BAOAB, matrix": lambda E, h: underdamped(E, h, scale=jnp.asarray([[1.0, 0.2], [0.0, 0.8]])),
    "HMC": lambda E, h: hmc(E, h, 3),
    "HMC, exponential": lambda E, h: hmc(E, h, 3, duration="exponential"),
    "HMC, uniform": lambda E, h: hmc(E, h, 3, duration="uniform", scale=jnp.asarray([1.2, 0.7])),
}
EXACT = {
    # variance of x on k x^2/2 at temperature T, step h
    "ULA": lambda k, T, h: T / (k * (1 - k * h / 2)),
    "BAOAB": lambda k, T, h: T / k,
    "OBABO": lambda k, T, h: T / (k * (1 - k * h**2 / 4)),
    "MALA": lambda k, T, h: T / k,
    "HMC": lambda k, T, h: T / k,
}


@pytest.mark.parametrize("name", EXACT)
def test_stationary_variance(name, key):
    """Within five standard errors, which are a small part of the bias of the step where there is one."""
    h, T, make = (
        0.5,
        0.6,
        {"ULA": overdamped, "MALA": mala, "HMC": lambda E, h, temperature: hmc(E, h, 3, temperature)},
    )
    if name in ("BAOAB", "OBABO"):
        h, kernel = 0.9, underdamped(energy, 0.9, friction=1.0, temperature=T, scheme=name)
    else:
        kernel = make[name](energy, h, temperature=T)
    out = run_chains(kernel, jnp.zeros((2048, 2)), 1000, key=key, save_every=2).check()
    kept = np.asarray(out.samples, np.float64)[50:]
    of_chains = (kept**2).mean(0)
    variance, error = of_chains.mean(0), of_chains.std(0) / np.sqrt(of_chains.shape[0])
    expected = np.asarray(EXACT[name](K, T, h))
    assert np.all(np.abs(variance - expected) < 5 * error), (variance, expected, error)
    assert np.all(error < 0.005 * expected)
    if name in ("ULA", "OBABO"):
        assert np.all(expected - T / np.asarray(K) > 8 * error)


def test_closed_forms_of_the_linear_map():
    """The discrete Lyapunov equation of a kernel's own move gives the textbook variances, in float64."""
    with jax.enable_x64(True):
        x, T, h = jnp.zeros(1), 0.7, 0.6
        quadratic = lambda x: 1.3 * jnp.sum(x**2) / 2
        ula = stationary_covariance(overdamped(quadratic, h, T), x)
        np.testing.assert_allclose(ula, [[T / (1.3 * (1 - 1.3 * h / 2))]], rtol=1e-12)
        unit = lambda x: jnp.sum(x**2) / 2
        np.testing.assert_allclose(
            stationary_covariance(underdamped(unit, h, 0.5, T), x), T * np.diag([1, 1 - h**2 / 4]), atol=1e-12
        )
        np.testing.assert_allclose(
            stationary_covariance(underdamped(unit, h, 0.5, T, "OBABO"), x),
            T * np.diag([1 / (1 - h**2 / 4), 1]),
            atol=1e-12,
        )
        # ULA on x^2/2 is an AR(1) process with rho = 1 - h: time (1 + rho)/(1 - rho).
        np.testing.assert_allclose(integrated_time(overdamped(unit, h, T), x), [(2 - h) / h], rtol=1e-12)
        assert np.isnan(jax.jit(lambda h: stationary_covariance(overdamped(unit, h, T), x))(2.1)).all()


@pytest.mark.parametrize("friction", [1e-4, 0.03, 0.7, 40.0])
def test_frozen_force_is_the_exact_law(friction):
    """Against the matrix exponential of (x, p), for small and large gamma h where closed forms cancel."""
    from scipy.linalg import expm

    from physml.particles.kernels.underdamped import frozen_force

    h, T = 0.31, 0.9
    with jax.enable_x64(True):
        c = frozen_force(jnp.asarray(h), jnp.asarray(friction), jnp.asarray(T))
        single = frozen_force(*(jnp.asarray(v, jnp.float32) for v in (h, friction, T)))
    A = np.array([[0, 1], [0, -friction]])
    # Van Loan's block matrix: its exponential holds the integral of e^{As} Q e^{A^T s}.
    Q = np.diag([0, 2 * friction * T])
    block = expm(np.block([[-A, Q], [np.zeros((2, 2)), A.T]]) * h) if friction < 10 else None
    flow = expm(A * h)
    np.testing.assert_allclose([c.x_p, c.p_p], flow[:, 1], rtol=1e-12)
    forced = expm(np.block([[A, np.array([[0.0], [-1.0]])], [np.zeros((1, 3))]]) * h)[:2, 2]
    np.testing.assert_allclose([-c.x_g, -c.x_p], forced, rtol=1e-11)
    if block is not None:
        cov = block[2:, 2:].T @ block[:2, 2:]
        B = np.array([[c.x_xi, c.x_eta], [c.p_xi, 0]])
        np.testing.assert_allclose(B @ B.T, cov, rtol=1e-9)
    np.testing.assert_allclose(single, c, rtol=3e-6)


@pytest.mark.parametrize("name", [n for n in KERNELS if n not in ("ULA", "BAOAB", "HMC")])
def test_a_chain_alone_is_its_lane(name, key):
    """Chain 3 of 5 moves as it does alone, and as it does in a loop over `step` with keys of the steps."""
    kernel = KERNELS[name](tilted, 0.3)
    x0 = jax.random.normal(key, (5, 2))
    many = run_chains(kernel, x0, 12, key=key, save_every=3)
    one = run(kernel, x0[3], 12, key=key, save_every=3, lane=3)
    np.testing.assert_allclose(many.samples[:, 3], one.samples, rtol=2e-5, atol=2e-6)
    state = kernel.init(x0[0])
    for k in range(12):
        state, _ = kernel.step(jax.random.fold_in(key, k), state)
    np.testing.assert_allclose(state.position, many.samples[-1, 0], rtol=2e-5, atol=2e-6)


def test_any_pytree_and_both_precisions(key):
    def E(x):
        return jnp.sum((x["a"] - 1) ** 2) + jnp.sum(x["b"] ** 4)

    for double in (False, True):
        with jax.enable_x64(double):
            dtype = jnp.float64 if double else jnp.float32
            x0 = {"a": jnp.zeros((2, 3), dtype), "b": jnp.zeros((), dtype)}
            for make in (mala, underdamped):
                out = run(make(E, 0.1), x0, 20, key=key, save_every=4).check()
                assert out.samples["a"].shape == (5, 2, 3) and out.samples["b"].dtype == dtype
                assert out.stats.mean["a"].shape == (2, 3)


@pytest.mark.parametrize("duration", ["fixed", "exponential"])
def test_random_durations_escape_the_period(duration, key):
    """At a duration of one full period a fixed trajectory returns to its start and nothing mixes."""
    steps = 60
    kernel = hmc(lambda x: jnp.sum(x**2) / 2, 2 * np.pi / steps, steps, duration=duration)
    out = run_chains(kernel, 2 * jnp.ones((64, 1)), 40, key=key)
    remembered = float(jnp.mean(out.samples[-1] * 2) / 4)
    assert (remembered > 0.9) if duration == "fixed" else (abs(remembered) < 0.35)


def test_adjusted_kernels_reject_what_has_no_energy(key):
    """A wall of infinite energy: proposals behind it are rejected, the law inside is kept."""
    half = lambda x: jnp.where(x[0] > 0, x[0] + jnp.sum(x[1:] ** 2), jnp.inf)
    out = run_chains(mala(half, 0.3), jnp.ones((1024, 2)), 600, key=key, save_every=3).check()
    kept = np.asarray(out.samples)[50:, :, 0]
    assert kept.min() > 0
    error = kept.mean(0).std() / 32
    assert abs(kept.mean() - 1) < 5 * error and error < 0.03


def test_our_kernels_in_a_loop_of_blackjax(key):
    kernel = mala(energy, 0.4)
    sampler = blackjax.base.SamplingAlgorithm(kernel.init, kernel.step)
    final, history = blackjax.util.run_inference_algorithm(
        key, sampler, num_steps=50, initial_state=kernel.init(jnp.ones(2)), transform=lambda state, info: state.position
    )
    assert history.shape == (50, 2) and bool(jnp.isfinite(final.position).all())
    _, begun = blackjax.util.run_inference_algorithm(
        key, sampler, num_steps=50, initial_position=jnp.ones(2), transform=lambda state, info: state.position
    )
    assert begun.shape == (50, 2) and bool(jnp.isfinite(begun).all())


def test_a_kernel_of_blackjax_that_starts_with_a_key(key):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        kernel = from_blackjax(blackjax.dynamic_hmc(lambda x: -energy(x), 0.5, jnp.ones(2)))
        many = run_chains(kernel, jnp.ones((3, 2)), 20, key=key).check()
        one = run(kernel, jnp.ones(2), 20, key=key, lane=2)
    np.testing.assert_allclose(many.samples[:, 2], one.samples, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("progress", [False, True])
def test_a_run_that_goes_on_continues(key, progress):
    kernel, x0 = mala(energy, 0.4), jnp.ones((3, 2))
    whole = run_chains(kernel, x0, 60, key=key, save_every=2)
    half = run_chains(kernel, x0, 40, key=key, save_every=2)
    rest = run_chains(kernel, half.state, 20, key=key, save_every=2, first=40, progress=progress)
    np.testing.assert_allclose(whole.samples[20:], rest.samples, rtol=1e-5, atol=1e-6)
    assert list(np.asarray(rest.status.step)) == [60] * 3


def test_kernels_of_blackjax_in_a_loop_of_ours(key):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        nuts = from_blackjax(blackjax.nuts(lambda x: -energy(x), 0.6, jnp.ones(2)))
        out = run_chains(nuts, jnp.ones((64, 2)), 200, key=key, save_every=2).check()
    kept = np.asarray(out.samples)[10:]
    error = (kept**2).mean(0).std(0) / 8
    assert np.all(np.abs((kept**2).mean((0, 1)) - 1 / np.asarray(K)) < 5 * error)
    assert float(out.info.acceptance.mean()) > 0.6


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [("ULA", False), ("ULA", True), ("ULA, scaled", False), ("BAOAB", True), ("OBABO", False), ("exact", False)],
)
def test_gradient_through_a_run(name, checkpoint):
    """d/d(step size, start) of a function of the last position, against finite differences in float64."""
    with jax.enable_x64(True):
        x0 = jnp.asarray([[0.3, -0.2], [1.0, 0.5]])

        def last(h, shift):
            kernel = KERNELS[name](tilted, h)
            out = run_chains(kernel, x0 + shift, 6, key=jax.random.key(1), save_every=2, checkpoint=checkpoint)
            return jnp.sum(out.samples[-1] ** 3)

        slopes = jax.grad(last, (0, 1))(0.2, 0.1)
        step = 1e-5
        numbers = (
            (last(0.2 + step, 0.1) - last(0.2 - step, 0.1)) / (2 * step),
            (last(0.2, 0.1 + step) - last(0.2, 0.1 - step)) / (2 * step),
        )
        np.testing.assert_allclose(slopes, numbers, rtol=1e-6)


def test_errors(key):
    x = jnp.zeros(2)
    for make in (overdamped, mala, underdamped, hmc):
        with pytest.raises(ValueError, match="step_size"):
            make(energy, -0.1)
        with pytest.raises(ValueError, match="temperature"):
            make(energy, 0.1, temperature=-1.0)
        with pytest.raises(ValueError, match="scalar"):
            make(lambda x: x, 0.1).init(x)
        with pytest.raises(ValueError, match="not finite"):
            make(lambda x: jnp.inf * jnp.sum(x**0), 0.1).init(x)
        with pytest.raises(ValueError, match="for 1 of 3 chains"):
            run_chains(make(lambda x: -jnp.log(x[0]), 0.1), jnp.asarray([[1.0], [2.0], [-1.0]]), 4, key=key)
        with pytest.raises(ValueError, match="scale"):
            make(energy, 0.1, scale=jnp.ones(3)).init(x)
    with pytest.raises(ValueError, match="scheme"):
        underdamped(energy, 0.1, scheme="BABO")
    with pytest.raises(ValueError, match="friction"):
        underdamped(energy, 0.1, friction=0.0, scheme="exact")
    with pytest.raises(ValueError, match="save_every"):
        run(overdamped(energy, 0.1), x, 10, key=key, save_every=3)
    with pytest.raises(ValueError, match="leading axis"):
        run_chains(overdamped(energy, 0.1), jnp.zeros(()), 10, key=key)
    with pytest.raises(ValueError, match="floating"):
        run(overdamped(energy, 0.1), jnp.zeros(2, int), 10, key=key)
    with pytest.raises(ValueError, match="init and step"):
        from_blackjax(energy)


def test_divergence_is_a_status_for_each_chain(key):
    out = run_chains(overdamped(lambda x: jnp.sum(x**4), 0.5), jnp.asarray([[0.0], [50.0]]), 40, key=key, save_every=4)
    assert list(np.asarray(out.status.ok)) == [True, False] or not bool(out.status.ok[1])
    with pytest.raises(Failure, match="diverged at step"):
        out.check()


def test_zero_temperature_is_descent_and_a_run_goes_on(key):
    kernel = overdamped(energy, 0.1, 0.0)
    out = run(kernel, jnp.ones(2), 30, key=key, save_every=30)
    np.testing.assert_allclose(out.samples[0], (1 - 0.1 * K) ** 30, rtol=1e-5)
    mine = underdamped(tilted, 0.2)
    half = run(mine, jnp.ones(2), 10, key=key)
    assert run(mine, half.state, 10, key=jax.random.key(5)).samples.shape == (10, 2)


def test_a_kernel_knows_its_lanes(key):
    kernel = over_lanes(mala(tilted, 0.2))
    state = kernel.init(jnp.ones((2, 7)))
    state, info = kernel.move(state, kernel.draw(key, jax.ShapeDtypeStruct((2,), jnp.float32), jnp.arange(7)))
    assert state.energy.shape == (7,) and info.acceptance.shape == (7,)


def test_progress_and_observation(key, capsys):
    kernel = overdamped(energy, 0.1)
    seen = lambda x: {"radius": jnp.sum(x**2)}
    plain = run_chains(kernel, jnp.ones((3, 2)), 40, key=key, save_every=2, observe=seen)
    shown = run_chains(kernel, jnp.ones((3, 2)), 40, key=key, save_every=2, observe=seen, progress=True)
    np.testing.assert_allclose(plain.samples["radius"], shown.samples["radius"], rtol=1e-6)
    assert "run" in capsys.readouterr().err
    assert run_chains(kernel, jnp.ones((3, 2)), 40, key=key, keep=False).samples is None


def test_quasirandom_durations_fill_their_interval():
    leaps, h = quasirandom_leaps(jnp.arange(4096, dtype=jnp.int32), jnp.asarray(2.0), jnp.asarray(0.01))
    short = np.asarray(h) < 0.005
    assert short.reshape(-1, 16).sum(1).tolist() == [1] * 256
    np.testing.assert_allclose(h, np.where(short, 0.0025, 0.01), rtol=1e-6)
    # Evenly: the empirical distribution is that of (0, 2 length / h) within a few of its 3840 points.
    for some in (np.sort(np.asarray(leaps)[~short]), np.sort(np.asarray(leaps)[short])):
        even = 400 * (np.arange(len(some)) + 0.5) / len(some)
        assert np.abs(some - even).max() < 4
    assert int(quasirandom_leaps(jnp.int32(5), jnp.asarray(1e-3), jnp.asarray(1.0))[0]) == 1


def test_quasirandom_hmc_leaves_a_gaussian_and_is_a_lane_of_many():
    precision = jnp.array([[2.0, 0.7], [0.7, 1.0]])
    kernel = hmc(lambda x: 0.5 * x @ precision @ x, 0.7, 3, duration="quasirandom")
    C = np.linalg.inv(np.asarray(precision, np.float64))
    x0s = np.random.default_rng(0).multivariate_normal(np.zeros(2), C, 2000).astype(np.float32)
    out = run_chains(kernel, x0s, 40, key=jax.random.key(1))
    assert 0.5 < float(out.info.acceptance.mean()) < 0.97
    x = np.asarray(out.state.position)
    assert np.abs(z_score(x[:, :, None] * x[:, None, :], C)).max() < 5
    one = run(kernel, x0s[7], 40, key=jax.random.key(1), lane=7).samples
    np.testing.assert_allclose(out.samples[:, 7], one, rtol=1e-3, atol=1e-4)
