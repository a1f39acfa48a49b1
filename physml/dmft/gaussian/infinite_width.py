r"""Networks of infinite width: their output is a Gaussian process and gradient flow on them is linear.

A dense network with `depth` hidden layers, weights of variance $\sigma_w^2/n$ and biases of variance $\sigma_b^2$:

$$K^1 = \sigma_w^2 K^x + \sigma_b^2, \qquad K^{l+1} = \sigma_w^2\langle\phi\phi\rangle_{K^l} + \sigma_b^2, \qquad
  \Theta^{l+1} = K^{l+1} + \sigma_w^2\langle\phi'\phi'\rangle_{K^l}\Theta^l,\ \Theta^1 = K^1.$$

A residual network $x_{l+1} = x_l + \sqrt{t/L}\,(W_l\phi(x_l) + b_l)$ of depth L:

$$K_{l+1} = K_l + \tfrac tL B(K_l), \quad B = \sigma_w^2\langle\phi\phi\rangle + \sigma_b^2; \qquad
  \Theta_{l+1} = \Theta_l + \tfrac tL\bigl[B(K_l) + \sigma_w^2\langle\phi'\phi'\rangle\Theta_l\bigr],$$

which is Euler's method for $\dot K = B(K)$: the limit of infinite depth is that differential equation.
"""

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from physml.core import check
from physml.core.tree import add
from physml.core.types import Scalar
from physml.dmft.gaussian.pairs import Activation, activation, check_kernel, of_activation, pair_average, pair_slope
from physml.integrate import rk4


def check_variances(weight_var: Scalar, bias_var: Scalar) -> None:
    """Variances whose values are known are at least 0."""
    check.number(weight_var, "weight_var", least=0)
    check.number(bias_var, "bias_var", least=0)


def _prepare(Kx, depth, phi, weight_var, bias_var, nodes):
    activation(phi)
    check_variances(weight_var, bias_var)
    if depth is not None:
        check.count(depth, "depth", least=0)
    check.count(nodes, "nodes", least=2)
    return check_kernel(Kx)


def nngp(
    Kx: ArrayLike,
    depth: int = 1,
    phi: Activation = "relu",
    weight_var: Scalar = 2.0,
    bias_var: Scalar = 0.0,
    *,
    nodes: int = 256,
) -> Float[Array, "n n"]:
    r"""Covariance of the outputs: $K' = \sigma_w^2\langle\phi\phi\rangle_K + \sigma_b^2$, `depth` times, from
    $\sigma_w^2 K^x + \sigma_b^2$.

    **Arguments.** `Kx` (n, n): $x x'/d$ of the inputs; train and test inputs together for predictions. `depth`: hidden
    layers. `phi`: "relu", "erf", "linear" (closed forms), "tanh", or a smooth function of one number by `nodes` Hermite
    coefficients (errors for tanh: 1e-15 at standard deviation 1, 1e-9 at 2, 3e-4 at 5). `weight_var` $\sigma_w^2$,
    `bias_var` $\sigma_b^2$.

    **Returns** K (n, n). **Cost** $n^2$ a layer, times `nodes` by coefficients. **Gradients** are finite at correlation
    1. **Errors.** `ValueError` for a kernel that is not symmetric or not positive, where its values are known. **See**
    Neal, Priors for infinite networks (1994); Lee et al. (2018).
    """
    Kx = _prepare(Kx, depth, phi, weight_var, bias_var, nodes)
    return _dense(Kx, weight_var, bias_var, depth=depth, phi=phi, nodes=nodes, tangent=False)[0]


def ntk(
    Kx: ArrayLike,
    depth: int = 1,
    phi: Activation = "relu",
    weight_var: Scalar = 2.0,
    bias_var: Scalar = 0.0,
    *,
    nodes: int = 256,
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    r"""$(K, \Theta)$: `nngp` and the tangent kernel, $\Theta' = K' + \sigma_w^2\langle\phi'\phi'\rangle\Theta$.

    $\Theta_{ij} = \sum_\theta \partial_\theta f(x_i)\,\partial_\theta f(x_j)$ where weights are $\sigma_w w/\sqrt n$
    and biases $\sigma_b b$ with w, b of unit variance. Arguments, errors and cost (twice) as `nngp`. For ReLU the
    derivative of $\Theta$ in a correlation is infinite at 1 and taken as 0.

    **See** Jacot, Gabriel and Hongler (2018).
    """
    Kx = _prepare(Kx, depth, phi, weight_var, bias_var, nodes)
    return _dense(Kx, weight_var, bias_var, depth=depth, phi=phi, nodes=nodes, tangent=True)


@of_activation(static=("depth", "nodes", "tangent"))
def _dense(Kx, weight_var, bias_var, *, depth, phi, nodes, tangent):
    def layer(pair, _):
        K, theta = pair
        new = weight_var * pair_average(K, phi, nodes=nodes) + bias_var
        if tangent:
            theta = new + weight_var * pair_slope(K, phi, nodes=nodes) * theta
        return (new, theta), None

    first = weight_var * Kx + bias_var
    return lax.scan(layer, (first, first), length=depth)[0]


def residual_nngp(
    Kx: ArrayLike,
    depth: int | None = None,
    phi: Activation = "relu",
    weight_var: Scalar = 1.0,
    bias_var: Scalar = 0.0,
    *,
    time: Scalar = 1.0,
    steps: int = 64,
    nodes: int = 256,
) -> Float[Array, "n n"]:
    r"""Covariance of a residual network's stream: $K_{l+1} = K_l + \frac tL[\sigma_w^2\langle\phi\phi\rangle_{K_l} +
    \sigma_b^2]$ from $K_0 = K^x$.

    **Arguments.** As `nngp`, and `depth`: residual blocks L, or None for the limit of infinite depth, $\dot K = B(K)$
    up to `time`, by `steps` steps of RK4. `time`: the sum of the squares of the branch scales, so a scale of 1 is
    `time=depth`.

    For ReLU and $\sigma_b = 0$ the limit has $q_t = q_0 e^{\sigma_w^2 t/2}$. The error at depth L is O(1/L).
    **See** Hayou and Yang, Width and depth limits commute in residual networks (2023).
    """
    Kx = _prepare(Kx, depth, phi, weight_var, bias_var, nodes)
    options = {"depth": depth, "phi": phi, "steps": steps, "nodes": nodes, "tangent": False}
    return _residual(Kx, weight_var, bias_var, time, **options)[0]


def residual_ntk(
    Kx: ArrayLike,
    depth: int | None = None,
    phi: Activation = "relu",
    weight_var: Scalar = 1.0,
    bias_var: Scalar = 0.0,
    *,
    time: Scalar = 1.0,
    steps: int = 64,
    nodes: int = 256,
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    r"""$(K, \Theta)$ of a residual network with embedding, branches and readout trained: $\Theta = K_L + \Theta_L$.

    $\Theta_{l+1} = \Theta_l + \frac tL[B(K_l) + \sigma_w^2\langle\phi'\phi'\rangle\Theta_l]$, $\Theta_0 = K^x$; for an
    output $v\cdot x_L/\sqrt n$ with v of unit variance. Arguments as `residual_nngp`.
    """
    Kx = _prepare(Kx, depth, phi, weight_var, bias_var, nodes)
    options = {"depth": depth, "phi": phi, "steps": steps, "nodes": nodes, "tangent": True}
    K, theta = _residual(Kx, weight_var, bias_var, time, **options)
    return K, K + theta


@of_activation(static=("depth", "steps", "nodes", "tangent"))
def _residual(Kx, weight_var, bias_var, time, *, depth, phi, steps, nodes, tangent):
    def rate(pair):
        K, theta = pair
        branch = weight_var * pair_average(K, phi, nodes=nodes) + bias_var
        if not tangent:
            return branch, jnp.zeros_like(theta)
        return branch, branch + weight_var * pair_slope(K, phi, nodes=nodes) * theta

    if depth is None:
        flow = lambda pair, _: (rk4(lambda _, pair: rate(pair), 0.0, pair, time / steps), None)
        return lax.scan(flow, (Kx, Kx), length=steps)[0]
    block = lambda pair, _: (add(pair, (time / depth, rate(pair))), None)
    return lax.scan(block, (Kx, Kx), length=depth)[0]
