"""Residual perceptron with adaptive layer norm: the field of class-conditional flow matching on vectors."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from physml.core.types import Key
from physml.nn.condition import Condition, check_sizes, check_state, forward as _forward

_DENSE = jax.nn.initializers.lecun_normal()
_STACK = jax.nn.initializers.lecun_normal(batch_axis=(0,))


def adaptive_layer_norm(
    h: Float[Array, "... width"], shift: Float[Array, " width"], scale: Float[Array, " width"]
) -> Float[Array, "... width"]:
    r"""Layer norm whose gain and bias come from the condition.

    $$\mathrm{adaLN}(h) = (1 + s) \odot \frac{h - \bar h}{\sqrt{\mathrm{Var}\,h + 10^{-6}}} + b$$

    **Arguments.** `h`: `(..., width)`, normalised over its last axis. `shift`, `scale`: b and s,
    `(width,)`. **Returns** an array like h. **See** Peebles and Xie (2023), "Scalable diffusion models with
    transformers".
    """
    centred = h - jnp.mean(h, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    shape = (1,) * (h.ndim - 1) + (-1,)
    return centred * jax.lax.rsqrt(variance + 1e-6) * (1 + scale.reshape(shape)) + shift.reshape(shape)


class ResidualMLP(eqx.Module):
    r"""Residual blocks steered by the time and the class through adaptive layer norm.

    $$h_{l+1} = h_l + g_l \odot V_l\,\sigma\bigl(U_l\,\mathrm{adaLN}(h_l; b_l, s_l)\bigr), \qquad
    (b_l, s_l, g_l) = A_l\,\sigma(E\,[\phi(t), e_\text{label}])$$

    $A_l$ and the output layer start at zero, so every block starts as the identity and the field as zero:
    training starts at the mean square of the target, whatever the depth.

    **Arguments.** `dim`: length of x; `out_dim`: of the output, `dim` by default. `width`, `depth`: of the
    residual stream, number of blocks. `expansion`: hidden units of a block per unit of width. `embed`:
    width of the embedding of (t, args). `classes`: `args` is an integer label, -1 for none; `cond_dim`:
    `args` is a vector; neither: `args` is ignored (may be None). `frequencies`, `times`: see `Condition`.
    `dtype`: of the parameters; x must have it too.

    **Calling** `f(t, x, args=None)` with x `(dim,)` returns `(out_dim,)`. **Cost.** 2 expansion width^2 + 3
    embed width multiply-adds per block; all matrices act from the right, so that vmap turns them into one
    matmul per layer. **Errors.** ValueError for a wrong shape or range. **See** Peebles and Xie (2023) for
    adaLN-zero.

    ```python
    field = ResidualMLP(64, classes=10, width=256, depth=4, key=jax.random.key(0))
    v = jax.vmap(field)(t, x, labels)  # t (batch,), x (batch, 64), labels (batch,)
    ```
    """

    first: Float[Array, "dim width"]
    first_bias: Float[Array, " width"]
    embedding: Float[Array, "features embed"]
    embedding_bias: Float[Array, " embed"]
    modulation: Float[Array, "depth embed three_width"]
    modulation_bias: Float[Array, "depth three_width"]
    up: Float[Array, "depth width hidden"]
    up_bias: Float[Array, "depth hidden"]
    down: Float[Array, "depth hidden width"]
    down_bias: Float[Array, "depth width"]
    last_modulation: Float[Array, "embed two_width"]
    last: Float[Array, "width out"]
    last_bias: Float[Array, " out"]
    condition: Condition
    activation: Callable = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        key: Key,
        classes: int | None = None,
        cond_dim: int | None = None,
        width: int = 256,
        depth: int = 4,
        expansion: int = 1,
        embed: int = 64,
        out_dim: int | None = None,
        activation: Callable = jax.nn.silu,
        frequencies: int | None = 8,
        times: int = 1,
        dtype: Any = None,
    ):
        out = dim if out_dim is None else out_dim
        check_sizes(key, activation, dim=dim, width=width, depth=depth, expansion=expansion, embed=embed, out_dim=out)
        dtype = jnp.result_type(float) if dtype is None else dtype
        hidden = expansion * width
        self.dim = dim
        self.activation = activation
        self.condition = Condition(classes, cond_dim, frequencies, times)
        keys = jax.random.split(key, 4)
        self.first = _DENSE(keys[0], (dim, width), dtype)
        self.first_bias = jnp.zeros(width, dtype)
        self.embedding = _DENSE(keys[1], (max(self.condition.size, 1), embed), dtype)[: self.condition.size]
        self.embedding_bias = jnp.zeros(embed, dtype)
        self.modulation = jnp.zeros((depth, embed, 3 * width), dtype)
        self.modulation_bias = jnp.zeros((depth, 3 * width), dtype)
        self.up = _STACK(keys[2], (depth, width, hidden), dtype)
        self.up_bias = jnp.zeros((depth, hidden), dtype)
        self.down = _STACK(keys[3], (depth, hidden, width), dtype)
        self.down_bias = jnp.zeros((depth, width), dtype)
        self.last_modulation = jnp.zeros((embed, 2 * width), dtype)
        self.last = jnp.zeros((width, out), dtype)
        self.last_bias = jnp.zeros(out, dtype)

    def __call__(self, t: Any, x: Float[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        return _forward(self, t, check_state(x, (self.dim,)), args)

    def _evaluate(self, t, x, args):
        features = self.condition(t, args, x.dtype)
        c = self.activation(features @ self.embedding + self.embedding_bias)

        def block(h, p):
            modulation, modulation_bias, up, up_bias, down, down_bias = p
            shift, scale, gate = jnp.split(c @ modulation + modulation_bias, 3)
            inner = self.activation(adaptive_layer_norm(h, shift, scale) @ up + up_bias)
            return h + gate * (inner @ down + down_bias), None

        h = x @ self.first + self.first_bias
        weights = (self.modulation, self.modulation_bias, self.up, self.up_bias, self.down, self.down_bias)
        h, _ = jax.lax.scan(block, h, weights, unroll=True)
        shift, scale = jnp.split(c @ self.last_modulation, 2)
        return adaptive_layer_norm(h, shift, scale) @ self.last + self.last_bias
