r"""Order and chaos in wide random networks: how fast two inputs forget, or amplify, their difference.

At the fixed variance $q = \sigma_w^2\langle\phi^2\rangle_q + \sigma_b^2$ a small difference grows by $\chi =
\sigma_w^2\langle\phi'^2\rangle_q$ a layer. The edge of chaos is $\chi = 1$; away from it the correlation of two inputs
approaches its fixed point $c^*$ as $e^{-l/\xi}$ with $\xi =
-1/\ln\bigl(\sigma_w^2\langle\phi'\phi'\rangle_{c^*}\bigr)$.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml.core import check
from physml.core.roots import bracketed
from physml.core.types import Scalar, is_traced
from physml.dmft.gaussian.infinite_width import check_variances
from physml.dmft.gaussian.pairs import Activation, activation, moment, of_activation, pair_average, pair_slope

LOWEST, HIGHEST = 1e-12, 1e4  # variances searched


class EdgeOfChaos(eqx.Module):
    """`weight_var` at which chi = 1 for this `bias_var`, and the fixed `variance` there."""

    weight_var: Array
    bias_var: Array
    variance: Array


class Propagation(eqx.Module):
    r"""Fixed point of the variance and correlation: `variance` q, `correlation` c*, `chi` at c = 1, `depth` $\xi$."""

    variance: Array
    correlation: Array
    chi: Array
    depth: Array


def _homogeneous(phi) -> bool:
    """Whether phi(2x) = 2 phi(x), as for ReLU: then every variance is as good as any other."""
    if isinstance(phi, str):
        return phi in ("relu", "linear")
    with jax.ensure_compile_time_eval():
        return bool(_doubling(phi=phi))


@of_activation
def _doubling(*, phi):
    z = np.linspace(-3.0, 3.0, 61)
    f = jax.vmap(activation(phi))
    return jnp.max(jnp.abs(f(2 * z) - 2 * f(z))) < 1e-9


def _moments(phi, q):
    f = activation(phi)
    slope = jax.grad(f)
    return moment(lambda x: f(x) ** 2, q), moment(lambda x: slope(x) ** 2, q)


def edge_of_chaos(phi: Activation, bias_var: Scalar = 0.0) -> EdgeOfChaos:
    r"""Where $\sigma_w^2\langle\phi'^2\rangle_q = 1$ and $q = \sigma_w^2\langle\phi^2\rangle_q + \sigma_b^2$.

    One equation for q, $q - \langle\phi^2\rangle_q/\langle\phi'^2\rangle_q = \sigma_b^2$, by bisection on $10^{-12} < q
    < 10^4$; differentiable in `bias_var`. A homogeneous activation (ReLU, linear) has an edge for $\sigma_b = 0$ only,
    where every q is a fixed point; `variance` is then 1. For tanh without bias the edge is $\sigma_w^2 = 1$ at q = 0.

    **Errors.** `ValueError` where no variance satisfies the equation, where `bias_var` is known; otherwise NaN.
    **See** Schoenholz, Gilmer, Ganguli and Sohl-Dickstein (2017). tanh, $\sigma_b^2 = .05$: $\sigma_w^2 = 1.7610$.
    """
    check_variances(0.0, bias_var)
    if _homogeneous(phi):
        if not is_traced(bias_var) and float(bias_var) > 0:
            raise ValueError(f"a homogeneous phi has no edge of chaos with a bias: bias_var must be 0, got {bias_var}")
        return _homogeneous_edge(bias_var, phi=phi)
    weight_var, variance = _edge(bias_var, phi=phi)
    if not is_traced(weight_var) and np.isnan(weight_var):
        raise ValueError(f"no variance below {HIGHEST:g} is at the edge of chaos for bias_var={bias_var}")
    return EdgeOfChaos(weight_var, jnp.asarray(bias_var, weight_var.dtype), variance)


@of_activation
def _homogeneous_edge(bias_var, *, phi):
    return EdgeOfChaos(1 / _moments(phi, 1.0)[1], bias_var, jnp.ones_like(bias_var))


@of_activation
def _edge(bias_var, *, phi):
    def gain(q):
        # Without bias the gain is -O(q^3), less than rounding; the last term keeps its sign.
        square, slope = _moments(phi, q)
        return bias_var + square / slope - q * (1 - 8 * jnp.finfo(q.dtype).eps)

    low, high = jnp.asarray(LOWEST), jnp.asarray(HIGHEST)
    q = bracketed(gain, low, high, logarithmic=True)
    found = (gain(high) < 0) & (gain(low) > 0)
    return jnp.where(found, 1 / _moments(phi, q)[1], jnp.nan), q


def correlation_depth(phi: Activation, weight_var: Scalar, bias_var: Scalar = 0.0, *, nodes: int = 256) -> Propagation:
    r"""Fixed variance, fixed correlation and the depth $\xi$ over which correlations reach it.

    **Returns** `Propagation(variance, correlation, chi, depth)`: ordered where chi < 1 (then c* = 1), chaotic where chi
    > 1. Depth is infinite at the edge. **Errors.** `ValueError` where the variance has no fixed point below 1e4 (a
    homogeneous phi at or above its edge), where the variances are known; otherwise NaN.
    """
    activation(phi)
    check_variances(weight_var, bias_var)
    out = _phase(weight_var, bias_var, phi=phi, nodes=check.count(nodes, "nodes", least=2))
    if not is_traced(out.variance) and np.isnan(out.variance):
        raise ValueError(f"the variance grows without bound or vanishes for weight_var={weight_var}: no fixed point")
    return out


@of_activation(static=("nodes",))
def _phase(weight_var, bias_var, *, phi, nodes):
    gain = lambda q: weight_var * _moments(phi, q)[0] + bias_var - q
    low, high = jnp.asarray(LOWEST), jnp.asarray(HIGHEST)
    q = bracketed(gain, low, high, logarithmic=True)
    q = jnp.where((gain(high) < 0) & (gain(low) > -LOWEST), q, jnp.nan)
    chi = weight_var * _moments(phi, q)[1]
    pair = lambda c: q * jnp.stack([jnp.stack([jnp.ones_like(c), c]), jnp.stack([c, jnp.ones_like(c)])])
    # The map of correlations is convex on [0, 1], so below 1 it has one fixed point if chi > 1 and none otherwise.
    step = lambda c: (weight_var * pair_average(pair(c), phi, nodes=nodes)[0, 1] + bias_var) / q - c
    inner = bracketed(step, jnp.zeros_like(q), jnp.full_like(q, 1 - 1e-9))
    c = jnp.where(chi > 1, inner, 1.0)
    slope = jnp.where(chi > 1, weight_var * pair_slope(pair(c), phi, nodes=nodes)[0, 1], chi)
    return Propagation(q, c, chi, -1 / jnp.log(slope))
