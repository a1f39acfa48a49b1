"""One file per paper, in a folder for each room: `physml list`, `physml run NAME`.

A recipe is a module with `INFO`, a frozen `Config` of `Settings` with the instances `PAPER` and `SMOKE`, a body under
`@experiment` called `run`, `plot(result) -> Figure`, and `SABOTAGE`, one or a tuple. Its name alone finds it.
"""

import ast
import functools
import importlib
import pathlib
import pkgutil
from types import ModuleType
from typing import Any

from physml.recipes.study import (
    Claim as Claim,
    Noticed as Noticed,
    RecipeInfo as RecipeInfo,
    Result as Result,
    Sabotage as Sabotage,
    Settings as Settings,
    Study as Study,
    experiment as experiment,
    setting as setting,
)


@functools.cache
def _places() -> dict[str, tuple[str, pathlib.Path]]:
    """Room and file of every recipe."""
    found = {}
    for room in pkgutil.iter_modules(__path__):
        if room.ispkg:
            folder = pathlib.Path(__path__[0]) / room.name
            files = pkgutil.iter_modules([str(folder)])
            found |= {f.name: (room.name, folder / f"{f.name}.py") for f in files if not f.name.startswith("_")}
    return dict(sorted(found.items()))


def names(room: str | None = None) -> list[str]:
    """Names of all recipes, or of those of a room; a `ValueError` for a room without recipes."""
    places = _places()
    rooms = {place[0] for place in places.values()}
    if room is not None and room not in rooms:
        raise ValueError(f"there are no recipes of {room!r}; the rooms are {', '.join(sorted(rooms))}")
    return [name for name, place in places.items() if room in (None, place[0])]


def room_of(name: str) -> str:
    """The room a recipe belongs to; a `ValueError` that names the nearest recipes when there is none."""
    import difflib

    if name not in _places():
        near = difflib.get_close_matches(name, names(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`physml list` shows all"
        raise ValueError(f"there is no recipe {name!r}; {hint}")
    return _places()[name][0]


def load_recipe(name: str) -> ModuleType:
    """The recipe's module; a `ValueError` that names the nearest recipes when there is none."""
    return importlib.import_module(f"physml.recipes.{room_of(name)}.{name}")


def info(name: str) -> RecipeInfo:
    """The recipe's `INFO`, read from its source: nothing of it is imported."""
    room_of(name)
    for node in ast.parse(_places()[name][1].read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["INFO"]:
            call: Any = node.value
            return RecipeInfo(**{word.arg: ast.literal_eval(word.value) for word in call.keywords})
    raise ValueError(f"recipe {name!r} has no INFO")


def missing(recipe: ModuleType) -> list[str]:
    """What a module lacks of the protocol of recipes, in words; empty if nothing."""
    lacks = []
    parts = {"INFO": RecipeInfo, "PAPER": Settings, "SMOKE": Settings}
    for name, kind in parts.items():
        if not isinstance(getattr(recipe, name, None), kind):
            lacks.append(f"{name}, a {kind.__name__}")
    config = getattr(recipe, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Settings)):
        lacks.append("Config, a class of Settings")
    lacks += [f"{name}, a function" for name in ("run", "plot") if not callable(getattr(recipe, name, None))]
    if not sabotages(recipe):
        lacks.append("SABOTAGE, a Sabotage or a tuple of them")
    if not (recipe.__doc__ or "").strip():
        lacks.append("a docstring")
    return lacks


def sabotages(recipe: ModuleType) -> tuple[Sabotage, ...]:
    """The breaks a recipe names of its own method."""
    named = getattr(recipe, "SABOTAGE", ())
    named = named if isinstance(named, tuple) else (named,)
    return tuple(sabotage for sabotage in named if isinstance(sabotage, Sabotage))
