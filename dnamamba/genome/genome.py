"""A genome to look things up in: `Genome("hg38.fa")["chr20", 1_000_000:1_010_000]`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dnamamba.alphabet import decode
from dnamamba.errors import InputError
from dnamamba.genome.indexed import IndexedGenome, open_for
from dnamamba.genome.store import TokenStore


class Genome:
    """The contigs of a FASTA, GenBank file or token store by name, like a dictionary in the file's order.

    Opened by its token store if there is a current one, else by a FASTA's index, else by a token store that is built.
    Coordinates are 0-based and half-open. Contigs are found by other names too (`contig_names`). `KeyError` for none.
    """

    def __init__(self, paths: Sequence[Path | str] | Path | str, store: Path | None = None) -> None:
        """Raises `InputError` for files that are no genome."""
        several = [paths] if isinstance(paths, str | Path) else paths
        self.source: TokenStore | IndexedGenome = open_for([Path(path) for path in several], store)
        """What the bases are read from."""

    @property
    def contigs(self) -> tuple[str, ...]:
        """Names, in the file's order."""
        return tuple(contig.name for contig in self.source.contigs)

    def length(self, contig: str) -> int:
        """Bases of a contig."""
        return self.source.contig(self._name(contig)).length

    def read(self, contig: str, start: int, end: int) -> np.ndarray:
        """(end − start,) uint8 tokens, soft mask in bit 7. Raises `InputError` outside of the contig."""
        return self.source.read(self._name(contig), start, end)

    def __getitem__(self, region: str | tuple[str, slice]) -> str:
        """The bases of a contig, or of `contig, start:end`: lower case where the file has it, N for other codes.

        As with Python's strings, an open side is the contig's end and a negative number counts from there; but an end
        beyond the contig is an `InputError`.
        """
        contig, part = (region, slice(None)) if isinstance(region, str) else region
        length = self.length(contig)
        if part.step not in (None, 1):
            raise InputError(f"{contig}: a step of {part.step} is not possible, expected start:end")
        start, end = (
            default if value is None else value + length * (value < 0)
            for value, default in ((part.start, 0), (part.stop, length))
        )
        return decode(self.read(contig, start, end))

    def __contains__(self, contig: object) -> bool:
        return isinstance(contig, str) and self.source.names.find(contig) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.contigs)

    def __len__(self) -> int:
        return len(self.source.contigs)

    def _name(self, contig: str) -> str:
        if (found := self.source.names.find(contig)) is None:
            raise KeyError(f"{self.source.path}: no contig {contig!r}{self.source.names.suggestion()}")
        return found
