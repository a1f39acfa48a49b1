"""Rows that are held out: the loss on them while a model trains, and when to stop."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml.core import check
from physml.train.rows import check_data

# A fold of the run's key that no step and no order of rows reaches.
_HELD_OUT = np.uint32(2**32 - 2)


class Validator:
    """Evaluates the loss on `data`, remembers the best of what it has seen, and says when to stop."""

    def __init__(self, loss: Any, data: Any, patience: int | None, *, key: Any, batch_size: int | None, has_aux: bool):
        check_data(data, None)
        if data is None or callable(data):
            raise ValueError("validation must be arrays with a common leading axis, like data")
        self._patience = None if patience is None else check.count(patience, "patience")
        self._loss, self._data, self._has_aux = loss, jax.tree.map(jnp.asarray, data), has_aux
        rows = len(jax.tree.leaves(data)[0])
        self._batch = rows if batch_size is None else min(batch_size, rows)
        # The same draws at every evaluation: differences are those of the models.
        self._key = jax.random.fold_in(key, _HELD_OUT)
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.best: Any = None
        self._least, self._since = np.inf, 0

    def __call__(self, step: int, so_far: Any) -> bool:
        """Evaluate a `Fit`, its average if it has one; True once `patience` evaluations have brought nothing."""
        model = so_far.model if so_far.ema is None else so_far.ema
        value = float(_evaluate(self._loss, model, self._data, self._key, self._batch, self._has_aux))
        self.steps.append(step)
        self.losses.append(value)
        if value < self._least or self.best is None:
            self.best, self._since = so_far, 0
            self._least = value if np.isfinite(value) else np.inf
        else:
            self._since += 1
        return self._patience is not None and self._since >= self._patience

    def choose(self, result: Any) -> Any:
        """The best that was seen, with the history of the whole run and of the evaluations."""
        best = result if self.best is None else self.best
        held_out = np.asarray(self.steps), np.asarray(self.losses)
        return best._replace(history=result.history._replace(validation=held_out))


@eqx.filter_jit
def _evaluate(loss, model, data, key, batch, has_aux) -> Array:
    """The mean over all rows, from means over `batch` of them and over the rest."""

    def one(rows):
        value = loss(model, rows, key=key)
        return value[0] if has_aux else value

    rows = len(jax.tree.leaves(data)[0])
    full = rows // batch * batch
    batches = jax.tree.map(lambda x: x[:full].reshape(-1, batch, *x.shape[1:]), data)
    mean = jnp.mean(jax.lax.map(one, batches))
    if full == rows:
        return mean
    rest = one(jax.tree.map(lambda x: x[full:], data))
    return (full * mean + (rows - full) * rest) / rows
