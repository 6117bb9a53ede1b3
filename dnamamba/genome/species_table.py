"""species.tsv: which genomes there are, and perhaps how each is split."""

from pathlib import Path
from typing import NamedTuple

from dnamamba.errors import InputError
from dnamamba.tables import delimited_rows
from dnamamba.text_files import folder_of


class SpeciesRow(NamedTuple):
    """A line of species.tsv. Paths are taken from the table's folder on; cells hold several things with commas."""

    name: str
    fasta: list[Path]
    contigs: list[str] | None
    train: list[str] | None
    validation: list[str] | None
    test: list[str] | None


def read_species(path: Path) -> list[SpeciesRow]:
    """The rows of species.tsv in file order. Raises `InputError` with the line."""
    header, rows = delimited_rows(path, "\t", comment="#")
    if not header:
        raise InputError(f"{path}: empty; expected a header line with the columns name and fasta")
    for needed in ("name", "fasta"):
        if needed not in header:
            raise InputError(f"{path}: no column {needed} in the header {', '.join(header)} (tab-separated)")
    for name in header:
        if name not in SpeciesRow._fields:
            raise InputError(f"{path}: unknown column {name!r}; expected some of {', '.join(SpeciesRow._fields)}")
    found: dict[str, SpeciesRow] = {}
    for where, line in rows:
        columns = zip(header, line, strict=True)
        cells = {name: [part.strip() for part in cell.split(",") if part.strip()] for name, cell in columns}
        if len(cells["name"]) != 1 or not cells["fasta"]:
            raise InputError(f"{where}: needs one name and a FASTA file at least")
        name = cells["name"][0]
        if name in found:
            raise InputError(f"{where}: species {name!r} stands there twice")
        fasta = [folder_of(path) / file for file in cells["fasta"]]
        beds = {
            s: [str(folder_of(path) / bed) for bed in cells.get(s, [])] or None for s in ("train", "validation", "test")
        }
        found[name] = SpeciesRow(name, fasta, cells.get("contigs") or None, **beds)
    if not found:
        raise InputError(f"{path}: no species; expected a row for each below the header")
    return list(found.values())
