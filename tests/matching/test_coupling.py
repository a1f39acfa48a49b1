"""Couplings against SciPy's optimum, conditions that travel with the data, and batches that are coupled in part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from physml import matching as m
from physml.matching.couplings.couple import Keep, couple

N = 48


def batch(seed, n=N, dtype=jnp.float32):
    """Source, data three away, a label with which the data move, and a continuous condition."""
    keys = jax.random.split(jax.random.key(seed), 4)
    label = jax.random.randint(keys[0], (n,), 0, 3)
    x0 = jax.random.normal(keys[1], (n, 2), dtype)
    x1 = jax.random.normal(keys[2], (n, 2), dtype) + 3.0 * (label[:, None].astype(dtype) - 1.0)
    return x0, x1, label, jax.random.normal(keys[3], (n, 2), dtype)


def costs(a, b):
    return ((np.asarray(a, np.float64)[:, None] - np.asarray(b, np.float64)[None]) ** 2).sum(-1)


COUPLINGS = {
    "independent": m.Independent(),
    "assignment": m.Assignment(),
    "blocks": m.Assignment(batches=4),
    "within labels": m.Assignment(condition_weight=jnp.inf),
    "entropic": m.Entropic(0.5),
    "keep": Keep(m.Assignment(), 16),
    "keep, entropic": Keep(m.Entropic(0.5), 16),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_assignment_has_scipys_cost(dtype, key):
    with jax.enable_x64(dtype == jnp.float64):
        x0, x1, _, _ = batch(1, dtype=dtype)
        pairs = jax.jit(lambda a, b: m.Assignment().pair(a, b, key=key))(x0, x1)
        cost = costs(x0, x1)
        rows, columns = linear_sum_assignment(cost)
        assert pairs.cost.dtype == dtype
        np.testing.assert_array_equal(pairs.i, rows)
        np.testing.assert_array_equal(pairs.j, columns)
        np.testing.assert_allclose(pairs.cost, cost[rows, columns].mean(), rtol=1e-6)


def test_within_labels_is_the_optimum_of_every_class(key):
    x0, x1, label, _ = batch(2)
    i, j, _ = m.Assignment(condition_weight=jnp.inf).pair(x0, x1, key=key, condition=label)
    np.testing.assert_array_equal(label[i], label[j])
    for c in range(3):
        rows = np.flatnonzero(np.asarray(label) == c)
        best = linear_sum_assignment(costs(x0[rows], x1[rows]))[1]
        np.testing.assert_array_equal(j[rows], rows[best])


def test_a_finite_weight_is_scipys_optimum_of_the_longer_vectors(key):
    x0, x1, label, c = batch(3)
    condition, w = {"class": label, "vector": c}, 0.7
    labels = np.asarray(label)
    want = linear_sum_assignment(costs(x0, x1) + w * (costs(c, c) + (labels[:, None] != labels[None])))[1]
    pair = lambda w: m.Assignment(condition_weight=w).pair(x0, x1, key=key, condition=condition).j
    np.testing.assert_array_equal(pair(w), want)
    np.testing.assert_array_equal(pair(0.0), m.Assignment().pair(x0, x1, key=key).j)
    # No two conditions agree: at any large weight, and an infinite one, every sample keeps its row.
    np.testing.assert_array_equal(pair(1e4), np.arange(N))
    np.testing.assert_array_equal(pair(jnp.inf), np.arange(N))


def test_the_source_of_a_class_is_not_skewed(key):
    """Given its label, the source of a conditional model is N(0, I); a plan blind to labels moves its mean."""
    x0, x1, label, _ = batch(4, n=384)

    def mean_of_class(coupling, c):
        x, _, labels = couple(coupling, x0, x1, key=key, args=label)
        chosen = x[labels == c]
        return np.abs(np.asarray(chosen.mean(0))).max() * len(chosen) ** 0.5

    aware, blind = m.Assignment(condition_weight=jnp.inf), m.Assignment()
    assert max(mean_of_class(aware, c) for c in range(3)) < 4.0
    assert mean_of_class(blind, 0) > 6.0 and mean_of_class(blind, 2) > 6.0


@pytest.mark.parametrize("name", COUPLINGS)
def test_the_condition_travels_with_the_data(name, key):
    """A field that is told x1 as its condition denoises without error, whatever the pairs, in a compiled loss."""
    x0, x1, label, _ = batch(5)
    told = lambda t, x, args: args["x1"] + 0.0 * args["label"].astype(x.dtype)
    loss = lambda x0, x1, args: m.match(
        told, m.linear(), x0, x1, key=key, args=args, target="denoiser", coupling=COUPLINGS[name]
    )
    assert float(jax.jit(loss)(x0, x1, {"x1": x1, "label": label})) == 0.0


@pytest.mark.parametrize("name", ["assignment", "blocks", "within labels"])
def test_an_assignment_moves_every_row_once(name, key):
    x0, x1, label, c = batch(6)
    a, b, (labels, vectors) = couple(COUPLINGS[name], x0, x1, key=key, args=(label, c))
    np.testing.assert_array_equal(a, x0)
    rows = lambda *parts: np.unique(
        np.concatenate([np.asarray(p, np.float64).reshape(N, -1) for p in parts], 1), axis=0
    )
    np.testing.assert_array_equal(rows(b, labels, vectors), rows(x1, label, c))


def test_a_larger_batch_for_transport(key):
    """Kept pairs are pairs of the whole plan, none twice; their cost is that of a batch of 512, not of 64."""
    x0, x1, _, _ = batch(7, n=512)
    whole = m.Assignment().pair(x0, x1, key=key)
    i, j, cost = jax.jit(lambda a, b: Keep(m.Assignment(), 64).pair(a, b, key=key))(x0, x1)
    assert len(set(np.asarray(i))) == 64
    np.testing.assert_array_equal(j, whole.j[i])
    spread = jnp.sum((x0[whole.i] - x1[whole.j]) ** 2, -1).std() / 8.0
    assert abs(cost - whole.cost) < 5 * spread
    small = np.mean(
        [
            m.Assignment().pair(a, b, key=key).cost
            for a, b in zip(x0.reshape(8, 64, 2), x1.reshape(8, 64, 2), strict=True)
        ]
    )
    assert whole.cost < 0.97 * small


def test_entropic_between_its_limits(key):
    """The expected cost of the plan rises with the temperature, from the assignment's to the mean over all pairs."""
    x0, x1, label, _ = batch(8)
    cost = m.squared_distances(x0, x1)
    best = float(m.Assignment().pair(x0, x1, key=key).cost)
    plans = [m.sinkhorn(0.5 * cost, e) for e in (0.05, 1.0, 1e6)]
    expected = [float(jnp.sum(jnp.exp(p.log_p) * cost)) for p in plans]
    assert best <= expected[0] < best + 2 * 0.05 * np.log(N)
    assert expected[0] < expected[1] < expected[2]
    np.testing.assert_allclose(expected[2], costs(x0, x1).mean(), rtol=1e-4)
    i, j, _ = m.Entropic(1.0, condition_weight=jnp.inf).pair(x0, x1, key=key, condition=label)
    np.testing.assert_array_equal(label[i], label[j])


def test_entropic_draws_from_the_plan(key):
    """E x0 . x1 over repeated draws is the plan's; the source is taken whole every time."""
    x0, x1, _, _ = batch(9)
    plan = m.sinkhorn(0.5 * m.squared_distances(x0, x1), 2.0, tol=1e-5)
    want = float(jnp.einsum("ij,ia,ja->", jnp.exp(plan.log_p), x0, x1))

    def draw(k):
        a, b, _ = couple(m.Entropic(2.0), x0, x1, key=k)
        return jnp.mean(jnp.sum(a * b, -1)), b.mean(0)

    products, means = jax.jit(lambda ks: jax.lax.map(draw, ks))(jax.random.split(key, 200))
    assert abs(products.mean() - want) < 5 * products.std() / 200**0.5
    np.testing.assert_array_less(jnp.abs(means.mean(0) - x1.mean(0)), 5 * means.std(0) / 200**0.5)


@pytest.mark.parametrize("name", COUPLINGS)
def test_no_gradient_through_the_choice(name, key):
    with jax.enable_x64(True):
        x0, x1, label, _ = batch(10, dtype=jnp.float64)
        coupling = COUPLINGS[name]
        cost = lambda a, b: coupling.pair(a, b, key=key, condition=label).cost
        for grad in jax.grad(cost, (0, 1))(x0, x1):
            np.testing.assert_array_equal(grad, 0.0)
        # Through the samples it does: each is copied to where it is used.
        pairs = coupling.pair(x0, x1, key=key, condition=label)
        grad = jax.grad(lambda b: couple(coupling, x0, b, key=key, args=label)[1].sum())(x1)
        np.testing.assert_array_equal(grad[:, 0], np.bincount(pairs.j, minlength=N))


def test_vmap_is_a_loop(key):
    x0, x1 = jnp.stack([batch(s)[0] for s in (11, 12)]), jnp.stack([batch(s)[1] for s in (11, 12)])
    both = jax.vmap(lambda a, b: m.Assignment().pair(a, b, key=key))(x0, x1)
    for k in range(2):
        np.testing.assert_array_equal(both.j[k], m.Assignment().pair(x0[k], x1[k], key=key).j)


def test_a_nan_reaches_the_loss(key):
    x0, x1, _, _ = batch(13)
    for coupling in (m.Assignment(), m.Assignment(condition_weight=jnp.inf)):
        loss = m.match(
            lambda t, x, a: x, m.linear(), x0.at[3].set(jnp.nan), x1, key=key, args=jnp.arange(N), coupling=coupling
        )
        assert jnp.isnan(loss)


def test_bad_input(key):
    x = jnp.zeros((6, 2))
    field = lambda t, x, args: x
    with pytest.raises(ValueError, match=r"\(6, 2\) and \(5, 2\)"):
        m.Assignment()(x, x[:5], key=key)
    with pytest.raises(ValueError, match=r"\(6, 2\) and \(6, 3\)"):
        m.Entropic(1.0)(x, jnp.zeros((6, 3)), key=key)
    with pytest.raises(ValueError, match=r"n > 0; got \(0, 2\)"):
        m.Assignment()(x[:0], x[:0], key=key)
    with pytest.raises(ValueError, match="batches=4"):
        m.Assignment(batches=4)(x, x, key=key)
    with pytest.raises(ValueError, match=r"pairs=7\) of a batch of 6"):
        Keep(m.Independent(), 7)(x, x, key=key)
    with pytest.raises(ValueError, match="needs a condition"):
        m.match(field, m.linear(), x, x, key=key, coupling=m.Assignment(condition_weight=1.0))
    with pytest.raises(ValueError, match="condition_weight must be at least 0, got -1"):
        m.Assignment(condition_weight=-1.0).pair(x, x, key=key, condition=jnp.zeros(6))
    with pytest.raises(ValueError, match="leading axis of the batch, 6"):
        couple(m.Assignment(), x, x, key=key, args=jnp.zeros(5))


def test_equal_samples_and_far_clouds(key):
    """Costs that are all zero, of 1e-12 and of 1e8 have no scale of their own to fail at."""
    same = jnp.ones((N, 2))
    assert m.Assignment().pair(same, same, key=key).cost == 0.0
    x0, x1, _, _ = batch(14)
    for size in (1e-6, 1e4):
        i, j, _ = m.Assignment().pair(size * x0, size * x1, key=key)
        assert costs(x0[i], x1[j]).trace() < 1.0001 * costs(x0, x1)[linear_sum_assignment(costs(x0, x1))].sum()
