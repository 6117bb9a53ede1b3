"""One HTML file that needs nothing else: texts, styles, scripts and data in it, and no network.

What files hold (names of contigs, genes, variants, runs) goes through `text` or `as_data`. A content security policy
says it again to the browser: it runs the scripts that the page was written with, by their hashes, and loads nothing. So
even a name that got into the page unescaped could neither run nor send anything.
"""

import base64
import hashlib
import html
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dnamamba import __version__
from dnamamba.errors import InputError, printable

LARGEST_SVG = 300_000
"""Bytes of a picture that stays SVG"""
NONE = "'none'"
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 1.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; } h3 { font-size: 1rem; }
p { margin: .4rem 0; max-width: 60rem; } .muted { color: #595959; }
code, pre { font: 13px/1.4 ui-monospace, monospace; background: #f4f4f4; border-radius: 3px; }
code { padding: .1em .3em; overflow-wrap: anywhere; }
pre { padding: .6em .8em; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
th { font-weight: 600; } td.number, th.number { text-align: right; }
figure { margin: .8rem 0; } figure img, figure svg { max-width: 100%; height: auto; }
figcaption { color: #595959; max-width: 60rem; }
a { color: #0b57d0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0; }
dt { color: #595959; } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 2.5rem; color: #595959; font-size: 13px; }
@media print { body { margin: 0; max-width: none; font-size: 12px; } code, pre { font-size: 10px; }
  h2, h3, figure, table { break-inside: avoid; } h2, h3, p:has(+ table), p:has(+ pre) { break-after: avoid; }
  figure img { max-height: 10cm; } }
"""


def refuse_other_names(out: Path) -> None:
    """Raises `InputError` for a page whose name does not say that it is one."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out: {out} is no name of a page; expected one that ends in .html")


def text(value: object) -> str:
    """Text from outside as HTML shows it, in elements and in quoted attributes; control characters are written out."""
    return html.escape(printable(str(value)))


def as_data(name: str, value: Any) -> str:
    """An element that scripts read by its id: JSON, in which nothing can end the element."""
    found = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        found = found.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="{name}">{found}</script>'


def data_uri(data: bytes, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def page(title: str, body: str, *, style: str = "", scripts: Sequence[str] = ()) -> str:
    """A whole HTML file.

    Args:
        title: plain text.
        body: HTML.
        style: CSS, added to `STYLE`.
        scripts: our own, run in order behind the body; none may hold `</script`.
    """
    assert not any("</script" in script.lower() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; script-src {hashes or NONE}; style-src 'unsafe-inline'; img-src data: blob:"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="generator" content="dnamamba {__version__}">',
            f"<title>{text(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>",
            body,
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of plain values; columns whose first cell is a number, or looks like one, are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    right = [bool(re.match(r"[−+-]?[\d,.]+( |$|%)", cell)) for cell in cells[0]]

    def line(kind: str, values: Sequence[str]) -> str:
        marked = [' class="number"' if is_right else "" for is_right in right]
        return "".join(f"<{kind}{mark}>{text(value)}</{kind}>" for mark, value in zip(marked, values, strict=True))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in cells)
    return f"<table><thead><tr>{line('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def labelled(lines: Iterable[tuple[str, str]]) -> str:
    """Label and text a line, as `dnamamba info` prints them."""
    rows = "".join(f"<dt>{text(label)}</dt><dd>{text(value)}</dd>" for label, value in lines if value)
    return f"<dl>{rows}</dl>" if rows else ""


def figure(draw: Callable[[Path], None], caption: str) -> str:
    """A picture that `draw` makes at a path it is given: as SVG, sharp in print; as PNG where that would be large."""
    with tempfile.TemporaryDirectory() as folder:
        path, kind = Path(folder) / "figure.svg", "image/svg+xml"
        draw(path)
        if path.stat().st_size > LARGEST_SVG:
            path, kind = path.with_suffix(".png"), "image/png"
            draw(path)
        data = path.read_bytes()
    shown = text(caption)
    return f'<figure><img src="{data_uri(data, kind)}" alt="{shown}"><figcaption>{shown}</figcaption></figure>'
