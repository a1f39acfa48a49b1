r"""Parameters with bounds: a bijection from free numbers u to x, and an energy of u with the volume it needs.

$$E_u(u) = E(x(u)) - T\ln\Bigl|\det\frac{\partial x}{\partial u}\Bigr|$$

so that $e^{-E_u/T}du = e^{-E/T}dx$: sampling u samples x in the units of the model.

| bijection | x | ln of the determinant |
|---|---|---|
| `Positive()` | $e^u$ | u |
| `Interval(a, b)` | $a + (b - a)/(1 + e^{-u})$ | $\ln(b - a) - \ln(1 + e^u) - \ln(1 + e^{-u})$ |
| `Ordered()` | $x_1 = u_1,\ x_{k+1} = x_k + e^{u_{k+1}}$ | $\sum_{k>1}u_k$ |
| `Simplex()` | $\propto(e^{u_1}, \dots, e^{u_n}, 1)$ | $\sum_k\ln x_k$, all n + 1 of them |
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.types import Energy, Scalar


class AbstractBijection(eqx.Module):
    """A smooth one-to-one map of arrays: `forward(u)` is x with ln of the determinant, `inverse(x)` is u."""

    @abc.abstractmethod
    def forward(self, u: Array) -> tuple[Array, Array]:
        """x, and the sum of ln of the determinant over all entries."""

    @abc.abstractmethod
    def inverse(self, x: Array) -> Array:
        """u; not a number where no u leads to x."""


class Positive(AbstractBijection):
    """x > 0 in every entry."""

    def forward(self, u):
        return jnp.exp(u), jnp.sum(u)

    def inverse(self, x):
        return jnp.log(x)


class Interval(AbstractBijection):
    """low < x < high in every entry."""

    low: Scalar
    high: Scalar

    def __check_init__(self):
        low, high = check.known(self.low), check.known(self.high)
        check.within(self.low, "low")
        check.within(self.high, "high")
        if low is not None and high is not None and not (low < high).all():
            raise ValueError(f"an interval needs low < high, got {self.low} and {self.high}")

    def forward(self, u):
        width = jnp.asarray(self.high - self.low, u.dtype)
        slopes = jnp.log(width) - jax.nn.softplus(u) - jax.nn.softplus(-u)
        return jnp.asarray(self.low, u.dtype) + width * jax.nn.sigmoid(u), jnp.sum(slopes)

    def inverse(self, x):
        return jnp.log(x - jnp.asarray(self.low, x.dtype)) - jnp.log(jnp.asarray(self.high, x.dtype) - x)


class Ordered(AbstractBijection):
    """x_1 < x_2 < ... < x_n."""

    def forward(self, u):
        return jnp.cumsum(jnp.concatenate([u[:1], jnp.exp(u[1:])])), jnp.sum(u[1:])

    def inverse(self, x):
        return jnp.concatenate([x[:1], jnp.log(jnp.diff(x))])


class Simplex(AbstractBijection):
    """n + 1 positive numbers of sum 1, from n free ones; the volume is that of the first n."""

    def forward(self, u):
        log_x = jax.nn.log_softmax(jnp.concatenate([u, jnp.zeros(1, u.dtype)]))
        return jnp.exp(log_x), jnp.sum(log_x)

    def inverse(self, x):
        return jnp.log(x[:-1]) - jnp.log(x[-1])


class Constrained(eqx.Module):
    """See `constrained`."""

    energy: Energy
    bijections: PyTree
    temperature: Scalar

    def __call__(self, u: PyTree) -> Array:
        x, volume = self._forward(u)
        return self.energy(x) - jnp.asarray(self.temperature, volume.dtype) * volume

    def forward(self, u: PyTree) -> PyTree:
        """The parameters in the model's own units: what to `observe`."""
        return self._forward(u)[0]

    def inverse(self, x: PyTree) -> PyTree:
        """Free numbers for parameters of one chain, or with `jax.vmap` of many: where to start."""
        return jax.tree.map(lambda b, v: v if b is None else b.inverse(v), self.bijections, x, is_leaf=_is_bijection)

    def _forward(self, u):
        if jax.tree.structure(self.bijections, is_leaf=_is_bijection) != jax.tree.structure(u):
            raise ValueError("bijections must be a pytree like the parameters, with None where they are free")
        free = lambda v: (v, jnp.zeros((), v.dtype))
        one = lambda b, v: free(v) if b is None else b.forward(v)
        pairs = jax.tree.map(one, self.bijections, u, is_leaf=_is_bijection)
        x = jax.tree.map(lambda _, pair: pair[0], u, pairs)
        volumes = jax.tree.leaves(jax.tree.map(lambda _, pair: pair[1], u, pairs))
        volume: Any = sum(volumes)
        return x, volume


def _is_bijection(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, AbstractBijection)


def constrained(energy: Energy, bijections: PyTree, temperature: Scalar = 1.0) -> Constrained:
    """The energy of free numbers whose images under the bijections have the law exp(-energy/temperature).

    **Arguments.** `energy`: of the parameters in their own units. `bijections`: a pytree like the parameters, with a
    bijection (see the module) or None, for free ones, in place of every array. `temperature`: T of the kernel, at which
    volumes weigh. **Returns** an energy, with `forward` to the model's units and `inverse` from them.
    **Errors.** `ValueError` for bijections that are none, and, when it is called, for another pytree.

    **Example.**
    ```python
    free = constrained(energy, {"mean": None, "scale": Positive()})
    u0s = jax.vmap(free.inverse)({"mean": means, "scale": scales})
    tuned = tune(hmc(free, 0.1), u0s, 500, key=key).check()
    run = run_chains(tuned.kernel, tuned.state, 2000, key=key, observe=free.forward)  # draws of mean and scale
    ```
    """
    check.function(energy, "energy", "of the parameters")
    for leaf in jax.tree.leaves(bijections, is_leaf=_is_bijection):
        if not _is_bijection(leaf):
            raise ValueError(
                f"a bijection is Positive(), Interval(a, b), Ordered(), Simplex() or None, got {leaf!r:.60}"
            )
    return Constrained(energy, bijections, check.number(temperature, "temperature", above=0))
