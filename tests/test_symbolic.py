"""Structural variants of a VCF: their alleles are those that are written out base by base."""

from pathlib import Path

import numpy as np
import pytest

from dnamamba.alphabet import decode, encode, reverse_complement
from dnamamba.genome.alleles import REASON_NAMES, Alleles, check
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.symbolic import Event, event_of
from dnamamba.genome.vcf import read_vcf

HEADER = "##fileformat=VCFv4.4\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    path = tmp_path_factory.mktemp("genome") / "one.fa"
    letters = np.random.default_rng(2).choice(list("ACGT"), 400)
    letters[300:310] = "N"
    path.write_text(f">chr1\n{''.join(letters)}\n")
    return open_genome(path)


def alleles_of(store: TokenStore, tmp_path: Path, *rows: tuple[int, str, str, str], longest: int = 60) -> Alleles:
    path = tmp_path / "some.vcf"
    lines = [f"chr1\t{start + 1}\t.\t{ref}\t{alt}\t.\t.\t{info}\n" for start, ref, alt, info in rows]
    path.write_text(HEADER + "".join(lines))
    return check(read_vcf(path), store, longest).alleles


def text(store: TokenStore, start: int, end: int) -> str:
    return decode(store.read("chr1", start, end))


@pytest.mark.parametrize(
    "info", ["END=130", "SVLEN=-30", "SVLEN=30;SVTYPE=X", "END=130;SVLEN=-30", "IMPRECISE;END=130"]
)
def test_events_are_the_alleles_written_out(store: TokenStore, tmp_path: Path, info: str) -> None:
    before, inside = text(store, 99, 100), text(store, 100, 130)
    turned = decode(reverse_complement(encode(inside)))
    written = {"<DEL>": (before + inside, before), "<INV>": (before + inside, before + turned)}
    written |= {"<DUP>": (before, before + inside), "<DUP:TANDEM>": (before, before + inside)}
    for symbol, (ref, alt) in written.items():
        symbolic = alleles_of(store, tmp_path, (99, before, symbol, info))
        plain = alleles_of(store, tmp_path, (99, ref, alt, "."))
        assert symbolic.reason.tolist() == plain.reason.tolist() == [0]
        assert (symbolic.start[0], symbolic.ref_length[0], symbolic.alt[0]) == (
            plain.start[0],
            plain.ref_length[0],
            plain.alt[0],
        )


def test_each_allele_of_a_record_has_its_length(store: TokenStore, tmp_path: Path) -> None:
    ref = text(store, 50, 51)
    found = alleles_of(store, tmp_path, (50, ref, f"<DEL>,{ref}A,<DUP>", "SVLEN=-10,1,20;END=71"))
    assert found.ref_length.tolist() == [10, 0, 0]
    assert [len(alt) for alt in found.alt] == [0, 1, 20]


@pytest.mark.parametrize(("alt", "info", "reason"), [
    ("<DEL>", ".", "symbolic"),
    ("<DEL>", "END=100", "symbolic"),
    ("<DEL>", "SVLEN=many", "symbolic"),
    ("<CNV>", "END=130", "symbolic"),
    ("<INS>", "SVLEN=30", "symbolic"),
    ("<DEL>", "END=161", "too_long"),
    ("<DUP>", "SVLEN=5000", "beyond_contig"),
])  # fmt: skip
def test_what_cannot_be_built_says_why(store: TokenStore, tmp_path: Path, alt: str, info: str, reason: str) -> None:
    found = alleles_of(store, tmp_path, (99, text(store, 99, 100), alt, info))
    assert REASON_NAMES[found.reason].tolist() == [reason]


def test_unknown_bases_and_palindromes(store: TokenStore, tmp_path: Path) -> None:
    ref = text(store, 289, 290)
    assert REASON_NAMES[alleles_of(store, tmp_path, (289, ref, "<DEL>", "END=305")).reason].tolist() == ["ref_not_acgt"]
    path = tmp_path / "palindrome.fa"
    path.write_text(">chr1\nTTTACGCGTCCC\n")
    own = open_genome(path)
    assert REASON_NAMES[alleles_of(own, tmp_path, (2, "T", "<INV>", "END=9")).reason].tolist() == ["same_as_ref"]


def test_events_follow_the_specification() -> None:
    assert event_of("<DEL:ME:ALU>", 0, 9, "END=20") == Event("DEL", 10, 20)
    assert event_of("<DEL>", 0, 9, "CIEND=1,2;END=20") == Event("DEL", 10, 20)
    assert event_of("A", 0, 9, "END=20") is None
