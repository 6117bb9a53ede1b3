"""Training from Python: the settings of the command line as keyword arguments, a `Run` as the result."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnamamba import verbs
from dnamamba.errors import InputError
from dnamamba.runs.resume import stored_values
from dnamamba.settings.fields import flat, plain

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
    return _run("pretrain", settings)


def finetune(**settings: Any) -> Run:
    """Trains a classifier: `dnamamba.finetune(task="sequences", data="gue/prom", checkpoint="runs/hg38")`.

    Takes the flags of `python -m dnamamba.finetune --help` by name. Raises `InputError`.
    """
    return _run("finetune", settings)


def _run(verb: str, values: dict[str, Any]) -> Run:
    """Checked and converted as the values of a file of `--config`, then the verb's own job."""
    parser, where = verbs.parser(verb), Path(f"dnamamba.{verb}()")
    given = flat({name: plain(value) for name, value in values.items() if value is not None}, parser.names)
    settings = parser.parse([], stored=(where, given))
    if settings.resume:
        settings = parser.parse([], stored=(where, stored_values(parser, settings.out)[1] | given))
    return Run(verbs.job(verb)(settings))
