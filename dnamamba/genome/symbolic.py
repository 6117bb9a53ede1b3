"""Symbolic alleles whose bases follow from the genome: `<DEL>`, `<DUP>` and `<INV>` with END or SVLEN (VCF 4.4).

POS is the base before the event, so that it concerns the bases behind POS up to END. A duplication is read as tandem:
the copy stands right before the bases that it is of.
"""

import re
from typing import Literal, NamedTuple

from dnamamba.tables import whole_number

Kind = Literal["DEL", "DUP", "INV"]
_KNOWN = re.compile(r"<(DEL|DUP|INV)(?::[\w:.-]*)?>", re.IGNORECASE)
_INFO = re.compile(r"(?:^|;)(END|SVLEN)=([^;]*)")


class Event(NamedTuple):
    """A structural change."""

    kind: Kind
    start: int
    """0-based, its first base"""
    end: int
    """behind its last one"""


def event_of(alt: str, number: int, start: int, info: str) -> Event | None:
    """What a symbolic allele changes; None for other alleles, and where neither END nor SVLEN says where it ends.

    Args:
        number: of the allele among those of its record, from 0: SVLEN has a value for each.
        start: 0-based position of the record.
        info: the INFO column.
    """
    if not (found := _KNOWN.fullmatch(alt)):
        return None
    values = dict(_INFO.findall(info))
    lengths = values.get("SVLEN", "").split(",")
    length = whole_number(lengths[number].removeprefix("-")) if number < len(lengths) else None
    end = whole_number(values.get("END", ""))
    if length is not None and (end is None or len(lengths) > 1):
        end = start + 1 + length
    if end is None or end <= start + 1:
        return None
    kind: Kind = found[1].upper()  # type: ignore[assignment]
    return Event(kind, start + 1, end)
