"""Programs that calls of `matching` compile: few in the first, none in an equal second."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_compiles_once

from physml import matching

KEY = jax.random.key(0)
MIXTURE = (np.asarray([0.4, 0.6]), np.asarray([[-1.0, 0.0], [1.0, 0.5]]), np.asarray([np.eye(2), 0.5 * np.eye(2)]))


def _field(t, x, args):
    return -x * jnp.sum(t)


def _score(t, x, args):
    return -x


def _normal(x):
    return jax.scipy.stats.norm.logpdf(x).sum()


def _laws(key):
    return jax.random.normal(key, (2, 16, 2))


def _batch():
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.normal(size=(16, 2)), jnp.float32) for _ in range(2))


def _mixture():
    return tuple(jnp.asarray(part, jnp.float32) for part in MIXTURE)


def _gaussians():
    return [(jnp.zeros(2) + shift, jnp.eye(2)) for shift in (0.0, 1.0)]


def match(**options):
    def make():
        x0, x1 = _batch()
        path, given = matching.linear(), {name: value() for name, value in options.items()}
        return lambda: matching.match(_field, path, x0, x1, key=KEY, **given)

    return make


def path(make_path):
    def make():
        x0, x1 = _batch()
        path = make_path()
        return lambda: matching.match(_field, path, x0, x1, key=KEY)

    return make


def exact(part):
    def make():
        fields = matching.exact_fields(matching.linear(), None, _mixture())
        x = jnp.ones(2)
        return lambda: fields[part](0.5, x)

    return make


def sampled_exact():
    fields = matching.exact_fields(matching.trigonometric(), None, _mixture())
    x0 = jnp.ones(2)
    return lambda: matching.sample(fields.velocity, x0, steps=5)


def converted():
    field = matching.convert(_field, matching.variance_preserving(), "denoiser", "velocity")
    x0 = jnp.ones(2)
    return lambda: matching.sample(field, x0, steps=5)


def sample_sde():
    x0 = jnp.ones(2)
    return lambda: matching.sample_sde(_field, _score, x0, epsilon=0.3, steps=5, key=KEY)


def log_prob():
    x = jnp.ones(2)
    return lambda: matching.log_prob(_field, x, _normal, steps=5)


def sinkhorn():
    cost = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 9)), jnp.float32)
    return lambda: matching.sinkhorn(cost, 0.2)


def sinkhorn_divergence():
    x = jnp.sin(jnp.arange(12.0)).reshape(6, 2)
    return lambda: matching.sinkhorn_divergence(x, x[:4], 0.5)


def flow_density():
    x = jnp.sin(jnp.arange(8.0)).reshape(4, 2)
    return lambda: matching.Flow(_field, matching.linear(), (2,), steps=3).log_prob(x)


def flow_sample():
    return lambda: matching.Flow(_field, matching.linear(), (2,), steps=3).sample(KEY, 4)


def mean_flow():
    x0, x1 = _batch()
    path = matching.linear()
    return lambda: matching.mean_flow_loss(_field, path, x0, x1, key=KEY)


def one_step():
    x0 = jnp.ones(2)
    return lambda: matching.one_step(_field, x0)


def gaussian_plan():
    ends = _gaussians()
    return lambda: matching.gaussian_plan(*ends, epsilon=0.5)


def simulated_plan(make_plan):
    def make():
        plan, x, ts = make_plan(), jnp.ones(2), jnp.linspace(0.0, 1.0, 6)
        return lambda: plan.simulate(x, ts, key=KEY)

    return make


def chain():
    path = matching.variance_preserving()
    return lambda: matching.gaussian_chain(path, 5)


def log_weight():
    chain, x1 = matching.gaussian_chain(matching.variance_preserving(), 5), jnp.ones(2)
    return lambda: matching.log_weight(chain, _score, x1, key=KEY)


def ancestral():
    chain, x0 = matching.gaussian_chain(matching.variance_preserving(), 5), jnp.ones(2)
    return lambda: matching.ancestral(chain, _score, x0, key=KEY)


def residual():
    x = jnp.ones(2)
    return lambda: matching.score_residual(_field, _score, 0.5, x)


def mixture_sample():
    mixture = _mixture()
    return lambda: matching.mixture_sample(mixture, 10, key=KEY)


def mixture_log_prob():
    mixture, x = _mixture(), jnp.ones(2)
    return lambda: matching.mixture_log_prob(mixture, x)


def _mean(points):
    return jnp.mean(points, axis=0)


def _potential(t, x, args):
    return jnp.sum(x**2) / 2


def _weighted(weights, x, args=None):
    return weights[:, None] * x[None, :]


def on_batch(call, **parts):
    """`call(x0, x1, ...)` of new batches and of what `parts` make."""

    def make():
        batches, made = tuple(_batch()), {name: part() for name, part in parts.items()}
        return lambda: call(*batches, **made)

    return make


def _plan():
    return matching.light_bridge(*_batch(), epsilon=0.5, components=2, key=KEY, steps=3, batch_size=8)


ON_BATCHES = {
    "couple": on_batch(lambda x, y: matching.couple(matching.Assignment(), x, y, key=KEY)[:2]),
    "squared_distances": on_batch(matching.squared_distances),
    "potential_residual": on_batch(lambda x, y: matching.potential_residual(_potential, _field, 0.5, x[0])),
    "instantaneous": on_batch(lambda x, y: matching.sample(matching.instantaneous(_field), x[0], steps=3)),
    "sample_mean_flow": on_batch(lambda x, y: matching.sample_mean_flow(_field, x[0], steps=2)),
    "sample_sde_batch": on_batch(
        lambda x, y: matching.sample_sde_batch(_field, _score, x, epsilon=0.5, steps=3, key=KEY)
    ),
    "exact_means": on_batch(lambda x, y, f: f(jnp.asarray([0.5, 0.5]), x[0]),
                            f=lambda: matching.exact_means([_mixture(), _mixture()])),
    "simplex_match": on_batch(lambda x, y: matching.simplex_match(_weighted, jnp.stack([x, y]), key=KEY)),
    "transport_energy": on_batch(
        lambda x, y: matching.transport_energy(_weighted, matching.edge(2, 0, 1), jnp.stack([x, y]))
    ),
    "along": on_batch(
        lambda x, y: matching.sample(matching.along(_weighted, matching.edge(2, 0, 1)), x[0], steps=3)
    ),
    "match_populations": on_batch(
        lambda x, y, model: matching.match_populations(model, matching.linear(), x[None], y[None], key=KEY),
        model=lambda: matching.MetaField(_field, _mean),
    ),
    "evidence_bound": on_batch(
        lambda x, y, process: matching.evidence_bound(process, _score, x, key=KEY, times=4),
        process=lambda: matching.forward_process(2),
    ),
    "forward_process": on_batch(lambda x, y: matching.forward_process(2, key=KEY)),
    "kinetic_metric": on_batch(lambda x, y: matching.kinetic_metric(_score, x, key=KEY, angles=3, samples=4)),
    "kinetic_optimal": on_batch(lambda x, y: matching.kinetic_optimal(x, key=KEY, angles=3, samples=4)),
    "empirical_denoiser": on_batch(
        lambda x, y: matching.sample(
            matching.empirical_denoiser(matching.linear(), x, matching.StudentNoise(3.0)), y[0], steps=2
        )
    ),
    "calibrate": on_batch(
        lambda x, y, chain: matching.calibrate(chain, _score, x, key=KEY),
        chain=lambda: matching.gaussian_chain(matching.variance_preserving(), 5),
    ),
    "bridge_loss": on_batch(lambda x, y, plan: matching.bridge_loss(plan, (x, y), key=KEY), plan=_plan),
    "light_bridge": on_batch(
        lambda x, y: matching.light_bridge(x, y, epsilon=0.5, components=2, key=KEY, steps=3, batch_size=8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_BATCHES)
def test_on_batches(name):
    # Rows and stacks of the batches are programs of the cases themselves; `light_bridge` fits, and its optimiser's
    # state is made eagerly.
    assert_compiles_once(ON_BATCHES[name], first=12 if name == "light_bridge" else 7)


CASES = {
    "match": match(),
    "match, laws of times": match(times=matching.logit_normal),
    "match, log snr": match(times=lambda: matching.log_snr(matching.linear(), 0.1, 0.9)),
    "match, entropic": match(coupling=lambda: matching.Entropic(0.5)),
    **{
        f"match, {make.__name__}": path(make)
        for make in (
            matching.trigonometric, matching.brownian_bridge, matching.mirror_interpolant, matching.variance_preserving,
            matching.sub_variance_preserving, matching.variance_exploding, matching.edm,
        )
    },
    "exact velocity": exact(0),
    "exact score": exact(1),
    "sample exact": sampled_exact,
    "sample converted": converted,
    "sample_sde": sample_sde,
    "log_prob": log_prob,
    "sinkhorn": sinkhorn,
    "sinkhorn_divergence": sinkhorn_divergence,
    "Flow.log_prob": flow_density,
    "Flow.sample": flow_sample,
    "mean_flow_loss": mean_flow,
    "one_step": one_step,
    "gaussian_plan": gaussian_plan,
    "simulate gaussian plan": simulated_plan(lambda: matching.gaussian_plan(*_gaussians(), epsilon=0.5)),
    "simulate mixture plan": simulated_plan(lambda: matching.mixture_plan(_mixture(), _mixture(), epsilon=0.5)),
    "gaussian_chain": chain,
    "log_weight": log_weight,
    "ancestral": ancestral,
    "score_residual": residual,
    "mixture_sample": mixture_sample,
    "mixture_log_prob": mixture_log_prob,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_programs(name):
    assert_compiles_once(CASES[name])
