"""Timing side by side: every contender once per round, rounds alternate, the minimum counts."""

import time
from collections.abc import Callable

import jax


def race(contenders: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Seconds of the fastest of `rounds` calls of each contender, after one call that compiles."""
    for call in contenders.values():
        jax.block_until_ready(call())
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def compile_seconds(function: Callable, *args: object, rounds: int = 3) -> float:
    """Seconds to trace and compile `function` for `args`, caches aside."""
    best = float("inf")
    for _ in range(rounds):
        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(lambda *a: function(*a)).lower(*args).compile()
        best = min(best, time.perf_counter() - start)
    return best


def temp_bytes(function: Callable, *args: object) -> int:
    """Peak temporary memory of the compiled program, by the compiler's own account."""
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def table(title: str, rows: list[tuple[str, ...]], header: tuple[str, ...]) -> None:
    """Print rows as a Markdown table."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
