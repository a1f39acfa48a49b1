"""Laplace's approximation: the lowest minimum of an energy that descent finds, and the Gaussian there."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.tree import flat, unflat
from physml.core.types import Energy, Key, Scalar
from physml.particles.kernels.precondition import Preconditioner
from physml.train import minimise

_LBFGS = optax.lbfgs()


class Mode(Checked):
    r"""The Gaussian $N(m, TH^{-1})$ at the lowest minimum m, where H is the Hessian of the energy.

    `mean`: a position. `scale`: L with $LL^\top = TH^{-1}$, for any kernel. `energy`: at the mode. `ends`: the energies
    at which all starts ended, (starts,). `log_z`: Laplace's $\ln\int e^{-E/T}$. Status `not_converged` where another
    Newton step would gain more than a hundredth of T, `saddle` where H has a direction that does not go up.
    """

    computation: ClassVar[str] = "laplace"

    mean: PyTree
    scale: Preconditioner
    energy: Array
    ends: Float[Array, " starts"]
    log_z: Array
    status: Status

    def sample(self, key: Key, n: int) -> PyTree:
        """n positions (n, ...) of the Gaussian: where chains can start."""
        check_key(key)
        xi = jax.random.normal(key, (len(self.scale.deviations), check.count(n, "n")), self.energy.dtype)
        lanes = jax.tree.map(lambda m: jnp.broadcast_to(m[..., None], (*m.shape, n)), self.mean)
        x = jax.tree.map(jnp.add, lanes, self.scale.push(unflat(xi, lanes), 1))
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), x)


def laplace(
    energy: Energy,
    x0s: PyTree,
    *,
    key: Key | None = None,
    optimizer: optax.GradientTransformation = _LBFGS,
    steps: int = 200,
    temperature: Scalar = 1.0,
) -> Mode:
    r"""The lowest mode that descent from several starts finds, and the Gaussian $e^{-E/T}$ is there to second order.

    **Arguments.** `energy`: `x -> scalar`, x any pytree. `x0s`: starts (starts, ...). `optimizer`: any optax
    transformation, L-BFGS by default. `steps`: of each descent. `temperature`: T > 0. `key`: of as many more starts,
    normal with the mean and the deviations of those given; None adds none.
    **Returns** a `Mode`. Start chains at `mode.sample(key, chains)`, precondition them with `scale=mode.scale`.
    **Cost.** `steps` gradients a start, and for d entries a Hessian (d gradients) with its eigenvectors, $d^3$.
    **Errors.** `ValueError` where the energy of all starts is infinite; a saddle or a slope at the end is a status.
    **See** MacKay, Information theory, inference and learning algorithms (2003), chapter 27.
    """
    check.function(energy, "energy", "of the position")
    steps, T = check.count(steps, "steps"), check.number(temperature, "temperature", above=0)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x0s)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError("x0s needs a leading axis `starts` on every leaf; x0[None] for one start")
    x0s = jax.tree.map(jnp.asarray, x0s)
    if key is not None:
        check_key(key)
        x0s = _with_more(x0s, key)
    mode, starts = _laplace(energy, x0s, optimizer, steps, T)
    start = check.known(starts)
    if start is not None and not jnp.isfinite(start).any():
        raise ValueError("the energy is not finite at any start: start where exp(-energy) is positive")
    return mode


@program
def _with_more(x0s, key):
    leaves, structure = jax.tree.flatten(x0s)
    normals = [
        jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    fresh = [x.mean(0, keepdims=True) + x.std(0, keepdims=True) * xi for x, xi in zip(leaves, normals, strict=True)]
    return jax.tree.unflatten(structure, [jnp.concatenate(pair) for pair in zip(leaves, fresh, strict=True)])


@program
def _laplace(energy, x0s, optimizer, steps, T):
    starts = jax.vmap(energy)(x0s)
    xs = jax.vmap(lambda x: minimise(energy, x, optimizer, steps=steps).x)(x0s)
    ends = jax.vmap(energy)(xs)
    best = jnp.argmin(jnp.where(jnp.isfinite(ends), ends, jnp.inf))
    mean = jax.tree.map(lambda leaf: leaf[best], xs)
    of = lambda v: energy(unflat(v, mean))
    x = flat(mean)
    slope, hessian = jax.grad(of)(x), jax.hessian(of)(x) / T
    # In units of its diagonal the Hessian's eigenvalues tell curvature from rounding, whatever the model's units.
    diagonal = jnp.sqrt(jnp.maximum(jnp.abs(jnp.diag(hessian)), jnp.finfo(x.dtype).tiny))
    values, vectors = jnp.linalg.eigh(hessian / (diagonal[:, None] * diagonal[None, :]))
    down = values[0] <= 10 * len(x) * jnp.finfo(x.dtype).eps
    safe = jnp.where(values > 0, values, 1)
    scale = Preconditioner(1 / diagonal, vectors, safe**-0.5)
    # Half the squared slope in whitened coordinates is what another Newton step would gain.
    gain = jnp.sum(scale.pull(slope / T) ** 2) / 2
    code = jnp.where(down, Code.saddle, jnp.where(gain < 0.01, Code.ok, Code.not_converged))
    code = jnp.where(jnp.isfinite(ends[best]), code, Code.diverged)
    log_det = 2 * jnp.sum(jnp.log(diagonal)) + jnp.sum(jnp.log(safe))
    log_z = -ends[best] / T + len(x) / 2 * jnp.log(2 * jnp.pi) - log_det / 2
    return Mode(mean, scale, ends[best], ends, log_z, status(code, steps)), starts
