"""What a workflow consists of: from its YAML file to runs, each a command with the runs that it needs.

Two runners read it: `Snakefile` (resumable, on this machine or a cluster) and `show_classification.py` (several small
runs a GPU within a time budget, where there is no Snakemake). The YAML's keys:

    out: runs/distant            # the folder for everything
    splits:                      # flags of make_species_splits.py, `species` being its table; or a folder that it made
      species: species.tsv
    pretrain: {length: 8192}     # flags of `python -m dnamamba.pretrain`; with splits, --mixture is theirs
    checkpoint: DIR              # a pretrained model in place of `pretrain`
    from_scratch: true           # train every task also without pretraining
    simple_models: true          # k-mer regression, composition and a dilated CNN on the same examples
    finetune: {task: species}    # flags of `python -m dnamamba.finetune`; with splits, --species is theirs
    scratch: {}                  # flags that differ when training from scratch
    lengths: [256, 1024]         # one fine-tuning each, with --length
    by_length: {1024: {epochs: 5}}
    data: [gue/*]                # or: one fine-tuning a folder that matches, with --data
    systems: {mamba: {}, NAME: {model.mixer: s4d}}   # or, in place of fine-tuning: one pretraining for each system,
    learning_rates: [0.002, 0.004]                   # with its own flags, and each of these rates
    sizes: [250k, 1.4m]          # the same at each of these presets: quality over operations (`scaling.py`)
    sweep: 250k                  # the size at which all rates are tried; others train at the best of their system's
    homologous: true             # with a folder of splits: loci are shared, and are resampled over all species
    published: {NAME: {metric: mcc, values: {TASK: 0.7}}}   # other people's results, for the table
    metric: mcc                  # what results.md and the picture show

Paths are relative to the working directory; `~` and `$NAME` are filled in.
"""

import glob
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dnamamba.errors import InputError

KEYS = (
    "out", "splits", "pretrain", "checkpoint", "from_scratch", "simple_models", "finetune", "scratch", "lengths",
    "by_length", "data", "systems", "learning_rates", "sizes", "sweep", "homologous", "published", "metric",
)  # fmt: skip
SUMMARY = "summary.json"
"""What a finished run has left in its folder."""
Flags = dict[str, Any]


class Run(NamedTuple):
    """A step of a workflow."""

    name: str
    """Also its folder, below the plan's `out`."""
    program: tuple[str, ...]
    """What stands before the flags: `("-m", "dnamamba.finetune")`, to be given to Python."""
    flags: tuple[str, ...]
    """Without --out and --resume."""
    needs: tuple[str, ...]
    """Names of runs that have to be finished before."""
    result: str
    """The file in its folder that says that it is finished."""
    facts: dict[str, str]
    """What the results table says of it: `model` (pretrained, scratch, simple), `task`, `length`; where systems are
    compared, `system` and `learning_rate`, and `size` where there are several."""


class Plan(NamedTuple):
    """A workflow."""

    out: Path
    runs: tuple[Run, ...]

    def folder(self, run: Run) -> Path:
        return self.out / run.name

    def by_name(self) -> dict[str, Run]:
        return {run.name: run for run in self.runs}


def make_plan(config: Mapping[str, Any]) -> Plan:
    """The runs in an order in which they can be done. Raises `InputError` for unknown keys and missing ones."""
    for key in config:
        if key not in KEYS:
            raise InputError(f"unknown key {key!r} of a workflow; there are {', '.join(KEYS)}")
    if "out" not in config:
        raise InputError("a workflow needs `out:`, the folder for its runs")
    out = Path(_filled(config["out"]))
    runs: list[Run] = []
    shared: Flags = dict(config.get("finetune") or {})
    pretraining: Flags | None = config.get("pretrain")
    before: list[str] = []

    if splits := config.get("splits"):
        folder = out / "splits"
        if isinstance(splits, str):
            folder = Path(_filled(splits))
        else:
            flags = dict(splits)
            program = (str(Path(__file__).with_name("make_species_splits.py")), _filled(flags.pop("species")))
            runs.append(Run("splits", program, _flags(flags), (), "species.tsv", {}))
            before = ["splits"]
        shared = {"species": str(folder / "species.tsv"), **shared}
        pretraining = None if pretraining is None else {"mixture": str(folder / "mixture.yaml"), **pretraining}

    if config.get("systems"):
        return Plan(out, (*runs, *_systems(config, pretraining or {}, tuple(before))))

    checkpoint: str | None = config.get("checkpoint") and _filled(config["checkpoint"])
    pretrained_needs = list(before)
    if checkpoint is None and pretraining is not None:
        program = ("-m", "dnamamba.pretrain")
        runs.append(Run("pretrain", program, _flags(pretraining), tuple(before), SUMMARY, {}))
        checkpoint = str(out / "pretrain")
        pretrained_needs.append("pretrain")

    # The regressions are fitted once for each task, by simple_models.py, and not with each fine-tuning.
    no_kmer: Flags = {"kmer": 0} if config.get("simple_models") else {}
    for label, own, facts in _tasks(config):
        flags = {**shared, **own}
        if checkpoint is not None:
            given = _flags({**flags, "checkpoint": checkpoint, **no_kmer})
            runs.append(_finetuning(f"{label}-pretrained", given, pretrained_needs, facts | {"model": "pretrained"}))
        if config.get("from_scratch") or checkpoint is None:
            given = _flags({**flags, "checkpoint": "none", **no_kmer, **(config.get("scratch") or {})})
            runs.append(_finetuning(f"{label}-scratch", given, before, facts | {"model": "scratch"}))
        if config.get("simple_models"):
            program = (str(Path(__file__).with_name("simple_models.py")),)
            shown = _flags({name: value for name, value in flags.items() if name in SIMPLE_FLAGS})
            runs.append(Run(f"{label}-simple", program, shown, tuple(before), SUMMARY, facts | {"model": "simple"}))
    return Plan(out, tuple(runs))


def _systems(config: Mapping[str, Any], pretraining: Flags, needs: tuple[str, ...]) -> list[Run]:
    """A pretraining of each system, of each size, at each rate; sizes, then rates first: early results compare. With
    `sweep`, sizes but that one have one run a system, at the rate that `carried_rate.py` finds when it starts."""
    out = Path(_filled(config["out"]))
    sizes, rates, sweep = config.get("sizes") or [None], config.get("learning_rates") or [None], config.get("sweep")
    if sweep is not None and (sweep not in sizes or None in rates):
        raise InputError(f"sweep: {sweep} has to be one of `sizes`, with `learning_rates` to try there")
    runs = []
    for size in sorted(sizes, key=lambda size: size != sweep):
        is_carried = sweep is not None and size != sweep
        for rate, (name, own) in itertools.product([None] if is_carried else rates, config["systems"].items()):
            preset = {} if size is None else {"model.preset": size}
            own_rate = {} if rate is None else {"learning_rate": rate}
            flags = _flags({**pretraining, **preset, **(own or {}), **own_rate})
            facts = {"system": name, "size": str(size or ""), "learning_rate": "" if rate is None else _short(rate)}
            label = "-".join(filter(None, facts.values()))
            program, needed = ("-m", "dnamamba.pretrain"), needs
            if is_carried:
                tried = tuple(f"{name}-{sweep}-{_short(each)}" for each in rates)
                program = (str(CARRIED_RATE), *(str(out / each) for each in tried))
                needed = (*needs, *tried)
            runs.append(Run(label, program, flags, needed, SUMMARY, facts))
    return runs


CARRIED_RATE = Path(__file__).with_name("carried_rate.py")


def _short(rate: Any) -> str:
    return f"{float(rate):g}"


SIMPLE_FLAGS = (
    "task", "species", "intervals_by_name", "data", "sequence_column", "label_columns", "subset", "kind",
    "dev_fraction", "length", "examples", "evaluation_examples", "batch_size", "seeds", "seed", "kmer", "accelerator",
)  # fmt: skip
"""Flags of a fine-tuning that say what the examples are; `simple_models.py` gets these and no others."""


def _tasks(config: Mapping[str, Any]) -> list[tuple[str, Flags, dict[str, str]]]:
    """(name, its own flags, facts for the table) of each fine-tuning."""
    if lengths := [int(length) for length in config.get("lengths") or []]:  # texts from snakemake's --config
        by_length = {int(length): flags for length, flags in (config.get("by_length") or {}).items()}
        if unknown := by_length.keys() - set(lengths):
            raise InputError(f"by_length: {min(unknown)} is none of the lengths {', '.join(map(str, lengths))}")
        return [
            (f"{length:07d}", {"length": length, **by_length.get(length, {})}, {"task": "", "length": str(length)})
            for length in lengths
        ]
    if "data" in config:
        patterns = [config["data"]] if isinstance(config["data"], str) else config["data"]
        folders = [folder for pattern in patterns for folder in sorted(glob.glob(_filled(pattern)))]
        folders = [folder for folder in folders if os.path.isdir(folder)]
        if not folders:
            raise InputError(f"data: no folder matches {', '.join(map(_filled, patterns))}")
        return [(Path(f).name, {"data": f}, {"task": Path(f).name, "length": ""}) for f in folders]
    name = str((config.get("finetune") or {}).get("task", "sequences"))
    return [(name, {}, {"task": name, "length": ""})]


def _finetuning(name: str, flags: tuple[str, ...], needs: list[str], facts: dict[str, str]) -> Run:
    return Run(name, ("-m", "dnamamba.finetune"), flags, tuple(needs), SUMMARY, facts)


def _flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    """`--name value`; a list gives several values behind its flag, true a flag alone, false and null none."""
    flags: list[str] = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        flags.append(f"--{name}")
        if value is not True:
            flags += [_filled(item) for item in (value if isinstance(value, list) else [value])]
    return tuple(flags)


def _filled(value: Any) -> str:
    text = os.path.expanduser(os.path.expandvars(str(value)))
    if "$" in text:
        raise InputError(f"{value}: the environment variable in it is not set")
    return text
