"""Which alternate alleles can be scored, and what they are once the bases that both alleles share are taken off.

The reference allele is compared with the genome. What cannot be scored keeps a reason; nothing is dropped. numpy only.
"""

import hashlib
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dnamamba.alphabet import BASES, TOKEN_BITS, decode, encode, reverse_complement
from dnamamba.errors import InputError
from dnamamba.genome.symbolic import Event, event_of
from dnamamba.genome.vcf import Records
from dnamamba.genome.view import GenomeView

REASONS = {
    "": "scored",
    "no_contig": "the genome has no such contig",
    "beyond_contig": "POS or REF reach beyond the contig",
    "ref_mismatch": "REF is not what the genome has there",
    "ref_not_acgt": "REF or the genome has N or another ambiguous base there",
    "symbolic": "a symbolic allele such as <DEL>: its bases are not given",
    "spanning_deletion": "the allele * of a deletion that another record describes",
    "breakend": "a breakend",
    "alt_not_acgt": "ALT has other letters than A, C, G, T",
    "same_as_ref": "ALT equals REF",
    "too_long": "REF or ALT is longer than half the context",
    "contig_edge": "no base before the variant on one of the strands: only the other strand is scored",
}
"""Why an allele has no score, and what that means; they go into the VCF as they are."""
_CODES = {reason: code for code, reason in enumerate(REASONS)}
REASON_NAMES = np.array(list(REASONS))
"""code -> name"""

MISMATCHES_SHOWN = 3


@dataclass(frozen=True)
class Alleles:
    """Alternate alleles in file order, as columns; those of the record r are [first[r], first[r + 1])."""

    first: np.ndarray
    """(records + 1,) int64"""
    contig: np.ndarray
    """(alleles,) int32: index into the store's contigs, −1 where it has none"""
    start: np.ndarray
    """(alleles,) int64: 0-based position of the first base that differs, where there is no reason"""
    ref_length: np.ndarray
    """(alleles,) int64: reference bases replaced; 0 for an insertion"""
    alt: list[str]
    """The bases that replace them; "" for a deletion"""
    reason: np.ndarray
    """(alleles,) uint8: a code of `REASON_NAMES`, 0 where the allele can be scored"""

    def __len__(self) -> int:
        return len(self.alt)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that change with any of them."""
        content = hashlib.sha256(",".join(self.alt).encode())
        for column in (self.first, self.contig, self.start, self.ref_length, self.reason):
            content.update(column.tobytes())
        return content.hexdigest()

    def alternate(self, allele: int, reverse: bool) -> np.ndarray:
        """(bases,) uint8 tokens of an alternate allele, on the other strand if `reverse`."""
        tokens = encode(self.alt[allele])
        return reverse_complement(tokens) if reverse else tokens


class Checked(NamedTuple):
    """What `check` found."""

    alleles: Alleles
    mismatches: np.ndarray
    """Records whose REF is not the genome's, or lies beyond the contig, telomeres apart"""
    compared: int
    """Records whose REF could be compared"""
    contigs: tuple[str | None, ...]
    """How the genome calls each of the VCF's contigs; None where it has none"""


def check(records: Records, store: GenomeView, longest: int) -> Checked:
    """Every alternate allele, trimmed of what it shares with REF (first at the end, then at the start), or its reason.

    `longest`: bases of an allele that is still scored.
    """
    contigs = tuple(store.names.find(name) for name in records.contigs)
    number = {contig.name: index for index, contig in enumerate(store.contigs)}
    in_store = np.array([-1 if name is None else number[name] for name in contigs], np.int32)
    contig = in_store[records.contig] if len(records) else np.empty(0, np.int32)
    record_reason = _check_references(records, store, contig)

    counts = np.fromiter((0 if alt == "." else alt.count(",") + 1 for alt in records.alt), np.int64, len(records))
    first = np.concatenate(([0], np.cumsum(counts)))
    starts = np.repeat(records.start, counts)
    reason = np.repeat(record_reason, counts)
    ref_length = np.zeros(len(starts), np.int64)
    alt: list[str] = [""] * len(starts)
    allele = 0
    for record, ref in enumerate(records.ref):
        for text in records.alternates(record):
            why = _kind(text)
            event = None
            if why == "symbolic" and not reason[allele]:
                which = allele - int(first[record])
                event = event_of(text, which, int(records.start[record]), records.info.get(record, ""))
            if event is not None:
                name = store.contigs[contig[record]].name
                starts[allele], ref_length[allele], alt[allele], why = _built(store, name, event, longest)
                reason[allele] = _CODES[why]
            elif why or reason[allele]:
                if reason[allele] != _CODES["beyond_contig"]:
                    reason[allele] = _CODES[why] or reason[allele]
            else:
                begin, ref_length[allele], alt[allele] = trim(_dna(ref), _dna(text))
                starts[allele] += begin
                if max(ref_length[allele], len(alt[allele])) > longest:
                    reason[allele] = _CODES["too_long"]
                elif not ref_length[allele] and not alt[allele]:
                    reason[allele] = _CODES["same_as_ref"]
            allele += 1
    sizes = np.array([-1 if name is None else store.contig(name).length for name in contigs], np.int64)
    # VCF's places for telomeres, POS 0 and N + 1, have no base to compare: they speak for no other assembly.
    telomere = (records.start == -1) | (records.start == sizes[records.contig] if len(records) else False)
    beyond = (record_reason == _CODES["beyond_contig"]) & ~telomere
    wrong = (record_reason == _CODES["ref_mismatch"]) | beyond
    compared = int((record_reason == 0).sum() + wrong.sum())
    return Checked(
        Alleles(first, np.repeat(contig, counts), starts, ref_length, alt, reason),
        np.flatnonzero(wrong),
        compared,
        contigs,
    )


def _built(store: GenomeView, contig: str, event: Event, longest: int) -> tuple[int, int, str, str]:
    """Start, reference bases, alternate bases and the reason against it of an event, with the genome's bases."""
    start, end = event.start, event.end
    if end > store.contig(contig).length:
        return start, 0, "", "beyond_contig"
    if end - start > longest:
        return start, 0, "", "too_long"
    tokens = store.read(contig, start - 1, end) & TOKEN_BITS
    if (tokens >= BASES).any():
        return start, 0, "", "ref_not_acgt"
    before, inside = decode(tokens[:1]), decode(tokens[1:])
    changed = {"DEL": "", "DUP": inside + inside, "INV": decode(reverse_complement(tokens[1:]))}[event.kind]
    begin, length, alt = trim(before + inside, before + changed)
    return start - 1 + begin, length, alt, "" if length or alt else "same_as_ref"


def trim(ref: str, alt: str) -> tuple[int, int, str]:
    """Bases shared at the start, reference bases that differ, alternate bases that replace them.

    The shared end goes first, so that a deletion or insertion in a repeat stays at its left end, where VCF puts it.
    """
    end = 0
    while end < min(len(ref), len(alt)) and ref[-1 - end] == alt[-1 - end]:
        end += 1
    ref, alt = ref[: len(ref) - end], alt[: len(alt) - end]
    begin = 0
    while begin < min(len(ref), len(alt)) and ref[begin] == alt[begin]:
        begin += 1
    return begin, len(ref) - begin, sys.intern(alt[begin:])


def refuse_mismatches(
    checked: Checked,
    records: Records,
    store: GenomeView,
    limit: float,
    name: str,
    hint: str = "; --max_mismatches raises the limit",
) -> list[str]:
    """One line a mismatch of the first few; raises `InputError` with a hint for more than `limit` of the records."""
    shown = [_mismatch(records, store, checked, record) for record in checked.mismatches[:MISMATCHES_SHOWN].tolist()]
    if len(records) and not any(checked.contigs):
        wanted = ", ".join(records.contigs[:3])
        raise InputError(
            f"{name}: its contigs ({wanted}) are none of the genome's{store.names.suggestion()}; "
            "give the genome that the VCF was made with"
        )
    if checked.compared and len(checked.mismatches) > limit * checked.compared:
        raise InputError(
            f"{name}: REF is not the genome's in {len(checked.mismatches):,} of {checked.compared:,} records, more "
            f"than {limit:.0%} ({'; '.join(shown)}): {_hint(records, store, checked)}{hint}"
        )
    return shown


def _check_references(records: Records, store: GenomeView, contig: np.ndarray) -> np.ndarray:
    """(records,) uint8: the reason that keeps a record's alleles from being scored, 0 for none."""
    reason = np.zeros(len(records), np.uint8)
    reason[contig < 0] = _CODES["no_contig"]
    lengths = np.fromiter(map(len, records.ref), np.int64, len(records))
    sizes = np.array([c.length for c in store.contigs], np.int64)
    beyond = (contig >= 0) & ((records.start < 0) | (records.start + lengths > sizes[contig]))
    reason[beyond] = _CODES["beyond_contig"]
    codes = {ref: encode(ref) & TOKEN_BITS for ref in set(records.ref)}
    single = np.fromiter((codes[ref][0] for ref in records.ref), np.uint8, len(records))
    fits = reason == 0
    simple = np.flatnonzero(fits & (lengths == 1))
    there = store.tokens_at(contig[simple], records.start[simple]) & TOKEN_BITS
    reason[simple] = np.where(
        (single[simple] >= BASES) | (there >= BASES),
        _CODES["ref_not_acgt"],
        np.where(single[simple] != there, _CODES["ref_mismatch"], 0),
    )
    for record in np.flatnonzero(fits & (lengths > 1)).tolist():
        code = codes[records.ref[record]]
        start = int(records.start[record])
        there = store.read(store.contigs[contig[record]].name, start, start + code.size) & TOKEN_BITS
        if (code >= BASES).any() or (there >= BASES).any():
            reason[record] = _CODES["ref_not_acgt"]
        elif not np.array_equal(code, there):
            reason[record] = _CODES["ref_mismatch"]
    return reason


def _dna(allele: str) -> str:
    return allele.upper().replace("U", "T")


def _kind(alt: str) -> str:
    """Why an alternate allele has no bases to score, by its spelling; "" if it has."""
    if not _dna(alt).strip("ACGT") and alt:
        return ""
    if alt == "*":
        return "spanning_deletion"
    if alt.startswith("<") and alt.endswith(">"):
        return "symbolic"
    if "[" in alt or "]" in alt or (len(alt) > 1 and (alt.startswith(".") or alt.endswith("."))):
        return "breakend"
    return "alt_not_acgt"


def _mismatch(records: Records, store: GenomeView, checked: Checked, record: int) -> str:
    name, start, ref = records.contigs[records.contig[record]], int(records.start[record]), records.ref[record]
    contig = checked.contigs[records.contig[record]]
    assert contig is not None
    length = store.contig(contig).length
    shown = ref if len(ref) <= 12 else f"{ref[:12]}…"
    if start < 0 or start + len(ref) > length:
        return f"{name}:{start + 1} {shown} lies beyond the contig, which has {length} bases"
    there = decode(store.read(contig, start, start + min(len(ref), 12))).upper()
    return f"{name}:{start + 1} REF {shown}, genome {there}"


def _hint(records: Records, store: GenomeView, checked: Checked) -> str:
    """Positions off by one, or another assembly? Would most single-base REFs fit one base further?"""
    shifted = {-1: 0, 1: 0}
    tried = 0
    for record in checked.mismatches[:10_000].tolist():
        contig, start, ref = checked.contigs[records.contig[record]], int(records.start[record]), records.ref[record]
        assert contig is not None
        if len(ref) != 1 or not 1 <= start < store.contig(contig).length - 1:
            continue
        tried += 1
        for by in shifted:
            shifted[by] += decode(store.read(contig, start + by, start + by + 1)).upper() == ref.upper()
    for by, kind in (
        (1, "0-based, VCF and a column pos count from 1"),
        (-1, "counted from 2, VCF counts from 1; or from 1 in a column start, which counts from 0: call it pos"),
    ):
        if tried >= 10 and shifted[by] > 0.9 * tried:
            return f"its positions seem to be {kind}"
    return "another assembly than the genome's? (GRCh37 and GRCh38 have the same names)"
