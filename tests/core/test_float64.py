"""`in_float64`: really float64 inside, the caller's dtype outside, under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import in_float64

BIG = np.float32(2**25)  # float32 cannot add 1 to it


@in_float64
def small_difference(x):
    """(2^25 + x) - 2^25: x in float64, a multiple of 4 in float32."""
    return (jnp.asarray(BIG, x.dtype) + x) - jnp.asarray(BIG, x.dtype)


def test_precision_and_dtype_under_transformations():
    x = jnp.float32(1.25)
    assert (jnp.float32(BIG) + x) - jnp.float32(BIG) != x
    square = lambda x: small_difference(x) ** 2
    scanned = lambda x: jax.lax.scan(lambda c, _: (small_difference(c), small_difference(c)), x, None, 3)
    results = [
        (small_difference(x), 1.25),
        (jax.jit(small_difference)(x), 1.25),
        (jax.vmap(small_difference)(x[None])[0], 1.25),
        (jax.grad(square)(x), 2.5),
        (jax.jit(jax.vmap(jax.grad(square)))(x[None])[0], 2.5),
        (jax.jacfwd(square)(x), 2.5),
        (jax.grad(jax.grad(square))(x), 2.0),
        (jax.jit(scanned)(x)[0], 1.25),
        (jax.jit(jax.grad(lambda x: scanned(x)[1].sum()))(x), 3.0),
    ]
    for value, exact in results:
        assert value.dtype == jnp.float32
        assert value == exact
    assert not jax.config.jax_enable_x64
    assert jnp.zeros(1).dtype == jnp.float32


def test_float64_callers_keep_float64():
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            assert small_difference(jnp.asarray(1.25, dtype)).dtype == dtype
        assert in_float64(lambda: jnp.ones(2))().dtype == jnp.float64
    assert in_float64(lambda: jnp.ones(2))().dtype == jnp.float32
    # numpy arrays are the caller's arrays too.
    assert small_difference(np.float32(1.25)) == 1.25


def test_dtype_is_the_widest_of_the_arguments():
    f = in_float64(lambda a, b: {"sum": a.astype(jnp.float64) + b.astype(jnp.float64), "inside": str(a.dtype)})
    out = f(jnp.float16(1.0), b=jnp.float32(2.0))
    assert out["sum"].dtype == jnp.float32 and out["inside"] == "float64"
    assert f(jnp.zeros(1, jnp.float16), jnp.zeros(1, jnp.bfloat16))["sum"].dtype == jnp.float32
    assert f(jnp.bfloat16(1.0), jnp.bfloat16(2.0))["sum"].dtype == jnp.bfloat16


def test_everything_else_passes_through(key):
    def f(x, n, name, key, flag=None):
        assert isinstance(n, int) and name == "a" and flag.dtype == bool
        n_steps = jnp.arange(n)
        return x * n, n, name, key, n_steps, flag, None, jax.lax.complex(x, x)

    x, n, name, k, steps, flag, none, z = in_float64(f)(jnp.float32(2.0), 3, "a", key, flag=jnp.array(True))
    assert (n, name, none) == (3, "a", None) and x == 6 and x.dtype == jnp.float32
    assert jnp.issubdtype(k.dtype, jax.dtypes.prng_key) and jax.random.key_data(k).tolist() == [0, 0]
    assert steps.dtype == jnp.int32 and flag.dtype == bool
    assert z.dtype == jnp.complex64 and z == 2 + 2j


def test_complex_arguments():
    f = in_float64(lambda z: (z + 2.0**25) - 2.0**25)
    z = jax.jit(f)(jnp.complex64(1.25 - 3j))
    assert z.dtype == jnp.complex64 and z == 1.25 - 3j
    with jax.enable_x64(True):
        assert f(jnp.complex128(1j)).dtype == jnp.complex128


def test_name_and_docstring_survive_and_errors_restore_the_flag():
    assert small_difference.__name__ == "small_difference" and "float64" in small_difference.__doc__

    @in_float64
    def fails(x):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails(jnp.ones(()))
    assert not jax.config.jax_enable_x64
