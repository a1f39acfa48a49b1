r"""Random networks of finite width, and their distance from the Gaussian process to first order in 1/n.

Given the layer before, a neuron is Gaussian with variance Q, so a network's output is a mixture: its excess kurtosis is
$3\,\mathrm{Var}Q/\langle Q\rangle^2$. With $M(q) = \langle\phi^2\rangle_q$ and $w = \sigma_w^2$, to O(1/n)

$$\mathrm{Var}Q' = w^2\Bigl[\tfrac1n\bigl(\langle\phi^4\rangle - M^2\bigr) + M'^2\,\mathrm{Var}Q\Bigr], \qquad
  \delta q' = w\bigl[M'\delta q + \tfrac12 M''\,\mathrm{Var}Q\bigr].$$

For homogeneous activations this sums to the exact $3[(1 + c/n)^L - 1]$, $c = \langle\phi^4\rangle/M^2 - 1$: 2 for
linear and 5 for ReLU.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from physml.core import check
from physml.core.program import program
from physml.core.types import Key, Scalar, is_traced
from physml.dmft.gaussian.infinite_width import check_variances
from physml.dmft.gaussian.pairs import Activation, activation, moment, of_activation
from physml.dmft.gaussian.weight_ensembles import (
    AbstractWeights,
    BlockSparseWeights,
    GaussianWeights,
    OrthogonalWeights,
)


class FiniteWidth(eqx.Module):
    r"""To O(1/n): `variance` of the infinite network, `shift` of the mean variance, `quartic` $\mathrm{Var}Q$, and
    `excess_kurtosis` $3\,\mathrm{Var}Q/q^2$ of an output."""

    variance: Array
    shift: Array
    quartic: Array
    excess_kurtosis: Array


def quartic(
    variance: Scalar,
    width: int,
    depth: int = 1,
    phi: Activation = "relu",
    weight_var: Scalar = 2.0,
    bias_var: Scalar = 0.0,
    *,
    weights: AbstractWeights | None = None,
) -> FiniteWidth:
    r"""The quartic term of a network with `depth` hidden layers of `width` neurons, to O(1/width), for any phi.

    **Arguments.** `variance`: $|x|^2/d$ of the input. `weights`: the ensemble of the matrices between hidden layers;
    the first layer and the readout are Gaussian. Two variances are carried: v of a neuron's Q, and m, the covariance of
    Q between two neurons, which is what the next layer averages:

    $$m' = w^2\bigl[\tfrac1n F + M'^2 m\bigr] + \tfrac2r (wM)^2, \quad
      v' = w^2\bigl[\tfrac1k F + M'^2 m\bigr] + \tfrac2r (wM)^2, \quad
      \delta q' = w\bigl[M'\delta q + \tfrac12 M'' v - \tfrac1n p^2 M''\bigr]$$

    with fan-in k (n unless sparse), rank r (infinite unless low), and $F = \langle\phi^4\rangle - M^2$; orthogonal
    layers, whose neurons live on a sphere of variance p, have the last term and $F - 2p^2M'^2$.

    **Returns** `FiniteWidth(variance, shift, quartic, excess_kurtosis)` of the output. **See** Yaida, Non-Gaussian
    processes and neural networks at finite widths (2020), for Gaussian weights.
    """
    activation(phi)
    check_variances(weight_var, bias_var)
    width, depth = check.count(width, "width"), check.count(depth, "depth")
    scatter = (GaussianWeights() if weights is None else weights).scatter(width)
    noise = (1 / width, scatter.neuron, 1 / scatter.shared, float(scatter.spherical))
    return _quartic(variance, weight_var, bias_var, noise, depth=depth, phi=phi)


@of_activation(static=("depth",))
def _quartic(variance, weight_var, bias_var, noise, *, depth, phi):
    dense, neuron, shared, spherical = noise
    f = activation(phi)
    square = lambda q: moment(lambda x: f(x) ** 2, q)
    quad = lambda q: moment(lambda x: f(x) ** 4, q)
    w = weight_var

    def layer(state, last):
        # sphere: 1 where these neurons came through an orthogonal matrix; last: their outgoing weights are the readout.
        q, shift, v, m, p, sphere = state
        M, first = jax.value_and_grad(square)(q)
        second = jax.grad(jax.grad(square))(q)
        fresh = quad(q) - M**2 - sphere * 2 * p**2 * first**2
        carried = first**2 * m
        common = jnp.where(last, 0.0, 2 * (w * M) ** 2 * shared)
        fan_in = jnp.where(last, dense, neuron)
        shift = w * (first * shift + 0.5 * second * v - sphere * p**2 * second * dense)
        v = w**2 * (fan_in * fresh + carried) + common
        m = w**2 * (fresh * dense + carried) + common
        sphere = jnp.full_like(q, 1.0) * spherical
        return (w * M + bias_var, shift, v, m, w * M, sphere), None

    q = jnp.asarray(w * variance + bias_var, float)
    zero = jnp.zeros_like(q)
    start = (q, zero, zero, zero, zero, zero)
    (q, shift, _, m, _, _), _ = lax.scan(layer, start, jnp.arange(depth) == depth - 1)
    return FiniteWidth(q, shift, m, 3 * m / q**2)


def excess_kurtosis(
    width: int, depth: int = 1, phi: Activation = "relu", *, weights: AbstractWeights | None = None
) -> Array:
    r"""$3[(1 + c/n)^L - 1]$: exact for one input, homogeneous phi and no bias; c = 2 linear, 5 ReLU.

    With other `weights` between the layers, $S = \langle Q_i^2\rangle$ and $P = \langle Q_i Q_j\rangle$ in units of
    $q^2$ obey

    $$S' = \bigl(1 + \tfrac2r\bigr)\bigl[\tfrac{1+c}k S + (1 - \tfrac1k)P\bigr], \quad
      P' = \bigl(1 + \tfrac2r\bigr)\bigl[\tfrac{1+c}n S + (1 - \tfrac1n)P\bigr]$$

    for rank r and fan-in k, so a layer of rank r counts as one more linear layer of width r. **Errors.** `ValueError`
    for other phi, and for orthogonal and block weights: see `quartic`.
    """
    if phi not in ("linear", "relu"):
        raise ValueError(f'the closed form is for phi="linear" or "relu", got {phi!r}; see quartic')
    weights = GaussianWeights() if weights is None else weights
    if isinstance(weights, OrthogonalWeights | BlockSparseWeights):
        raise ValueError(f"no closed form for {type(weights).__name__} weights; see quartic")
    width, depth = check.count(width, "width"), check.count(depth, "depth")
    c = 2.0 if phi == "linear" else 5.0
    scatter = weights.scatter(width)
    single = pair = 1.0
    for layer in range(depth):
        shared = 1 + 2 / scatter.shared if layer < depth - 1 else 1.0
        mixed = lambda share, S=single, P=pair: (1 + c) * share * S + (1 - share) * P
        single, pair = shared * mixed(scatter.neuron), shared * mixed(1 / width)
    return jnp.asarray(3 * (pair - 1))


@program
def edgeworth_density(y: ArrayLike, variance: Scalar, excess_kurtosis: Scalar) -> Array:
    r"""$p(y) = N(y; 0, \sigma^2)\,\bigl[1 + \tfrac{\kappa}{24} He_4(y/\sigma)\bigr]$, $He_4(u) = u^4 - 6u^2 + 3$.

    The density of one output to first order in its excess kurtosis $\kappa$, error $O(\kappa^2)$; `variance` is
    $\sigma^2$ (with the shift of `quartic`, if phi has one). It integrates to 1 and may turn negative in the tails when
    $\kappa$ is not small.
    """
    y = jnp.asarray(y)
    s = jnp.sqrt(jnp.asarray(variance, y.dtype))
    u = y / s
    gauss = jnp.exp(-0.5 * u**2) / (s * jnp.sqrt(jnp.asarray(2 * jnp.pi, y.dtype)))
    return gauss * (1 + jnp.asarray(excess_kurtosis, y.dtype) / 24 * (u**4 - 6 * u**2 + 3))


class NetworkSample(eqx.Module):
    r"""One random network on m inputs: `hidden` (m, n) of the last layer, `kernel` (m, m), the covariance of its
    outputs over the readout alone, and `output` (m, readouts)."""

    hidden: Array
    kernel: Array
    output: Array


@functools.partial(jax.jit, static_argnames=("width", "depth", "phi", "weights", "residual", "biased", "readouts"))
def _sample(x, key, weight_var, bias_var, time, *, width, depth, phi, weights, residual, biased, readouts):
    d, dtype = x.shape[1], x.dtype
    f = jax.vmap(jax.vmap(activation(phi)))
    ends, hidden = jax.random.split(key)
    sw, sb = (jnp.sqrt(jnp.asarray(v, dtype)) for v in (weight_var, bias_var))
    # One draw for the first and last layer: each call of the generator costs a second of compilation.
    draws = jax.random.normal(ends, (width * (d + 1 + readouts) + readouts,), dtype)
    first, own, readout, last = jnp.split(draws, [width * d, width * (d + 1), width * (d + 1 + readouts)])
    readout = readout.reshape(width, readouts) / width**0.5

    def branch(h, key):
        out = sw * f(h) @ weights.draw(width, key=key, dtype=dtype).T
        return out + sb * jax.random.normal(jax.random.fold_in(key, 1), (1, width), dtype) if biased else out

    h = x @ first.reshape(d, width) / d**0.5
    if residual:
        scale = jnp.sqrt(jnp.asarray(time, dtype) / depth)
        h = lax.scan(lambda h, k: (h + scale * branch(h, k), None), h, jax.random.split(hidden, depth))[0]
        return NetworkSample(h, h @ h.T / width, h @ readout)
    h = sw * h + sb * own[None, :]
    if depth > 1:
        h = lax.scan(lambda h, k: (branch(h, k), None), h, jax.random.split(hidden, depth - 1))[0]
    out = f(h)
    return NetworkSample(h, sw**2 * out @ out.T / width + sb**2, sw * out @ readout + sb * last[None, :])


def sample_network(
    x: Float[Array, "m d"],
    *,
    key: Key,
    width: int,
    depth: int = 1,
    phi: Activation = "relu",
    weight_var: Scalar = 2.0,
    bias_var: Scalar = 0.0,
    weights: AbstractWeights | None = None,
    residual: bool = False,
    time: Scalar | None = 1.0,
    readouts: int = 1,
) -> NetworkSample:
    r"""A random network of finite width on the inputs x: what `nngp` and `residual_nngp` are the limits of.

    **Arguments.** As `nngp`; `weights`: the ensemble between hidden layers, Gaussian by default. `residual`: blocks $h
    + \sqrt{t/L}(\sigma_w W\phi(h) + b)$ on an embedding of variance $|x|^2/d$; `time` t, or None for branches of scale
    1. `readouts`: outputs. Many networks: `jax.vmap` over keys.

    **Returns** `NetworkSample(hidden, kernel, output)`; `kernel` has the mean $\langle Q\rangle$ and, given it, outputs
    are Gaussian: averages over the readout need no sampling. **Cost** depth matrices of width x width.
    """
    activation(phi)
    check_variances(weight_var, bias_var)
    width, depth, readouts = check.count(width, "width"), check.count(depth, "depth"), check.count(readouts, "readouts")
    weights = GaussianWeights() if weights is None else weights
    options = {"width": width, "depth": depth, "phi": phi, "weights": weights, "residual": residual}
    biased = is_traced(bias_var) or float(bias_var) > 0
    time = float(depth) if time is None else time
    return _sample(x, key, weight_var, bias_var, time, biased=biased, readouts=readouts, **options)
