"""One file per paper: `physml list`, `physml run NAME`.

A recipe is a module with `INFO`, a frozen dataclass `Config` with the instances `PAPER` and `SMOKE`,
`run(config, *, key, progress) -> Result` and `plot(result) -> Figure`.
"""

import importlib
import pkgutil
from types import ModuleType

from physml.recipes._result import (
    Claim as Claim,
    Info as Info,
    Result as Result,
    at_least as at_least,
    at_most as at_most,
    close_to as close_to,
)


def names() -> list[str]:
    """Names of all recipes."""
    return sorted(_rooms())


def _rooms() -> dict[str, str]:
    """The room of every recipe."""
    found = {}
    for room in pkgutil.iter_modules(__path__):
        if room.ispkg:
            files = pkgutil.iter_modules([f"{path}/{room.name}" for path in __path__])
            found |= {file.name: room.name for file in files if not file.name.startswith("_")}
    return found


def load(name: str) -> ModuleType:
    """The recipe's module; a `ValueError` that names the nearest recipes when there is none."""
    import difflib

    rooms = _rooms()
    if name not in rooms:
        near = difflib.get_close_matches(name, names(), n=3) or names()
        raise ValueError(f"there is no recipe {name!r}; did you mean {', '.join(near)}? `physml list` shows all")
    return importlib.import_module(f"physml.recipes.{rooms[name]}.{name}")
