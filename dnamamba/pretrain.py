"""`python -m dnamamba.pretrain`: train a Mamba language model on a genome to predict the next base.

Without arguments it trains a small model on the bundled E. coli genome.
"""

import sys
from dataclasses import fields
from pathlib import Path

from jsonargparse import Namespace

from dnamamba import cli
from dnamamba.training.settings import ModelSettings, PretrainSettings

_LISTS = {"genome": Path, "exclude": Path, "contigs": str, "train": str, "validation": str, "test": str}
_SWITCHES = ("verify", "pack", "dry_run", "profile", "resume")


def build_parser() -> cli.Parser:
    """The command line: every field of `PretrainSettings` is a flag, its docstring the help."""
    return cli.settings_parser("python -m dnamamba.pretrain", PretrainSettings, lists=_LISTS, switches=_SWITCHES)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and trains. A resumed run takes its settings from its own folder; flags given now win."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    parsed = parser.parse_args(given)
    if parsed.resume:
        from dnamamba.training.resume import stored_config

        parsed = parser.parse_args([f"--config={stored_config(parsed.out)}", *given])
    settings = _settings(parsed)

    from dnamamba.training.run import pretrain  # torch and Lightning: seconds that --help need not wait for

    pretrain(settings)


def _settings(parsed: Namespace) -> PretrainSettings:
    values = {field.name: parsed.get(field.name) for field in fields(PretrainSettings)}
    values["model"] = ModelSettings(**parsed.model.as_dict())
    return PretrainSettings(**values)


if __name__ == "__main__":
    sys.exit(cli.run(main))
