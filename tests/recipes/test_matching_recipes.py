"""The recipes of the matching room in their small configurations, and that wrong ingredients are noticed."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from physml import matching, recipes
from physml.recipes.matching import kinetic_paths, nonequilibrium, pfgm

NAMES = (
    "flexible_diffusion",
    "hallucinations",
    "kinetic_paths",
    "meta_flow",
    "multimarginal",
    "nonequilibrium",
    "ode_sde_gap",
    "pfgm",
)


@pytest.mark.parametrize("name", NAMES)
def test_smoke_holds(name):
    recipe = recipes.load(name)
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0))
    result.check()
    assert len(recipe.plot(result).axes) >= 3


def _failed(result):
    return {claim.quantity for claim in result.claims if not claim.holds}


def test_a_wrong_variance_breaks_jarzynskis_equality(monkeypatch):
    whole = matching.log_weight

    def wider(chain, denoiser, x1, **options):
        return whole(dataclasses.replace(chain, variances=1.2 * chain.variances), denoiser, x1, **options)

    monkeypatch.setattr(matching, "log_weight", wider)
    log_w, exact = nonequilibrium._work.__wrapped__(2000, jax.random.key(0))
    weight = jnp.exp(log_w - exact[:, None])
    z = (weight.mean(1) - 1) / (weight.std(1) / 2000**0.5)
    assert float(jnp.abs(z).max()) > 8


def test_a_wrong_denoiser_is_not_the_field_of_charges(monkeypatch):
    exact = matching.empirical_denoiser

    def wrong(path, points, noise):
        return lambda t, x, args=None: 0.9 * exact(path, points, noise)(t, x, args)

    monkeypatch.setattr(matching, "empirical_denoiser", wrong)
    assert pfgm._exact_checks(jax.random.key(0))[0] > 1e-3


def test_a_wrong_metric_is_seen_along_the_flow(monkeypatch):
    exact = matching.kinetic_metric

    def wrong(*arguments, **options):
        metric = exact(*arguments, **options)
        return dataclasses.replace(metric, slope=jnp.sqrt(metric.slope), phi=1.3 * metric.phi)

    monkeypatch.setattr(matching, "kinetic_metric", wrong)
    jax.clear_caches()
    result = kinetic_paths.run(dataclasses.replace(kinetic_paths.SMOKE, samples=1024), key=jax.random.key(0))
    jax.clear_caches()
    assert "8 gaussians: metric against the exact velocity" in _failed(result)
