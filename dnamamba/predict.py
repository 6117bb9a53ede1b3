"""`python -m dnamamba.predict`: class probabilities of a fine-tuned model on FASTA, BED or tables."""

import sys
from pathlib import Path

from dnamamba import cli
from dnamamba.finetuning.settings import PredictSettings

_LISTS = {"input": Path, "genome": Path}
_SWITCHES = ("overwrite",)


def build_parser() -> cli.Parser:
    """The command line: every field of `PredictSettings` is a flag, its docstring the help."""
    return cli.settings_parser("python -m dnamamba.predict", PredictSettings, lists=_LISTS, switches=_SWITCHES)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and predicts."""
    parsed = build_parser().parse_args(arguments)
    settings = cli.settings_of(parsed, PredictSettings)

    from dnamamba.finetuning.apply import predict  # torch: seconds that --help need not wait for

    predict(settings)


if __name__ == "__main__":
    sys.exit(cli.run(main))
