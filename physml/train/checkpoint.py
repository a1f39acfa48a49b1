"""Checkpoints of a training run, through orbax: everything that the next step depends on, or an error.

A checkpoint is one folder per step, written under a temporary name and renamed when complete. Beside the
arrays lies a description (names, shapes, dtypes, checksums, key, batch size, ...), read first: what cannot be
continued exactly is refused with the reason, and nothing on disk is changed by a refusal.
"""

import contextlib
import json
import os
import signal
import threading
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from physml.core import check
from physml.core._status import Failure
from physml.core.types import Key

_FORMAT = 1


class Checkpoint(NamedTuple):
    """Where and how often `fit` saves: the folder, every how many steps, how many of the newest to keep.

    A checkpoint is also written at the last step and at Ctrl-C. Needs `pip install 'physml[checkpoint]'`.
    """

    path: str | os.PathLike
    every: int = 1000
    keep: int = 3


class CheckpointError(Failure, ValueError):
    """A checkpoint that cannot be read, or that belongs to another run. The files are left as they were."""


class Store:
    """An open checkpoint folder; `about` holds the JSON values that a run and its continuation must share."""

    def __init__(self, checkpoint: Checkpoint, about: dict):
        for name in ("every", "keep"):
            check.count(getattr(checkpoint, name), f"{name} of Checkpoint")
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise ImportError("checkpoint= needs orbax: pip install 'physml[checkpoint]'") from error
        self._ocp, self._about, self.every = ocp, about, checkpoint.every
        self.path = Path(checkpoint.path).absolute()
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"{self.path} is a file: Checkpoint(path) names a folder")
        # Synchronous: when save returns the files are complete, and the buffers may be donated again.
        options = ocp.CheckpointManagerOptions(max_to_keep=checkpoint.keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.path, options=options)
        self.latest: int | None = self._manager.latest_step()

    def save(self, state: PyTree, history: dict) -> None:
        """Write the checkpoint of `state.step`, once."""
        step = int(state.step)
        if self.latest == step:
            return
        leaves, rows = _named(state), {name: np.asarray(x) for name, x in history.items()}
        description = {
            "format": _FORMAT,
            "about": self._about,
            "state": {name: _describe(x) for name, x in leaves.items()},
            "history": {name: _describe(x) for name, x in rows.items()},
        }
        # Orbax refuses arrays without entries; their shape says all there is to know.
        trees = {"state": _filled(leaves), "history": _filled(rows)}
        save = self._ocp.args
        self._manager.save(
            step,
            args=save.Composite(trees=save.StandardSave(trees), description=save.JsonSave(_seal(description))),
        )
        self.latest = step

    def restore(self, like: PyTree) -> tuple[PyTree, dict]:
        """The newest checkpoint as `(state, history)`, with the structure and the placement of `like`."""
        step, restore = self.latest, self._ocp.args
        folder = self.path / str(step)
        try:
            read = self._manager.restore(step, args=restore.Composite(description=restore.JsonRestore()))
            found = _unseal(read["description"])
            about, state, history = found["about"], found["state"], found["history"]
            version = found["format"]
        except Exception as error:
            raise self._unreadable(folder, error) from error
        if version != _FORMAT:
            raise CheckpointError(f"{folder} has format {version}, this version of physml reads {_FORMAT}")
        leaves = _named(like)
        self._compare(folder, about, state, {n: _describe(x, checksum=False) for n, x in leaves.items()})
        shaped = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in leaves.items()}
        zeros = {n: np.zeros(d["shape"], jnp.dtype(d["dtype"])) for n, d in history.items()}
        wanted = restore.StandardRestore({"state": _filled(shaped), "history": _filled(zeros)})
        try:
            read = self._manager.restore(step, args=restore.Composite(trees=wanted))["trees"]
        except Exception as error:
            raise self._unreadable(folder, error) from error
        values = {n: x for n, x in leaves.items() if x.size == 0} | read["state"]
        rows = zeros | read["history"]
        for described, arrays in ((state, values), (history, rows)):
            for name, d in described.items():
                if "crc32" in d and _describe(arrays[name]).get("crc32") != d["crc32"]:
                    raise self._unreadable(folder, f"the checksum of {name} is wrong")
        return _unnamed(like, values), {name: np.array(x) for name, x in rows.items()}

    def close(self) -> None:
        self._manager.close()

    def _compare(self, folder, about, state, expected):
        other = [
            f"{name} was {about.get(name)!r}, is {self._about.get(name)!r}"
            for name in sorted(set(about) | set(self._about))
            if about.get(name) != self._about.get(name)
        ]
        for name in sorted(set(state) | set(expected)):
            there, here = state.get(name), expected.get(name)
            if there is None or here is None:
                other.append(f"{name} is {'not in the checkpoint' if there is None else 'only in the checkpoint'}")
            elif (there["shape"], there["dtype"]) != (here["shape"], here["dtype"]):
                other.append(f"{name} was {there['dtype']}{there['shape']}, is {here['dtype']}{here['shape']}")
        if other:
            more = f" (and {len(other) - 5} more differences)" if len(other) > 5 else ""
            raise CheckpointError(
                f"the checkpoint {folder} belongs to another run: {'; '.join(other[:5])}{more}. Call fit "
                "with the arguments it was made with, or give Checkpoint another path. The files are left as "
                "they were"
            )

    def _unreadable(self, folder, error):
        older = [s for s in self._manager.all_steps() if self.latest is not None and s < self.latest]
        then = f"resume from step {max(older)}" if older else "start again"
        reason = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else error
        return CheckpointError(
            f"the checkpoint {folder} cannot be read, it is damaged or incomplete ({reason[:300]}). Move "
            f"that folder away to {then}, or give Checkpoint another path. The files are left as they were"
        )


@contextlib.contextmanager
def hold_interrupts():
    """Let Ctrl-C wait until the block ends, so that it finds a whole state: half a chunk has donated its
    input.

    Only where Ctrl-C raises `KeyboardInterrupt`: in the main thread and under Python's own handler.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pending = []
    signal.signal(signal.SIGINT, lambda *_: pending.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pending:
        raise KeyboardInterrupt


def describe_key(key: Key) -> str:
    """A key as text: its implementation and its words."""
    return f"{jax.random.key_impl(key)}:{np.asarray(jax.random.key_data(key)).tobytes().hex()}"


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _named(tree):
    """The leaves by the path that leads to them; typed keys as their words."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): jax.random.key_data(x) if _is_key(x) else x for p, x in named}


def _unnamed(like, leaves):
    def place(path, x):
        value = leaves[jax.tree_util.keystr(path)]
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(x)) if _is_key(x) else value

    return jax.tree_util.tree_map_with_path(place, like)


def _seal(description):
    return {"body": description, "crc32": zlib.crc32(json.dumps(description, sort_keys=True).encode())}


def _unseal(sealed):
    if _seal(sealed["body"]) != sealed:
        raise ValueError("the checksum of the description is wrong")
    return sealed["body"]


def _filled(leaves):
    return {name: x for name, x in leaves.items() if np.prod(x.shape) > 0}


def _describe(x, checksum=True):
    described: dict[str, Any] = {"shape": list(x.shape), "dtype": str(x.dtype)}
    # Arrays spread over several hosts are not gathered for a checksum.
    if checksum and getattr(x, "is_fully_addressable", True):
        data = np.ascontiguousarray(x).reshape(-1)
        described["crc32"] = zlib.crc32(data.view(np.uint8).data) if data.size else 0
    return described
