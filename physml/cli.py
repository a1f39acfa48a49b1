"""The command line: `physml list` and `physml run NAME`."""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from physml import recipes

USAGE = "physml run NAME [--smoke | --full] [--out DIR] [--seed N] [--no-progress] [--config.FIELD VALUE ...]"


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit status 0: every claim holds; 1: one fails; 2: unknown recipe, field or value."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="physml", description="Physics of learning, as recipes that check themselves."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all recipes: paper, claim and expected time")
    run = commands.add_parser("run", help="run one recipe and check its claims", usage=USAGE, add_help=False)
    run.add_argument("name", nargs="?")
    known, rest = parser.parse_known_args(argv)
    if known.command == "list":
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return _list()
    if known.name is None:
        print(f"usage: {USAGE}")
        return 0 if {"-h", "--help"} & set(rest) else 2
    return _run(known.name, rest)


def _list() -> int:
    for name in recipes.names():
        info = recipes.load(name).INFO
        print(f"{name}  ({info.time})\n    {info.paper}\n    {info.claim}")
    return 0


def _run(name: str, rest: list[str]) -> int:
    _keep_compiled_programs()
    try:
        recipe = recipes.load(name)
    except ValueError as error:
        print(f"physml: {error}", file=sys.stderr)
        return 2
    sizes = [word for word in rest if word in ("--smoke", "--full")]
    size = sizes[0][2:] if sizes else "paper"
    if len(sizes) > 1 or not hasattr(recipe, size.upper()):
        reason = "take one of --smoke and --full" if len(sizes) > 1 else "there is no larger run: leave --full out"
        print(f"physml run {name}: {reason}", file=sys.stderr)
        return 2
    options = _parse(name, recipe, size, [word for word in rest if word not in sizes])
    import jax

    try:
        key = jax.random.key(options.seed)
    except OverflowError:
        print(f"physml: --seed must fit into 64 bits, got {options.seed}", file=sys.stderr)
        return 2
    out = options.out or Path("runs") / (name if size == "paper" else f"{name}-{size}")
    start = time.perf_counter()
    try:
        result = recipe.run(options.config, key=key, progress=options.progress)
    except ValueError as error:
        # A value that the recipe itself refuses is as much a usage error as an unknown field.
        print(f"physml run {name}: {error}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - start
    for claim in result.claims:
        print(claim)
    _write(recipe, options, result, seconds, out)
    print(f"{'all claims hold' if result.ok else 'A CLAIM FAILS'}; {seconds:.1f} s; written to {out}")
    return 0 if result.ok else 1


def _parse(name: str, recipe: Any, size: str, rest: list[str]) -> Any:
    """config, out, seed, progress; the defaults of the configuration are those of SMOKE, PAPER or FULL."""
    import tyro

    fields = [
        ("config", recipe.Config, dataclasses.field(default=getattr(recipe, size.upper()))),
        ("out", Path | None, dataclasses.field(default=None)),
        ("seed", int, dataclasses.field(default=0)),
        ("progress", bool, dataclasses.field(default=sys.stderr.isatty())),
    ]
    options = dataclasses.make_dataclass("Options", fields, frozen=True)
    return tyro.cli(options, args=rest, prog=f"physml run {name}", description=f"{USAGE}\n\n{recipe.__doc__}")


def _write(recipe: Any, options: Any, result: Any, seconds: float, out: Path) -> None:
    """config.json, metrics.json and figure.png."""
    import jax
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    out.mkdir(parents=True, exist_ok=True)
    config = dataclasses.asdict(options.config) | {"seed": options.seed}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    about = {"seconds": round(seconds, 2), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
    (out / "metrics.json").write_text(json.dumps(result.as_dict() | about, indent=2) + "\n")
    figure = recipe.plot(result)
    figure.savefig(out / "figure.png", dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def _keep_compiled_programs() -> None:
    """A second run of a recipe starts at once: compiled programs are kept between runs."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "physml-jax-cache"))


if __name__ == "__main__":
    sys.exit(main())
