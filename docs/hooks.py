"""What is generated when the site is built: lists of public names, tables read from the code, formulas as MathML.

MathML is drawn by the browser itself: pages need no script and no network.
"""

import ast
import html
import re
from pathlib import Path

from latex2mathml.converter import convert

MARK = "<!-- every public name -->"
DOCSTRING_ONLY = (
    "    options: {members: false, show_root_heading: false, show_root_toc_entry: false, show_source: false}"
)


def on_page_markdown(markdown, page, config, files):
    package = Path(config.config_file_path).parent / "physml"
    if MARK in markdown:
        markdown = markdown.replace(MARK, listing(package, Path(page.file.src_uri).stem))
    return re.sub(r"<!-- table: (\w+) -->", lambda mark: TABLES[mark[1]](package), markdown)


# ---- formulas

# What the converter does not know, in words that it does; sizes of brackets follow from what they enclose.
_SPELLED = {
    r"\\[Bb]igg?[lr]?\s*(?=\\(langle|rangle|lvert|rvert|lVert|rVert))": "",
    r"\\[Bb]igg?[lr]?\s*\\([{}|])": r"\\\1",
    r"\\operatorname\*": r"\\operatorname",
    r"\\arg\b": r"\\operatorname{arg}",
    r"\\_": "-",
    r"\\\n": r"\\, ",
}


def on_page_content(content, page, config, files):
    """Formulas as MathML; a `ValueError` names one that the converter does not understand."""

    def formula(found):
        latex = html.unescape(found[2]).strip()
        for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
            if latex.startswith(opening):
                latex = latex[len(opening) : -len(closing)]
        for pattern, words in _SPELLED.items():
            latex = re.sub(pattern, words, latex)
        mathml = convert(latex, display="block" if found[1] == "div" else "inline")
        if "\\" in mathml:
            raise ValueError(f"{page.file.src_uri}: no MathML for {latex!r}")
        return mathml

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', formula, content, flags=re.S)


# ---- tables


def _strings(path: Path, name: str) -> dict[str, str]:
    """The words given to the call that a module binds to `name`: literals of its source."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == [name]:
            return {word.arg: ast.literal_eval(word.value) for word in node.value.keywords}
    return {}


def recipes(package: Path) -> str:
    """Every recipe by room: paper, claim, time."""
    lines = []
    for room in sorted(path for path in (package / "recipes").iterdir() if (path / "__init__.py").is_file()):
        lines += [f"### {room.name}", "", "| recipe | paper | what is checked | time |", "|---|---|---|---|"]
        for path in sorted(room.glob("[!_]*.py")):
            info = _strings(path, "INFO")
            lines.append(f"| [`{path.stem}`](#{path.stem}) | {info['paper']} | {info['claim']} | {info['time']} |")
        lines.append("")
    return "\n".join(lines)


def codes(package: Path) -> str:
    """Every status code with its reason, from `physml.core`."""
    tree = ast.parse((package / "core" / "_status.py").read_text())
    values, reasons = {}, {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Code":
            values = {part.targets[0].id: part.value.value for part in node.body if isinstance(part, ast.Assign)}
        if isinstance(node, ast.Assign) and node.targets[0].id == "_REASON":
            reasons = {key.attr: text.value for key, text in zip(node.value.keys, node.value.values, strict=True)}
    rows = [f"| {value} | `{name}` | {reasons.get(name, 'success')} |" for name, value in values.items()]
    return "\n".join(["| code | name | meaning |", "|---|---|---|", *rows])


TABLES = {"recipes": recipes, "codes": codes}


# ---- public names


def listing(package: Path, room: str) -> str:
    """mkdocstrings' directives for a room, one section for each of its modules."""
    lines = []
    for module, names in public(package / room / "__init__.py").items():
        tree = ast.parse((package / Path(*module.split(".")[1:])).with_suffix(".py").read_text())
        with_init = {
            node.name
            for node in tree.body
            if isinstance(node, ast.ClassDef) and any(getattr(part, "name", "") == "__init__" for part in node.body)
        }
        lines += [f"## {module.split('.')[-1].strip('_')}", f"::: {module}\n{DOCSTRING_ONLY}"]
        for name in names:
            # A class that has a constructor shows its signature, any other its fields in the source.
            options = "\n    options: {merge_init_into_class: true}" if name in with_init else ""
            lines.append(f"::: {module}.{name}{options}")
    return "\n\n".join(lines)


def public(init: Path) -> dict[str, list[str]]:
    """The modules that a room exports from, each with its names (`X as X`), in the order of the room."""
    root = next(parent for parent in init.parents if parent.name == "physml").parent
    found: dict[str, list[str]] = {}
    for node in ast.parse(init.read_text()).body:
        if not (isinstance(node, ast.ImportFrom) and node.module):
            continue
        place = root / Path(*node.module.split("."))
        for name in [alias.name for alias in node.names if alias.asname]:
            if (place / name / "__init__.py").is_file():  # a package, whose names are exported as they are
                found |= public(place / name / "__init__.py")
            elif (place / f"{name}.py").is_file():  # a module
                functions = [n for n in ast.parse((place / f"{name}.py").read_text()).body if isinstance(n, _NAMED)]
                found[f"{node.module}.{name}"] = [f.name for f in functions if not f.name.startswith("_")]
            else:
                found.setdefault(node.module, []).append(name)
    return found


_NAMED = (ast.FunctionDef, ast.ClassDef)
