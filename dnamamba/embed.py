"""`python -m dnamamba.embed`: embeddings of regions or sequences."""

import sys
from pathlib import Path

from dnamamba import cli
from dnamamba.analysis.embedding.settings import EmbedSettings

_LISTS = {"input": Path, "genome": Path}
_SWITCHES = ("both_strands", "overwrite")


def build_parser() -> cli.Parser:
    """The command line: every field of `EmbedSettings` is a flag, its docstring the help."""
    return cli.settings_parser("python -m dnamamba.embed", EmbedSettings, lists=_LISTS, switches=_SWITCHES)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and embeds."""
    parsed = build_parser().parse_args(arguments)
    settings = cli.settings_of(parsed, EmbedSettings)

    from dnamamba.analysis.embedding.job import embed  # torch: seconds that --help need not wait for

    embed(settings)


if __name__ == "__main__":
    sys.exit(cli.run(main))
