"""The documentation's Python blocks run, its links lead somewhere, and every room has an API page."""

import contextlib
import io
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ROOMS = sorted(page.stem for page in (DOCS / "api").glob("*.md") if page.stem != "index")


def blocks(name):
    found = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), flags=re.S)
    assert found
    return found


EXPECTED = {
    "quickstart.md": r"\(2, 10000, 2\) 0\.6\d+\n-0\.4\d+\n0\.8585\d* 0\.372\d*\n",
    "training.md": r"belongs to another run: batch_size was 64, is 32.*\n(.*\n)*\d+ .*(inf|nan) None\n",
    "errors.md": r"(?s)key=jax\.random\.key\(seed\).*negate the drift.*got 7.*got bool.*"
    r"\{'ok': 2, 'diverged': 1\}.*run 2: diverged at step.*"
    r"Status\(ok.*precision_limited.*not_converged, step=3",
    "compare.md": r"Estimate\(value=.*0\.7[45]\d*.* 0\.752\d*\nEstimate\(value=(.*\n)*Comparison\(n=200, runs=4\)\n",
    "extending.md": r"(?s)\d+\.\d+\n0\.858\d*\nEstimate\(value=.*\nholds  stationary variance",
    "performance.md": r"^$",
    "sampling.md": r"Stats\(2000 draws of 64 chains.*\nmean effect 4\.\d+ spread 3\.[5-7]\d*\n"
    r"round trips 0\.\d+ a move.*0\.8\d+\n",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_blocks_run_in_order(name, tmp_path, monkeypatch):
    space, printed = {"__name__": "__page__"}, io.StringIO()
    monkeypatch.setitem(sys.modules, "__page__", types.ModuleType("__page__"))  # where dataclasses look themselves up
    monkeypatch.chdir(tmp_path)
    # Readers have jax's default promotion rules.
    with (
        contextlib.redirect_stdout(printed),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        for block in blocks(name):
            exec(block, space)
    text = printed.getvalue()
    assert re.search(EXPECTED[name], text), text


@pytest.mark.slow
def test_blocks_for_several_devices_run_on_two():
    # Devices are counted when jax starts, so this page needs a process of its own.
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    program = "\n".join(blocks("pmap.md")) + "\nassert len(jax.devices()) == 2\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.M)
            slugs = {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}
            assert anchor in slugs, f"{page.name}: {target}"


def test_every_room_has_an_api_page_that_lists_it():
    rooms = sorted(path.parent.name for path in (ROOT / "physml").glob("*/__init__.py"))
    assert rooms == ROOMS
    for room in rooms:
        assert "<!-- every public name -->" in (DOCS / "api" / f"{room}.md").read_text()
