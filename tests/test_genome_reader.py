"""Reading genome files: what is accepted, what is counted, and the one line that says what is wrong."""

import gzip
import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from dnamamba import text_files
from dnamamba.alphabet import SOFT_MASK_BIT, N, decode, encode, reverse_complement
from dnamamba.errors import InputError
from dnamamba.genome import reader
from dnamamba.genome.reader import SequenceBlock, SourceFile, read_genome


def records(path: Path) -> dict[str, tuple[str, str, int]]:
    """name -> (description, sequence, ambiguous codes)."""
    found: dict[str, tuple[str, str, int]] = {}
    for item in read_genome(path):
        if isinstance(item, SequenceBlock):
            if item.first:
                assert item.name not in found
                found[item.name] = (item.description, "", 0)
            description, sequence, ambiguous = found[item.name]
            found[item.name] = (description, sequence + decode(item.tokens), ambiguous + item.ambiguous)
    return found


def write(tmp_path: Path, data: bytes, name: str = "genome.fa") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def test_alphabet_round_trip():
    text = "ACGTNacgtn"
    assert decode(encode(text)) == text
    assert decode(encode("ARYx-")) == "ANNn?"
    assert decode(reverse_complement(encode("AaCGn"))) == "nCGtT"


def test_headers_and_line_ends(tmp_path):
    path = write(
        tmp_path,
        b"\n\n>chr1 a b\r\nACGT\r\n\r\nac gt\r\n>gi|9|ref|NC_1.1|\tphage\nNNRYn\n\n>MAL1 \nA\n>empty\n>last\nGG",
    )
    assert records(path) == {
        "chr1": ("a b", "ACGTacgt", 0),
        "gi|9|ref|NC_1.1|": ("phage", "NNNNn", 2),
        "MAL1": ("", "A", 0),
        "empty": ("", "", 0),
        "last": ("", "GG", 0),
    }


def test_byte_order_mark_and_header_at_the_end(tmp_path):
    assert records(write(tmp_path, b"\xef\xbb\xbf>a\nAC\n>b tail")) == {"a": ("", "AC", 0), "b": ("tail", "", 0)}


@given(
    contigs=st.lists(st.text("ACGTNacgtnRYkx", max_size=40), min_size=1, max_size=5),
    width=st.integers(1, 12),
    block=st.integers(1, 30),
    line_end=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
)
@settings(max_examples=50, deadline=None)
def test_any_block_boundary_gives_the_same(tmp_path_factory, contigs, width, block, line_end):
    text = ""
    expected = {}
    for number, sequence in enumerate(contigs):
        # Enough plain bases that the codes stay a minority.
        sequence += "ACGT" * 20
        lines = [sequence[i : i + width] for i in range(0, len(sequence), width)]
        text += f">c{number} the {number}th" + line_end + line_end.join(lines) + line_end
        codes = sum(letter in "RYkx" for letter in sequence)
        expected[f"c{number}"] = (f"the {number}th", decode(encode(sequence)), codes)
    path = write(tmp_path_factory.mktemp("fasta"), text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "READ_BYTES", max(block, len(line_end) * 2 + 2))
        assert records(path) == expected


def test_compressed_equals_plain_and_is_identified(tmp_path):
    plain = b">a\nACGTNN\n>b\nacgt\n"
    first, second = write(tmp_path, plain), write(tmp_path, gzip.compress(plain[:9]) + gzip.compress(plain[9:]), "g.gz")
    assert records(first) == records(second)
    sources = [item for path in (first, second) for item in read_genome(path) if isinstance(item, SourceFile)]
    import hashlib

    for path, source in zip((first, second), sources, strict=True):
        assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (source.size, source.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)


def test_progress_counts_the_file(tmp_path):
    path = write(tmp_path, gzip.compress(b">a\n" + b"ACGT" * 10_000))
    read: list[int] = []
    list(read_genome(path, read.append))
    assert sum(read) == path.stat().st_size


def bgzip(data: bytes, *, end_mark: bool) -> bytes:
    """One bgzip block: gzip with the extra field BC."""
    import struct
    import zlib

    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush()
    size = len(body) + 25
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", size)
    block = head + body + struct.pack("<II", zlib.crc32(data), len(data))
    return block + (text_files.BGZIP_END if end_mark else b"")


def test_bgzip_is_read_and_its_end_block_missed(tmp_path, capsys):
    assert records(write(tmp_path, bgzip(b">a\nACGT\n", end_mark=True)))["a"][1] == "ACGT"
    assert not capsys.readouterr().err
    assert records(write(tmp_path, bgzip(b">a\nACGT\n", end_mark=False)))["a"][1] == "ACGT"
    assert "bgzip's last block is missing" in capsys.readouterr().err


LONG = b">chr1\n" + b"ACGTTGCA\n" * 4000
PROTEIN = b">P1\nMKTAYIAKQR\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (gzip.compress(b"", mtime=0), "empty"),
        (b"ACGT\nACGT\n", "line 1: no FASTA header"),
        (b"\n\nACGT\n>a\nAC", "line 3: no FASTA header"),
        (b"\x00\x01\x02\x03", "binary data"),
        (b">a\nACGT\n\x00\x00", "binary data"),
        (b"\xff\xd8\xff\xe0", "binary data"),
        (b"\x1a\x41\x27\x43\0\0\0\0", "2bit"),
        (b"BZh91AY", "bzip2"),
        (gzip.compress(b"BAM\x01\0\0", mtime=0), "BAM"),
        (gzip.compress(LONG, mtime=0)[:-20], "truncated"),
        (b"\x1f\x8b\x08\x00", "truncated"),
        (b"\x1f\x8b\x08\x00\0\0\0\0\0\x03garbage!", "gzip data are damaged"),
        (gzip.compress(LONG, mtime=0)[:60] + b"xxxx" + gzip.compress(LONG, mtime=0)[64:], "gzip data are damaged"),
        (PROTEIN, "record 'P1', line 2, column 6: 'I' is an amino-acid code: this looks like protein"),
        (b">P2\n" + b"MKTAVRDHSW" * 3 + b"\n", "line 1: 24 of 30 letters are IUPAC ambiguity codes"),
        (b">a\nAC\n\nACG1\n", "record 'a', line 4, column 4: '1' is not a nucleotide code"),
        (b">a\nAC-G\n", "column 3: '-' is a gap"),
        (b">a\nACG>T\n", "record 'a', line 2, column 4: '>' within a line"),
        (b">\nACGT\n", "line 1: a header without a name"),
    ],
)
def test_bad_files_are_named(tmp_path, data, expected):
    path = write(tmp_path, data)
    with pytest.raises(InputError) as caught:
        records(path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_position_survives_block_boundaries(tmp_path, monkeypatch):
    path = write(tmp_path, b">a\n" + b"ACGTACGT\n" * 100 + b"ACGTAC!T\n")
    for size in (7, 64, 900):
        monkeypatch.setattr(reader, "READ_BYTES", size)
        with pytest.raises(InputError, match=r"line 102, column 7: '!'"):
            records(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        records(tmp_path / "none.fa")
    with pytest.raises(InputError, match="folder"):
        records(tmp_path)


def test_files_of_every_line_end_and_encoding(tmp_path):
    expected = {"chr1": ("one \u2028 a", "ACGTacgt", 0), "gène": ("", "GG", 0)}
    text = ">chr1 one \u2028 a\nACGT\nacgt\n>gène\nGG\n"
    for data in (
        text.encode(),
        text.replace("\n", "\r").encode(),
        text.replace("\n", "\r\n").encode("utf-8-sig"),
        text.replace("gène", "g\ne").encode().replace(b">g\ne", ">gène".encode("latin-1")),
        gzip.compress(text.encode("utf-8-sig")) + b"\r\n",
    ):
        assert records(write(tmp_path, data)) == expected
    with pytest.raises(InputError, match="UTF-16; expected FASTA"):
        records(write(tmp_path, text.encode("utf-16")))


def test_old_mac_lines_are_counted(tmp_path):
    with pytest.raises(InputError, match=r"record 'b', line 5, column 3: '1'"):
        records(write(tmp_path, b">a\rAC\rGT\r>b\rAC1\r"))


def test_rna_and_masks(tmp_path):
    """U is T; X is N, soft-masked by its case, and no sign of protein however much of it there is."""
    found = records(write(tmp_path, b">r\nACGUacgu\n>m\n" + b"ACGT" * 5 + b"X" * 70 + b"x" * 9 + b"\n"))
    assert found == {"r": ("", "ACGTacgt", 0), "m": ("", "ACGT" * 5 + "N" * 70 + "n" * 9, 79)}
    for letter in b"EFILPQefilpq":
        with pytest.raises(InputError, match="amino-acid code"):
            records(write(tmp_path, b">p\nAC" + bytes([letter])))


@pytest.mark.parametrize("header", [b"track_1 x", b"browser2", b"track", b'ctg"1"', b"it's;2", b"a,b|c=d"])
def test_any_word_is_a_contigs_name(tmp_path, header):
    name, _, description = header.decode().partition(" ")
    assert records(write(tmp_path, b">" + header + b"\nACGT\n")) == {name: (description, "ACGT", 0)}


def test_memory_does_not_grow_with_a_line(tmp_path):
    """A chromosome in one line, of 100 M bases packed into 100 kB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = packer.compress(b">one\n") + b"".join(packer.compress(b"ACGT" * (1 << 18)) for _ in range(100))
    path = write(tmp_path, data + packer.flush(), "one.fa.gz")
    code = (
        "import resource, sys; from pathlib import Path; from dnamamba.genome.reader import read_genome\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "bases = sum(block.tokens.size for block in read_genome(Path(sys.argv[1])) if hasattr(block, 'tokens'))\n"
        "print(bases, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True, text=True)
    bases, kilobytes = map(int, done.stdout.split())
    assert bases == 100 << 20 and kilobytes < 60_000


def genbank(sequence: str, name: str = "X1") -> bytes:
    record = SeqRecord(
        Seq(sequence), id=f"{name}.1", name=name, description="a phage", annotations={"molecule_type": "DNA"}
    )
    text = io.StringIO()
    SeqIO.write([record], text, "genbank")
    return text.getvalue().encode()


def test_genbank_plain_and_gzip(tmp_path):
    data = genbank("acgtnr" * 30) + genbank("ACGT" * 5, "X2")
    expected = {"X1.1": ("a phage", "ACGTNN" * 30, 30), "X2.1": ("a phage", "ACGT" * 5, 0)}
    assert records(write(tmp_path, data, "g.gb")) == expected
    assert records(write(tmp_path, gzip.compress(data), "g.gb.gz")) == expected


def with_ids(accession: str, version: str, name: str, sequence: str = "acgt" * 30) -> bytes:
    data = genbank(sequence, name)
    lines = [line for line in data.split(b"\n") if not line.startswith((b"ACCESSION", b"VERSION"))]
    lines[2:2] = [b"ACCESSION   " + accession.encode()] + ([b"VERSION     " + version.encode()] if version else [])
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("records_of", "names"),
    [
        ([("A", "A.2", "L")], ["A.2"]),
        ([("A B", "A.2  GI:1", "L")], ["A.2"]),
        ([("", "", "L")], ["L"]),
        ([(".", ".", "L1"), (".", ".", "L2")], ["L1", "L2"]),
        ([("unknown", "", "L1"), ("C", "C.1", "L2"), ("unknown", "", "L3")], ["L1", "C.1", "L3"]),
        ([("urn.local...1", ".", "L1"), ("urn.local...2", "", "L2")], ["L1", "urn.local...2"]),
        ([("N_cov_2", "N_cov_2.5", "N_cov_2.05"), ("N_cov_2", "N_cov_2.5", "N_cov_2.5")], ["N_cov_2.05", "N_cov_2.5"]),
    ],
)
def test_genbank_names(tmp_path, records_of, names):
    """Those of Biopython where they distinguish the records, else those of the LOCUS lines."""
    data = b"".join(with_ids(*record) for record in records_of)
    assert list(records(write(tmp_path, data))) == names
    theirs = [record.id for record in SeqIO.parse(io.StringIO(data.decode()), "genbank")]
    useless = {"", ".", "unknown", "<unknown id>", *(name for name in theirs if theirs.count(name) > 1)}
    assert [name for name in theirs if name not in useless] == [
        name for name, their in zip(names, theirs, strict=True) if their not in useless
    ]


RELEASE = b"GBBCT1.SEQ          Genetic Sequence Data Bank\n                     June 15 2026\n\n\n"


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\n\n", RELEASE], ids=["plain", "BOM", "blank", "release"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("columns", ["right", "wide", "none", "from 501"])
def test_genbank_as_programs_write_it(tmp_path, before, end, columns):
    sequence = "acgtnrxu" * 300
    data = before + genbank(sequence.replace("u", "t"), "X1").replace(b"nrxt", b"nrxu") + genbank("ACGT" * 5, "X2")
    if columns != "right":
        lines = data.split(b"\n")
        for number, line in enumerate(lines):
            if line[:9].strip().isdigit():
                numbers = {"wide": b" " + line[:9], "none": b" " * 9, "from 501": b"%9d" % (int(line[:9]) + 500)}
                lines[number] = numbers[columns] + line[9:]
        data = b"\n".join(lines)
    found = records(write(tmp_path, data.replace(b"\n", end)))
    assert found == {"X1.1": ("a phage", "ACGTNNNT" * 300, 600), "X2.1": ("a phage", "ACGT" * 5, 0)}


def test_damaged_genbank(tmp_path):
    whole = genbank("acgt" * 300)
    half = whole[: len(whole) // 2].rsplit(b"\n", 1)[0]
    cases = {
        half: r"record 'X1.1': truncated or damaged: the file ends within it",
        half + b"\n//\n": r"record 'X1.1', line 1: truncated or damaged: Expected sequence length 1200, found \d+",
        half + b"\n" + whole: r"record 'X1\w*', line \d+: truncated or damaged: the next record begins before `//`",
        whole.replace(b"\n      121 ", b"\n      127 "): r"line \d+, column 1: position '127', expected 121; a line is",
        whole.replace(b"\n      121 ", b"\n      1x1 "): r"line \d+, column 1: position '1x1', expected 121",
        whole.replace(b"\n      121 acgtacgtac", b"\n      121 acgtacgEac"): r"position 128: 'E' is no nucleotide",
        whole.replace(b"\n      121 a", b"\n      121 \xe9"): r"line \d+: a letter that is no nucleotide in '121 é",
        whole.replace(b"\n      121 acgt", b"\n      121acgtt"): r"line \d+, column 1: position '121ac', expected 121",
        whole.replace(b" bp ", b" ba "): r"line 1: no valid GenBank: Did not recognise the LOCUS line layout: LOCUS",
        whole.split(b"        1 ")[0]
        + b"            acgt\n//\n": r"record 'X1.1', line 1: no lines of sequence behind ORIGIN",
        whole + b"LOCUS       X2 4 bp\nDEFINITION  x\n": r"record 'X2': truncated or damaged: the file ends",
    }
    for data, message in cases.items():
        with pytest.raises(InputError, match=message):
            records(write(tmp_path, data))


def test_genbank_with_odd_annotation(tmp_path):
    """What a genome does not need is not read, and where programs put their columns does not matter."""
    data = genbank("acgt" * 30)
    odd = data.replace(b"LOCUS       X1    ", b"LOCUS  X1         ").replace(b"KEYWORDS", b"  AUTHORS   A.,\nKEYWORDS")
    odd = odd.replace(b"FEATURES             ", b"FEATURES  ")
    odd = odd.replace(b"ORIGIN", b"     CDS   (1..\n 1\nBASE COUNT\nORIGIN")
    odd = odd.replace(b"//", b"CONTIG      join(X9.1:1..120)\n//")
    assert odd.count(b"\n") == data.count(b"\n") + 5
    expected = {"X1.1": ("a phage", "ACGT" * 30, 0), "X2.1": ("a phage", "ACGT" * 5, 0)}
    assert records(write(tmp_path, odd + genbank("ACGT" * 5, "X2"))) == expected


def test_protein_in_genbank(tmp_path):
    data = genbank("mkvsdhrwyacg" * 9)
    with pytest.raises(InputError, match=r"record 'X1.1', line 1: \d+ of 108 letters are IUPAC .* protein"):
        records(write(tmp_path, data))


def test_genbank_without_biopython(tmp_path, monkeypatch):
    path = write(tmp_path, genbank("acgt" * 30))
    monkeypatch.setitem(sys.modules, "Bio", None)
    with pytest.raises(InputError, match=r"genome.fa: reading GenBank needs Biopython: pip install biopython"):
        records(path)


def test_genbank_without_sequence(tmp_path):
    data = genbank("acgt" * 30)
    cut = data[: data.index(b"ORIGIN")] + b"ORIGIN\n//\n"
    with pytest.raises(InputError, match=r"X1.1.*without its sequence"):
        records(write(tmp_path, cut))


def test_tokens_are_those_of_the_design(tmp_path):
    blocks = [
        item.tokens for item in read_genome(write(tmp_path, b">a\nACGTNRacgtnr\n")) if isinstance(item, SequenceBlock)
    ]
    expected = [0, 1, 2, 3, N, N] + [token | SOFT_MASK_BIT for token in (0, 1, 2, 3, N, N)]
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
