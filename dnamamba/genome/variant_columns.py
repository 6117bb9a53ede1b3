"""What tables of variants call their columns; names in lower case."""

CONTIG_COLUMNS = ("seq_source", "contig", "chrom", "chr", "#chrom")
START_COLUMNS = ("seq_offset0", "start")
"""0-based"""
POSITION_COLUMNS = ("pos", "position")
"""1-based"""
