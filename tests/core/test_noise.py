"""Step-indexed noise: the bits, their independence of grouping, and the law of the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import stats

from physml.core import noise

LANES, SIZE = 400, 50
DTYPES = ["float32", "float64"]


@pytest.fixture(scope="module")
def draws():
    """(steps, entries, lanes) normals in each dtype, as numpy float64."""

    def sample(dtype):
        with jax.enable_x64(dtype == "float64"):
            like = jax.ShapeDtypeStruct((SIZE,), jnp.dtype(dtype))
            draw = lambda k: noise.normal(jax.random.key(7), k, like, jnp.arange(LANES))
            out = jax.jit(jax.vmap(draw))(jnp.arange(20))
            assert out.dtype == dtype
            return np.asarray(out, np.float64)

    return {dtype: sample(dtype) for dtype in DTYPES}


def test_threefry_bits_are_those_of_jax(key):
    k0, k1 = jax.random.key_data(key)
    count = jax.random.bits(jax.random.key(1), (2, 64), jnp.uint32)
    ours = noise.threefry(k0, k1, count[0], count[1])
    theirs = threefry_2x32((k0, k1), count.ravel())
    np.testing.assert_array_equal(np.concatenate(ours), theirs)


def test_step_key_folds_the_step_in(key):
    np.testing.assert_array_equal(noise.step_key(key, 12), jax.random.key_data(jax.random.fold_in(key, jnp.uint32(12))))
    assert not np.array_equal(noise.step_key(key, 12), noise.step_key(key, 13))


@pytest.mark.parametrize("draw", [noise.normal, noise.uniform])
def test_an_entry_depends_on_key_step_lane_and_index_alone(key, draw):
    like = {"a": jax.ShapeDtypeStruct((3,), jnp.float32), "b": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    every = jax.jit(lambda lanes: draw(key, 5, like, lanes))(jnp.arange(40))
    assert every["b"].shape == (2, 2, 40)
    picked = np.array([33, 2, 17])
    some = jax.jit(lambda step, lanes: draw(key, step, like, lanes))(5, picked)
    alone = draw(key, 5, like, 39)  # without jit
    for name in like:
        assert alone[name].shape == like[name].shape
        np.testing.assert_array_equal(some[name], every[name][..., picked])
        np.testing.assert_array_equal(alone[name], every[name][..., 39])


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_tails_and_distribution(draws, dtype):
    z = draws[dtype].ravel()
    n = z.size
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - mean) < 5 * np.sqrt(variance / n)
    # Radius and angle of Box and Muller both shape the tails: count what lies beyond.
    for level in (2.0, 3.0, 4.0):
        p = 2 * stats.norm.sf(level)
        assert abs((np.abs(z) > level).mean() - p) < 5 * np.sqrt(p / n)
    assert stats.kstest(z, "norm").pvalue > 1e-5
    assert 4.5 < np.abs(z).max() < 6.7
    assert np.isfinite(z).all() and len(np.unique(z)) > 0.9 * n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [1, 2])
def test_no_correlation_across_steps_entries_and_lanes(draws, dtype, power):
    """All products of neighbours, and of the two halves of a pair (entries j and j + SIZE/2)."""
    z = draws[dtype] ** power
    z = (z - {1: 0, 2: 1}[power]) / {1: 1, 2: np.sqrt(2)}[power]
    products = {
        "steps": z[1:] * z[:-1],
        "entries": z[:, 1:] * z[:, :-1],
        "halves": z[:, SIZE // 2 :] * z[:, : SIZE // 2],
        "lanes": z[:, :, 1:] * z[:, :, :-1],
    }
    for name, product in products.items():
        # Neighbouring products are uncorrelated, of variance one.
        assert abs(product.mean()) < 5 / np.sqrt(product.size), name


def test_uniforms(key):
    like = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    for x64 in (False, True):
        with jax.enable_x64(x64):
            one = jax.ShapeDtypeStruct(like.shape, jnp.float64 if x64 else jnp.float32)
            u = np.asarray(jax.jit(lambda key, one=one: noise.uniform(key, 3, one, jnp.arange(2000)))(key))
        assert u.dtype == one.dtype and u.shape == (SIZE, 2000)
        assert u.min() > 0 and u.max() <= 1
        assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * u.size)
        assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-5
        assert abs(np.mean((u[1:] - 0.5) * (u[:-1] - 0.5))) < 5 / 12 / np.sqrt(u[1:].size)


def _words(draw, tree):
    """The counters that a draw enciphers, one array per leaf, read off through a fake cipher."""
    seen = []

    def spy(k0, k1, x0, x1):
        seen.append(x1.ravel())
        return x0, x1

    real, noise.threefry = noise.threefry, spy
    try:
        with jax.disable_jit():
            draw(jax.random.key(0), 0, tree, 0)
        return [np.asarray(words) for words in seen]
    finally:
        noise.threefry = real


@pytest.mark.parametrize("draw", [noise.normal, noise.uniform])
@pytest.mark.parametrize(
    "dtypes", [["float32"] * 3, ["float64"] * 3, ["float64", "float32", "float64"], ["float32", "float64"]]
)
def test_leaves_draw_from_disjoint_counters(draw, dtypes):
    shapes = [(3,), (2, 3), ()]
    with jax.enable_x64(True):
        tree = [jax.ShapeDtypeStruct(s, jnp.dtype(d)) for s, d in zip(shapes, dtypes, strict=False)]
        # The leaves are told apart by drawing growing parts of the tree: earlier leaves never change.
        used, before = [], 0
        for count in range(1, len(tree) + 1):
            words = _words(draw, tree[:count])
            used.append(set(np.concatenate(words[before:]).tolist()))
            before = len(words)
    assert sum(map(len, used)) == len(set.union(*used))


def test_equal_leaves_get_different_numbers(key):
    a, b = jax.jit(lambda key: noise.normal(key, 0, (jnp.zeros(5), jnp.zeros(5)), jnp.arange(300)))(key)
    assert not np.any(np.asarray(a) == np.asarray(b))
    assert abs(np.mean(np.asarray(a) * np.asarray(b))) < 5 / np.sqrt(1500)


@pytest.mark.parametrize("terms, dtype", [(4, np.float32), (9, np.float64)])
def test_cos_sin_against_numpy(terms, dtype):
    with jax.enable_x64(dtype is np.float64):
        quadrant = np.arange(4, dtype=np.uint32)[:, None]
        rest = np.linspace(-0.5, 0.5, 1001, dtype=dtype)[None, :]
        grid = np.broadcast_arrays(quadrant, rest)
        cos, sin = noise._cos_sin_turns(jnp.asarray(grid[0]), jnp.asarray(grid[1]), terms)
        angle = (quadrant + rest.astype(np.longdouble)) * (np.pi / 2)
        eps = np.finfo(dtype).eps
        assert cos.dtype == dtype
        np.testing.assert_allclose(cos, np.cos(angle).astype(dtype), rtol=0, atol=4 * eps)
        np.testing.assert_allclose(sin, np.sin(angle).astype(dtype), rtol=0, atol=4 * eps)


def test_other_generators_give_noise_too():
    draw = jax.jit(lambda key: noise.normal(key, 0, jnp.zeros(SIZE), jnp.arange(200)))
    z = np.asarray(draw(jax.random.key(0, impl="rbg")))
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)


def test_errors(key):
    with pytest.raises(ValueError, match=r"typed key, jax\.random\.key"):
        noise.check_key(jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match="one typed key"):
        noise.check_key(jax.random.split(key))
    with pytest.raises(ValueError, match="int32"):
        noise.normal(key, 0, jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="complex64"):
        noise.normal(key, 0, jnp.zeros(3, jnp.complex64))


def test_chunk_length_shrinks_with_the_state():
    lengths = [noise.chunk_length(n) for n in (0, 1, 2**9, 2**12, 2**15, 2**21)]
    assert lengths == [64, 64, 64, 8, 4, 1]
