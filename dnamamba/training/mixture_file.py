"""The file behind `--mixture`: several genomes, each with its files, splits and share of the training samples.

    ecoli:
      genome: ecoli.fa.gz
      weight: 3
    yeast:
      genome: [sacCer3.fa, plasmid.fa]
      weight: 1
      contigs: chr*
      validation: chrIV
      exclude: rdna.bed
      annotation: genes.gff3.gz
      regions: genes.gff3.gz
      region_shares: [CDS=2, promoter=1]

YAML, because `--config` is, and because its keys are then the flags of a single genome and take the same values; it
stands in a file of its own because a genome's name, files and splits belong together, which flags could only say by
their order. Paths are relative to the file. Weights are relative to each other; without any, each genome is sampled by
the bases of its training split.
"""

import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnamamba.errors import InputError, quoted
from dnamamba.genome.bed import is_bed_name
from dnamamba.settings.yaml_files import read_yaml
from dnamamba.tables import number
from dnamamba.text_files import folder_of

_LISTS = ("contigs", "train", "validation", "test", "exclude", "regions", "region_shares")
_KEYS = ("genome", "weight", "store", "annotation", *_LISTS)
_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class GenomeSettings:
    """One genome of a mixture; the fields are the flags of the same names (`dnamamba.training.settings`)."""

    name: str
    """"" for the only genome of a run without a mixture."""
    genome: list[Path]
    weight: float | None = None
    """Relative share of the training samples; None leaves it to the bases of the training splits."""
    contigs: list[str] | None = None
    train: list[str] | None = None
    validation: list[str] | None = None
    test: list[str] | None = None
    exclude: list[Path] | None = None
    store: Path | None = None
    annotation: Path | None = None
    regions: list[Path] | None = None
    region_shares: list[str] | None = None


def bed_or_pattern(text: str, folder: Path) -> str:
    """A BED file by its absolute path (relative ones lie in `folder`), so that it is found from anywhere; a contig
    pattern as it is."""
    path = (folder / text).absolute()
    return str(path) if is_bed_name(path) else text


def read_mixture(path: Path) -> list[GenomeSettings]:
    """The genomes in the file's order, paths made absolute; that they exist is checked where they are opened.

    Raises `InputError` for a file that cannot be read or is no such mapping, unknown keys, names twice or unfit for
    file names, and weights that are not positive numbers or given for some genomes only.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: expected a mapping of genome names to settings, such as `ecoli: {{genome: k12.fa}}`")
    genomes = [_genome(path, name, values) for name, values in content.items()]
    without = [genome.name for genome in genomes if genome.weight is None]
    if without and len(without) < len(genomes):
        raise InputError(f"{path}: {', '.join(without)}: no weight; give every genome one, or none (then by size)")
    return genomes


def _genome(path: Path, name: str, values: Any) -> GenomeSettings:
    where = f"{path}: {name[:100]}"
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: a genome's name becomes part of file names: letters, digits, . _ + - only")
    if not isinstance(values, dict) or "genome" not in values:
        raise InputError(f"{where}: needs `genome:`, its FASTA, GenBank or token store files")
    for key in values:
        if key not in _KEYS:
            close = difflib.get_close_matches(key[:100], _KEYS, n=1)
            raise InputError(
                f"{where}: unknown key {quoted(key)}{f'; did you mean {close[0]}?' if close else ''} "
                f"(there are {', '.join(_KEYS)})"
            )
    lists = {key: _strings(f"{where}: {key}", values.get(key)) for key in ("genome", *_LISTS)}
    store, annotation = values.get("store"), values.get("annotation")

    def absolute(text: str) -> Path:
        return (folder_of(path) / text).absolute()

    def splits(key: str) -> list[str] | None:
        return [bed_or_pattern(text, folder_of(path)) for text in lists[key] or []] or None

    return GenomeSettings(
        name,
        [absolute(text) for text in lists["genome"] or []],
        _weight(where, values.get("weight")),
        lists["contigs"],
        splits("train"),
        splits("validation"),
        splits("test"),
        [absolute(text) for text in lists["exclude"] or []] or None,
        None if store is None else absolute(str(store)),
        None if annotation is None else absolute(str(annotation)),
        [absolute(text) for text in lists["regions"] or []] or None,
        lists["region_shares"],
    )


def _weight(where: str, value: Any) -> float | None:
    if value is None:
        return None
    weight = number(str(value))  # YAML takes 1e-3 for a text
    if weight is None or not 0 < weight < math.inf:
        raise InputError(f"{where}: weight {quoted(value)} is not a number above 0")
    return weight


def _strings(where: str, value: Any) -> list[str] | None:
    """A value or a list of them, as texts: contigs may be called 19."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise InputError(f"{where}: expected a value or a list of values, got {quoted(item)}")
    return [str(item) for item in items] or None
