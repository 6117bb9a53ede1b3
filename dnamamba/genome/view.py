"""What small queries read of a genome, from a token store, or by a FASTA's index (`indexed`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from dnamamba.genome.contig_names import ContigNames


class ContigView(Protocol):
    """A contig as far as both kinds of genome know it."""

    @property
    def name(self) -> str: ...

    @property
    def length(self) -> int: ...


class GenomeView(Protocol):
    """A genome of which some bases are read. Coordinates are 0-based and half-open, on the forward strand."""

    names: ContigNames

    @property
    def path(self) -> Path:
        """The token store, or the FASTA file"""

    @property
    def contigs(self) -> Sequence[ContigView]: ...

    @property
    def bases(self) -> int:
        """Of all contigs"""

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of names, sequences and masks; None where not all of it has been read"""

    def contig(self, name: str) -> ContigView:
        """Raises `InputError` if there is none of exactly this name."""

    def __contains__(self, name: object) -> bool: ...

    def read(self, contig: str, start: int, end: int) -> np.ndarray:
        """(end − start,) uint8 tokens, soft mask in bit 7; `InputError` outside of the contig."""

    def read_sparse(self, contig: str, spans: np.ndarray) -> np.ndarray:
        """(length,) uint8 tokens of a contig, of which those in `spans`, (k, 2) int64, are there; the others may be."""

    def tokens_at(self, contig: np.ndarray, position: np.ndarray) -> np.ndarray:
        """(k,) uint8 tokens of single bases: `contig` (k,) indices into `contigs`, `position` (k,) in them."""

    def n_count(self, contig: str, start: int, end: int) -> int:
        """How many of the bases [start, end) are N."""
