r"""Systems of particles with both sides, for `physml.compare`: a theory, and the same numbers of a simulation."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from physml.core import check
from physml.core.types import Key, Scalar
from physml.integrate import SRA1, Dynamics, integrate
from physml.particles.chains.run import run_chains
from physml.particles.kernels.base import AbstractKernel
from physml.particles.kernels.hamiltonian import hmc
from physml.particles.matter.coulomb import coulomb_gas, virial_law
from physml.particles.pairs.measure import Particles
from physml.particles.theory.linear import gaussian_limit, stationary_covariance


class Covariance(NamedTuple):
    """The covariance (d, d) of positions."""

    covariance: Array


class QuadraticChains(eqx.Module):
    r"""A kernel on a quadratic energy with minimum at 0: the law of its finite step, and n independent chains.

    **Theory.** $\Sigma = A\Sigma A^\top + BB^\top$ of the map $z' = Az + B\xi$ that one move is, which contains the
    bias of the step: `stationary_covariance`. **Finite system.** n chains from `start`, `moves` moves each; the
    covariance is that of their last positions, of known mean 0. A chain has forgotten its start after some
    autocorrelation times.

    - `kernel`: one that accepts everything, such as `overdamped` or `underdamped`.
    - `start`: a position (d,).
    - `moves`: of every chain.
    """

    kernel: AbstractKernel
    start: Array
    moves: int = eqx.field(static=True, default=200)

    def theory(self) -> Covariance:
        d = self.start.size
        return Covariance(stationary_covariance(self.kernel, self.start)[:d, :d])

    def finite_n(self, n: int, *, key: Key) -> Covariance:
        x0 = jnp.broadcast_to(self.start, (n, *self.start.shape))
        out = run_chains(self.kernel, x0, self.moves, key=key, save_every=self.moves, stats=False)
        x = out.samples[-1]
        return Covariance(x.T @ x / n)


class Moments(NamedTuple):
    """Times `t` (k,), means (k, d) and covariances (k, d, d) of particles."""

    t: Array
    mean: Array
    cov: Array


class MeanFieldParticles(eqx.Module):
    r"""$dx_i = b(x_i, \mu)\,dt + \sqrt{2T}\,dW_i$ with a drift linear in x: the limit law, and n particles.

    **Theory.** Mean and covariance of the McKean-Vlasov limit at `times`, by `gaussian_limit`; exact for linear drifts,
    a Gaussian closure for others. **Finite system.** n particles from N(mean, cov), $\mu$ their empirical measure, by
    steps of second weak order; mean and covariance over the particles.

    - `drift`: (x, measure, key) -> velocities, for all positions x (n, d) at once.
    - `mean` (d,), `cov` (d, d): of the start.
    - `times` (k,): increasing; the theory takes one step of fourth order between neighbours.
    - `temperature`: T >= 0.
    - `substeps`: of the simulation, between neighbouring times.
    """

    drift: Callable
    mean: Array
    cov: Array
    times: Array
    temperature: Scalar = 0.0
    substeps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        check.within(self.temperature, "temperature", least=0)
        check.count(self.substeps, "substeps")

    def theory(self) -> Moments:
        mean, cov = gaussian_limit(self.drift, self.mean, self.cov, self.times, temperature=self.temperature)
        return Moments(self.times, mean, cov)

    def finite_n(self, n: int, *, key: Key) -> Moments:
        start_key, run_key = jax.random.split(key)
        normals = jax.random.normal(start_key, (n, self.mean.size), self.mean.dtype)
        x0 = self.mean[None, :] + normals @ jnp.linalg.cholesky(self.cov).T
        share = jnp.arange(self.substeps, dtype=self.times.dtype) / self.substeps
        fine = self.times[:-1, None] + jnp.diff(self.times)[:, None] * share[None, :]
        ts = jnp.append(fine.ravel(), self.times[-1])
        kick = jnp.sqrt(2 * jnp.asarray(self.temperature, x0.dtype))
        dynamics = Dynamics(_LangevinDrift(self.drift), _Kick(kick))
        path = integrate(dynamics, x0, ts, key=run_key, method=SRA1(), save_every=self.substeps)
        mean = jnp.mean(path.xs, axis=1)
        rest = path.xs - mean[:, None, :]
        return Moments(self.times, mean, jnp.einsum("kni,knj->kij", rest, rest) / (n - 1))


class _LangevinDrift(eqx.Module):
    """What particles do to each other, as a field."""

    drift: Callable

    def __call__(self, t, x, args):
        return self.drift(x, Particles(x), None)


class _Kick(eqx.Module):
    """Noise of one size."""

    size: Array

    def __call__(self, t, x, args):
        return self.size


def _square(x):
    return jnp.sum(x**2)


class Virial(NamedTuple):
    r"""Mean and variance of $\sum_i |x_i|^2$, over $N^2$."""

    mean: Array
    variance: Array


class CoulombGas(eqx.Module):
    r"""n charges of the plane at inverse temperature `beta`: the exact law of their virial, and HMC.

    **Theory.** $\sum_i|x_i|^2$ is Gamma of shape $n + \beta n(n-1)/4$ and rate $\beta/2$ for every n: `virial_law`.
    Over $n^2$ its mean tends to 1/2 as 1/n. **Finite system.** `chains` chains of `hmc` from a disc of the right
    radius, of `moves` moves, whose first fifth is left out. No derivative passes through them.

    - `beta` > 0.
    - `step_size`, `leaps`: of the leapfrog, times $\beta^{-1/2}$; the defaults accept some 0.9 of 20 to 100 charges.
    """

    beta: Scalar = 2.0
    step_size: float = 0.12
    leaps: int = eqx.field(static=True, default=10)
    chains: int = eqx.field(static=True, default=16)
    moves: int = eqx.field(static=True, default=500)

    def __check_init__(self):
        check.within(self.beta, "beta", above=0)
        check.count(self.moves, "moves", least=5)

    def theory(self, n: int) -> Virial:
        mean, variance, _ = virial_law(n, self.beta).cumulants
        return Virial(mean / n**2, variance / n**2)

    def finite_n(self, n: int, *, key: Key) -> Virial:
        start_key, run_key = jax.random.split(key)
        radius, angle = jax.random.uniform(start_key, (2, self.chains, n))
        radius, angle = jnp.sqrt(n * radius), 2 * jnp.pi * angle
        x0 = jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], -1)
        beta = jnp.asarray(self.beta, x0.dtype)
        kernel = hmc(coulomb_gas, self.step_size / jnp.sqrt(beta), self.leaps, 1 / beta, duration="uniform")
        out = run_chains(kernel, x0, self.moves, key=run_key, observe=_square, stats=False)
        seen = out.samples[self.moves // 5 :]
        return Virial(jnp.mean(seen) / n**2, jnp.var(seen) / n**2)
