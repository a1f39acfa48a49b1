"""The one protocol of all recipes: settings that check themselves, a study that collects what is found, its result.

A recipe is a module with `INFO`, a `Config` of `Settings` with the instances `PAPER` and `SMOKE`, a body

    @experiment
    def run(study, config, key): ...

`plot(result) -> Figure`, and `SABOTAGE`, a break of its own method that a claim must notice.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, Literal, TypeVar
from unittest import mock

# jax is imported where it is needed: the command line lists recipes without it.

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RecipeInfo:
    """A recipe's line in `physml list`: the paper it follows, what it claims, how long it takes on two cores."""

    paper: str
    claim: str
    time: str


# ---- claims


@dataclasses.dataclass(frozen=True)
class Claim:
    """A quantity, the reference it is held against and where that comes from, its value here, and the verdict.

    `relation` is `<=`, `>=` or `~` (within `tolerance`); `error` is the standard error of `value`, if it has one.
    """

    quantity: str
    value: float
    relation: Literal["<=", ">=", "~"]
    reference: float
    source: str
    tolerance: float = 0.0
    error: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value stands in the relation; a value that is not a number holds nothing."""
        if not math.isfinite(self.value) or not math.isfinite(self.reference):
            return False
        if self.relation == "~":
            return abs(self.value - self.reference) <= self.tolerance
        return self.value <= self.reference if self.relation == "<=" else self.value >= self.reference

    def __str__(self) -> str:
        value = f"{self.value:.4g}" + ("" if self.error is None else f" ± {self.error:.2g}")
        bound = f"{self.relation} {self.reference:.4g}" + (f" ± {self.tolerance:.2g}" if self.relation == "~" else "")
        return f"{'holds' if self.holds else 'FAILS'}  {self.quantity}: {value}  ({bound}; {self.source})"


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of a recipe: `claims`, `metrics` (further numbers by name), and `data`, what `plot` draws."""

    claims: tuple[Claim, ...]
    metrics: dict[str, float]
    data: SimpleNamespace = dataclasses.field(default_factory=SimpleNamespace)

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)

    def check(self) -> "Result":
        """Raise `Failure` with the claims that fail; return self otherwise."""
        from physml.core import Failure

        failed = [str(claim) for claim in self.claims if not claim.holds]
        if failed:
            raise Failure("\n".join(failed))
        return self

    def as_dict(self) -> dict[str, Any]:
        """Claims and metrics as plain data, for JSON."""
        claims = [dataclasses.asdict(claim) | {"holds": claim.holds} for claim in self.claims]
        return {"ok": self.ok, "claims": claims, "metrics": dict(self.metrics)}

    @staticmethod
    def from_dict(saved: dict[str, Any]) -> "Result":
        """The claims and metrics that `as_dict` wrote; the data of the figure are not kept."""
        names = [field.name for field in dataclasses.fields(Claim)]
        claims = tuple(Claim(**{name: claim[name] for name in names}) for claim in saved["claims"])
        return Result(claims, saved["metrics"])


# ---- a study


class Noticed(Exception):
    """A claim failed in a study that stops there."""


class Study:
    """Collects what a recipe finds: claims, further numbers, data for the figure; and shows how far it is.

    A `value` is a number, or anything with `value` and `error` (an `Estimate`), whose error goes into the claim.
    """

    def __init__(self, name: str, *, progress: bool = False, stop: bool = False):
        self.name, self.progress, self.stop = name, progress, stop
        self.claims: list[Claim] = []
        self.metrics: dict[str, float] = {}
        self.data = SimpleNamespace()

    def near(
        self, quantity: str, value: Any, reference: Any, source: str, *, atol: Any = 0.0, rtol: Any = 0.0,
        sigmas: float | int = 0, error: Any = None,
    ) -> None:  # fmt: skip
        """Claim |value - reference| <= atol + rtol |reference| + sigmas * error."""
        value, error = _number(value, error)
        reference = float(reference)
        tolerance = float(atol) + float(rtol) * abs(reference) + (sigmas * error if sigmas and error else 0.0)
        self._add(Claim(quantity, value, "~", reference, source, tolerance, error))

    def at_most(self, quantity: str, value: Any, bound: Any, source: str, *, error: Any = None) -> None:
        """Claim value <= bound."""
        value, error = _number(value, error)
        self._add(Claim(quantity, value, "<=", float(bound), source, error=error))

    def at_least(self, quantity: str, value: Any, bound: Any, source: str, *, error: Any = None) -> None:
        """Claim value >= bound."""
        value, error = _number(value, error)
        self._add(Claim(quantity, value, ">=", float(bound), source, error=error))

    def _add(self, claim: Claim) -> None:
        if any(known.quantity == claim.quantity for known in self.claims):
            raise ValueError(f"{self.name} claims {claim.quantity!r} twice")
        self.claims.append(claim)
        if self.stop and not claim.holds:
            raise Noticed(str(claim))

    def measure(self, **numbers: Any) -> None:
        """Numbers worth keeping that no claim is made of; `study.metrics[name] = ...` where the name is no word."""
        self.metrics |= numbers

    def keep(self, **data: Any) -> None:
        """Arrays, results, comparisons for `plot`, which reads them as attributes of `result.data`."""
        vars(self.data).update(data)

    def each(self, items: Iterable[T], unit: str = "part") -> Iterator[T]:
        """The items one after another, with a progress bar."""
        from physml.core.progress import progress_bar

        items = list(items)
        with progress_bar(len(items), self.name, unit, show=self.progress) as bar:
            for item in items:
                yield item
                bar.update()

    def result(self) -> Result:
        """All that was collected."""
        return Result(tuple(self.claims), {name: float(value) for name, value in self.metrics.items()}, self.data)


def _number(value: Any, error: Any) -> tuple[float, float | None]:
    """A value and its standard error as plain numbers."""
    error = getattr(value, "error", None) if error is None else error
    return float(getattr(value, "value", value)), None if error is None else float(error)


Body = Callable[[Study, Any, Any], None]


def experiment(body: Body) -> Callable[..., Result]:
    """The body `run(study, config, key)` of a recipe as `run(config, *, key, progress=False) -> Result`.

    `study`: one of the caller's, who then sees what was found before an interrupt, or stops at the first failure.
    """

    @functools.wraps(body)
    def run(config: Any, *, key: Any, progress: bool = False, study: Study | None = None) -> Result:
        study = Study(body.__module__.split(".")[-1], progress=progress) if study is None else study
        body(study, config, key)
        return study.result()

    del run.__wrapped__  # the signature is that of `run`
    return run


@dataclasses.dataclass(frozen=True)
class Sabotage:
    """A break of a recipe's own method: `owner.name` is replaced by `broken(original)`; some claim must fail then.

    `what` says in words what is broken, as in "the noise is half as strong".
    """

    what: str
    owner: Any
    name: str
    broken: Callable[[Any], Any]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the method is broken; compiled programs are forgotten on the way in and out."""
        import jax

        original = vars(self.owner)[self.name] if isinstance(self.owner, type) else getattr(self.owner, self.name)
        jax.clear_caches()
        try:
            with mock.patch.object(self.owner, self.name, self.broken(original)):
                yield
        finally:
            jax.clear_caches()


# ---- settings


def setting(
    default: T, *, least: float | int | None = None, most: float | int | None = None, below: float | int | None = None,
    choices: Iterable[str] | None = None, length: int | None = None,
) -> T:  # fmt: skip
    """A field of `Settings` with a rule: bounds of a number (or of every entry of a tuple), the words to choose from,
    the least number of entries of a tuple."""
    rule = {"least": least, "most": most, "below": below, "length": length}
    rule["choices"] = None if choices is None else tuple(choices)
    return dataclasses.field(default=default, metadata=rule)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of every `Config`. A number is positive, a tuple not empty, unless its `setting` says otherwise.

    Rules between fields are those of `rules`.
    """

    def rules(self) -> Iterable[tuple[bool, str]]:
        """(whether it holds, what is asked for), for rules that concern several fields."""
        return ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if problem := _problem(value, field.metadata):
                raise ValueError(f"config.{field.name} {problem}, got {value!r}")
        for holds, wanted in self.rules():
            if not holds:
                raise ValueError(f"config: {wanted}; got {self}")


def _problem(value: Any, rule: Any) -> str | None:
    """What is wrong with the value of a field, or None."""
    length = rule.get("length")
    if isinstance(value, tuple) and len(value) < (1 if length is None else length):
        return f"needs at least {1 if length is None else length} entries"
    for entry in value if isinstance(value, tuple) else (value,):
        choices = rule.get("choices")
        if choices is not None and entry not in choices:
            return f"must be {'among' if isinstance(value, tuple) else 'one of'} {', '.join(map(str, choices))}"
        if isinstance(entry, bool) or not isinstance(entry, int | float):
            continue
        least, most, below = rule.get("least"), rule.get("most"), rule.get("below")
        if math.isnan(entry) or (entry <= 0 if least is None else entry < least):
            return "must be positive" if least is None else f"must be at least {least:g}"
        if most is not None and entry > most:
            return f"must be at most {most:g}"
        if below is not None and entry >= below:
            return f"must be below {below:g}"
    return None
