"""The verbs: what each one does, the dataclass that its flags are, and the function that does it with them.

`python -m dnamamba.VERB` and `dnamamba VERB` parse alike and end alike. Nothing is imported before it is needed: the
list needs the standard library, `--help` the settings, and the job torch.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from dnamamba.settings.parser import Parser


class Verb(NamedTuple):
    help: str
    """What `dnamamba --help` says about it"""
    settings: str
    """MODULE:CLASS below `dnamamba`"""
    job: str
    """MODULE:FUNCTION below `dnamamba`; takes the settings, raises `InputError`"""
    resumes: bool = False
    """Whether it has `--resume` and `--out`, a run folder that knows its settings"""


VERBS = {
    "pretrain": Verb(
        "train a language model on a genome (no arguments: a demo on E. coli)",
        "training.settings:PretrainSettings",
        "training.run:pretrain",
        resumes=True,
    ),
    "finetune": Verb(
        "train a classifier: species, sequences or variants",
        "finetuning.settings:FinetuneSettings",
        "finetuning.run:finetune",
        resumes=True,
    ),
    "predict": Verb(
        "class probabilities of a fine-tuned model on FASTA, BED, tables or VCF",
        "finetuning.settings:PredictSettings",
        "finetuning.apply:predict",
    ),
    "likelihood": Verb(
        "per-position likelihoods of a genome as bigWig tracks and tables",
        "analysis.likelihood.settings:LikelihoodSettings",
        "analysis.likelihood.job:run_likelihood",
    ),
    "score": Verb(
        "zero-shot scores of the variants of a VCF",
        "analysis.variants.score_settings:ScoreSettings",
        "analysis.variants.score_job:score",
    ),
    "mutagenesis": Verb(
        "all single-base changes of a region, as a matrix and a picture",
        "analysis.variants.mutagenesis_settings:MutagenesisSettings",
        "analysis.variants.mutagenesis:mutagenesis",
    ),
    "embed": Verb(
        "embeddings of regions or sequences",
        "analysis.embedding.settings:EmbedSettings",
        "analysis.embedding.job:embed",
    ),
    "generate": Verb(
        "sample sequences from a model",
        "analysis.generation.settings:GenerateSettings",
        "analysis.generation.job:run_generation",
    ),
    "export": Verb(
        "write a model for other programs, such as Hugging Face's transformers",
        "formats.export:ExportSettings",
        "formats.export:export",
    ),
    "browse": Verb(
        "a region as a page of a genome browser: likelihoods, variants, genes",
        "pages.settings:BrowseSettings",
        "pages.browse:browse",
    ),
    "report": Verb(
        "runs on one page: curves, data, results by class, comparisons",
        "pages.settings:ReportSettings",
        "pages.report:report",
    ),
    "info": Verb(
        "show what a checkpoint was trained on, and its metrics",
        "info:InfoSettings",
        "info:info",
    ),
    "models": Verb(
        "list the models that come with the package, and what they can do",
        "models:ModelsSettings",
        "models:models",
    ),
    "doctor": Verb(
        "show versions and devices, test and time the kernels, say what is missing; verify token stores",
        "doctor:DoctorSettings",
        "doctor:doctor",
    ),
    "completion": Verb(
        "print a script that completes verbs and flags: bash, zsh or fish",
        "completion:CompletionSettings",
        "completion:completion",
    ),
}


def parser(verb: str) -> "Parser[Any]":
    """The command line of a verb: every field of its settings is a flag, its docstring the help."""
    from dnamamba.settings.parser import Parser

    return Parser(f"python -m dnamamba.{verb}", _named(VERBS[verb].settings))


def main(verb: str) -> Callable[[list[str] | None], None]:
    """`main(arguments)` of a verb: parses them (None: `sys.argv[1:]`) and does the work. Raises `InputError`."""

    def parse_and_do(arguments: list[str] | None = None) -> None:
        flags = parser(verb)
        settings = flags.parse(arguments)
        if VERBS[verb].resumes and settings.resume:
            from dnamamba.runs.resume import with_stored_settings

            settings = with_stored_settings(flags, settings.out, arguments)
        _named(VERBS[verb].job)(settings)

    return parse_and_do


class _Callable(ModuleType):
    """A module of a verb that is a function too: `dnamamba.pretrain(…)` from Python, see `dnamamba.api.runs`."""

    def __call__(self, **settings: Any) -> Any:
        from dnamamba.api import runs

        return getattr(runs, self.__name__.rpartition(".")[2])(**settings)


def make_callable(module: str) -> None:
    """Lets an imported module of a verb be called."""
    sys.modules[module].__class__ = _Callable


def run(verb_main: Callable[[list[str] | None], None]) -> NoReturn:
    """What a module of a verb ends in when it is the program."""
    from dnamamba import cli

    sys.exit(cli.run(verb_main))


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"dnamamba.{module}"), name)
