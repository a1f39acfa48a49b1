"""What a recipe returns: claims that can fail, the numbers behind them, and the arrays of its figure."""

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Claim:
    """A quantity, the reference it is held against and where that comes from, its value here, and the verdict.

    `relation` is `<=`, `>=` or `~` (within `tolerance`); `error` is the standard error of `value`, if it has one.
    """

    quantity: str
    value: float
    relation: str
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


def at_most(quantity: str, value: Any, bound: Any, source: str, error: Any = None) -> Claim:
    """The claim value <= bound."""
    return Claim(quantity, float(value), "<=", float(bound), source, error=_number(error))


def at_least(quantity: str, value: Any, bound: Any, source: str, error: Any = None) -> Claim:
    """The claim value >= bound."""
    return Claim(quantity, float(value), ">=", float(bound), source, error=_number(error))


def close_to(quantity: str, value: Any, reference: Any, tolerance: Any, source: str, error: Any = None) -> Claim:
    """The claim |value - reference| <= tolerance."""
    return Claim(quantity, float(value), "~", float(reference), source, float(tolerance), _number(error))


def _number(x: Any) -> float | None:
    return None if x is None else float(x)


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of a recipe: `claims`, `metrics` (numbers by name) and `arrays` (what `plot` draws)."""

    claims: tuple[Claim, ...]
    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]

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
        return {"ok": self.ok, "claims": claims, "metrics": {k: float(v) for k, v in self.metrics.items()}}


@dataclasses.dataclass(frozen=True)
class Info:
    """A recipe's line in `physml list`: the paper it follows, what it claims, how long it takes on two cores."""

    paper: str
    claim: str
    time: str
