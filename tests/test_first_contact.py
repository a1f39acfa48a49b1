"""What a newcomer got wrong, one line an input: each is refused with words, or is no mistake and gives numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_refused

from physml import core, data, dmft, hopfield, integrate, matching as m, metrics, nn, particles as p, train

KEY, LEGACY, TS = jax.random.key(0), jax.random.PRNGKey(0), jnp.linspace(0.0, 1.0, 11)
ONES, ROWS = jnp.ones(2), jnp.ones((4, 2))


def energy(x):
    return jnp.sum(x**2)


def field(t, x, args):
    return -x


def loss(model, batch, *, key):
    return jnp.sum(model**2)


def noisy():
    return integrate.Dynamics(field, lambda t, x, args: jnp.ones((), x.dtype))


def matched(**options):
    given = {"path": m.linear(), "x0": ROWS, "x1": ROWS, "key": KEY} | options
    path, x0, x1 = (given.pop(name) for name in ("path", "x0", "x1"))
    return m.match(field, path, x0, x1, **given)


def fitted(**options):
    return train.fit(loss, ONES, **({"key": KEY, "steps": 2, "progress": False} | options))


def chained(kernel, **options):
    return p.run(kernel, ONES, 3, key=KEY, **options)


REFUSED = {
    "integrate: a negative lane": (lambda: integrate.integrate(noisy(), ONES, TS, key=KEY, lane=-1), "lane"),
    "integrate: a lane of 41 bits": (lambda: integrate.integrate(noisy(), ONES, TS, key=KEY, lane=2**40), "lane"),
    "integrate: a drift of two arguments": (lambda: integrate.Dynamics(lambda t, x: -x), r"called as \(t, x, args\)"),
    "integrate: a noise of two arguments": (lambda: integrate.Dynamics(field, lambda t, x: 1.0), "noise is called"),
    "match: a path that is not called": (lambda: matched(path=m.linear), "path"),
    "match: a coupling by its name": (lambda: matched(coupling="ot"), "coupling"),
    "match: integers": (lambda: matched(x1=ROWS.astype(int)), "floating"),
    "match: a weight of another shape": (lambda: matched(weight=lambda t: jnp.ones(3)), "weight"),
    "match: one sample for a batch": (lambda: matched(x1=ONES), "batches"),
    "match: a legacy key": (lambda: matched(key=LEGACY), "typed key"),
    "match: a field of two arguments": (
        lambda: m.match(lambda t, x: x, m.linear(), ROWS, ROWS, key=KEY),
        r"called as \(t, x, args\)",
    ),
    "mixture_sample: fewer than none": (
        lambda: m.mixture_sample((jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None]), -3, key=KEY),
        "n must|integer",
    ),
    "exact_fields: a negative weight": (
        lambda: m.exact_fields(
            m.linear(), None, (jnp.array([1.5, -0.5]), jnp.zeros((2, 2)), jnp.stack([jnp.eye(2)] * 2))
        ),
        "weights",
    ),
    "sample_sde: a negative epsilon(t)": (
        lambda: m.sample_sde(field, field, ONES, epsilon=lambda t: t - 0.5, steps=4, key=KEY),
        r"epsilon\(t\)",
    ),
    "log_prob: a density of every entry": (
        lambda: m.log_prob(field, ONES, lambda x: -(x**2), steps=2),
        "scalar",
    ),
    "variance_preserving: ends exchanged": (lambda: m.variance_preserving(20.0, 0.1), "beta"),
    "gaussian_chain: times that fall": (
        lambda: m.gaussian_chain(m.linear(), 2, times=jnp.array([0, 0.7, 0.5])),
        "increase",
    ),
    "run: a function for a kernel": (lambda: chained(lambda x: x), "kernel"),
    "run: an observation that is none": (lambda: chained(p.mala(energy, 0.1), observe=3), "observe"),
    "mala: a scale that is not a number": (
        lambda: chained(p.mala(energy, 0.1, scale=jnp.array([1, jnp.nan]))),
        "scale",
    ),
    "mala: a scale that freezes": (lambda: chained(p.mala(energy, 0.1, scale=jnp.array([1.0, 0.0]))), "regular"),
    "hmc: a negative duration": (lambda: p.hmc(energy, 0.1, duration=-1), "duration"),
    "Gaussian: a negative covariance": (lambda: p.Gaussian(jnp.zeros(2), -jnp.eye(2)), "covariance|definite"),
    "Particles: weights of sum 2": (lambda: p.Particles(jnp.ones((2, 1)), jnp.ones(2)), "weights"),
    "hyperspherical_energy: a zero vector": (lambda: p.hyperspherical_energy(jnp.zeros((3, 2))), "zero|norm"),
    "stationary_covariance: a kernel that rejects": (
        lambda: p.stationary_covariance(p.mala(energy, 0.1), ONES),
        "reject",
    ),
    "fixed_point: integers": (lambda: core.fixed_point(lambda x: x // 2, jnp.array([4, 2])), "float"),
    "RandomNetwork: a word for phi": (lambda: dmft.RandomNetwork(g=1.5, phi="tanh"), "phi"),
    "Hopfield: another width": (lambda: hopfield.Hopfield(8, 2, key=KEY)(jnp.ones((4, 7))), "8"),
    "Hopfield: a batch": (lambda: hopfield.Hopfield(8, 2, key=KEY)(jnp.ones((2, 4, 8))), "vmap"),
    "retrieve: a chunk of one and a half": (lambda: hopfield.retrieve(ROWS, ROWS, beta=1.0, chunk=1.5), "chunk"),
    "retrieve: jax's softmax": (
        lambda: hopfield.retrieve(ROWS, ROWS, beta=1.0, separation=jax.nn.softmax),
        "separation",
    ),
    "MLP: x before t": (lambda: nn.MLP(2, key=KEY)(ONES, 0.5), "t"),
    "MLP: a word for the activation": (lambda: nn.MLP(2, key=KEY, activation="relu"), "activation"),
    "MLP: nothing comes out": (lambda: nn.MLP(2, key=KEY, out_dim=0), "out_dim"),
    "MLP: a legacy key": (lambda: nn.MLP(2, key=LEGACY), "typed key"),
    "fit: a word for the optimizer": (lambda: fitted(optimizer="adam"), "optimizer"),
    "fit: an optimizer that is not called": (lambda: fitted(optimizer=optax.adam), "optimizer"),
    "fit: a folder for the checkpoint": (lambda: fitted(checkpoint="x"), "Checkpoint"),
    "fit: two and a half steps": (lambda: fitted(steps=2.5), "steps"),
    "fit: a loss without a key": (
        lambda: train.fit(lambda model, batch: 0.0, ONES, key=KEY),
        r"called as \(model, batch, \*, key\)",
    ),
    "row_indices: more rows than there are": (lambda: train.row_indices(5, 9, step=0, key=KEY), "batch_size"),
    "moons: a legacy key": (lambda: data.moons(10, key=LEGACY), "typed key"),
    "moons: two and a half": (lambda: data.moons(2.5, key=KEY), "integer"),
    "wasserstein2: no samples": (lambda: metrics.wasserstein2(jnp.zeros((0, 2)), jnp.ones((3, 2))), "0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words(name):
    call, words = REFUSED[name]
    assert_refused(call, words)


def test_a_number_closed_over_in_jit_builds_kernels():
    h = jnp.array(0.1)
    for make in (p.mala, p.overdamped, p.underdamped, p.hmc, p.microcanonical):
        call = lambda x, make=make: p.run(make(energy, h), x, 3, key=KEY).samples
        assert np.isfinite(jax.jit(call)(jnp.ones(3))).all()


def test_a_constant_of_python_is_an_energy():
    out = chained(p.mala(lambda x: 3.0, 0.1)).check()
    assert float(out.info.acceptance.min()) == 1


@pytest.mark.parametrize("cost", [jnp.nan, jnp.inf])
def test_costs_that_are_no_numbers_are_a_status(cost):
    with pytest.raises(RuntimeError, match="sinkhorn: diverged"):
        m.sinkhorn(jnp.full((2, 2), cost), 0.1).check()
