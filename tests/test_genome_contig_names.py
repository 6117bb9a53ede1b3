"""Contigs under other names: every style that files mix, and no guess where two are meant."""

import pytest

from dnamamba.errors import InputError
from dnamamba.genome.contig_names import ContigNames

FOUND = [
    ("chr1", ["chr1"], "chr1"),
    ("1", ["chr1", "chr11"], "chr1"),
    ("chrX", ["X"], "X"),
    ("chr1", ["Chr1"], "Chr1"),
    ("MT", ["chrM"], "chrM"),
    ("chrM", ["MT"], "MT"),
    ("M", ["chrMT"], "chrMT"),
    ("chrMT", ["M"], "M"),
    ("MT", ["chrM", "chrMT"], "chrMT"),  # hg19 has both: the spelling that differs by `chr` alone
    ("1", ["1", "chr1"], "1"),
    ("chr1", ["1", "chr1"], "chr1"),
    ("LRG_1", ["LRG_1|COL1A1|NG_007400.1", "LRG_11|X"], "LRG_1|COL1A1|NG_007400.1"),
    ("NG_007400.1", ["LRG_1|COL1A1|NG_007400.1"], "LRG_1|COL1A1|NG_007400.1"),
    ("gi|9626243|ref|NC_001416.1|", ["NC_001416.1"], "NC_001416.1"),
    ("NC_000001", ["NC_000001.11", "NC_000010.11"], "NC_000001.11"),
    ("CM000663.2", ["CM000663"], "CM000663"),
    ("NC_000001.10", ["NC_000001.11"], None),  # another assembly
    ("scaffold", ["scaffold.1"], None),
    ("ref", ["gi|1|ref|NC_1.1|"], None),
    ("chrmt", ["chrM"], None),
    ("", ["chr1"], None),
    ("2", ["chr1"], None),
]


@pytest.mark.parametrize(("name", "genome", "found"), FOUND)
def test_every_style(name, genome, found):
    names = ContigNames([*genome, "other"])
    assert names.find(name) == found
    assert names.find(name) == found  # from what it remembers
    assert names.by_other_name == ({name: found} if found not in (None, name) else {})
    assert names.matched() == (f"{name} is {found}" if names.by_other_name else "")


@pytest.mark.parametrize(
    ("name", "genome"),
    [
        ("chr1", ["1", "Chr1"]),
        ("chrMT", ["M", "chrM"]),
        ("NC_000001", ["NC_000001.10", "NC_000001.11"]),
        ("GENE", ["a|GENE", "b|GENE"]),
    ],
)
def test_two_could_be_meant(name, genome):
    with pytest.raises(InputError, match=f"contig '{name}' could be {genome[0]}".replace("|", r"\|")):
        ContigNames(genome).find(name)
