"""Regions as users write them: `chr:start-end` as samtools reads it, BED files, or contigs by name."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome.bed import read_intervals
from dnamamba.genome.contigs import select_contigs
from dnamamba.genome.intervals import ByContig, Interval, by_contig
from dnamamba.genome.store import TokenStore
from dnamamba.genome.view import GenomeView
from dnamamba.tables import whole_number


def parse_region(text: str, store: GenomeView) -> Interval:
    """The bases that samtools would take for a region: 1-based, both ends included, thousands' commas allowed.

    `chr1` is the whole contig, `chr1:100` runs from base 100 to the contig's end, `chr1:-200` from its start to base
    200. Names are matched by `contig_names`. Contigs with colons in theirs are known as such; `{NAME}:100-200` says
    where a name ends. `InputError` for an unknown contig, and unlike samtools for an end beyond it, which would be cut
    off in silence.
    """
    if text in store:
        return Interval(text, 0, store.contig(text).length)
    braced = re.fullmatch(r"\{(.+)\}(?::(.*))?", text)
    name, _, rest = (braced[1], "", braced[2] or "") if braced else text.rpartition(":")
    found = re.fullmatch(r"([0-9,]*)(?:(-)([0-9,]*))?", rest)
    if not name and ":" not in text:
        return _whole(text, store)
    if found is None or not rest.strip(",-"):
        if braced and braced[2] is None:
            return _whole(name, store)
        raise InputError(f"--region: {text!r} is no region; expected CONTIG:START-END, 1-based, as samtools takes it")
    name, _, length = _whole(name, store)
    begin, end = (_number(found[1], text) if found[1] else 1), (_number(found[3], text) if found[3] else length)
    if begin < 1:
        raise InputError(f"--region: {text}: bases are counted from 1")
    if begin > end and begin <= length:
        raise InputError(f"--region: {text}: the start lies behind the end")
    if max(begin, end) > length:
        raise InputError(f"--region: {text} reaches beyond the contig, which has {length:,} bases")
    return Interval(name, begin - 1, end)


def read_regions(
    store: GenomeView, regions: Sequence[str] | None, bed: Path | None, contigs: list[str] | None = None
) -> list[Interval]:
    """The regions that a user gave, in their order: given by text, or in a BED file, or else the contigs as a whole.

    `contigs` are names or patterns, None the primary ones (`select_contigs`). `InputError` for two of them at a time
    and for a BED file without intervals.
    """
    given = [
        flag
        for flag, value in (("--region", regions), ("--regions", bed), ("--contigs", contigs))
        if value is not None and value != []
    ]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]} both say where; give one of them")
    if regions:
        return [parse_region(region, store) for region in regions]
    if bed is not None:
        intervals = read_intervals(bed, store)
        if not intervals:
            raise InputError(f"{bed}: no intervals; BED has a contig, a start and an end on each line")
        return intervals
    assert isinstance(store, TokenStore), "contigs are chosen by what only a token store knows of them"
    return [Interval(contig.name, 0, contig.length) for contig in select_contigs(store, contigs).chosen]


def merged_regions(store: GenomeView, intervals: Sequence[Interval]) -> ByContig:
    """Each contig's bases that lie in any interval, sorted and merged; contigs in the genome's order."""
    merged = by_contig(intervals)
    return {contig.name: merged[contig.name] for contig in store.contigs if contig.name in merged}


def bases_of(pairs: np.ndarray) -> int:
    """Bases of a (k, 2) array of disjoint intervals."""
    return int((pairs[:, 1] - pairs[:, 0]).sum())


def _whole(name: str, store: GenomeView) -> Interval:
    try:
        return Interval(contig := store.names.find(name) or name, 0, store.contig(contig).length)
    except InputError as error:
        raise InputError(f"--region: {error}") from None


def _number(text: str, region: str) -> int:
    if (number := whole_number(text.replace(",", "") or "0")) is None:
        raise InputError(f"--region: {region}: {text} is no base of any contig")
    return number
