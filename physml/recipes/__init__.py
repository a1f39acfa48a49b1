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
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str) -> ModuleType:
    """The recipe's module; a `ValueError` that names the nearest recipes when there is none."""
    import difflib

    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3) or names()
        raise ValueError(f"there is no recipe {name!r}; did you mean {', '.join(near)}? `physml list` shows all")
    return importlib.import_module(f"physml.recipes.{name}")
