"""`python -m dnamamba.score`: zero-shot scores for every alternate allele of a VCF."""

import sys
from pathlib import Path

from dnamamba import cli
from dnamamba.analysis.variants.score_settings import ScoreSettings

_LISTS = {"genome": Path}
_SWITCHES = ("exact", "embedding_distance", "overwrite")


def build_parser() -> cli.Parser:
    """The command line: every field of `ScoreSettings` is a flag, its docstring the help."""
    return cli.settings_parser("python -m dnamamba.score", ScoreSettings, lists=_LISTS, switches=_SWITCHES)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and scores."""
    parsed = build_parser().parse_args(arguments)
    settings = cli.settings_of(parsed, ScoreSettings)

    from dnamamba.analysis.variants.score_job import score  # torch: seconds that --help need not wait for

    score(settings)


if __name__ == "__main__":
    sys.exit(cli.run(main))
