"""Strictness of the whole suite: run-time shape checks, no silent promotion of dtype or rank."""

import contextlib
import ctypes
import gc
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Compiled programs are kept between runs and shared by the workers.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "physml-jax-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # most programs here are small
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")

# Compiling is most of the suite's time, and XLA's fusion emitters are a third of that. Without them programs are the
# same up to rounding; `XLA_FLAGS= python -m pytest` tests them as they run elsewhere. An unknown flag ends the process.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

from jaxtyping import install_import_hook

install_import_hook("physml", "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def free_programs():
    """A worker that kept every compiled program and figure would need several gigabytes by the end of the suite."""
    yield
    jax.clear_caches()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back to the system
