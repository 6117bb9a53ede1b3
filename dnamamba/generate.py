"""`python -m dnamamba.generate`: sequences sampled from a pretrained model."""

import sys

from dnamamba import cli
from dnamamba.analysis.generation.settings import GenerateSettings

_SWITCHES = ("with_prompt", "overwrite")


def build_parser() -> cli.Parser:
    """The command line: every field of `GenerateSettings` is a flag, its docstring the help."""
    return cli.settings_parser("python -m dnamamba.generate", GenerateSettings, lists={}, switches=_SWITCHES)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and samples."""
    parsed = build_parser().parse_args(arguments)
    settings = cli.settings_of(parsed, GenerateSettings)

    from dnamamba.analysis.generation.job import run_generation  # torch: seconds that --help need not wait for

    run_generation(settings)


if __name__ == "__main__":
    sys.exit(cli.run(main))
