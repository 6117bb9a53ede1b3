"""What is a page of the documentation site; a hook of mkdocs.

A document is a page where it lies in the repository, and so is every document that one links to: its relative links
mean the same on the site. A notebook is a page with its pictures, any other file is copied. The flags of all verbs are
written as they are.
"""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from dnamamba import verbs

LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
FLAGS = "docs/flags.md"
"""Made here: what `--help` says of every verb"""


class NotebookPage(File):
    """A notebook's name, with a page's content."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs with what lies in docs/ and what belongs to the theme."""
    root = Path(config.config_file_path).parent
    found = {FLAGS: File.generated(config, FLAGS, content=flags())}
    waiting = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(root).as_posix()
        if name in found:
            continue
        if path.suffix == ".ipynb":
            content, pictures = notebook(path)
            found[name] = NotebookPage.generated(config, name, content=content)
            for picture, data in pictures.items():
                found[picture] = File.generated(config, f"{path.parent.name}/{picture}", content=data)
        else:
            found[name] = File.generated(config, name, abs_src_path=str(path))
            waiting += targets(path, root) if path.suffix == ".md" else []
    return Files([*found.values(), *(file for file in files if file.src_dir != config.docs_dir)])


def targets(document: Path, root: Path) -> list[Path]:
    """The files of the repository that a document links to."""
    links = (unquote(link) for link in LINK.findall(document.read_text(encoding="utf-8")))
    paths = ((document.parent / link).resolve() for link in links if "://" not in link)
    return [path for path in paths if path.is_file() and path.is_relative_to(root)]


def flags() -> str:
    """Every verb with its flags, units and defaults, from the docstrings of its settings."""
    parts = ["# Flags\nWhat `python -m dnamamba.VERB --help` prints. A YAML file of `--config` takes the same names.\n"]
    for verb, what in verbs.VERBS.items():
        parser = verbs.parser(verb)
        parts.append(f"## {verb}\n{_plain(what.help[0].upper() + what.help[1:])}. {_plain(parser.description or '')}\n")
        for action in parser._actions[1:]:  # the first is --help
            name = " ".join([*action.option_strings, action.metavar or ""] if action.option_strings else [action.dest])
            parts.append(f"- `{name.strip()}` {_plain((action.help or '').replace('%%', '%'))}")
        parts.append("")
    return "\n".join(parts)


def _plain(text: str) -> str:
    """Text in one line, in which no sign is Markdown's."""
    return re.sub(r"([*_`<\[])", r"\\\1", " ".join(text.split()))


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by their file names."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for data in _outputs(cell):
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![{name}]({name})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain'])}\n```")
    return "\n\n".join(parts), pictures


def _outputs(cell: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (output["data"] for output in cell.get("outputs", ()) if "data" in output)
