"""One contig under many names: which of a genome's contigs a file means by a name.

UCSC says chr1 and chrM, Ensembl 1 and MT, GenBank and RefSeq CM000663.2 and NC_000001.11, old headers gi|1|ref|NC_1.1|.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property

from dnamamba.errors import InputError

_MITOCHONDRION = "\0mitochondrion"
_ACCESSION = re.compile(r"([A-Z]{1,6}_?[A-Z]{0,6}[0-9]{5,})\.[0-9]+")
_ANY_VERSION = ".*"
_DATABASES = frozenset({"gi", "ref", "gb", "emb", "dbj", "lcl", "gnl"})
"""Parts of a name with `|` that say where the next part is from"""


class ContigNames:
    """The names of a genome's contigs."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.by_other_name: dict[str, str] = {}
        """Other name -> contig: whatever `find` has matched so far, for a job to report."""
        self._exact = frozenset(self.names)
        self._missing: set[str] = set()

    def find(self, name: str) -> str | None:
        """The contig that is meant, None if there is none. Raises `InputError` where two could be meant.

        The closest spelling counts: the name itself; with or without `chr`; M or MT for the mitochondrion; a part of a
        name with `|`, or an accession with a version for one without. Two versions are two sequences.
        """
        if name in self._exact:
            return name
        if name not in self.by_other_name and name not in self._missing:
            if (found := self._closest(name)) is None:
                self._missing.add(name)
            else:
                self.by_other_name[name] = found
        return self.by_other_name.get(name)

    def suggestion(self) -> str:
        """What to say after "no contig NAME": how the contigs are called."""
        return f"; the contigs are {', '.join(self.names[:4])}{', …' if len(self.names) > 4 else ''}"

    def matched(self) -> str:
        """What `find` has matched by another name, in one line; "" for nothing."""
        return some([f"{name} is {contig}" for name, contig in self.by_other_name.items()])

    def _closest(self, name: str) -> str | None:
        for index, keys in (
            (self._by_spelling, [_without_chr(name)]),
            (self._by_spelling, [_MITOCHONDRION] if _without_chr(name) in ("M", "MT") else []),
            (self._by_part, _keys_to_look_up(name)),
        ):
            likely = list(dict.fromkeys(contig for key in keys for contig in index.get(key, ())))
            if len(likely) > 1:
                raise InputError(
                    f"contig {name!r} could be {some(likely)} of the genome; write the name as the genome has it"
                )
            if likely:
                return likely[0]
        return None

    @cached_property
    def _by_spelling(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in self.names:
            plain = _without_chr(name)
            for key in (plain, _MITOCHONDRION) if plain in ("M", "MT") else (plain,):
                index.setdefault(key, []).append(name)
        return index

    @cached_property
    def _by_part(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in self.names:
            for part in _parts(name):
                version = _ACCESSION.fullmatch(part)
                for key in (part, version[1] + _ANY_VERSION) if version else (part,):
                    index.setdefault(key, []).append(name)
        return index


def some(texts: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def _without_chr(name: str) -> str:
    return name[3:] if name[:3].lower() == "chr" else name


def _parts(name: str) -> list[str]:
    return [part for part in name.split("|") if part and part not in _DATABASES]


def _keys_to_look_up(name: str) -> list[str]:
    """NC_000001.11 is that version or the accession without one; NC_000001 is any version."""
    keys = []
    for part in _parts(name):
        version = _ACCESSION.fullmatch(part)
        keys += [part, version[1] if version else part + _ANY_VERSION]
    return keys
