r"""A forward diffusion that is learned with the model: its directions, its speeds and its swirl.

Every linear diffusion that leaves $N(0, I)$ invariant is, in the time $\tau$ from data to noise,

$$dx = -\tfrac12 (R + \Omega)\, x\, d\tau + R^{1/2}\, dW, \qquad R = R^\top \succeq 0, \quad \Omega^\top = -\Omega,$$

R a metric (how fast which direction is noised) and $\Omega$ a symplectic part (how it is turned). R = I, $\Omega = 0$
is the variance-preserving process; a state with momenta and a swirl that couples them the critically damped one. From
$x_1$ it gives a Gaussian, $x_\tau \sim N(A x_1, I - A A^\top)$ with $A = e^{-\tau(R + \Omega)/2}$, whose score is
known; so R and $\Omega$ train together with the score on the evidence bound itself,

$$-\ln p_\varepsilon \le E\Big[-\ln N(x_T; 0, I)
  + \tfrac12 \int_\varepsilon^T |s - \nabla\ln q|^2_R - |\nabla \ln q|_R^2 + \operatorname{tr} R \; d\tau\Big],$$

with q the law of $x_\tau$ given $x_1$. The bound falls short of $-E \ln p_\varepsilon$ by
$KL(q_T | N(0, I)) + \tfrac12\int |s - \nabla\ln q_\tau|_R^2$: R and $\Omega$ shorten the way to noise.

**See** Du, Zhang, Yang and Du, A flexible diffusion model (2023), theorem 3.2 and section 4; Huang, Lim and Courville,
A variational perspective on diffusion-based generative models (2021), for the bound.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.program import program
from physml.core.types import Field, Key, Scalar
from physml.integrate import Dynamics, Matrix, ensemble


class ForwardProcess(eqx.Module):
    r"""The process of R and $\Omega$: `factor` L (d, d),
    $R = 0.99\, L L^\top d/\operatorname{tr}(L L^\top) + 0.01\, I$, and `swirl` S (d, d), $\Omega = S - S^\top$. The
    trace of R is d: no process is better for running longer, and none stands still in a direction. `duration`: T;
    `start`: $\varepsilon$.
    """

    factor: Array
    swirl: Array
    duration: Scalar = 5.0
    start: Scalar = 1e-3

    def __check_init__(self):
        d = len(self.factor)
        if self.factor.shape != (d, d) or self.swirl.shape != (d, d):
            raise ValueError(f"factor and swirl must be (d, d); got {self.factor.shape} and {self.swirl.shape}")

    @property
    def metric(self) -> Array:
        """R, of trace d."""
        square = self.factor @ self.factor.T
        d = len(square)
        return square * (0.99 * d / jnp.trace(square)) + 0.01 * jnp.eye(d, dtype=square.dtype)

    @property
    def rate(self) -> Array:
        r"""$(R + \Omega)/2$, the matrix of the drift."""
        return 0.5 * (self.metric + self.swirl - self.swirl.T)

    def kernel(self, tau: Scalar) -> tuple[Array, Array]:
        r"""(A, Cholesky factor of $I - A A^\top$) of the law of $x_\tau$ given $x_1$."""
        # One exponential of twice the size gives A and the covariance, which I - A A^T would lose to rounding at
        # small tau.
        d, rate = len(self.factor), self.rate
        block = jnp.block([[-rate, self.metric], [jnp.zeros_like(rate), rate.T]])
        both = _expm(jnp.asarray(tau, rate.dtype) * block)
        a = both[:d, :d]
        cov = both[:d, d:] @ a.T
        return a, jnp.linalg.cholesky(0.5 * (cov + cov.T))

    def simulate(self, x1: Array, *, steps: int, key: Key) -> Array:
        """Data x1 (n, d) carried to noise by Euler and Maruyama: what `kernel` gives in closed form."""
        root = jnp.linalg.cholesky(self.metric)
        forward = Dynamics(lambda t, x, args: -self.rate @ x, Matrix(lambda t, x, args: root))
        grid = jnp.linspace(0.0, jnp.asarray(self.duration, x1.dtype), steps + 1, dtype=x1.dtype)
        return ensemble(forward, x1, grid, key=key, save_every=steps).xs[-1]

    def reverse(
        self, score: Field, x0: Array, *, steps: int, key: Key, args: PyTree = None, ratio: float = 1.0
    ) -> Array:
        r"""Noise x0 (n, d) to data: $dx = [(R + \Omega)x/2 + \tfrac{1 + r}{2} R s]\,d\tau' + \sqrt r\,R^{1/2} dW$.

        `score`: s(t, x, args) of the process at $\tau = \varepsilon + (T - \varepsilon)(1 - t)$, t from 0 (noise) to
        1 (data). `ratio` r: 1 for the diffusion, 0 for the flow; the law is the same. Times grow denser towards the
        data.
        """
        metric, rate = self.metric, self.rate
        root = jnp.linalg.cholesky(metric)
        u = jnp.linspace(0.0, 1.0, steps + 1, dtype=x0.dtype)
        ts = 1.0 - (1.0 - u) ** 2

        length = jnp.asarray(self.duration, x0.dtype) - jnp.asarray(self.start, x0.dtype)

        def drift(t, x, args):
            return length * (rate @ x + 0.5 * (1.0 + ratio) * metric @ score(t, x, args))

        noise = Matrix(lambda t, x, args: jnp.sqrt(length * ratio) * root) if ratio > 0 else None
        return ensemble(Dynamics(drift, noise), x0, ts, key=key, args=args, save_every=steps).xs[-1]


def forward_process(
    dim: int, *, duration: Scalar = 5.0, start: Scalar = 1e-3, key: Key | None = None, dtype: DTypeLike | None = None
) -> ForwardProcess:
    """The variance-preserving process, R = I, to start learning from; with a key a small random swirl is added, since a
    swirl of zero is a saddle for data that look the same in a mirror."""
    check.count(dim, "dim")
    dtype = jnp.result_type(float) if dtype is None else dtype
    return ForwardProcess(*_standard(dim, key, jnp.dtype(dtype)), duration, start)


@program
def _standard(dim, key, dtype):
    swirl = jnp.zeros((dim, dim), dtype) if key is None else 0.1 * jax.random.normal(key, (dim, dim), dtype)
    return jnp.eye(dim, dtype=dtype), swirl


@program
def evidence_bound(
    process: ForwardProcess, score: Field, x1: Array, *, key: Key, args: PyTree = None, times: int = 64
) -> Array:
    r"""The bound on $-\ln p_\varepsilon$ in nats, one unbiased number for each row of x1 (n, d).

    $\tau$ is drawn evenly in $\ln\tau$: what a score must get right grows as $1/\tau$. Differentiable in process
    and score: the mean is the loss that trains both. `score`: s(t, x, args) as in `ForwardProcess.reverse`. `args`:
    None or a pytree with leading axis n. `times`: rows share so many values of $\tau$. **Cost** n evaluations and
    `times` matrix exponentials.
    """
    x1 = jnp.asarray(x1)
    n, d = x1.shape
    m = min(times, n)
    place, end_key, noise_key = jax.random.split(key, 3)
    low, high = jnp.log(jnp.asarray(process.start, x1.dtype)), jnp.log(jnp.asarray(process.duration, x1.dtype))
    u = (jax.random.uniform(place, (), x1.dtype) + jnp.arange(m, dtype=x1.dtype) / m) % 1.0
    taus = jnp.exp(low + (high - low) * u)
    factors, chols = jax.vmap(process.kernel)(taus)
    metric = process.metric
    last, last_chol = process.kernel(jnp.asarray(process.duration, x1.dtype))

    def one(k, x1, end, z, args):
        xt = last @ x1 + last_chol @ end
        prior = 0.5 * jnp.sum(xt * xt) + 0.5 * d * jnp.log(2 * jnp.pi)
        tau, a, chol = taus[k], factors[k], chols[k]
        target = -jax.scipy.linalg.solve_triangular(chol.T, z, lower=False)
        t = (process.duration - tau) / (process.duration - process.start)
        s = score(t, a @ x1 + chol @ z, args)
        # |s - grad ln q|^2 - |grad ln q|^2 without the square, whose fluctuation, of order 1/tau, would drown the rest.
        return prior + 0.5 * (s @ metric @ (s - 2.0 * target) + d) * tau * (high - low)

    ends, zs = jax.random.normal(end_key, x1.shape, x1.dtype), jax.random.normal(noise_key, x1.shape, x1.dtype)
    return jax.vmap(one)(jnp.arange(n) % m, x1, ends, zs, args)


def _expm(x: Array) -> Array:
    """Exponential of a small matrix of norm below about 40: a Taylor series of x/32, squared five times.

    `jax.scipy.linalg.expm` chooses its order by branches, all of which run under vmap: 2.5 times the cost of a whole
    step.
    """
    small = x / 32.0
    total = term = jnp.eye(len(x), dtype=x.dtype)
    for k in range(1, 11):
        term = term @ small / k
        total = total + term
    for _ in range(5):
        total = total @ total
    return total
