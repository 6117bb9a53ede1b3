"""GFF3 and GTF files to exons: coordinates, names, circles, and everything that can be wrong with a row."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from dnamamba.errors import InputError
from dnamamba.genome.annotation import read_annotation
from dnamamba.genome.store import TokenStore, open_genome

GFF = """##gff-version 3
#!a comment
1\tx\tgene\t11\t90\t.\t+\t.\tID=g
1\tx\texon\t11\t20\t.\t+\t.\tParent=g
1\tx\tCDS\t15\t25\t.\t-\t0\tParent=g

chr2\tx\texon\t100\t100\t.\t+\t.\tID=e
chrUn\tx\texon\t1\t5\t.\t+\t.\tID=u
chrUn\tx\texon\t7\t9\t.\t+\t.\tID=v
##FASTA
>chr1
ACGT
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    path = tmp_path_factory.mktemp("genome") / "two.fa"
    path.write_text(">chr1\n" + "ACGT" * 25 + "\n>chr2\n" + "ACGT" * 25 + "\n>chr3\n" + "ACGT" * 25 + "\n")
    return open_genome(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_coordinates_names_and_merging(store: TokenStore, tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.gff3"
    path.write_bytes(gzip.compress(GFF.encode()) if compressed else GFF.encode())
    annotation = read_annotation(path, store)
    assert {name: pairs.tolist() for name, pairs in annotation.exons.items()} == {
        "chr1": [[10, 25]],  # 1-based 11 to 25 with both ends
        "chr2": [[99, 100]],
    }
    assert annotation.contigs == {"chr1", "chr2"}
    assert annotation.unknown == {"chrUn": 2}
    assert "2 lines on 1 contigs" in annotation.summary() and "chrUn" in annotation.summary()
    assert np.flatnonzero(annotation.exon_mask("chr1", 5, 30)).tolist() == list(range(5, 20))
    assert annotation.exon_mask("chr1", 12, 14).all() and not annotation.exon_mask("chr1", 25, 60).any()
    assert not annotation.exon_mask("chr3", 0, 100).any()


def test_gtf_and_windows_line_ends(store: TokenStore, tmp_path: Path) -> None:
    path = tmp_path / "a.gtf"
    path.write_bytes(b'chr3\tx\texon\t1\t3\t.\t+\t.\tgene_id "g"; exon_number 1;\r\n')
    assert read_annotation(path, store).exons["chr3"].tolist() == [[0, 3]]


@pytest.mark.parametrize("kind", ["region", "chromosome", "plasmid", "contig"])
@pytest.mark.parametrize("late", [False, True])
def test_features_over_the_origin_of_a_circle(store: TokenStore, tmp_path: Path, kind: str, late: bool) -> None:
    path = tmp_path / "a.gff3"
    landmark = f"chr1\tx\t{kind}\t1\t100\t.\t+\t.\tID=r;Is_circular=true\n"
    features = "chr1\tx\tCDS\t91\t105\t.\t+\t0\tID=c\nchr1\tx\tCDS\t108\t110\t.\t+\t0\tID=c\n"
    path.write_text(features + landmark if late else landmark + features)
    assert read_annotation(path, store).exons["chr1"].tolist() == [[0, 5], [7, 10], [90, 100]]
    path.write_text(features + landmark.replace("Is_circular=true", "Note=Is_circular=true"))
    with pytest.raises(InputError, match="line 1: end 105 is beyond contig chr1, which has 100 bases and is nowhere"):
        read_annotation(path, store)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_and_line_ends(store: TokenStore, tmp_path: Path, mark: str, end: str) -> None:
    path = tmp_path / "a.gff3"
    path.write_bytes((mark + GFF).replace("\n", end).encode())
    assert read_annotation(path, store).exons["chr1"].tolist() == [[10, 25]]
    path.write_bytes(GFF.encode("utf-16"))
    with pytest.raises(InputError, match="text in UTF-16; expected an annotation of genes as GFF3 or GTF"):
        read_annotation(path, store)


FAULTS = {
    "columns": ("chr1\tx\texon\t1\t5\n", "line 1: 5 tab-separated columns"),
    "blanks": ("chr1 x exon 1 5 . + . ID=e\n", "line 1: 1 tab-separated columns"),
    "words": ("#c\nchr1\tx\texon\tone\t5\t.\t+\t.\tID=e\n", "line 2: start 'one'"),
    "underscore": ("chr1\tx\texon\t1_0\t5\t.\t+\t.\tID=e\n", "start '1_0'"),
    "tab": ("chr1\tx\texon\t1\t5\t.\t+\t.\tID=e;\tParent=t\n", "line 1: 10 tab-separated columns; GFF3 and GTF have 9"),
    "strand": ("chr1\tx\texon\t1\t5\t.\tx\t.\tID=e\n", "line 1: the strand (column 7) is 'x'; expected + - . or ?"),
    "features behind a name": (
        "chr1\tx\texon\t1\t5\t.\t-\t.\tID=e\n>hr1\tx\texon\t1\t5\t.\t+\t.\tID=f\nchr1\tx\texon\t9\t9\t.\t+\t.\tID=g\n",
        "line 3: columns behind a line ##FASTA or one that begins with '>'",
    ),
    "zero": ("chr1\tx\texon\t0\t5\t.\t+\t.\tID=e\n", "1 <= start <= end"),
    "reversed": ("chr1\tx\tCDS\t9\t5\t.\t+\t.\tID=e\n", "1 <= start <= end"),
    "beyond": ("chr1\tx\texon\t91\t101\t.\t+\t.\tID=e\n", "beyond contig chr1, which has 100"),
    "nothing": ("chr1\tx\tgene\t1\t5\t.\t+\t.\tID=e\n", "no exon or CDS"),
    "empty": ("", "no exon or CDS"),
    "foreign": ("NC_1\tx\texon\t1\t5\t.\t+\t.\tID=e\n", "the contigs are chr1, chr2, chr3"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_rows_are_named(store: TokenStore, tmp_path: Path, name: str) -> None:
    text, expected = FAULTS[name]
    path = tmp_path / "bad.gff3"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_annotation(path, store)
    assert expected in str(error.value) and "bad.gff3" in str(error.value)


def test_files_that_cannot_be_read(store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_annotation(tmp_path / "missing.gff3", store)
    with pytest.raises(InputError, match="a folder; expected an annotation"):
        read_annotation(tmp_path, store)
    cut = tmp_path / "cut.gff3.gz"
    cut.write_bytes(gzip.compress(GFF.partition("##FASTA")[0].encode())[:-12])
    with pytest.raises(InputError, match="truncated"):
        read_annotation(cut, store)
