"""What a run tells while it trains: the history and a JSON-lines file."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from physml.train.store import atomic_write


class History(NamedTuple):
    """Per step, as numpy arrays of length `steps`: the loss, the gradient norm before clipping, and the
    entries of the loss's auxiliary dict by name. Entry k belongs to step k, at the parameters before its
    update. `validation`: how many steps were done at each evaluation on held-out rows, and the loss there.
    """

    loss: np.ndarray
    grad_norm: np.ndarray
    aux: dict[str, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray] = (np.zeros(0, int), np.zeros(0))


class Recorder:
    """Buffers for all steps, filled chunk by chunk; `log` is a path for one JSON line per step, or None."""

    def __init__(self, steps: int, log: str | os.PathLike | None = None):
        self._steps, self._log = steps, None if log is None else Path(log)
        self._rows: dict[str, np.ndarray] = {}
        self.done = 0

    def begin(self, rows: dict[str, np.ndarray]) -> None:
        """Start from the history of a resumed run (empty for a new one), and write the log anew with it."""
        self.add(rows, len(rows["loss"]) if rows else 0, log=False)
        if self._log is not None:
            with atomic_write(self._log, "w") as file:
                self._write(file, 0, self.done)

    def add(self, rows: dict[str, np.ndarray], count: int, *, log: bool = True) -> None:
        """Append the first `count` entries of every array."""
        for name, x in rows.items():
            if name not in self._rows:
                self._rows[name] = np.zeros((self._steps, *x.shape[1:]), x.dtype)
            self._rows[name][self.done : self.done + count] = x[:count]
        self.done += count
        if log and self._log is not None and count:
            with self._log.open("a") as file:
                self._write(file, self.done - count, self.done)

    def rows(self) -> dict[str, np.ndarray]:
        """The history so far by name, as views."""
        return {name: x[: self.done] for name, x in self._rows.items()}

    def history(self) -> History:
        """The history so far, as copies."""
        rows = {name: x.copy() for name, x in self.rows().items()}
        empty = np.zeros(0, np.float32)
        return History(rows.pop("loss", empty), rows.pop("grad_norm", empty), rows)

    def last(self) -> dict[str, Any]:
        """The metrics of the last step done: Python numbers, or lists for array-valued entries."""
        return {name: x[self.done - 1].tolist() for name, x in self._rows.items()} if self.done else {}

    def _write(self, file, start, stop):
        for k in range(start, stop):
            line = {"step": k, **{name: _plain(x[k].tolist()) for name, x in self._rows.items()}}
            file.write(json.dumps(line) + "\n")


def _plain(value):
    # JSON has no nan; only auxiliary entries can be, since training stops at a loss that is not finite.
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
