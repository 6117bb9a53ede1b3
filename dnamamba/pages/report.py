"""The job behind `python -m dnamamba.report`: what each path is, its part of the page, and what compares them."""

import os
from pathlib import Path

from dnamamba.errors import InputError
from dnamamba.genome.vcf import is_vcf_name
from dnamamba.outputs import TABLES, refuse_existing, write_atomically
from dnamamba.pages import finetuning, pretraining, scores
from dnamamba.pages.finetuning import Finetuning
from dnamamba.pages.html import page, refuse_other_names, text
from dnamamba.pages.pretraining import Pretraining
from dnamamba.pages.scores import ScoreTable
from dnamamba.pages.settings import ReportSettings
from dnamamba.runs.folder import RunFolder
from dnamamba.settings.yaml_files import read_yaml

_STYLE = "body { max-width: 1300px; }"


def report(settings: ReportSettings) -> None:
    """Writes the page. Raises `InputError` for whatever the user can fix."""
    if not settings.runs:
        raise InputError("give run folders, or files of scored variants")
    refuse_other_names(settings.out)
    refuse_existing([settings.out], settings.overwrite)
    found = [_opened(path, name) for path, name in zip(settings.runs, names(settings.runs), strict=True)]
    html = report_page(found)
    write_atomically(settings.out, html)
    print(f"{settings.out}: {len(found)} {'runs' if len(found) > 1 else 'run'}, {len(html) / 1e6:.1f} MB")


def names(paths: list[Path]) -> list[str]:
    """What to call each: the last part of its path, or as many as it takes to be its own. `InputError` for one that is
    there twice."""
    whole = [Path(os.path.abspath(path)) for path in paths]
    for path in whole:
        if whole.count(path) > 1:
            raise InputError(f"{path}: is there twice; give each run once")
    depth = 1
    while len({path.parts[-depth:] for path in whole}) < len(whole):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in whole]


def report_page(found: list[Pretraining | Finetuning | ScoreTable]) -> str:
    """The HTML of runs and scores, in their order, comparisons first."""
    pretrainings = [each for each in found if isinstance(each, Pretraining)]
    finetunings = [each for each in found if isinstance(each, Finetuning)]
    tables = [each for each in found if isinstance(each, ScoreTable)]
    title = ", ".join(each.name for each in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    parts = [f"<h1>{text(title) if len(found) > 1 else 'Report'}</h1>"]
    parts += [pretraining.comparison(pretrainings), finetuning.comparison(finetunings), scores.comparison(tables)]
    for each in found:
        if isinstance(each, Pretraining):
            parts.append(pretraining.pretraining_section(each))
        elif isinstance(each, Finetuning):
            parts.append(finetuning.finetuning_section(each))
        else:
            parts.append(scores.scores_section(each))
    parts.append(
        "<footer>Made by dnamamba from the files of the runs. The page needs no script and no network.</footer>"
    )
    return page(title, "\n".join(part for part in parts if part), style=_STYLE)


def _opened(path: Path, name: str) -> Pretraining | Finetuning | ScoreTable:
    if path.is_dir():
        config = RunFolder(path).config
        if not config.is_file():
            raise InputError(
                f"{path}: is no run folder (config.yaml is missing); expected what pretrain or finetune wrote"
            )
        settings = read_yaml(config)
        if not isinstance(settings, dict):
            raise InputError(f"{config}: not the settings of a run; expected what pretrain or finetune wrote")
        return Finetuning(path, name) if "task" in settings else Pretraining(path, name, settings)
    if not path.exists():
        raise InputError(f"{path}: no such run folder or file")
    if is_vcf_name(path) or path.suffix in TABLES:
        return ScoreTable(path, name)
    raise InputError(f"{path}: is no run folder and no file of scores; expected .vcf, .vcf.gz, {', '.join(TABLES)}")
