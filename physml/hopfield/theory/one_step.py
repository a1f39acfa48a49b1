r"""One step of replica symmetry breaking in dense memories: the glass without pattern, its lines, the ground state.

Replicas form clusters of overlap q_1, with q_0 between clusters and a weight 1 - theta inside. With
$H = \beta[m^{p-1} + \sqrt{aq_0^{p-1}}z_0 + \sqrt{a(q_1^{p-1} - q_0^{p-1})}z_1]$,

$$-\beta f = \frac{\beta^2a}{2p}\bigl[1 + (p-1)((1-\theta)q_1^p + \theta q_0^p) - pq_1^{p-1}\bigr]
  - \beta\frac{p-1}{p}m^p + \frac1\theta\int Dz_0\ln\int Dz_1(2\cosh H)^\theta$$

Without a pattern m = q_0 = 0, and with $x = \beta^2aq_1^{p-1}$ and averages weighted by $\cosh^\theta(\sqrt xz)$ both
saddle equations are explicit in (x, theta): $q_1 = \langle\tanh^2\rangle$ and, because $\beta^2aq_1^p = xq_1$,

$$0 = -\frac{p-1}{2p}xq_1 - \frac1{\theta^2}\ln\int Dz(2\cosh\sqrt xz)^\theta
  + \frac1\theta\langle\ln2\cosh\sqrt xz\rangle$$

then $T = \sqrt{aq_1^{p-1}/x}$. The glass appears at the *static* temperature T_K, where theta = 1; clusters exist
below the *dynamic* T_d, the largest T at theta = 1; below the *Gardner* temperature they break up further, where
$(p-1)\frac{x}{q_1}\langle\mathrm{sech}^4\rangle = 1$. All scale as the root of the load.

**See** Gardner, Nucl. Phys. B 257, 747 (1985); Albanese, Alemanno, Alessandrelli and Barra, Replica symmetry breaking
in dense neural networks (2022).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.float64 import float64_program
from physml.core.quadrature import gauss_hermite
from physml.core.roots import bisect, newton
from physml.core.special import log_2cosh, tanh_family
from physml.core.types import Scalar, is_traced
from physml.hopfield.theory.replica import Memory, check_order
from physml.hopfield.theory.site import site

NODES = 601


class GlassLines(Checked):
    """`static` T_K, `dynamic` T_d, `gardner` T_G, and the ground-state energy per spin `energy`, of the glass without
    pattern at one load."""

    computation: ClassVar[str] = "glass_lines"

    static: Array
    dynamic: Array
    gardner: Array
    energy: Array
    status: Status


def free_energy_one_step(
    p: int, load: Scalar, temperature: Scalar, m: Scalar, q0: Scalar, q1: Scalar, theta: Scalar, *, nodes: int = 64
) -> Array:
    """f per spin at any order parameters, on a product of Gauss-Hermite grids: extremal at the solutions, and the
    replica-symmetric one where q0 = q1. Use more nodes below T = 0.1."""
    check_order(p, "distinct")
    return _free(p, load, temperature, m, q0, q1, theta, nodes)


@float64_program(static=("p", "nodes"))
def _free(p, a, t, m, q0, q1, theta, nodes):
    z, w = gauss_hermite(nodes, jnp.float64)
    outer = jnp.sqrt(a * q0 ** (p - 1) + 1e-20)
    # A fused difference of equal powers may come out as minus its rounding.
    inner = jnp.sqrt(a * (q1 ** (p - 1) - q0 ** (p - 1)) + 1e-15 * (1 + a))
    h = (m ** (p - 1) + outer * z[:, None] + inner * z[None, :]) / t
    cluster = w @ logsumexp(theta * log_2cosh(h), axis=1, b=jnp.broadcast_to(w[None, :], h.shape)) / theta
    square = 1 + (p - 1) * ((1 - theta) * q1**p + theta * q0**p) - p * q1 ** (p - 1)
    return -a / (2 * p * t) * square + (p - 1) / p * m**p - t * cluster


def _cluster(x, theta):
    """q_1, <sech^4>, ln int Dz (2 cosh)^theta and <ln 2 cosh>, the averages weighted by cosh^theta."""
    root = jnp.sqrt(x)
    # Nodes follow the step of the tanh, of width 1/root, and reach the weight's maxima at z = +-theta root.
    reach = jax.lax.stop_gradient(10.0 + theta * root)
    width = jax.lax.stop_gradient(jnp.minimum(1 / root, 1.0))
    far = reach / width
    edge = jnp.log(far + jnp.sqrt(far**2 + 1))
    up = jnp.exp(edge * np.linspace(-1.0, 1.0, NODES))
    z = 0.5 * width * (up - up[::-1])
    measure = 0.5 * width * (up + up[::-1]) * 2 * edge / (NODES - 1)
    tanh, sech2, log = tanh_family(root * z)
    weight = jnp.log(measure) - 0.5 * z**2 - 0.5 * np.log(2 * np.pi) + theta * log
    norm = logsumexp(weight)
    w = jnp.exp(weight - norm)
    return w @ tanh**2, w @ sech2**2, norm, w @ log


def _static(p, x, theta):
    """What vanishes where f is extremal in theta, times theta^2, divided by x."""
    q, _, norm, log = _cluster(x, theta)
    return (-(p - 1) / (2 * p) * x * q * theta**2 - norm + theta * log) / x


def glass_lines(p: int, load: Scalar | None = None) -> GlassLines:
    r"""The transitions of the p-spin glass that the patterns make; `load` a, by default p/2, the usual normalisation.

    **Example.** p = 3 at a = 3/2: T_K = .65139, T_d = .68160, T_G = .24026, energy -.81353.
    """
    check_order(p, "distinct")
    if p < 3:
        raise ValueError(f"p must be at least 3, got {p}: the glass of p = 2 breaks replica symmetry continuously")
    load = p / 2 if load is None else load
    check.number(load, "load", above=0)
    return _glass_lines(p, load)


@float64_program(static=("p",))
def _glass_lines(p, load):
    return _lines(p, load)


def _lines(p, load):
    one = jnp.ones(())
    temperature = lambda x, theta: jnp.sqrt(load * _cluster(x, theta)[0] ** (p - 1) / x)
    # theta = 1: T is explicit in x; its maximum and the root of the static equation, both from a grid.
    xs = jnp.geomspace(0.2, 40.0, 160)
    start = jax.lax.stop_gradient
    level = start(jax.vmap(lambda x: temperature(x, one))(xs))
    top = xs[jnp.argmax(level)]
    slope = jax.grad(lambda x: jnp.log(_cluster(x, one)[0] ** (p - 1) / x))
    x_d, ok_d = newton(lambda u: slope(u[0])[None], start(top)[None], tol=1e-9)
    # Clusters lie above the dynamic x; there the static equation changes sign once, at the static transition.
    first = bisect(lambda x: -_static(p, x, one), top, jnp.full((), 60.0))
    x_k, ok_k = newton(lambda u: _static(p, u[0], one)[None], first[None], tol=1e-9)

    def margin(u):
        x, theta = jnp.exp(u[0]), jnp.exp(u[1])
        q, sech4, *_ = _cluster(x, theta)
        return jnp.stack([_static(p, x, theta), (p - 1) * x / q * sech4 - 1])

    def at(theta):
        """x of the static solution at this theta, on a logarithmic scale."""
        return bisect(lambda v: -_static(p, jnp.exp(v), theta), jnp.log(top / theta), jnp.log(80.0 / theta**2), 50)

    thetas = jnp.geomspace(0.05, 1.0, 24)
    rows = jax.lax.map(at, thetas)
    off = jax.vmap(lambda v, theta: margin(jnp.stack([v, jnp.log(theta)]))[1])(rows, thetas)
    i = jnp.argmin(jnp.abs(off))
    u, ok_g = newton(margin, start(jnp.stack([rows[i], jnp.log(thetas[i])])), tol=1e-9)
    # T -> 0: theta = y T with x = (load / T^2) and q = 1; a small theta stands for the limit, the error is O(theta^2).
    cold = jnp.asarray(1e-4)
    v, ok_0 = newton(lambda v: _static(p, jnp.exp(v[0]), cold)[None], start(at(cold))[None], tol=1e-9)
    x = jnp.exp(v[0])
    q, _, norm, _ = _cluster(x, cold)
    t = jnp.sqrt(load * q ** (p - 1) / x)
    square = 1 + (p - 1) * (1 - cold) * q**p - p * q ** (p - 1)
    energy = -load / (2 * p * t) * square - t * norm / cold
    good = ok_d.ok & ok_k.ok & ok_g.ok & ok_0.ok
    state = status(jnp.where(good, Code.ok, Code.not_converged))
    return GlassLines(
        temperature(x_k[0], one), temperature(x_d[0], one), temperature(jnp.exp(u[0]), jnp.exp(u[1])), energy, state
    )


def ground_state_load(p: int) -> Array:
    """The load above which, at T = 0, the glass of one-step replica symmetry breaking lies below the patterns; the
    critical load where retrieval ends before that, as for p = 3.

    **Errors.** `Failure` where the lines of the glass are not found; inside jit NaN."""
    lines = glass_lines(p)
    if not is_traced(lines):
        lines.check()
    return _ground(p, lines.energy, lines.status.code)


@float64_program(static=("p",))
def _ground(p, unit, code):
    """At T = 0 the retrieval branch is explicit in y = h / sqrt(V): bisection along it, from strong signals down."""
    unit = jnp.where(code <= Code.precision_limited, unit, jnp.nan)
    memory, zero = Memory(p), jnp.zeros(())

    def at(v):
        """Load, turn and energy of the pattern above that of the glass, at y = exp(v)."""
        _, load, turn, _ = memory.point(zero, jnp.exp(v))
        s = site(jnp.ones(()), jnp.exp(-2 * v), zero)
        h = s.m ** (p - 1)
        pattern = memory.free_energy(load, s.m, s.chi / h, zero, h * s.log)
        return load, turn, unit * jnp.sqrt(2 * load / p) - pattern

    top = jnp.log(jnp.asarray(30.0))
    v = bisect(lambda v: jnp.minimum(*at(v)[1:]), top, jnp.log(jnp.asarray(0.5)))
    return at(v)[0]
