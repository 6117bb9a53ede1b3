"""Which contigs to use: the primary ones by default, patterns otherwise; and what of them is there twice.

Names of UCSC (chr1, chr1_KI270706v1_random, chrUn_…, chrM), Ensembl (1, MT, KI270706.1, CHR_HSCHR1_…), NCBI
(NC_000001.11, NT_…, NW_…, CM000663.2) and header descriptions are understood; anything else is kept.
"""

import fnmatch
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from dnamamba.alphabet import BASES, TOKEN_BITS
from dnamamba.errors import InputError
from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import Contig, TokenStore

UNPLACED = "unplaced"
_NAME_RULES = tuple(
    (reason, re.compile(pattern, re.IGNORECASE))
    for reason, pattern in (
        ("mitochondrial", r"(chr)?(MT?|mito|mitochondri\w*|MtDNA)"),
        ("mitochondrial", r"(NC_012920|NC_001807|NC_005089|NC_001224|J01415|AY172335)(\.\d+)?"),
        ("plastid", r"(chr)?(Pt|plastid|chloroplast)"),
        ("virus (EBV)", r"chrEBV|NC_007605(\.\d+)?|AJ507799(\.\d+)?"),
        ("decoy", r".*decoy.*|hs37d5|hs38d1"),
        ("HLA allele", r"HLA[-:].*"),
        ("patch", r".*_fix|H\w*_PATCH\w*|.*_novel_patch"),
        ("alternate", r".*_alt|.*_hap\d+|(CHR_)?HSCHR.*|CHR_(HG|H|MG|MM).*"),
        (UNPLACED, r".*_random|chrUn.*|chrU(extra)?|U(extra)?|.*Het|un"),
        (UNPLACED, r"(NT|NW|NZ_[A-Z]{4,6}\d*)_?\d+(\.\d+)?"),
        (UNPLACED, r"(GL|KI|KB|KE|KN|KQ|KV|KZ|JH|JL|DS|ML|MU)\d{6}([.v]\d+)?"),
        (UNPLACED, r"[A-Z]{4,6}\d{8,}(\.\d+)?"),
        (UNPLACED, r"(.*_)?(scaffold|super_?contig|contig|ctg|unitig|tig)[_\-.]?[\d._]*(arrow|pilon)?"),
    )
)
_DESCRIPTION_RULES = tuple(
    (reason, re.compile(pattern, re.IGNORECASE))
    for reason, pattern in (
        ("mitochondrial", r"\bmitochondri(on|al)\b|chromosome:[^:]*:MT:"),
        ("plastid", r"\b(chloroplast|plastid|apicoplast)\b"),
        ("alternate", r"alternate locus|ALT_REF_LOCI"),
        ("patch", r"\b(fix|novel) patch\b|PATCHES"),
        (
            UNPLACED,
            r"unplaced|unlocalized|\bdna(_rm|_sm)?:(scaffold|supercontig|contig)\b|whole genome shotgun sequence$",
        ),
    )
)
_PRIMARY_NAME = re.compile(
    r"(chr(omosome)?[_.]?|LG_?)(\d{1,3}[A-Z]?|[IVX]+|[2-4][LR]|[XYZWUV]\d?)"
    r"|\d{1,3}[A-Z]?|[IVX]+|[XYZW]|NC_\d{6}(\.\d+)?|(CM|CP)\d{6}(\.\d+)?",
    re.IGNORECASE,
)
_PRIMARY_PART = re.compile(r"chr(omosome)?[_.]?(\d{1,3}|[IVX]+|[XYZW])|NC_\d{6}(\.\d+)?|CM\d{6}(\.\d+)?", re.IGNORECASE)
_PRIMARY_DESCRIPTION = re.compile(r"\bdna(_rm|_sm)?:chromosome\b|\bchromosome:? \w+|complete genome", re.IGNORECASE)


class ContigSelection(NamedTuple):
    """The contigs in use, in the store's order."""

    chosen: tuple[Contig, ...]
    left_out: tuple[tuple[Contig, str], ...]
    """With the reason of each: `unplaced`, `mitochondrial`, …, or `not chosen`."""

    def summary(self) -> str:
        """The contigs left out, counted by reason: "3 unplaced, 1 mitochondrial (chrM)"; "" if there are none."""
        parts = []
        for reason, count in Counter(reason for _, reason in self.left_out).most_common():
            names = [contig.name for contig, why in self.left_out if why == reason]
            parts.append(f"{count} {reason} ({', '.join(names[:3])}{', …' if count > 3 else ''})")
        return ", ".join(parts)


class Duplicate(NamedTuple):
    """Two intervals with the same bases."""

    first: Interval
    second: Interval
    kind: str
    """`contig` or `pseudo-autosomal`."""


def select_contigs(store: TokenStore, patterns: list[str] | None = None) -> ContigSelection:
    """Contigs by names or shell patterns (`chr[1-9]*`); without patterns the primary ones.

    By default unplaced and alternate sequences, patches, decoys, viruses and organelles are left out, but never
    everything: in a genome without a single chromosome by name, scaffolds are what there is, and stay.
    Raises `InputError` naming the pattern that no contig matches.
    """
    return _select_matching(store, patterns) if patterns else _select_primary(store.contigs)


def _select_matching(store: TokenStore, patterns: list[str]) -> ContigSelection:
    chosen: set[str] = set()
    for pattern in patterns:
        found = store.names.find(pattern)
        matched = {found} if found else {c.name for c in store.contigs if fnmatch.fnmatchcase(c.name, pattern)}
        if not matched:
            raise InputError(f"no contig of {store.path} matches {pattern!r}{store.names.suggestion()}")
        chosen |= matched
    return ContigSelection(
        tuple(contig for contig in store.contigs if contig.name in chosen),
        tuple((contig, "not chosen") for contig in store.contigs if contig.name not in chosen),
    )


def _select_primary(contigs: tuple[Contig, ...]) -> ContigSelection:
    reasons = {contig.name: reason_to_leave_out(contig) for contig in contigs}
    if not any(not reasons[contig.name] and is_chromosome(contig) for contig in contigs):
        reasons = {name: "" if reason == UNPLACED else reason for name, reason in reasons.items()}
    if all(reasons.values()):
        reasons = dict.fromkeys(reasons, "")
    return ContigSelection(
        tuple(contig for contig in contigs if not reasons[contig.name]),
        tuple((contig, reasons[contig.name]) for contig in contigs if reasons[contig.name]),
    )


def reason_to_leave_out(contig: Contig) -> str:
    """Why a contig is not primary, by its name or description; "" if nothing says so."""
    for part in (contig.name, *_parts(contig.name)):
        for reason, rule in _NAME_RULES:
            if rule.fullmatch(part):
                return reason
    for reason, rule in _DESCRIPTION_RULES:
        if rule.search(contig.description) and not (reason == UNPLACED and _PRIMARY_NAME.fullmatch(contig.name)):
            return reason
    return ""


def is_chromosome(contig: Contig) -> bool:
    """Whether name or description say that this is a chromosome or a complete genome."""
    return bool(
        _PRIMARY_NAME.fullmatch(contig.name)
        or any(_PRIMARY_PART.fullmatch(part) for part in _parts(contig.name))
        or _PRIMARY_DESCRIPTION.search(contig.description)
    )


def _parts(name: str) -> list[str]:
    """The parts of names like `gi|9626243|ref|NC_001416.1|` and `Umaydis:chr01:1:+:2476500`; none of a plain name."""
    parts = re.split(r"[|:]", name)
    return [part for part in parts if len(part) > 2] if len(parts) > 1 else []


_PSEUDO_AUTOSOMAL = {
    # (length of X, length of Y): ((start in X, start in Y, length), …)
    (155270560, 59373566): ((60000, 10000, 2639520), (154931043, 59034049, 329517)),  # GRCh37
    (156040895, 57227415): ((10000, 10000, 2771479), (155701382, 56887902, 329513)),  # GRCh38
}


def find_duplicates(store: TokenStore, contigs: tuple[Contig, ...]) -> tuple[Duplicate, ...]:
    """Equal contigs (by their digests) and human X/Y pseudo-autosomal regions that are not masked in one of them.

    Cheap: no sequence is read but that of the two pseudo-autosomal regions, if the lengths are those of GRCh37 or 38.
    """
    found = []
    first_of: dict[str, Contig] = {}
    for contig in contigs:
        first = first_of.setdefault(contig.digest, contig)
        if first is not contig and contig.n_count < contig.length:
            found.append(
                Duplicate(Interval(first.name, 0, first.length), Interval(contig.name, 0, contig.length), "contig")
            )
    by_length = {contig.length: contig for contig in contigs}
    for (x_length, y_length), regions in _PSEUDO_AUTOSOMAL.items():
        x, y = by_length.get(x_length), by_length.get(y_length)
        if x is None or y is None:
            continue
        for x_start, y_start, length in regions:
            in_x = store.read(x.name, x_start, x_start + length) & TOKEN_BITS
            in_y = store.read(y.name, y_start, y_start + length) & TOKEN_BITS
            if np.array_equal(in_x, in_y) and (in_x < BASES).any():
                found.append(
                    Duplicate(
                        Interval(x.name, x_start, x_start + length),
                        Interval(y.name, y_start, y_start + length),
                        "pseudo-autosomal",
                    )
                )
    return tuple(found)
