"""One model in one file: `save` and `load`, with numpy's archive and a description that is checked."""

import contextlib
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import IO

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from physml.train.checkpoint import CheckpointError, _named, _unnamed

_FORMAT = "physml-model-1"


def save(path: str | os.PathLike, model: PyTree) -> None:
    """Write the arrays of a model to one file, atomically: an interrupted save leaves the old file in place.

    Functions, strings and Python numbers are not written; `load` takes them from the model it is given.
    **Errors.** `ValueError` for a path that is a folder.
    **Example.** `save("model.npz", fit.ema)`
    """
    if Path(path).is_dir():
        raise ValueError(
            f"path must be the name of a file, got the folder {path}: save('{Path(path) / 'model.npz'}', ...)"
        )
    leaves = {name: np.asarray(x) for name, x in _named(eqx.filter(model, eqx.is_array)).items()}
    described = [[name, str(x.dtype), list(x.shape)] for name, x in leaves.items()]
    header = json.dumps({"format": _FORMAT, "leaves": described})
    # Bytes, for the dtypes that numpy's format does not know (bfloat16).
    arrays = {str(i): np.frombuffer(x.tobytes(), np.uint8) for i, x in enumerate(leaves.values())}
    with atomic_write(path, "wb") as file:
        np.savez(file, allow_pickle=False, header=np.frombuffer(header.encode(), np.uint8), **arrays)


def load(path: str | os.PathLike, like: PyTree) -> PyTree:
    """Read a model: the arrays from the file, everything else from `like`, a model of the same structure.

    **Fails** with `CheckpointError` when the file is damaged, or when a name, shape or dtype differs from
    `like`; with `FileNotFoundError` when there is none.
    """
    try:
        with np.load(path) as archive:
            header = json.loads(archive["header"].tobytes())
            described = [tuple(entry) for entry in header["leaves"]]
            arrays = [archive[str(i)].tobytes() for i in range(len(described))]
            known = header["format"] == _FORMAT
    except FileNotFoundError:
        raise
    except IsADirectoryError as error:
        raise ValueError(f"path must be the name of a file, got the folder {path}") from error
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise CheckpointError(f"{path} is not a model that physml saved, or it is damaged: {error}") from error
    if not known:
        raise CheckpointError(f"{path} has format {header['format']!r}, this version of physml reads {_FORMAT!r}")
    wanted = _named(eqx.filter(like, eqx.is_array))
    there = {name: (dtype, tuple(shape)) for name, dtype, shape in described}
    here = {name: (str(x.dtype), tuple(x.shape)) for name, x in wanted.items()}
    if there != here:
        names = [name for name in sorted(set(there) | set(here)) if there.get(name) != here.get(name)]
        differences = "; ".join(f"{n}: file {there.get(n)}, model {here.get(n)}" for n in names[:5])
        raise CheckpointError(
            f"{path} holds another model. {len(names)} leaves differ ({differences}): build `like` as it was saved"
        )
    values = {
        name: jnp.asarray(np.frombuffer(data, jnp.dtype(dtype)).reshape(shape))
        for (name, dtype, shape), data in zip(described, arrays, strict=True)
    }
    dynamic, static = eqx.partition(like, eqx.is_array)
    return eqx.combine(_unnamed(dynamic, values), static)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str):
    """Open a temporary file beside `path`, which replaces it when the block ends without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    file: IO
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's 0600 would hide the file from collaborators
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
