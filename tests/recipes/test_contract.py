"""What every recipe promises, on its small configuration: claims that hold, and notice when the method is broken."""

import dataclasses
import json
import time
import tomllib
from pathlib import Path

import jax
import pytest

from physml import recipes

pytestmark = pytest.mark.recipes

# Every claim that was ever made, so that none is lost on the way.
CLAIMED = json.loads((Path(__file__).parent / "claims.json").read_text())
BUDGET = tomllib.loads((Path(__file__).parent / "budget.toml").read_text())


def test_the_budget_is_of_recipes_that_exist():
    assert set(BUDGET) <= set(recipes.names())
    assert all(entry["seconds"] > 12 and entry["reason"] for entry in BUDGET.values())


@pytest.mark.parametrize("name", recipes.names())
def test_small_configuration(name):
    recipe = recipes.load_recipe(name)
    assert not recipes.missing(recipe), f"recipe {name} lacks {'; '.join(recipes.missing(recipe))}"
    start = time.process_time()
    result = recipe.run(recipe.SMOKE, key=jax.random.key(0)).check()
    spent, budget = time.process_time() - start, BUDGET.get(name, {"seconds": 12})["seconds"]
    assert spent < 2 * budget, (
        f"recipe {name} took {spent:.0f} s of one core; its budget is {budget} s"
    )  # slow machines
    made = {claim.quantity: claim.relation for claim in result.claims}
    lost = {quantity: relation for quantity, relation in CLAIMED.get(name, []) if made.get(quantity) != relation}
    assert not lost, f"recipe {name} no longer claims {lost}"
    saved = json.loads(json.dumps(result.as_dict()))
    again = recipes.Result.from_dict(saved)
    assert again.claims == result.claims and again.metrics == result.metrics
    figure = recipe.plot(result)
    assert any(axis.has_data() for axis in figure.axes)
    figure.canvas.draw()


@pytest.mark.parametrize("name", recipes.names())
def test_sabotage_is_noticed(name):
    recipe = recipes.load_recipe(name)
    for sabotage in recipes.sabotages(recipe):
        study = recipes.Study(name, stop=True)
        with sabotage.applied():
            try:
                recipe.run(recipe.SMOKE, key=jax.random.key(0), study=study)
            except recipes.Noticed:
                continue
        pytest.fail(f"no claim of recipe {name} fails although {sabotage.what}")


@pytest.mark.parametrize("name", recipes.names())
def test_wrong_settings_are_refused(name):
    config = recipes.load_recipe(name).SMOKE
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        # A number of the field's own type, which no setting allows.
        wrong = {int: -1, float: float("nan")}.get(type(value))
        if wrong is not None:
            with pytest.raises(ValueError, match=field.name):
                dataclasses.replace(config, **{field.name: wrong})
