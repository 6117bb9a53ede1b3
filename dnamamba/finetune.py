"""`python -m dnamamba.finetune`: train a classifier on a pretrained model, or from scratch to compare with."""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dnamamba import cli
from dnamamba.finetuning.settings import FinetuneSettings
from dnamamba.runs.resume import parse_run

if TYPE_CHECKING:
    from dnamamba.api.runs import Run

_LISTS = {"genome": Path, "effects": str, "label_columns": str, "learning_rate": float, "conjoin": str}
_SWITCHES = ("refuse_overlap", "intervals_by_name", "resume", "dry_run")


def build_parser() -> cli.Parser:
    """The command line: every field of `FinetuneSettings` is a flag, its docstring the help."""
    return cli.settings_parser("python -m dnamamba.finetune", FinetuneSettings, lists=_LISTS, switches=_SWITCHES)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and trains. A resumed run takes its settings from its own folder; flags given now win."""
    settings = parse_run(build_parser(), FinetuneSettings, arguments)

    from dnamamba.finetuning.run import finetune  # torch: seconds that --help need not wait for

    finetune(settings)


class _Callable(ModuleType):
    """This module when it is called: `dnamamba.finetune(…)`, see `dnamamba.api.runs.finetune`."""

    def __call__(self, **settings: Any) -> "Run":
        from dnamamba.api.runs import finetune

        return finetune(**settings)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(cli.run(main))
