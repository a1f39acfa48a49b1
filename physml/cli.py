"""The command line: `physml list`, `physml run NAME`, `physml show NAME`, `physml launch SCRIPT`."""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import physml
from physml import recipes

USAGE = (
    "physml run NAME [--smoke | --full] [--out DIR] [--seed N] [--no-progress] [--processes N] "
    "[--config.FIELD VALUE ...]"
)


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit status 0: every claim holds; 1: one fails; 2: unknown recipe, field or value; 130: stopped."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="physml", description="Physics of learning, as recipes that check themselves."
    )
    parser.add_argument("--version", action="version", version=f"physml {physml.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="recipes by room: paper, claim and expected time")
    listing.add_argument("room", nargs="?", help="only those of this room")
    show = commands.add_parser("show", help="print the claims of a recipe's last run")
    show.add_argument("name")
    show.add_argument("--out", type=Path, help="the folder it was written to, by default the latest under runs/")
    run = commands.add_parser("run", help="run one recipe and check its claims", usage=USAGE, add_help=False)
    run.add_argument("name", nargs="?")
    spread = commands.add_parser("launch", help="run a script as several processes on this machine")
    spread.add_argument("--processes", type=int, required=True)
    spread.add_argument("script", nargs=argparse.REMAINDER, help="a Python file and its arguments, or -m MODULE")
    known, rest = parser.parse_known_args(argv)
    if known.command != "run" and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if known.command == "list":
            return _list(known.room)
        if known.command == "show":
            return _show(known.name, known.out)
        if known.command == "launch":
            return _launch(known.script, known.processes)
        if known.name is None:
            print(f"usage: {USAGE}")
            return 0 if {"-h", "--help"} & set(rest) else 2
        return _run(known.name, rest)
    except ValueError as error:
        # What a recipe refuses is as much a usage error as an unknown field.
        words = [known.command, getattr(known, "name", None)]
        print(f"physml {' '.join(word for word in words if word)}: {error}", file=sys.stderr)
        return 2


def _launch(script: list[str], processes: int) -> int:
    if not script:
        raise ValueError("name the script: physml launch --processes 2 train.py")
    from physml.train import launch

    return launch(script, processes)


def _list(room: str | None) -> int:
    last = None
    for name in sorted(recipes.names(room), key=lambda name: (recipes.room_of(name), name)):
        if (here := recipes.room_of(name)) != last:
            print(f"{'' if last is None else chr(10)}{here}")
            last = here
        info = recipes.info(name)
        print(f"  {name}  ({info.time})")
        for line in (info.paper, info.claim):
            text = textwrap.fill(line, 112, break_on_hyphens=False)
            print(textwrap.indent(text, " " * 6))
    return 0


def _show(name: str, out: Path | None) -> int:
    """The claims of the last run, as they were printed then."""
    recipes.room_of(name)
    found = [Path("runs") / f"{name}{size}" / "metrics.json" for size in ("", "-smoke", "-full")]
    found = [path for path in ([out / "metrics.json"] if out else found) if path.is_file()]
    if not found:
        raise ValueError(f"no run is written under {out or 'runs/'}; `physml run {name}` makes one")
    path = max(found, key=lambda path: path.stat().st_mtime)
    saved = json.loads(path.read_text())
    result = recipes.Result.from_dict(saved)
    _print(result)
    print(f"{_verdict(result)}; {saved['seconds']} s on {saved['device']}; from {path.parent}")
    return 0 if result.ok else 1


def _processes(rest: list[str]) -> tuple[int, list[str]]:
    """How many are asked for, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=1)
    known, others = parser.parse_known_args(rest)
    return known.processes, others


def _run(name: str, rest: list[str]) -> int:
    _keep_compiled_programs()
    processes, rest = _processes(rest)
    from physml.train import launch, start_processes

    if processes != 1:
        recipes.room_of(name)
        return launch(["-m", "physml", "run", name, *rest], processes)
    rank = start_processes()  # before the recipe is loaded, which may make arrays
    recipe = recipes.load_recipe(name)
    if rank > 0:
        # All processes compute; the first one tells.
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            tempfile.TemporaryDirectory() as out,
        ):
            return _run_here(name, recipe, [*rest, "--out", out, "--no-progress"])
    return _run_here(name, recipe, rest)


def _run_here(name: str, recipe: Any, rest: list[str]) -> int:
    sizes = [word for word in rest if word in ("--smoke", "--full")]
    size = sizes[0][2:] if sizes else "paper"
    if len(sizes) > 1 or not hasattr(recipe, size.upper()):
        several = "take one of --smoke and --full"
        raise ValueError(several if len(sizes) > 1 else "there is no larger run: leave --full out")
    options = _parse(name, recipe, size, [word for word in rest if word not in sizes])
    import jax

    try:
        key = jax.random.key(options.seed)
    except OverflowError:
        raise ValueError(f"--seed must fit into 64 bits, got {options.seed}") from None
    out = options.out or Path("runs") / (name if size == "paper" else f"{name}-{size}")
    new = not out.exists()
    try:
        # Before the run: a folder that cannot be written must not cost its results.
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError("it cannot be written to")
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror or error}") from None
    start = time.perf_counter()
    study = recipes.Study(name, progress=options.progress)
    try:
        result = recipe.run(options.config, key=key, study=study)
    except ValueError:
        if new:
            with contextlib.suppress(OSError):
                out.rmdir()  # if it is empty
        raise
    except KeyboardInterrupt:
        result, seconds = study.result(), time.perf_counter() - start
        _print(result)
        _write_numbers(options, result, seconds, out, complete=False)
        print(f"stopped after {len(result.claims)} claims; {seconds:.1f} s; written to {out}")
        return 130
    seconds = time.perf_counter() - start
    _print(result)
    _write_numbers(options, result, seconds, out, complete=True)
    _write_figure(recipe, result, out)
    print(f"{_verdict(result)}; {seconds:.1f} s; written to {out}")
    return 0 if result.ok else 1


def _print(result: recipes.Result) -> None:
    for claim in result.claims:
        print(claim)


def _verdict(result: recipes.Result) -> str:
    return "all claims hold" if result.ok else "A CLAIM FAILS"


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


def _write_numbers(options: Any, result: recipes.Result, seconds: float, out: Path, *, complete: bool) -> None:
    """config.json and metrics.json."""
    import jax

    config = dataclasses.asdict(options.config) | {"seed": options.seed}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    about = {"seconds": round(seconds, 2), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
    saved = result.as_dict() | about | {"complete": complete}
    (out / "metrics.json").write_text(json.dumps(saved, indent=2) + "\n")


def _write_figure(recipe: Any, result: recipes.Result, out: Path) -> None:
    """figure.png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure = recipe.plot(result)
    figure.savefig(out / "figure.png", dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def _keep_compiled_programs() -> None:
    """A second run of a recipe starts at once: compiled programs are kept between runs, in the user's cache folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "physml"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
