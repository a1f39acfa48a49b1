"""What training refuses, with the words that say so."""

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import assert_refused

from physml import train

KEY = jax.random.key(0)


def _loss(model, batch, *, key):
    return jnp.sum(model**2)


def _fit(loss=_loss, **change):
    return train.fit(loss, jnp.ones(2), **(dict(key=KEY, steps=2) | change))


MISTAKES = {
    "optimizer": (lambda: _fit(optimizer="adam"), "optimizer must be an optax optimizer.*'adam'"),
    "optimizer, uncalled": (lambda: _fit(optimizer=optax.adam), "optimizer must be an optax optimizer"),
    "checkpoint": (lambda: _fit(checkpoint="runs/a"), r"checkpoint must be a Checkpoint\(path"),
    "callbacks": (lambda: _fit(callbacks=lambda *_: None), r"write \[callback\]"),
    "callback": (lambda: _fit(callbacks=[3]), "each of the callbacks must be a function"),
    "float steps": (lambda: _fit(steps=2.0), "steps must be an integer"),
    "loss": (lambda: _fit(loss=3), "loss must be a function"),
    "legacy key": (lambda: _fit(key=jax.random.PRNGKey(0)), "typed key"),
    "clip_norm": (lambda: _fit(clip_norm="1"), "clip_norm .* must be one real number"),
    "folder": (lambda: train.save("/", jnp.ones(2)), "got the folder /"),
    "batch": (lambda: train.row_indices(5, 9, step=0, key=KEY), "batch_size must be an integer of at most 5, got 9"),
    "no rows": (lambda: train.row_indices(0, 0, step=0, key=KEY), "number of rows"),
    "shuffle": (lambda: train.shuffled(jnp.arange(3), 0, key=KEY), "number of rows"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    assert_refused(*MISTAKES[name])


def test_rows_with_replacement_may_be_more():
    assert train.row_indices(5, 9, step=0, key=KEY, replace=True).shape == (9,)
