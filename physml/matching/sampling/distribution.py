"""A trained flow as a distribution: samples and log-densities, conditional by an argument."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.noise import check_key
from physml.core.program import program
from physml.core.types import Field, Key
from physml.integrate import AbstractMethod, Diffrax
from physml.matching.paths.path import Path
from physml.matching.sampling.flow import sample
from physml.matching.sampling.likelihood import log_prob


class Normal(eqx.Module):
    """N(0, I) of samples of one `shape`: the source of most paths."""

    shape: tuple[int, ...] = eqx.field(static=True)

    def sample(self, key: Key, n: int) -> Array:
        """n samples (n, *shape)."""
        return jax.random.normal(key, (n, *self.shape))

    def log_prob(self, x: Array) -> Array:
        """Of one sample."""
        return jnp.sum(jax.scipy.stats.norm.logpdf(x))


class Flow(eqx.Module):
    r"""The law at t = 1 of the flow $\dot x = v(t, x, \text{args})$ from a source at t = 0.

    **Arguments.** `field`: the velocity of one sample, as `match` trains it. `path`: the `Path` it was trained on,
    whose start at t = 0 is that of the source; None where a source sample is the start itself. `source`: an object with
    `sample(key, n)` and `log_prob(x)` of one sample, such as `Normal((2,))`, or the shape of a standard normal.
    `steps`, `method`: of the flow, by default 50 of RK4.

    `flow.sample(key, n, args)` (n, ...) and `flow.log_prob(x, args)` (n,) take a batch of arguments with it where the
    field is conditional: one for all with `batched=False`.

    **Cost.** A sample: `steps` times four evaluations; a density also the divergence, d tangents each,
    one with a `key`.

    **Example.**
    ```python
    flow = Flow(field, linear(), (2,))
    x = flow.sample(jax.random.key(0), 1000)
    nats = -flow.log_prob(x).mean()
    ```
    """

    field: Field
    path: Path | None
    source: Any
    steps: int = eqx.field(static=True)
    method: AbstractMethod | Diffrax | None

    def __init__(
        self,
        field: Field,
        path: Path | None = None,
        source: Any = None,
        *,
        steps: int = 50,
        method: AbstractMethod | Diffrax | None = None,
    ):
        check.function(field, "field", "(t, x, args)")
        if isinstance(source, tuple):
            source = Normal(source)
        if not (callable(getattr(source, "sample", None)) and callable(getattr(source, "log_prob", None))):
            raise ValueError(f"source must have sample and log_prob, or be a shape such as (2,), got {source!r:.60}")
        if path is not None:
            check.instance(path, "path", Path, "a Path, such as linear(), or None")
        self.field, self.path, self.source = field, path, source
        self.steps, self.method = check.count(steps, "steps"), method

    def sample(self, key: Key, n: int, args: PyTree = None, *, batched: bool = True) -> Array:
        """n samples (n, ...); `args` with a leading axis n, or one for all."""
        check_key(key)
        axis = _axis(args, batched, check.count(n, "n"))
        return self._sample(key, n, args, axis)

    def log_prob(self, x: Array, args: PyTree = None, *, batched: bool = True, key: Key | None = None) -> Array:
        """ln p (n,) of samples (n, ...), in nats; with a key unbiased from one probe each, exact without."""
        x = jnp.asarray(x)
        if x.ndim == 0:
            raise ValueError("x must be samples (n, ...), x[None] for one")
        return self._log_prob(x, args, _axis(args, batched, len(x)), key)

    @program
    def _sample(self, key, n, args, axis):
        x0 = self.source.sample(key, n)
        x0 = x0 if self.path is None else jax.vmap(self.path.start)(x0)
        one = lambda x, args: sample(self.field, x, steps=self.steps, args=args, method=self.method)
        return jax.vmap(one, (0, axis))(x0, args)

    @program
    def _log_prob(self, x, args, axis, key):
        keys = None if key is None else jax.random.split(key, len(x))
        options: dict[str, Any] = {"steps": self.steps, "method": self.method}
        one = lambda x, args, key: log_prob(self.field, x, self._base, args=args, key=key, **options)
        return jax.vmap(one, (0, axis, None if keys is None else 0))(x, args, keys)

    def _base(self, x):
        """The density of what the path makes of the source at t = 0: a multiple of it."""
        if self.path is None:
            return self.source.log_prob(x)
        scale = self.path.start(jnp.ones((), x.dtype))
        return self.source.log_prob(x / scale) - x.size * jnp.log(jnp.abs(scale))


def _axis(args, batched, n):
    leaves = jax.tree.leaves(args)
    if not leaves or not batched:
        return None
    if any(jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != n for leaf in leaves):
        raise ValueError(f"args must have a leading axis of {n}, one for each sample, or pass batched=False")
    return 0
