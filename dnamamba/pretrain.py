"""`python -m dnamamba.pretrain`: train a Mamba language model on a genome to predict the next base.

Without arguments it trains a small model on the bundled E. coli genome.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dnamamba import cli
from dnamamba.runs.resume import parse_run
from dnamamba.training.settings import PretrainSettings

if TYPE_CHECKING:
    from dnamamba.api.runs import Run

_LISTS = {"genome": Path, "exclude": Path, "contigs": str, "train": str, "validation": str, "test": str}
_SWITCHES = ("verify", "pack", "dry_run", "profile", "resume")


def build_parser() -> cli.Parser:
    """The command line: every field of `PretrainSettings` is a flag, its docstring the help."""
    return cli.settings_parser("python -m dnamamba.pretrain", PretrainSettings, lists=_LISTS, switches=_SWITCHES)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and trains. A resumed run takes its settings from its own folder; flags given now win."""
    settings = parse_run(build_parser(), PretrainSettings, arguments)

    from dnamamba.training.run import pretrain  # torch and Lightning: seconds that --help need not wait for

    pretrain(settings)


class _Callable(ModuleType):
    """This module when it is called: `dnamamba.pretrain(…)`, see `dnamamba.api.runs.pretrain`."""

    def __call__(self, **settings: Any) -> "Run":
        from dnamamba.api.runs import pretrain

        return pretrain(**settings)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(cli.run(main))
