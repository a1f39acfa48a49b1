"""Fixed points with known solutions and derivatives."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from jax import lax

from physml.core import Anderson, Code, Damped, Failure, Newton, fixed_point, solve_linear

METHODS = [Damped(0.7), Anderson(6), Newton()]
RNG = np.random.default_rng(0)
# A random map of spectral norm 0.8: x = A x + b has the solution (I - A)^-1 b.
A = RNG.normal(size=(6, 6))
A = 0.8 * A / np.linalg.norm(A, 2)
B = RNG.normal(size=6)
RESOLVENT = np.linalg.inv(np.eye(6) - A)


def _linear(b, method, **options):
    return fixed_point(lambda x: jnp.asarray(A, b.dtype) @ x + b, jnp.zeros_like(b), method=method, **options)


@pytest.mark.parametrize("method", METHODS)
def test_linear_system_and_its_derivative(method):
    solve = jax.jit(lambda b: (_linear(b, method, tol=1e-12), jax.jacrev(lambda b: _linear(b, method).value)(b)))
    with jax.enable_x64(True):
        out, slope = solve(jnp.asarray(B))
    np.testing.assert_allclose(out.value, RESOLVENT @ B, rtol=1e-9)
    np.testing.assert_allclose(slope, RESOLVENT, rtol=1e-9, atol=1e-9)
    assert float(out.residual) <= 1e-12 and out.status.code == Code.ok and out.status.step == out.steps
    x = np.asarray(out.value)
    np.testing.assert_allclose(out.residual, np.abs(A @ x + B - x).max() / (1 + np.abs(x).max()), atol=1e-15)
    assert out.check() is out


def _magnetisation(beta, h, method, **options):
    return fixed_point(lambda m: jnp.tanh(beta * m + h), jnp.asarray(0.9, beta.dtype), method=method, **options)


@pytest.mark.parametrize("method", METHODS)
def test_implicit_gradient_against_finite_differences_and_unrolling(method):
    """m = tanh(beta m + h): dm/dh = (1 - m^2) / (1 - beta (1 - m^2)), times m for beta."""

    def run(beta, h):
        value = lambda beta, h: _magnetisation(beta, h, method, tol=1e-13).value
        implicit = jax.grad(value, argnums=(0, 1))(beta, h)
        tangent = jax.jvp(value, (beta, h), (jnp.ones_like(beta), jnp.ones_like(h)))[1]
        e = 1e-5
        differences = (
            (value(beta + e, h) - value(beta - e, h)) / (2 * e),
            (value(beta, h + e) - value(beta, h - e)) / (2 * e),
        )
        return value(beta, h), implicit, tangent, differences

    with jax.enable_x64(True):
        m, implicit, tangent, differences = jax.jit(run)(jnp.asarray(1.3), jnp.asarray(0.2))
    m = float(m)
    exact = (1 - m**2) / (1 - 1.3 * (1 - m**2))
    np.testing.assert_allclose(m, np.tanh(1.3 * m + 0.2), rtol=1e-12)
    np.testing.assert_allclose(implicit, (m * exact, exact), rtol=1e-9)
    np.testing.assert_allclose(implicit, differences, rtol=1e-6)
    np.testing.assert_allclose(tangent, np.sum(implicit), rtol=1e-9)


@pytest.mark.parametrize("method", [Damped(1.0), Anderson(3)])
def test_unrolled_gradient(method):
    with jax.enable_x64(True):
        value = lambda h, adjoint: _magnetisation(jnp.asarray(1.3), h, method, tol=1e-13, adjoint=adjoint, max_steps=80)
        run = jax.jit(
            lambda h: [jax.value_and_grad(lambda h, a=a: value(h, a).value)(h) for a in ("implicit", "unrolled")]
        )
        implicit, unrolled = run(jnp.asarray(0.2))
    np.testing.assert_allclose(jnp.stack(unrolled), jnp.stack(implicit), rtol=1e-9)


def test_transformations_compose():
    """jit(vmap(grad)) over parameters, second derivatives, and float32 in, float32 out."""
    value = lambda h: _magnetisation(jnp.float32(0.5), h, None).value
    h = jnp.linspace(-1.0, 1.0, 5)
    m = np.asarray(jax.jit(jax.vmap(value))(h))
    first, second = jax.jit(jax.vmap(lambda h: (jax.grad(value)(h), jax.grad(jax.grad(value))(h))))(h)
    s = 1 - m**2
    slope = s / (1 - 0.5 * s)
    assert m.dtype == np.float32
    np.testing.assert_allclose(m, np.tanh(0.5 * m + h), atol=3e-5)
    np.testing.assert_allclose(first, slope, rtol=1e-3)
    # d/dh of s / (1 - beta s) with ds/dh = -2 m dm/dh.
    np.testing.assert_allclose(second, -2 * m * slope / (1 - 0.5 * s) ** 2, rtol=1e-3, atol=1e-4)


def test_iterative_linear_solvers():
    """GMRES for the implicit derivative and for Newton's step; the dense default gives the same."""
    gmres = lineax.GMRES(rtol=1e-12, atol=1e-12)
    with jax.enable_x64(True):
        b = jnp.asarray(B)
        run = lambda b: jax.value_and_grad(
            lambda b: _linear(b, Newton(linear_solver=gmres), tol=1e-12, linear_solver=gmres).value[2]
        )(b)
        value, slope = jax.jit(run)(b)
        np.testing.assert_allclose(value, (RESOLVENT @ B)[2], rtol=1e-9)
        np.testing.assert_allclose(slope, RESOLVENT[2], rtol=1e-9)
        n = 1200  # beyond the dense limit
        diagonal = jnp.linspace(1.0, 2.0, n)
        np.testing.assert_allclose(solve_linear(lambda v: diagonal * v, diagonal**2), diagonal, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_complex_pytree(method):
    """z = w z + c with |w| < 1 beside a real entry: c / (1 - w), and the holomorphic derivative 1 / (1 - w)."""
    w, c = 0.3 + 0.6j, 1.0 - 2.0j

    @jax.jit
    def run(c):
        f = lambda s: {"z": jnp.complex64(w) * s["z"] + c, "y": 0.5 * s["y"] + 1.0}
        solve = lambda c: fixed_point(lambda s: f(s) | {"z": jnp.complex64(w) * s["z"] + c}, x0, method=method)
        x0 = {"z": jnp.zeros(2, jnp.complex64), "y": jnp.zeros(())}
        tangent = jax.jvp(lambda c: solve(c).value["z"], (c,), (jnp.complex64(1j),))[1]
        return solve(c), tangent

    out, tangent = run(jnp.complex64(c))
    assert out.value["z"].dtype == jnp.complex64 and out.value["y"].dtype == jnp.float32
    np.testing.assert_allclose(out.value["z"], np.full(2, c / (1 - w)), rtol=1e-4)
    np.testing.assert_allclose(out.value["y"], 2.0, rtol=1e-4)
    np.testing.assert_allclose(tangent, np.full(2, 1j / (1 - w)), rtol=1e-4)


def test_leaves_of_different_precision():
    with jax.enable_x64(True):
        x0 = {"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros((), jnp.float64)}
        out = fixed_point(lambda s: {"a": 0.5 * s["a"] + 1.0, "b": 0.5 * s["b"] + 1.0}, x0).check()
        assert out.value["a"].dtype == jnp.float32 and out.value["b"].dtype == jnp.float64
        np.testing.assert_allclose(out.value["b"], 2.0, rtol=1e-8)


def test_history():
    """Damped iteration of x -> x/2 with damping 1/2: x_k = (3/4)^k."""
    f = lambda s: {"x": 0.5 * s["x"]}
    out = jax.jit(lambda x: fixed_point(f, {"x": x}, tol=1e-3, max_steps=60, history=True))(jnp.ones(2))
    k = int(out.steps)
    assert out.history.values["x"].shape == (61, 2) and out.history.residuals.shape == (61,)
    np.testing.assert_allclose(out.history.values["x"][: k + 1, 0], 0.75 ** np.arange(k + 1), rtol=1e-5)
    assert np.isnan(out.history.values["x"][k + 1 :]).all() and np.isnan(out.history.residuals[k + 1 :]).all()
    assert 0 < k < 60 and out.history.residuals[k] <= 1e-3 < out.history.residuals[k - 1]
    assert out.history.residuals[k] == out.residual
    assert fixed_point(f, {"x": jnp.ones(2)}).history is None


def test_statuses():
    one = jnp.ones(2)
    late = fixed_point(lambda x: 0.999 * x, one, max_steps=7)
    assert late.status.code == Code.not_converged and late.steps == 7
    with pytest.raises(Failure, match=r"fixed_point: not_converged at iteration 7"):
        late.check()
    wild = fixed_point(lambda x: 3.0 + x**3, one)
    assert wild.status.code == Code.diverged and wild.steps < 30
    with pytest.raises(Failure, match=f"diverged at iteration {int(wild.steps)}: .*finite"):
        wild.check()
    # x = x + 1 has no solution: no iterate is better than another.
    stuck = fixed_point(lambda x: x + 1.0, one, method=Anderson(3, patience=20))
    assert stuck.status.code == Code.stagnated and stuck.steps < 100
    with pytest.raises(Failure, match="stagnated"):
        stuck.check()
    # x = x^2 + 1 has no real solution.
    assert fixed_point(lambda x: x**2 + 1.0, 1.3 * one, method=Newton()).status.code == Code.stagnated
    fine = fixed_point(lambda x: 0.5 * x + 1.0, one, tol=1e-30)
    assert fine.status.code == Code.precision_limited and fine.residual <= 4 * np.finfo(np.float32).eps
    assert fine.check() is fine
    assert fixed_point(lambda x: 0.5 * x, jnp.zeros(2)).steps == 0


def test_newton_finds_an_unstable_fixed_point():
    """m = tanh(2 m): 0 is unstable under iteration, which leaves it for the stable m = 0.9575."""
    f = lambda m: jnp.tanh(2.0 * m)
    newton = fixed_point(f, jnp.asarray(0.3), method=Newton())
    np.testing.assert_allclose(newton.check().value, 0.0, atol=1e-5)
    np.testing.assert_allclose(fixed_point(f, jnp.asarray(0.3)).check().value, 0.957504, atol=1e-4)
    np.testing.assert_allclose(newton.steps, 4, atol=2)  # quadratic convergence


def test_anderson_needs_far_fewer_iterations_on_a_stiff_map():
    """Eigenvalues up to 0.999: Damped(1) needs about 1000 ln(1/(1000 tol)) steps, Anderson a few times five."""
    rates = jnp.array([0.0, 0.5, 0.9, 0.99, 0.999])
    f = lambda x: rates * x + 1.0
    solve = jax.jit(lambda method: fixed_point(f, jnp.zeros(5), method=method, tol=1e-5, max_steps=20_000))
    slow, fast = solve(Damped(1.0)).check(), solve(Anderson(6)).check()
    np.testing.assert_allclose(slow.steps, -1000 * np.log(1000 * 1e-5), rtol=0.01)
    assert int(fast.steps) < int(slow.steps) / 100
    np.testing.assert_allclose(fast.value, 1 / (1 - rates), rtol=2e-2)


def test_damping_may_be_traced_and_rank_is_the_callers():
    run = jax.jit(lambda a: fixed_point(lambda x: -2.0 * x + 3.0, jnp.zeros((2, 3)), method=Damped(a)))
    out = run(jnp.float32(0.3))
    assert out.value.shape == (2, 3) and out.check()
    np.testing.assert_allclose(out.value, 1.0, rtol=1e-4)
    assert run(jnp.float32(0.9)).status.code == Code.diverged


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Damped(0.0), r"damping must be positive and at most 1, got 0"),
        (lambda: Damped(1.5), "damping"),
        (lambda: Anderson(1), "depth >= 2, got 1"),
        (lambda: Anderson(5, damping=-1.0), "damping"),
        (lambda: fixed_point(jnp.sin, 1.0, adjoint="magic"), "magic"),
        (lambda: fixed_point(jnp.sin, 1.0, max_steps=0), "at least 1, got 0"),
        (lambda: fixed_point(lambda n: n, jnp.arange(3)), "floating point, got .*int32"),
        (lambda: fixed_point(lambda x: x[:2], jnp.ones(3)), "must return what it is given"),
        (lambda: fixed_point(lambda x: (x, x), jnp.ones(3)), "must return what it is given"),
        (lambda: fixed_point(lambda x: lax.complex(x, x), jnp.ones(3)), "must return what it is given"),
    ],
)
def test_errors(call, message):
    # A wrong option of a Literal is caught by the type checker where that is switched on.
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("size", [3, 100_000])
def test_a_state_that_is_not_a_number_is_never_a_solution(size):
    out = fixed_point(lambda x: jnp.sqrt(-x), jnp.ones(size))
    assert int(out.status.code) == Code.diverged
    partly = fixed_point(lambda x: jnp.where(jnp.arange(size) == 1, jnp.nan, x), jnp.ones(size))
    assert int(partly.status.code) == Code.diverged
