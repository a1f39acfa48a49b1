"""A plain multilayer perceptron as a field."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from physml.core import check
from physml.core.types import Key
from physml.nn.condition import Condition, check_sizes, check_state, forward as _forward

# Weights are (in, out) and act from the right: under vmap the product is one matmul with the batch leading.
_DENSE = jax.nn.initializers.lecun_normal()
_STACK = jax.nn.initializers.lecun_normal(batch_axis=(0,))


class MLP(eqx.Module):
    r"""A multilayer perceptron of the state, the time and the condition.

    $$f(t, x, a) = W_L\,\sigma(W_{L-1} \cdots \sigma(W_0\,[x, \phi(t), a] + b_0) \cdots) + b_L$$

    **Arguments.** `dim`: length of x. `width`, `depth`: units and number of hidden layers (depth >= 1).
    `out_dim`: length of the output, `dim` by default, or "scalar" for an energy. `activation`: elementwise
    function. `classes` or `cond_dim`: what `args` is, an integer label (-1 for none) or a vector; by
    default args is ignored. `frequencies`: pairs of Fourier features of t; 0 for the raw time, None for a
    field that does not see the time. `times`: how many times t holds. `key`: initialises the weights (LeCun
    normal). `dtype`: of the parameters; x must have it too.

    **Calling** `f(t, x, args=None)` with x `(dim,)` returns `(out_dim,)`, or a scalar. **Cost.** About
    width^2 (depth - 1) multiply-adds. **Errors.** ValueError for a wrong shape or range.

    ```python
    field = MLP(2, width=64, depth=3, key=jax.random.key(0))
    v = jax.vmap(field, (0, 0, None))(t, x, None)  # t (batch,), x (batch, 2)
    ```
    """

    first: Float[Array, "inputs width"]
    hidden: Float[Array, "layers width width"]
    last: Float[Array, "width out"]
    first_bias: Float[Array, " width"]
    hidden_bias: Float[Array, "layers width"]
    last_bias: Float[Array, " out"]
    condition: Condition
    activation: Callable = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    scalar: bool = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        key: Key,
        width: int = 128,
        depth: int = 3,
        out_dim: int | str | None = None,
        activation: Callable = jax.nn.silu,
        classes: int | None = None,
        cond_dim: int | None = None,
        frequencies: int | None = 8,
        times: int = 1,
        dtype: Any = None,
    ):
        check_sizes(key, activation, dim=dim, width=width, depth=depth)
        if isinstance(out_dim, str):
            check.choice(out_dim, "out_dim, a number or", ("scalar",))
        elif out_dim is not None:
            check.count(out_dim, "out_dim")
        dtype = jnp.result_type(float) if dtype is None else dtype
        self.dim = dim
        self.scalar = out_dim == "scalar"
        self.activation = activation
        self.condition = Condition(classes, cond_dim, frequencies, times)
        out = 1 if self.scalar else dim if out_dim is None else out_dim
        keys = jax.random.split(key, 3)
        self.first = _DENSE(keys[0], (dim + self.condition.size, width), dtype)
        # One layer more than is kept: the initialiser divides by the number of layers, which may be zero.
        self.hidden = _STACK(keys[1], (depth, width, width), dtype)[: depth - 1]
        self.last = _DENSE(keys[2], (width, out), dtype)
        self.first_bias = jnp.zeros(width, dtype)
        self.hidden_bias = jnp.zeros((depth - 1, width), dtype)
        self.last_bias = jnp.zeros(out, dtype)

    def __call__(self, t: Any, x: Float[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        return _forward(self, t, check_state(x, (self.dim,)), args)

    def _evaluate(self, t, x, args):
        def layer(h, weights):
            weight, bias = weights
            return self.activation(h @ weight + bias), None

        h = jnp.concatenate([x, self.condition(t, args, x.dtype)])
        h = self.activation(h @ self.first + self.first_bias)
        h, _ = jax.lax.scan(layer, h, (self.hidden, self.hidden_bias), unroll=True)
        out = h @ self.last + self.last_bias
        return out[0] if self.scalar else out
