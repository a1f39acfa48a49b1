"""API pages list every public name of their room, read from its `__init__.py` when the site is built."""

import ast
from pathlib import Path

MARK = "<!-- every public name -->"
DOCSTRING_ONLY = (
    "    options: {members: false, show_root_heading: false, show_root_toc_entry: false, show_source: false}"
)


def on_page_markdown(markdown, page, config, files):
    if MARK not in markdown:
        return None
    return markdown.replace(
        MARK, listing(Path(config.config_file_path).parent / "physml", Path(page.file.src_uri).stem)
    )


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
    """The modules that a room exports from, each with its names (`X as X`)."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [alias.name for alias in node.names if alias.asname]
            # `from physml.core import noise as noise` exports a module, `from physml.hopfield import theory as theory`
            # the names of a package.
            inside = init.parent / f"{names[0]}.py" if names else init
            if node.module.count(".") == 1 and inside.is_file() and names:
                functions = [n for n in ast.parse(inside.read_text()).body if isinstance(n, ast.FunctionDef)]
                module = f"{node.module}.{names[0]}"
                found[module] = [f.name for f in functions if not f.name.startswith("_")]
            elif names and (init.parent / names[0] / "__init__.py").is_file():
                found |= public(init.parent / names[0] / "__init__.py")
            elif names:
                found.setdefault(node.module, []).extend(names)
    return found
