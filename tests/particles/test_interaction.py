"""Pair sums against the plain double sum; gradients; coincident particles; cells; random batches; moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import Code, Failure
from physml.particles import AllPairs, Cells, Feature, Gaussian, Histogram, PairSum, Particles, RandomBatch

KERNELS = {
    "soft": lambda x, y: (x - y) / (jnp.sum((x - y) ** 2) + 0.1),
    "coulomb": lambda x, y: (x - y) / jnp.sum((x - y) ** 2),
    "density": lambda x, y: jnp.exp(-(x - y) @ (x - y)),
    "one-sided": lambda x, y: jnp.array([x[0] * y[1], jnp.tanh(x[1] - 2 * y[0])]),
    "matrix": lambda x, y: jnp.outer(x, y),
    "through a loop": lambda x, y: jax.lax.fori_loop(0, 3, lambda i, v: v * 0.5 + (x - y), x),
}


def plain(kernel, x, y, w):
    values = jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))(x, y)
    values = jnp.where(jnp.isfinite(values), values, 0)
    return jnp.tensordot(values, w, ((1,), (0,)))


def points(n, d=2, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, d))


@pytest.mark.parametrize("name", KERNELS)
def test_dense_is_the_double_sum(name):
    """Rows that fill no whole block, weights that are not equal, sources that are other points."""
    x, y = points(13), points(9, seed=1)
    w = jax.nn.softmax(points(9, 1, seed=2)[:, 0])
    got = PairSum(KERNELS[name], AllPairs(block=4))(x, Particles(y, w))
    np.testing.assert_allclose(got, plain(KERNELS[name], x, y, w), rtol=2e-5, atol=2e-6)
    itself = PairSum(KERNELS[name])(x, Particles(x))
    np.testing.assert_allclose(itself, plain(KERNELS[name], x, x, jnp.full(13, 1 / 13)), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["soft", "density", "through a loop"])
def test_gradients_against_finite_differences(name):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (5, 2))

        def total(x, c, w):
            kernel = lambda a, b: c * KERNELS[name](a, b)
            return jnp.sum(jnp.sin(PairSum(kernel, AllPairs(block=2))(x, Particles(x, w))))

        w = jnp.asarray([0.1, 0.2, 0.3, 0.15, 0.25])
        arguments, step = (x, jnp.asarray(0.7), w), 1e-6
        for i, slope in enumerate(jax.grad(total, (0, 1, 2))(*arguments)):
            direction = jax.random.normal(jax.random.key(i + 1), jnp.shape(slope))
            moved = lambda s, i=i, v=direction: total(*(a + s * v if j == i else a for j, a in enumerate(arguments)))
            np.testing.assert_allclose(jnp.sum(slope * direction), (moved(step) - moved(-step)) / (2 * step), rtol=1e-6)
        # Forward mode runs through the same program.
        tangent = jax.jvp(lambda x: total(x, 0.7, w), (x,), (x**2,))[1]
        np.testing.assert_allclose(tangent, jnp.sum(x**2 * jax.grad(total)(x, 0.7, w)), rtol=1e-9)


@pytest.mark.parametrize("backend", [AllPairs(4), RandomBatch(2), Cells(1.5, (4.0, 4.0))])
def test_coincident_particles(backend):
    """Pairs without a value are left out, in the sum and in its gradient; a kernel that has one there keeps it."""
    x = jnp.asarray([[1.0, 1.0], [1.0, 1.0], [2.0, 1.5], [0.5, 2.0]])
    force = PairSum(KERNELS["coulomb"], backend)
    call = lambda x: force(x, Particles(x), key=jax.random.key(3))
    assert bool(jnp.isfinite(call(x)).all())
    assert bool(jnp.isfinite(jax.grad(lambda x: jnp.sum(call(x) ** 2))(x)).all())
    # A `where` of the user's hides the value, but not the derivative in reverse mode.
    hidden = PairSum(lambda a, b: jnp.where(jnp.sum((a - b) ** 2) > 0, KERNELS["coulomb"](a, b), 0.0), backend)
    slope = jax.grad(lambda x: jnp.sum(hidden(x, Particles(x), key=jax.random.key(3)) ** 2))(x)
    assert bool(jnp.isfinite(slope).all())
    if isinstance(backend, AllPairs):
        others = x[2:]
        apart = jnp.sum(jax.vmap(lambda y: KERNELS["coulomb"](x[0], y))(others), 0) / 4
        np.testing.assert_allclose(call(x)[0], apart, rtol=1e-6)
        density = PairSum(KERNELS["density"])(x, Particles(x))[0]
        np.testing.assert_allclose(density, 0.25 * (2 + np.exp(-1.25) + np.exp(-1.25)), rtol=1e-6)


@pytest.mark.parametrize("backend", [AllPairs(8), RandomBatch(3), Cells(20.0, (8.0, 8.0), capacity=32)])
def test_positions_computed_in_the_same_program(backend):
    """Coordinates that a compiler computes twice, with different rounding: a particle still does not meet itself."""
    force = PairSum(KERNELS["coulomb"], backend)
    z = 2 * points(21) + 3

    def both(z):
        x = jnp.sin(1.3 * z) * jnp.exp(-0.1 * z) / 3.7 + z / 3
        return x, force(x, Particles(x), key=jax.random.key(2))

    x, inside = jax.jit(both)(z)
    np.testing.assert_allclose(inside, force(x, Particles(x), key=jax.random.key(2)), rtol=1e-3, atol=1e-4)
    many = jax.vmap(both)(jnp.stack([z, z + 0.1]))[1]
    np.testing.assert_allclose(many[0], inside, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("periodic", [False, True])
def test_cells_are_all_pairs_within_reach(periodic):
    box = (3.0, 4.5)
    x = jax.random.uniform(jax.random.key(0), (150, 2)) * jnp.asarray([box])
    if not periodic:
        x = x.at[0].set(jnp.asarray([-0.4, 5.0]))  # outside the box
    reach = lambda a, b: (a - b) * jnp.maximum(0.0, 0.7 - jnp.sqrt(jnp.sum((a - b) ** 2) + 1e-12))
    image = lambda a, b: reach(a, b - jnp.asarray(box) * jnp.round((b - a) / jnp.asarray(box)))
    exact = PairSum(image if periodic else reach)
    force = PairSum(reach, Cells(0.7, box, capacity=40, periodic=periodic))
    out = force.evaluate(x, Particles(x))
    assert bool(out.status.ok)
    np.testing.assert_allclose(out.value, exact(x, Particles(x)), atol=1e-6)
    slopes = [jax.grad(lambda x, f=f: jnp.sum(f(x, Particles(x)) ** 2))(x) for f in (force, exact)]
    np.testing.assert_allclose(*slopes, atol=1e-6)
    crowded = PairSum(reach, Cells(0.7, box, capacity=3, periodic=periodic)).evaluate(x, Particles(x))
    assert int(crowded.status.code) == Code.overflow and bool(jnp.isnan(crowded.value).any())
    with pytest.raises(Failure, match="particles that miss a pair"):
        crowded.check()


def test_random_batches_are_unbiased():
    x, kernel = points(12), KERNELS["soft"]
    force = PairSum(kernel, RandomBatch(4))
    draws = jax.lax.map(lambda k: force(x, Particles(x), key=k), jax.random.split(jax.random.key(1), 4000))
    error = jnp.std(draws, 0) / np.sqrt(4000)
    assert float(jnp.max(jnp.abs(jnp.mean(draws, 0) - PairSum(kernel)(x, Particles(x))) / error)) < 5
    assert float(jnp.max(error)) < 0.02


def test_measures_are_interchangeable():
    """A Gaussian's integral is the limit of its samples; a histogram is its points."""
    mean, cov = jnp.asarray([0.3, -0.2]), jnp.asarray([[1.0, 0.3], [0.3, 0.5]])
    gaussian = Gaussian(mean, cov)
    np.testing.assert_allclose(gaussian.expect(lambda x: jnp.outer(x - mean, x - mean)), cov, atol=1e-5)
    samples = jax.random.multivariate_normal(jax.random.key(0), mean, cov, (20000,))
    x = points(3)
    values = jax.vmap(lambda a: jax.vmap(lambda b: KERNELS["density"](a, b))(samples))(x)
    force = PairSum(KERNELS["density"])
    error = values.std(1) / np.sqrt(20000)
    assert bool(jnp.all(jnp.abs(force(x, gaussian) - values.mean(1)) < 5 * error))
    grid = Histogram(jnp.asarray([0.2, 0.5, 0.3]), points(3, seed=4))
    np.testing.assert_allclose(force(x, grid), plain(KERNELS["density"], x, grid.points, grid.p), rtol=1e-5)
    attraction = Feature(lambda y: y, lambda x, m: m - x)
    np.testing.assert_allclose(attraction(x, Particles(x)), x.mean(0)[None] - x, atol=1e-6)
    np.testing.assert_allclose(attraction(x, gaussian), mean[None] - x, atol=1e-6)


def test_memory_does_not_grow_with_all_pairs():
    """4096 particles: the (N, N, d) array would take 128 MiB; the sum and its gradient take a hundredth."""
    x = jnp.zeros((4096, 2))
    force = lambda x: PairSum(KERNELS["soft"])(x, Particles(x))
    for f in (force, jax.grad(lambda x: jnp.sum(force(x) ** 2))):
        used = jax.jit(f).lower(x).compile().memory_analysis().temp_size_in_bytes
        assert used < 4 * 2**20


def test_errors():
    x = points(6)
    force = PairSum(KERNELS["soft"])
    with pytest.raises(ValueError, match="points"):
        force(x, Particles(points(6, 3)))
    with pytest.raises(ValueError, match="key"):
        PairSum(KERNELS["soft"], RandomBatch(2))(x, Particles(x))
    with pytest.raises(ValueError, match="batches"):
        PairSum(KERNELS["soft"], RandomBatch(4))(x, Particles(x), key=jax.random.key(0))
    with pytest.raises(ValueError, match="sides"):
        PairSum(KERNELS["soft"], Cells(0.5, (1.0,)))(x, Particles(x))
    with pytest.raises(ValueError, match="three cells"):
        Cells(0.5, (1.0, 3.0), periodic=True)
    for bad in (lambda: AllPairs(0), lambda: RandomBatch(1), lambda: Cells(-1.0, (1.0,))):
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(ValueError, match="weight"):
        Particles(x, jnp.ones(3))
    with pytest.raises(ValueError, match="sum to 1"):
        Histogram(jnp.asarray([0.5, 0.7]))
    with pytest.raises(ValueError, match="cov"):
        Gaussian(jnp.zeros(2), jnp.eye(3))
