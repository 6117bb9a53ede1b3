"""`python -m dnamamba.finetune`: train a classifier on a pretrained model, or from scratch to compare with."""

import sys
from dataclasses import fields
from pathlib import Path

from jsonargparse import Namespace

from dnamamba import cli
from dnamamba.finetuning.settings import FinetuneSettings
from dnamamba.training.settings import ModelSettings

_LISTS = {"genome": Path, "effects": str, "label_columns": str, "learning_rate": float, "conjoin": str}
_SWITCHES = ("refuse_overlap", "intervals_by_name", "resume", "dry_run")


def build_parser() -> cli.Parser:
    """The command line: every field of `FinetuneSettings` is a flag, its docstring the help."""
    return cli.settings_parser("python -m dnamamba.finetune", FinetuneSettings, lists=_LISTS, switches=_SWITCHES)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and trains. A resumed run takes its settings from its own folder; flags given now win."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    parsed = parser.parse_args(given)
    if parsed.resume:
        from dnamamba.training.resume import stored_config

        parsed = parser.parse_args([f"--config={stored_config(parsed.out)}", *given])
    settings = _settings(parsed)

    from dnamamba.finetuning.run import finetune  # torch: seconds that --help need not wait for

    finetune(settings)


def _settings(parsed: Namespace) -> FinetuneSettings:
    values = {field.name: parsed.get(field.name) for field in fields(FinetuneSettings)}
    values["model"] = ModelSettings(**parsed.model.as_dict())
    return FinetuneSettings(**values)


if __name__ == "__main__":
    sys.exit(cli.run(main))
