"""Strictness of the whole suite, run-time shape checks and no silent promotion; and what its tests cost."""

import contextlib
import ctypes
import gc
import os
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

# Compiled programs are kept between runs and shared by the workers.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "physml-jax-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # most programs here are small
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")

# Compiling is most of the suite's time, and most of that is XLA's optimisation of programs that run once. Without it
# programs are the same up to rounding, and the suite takes less than half; `XLA_FLAGS= python -m pytest` tests them as
# they run elsewhere. An unknown flag ends the process.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
        " --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1",
    )

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


# ---- the ten dearest tests and programs

_compiled: list[tuple[float, str]] = []


def _on_duration(event: str, seconds: float, **about) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append((seconds, str(about.get("fun_name", "?"))))


jax.monitoring.register_event_duration_secs_listener(_on_duration)


def _cpu_seconds() -> float:
    """Of this process and of its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    start = _cpu_seconds()
    _compiled.clear()
    item.cost = lambda: (_cpu_seconds() - start, sorted(_compiled, reverse=True)[:3])
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "teardown":
        report.user_properties.append(("cost", item.cost()))
    return report


_costs: list[tuple[float, str]] = []
_programs: list[tuple[float, str, str]] = []


def pytest_runtest_logreport(report):
    for name, value in report.user_properties:
        if name == "cost" and report.when == "teardown":
            seconds, programs = value
            _costs.append((seconds, report.nodeid))
            _programs.extend((took, program, report.nodeid) for took, program in programs)


def pytest_terminal_summary(terminalreporter):
    if not _costs:
        return
    terminalreporter.section("dearest tests, seconds of one core")
    for seconds, test in sorted(_costs, reverse=True)[:10]:
        terminalreporter.line(f"{seconds:7.1f}  {test}")
    terminalreporter.line(f"{sum(seconds for seconds, _ in _costs):7.1f}  all {len(_costs)} tests")
    terminalreporter.section("dearest programs, seconds to compile")
    for seconds, program, test in sorted(_programs, reverse=True)[:10]:
        terminalreporter.line(f"{seconds:7.1f}  {program}  ({test})")
    if folder := os.environ.get("PHYSML_TEST_COSTS"):
        lines = [f"{seconds:.2f} {test}" for seconds, test in sorted(_costs, reverse=True)]
        Path(folder).write_text("\n".join(lines) + "\n")
