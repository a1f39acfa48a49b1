"""Old names of arguments, kept for those who rely on them."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def renamed(**names: str) -> Callable[[F], F]:
    """Decorator: `renamed(old="new")` takes the keyword `old` for `new`; a `ValueError` for both at once."""

    def decorate(function):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise ValueError(f"{function.__name__} takes {new}, once called {old}; got both")
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        wrapped.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return wrapped  # type: ignore[return-value]

    return decorate  # type: ignore[return-value]
