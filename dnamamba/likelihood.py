"""`python -m dnamamba.likelihood`: per-position likelihoods of a genome as tracks and tables."""

import sys
from pathlib import Path

from dnamamba import cli
from dnamamba.analysis.likelihood.settings import LikelihoodSettings

_LISTS = {"genome": Path, "region": str, "contigs": str, "format": str, "tracks": str, "strands": str}
_SWITCHES = ("overwrite",)


def build_parser() -> cli.Parser:
    """The command line: every field of `LikelihoodSettings` is a flag, its docstring the help."""
    return cli.settings_parser("python -m dnamamba.likelihood", LikelihoodSettings, lists=_LISTS, switches=_SWITCHES)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and computes."""
    parsed = build_parser().parse_args(arguments)
    settings = cli.settings_of(parsed, LikelihoodSettings)

    from dnamamba.analysis.likelihood.job import run_likelihood  # torch: seconds that --help need not wait for

    run_likelihood(settings)


if __name__ == "__main__":
    sys.exit(cli.run(main))
