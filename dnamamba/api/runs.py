"""Training from Python: the settings of the command line as keyword arguments, a `Run` as the result."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dnamamba.errors import InputError
from dnamamba.runs.folder import RunFolder
from dnamamba.runs.resume import stored_values
from dnamamba.settings.fields import flat, plain
from dnamamba.settings.parser import Parser
from dnamamba.tables import read_table

if TYPE_CHECKING:
    import polars

    from dnamamba.api.model import Model

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder: what a training left."""

    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: the result; of a run that was stopped, how far it came, with `finished` False.

        Raises `InputError` where a run has left neither.
        """
        found = RunFolder(self.folder).read_summary()
        if found is None:
            raise InputError(f"{self.folder}: not finished, there is no summary.json; continue with resume=True")
        return found

    @property
    def metrics(self) -> "polars.DataFrame":
        """metrics.csv: loss, bits per base and speed by step, or dev metrics by epoch."""
        return read_table(self.folder / "metrics.csv")

    def model(self, **options: Any) -> "Model":
        """The best checkpoint by validation, as `dnamamba.load` gives it."""
        from dnamamba.api.model import load

        return load(self.folder, **options)


def pretrain(**settings: Any) -> Run:
    """Trains a language model: `dnamamba.pretrain(genome="hg38.fa", length=8192, out="runs/hg38")`.

    Takes the flags of `python -m dnamamba.pretrain --help` by name, those of the model as a dictionary,
    `model={"preset": "1.4m"}`. Without arguments it trains on the bundled E. coli. Raises `InputError`.
    """
    from dnamamba.training.run import pretrain as train
    from dnamamba.training.settings import PretrainSettings

    return _run("pretrain", PretrainSettings, train, settings)


def finetune(**settings: Any) -> Run:
    """Trains a classifier: `dnamamba.finetune(task="sequences", data="gue/prom", checkpoint="runs/hg38")`.

    Takes the flags of `python -m dnamamba.finetune --help` by name. Raises `InputError`.
    """
    from dnamamba.finetuning.run import finetune as train
    from dnamamba.finetuning.settings import FinetuneSettings

    return _run("finetune", FinetuneSettings, train, settings)


def _run(verb: str, kind: type[T], train: Callable[[T], Path], values: dict[str, Any]) -> Run:
    """Checked and converted as the values of a file of `--config`, then the verb's own job."""
    name = f"dnamamba.{verb}"
    parser, where = Parser(name, kind), Path(f"{name}()")
    given = flat({key: plain(value) for key, value in values.items() if value is not None}, parser.names)
    if given.get("resume"):
        given = stored_values(parser, parser.parse([], stored=(where, given)).out)[1] | given  # type: ignore[attr-defined]
    return Run(train(parser.parse([], stored=(where, given))))
