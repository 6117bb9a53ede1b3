"""Training from Python: the settings of the command line as keyword arguments, a `Run` as the result."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnamamba.errors import InputError
from dnamamba.runs.resume import parse_run

if TYPE_CHECKING:
    import polars

    from dnamamba.api.model import Model


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder: what a training left."""

    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: the result. Raises `InputError` for a run that is not finished."""
        path = self.folder / "summary.json"
        if not path.is_file():
            raise InputError(f"{self.folder}: not finished, there is no summary.json; go on with resume=True")
        return json.loads(path.read_text("utf-8"))

    @property
    def metrics(self) -> "polars.DataFrame":
        """metrics.csv: loss, bits per base and speed by step, or dev metrics by epoch."""
        import polars

        return polars.read_csv(self.folder / "metrics.csv")

    def model(self, **options: Any) -> "Model":
        """The best checkpoint by validation, as `dnamamba.load` gives it."""
        from dnamamba.api.model import load

        return load(self.folder, **options)


def pretrain(**settings: Any) -> Run:
    """Trains a language model: `dnamamba.pretrain(genome="hg38.fa", length=8192, out="runs/hg38")`.

    Takes the flags of `python -m dnamamba.pretrain --help` by name, those of the model as a dictionary,
    `model={"preset": "1.4m"}`. Without arguments it trains on the bundled E. coli. Raises `InputError`.
    """
    from dnamamba.pretrain import build_parser
    from dnamamba.training.run import pretrain as train
    from dnamamba.training.settings import PretrainSettings

    return Run(train(parse_run(build_parser(), PretrainSettings, flags_of(settings, PretrainSettings))))


def finetune(**settings: Any) -> Run:
    """Trains a classifier: `dnamamba.finetune(task="sequences", data="gue/prom", checkpoint="runs/hg38")`.

    Takes the flags of `python -m dnamamba.finetune --help` by name. Raises `InputError`.
    """
    from dnamamba.finetune import build_parser
    from dnamamba.finetuning.run import finetune as train
    from dnamamba.finetuning.settings import FinetuneSettings

    return Run(train(parse_run(build_parser(), FinetuneSettings, flags_of(settings, FinetuneSettings))))


def flags_of(values: Mapping[str, Any], settings: type) -> list[str]:
    """Python values as the command line takes them; None leaves a flag out. So both are checked by the same parser."""
    switches = {field.name for field in dataclasses.fields(settings) if field.default is False}
    flags: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flags += [f"--{name}.{key}={_text(part)}" for key, part in value.items() if part is not None]
        elif name in switches and isinstance(value, bool):
            flags += [f"--{name}"] if value else []
        elif isinstance(value, list | tuple):
            flags += [f"--{name}", *map(_text, value)]
        elif value is not None:
            flags.append(f"--{name}={_text(value)}")
    return flags


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
