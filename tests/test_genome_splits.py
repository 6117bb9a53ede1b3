"""Intervals, BED files, contig selection, and splits that are disjoint after widening."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnamamba.errors import InputError
from dnamamba.genome import contigs as contigs_module
from dnamamba.genome.bed import BedRow, read_bed, read_intervals
from dnamamba.genome.contigs import find_duplicates, select_contigs
from dnamamba.genome.intervals import Interval, merge, subtract, widen
from dnamamba.genome.splits import SPLITS, Splits, make_splits, prove_disjoint
from dnamamba.genome.store import TokenStore, open_genome


def make_store(folder: Path, contigs: dict[str, int | str]) -> TokenStore:
    """A genome of contigs (header -> length or sequence)."""
    rng = np.random.default_rng(0)
    path = folder / "g.fa"
    with path.open("w") as file:
        for header, content in contigs.items():
            sequence = content if isinstance(content, str) else "".join(rng.choice(list("ACGT"), content))
            file.write(f">{header}\n{sequence}\n")
    return open_genome(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("splits"), {"chr1": 60_000, "chr2": 30_000, "chrM": 500})


pairs = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 15)), max_size=12).map(
    lambda items: np.array([(start, start + size) for start, size in items], np.int64).reshape(-1, 2)
)


def bases(intervals: np.ndarray) -> set[int]:
    return {base for start, end in intervals.tolist() for base in range(start, end)}


@given(pairs, pairs, st.integers(0, 9))
@settings(deadline=None)
def test_interval_sets_are_sets(first, second, by):
    merged = merge(first)
    assert bases(merged) == bases(first)
    assert (merged[1:, 0] > merged[:-1, 1]).all()
    assert bases(subtract(merged, merge(second))) == bases(first) - bases(second)
    expected = {base + shift for base in bases(first) for shift in range(-by, by + 1)} & set(range(70))
    assert bases(widen(merged[merged[:, 1] <= 70], by, 70)) <= expected | bases(first)
    if len(merged) and merged[-1, 1] <= 70:
        assert bases(widen(merged, by, 70)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("chr1\t5", "line 3: 2 columns"),
        ("chr1\ta\tb", "line 3: start 'a' and end 'b' must be whole numbers"),
        ("chr1\t1_0\t20", "line 3: start '1_0' and end '20' must be whole numbers"),
        ("chr1\t1\t+20", "line 3: start '1' and end '+20' must be whole numbers"),
        ("chr1\t1\t٢", "line 3: start '1' and end '٢' must be whole numbers"),
        ("track_1\t1\t2", "line 3: the genome has no contig 'track_1'"),
        ("chr1\t9\t8", "chr1:9-8 must have start < end"),
        ("chr1\t5\t\0", "line 3, column 8: binary data (a NUL byte)"),
        ("chr1\t-1\t9", "start '-1' and end '9' must be whole numbers, 0 or more"),
        ("chr1\t0\t60001", "chr1:0-60001 ends beyond the contig, which has 60000 bases"),
        ("chr1\t0\t5\tx\t0\t*", "line 3: the strand (column 6) is '*'; expected +, - or a point"),
        ("chrZ\t0\t5", "no contig 'chrZ'; the contigs are chr1, chr2, chrM"),
    ],
)
def test_bed_errors(store, tmp_path, line, expected):
    path = tmp_path / "x.bed"
    path.write_text(f"track name=x\n# comment\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_bed(path, store)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_bed_reading(store, tmp_path):
    path = tmp_path / "x.bed"
    text = b"chr2\t0\t30000\tname\t0\t-\r\n\r\nbrowser position chr1\n1 5 6\nMT\t0\t1\t\t0\t+\n"
    path.write_bytes(text)
    expected = [
        BedRow(1, Interval("chr2", 0, 30000), "name", "-"),
        BedRow(4, Interval("chr1", 5, 6), "", "+"),
        BedRow(5, Interval("chrM", 0, 1), "", "+"),
    ]
    assert read_bed(path, store) == expected
    assert store.names.by_other_name.items() >= {"1": "chr1", "MT": "chrM"}.items()
    (tmp_path / "x.bed.gz").write_bytes(gzip.compress(text))
    assert read_bed(tmp_path / "x.bed.gz", store) == expected
    with pytest.raises(InputError, match="no such file"):
        read_bed(tmp_path / "none.bed", store)


def test_of_intervals_alone_the_strand_does_not_matter(store, tmp_path):
    path = tmp_path / "repeats.bed"
    path.write_text("chr1\t0\t5\tAluY\tSINE\tAlu\n")
    assert read_intervals(path, store) == [Interval("chr1", 0, 5)]


def test_lines_of_genome_browsers_are_known_by_their_whole_first_word(tmp_path):
    (tmp_path / "g.fa").write_text(
        "".join(f">{name}\n{'ACGT' * 10}\n" for name in ("track_1", "browser2", "track", "s"))
    )
    store = open_genome(tmp_path / "g.fa")
    path = tmp_path / "x.bed"
    path.write_text("track name=a\nbrowser\tposition s\ntrack_1\t1\t4\nbrowser2 2 5\ntrack\t3\t6\ns\t1\t2\n")
    assert [str(row.interval) for row in read_bed(path, store)] == ["track_1:1-4", "browser2:2-5", "track:3-6", "s:1-2"]
    splits = make_splits(store, store.contigs, context_length=2, validation=["s"], exclude=[path])
    assert splits.left_out["excluded"] == 10
    assert {"track_1:0-1", "track_1:4-40", "browser2:5-40", "track:0-3"} <= {str(i) for i in splits.train}


def test_intervals_without_bases_and_blocks_are_counted(store, tmp_path, capsys):
    path = tmp_path / "x.bed"
    block = "chr1\t10\t90\tb\t0\t-\t10\t90\t0\t2\t10,10\t0,70\n"
    path.write_text(f"chr1\t100\t400\nchr1\t500\t500\tins\n{block}chr2\t7\t7\n")
    assert [str(row.interval) for row in read_bed(path, store)] == ["chr1:100-400", "chr1:10-90"]
    said = capsys.readouterr().err
    assert f"{path}: 2 intervals have no bases, start = end (line 2, line 4), and are left out" in said
    assert f"{path}: 1 intervals have blocks" in said


def test_exclusions_on_contigs_that_the_genome_lacks_are_counted(store, tmp_path, capsys):
    path = tmp_path / "x.bed"
    path.write_text("chrY\t0\t3000\nchr1\t100\t200\nchrY\t5\t9\n")
    splits = make_splits(store, store.contigs, context_length=10, exclude=[path])
    assert splits.left_out["excluded"] == 100
    assert (
        f"{path}: 2 intervals are on contigs that the genome lacks (chrY) and are left out" in capsys.readouterr().err
    )
    path.write_text("chrY\t0\t3000\n")
    with pytest.raises(
        InputError, match=r"x\.bed: none of its contigs \(chrY\) is in the genome; the contigs are chr1"
    ):
        make_splits(store, store.contigs, context_length=10, exclude=[path])


@pytest.mark.parametrize("text", [b"\xef\xbb\xbfchr1\t1\t4\tM\xfchne\nchr2\t2\t5\t\xc2\x85x\xe2\x80\xa8y\x0bz\r\n"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_marks_line_ends_and_other_encodings(store, tmp_path, text, end):
    path = tmp_path / "x.bed"
    path.write_bytes(text.replace(b"\r\n", b"\n").replace(b"\n", end))
    assert [row.name for row in read_bed(path, store)] == ["Mühne", "\x85x\u2028y\x0bz"]


UCSC = ["chr1", "chr2", "chrX", "chrY"], ["chr1_KI270706v1_random", "chrUn_GL000195v1", "chr6_GL000250v2_alt", "chrM"]
UCSC_MORE = (
    ["chr1", "chr22"],
    ["chr6_apd_hap1", "chr1_KZ208906v1_fix", "chrEBV", "chrUn_JTFH01000001v1_decoy", "HLA-A*01:01"],
)
ENSEMBL = ["1", "X"], ["MT", "KI270728.1", "GL000191.1", "CHR_HSCHR1_1_CTG3", "HSCHR6_MHC_APD", "hs37d5", "NC_007605"]
NCBI = ["NC_000001.11", "NC_000023.11"], ["NT_187361.1", "NW_003315905.1", "NC_012920.1"]
GENBANK = ["CM000663.2"], ["KI270706.1", "J01415.2", "AABR07000001.1"]
YEAST = ["I", "IV", "XVI"], ["Mito"]
USTILAGO = ["Umaydis:chr01:1:+:2476500"], ["Umaydis:um_contig_1.252:1:+:11353"]
FLY = ["chr2L", "chr3R", "chr4", "chrX"], ["chrU", "chrUextra", "chr2RHet", "chrM"]
DESCRIBED = (
    ["NC_001133.9 chromosome I, complete sequence", "OX1.1 genome assembly, chromosome: 2"],
    [
        "NC_999999.1 mitochondrion, complete genome",
        "Q1 dna:scaffold scaffold:X:Q1",
        "Z9 chromosome 3 unlocalized genomic",
    ],
)


@pytest.mark.parametrize("names", [UCSC, UCSC_MORE, ENSEMBL, NCBI, GENBANK, YEAST, USTILAGO, FLY, DESCRIBED])
def test_primary_contigs(tmp_path, names):
    kept, left = names
    store = make_store(tmp_path, dict.fromkeys(kept + left, 10))
    selection = select_contigs(store)
    assert [contig.name for contig in selection.chosen] == [header.split()[0] for header in kept]
    assert [contig.name for contig, _ in selection.left_out] == [header.split()[0] for header in left]
    assert all(reason for _, reason in selection.left_out)
    assert sum(int(part.split()[0]) for part in selection.summary().split("), ")) == len(left)


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["NW_003315905.1", "NW_003315906.1"], 0),  # a draft assembly is scaffolds alone
        (["scaffold_1", "scaffold_2", "MT"], 1),
        (["chrM"], 0),
        (["U00096.3"], 0),
        (["NC_000913.3"], 0),
        (["K-12-MG1655"], 0),
        (["gi|9626243|ref|NC_001416.1|"], 0),
        (["MAL1", "MAL2"], 0),
        ([f"LRG_{i}|GENE|NG_0163{i}.1|GRCh37:1:950503-993492|x" for i in range(3)], 0),
        (["chr1", "weird"], 0),
    ],
)
def test_never_everything(tmp_path, names, left):
    selection = select_contigs(make_store(tmp_path, dict.fromkeys(names, 10)))
    assert len(selection.left_out) == left
    assert len(selection.chosen) == len(names) - left


def test_patterns(store):
    assert [c.name for c in select_contigs(store, ["chrM", "chr[2-9]"]).chosen] == ["chr2", "chrM"]
    assert [c.name for c in select_contigs(store, ["1", "MT"]).chosen] == ["chr1", "chrM"]
    with pytest.raises(InputError, match=r"matches '3'; the contigs are chr1, chr2, chrM"):
        select_contigs(store, ["3"])


def test_duplicates(tmp_path, monkeypatch):
    store = make_store(tmp_path, {"a": "ACGTAC" * 5, "b": "acgtac" * 5, "c": "N" * 30, "d": "N" * 30, "e": "ACGTA" * 7})
    found = find_duplicates(store, store.contigs)
    assert [(d.first.contig, d.second.contig, d.kind) for d in found] == [("a", "b", "contig")]
    monkeypatch.setattr(contigs_module, "_PSEUDO_AUTOSOMAL", {(35, 30): ((0, 0, 5), (0, 10, 5))})
    found = find_duplicates(store, (store.contigs[4], store.contigs[0]))
    assert found == ((Interval("e", 0, 5), Interval("a", 0, 5), "pseudo-autosomal"),)


def gap_between_splits(splits: Splits) -> int:
    """The smallest distance of intervals of different splits, by comparing all pairs."""
    everything = [(split, interval) for split in SPLITS for interval in getattr(splits, split)]
    return min(
        (
            max(one.start - other.end, other.start - one.end)
            for first, one in everything
            for second, other in everything
            if first != second and one.contig == other.contig
        ),
        default=10**9,
    )


@given(context=st.integers(1, 900), seed=st.integers(0, 5), fraction=st.sampled_from([0.02, 0.1, 0.2]))
@settings(max_examples=30, deadline=None)
def test_default_blocks(store, context, seed, fraction):
    arguments = {"context_length": context, "seed": seed, "validation_fraction": fraction}
    splits = make_splits(store, select_contigs(store), **arguments)
    assert gap_between_splits(splits) >= context
    prove_disjoint(splits, context)
    sizes = {split: sum(interval.length for interval in getattr(splits, split)) for split in SPLITS}
    assert sum(sizes.values()) + splits.left_out["margins"] + splits.left_out["excluded"] == 90_000
    assert sizes["validation"] >= 0.9 * fraction * 90_000 - context
    assert sizes["train"] > sizes["validation"]
    assert splits == make_splits(store, select_contigs(store), **arguments)
    assert {i.contig for split in SPLITS for i in getattr(splits, split)} <= {"chr1", "chr2"}


def test_seeds_differ_and_fingerprint_follows(store):
    one, two = (make_splits(store, select_contigs(store), context_length=100, seed=seed) for seed in (0, 1))
    assert one.validation != two.validation
    assert one.fingerprint != two.fingerprint


def test_a_phage(tmp_path):
    splits = make_splits(store := make_store(tmp_path, {"lambda": 48_502}), store.contigs, context_length=1024)
    assert all(any(i.length > 1024 for i in getattr(splits, split)) for split in SPLITS)


def test_given_validation_makes_train_the_rest(store, tmp_path):
    bed = tmp_path / "validation.bed"
    bed.write_text("chr1\t0\t10000\n")
    hole = tmp_path / "hole.bed"
    hole.write_text("chr1\t30000\t31000\nchr2\t29000\t30000\n")
    splits = make_splits(
        store, select_contigs(store, ["chr1"]), context_length=64, validation=[str(bed)], exclude=[hole]
    )
    assert splits.validation == (Interval("chr1", 0, 10_000),)
    assert splits.train == (Interval("chr1", 10_064, 30_000), Interval("chr1", 31_000, 60_000))
    assert splits.test == ()
    assert splits.left_out == {"excluded": 1000, "margins": 64}


def test_given_train_draws_validation_from_the_rest(store):
    splits = make_splits(store, select_contigs(store), context_length=64, train=["chr1"])
    assert {i.contig for i in splits.validation} == {"chr2"}
    assert splits.train == (Interval("chr1", 0, 60_000),)


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        (
            "chr1\t0\t5000\n",
            "chr1\t4000\t9000\n",
            r"train \(chr1:0-5000\) and validation \(chr1:4000-9000\) overlap by 1000",
        ),
        (
            "chr1\t5000\t9000\n",
            "chr1\t0\t4990\n",
            r"validation \(chr1:0-4990\) and train \(chr1:5000-9000\) are only 10",
        ),
        ("chr1\t0\t9000\n", "chr1\t100\t900\nchr2\t0\t900\n", r"overlap by 800"),
    ],
)
def test_overlaps_are_named(store, tmp_path, train, validation, expected):
    (tmp_path / "t.bed").write_text(train)
    (tmp_path / "v.bed").write_text(validation)
    with pytest.raises(InputError, match=expected):
        make_splits(
            store,
            select_contigs(store),
            context_length=64,
            train=[tmp_path / "t.bed"],
            validation=[tmp_path / "v.bed"],
        )


@given(
    st.lists(st.tuples(st.sampled_from(SPLITS), st.integers(0, 400), st.integers(1, 40)), max_size=8),
    st.integers(0, 50),
)
@settings(deadline=None)
def test_the_proof_is_exact(items, context):
    sets = {split: tuple(Interval("c", s, s + n) for name, s, n in items if name == split) for split in SPLITS}
    splits = Splits(**sets, context_length=context, genome="")
    if gap_between_splits(splits) >= context:
        prove_disjoint(splits, context)
    else:
        with pytest.raises(InputError, match=r"overlap by [1-9]|are only \d+ bases apart"):
            prove_disjoint(splits, context)


def test_errors_of_make_splits(store, tmp_path):
    with pytest.raises(InputError, match=r"length 60000 is too long.*chr1, has 60000"):
        make_splits(store, select_contigs(store), context_length=60_000)
    with pytest.raises(InputError, match="no interval for a window"):
        make_splits(store, select_contigs(store), context_length=40_000)
    with pytest.raises(InputError, match=r"'chrM'.*left out"):
        make_splits(store, select_contigs(store), context_length=10, validation=["chrM"])
    (tmp_path / "m.bed").write_text("chrM\t0\t100\n")
    with pytest.raises(InputError, match=r"contig 'chrM', which is left out"):
        make_splits(store, select_contigs(store), context_length=10, validation=[tmp_path / "m.bed"])
    with pytest.raises(InputError, match="no such file"):
        make_splits(store, select_contigs(store), context_length=10, validation=["none.bed"])


def test_written_as_bed(store, tmp_path):
    splits = make_splits(store, select_contigs(store), context_length=100)
    splits.write_bed(tmp_path / "splits.bed")
    assert len(read_bed(tmp_path / "splits.bed", store)) == sum(len(getattr(splits, split)) for split in SPLITS)


@pytest.mark.skipif("DNAMAMBA_TEST_DATA" not in os.environ, reason="DNAMAMBA_TEST_DATA names no folder of real genomes")
@pytest.mark.parametrize(
    ("name", "bases", "chosen", "n", "soft"),
    [
        ("ecoli_K12_MG1655", 4_639_675, 1, 0, 0),
        ("lambda_phage", 48_502, 1, 0, 0),
        ("yeast_sacCer3", 12_157_105, 16, 0, 0),
        ("fly_chr2R_dm3", 21_146_708, 1, 100, 2_224_455),
        ("plasmodium_falciparum_3D7", 23_264_425, 14, 947, 23_264_425),
    ],
)
def test_real_genomes(tmp_path, name, bases, chosen, n, soft):
    source = Path(os.environ["DNAMAMBA_TEST_DATA"]) / "genomes" / f"{name}.fa.gz"
    store = open_genome(source, store=tmp_path / "store", verify=True)
    assert store.bases == bases
    assert sum(contig.n_count for contig in store.contigs) == n
    assert sum(contig.soft_masked for contig in store.contigs) == soft
    selection = select_contigs(store)
    assert len(selection.chosen) == chosen
    splits = make_splits(store, selection, context_length=1024)
    assert gap_between_splits(splits) >= 1024
    assert find_duplicates(store, selection.chosen) == ()
