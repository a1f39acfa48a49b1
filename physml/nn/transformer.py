"""Transformer blocks with adaptive layer norm, and two fields made of them: sets and images."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from physml.core.types import Key
from physml.nn.condition import Condition, check_sizes, check_state, forward as _forward
from physml.nn.residual import adaptive_layer_norm

_DENSE = jax.nn.initializers.lecun_normal()
_STACK = jax.nn.initializers.lecun_normal(batch_axis=(0,))


class Transformer(eqx.Module):
    r"""The trunk: self-attention and perceptron blocks on tokens, gated by a condition (adaLN-zero).

    $$h \leftarrow h + g_1 \odot \mathrm{Attn}(\mathrm{adaLN}(h)), \qquad
    h \leftarrow h + g_2 \odot W_2\,\sigma(W_1\,\mathrm{adaLN}(h))$$

    Shifts, scales and gates are a linear map, zero at the start, of $\sigma(E\,[\phi(t), a])$, so each
    block starts as the identity. There is no position in here: permuting the tokens permutes the output.

    **Arguments.** `width`: of the tokens, divisible by `heads`. `depth`: number of blocks. `expansion`:
    hidden units of the perceptron per unit of width. `condition`: which features of (t, args) steer the
    blocks.

    **Calling** `trunk(t, h, args, mask)` with h `(tokens, width)` and mask `(tokens,)`, False for tokens
    nobody attends to; the last step is an adaptive layer norm. **Cost.** tokens^2 width + (4 + 2 expansion)
    tokens width^2 per block. **Errors.** ValueError for a wrong shape or range. **See** Peebles and Xie
    (2023).
    """

    embedding: Float[Array, "features width"]
    embedding_bias: Float[Array, " width"]
    modulation: Float[Array, "depth width six_width"]
    modulation_bias: Float[Array, "depth six_width"]
    qkv: Float[Array, "depth width three_width"]
    merge: Float[Array, "depth width width"]
    up: Float[Array, "depth width hidden"]
    up_bias: Float[Array, "depth hidden"]
    down: Float[Array, "depth hidden width"]
    down_bias: Float[Array, "depth width"]
    last_modulation: Float[Array, "width two_width"]
    condition: Condition
    heads: int = eqx.field(static=True)
    activation: Callable = eqx.field(static=True)

    def __init__(
        self,
        condition: Condition,
        *,
        key: Key,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        expansion: int = 4,
        activation: Callable = jax.nn.silu,
        dtype: Any = None,
    ):
        check_sizes(key, activation, width=width, depth=depth, heads=heads, expansion=expansion)
        if width % heads:
            raise ValueError(f"width={width} is not a multiple of heads={heads}: change one of them")
        dtype = jnp.result_type(float) if dtype is None else dtype
        keys = jax.random.split(key, 5)
        hidden = expansion * width
        self.condition, self.heads, self.activation = condition, heads, activation
        self.embedding = _DENSE(keys[0], (max(condition.size, 1), width), dtype)[: condition.size]
        self.embedding_bias = jnp.zeros(width, dtype)
        self.modulation = jnp.zeros((depth, width, 6 * width), dtype)
        self.modulation_bias = jnp.zeros((depth, 6 * width), dtype)
        self.qkv = _STACK(keys[1], (depth, width, 3 * width), dtype)
        self.merge = _STACK(keys[2], (depth, width, width), dtype)
        self.up = _STACK(keys[3], (depth, width, hidden), dtype)
        self.up_bias = jnp.zeros((depth, hidden), dtype)
        self.down = _STACK(keys[4], (depth, hidden, width), dtype)
        self.down_bias = jnp.zeros((depth, width), dtype)
        self.last_modulation = jnp.zeros((width, 2 * width), dtype)

    def __call__(
        self,
        t: Any,
        h: Float[Array, "tokens width"],
        args: Any = None,
        mask: Bool[Array, " tokens"] | None = None,
    ) -> Float[Array, "tokens width"]:
        return _forward(self, t, h, args, mask)

    def _evaluate(self, t, h, args, mask):
        features = self.condition(t, args, h.dtype)
        c = self.activation(features @ self.embedding + self.embedding_bias)
        tokens, width = h.shape

        def attend(h, qkv, merge):
            # Written out, since jax.nn.dot_product_attention fails in float64 under strict promotion.
            q, k, v = jnp.moveaxis((h @ qkv).reshape(tokens, 3, self.heads, -1), 1, 0)
            logits = jnp.einsum("ihd,jhd->hij", q, k) * (width / self.heads) ** -0.5
            if mask is not None:
                # Finite, so that a set without any visible token has no NaN in it.
                logits = jnp.where(mask[None, None, :], logits, jnp.finfo(h.dtype).min)
            return jnp.einsum("hij,jhd->ihd", jax.nn.softmax(logits), v).reshape(tokens, width) @ merge

        def block(h, p):
            modulation, modulation_bias, qkv, merge, up, up_bias, down, down_bias = p
            shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(c @ modulation + modulation_bias, 6)
            h = h + gate1[None, :] * attend(adaptive_layer_norm(h, shift1, scale1), qkv, merge)
            inner = self.activation(adaptive_layer_norm(h, shift2, scale2) @ up + up_bias[None, :])
            return h + gate2[None, :] * (inner @ down + down_bias[None, :]), None

        weights = (self.modulation, self.modulation_bias, self.qkv, self.merge)
        weights += (self.up, self.up_bias, self.down, self.down_bias)
        h, _ = jax.lax.scan(block, h, weights)
        shift, scale = jnp.split(c @ self.last_modulation, 2)
        return adaptive_layer_norm(h, shift, scale)


class SetTransformer(eqx.Module):
    r"""A permutation-equivariant transformer: a field on the joint state of n exchangeable particles.

    $$f(t, \pi x, a) = \pi f(t, x, a) \quad \text{for every permutation } \pi$$

    Self-attention among the particles with no position; the output layer starts at zero.

    **Arguments.** `dim`: coordinates of one particle; `out_dim`: of its output, `dim` by default. `width`,
    `depth`, `heads`, `expansion`, `activation`: see `Transformer`. `classes`, `cond_dim`, `frequencies`,
    `times`: see `Condition`. `dtype`: of the parameters; x must have it too.

    **Calling** `f(t, x, args=None, mask=None)` with x `(n, dim)`, any n, returns `(n, out_dim)`. `mask`
    `(n,)` is False for absent particles: nobody sees them and their output is zero. **Cost.** n^2 width +
    12 n width^2 per block. **Errors.** ValueError for a wrong shape or range. **See** Lee et al. (2019),
    "Set transformer".

    ```python
    field = SetTransformer(2, width=64, depth=2, key=jax.random.key(0))
    v = field(0.5, x)  # x (n, 2)
    ```
    """

    first: Float[Array, "dim width"]
    first_bias: Float[Array, " width"]
    trunk: Transformer
    last: Float[Array, "width out"]
    last_bias: Float[Array, " out"]

    def __init__(
        self,
        dim: int,
        *,
        key: Key,
        out_dim: int | None = None,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        expansion: int = 4,
        activation: Callable = jax.nn.silu,
        classes: int | None = None,
        cond_dim: int | None = None,
        frequencies: int | None = 8,
        times: int = 1,
        dtype: Any = None,
    ):
        out = dim if out_dim is None else out_dim
        check_sizes(key, activation, dim=dim, out_dim=out, width=width, depth=depth, heads=heads)
        dtype = jnp.result_type(float) if dtype is None else dtype
        first_key, trunk_key = jax.random.split(key)
        self.first = _DENSE(first_key, (dim, width), dtype)
        self.first_bias = jnp.zeros(width, dtype)
        self.trunk = Transformer(
            Condition(classes, cond_dim, frequencies, times),
            key=trunk_key,
            width=width,
            depth=depth,
            heads=heads,
            expansion=expansion,
            activation=activation,
            dtype=dtype,
        )
        self.last = jnp.zeros((width, out), dtype)
        self.last_bias = jnp.zeros(out, dtype)

    def __call__(
        self, t: Any, x: Float[Array, "..."], args: Any = None, mask: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n out"]:
        return _forward(self, t, check_state(x, (-1, self.first.shape[0])), args, mask)

    def _evaluate(self, t, x, args, mask):
        h = self.trunk(t, x @ self.first + self.first_bias[None, :], args, mask)
        out = h @ self.last + self.last_bias[None, :]
        return out if mask is None else jnp.where(mask[:, None], out, jnp.zeros_like(out))


class DiT(eqx.Module):
    r"""Diffusion transformer: a field on images, cut into patches that attend to each other.

    $$f(t, x, a) = \mathrm{unpatch}\bigl(W\,\mathrm{Transformer}(t, P\,\mathrm{patch}(x) + e, a)\bigr)$$

    with a learned embedding e of the position of a patch and W zero at the start.

    **Arguments.** `shape`: (H, W) or (C, H, W) of an image; `patch` divides H and W. `width`, `depth`,
    `heads`, `expansion`, `activation`: see `Transformer`. `classes`, `cond_dim`, `frequencies`, `times`:
    see `Condition`. `dtype`: of the parameters; x must have it too.

    **Calling** `f(t, x, args=None)` returns an array of the shape of x. **Cost.** n^2 width + 12 n width^2
    per block with n = HW/patch^2 tokens. **Errors.** ValueError for a wrong shape or range. **See** Peebles
    and Xie (2023).

    ```python
    field = DiT((28, 28), patch=4, classes=10, key=jax.random.key(0))
    v = jax.vmap(field)(t, x, labels)  # x (batch, 28, 28)
    ```
    """

    first: Float[Array, "patch_size width"]
    position: Float[Array, "tokens width"]
    trunk: Transformer
    last: Float[Array, "width patch_size"]
    last_bias: Float[Array, " patch_size"]
    shape: tuple[int, ...] = eqx.field(static=True)
    patch: int = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        key: Key,
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        expansion: int = 4,
        activation: Callable = jax.nn.silu,
        classes: int | None = None,
        cond_dim: int | None = None,
        frequencies: int | None = 8,
        times: int = 1,
        dtype: Any = None,
    ):
        if len(shape) not in (2, 3):
            raise ValueError(f"shape={shape}: expected (H, W) or (C, H, W)")
        check_sizes(
            key,
            activation,
            patch=patch,
            width=width,
            heads=heads,
            **{f"side {i} of shape": n for i, n in enumerate(shape)},
        )
        if shape[-1] % patch or shape[-2] % patch:
            raise ValueError(f"patch={patch} does not divide an image of {shape[-2]} x {shape[-1]}")
        dtype = jnp.result_type(float) if dtype is None else dtype
        channels = shape[0] if len(shape) == 3 else 1
        size = channels * patch * patch
        tokens = (shape[-2] // patch) * (shape[-1] // patch)
        first_key, position_key, trunk_key = jax.random.split(key, 3)
        self.shape, self.patch = shape, patch
        self.first = _DENSE(first_key, (size, width), dtype)
        # As large as the embedded patches, so that the first block can tell places apart.
        self.position = jax.random.normal(position_key, (tokens, width), dtype)
        self.trunk = Transformer(
            Condition(classes, cond_dim, frequencies, times),
            key=trunk_key,
            width=width,
            depth=depth,
            heads=heads,
            expansion=expansion,
            activation=activation,
            dtype=dtype,
        )
        self.last = jnp.zeros((width, size), dtype)
        self.last_bias = jnp.zeros(size, dtype)

    def __call__(self, t: Any, x: Float[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        return _forward(self, t, check_state(x, self.shape), args)

    def _evaluate(self, t, x, args):
        p = self.patch
        rows, columns = self.shape[-2] // p, self.shape[-1] // p
        grid = x.reshape(-1, rows, p, columns, p).transpose(1, 3, 0, 2, 4)
        h = grid.reshape(rows * columns, -1) @ self.first + self.position
        out = self.trunk(t, h, args) @ self.last + self.last_bias[None, :]
        return out.reshape(rows, columns, -1, p, p).transpose(2, 0, 3, 1, 4).reshape(self.shape)
