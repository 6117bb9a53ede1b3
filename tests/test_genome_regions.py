"""Regions as samtools reads them."""

import numpy as np
import pysam
import pytest

from dnamamba.errors import InputError
from dnamamba.genome.intervals import Interval
from dnamamba.genome.regions import merged_regions, parse_region, read_regions
from dnamamba.genome.store import open_genome


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    path = tmp_path_factory.mktemp("regions") / "genome.fa"
    rng = np.random.default_rng(0)
    records = {"chr1": 1200, "chr2": 50, "HLA-A*01:01:02": 300, "odd:1-20": 40, "chrM": 16}
    path.write_text("".join(f">{name}\n{''.join(rng.choice(list('ACGT'), n))}\n" for name, n in records.items()))
    return path


@pytest.fixture(scope="module")
def store(fasta):
    return open_genome(fasta)


SPELLINGS = [
    ("chr1", Interval("chr1", 0, 1200)),
    ("chr1:1-1", Interval("chr1", 0, 1)),
    ("chr1:101-1,200", Interval("chr1", 100, 1200)),
    ("chr1:1,001-1,010", Interval("chr1", 1000, 1010)),
    ("chr1:100", Interval("chr1", 99, 1200)),
    ("chr1:100-", Interval("chr1", 99, 1200)),
    ("chr1:-200", Interval("chr1", 0, 200)),
    ("{chr1}:5-6", Interval("chr1", 4, 6)),
    ("{chr1}", Interval("chr1", 0, 1200)),
    ("HLA-A*01:01:02", Interval("HLA-A*01:01:02", 0, 300)),
    ("HLA-A*01:01:02:7-9", Interval("HLA-A*01:01:02", 6, 9)),
    ("{HLA-A*01:01:02}:7-9", Interval("HLA-A*01:01:02", 6, 9)),
    ("odd:1-20", Interval("odd:1-20", 0, 40)),
    ("odd:1-20:3-4", Interval("odd:1-20", 2, 4)),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *SPELLINGS,
        ("1:5-6", Interval("chr1", 4, 6)),
        ("{1}:5-6", Interval("chr1", 4, 6)),
        ("MT", Interval("chrM", 0, 16)),
    ],
)
def test_spellings(store, text, expected):
    assert parse_region(text, store) == expected


@pytest.mark.parametrize(("text", "expected"), SPELLINGS)
def test_samtools_takes_the_same_bases(fasta, store, tmp_path, text, expected):
    pysam.faidx("-o", str(tmp_path / "theirs.fa"), str(fasta), text)
    theirs = "".join((tmp_path / "theirs.fa").read_text().splitlines()[1:])
    ours = store.read(expected.contig, expected.start, expected.end)
    assert theirs == "".join("ACGT"[token] for token in ours)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1:0-10", "--region: chr1:0-10: bases are counted from 1"),
        ("chr1:10-9", "--region: chr1:10-9: the start lies behind the end"),
        ("chr1:1-1201", "--region: chr1:1-1201 reaches beyond the contig, which has 1,200 bases"),
        ("chr1:1300-1400", "--region: chr1:1300-1400 reaches beyond the contig, which has 1,200 bases"),
        ("chr1:1300", "--region: chr1:1300 reaches beyond the contig, which has 1,200 bases"),
        ("chr9", "no contig 'chr9'; the contigs are chr1, chr2"),
        ("chr1:a-b", "--region: 'chr1:a-b' is no region; expected CONTIG:START-END"),
        ("chr1:5-6-7", "--region: 'chr1:5-6-7' is no region"),
        ("chr1:", "--region: 'chr1:' is no region"),
        ("chr1:-", "--region: 'chr1:-' is no region"),
        ("", "--region: "),
        ("chr1:٥-٩", "--region: 'chr1:٥-٩' is no region"),
        ("chr1:1_0-20", "--region: 'chr1:1_0-20' is no region"),
        ("chr1:1-" + "9" * 5000, "is no base of any contig"),
    ],
)
def test_what_is_no_region(store, text, message):
    with pytest.raises(InputError) as caught:
        parse_region(text, store)
    assert message in str(caught.value)


def test_one_way_to_say_where(store, tmp_path):
    bed = tmp_path / "a.bed"
    bed.write_text("chr2\t5\t9\nchr1\t1\t3\nchr2\t8\t12\n")
    assert read_regions(store, None, bed) == [Interval("chr2", 5, 9), Interval("chr1", 1, 3), Interval("chr2", 8, 12)]
    assert read_regions(store, ["chr2:1-2", "chr1"], None) == [Interval("chr2", 0, 2), Interval("chr1", 0, 1200)]
    assert read_regions(store, None, None, ["chr2"]) == [Interval("chr2", 0, 50)]
    assert [interval.contig for interval in read_regions(store, None, None)] == [
        "chr1",
        "chr2",
        "odd:1-20",
    ]  # primary ones
    merged = merged_regions(store, read_regions(store, None, bed))
    assert {name: pairs.tolist() for name, pairs in merged.items()} == {"chr1": [[1, 3]], "chr2": [[5, 12]]}
    with pytest.raises(InputError, match="--region and --regions both say where"):
        read_regions(store, ["chr1"], bed)
    with pytest.raises(InputError, match="--regions and --contigs both say where"):
        read_regions(store, None, bed, ["chr1"])
    bed.write_text("# nothing\n")
    with pytest.raises(InputError, match=r"a\.bed: no intervals"):
        read_regions(store, None, bed)
