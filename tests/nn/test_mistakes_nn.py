"""What networks refuse, with the words that say so."""

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_refused

from physml import nn

KEY = jax.random.key(0)
FIELD = nn.MLP(2, width=4, key=KEY)
MISTAKES = {
    "swapped": (lambda: FIELD(jnp.ones(2), 0.5), r"x has shape \(\): expected \(2,\), of f\(t, x, args\)"),
    "batch": (lambda: FIELD(0.5, jnp.ones((3, 2))), "vmap over a batch"),
    "activation": (lambda: nn.MLP(2, key=KEY, activation="relu"), "activation must be a function"),
    "out_dim": (lambda: nn.MLP(2, key=KEY, out_dim=0), "out_dim must be an integer of at least 1"),
    "out_dim, word": (lambda: nn.MLP(2, key=KEY, out_dim="vector"), "'scalar'"),
    "out_dim, residual": (lambda: nn.ResidualMLP(2, key=KEY, out_dim=0), "out_dim must be"),
    "out_dim, sets": (lambda: nn.DeepSets(2, 0, key=KEY), "out_dim must be"),
    "float dim": (lambda: nn.MLP(2.0, key=KEY), "dim must be an integer"),
    "width": (lambda: nn.SetTransformer(2, key=KEY, width=0), "width must be"),
    "shape": (lambda: nn.DiT((0, 4), key=KEY), "side 0 of shape must be"),
    "legacy key": (lambda: nn.MLP(2, key=jax.random.PRNGKey(0)), "typed key"),
    "set": (lambda: nn.DeepSets(2, 3, key=KEY)(jnp.ones(2)), r"expected \(n, 2\)"),
    "flax": (lambda: nn.from_flax(3), "int"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    assert_refused(*MISTAKES[name])


def test_lists_and_integers_are_numbers():
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        assert jnp.allclose(FIELD(0, [1, 2]), FIELD(0.0, jnp.asarray([1.0, 2.0])))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
