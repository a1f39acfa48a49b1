"""How the small networks of these recipes are trained."""

from typing import Any

import jax
import optax

from physml import matching, train
from physml.core.types import Key


def fit(loss: Any, model: Any, data: Any, *, rate: float, steps: int, key: Key, **options: Any) -> train.Fit:
    """`train.fit` by Adam, whose rate falls to zero as half a cosine; the average over some 1000 steps is `ema`.

    Where there are several processes the rows of each batch lie over all their devices.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    options = {"ema_decay": 0.999, "progress": False} | options
    if jax.process_count() > 1:
        options["sharding"] = train.data_parallel()
    return train.local(train.fit(loss, model, data, optimizer=optimizer, steps=steps, key=key, **options))


def denoiser_loss(model: matching.Preconditioned, batch: Any, *, key: Key) -> Any:
    """Denoising of noisy records by a preconditioned network on its path, weighted so that all times are alike."""
    noise_key, match_key = jax.random.split(key)
    x0 = jax.random.normal(noise_key, batch.shape)
    return matching.match(model, model.path, x0, batch, key=match_key, target="denoiser", weight=model.weight)
