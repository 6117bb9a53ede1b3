"""`python -m dnamamba.mutagenesis`: all single-base changes of a region, as a matrix and a picture."""

import sys
from pathlib import Path

from dnamamba import cli
from dnamamba.analysis.variants.mutagenesis_settings import MutagenesisSettings

_LISTS = {"genome": Path, "format": str}
_SWITCHES = ("overwrite",)


def build_parser() -> cli.Parser:
    """The command line: every field of `MutagenesisSettings` is a flag, its docstring the help."""
    return cli.settings_parser("python -m dnamamba.mutagenesis", MutagenesisSettings, lists=_LISTS, switches=_SWITCHES)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and computes."""
    parsed = build_parser().parse_args(arguments)
    settings = cli.settings_of(parsed, MutagenesisSettings)

    from dnamamba.analysis.variants.mutagenesis import mutagenesis  # torch: seconds that --help need not wait for

    mutagenesis(settings)


if __name__ == "__main__":
    sys.exit(cli.run(main))
