"""What can be said before running is said: the value, what was expected, the fix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.integrate import RK4, SRA1, Dynamics, EulerMaruyama, Heun, Leapfrog, Matrix, Milstein, ensemble, integrate

TS = np.linspace(0.0, 1.0, 7)
X0 = jnp.array([0.5, 1.5])
KEY = jax.random.key(0)
DECAY = lambda t, x, a: -x
ODE, NOISY = Dynamics(DECAY), Dynamics(DECAY, lambda t, x, a: 1.0)


def with_noise(noise, **options):
    return Dynamics(DECAY, noise, **options)


LINEAR = with_noise(lambda t, x, a: 0.3 * x)
SHARED = with_noise(lambda t, x, a: jnp.sum(x))
CROSSED = with_noise(lambda t, x, a: x[::-1])
MATRIX = with_noise(Matrix(jnp.ones((2, 3))))


@pytest.mark.parametrize(
    "call, message",
    [
        # times
        (dict(ts=[0.0, 0.2, 0.2, 0.4]), r"ts must increase .* ts\[1:3\] = .*negate the drift"),
        (dict(ts=[1.0, 0.5]), "ts must increase"),
        (dict(ts=[0.0, 1.0, np.nan]), "ts must increase"),
        (dict(ts=[0.0, np.inf]), "ts must increase"),
        (dict(ts=[1e8, 1e8 + 1]), r"must increase \(in float32\)"),
        (dict(ts=np.zeros((2, 2))), r"vector of times, \(steps \+ 1,\); got shape \(2, 2\)"),
        (dict(ts=[]), r"vector of times.*\(0,\)"),
        (dict(save_every=4), "save_every must be a positive divisor of the 6 steps, got 4"),
        (dict(save_every=0), "save_every must be an integer of at least 1, got 0"),
        # states
        (dict(x0=jnp.array([1, 2])), "floating point; got int32"),
        (dict(x0=1), "floating point"),
        (dict(x0=jnp.array([1.0, np.nan])), "x0 has entries that are not finite"),
        (dict(x0={}), "x0 has no arrays"),
        # the drift
        (dict(dynamics=Dynamics(lambda t, x, a: x[:1])), r"drift must return what x0 is.*\[\(2,\)\].*\[\(1,\)\]"),
        (dict(dynamics=Dynamics(lambda t, x, a: (x, x))), "drift must return what x0 is"),
        (dict(dynamics=Dynamics(lambda t, x, a: jax.lax.complex(x, x))), "drift of a real state is complex"),
        (dict(dynamics=DECAY), "must be a physml.integrate.Dynamics, got function"),
        # noise
        (dict(dynamics=NOISY, key=None), r"pass key=jax.random.key\(seed\)"),
        (dict(dynamics=NOISY, key=jax.random.PRNGKey(0)), "one typed key"),
        (dict(dynamics=with_noise(lambda t, x, a: jnp.ones(3))), r"noise must return a number.*got .*3"),
        (dict(dynamics=with_noise(lambda t, x, a: jnp.ones((2, 2)))), "or a Matrix"),
        (dict(dynamics=with_noise(Matrix(jnp.ones((3, 2))))), r"Matrix noise needs leaves \(\*event, m\)"),
        (dict(dynamics=with_noise(Matrix(jnp.ones(())))), "Matrix noise needs leaves"),
        (
            dict(
                x0={"a": X0, "b": X0},
                dynamics=Dynamics(lambda t, x, a: x, Matrix({"a": jnp.ones((2, 3)), "b": jnp.ones((2, 2))})),
            ),
            "share the last axis m",
        ),
        (dict(dynamics=NOISY, x0=X0.astype(jnp.complex64)), "real and imaginary parts"),
        # methods
        (dict(method=EulerMaruyama), "method must be"),
        (dict(dynamics=NOISY, method=RK4()), "RK4 is for ODEs; with noise use EulerMaruyama"),
        (dict(dynamics=NOISY, method=Leapfrog()), "Leapfrog is for ODEs"),
        (dict(dynamics=MATRIX, method=Milstein()), "Milstein is for diagonal noise; got matrix noise"),
        (dict(dynamics=SHARED, method=Milstein()), "Milstein is for diagonal noise; got scalar noise"),
        (dict(dynamics=CROSSED, method=Milstein()), r"must be elementwise.*Matrix\(jnp.diag\(g\)\)"),
        (dict(dynamics=CROSSED, method=Heun()), "must be elementwise"),
        (dict(dynamics=with_noise(lambda t, x, a: x[::-1], calculus="stratonovich")), "must be elementwise"),
        (dict(dynamics=LINEAR, method=SRA1()), "SRA1 is for additive noise; here g depends on x"),
        (dict(method=Leapfrog()), r"Leapfrog needs a state \(q, p\)"),
        (
            dict(x0=(X0, X0), dynamics=Dynamics(lambda t, x, a: (x[1], -x[0] - 0.1 * x[1])), method=Leapfrog()),
            "dp/dt depends on p",
        ),
        (
            dict(x0=(X0, X0), dynamics=Dynamics(lambda t, x, a: (x[1] + x[0], -x[0])), method=Leapfrog()),
            "dq/dt depends on q",
        ),
    ],
)
def test_value_errors(call, message):
    call = dict(dynamics=ODE, x0=X0, ts=TS, key=KEY) | call
    dynamics, x0, ts = (call.pop(name) for name in ("dynamics", "x0", "ts"))
    # A value of the wrong type is caught by the type checker where that is switched on.
    error = (ValueError, TypeError) if dynamics is DECAY or call.get("method") is EulerMaruyama else ValueError
    with pytest.raises(error, match=message if error is ValueError else "dynamics|method"):
        integrate(dynamics, x0, ts, **call)


def test_what_must_not_raise():
    """The nearest neighbours of the errors above."""
    run = lambda dynamics, x0=X0, **options: integrate(dynamics, x0, TS, key=KEY, **options).check()
    run(NOISY, method=Milstein())
    run(SHARED, x0=X0[:1], method=Milstein())
    run(LINEAR, method=Milstein())
    run(LINEAR, method=Heun())
    for method in (SRA1(), Heun(), Milstein()):
        run(with_noise(lambda t, x, a: 1), method=method)
    run(MATRIX, method=SRA1())
    # The slope of sqrt(x) at zero is infinite, which is not coupling (the run itself does not survive it).
    integrate(with_noise(lambda t, x, a: jnp.sqrt(x)), jnp.zeros(2), TS, key=KEY, method=Milstein())
    integrate(ODE, 1.0, [0, 1, 2]).check()
    integrate(Dynamics(lambda t, x, a: (x[1], -x[0])), (X0, X0), TS, method=Leapfrog()).check()


@pytest.mark.parametrize("size", [2, 3, 7])
def test_one_coupled_entry_is_enough(size):
    """Whichever pair of entries an amplitude couples, it is noticed."""
    for i in range(size):
        for j in range(size):
            if i != j:
                dynamics = with_noise(lambda t, x, a, i=i, j=j: (0.5 * x).at[i].add(0.1 * x[j]))
                with pytest.raises(ValueError, match="elementwise"):
                    integrate(dynamics, jnp.linspace(1.0, 2.0, size), TS, key=KEY, method=Milstein())


def test_dynamics_and_ensembles():
    # A wrong option is caught by the type checker where that is switched on.
    with pytest.raises((ValueError, TypeError), match="calculus"):
        Dynamics(DECAY, calculus="malliavin")
    with pytest.raises((ValueError, TypeError), match="drift"):
        Dynamics(3.0)
    with pytest.raises((ValueError, TypeError), match="noise"):
        Dynamics(DECAY, 0.5)
    for x0, message in [
        (1.0, "leading axis `paths`"),
        ({"a": jnp.ones(3), "b": jnp.ones(2)}, "leading axis `paths`"),
        ((), "leading axis `paths`"),
        (jnp.ones((0, 2)), "at least one path"),
        (jnp.ones((3, 2)).at[2, 1].set(np.inf), "not finite"),
        (jnp.ones((3, 2), int), "floating point"),
    ]:
        with pytest.raises(ValueError, match=message):
            ensemble(NOISY, x0, TS, key=KEY)
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda x: integrate(ODE, x, TS, progress=True).xs)(X0)
