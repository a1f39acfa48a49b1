r"""The discrete-time Gaussian chain: diffusion in n steps, its reversal, and the bound on the likelihood.

A one-sided path seen at times $0 = t_0 < \dots < t_n = 1$ is a Markov chain from data $x_n$ to noise $x_0$,

$$q(x_k | x_{k+1}) = N(\tfrac{\beta_k}{\beta_{k+1}} x_{k+1}, \tau_k^2), \qquad
  \tau_k^2 = \alpha_k^2 - (\tfrac{\beta_k}{\beta_{k+1}} \alpha_{k+1})^2,$$

and the model runs it backwards with Gaussian steps: with D a denoiser,

$$p(x_{k+1} | x_k) = N(A_k x_k + B_k D(t_k, x_k), \sigma_k^2), \qquad p(x_0) = N(0, \alpha_0^2 + \beta_0^2 \rho^2),$$

where $A x + B x_1$ is the mean of $q(x_{k+1} | x_k, x_1)$. For one trajectory of q let

$$\ln w = \ln p(x_0) + \sum_k \ln p(x_{k+1} | x_k) - \ln q(x_k | x_{k+1}).$$

Then $E\, w = p(x_n)$ exactly, Jarzynski's equality with $-\ln w$ as work, and $E \ln w \le \ln p(x_n)$ is the
variational bound; the difference is the dissipation. A chain that reverses exactly has the same weight on every
trajectory.

**See** Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli, Deep unsupervised learning using nonequilibrium
thermodynamics (2015), eqs. 9-14; Ho, Jain and Abbeel (2020), eqs. 5-7; Bao et al., Analytic-DPM (2022), for the
variances.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.program import program
from physml.core.types import Field, Key, Scalar
from physml.matching.paths.path import Path


class Ancestral(NamedTuple):
    """Where a sampler arrived: `x`, and `spread`: the variance of the predicted data along the last steps."""

    x: Array
    spread: Array


class Chain(eqx.Module):
    """A path at `times` (n + 1,), with the reverse `variances` (n,): build it with `gaussian_chain`."""

    path: Path
    times: Array
    variances: Array
    prior: Array

    @property
    def steps(self) -> int:
        """n, the number of steps."""
        return len(self.times) - 1

    def forward(self, k: Scalar) -> tuple[Array, Array]:
        """Factor and variance of q(x_k | x_{k+1})."""
        a, b = self._schedule()
        ratio = b[k] / b[k + 1]
        return ratio, a[k] ** 2 - (ratio * a[k + 1]) ** 2

    def posterior(self, k: Scalar) -> tuple[Array, Array, Array]:
        """(A, B, variance) of q(x_{k+1} | x_k, x_1), whose mean is A x_k + B x_1."""
        a, b = self._schedule()
        ratio, tau = self.forward(k)
        slope = ratio * a[k + 1] ** 2 / a[k] ** 2
        return slope, b[k + 1] - slope * b[k], tau * a[k + 1] ** 2 / a[k] ** 2

    def _schedule(self):
        (a, b, _), _ = jax.vmap(self.path.coefficients)(self.times)
        return a, b


def gaussian_chain(path: Path, steps: int, *, times: Array | None = None, scale: Scalar = 0.0) -> Chain:
    r"""The chain of a one-sided path at `times`, by default steps + 1 equal ones, with the variances of
    $q(x_{k+1}|x_k, x_1)$.

    **Arguments.** `scale`: $\rho$, the root mean square of the data, which widens the prior to
    $\alpha_0^2 + \beta_0^2\rho^2$ on paths that end near and not at noise. **Returns** a `Chain`; where the last step
    reaches the data without noise its variance is zero, a sampler needs no more, and a bound needs `calibrate`.
    **Errors** `ValueError` for a path with gamma, times that do not increase from 0 to 1, steps < 1.
    """
    if not path.one_sided:
        raise ValueError("a Gaussian chain needs a one-sided path (no gamma)")
    steps = check.count(steps, "steps")
    times = jnp.asarray(np.linspace(0.0, 1.0, steps + 1), float) if times is None else jnp.asarray(times)
    if times.shape != (steps + 1,):
        raise ValueError(f"times must be (steps + 1,) = ({steps + 1},); got {times.shape}")
    known = check.known(times)
    if known is not None and not (np.all(np.diff(known) > 0) and known[0] >= 0 and known[-1] <= 1):
        raise ValueError(f"times must increase from 0 to 1, got {known}")
    return _gaussian_chain(path, steps, times, check.number(scale, "scale", least=0))


@program
def _gaussian_chain(path, steps, times, scale):
    (a, b, _), _ = path.coefficients(times[0])
    prior = a**2 + (b * jnp.asarray(scale, times.dtype)) ** 2
    chain = Chain(path, times, jnp.zeros(steps, times.dtype), prior)
    return eqx.tree_at(lambda c: c.variances, chain, jax.vmap(lambda k: chain.posterior(k)[2])(jnp.arange(steps)))


@program
def calibrate(chain: Chain, denoiser: Field, x1: Array, *, key: Key, args: PyTree = None) -> Chain:
    r"""The chain with the best isotropic variances for a denoiser: $\sigma_k^2 = E|x_{k+1} - A x_k - B D|^2 / d$.

    They are $\tilde\sigma_k^2 + B_k^2 E|x_1 - D|^2/d$: what is not known of $x_1$ is noise. Estimated on data x1 (n,
    ...).
    """
    keys = jax.random.split(key, chain.steps)

    def variance(inputs):
        k, key = inputs
        _, slope, tau = chain.posterior(k)
        x = _noised(chain, k, x1, key)
        predicted = jax.vmap(lambda x, a: denoiser(chain.times[k], x, a), in_axes=(0, 0 if args is not None else None))
        return tau + slope**2 * jnp.mean((x1 - predicted(x, args)) ** 2)

    variances = jax.lax.map(variance, (jnp.arange(chain.steps), keys))
    return eqx.tree_at(lambda c: c.variances, chain, jnp.maximum(variances, jnp.finfo(variances.dtype).tiny))


@program
def log_weight(chain: Chain, denoiser: Field, x1: Array, *, key: Key, args: PyTree = None) -> Array:
    r"""$\ln w$ of one trajectory of the chain from one sample x1: its mean is the variational bound on $\ln p(x_1)$.

    **Returns** a scalar, nats. For $\ln p$ itself take log-mean-exp over keys. Differentiable in the denoiser and the
    chain. **Cost** n evaluations. **Fails** by -inf when a variance is zero and the data are not reached.
    """
    x1 = jnp.asarray(x1)

    def step(carry, inputs):
        x, total = carry
        k, key = inputs
        ratio, tau = chain.forward(k)
        below = ratio * x + jnp.sqrt(tau) * jax.random.normal(key, x.shape, x.dtype)
        a, b, _ = chain.posterior(k)
        mean = a * below + b * denoiser(chain.times[k], below, args)
        gain = _log_normal(x, mean, chain.variances[k]) - _log_normal(below, ratio * x, tau)
        return (below, total + gain), None

    order = jnp.arange(chain.steps)[::-1]
    start = (x1, jnp.zeros((), x1.dtype))
    (x0, total), _ = jax.lax.scan(step, start, (order, jax.random.split(key, chain.steps)))
    return total + _log_normal(x0, jnp.zeros_like(x0), chain.prior)


def ancestral(
    chain: Chain,
    denoiser: Field,
    x0: Array,
    *,
    key: Key,
    args: PyTree = None,
    window: tuple[float, float] = (0.0, 1.0),
) -> Ancestral:
    r"""Draw one sample from the chain: $x_{k+1} = A_k x_k + B_k D(t_k, x_k) + \sigma_k \xi_k$ from $x_0$.

    **Arguments.** `x0`: noise at t = 0, `path.start` of a normal sample. `window`: the times between which the spread
    of the predictions $D(t_k, x_k)$ is taken, its variance along the trajectory, averaged over coordinates: large
    where the model does not settle. **Returns** `Ancestral(x, spread)`. Batches by vmap over (x0, key). **Cost** n
    evaluations.
    """
    if not 0.0 <= window[0] < window[1] <= 1.0:
        raise ValueError(f"window must be two increasing times in [0, 1], got {window}")
    return _ancestral(chain, denoiser, x0, key, args, window)


@program
def _ancestral(chain, denoiser, x0, key, args, window):
    def step(carry, inputs):
        x, count, mean, square = carry
        k, key = inputs
        a, b, _ = chain.posterior(k)
        t = chain.times[k]
        d = denoiser(t, x, args)
        # Welford's recursion over the steps inside the window.
        inside = ((t >= window[0]) & (t <= window[1])).astype(x.dtype)
        count = count + inside
        gap = d - mean
        mean = mean + inside * gap / jnp.maximum(count, 1.0)
        square = square + inside * gap * (d - mean)
        # The last step adds no noise: the mean is the best guess of the data.
        width = jnp.where(k == chain.steps - 1, 0.0, jnp.sqrt(chain.variances[k]))
        x = a * x + b * d + width * jax.random.normal(key, x.shape, x.dtype)
        return (x, count, mean, square), None

    zero = jnp.zeros_like(x0)
    inputs = (jnp.arange(chain.steps), jax.random.split(key, chain.steps))
    (x, count, _, square), _ = jax.lax.scan(step, (x0, jnp.zeros((), x0.dtype), zero, zero), inputs)
    return Ancestral(x, jnp.mean(square) / jnp.maximum(count, 1.0))


def _noised(chain, k, x1, key):
    (a, b, _), _ = chain.path.coefficients(chain.times[k])
    return a * jax.random.normal(key, x1.shape, x1.dtype) + b * x1


def _log_normal(x, mean, variance):
    square = jnp.sum((x - mean) ** 2)
    return -0.5 * square / variance - 0.5 * x.size * jnp.log(2 * jnp.pi * variance)
