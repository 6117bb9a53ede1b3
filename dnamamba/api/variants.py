"""Variants as Python has them, as the records of a VCF: files, polars frames, tuples."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome.variant_columns import (
    ALT_COLUMNS,
    CONTIG_COLUMNS,
    POSITION_COLUMNS,
    REF_COLUMNS,
    START_COLUMNS,
    start_counts_from_1,
)
from dnamamba.genome.vcf import Records, read_ids, read_vcf

if TYPE_CHECKING:
    import polars

Variants = Union[str, "os.PathLike[str]", "polars.DataFrame", Iterable[tuple[str, int, str, str]]]
"""A VCF; a frame with contig (or chrom), pos (from 1) or start (from 0), ref, alt; or (contig, position from 1, ref,
alt)"""


def records_of(variants: Variants) -> tuple[Records, list[str]]:
    """The variants in their order, and the identifier of each ("." where there is none). Raises `InputError`."""
    if isinstance(variants, str | os.PathLike):
        path = Path(variants)
        records = read_vcf(path)
        return records, read_ids(path, records)
    if hasattr(variants, "columns"):
        return _of_frame(variants)  # type: ignore[arg-type]
    return _of_tuples(variants)


def _of_frame(frame: "polars.DataFrame") -> tuple[Records, list[str]]:
    named = {name.lower(): name for name in frame.columns}
    contig = next((named[name] for name in CONTIG_COLUMNS if name in named), None)
    position = next((name for name in (*POSITION_COLUMNS, *START_COLUMNS) if name in named), None)
    ref, alt = (next((named[name] for name in usual if name in named), None) for usual in (REF_COLUMNS, ALT_COLUMNS))
    if contig is None or position is None or ref is None or alt is None:
        raise InputError(
            f"variants: the frame has the columns {', '.join(frame.columns)}; expected contig (or chrom), pos (from 1) "
            "or start (from 0), ref and alt"
        )
    first = 0 if position in START_COLUMNS else 1
    if position == "start" and "end" in named:
        columns = (frame[named["start"]].to_list(), frame[named["end"]].to_list(), frame[ref].to_list())
        if not any(None in column for column in columns) and start_counts_from_1(*columns):
            first = 1
    rows = zip(*(frame[name].to_list() for name in (contig, named[position], ref, alt)), strict=True)
    records, ids = _of_tuples((c, p + 1 - first if isinstance(p, int) else p, r, a) for c, p, r, a in rows)
    return records, [str(name) for name in frame["id"].to_list()] if "id" in frame.columns else ids


def _of_tuples(variants: Iterable[tuple[str, int, str, str]]) -> tuple[Records, list[str]]:
    names: dict[str, int] = {}
    contig, start, refs, alts = [], [], [], []
    for number, variant in enumerate(variants, 1):
        try:
            name, position, ref, alt = variant
        except (TypeError, ValueError):
            raise InputError(f"variant {number}: {variant!r} is not (contig, position, ref, alt)") from None
        texts = (name, ref, alt)
        if not isinstance(position, int | np.integer) or not all(isinstance(text, str) and text for text in texts):
            raise InputError(
                f"variant {number}: {variant!r}; expected (contig, position, ref, alt), the position a whole number "
                "counted from 1 and the others text"
            )
        contig.append(names.setdefault(name, len(names)))
        start.append(int(position) - 1)
        refs.append(ref)
        alts.append(alt)
    columns = np.array(contig, np.int32), np.array(start, np.int64)
    return Records(tuple(names), *columns, refs, alts), ["."] * len(refs)
