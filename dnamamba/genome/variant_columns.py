"""What tables of variants call their columns, and from where they count; names in lower case."""

from collections.abc import Sequence

CONTIG_COLUMNS = ("seq_source", "contig", "chrom", "chr", "#chrom", "chromosome")
START_COLUMNS = ("seq_offset0", "start")
"""0-based, unless `start_counts_from_1`"""
END_COLUMNS = ("end",)
POSITION_COLUMNS = ("pos", "position", "start_position")
"""1-based"""
REF_COLUMNS = ("ref", "reference_allele")
ALT_COLUMNS = ("alt", "tumor_seq_allele2")


def start_counts_from_1(starts: Sequence[int], ends: Sequence[int], refs: Sequence[str]) -> bool:
    """Whether `start` and `end` are as MAF has them, from 1 with the end included, and not as in BED, 0-based and
    half-open: the length of every REF shows it."""
    lengths = [end - start for start, end, ref in zip(starts, ends, refs, strict=True) if ref != "-"]
    expected = [len(ref) - 1 for ref in refs if ref != "-"]
    return bool(lengths) and lengths == expected
