r"""Hopfield layers: retrieval between learned projections, for every head h,

$$q = s W_q^h, \quad k = y W_k^h, \quad v = u W_v^h, \qquad
  q \leftarrow p(\beta_h q k^T)\,k \;\;(\text{steps} - 1 \text{ times}), \qquad o^h = p(\beta_h q k^T)\,v,$$

with state patterns s, stored patterns y and pattern projections u; the output is $[o^1, \dots, o^H] W_o$.

Who knows the layers of the PyTorch package `hflayers` finds its arguments here:

| there | here |
|---|---|
| input_size, num_heads | `d_model`, `heads` |
| hidden_size, pattern_size, output_size | `head_dim`, `pattern_dim`, `out_dim` |
| stored_pattern_size, pattern_projection_size | `stored_dim`, `projection_dim` |
| scaling: None, a number, a trainable tensor | `beta`: None, a number or one a head; `learn_beta` |
| update_steps_max = k | `steps` = k + 1: theirs counts updates after the first association |
| update_steps_max = None, update_steps_eps | `tol`: measured on states, not on weights |
| normalize_(stored_pattern, state_pattern, pattern_projection) | `normalise`: names of inputs, each affine |
| normalize_hopfield_space | `normalise_space` |
| (stored_pattern, state_pattern, pattern_projection)_as_static | `static`: names of inputs |
| pattern_projection_as_connected | `connected` |
| input_bias, disable_out_projection | `bias`, `out_projection=False` |
| add_zero_association | `separation="softmax1"`, the same numbers |
| dropout | `dropout`, active when a key is passed |
| stored_pattern_padding_mask, association_mask: True hides | `mask`, (S,) or (L, S): True shows |
| quantity, trainable | `quantity`; train.fit's `trainable` |
| lookup_weights_as_separated | `separate` |

**See** Ramsauer et al., Hopfield networks is all you need (2021).
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from physml.core import check
from physml.core.program import program
from physml.core.types import Key, Scalar
from physml.hopfield.memory.retrieve import retrieve
from physml.hopfield.memory.separation import AbstractSeparation, separation as _separation
from physml.nn.residual import adaptive_layer_norm

_DENSE = jax.nn.initializers.xavier_uniform()
_INPUTS = ("state", "stored", "projection")


class _Input(eqx.Module):
    """What happens to one kind of pattern: layer norm, then an affine map to all heads; either may be absent."""

    gain: Array | None
    shift: Array | None
    weight: Array | None
    bias: Array | None

    def normed(self, x):
        return x if self.gain is None or self.shift is None else adaptive_layer_norm(x, self.shift, self.gain)

    def project(self, x, heads):
        """(n, d) -> (heads, n, d / heads); what is not projected is the same for all heads."""
        if self.weight is None:
            return jnp.broadcast_to(x, (heads, *x.shape))
        y = x @ self.weight if self.bias is None else x @ self.weight + self.bias[None, :]
        return jnp.moveaxis(y.reshape(len(y), heads, -1), 1, 0)


class Hopfield(eqx.Module):
    r"""Associates every state pattern with the stored patterns; see the module for equations and a dictionary.

    **Arguments.** `d_model`: of the state patterns. `heads`. `beta` > 0: None for head_dim^(-1/2), a number, or one for
    each head; `learn_beta`: train its logarithm, one for each head. `steps`, `tol`, `separation`: as in
    `retrieve`. `head_dim`: of the association space, d_model / heads by default; `pattern_dim`: of the projections in a
    head, like head_dim; `out_dim`: like d_model. `stored_dim`, `projection_dim`: of the other inputs, like d_model.
    `normalise`: inputs with a layer norm; `normalise_space`: q and k as well. `static`: inputs that every head uses as
    they are. `connected`: u goes through $W_k$, then $W_v$. `bias`, `out_projection`: whether there are any.
    `dropout`: share of associations dropped when a key is passed. `key`: of the weights; `dtype`: of the parameters.

    **Calling** `layer(state, stored=None, projection=None, *, mask=None, return_weights=False, key=None)` on one
    sample: state (L, d_model), stored (S, stored_dim) or the states themselves, projection (S, projection_dim) or the
    stored ones. `mask` (S,) or (L, S), True where visible; a state that sees nothing retrieves zero. Returns
    (L, out_dim), and the association (heads, L, S) if asked for. A batch is `jax.vmap`, or `jax.lax.map` on a CPU,
    where the associations of one sample stay in its cache.

    **Cost.** 2 steps L S head_dim for every head. **Errors.** ValueError for a shape, a range or an unknown name.

    ```python
    layer = Hopfield(d_model=64, heads=4, beta=None, steps=1, key=key)
    y = jax.vmap(layer)(x)  # x (batch, L, 64)
    ```
    """

    state: _Input
    stored: _Input
    projection: _Input
    out_weight: Array | None
    out_bias: Array | None
    log_beta: Array | None
    fixed_beta: tuple[float, ...] = eqx.field(static=True)
    separation: AbstractSeparation
    heads: int = eqx.field(static=True)
    steps: int | None = eqx.field(static=True)
    tol: float | None = eqx.field(static=True)
    normalise_space: bool = eqx.field(static=True)
    connected: bool = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        d_model: int,
        heads: int = 1,
        *,
        key: Key,
        beta: Scalar | Sequence[float] | None = None,
        learn_beta: bool = False,
        steps: int | None = None,
        tol: float | None = None,
        separation: Any = "softmax",
        head_dim: int | None = None,
        pattern_dim: int | None = None,
        out_dim: int | None = None,
        stored_dim: int | None = None,
        projection_dim: int | None = None,
        normalise: Sequence[str] = _INPUTS,
        normalise_space: bool = False,
        static: Sequence[str] = (),
        connected: bool = False,
        bias: bool = True,
        out_projection: bool = True,
        dropout: float = 0.0,
        dtype: Any = None,
    ):
        stored_dim = d_model if stored_dim is None else stored_dim
        projection_dim = stored_dim if projection_dim is None else projection_dim
        sizes = {"state": d_model, "stored": stored_dim, "projection": projection_dim}
        for name in (*normalise, *static):
            if name not in _INPUTS:
                raise ValueError(f"{name!r} in normalise or static: expected names among {_INPUTS}")
        head_dim, pattern_dim, values = _widths(sizes, heads, head_dim, pattern_dim, static, connected)
        out_dim = d_model if out_dim is None else out_dim
        check.within(dropout, "dropout", least=0, below=1)
        betas = (float(head_dim) ** -0.5,) * heads if beta is None else _per_head(beta, heads)
        check.within(betas, "beta", above=0)

        dtype = jnp.result_type(float) if dtype is None else dtype
        widths = {"state": heads * head_dim, "stored": heads * head_dim, "projection": heads * pattern_dim}
        fan_in = sizes | {"projection": values}
        keys = dict(zip(_INPUTS, jax.random.split(key, 3), strict=True))
        zeros = lambda n, wanted: jnp.zeros(n, dtype) if wanted else None

        def entrance(name):
            mapped, norm = name not in static, name in normalise
            weight = _DENSE(keys[name], (fan_in[name], widths[name]), dtype) if mapped else None
            return _Input(
                zeros(sizes[name], norm), zeros(sizes[name], norm), weight, zeros(widths[name], mapped and bias)
            )

        self.state, self.stored, self.projection = (entrance(name) for name in _INPUTS)
        self.out_weight = (
            _DENSE(jax.random.fold_in(key, 3), (widths["projection"], out_dim), dtype) if out_projection else None
        )
        self.out_bias = zeros(out_dim, out_projection and bias)
        self.log_beta = jnp.log(jnp.asarray(betas, dtype)) if learn_beta else None
        self.fixed_beta = betas
        self.separation, self.heads, self.steps, self.tol = _separation(separation), heads, steps, tol
        self.widths = tuple(sizes.values())
        self.normalise_space, self.connected, self.dropout = normalise_space, connected, dropout

    @property
    def beta(self) -> Array:
        """The inverse temperature of every head, (heads,)."""
        return jnp.asarray(self.fixed_beta) if self.log_beta is None else jnp.exp(self.log_beta)

    def __call__(
        self,
        state: Float[Array, "L d_model"],
        stored: Float[Array, "S stored_dim"] | None = None,
        projection: Float[Array, "S projection_dim"] | None = None,
        *,
        mask: Bool[Array, "..."] | None = None,
        return_weights: bool = False,
        key: Key | None = None,
    ) -> Any:
        stored = state if stored is None else stored
        projection = stored if projection is None else projection
        given = {"state": state, "stored": stored, "projection": projection}
        for (name, x), width in zip(given.items(), self.widths, strict=True):
            if jnp.ndim(x) != 2 or jnp.shape(x)[1] != width:
                hint = "; a batch is jax.vmap(layer)" if jnp.ndim(x) > 2 else ""
                raise ValueError(f"{name} must be (patterns, {width}) of one sample, got shape {jnp.shape(x)}{hint}")
        return self._associate(state, stored, projection, mask, return_weights, key)

    @program
    def _associate(self, state, stored, projection, mask, return_weights, key):
        q = self.state.project(self.state.normed(state), self.heads)
        k = self.stored.project(self.stored.normed(stored), self.heads)
        u = self.projection.normed(projection)
        if self.connected:
            u = jnp.moveaxis(self.stored.project(u, self.heads), 0, 1).reshape(len(u), -1)
        v = self.projection.project(u, self.heads)
        if self.normalise_space:
            flat = jnp.zeros(q.shape[-1], q.dtype)
            q, k = (adaptive_layer_norm(x, flat, flat) for x in (q, k))
        key = key if self.dropout > 0 else None

        def head(q, k, v, beta):
            options: Any = dict(steps=self.steps, tol=self.tol, separation=self.separation, mask=mask)
            out = retrieve(q, k, beta=beta, values=v, return_weights=return_weights or key is not None, **options)
            return out.value, out.weights

        o: Any
        weights: Any
        o, weights = jax.vmap(head)(q, k, v, self.beta.astype(q.dtype))
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - self.dropout, weights.shape)
            o = jnp.where(kept, weights / (1 - self.dropout), 0.0) @ v
        o = jnp.moveaxis(o, 0, 1).reshape(len(state), -1)
        if self.out_weight is not None:
            o = o @ self.out_weight
            o = o if self.out_bias is None else o + self.out_bias[None, :]
        return (o, weights) if return_weights else o


def _widths(sizes, heads, head_dim, pattern_dim, static, connected):
    """The dimensions of a head's associations and of its projections, and of what the latter are made from."""
    d_model, stored_dim, projection_dim = sizes.values()
    # What is not projected fixes the size of the space it lives in.
    raw = [sizes[name] for name in ("state", "stored") if name in static]
    if head_dim is None:
        head_dim = raw[0] if raw else d_model // heads if heads else 0
        if not raw and head_dim * heads != d_model:
            raise ValueError(f"d_model={d_model} is not a multiple of heads={heads}: change one, or give head_dim")
    inside = stored_dim if "stored" in static else heads * head_dim
    values = inside if connected else projection_dim
    if pattern_dim is None:
        pattern_dim = values if "projection" in static and not connected else head_dim
    for name, n in sizes.items() | {"heads": heads, "head_dim": head_dim, "pattern_dim": pattern_dim}.items():
        check.count(n, name)
    if any(n != head_dim for n in raw):
        raise ValueError(f"static patterns of size {raw}: expected head_dim={head_dim}, since nothing maps them")
    if "projection" in static and (connected or pattern_dim != projection_dim):
        raise ValueError(f"a static projection of size {projection_dim} cannot be connected or mapped")
    if connected and (projection_dim != stored_dim or "stored" in static):
        raise ValueError("connected sends projections through the map of the stored patterns: sizes must agree")
    return head_dim, pattern_dim, values


def _per_head(beta, heads):
    if isinstance(beta, Sequence) or jnp.ndim(beta):
        if len(beta) != heads:
            raise ValueError(f"beta has {len(beta)} entries: expected one number, or one for each of {heads} heads")
        return tuple(float(b) for b in beta)
    return (float(beta),) * heads


class HopfieldPooling(eqx.Module):
    r"""A set of patterns in, `quantity` vectors out: the state patterns are learned, the input is stored.

    With one step this is attention pooling by learned queries; with more, the queries move towards what they find.

    **Arguments.** `quantity`: of learned state patterns; others as in `Hopfield`, whose d_model is their size.
    **Calling** `pool(stored, projection=None, *, mask=None, return_weights=False, key=None)` on one set (S, stored_dim)
    returns (quantity, out_dim), whatever the order of the set.
    """

    queries: Float[Array, "quantity d_model"]
    layer: Hopfield

    def __init__(self, d_model: int, heads: int = 1, *, quantity: int = 1, key: Key, **options: Any):
        check.count(quantity, "quantity")
        query_key, layer_key = jax.random.split(key)
        self.layer = Hopfield(d_model, heads, key=layer_key, **options)
        self.queries = _patterns(query_key, quantity, d_model, options)

    def __call__(self, stored: Array, projection: Array | None = None, **options: Any) -> Any:
        return self.layer(self.queries, stored, projection, **options)


class HopfieldLookup(eqx.Module):
    r"""A table that is learned: the stored patterns are parameters, the input is the state.

    **Arguments.** `quantity`: rows of the table; `separate`: what is read from the rows is a second table, and not the
    rows themselves. Others as in `Hopfield`. **Calling** `look(state, *, mask=None, return_weights=False, key=None)`
    on (L, d_model) returns (L, out_dim).
    """

    table: Float[Array, "quantity stored_dim"]
    targets: Float[Array, "quantity projection_dim"] | None
    layer: Hopfield

    def __init__(
        self, d_model: int, heads: int = 1, *, quantity: int, separate: bool = False, key: Key, **options: Any
    ):
        check.count(quantity, "quantity")
        table_key, target_key, layer_key = jax.random.split(key, 3)
        self.layer = Hopfield(d_model, heads, key=layer_key, **options)
        stored_dim = options.get("stored_dim") or d_model
        self.table = _patterns(table_key, quantity, stored_dim, options)
        width = options.get("projection_dim") or stored_dim
        self.targets = _patterns(target_key, quantity, width, options) if separate else None

    def __call__(self, state: Array, **options: Any) -> Any:
        return self.layer(state, self.table, self.targets, **options)


def _patterns(key, quantity, size, options):
    # Of unit size, like what a layer norm makes of them; equal rows would stay equal in training.
    dtype = options.get("dtype")
    return jax.random.normal(key, (quantity, size), jnp.result_type(float) if dtype is None else dtype)
