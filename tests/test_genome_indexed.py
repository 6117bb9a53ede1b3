"""A FASTA read by its index: the same bases as from the token store, never those of another file, and no store."""

import gzip
import importlib
import os
import pickle
import re
import shutil

import numpy as np
import pysam
import pytest
from tiny_models import tiny_model

from dnamamba import cli
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint, save_classifier
from dnamamba.genome import indexed
from dnamamba.genome.genome import Genome
from dnamamba.genome.indexed import IndexedGenome, open_for
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.model.classifier import HeadConfig, SequenceClassifier

RECORDS = {"chr1": "ACGTNRYacgtnryACGTTTTGGCCA" * 9, "chr2": "acgT", "empty": "", "chrM": "GATTACA" * 11}


def write(path, records=RECORDS, width=60, end="\n"):
    lines = []
    for name, sequence in records.items():
        lines += [f">{name} of a test", *(sequence[at : at + width] for at in range(0, len(sequence), width))]
    path.write_bytes((end.join(lines) + end).encode())
    return path


@pytest.fixture
def fasta(tmp_path):
    return write(tmp_path / "g.fa")


def packed(path, by):
    out = path.with_name(f"{path.name}.gz")
    if by == "bgzip":
        pysam.tabix_compress(str(path), str(out), force=True)
    else:
        out.write_bytes(gzip.compress(path.read_bytes()))
    return out


@pytest.mark.parametrize("kind", ["lf", "crlf", "one line", "bgzip"])
def test_the_same_bases_as_from_the_store(tmp_path, kind):
    path = write(tmp_path / "g.fa", width=10**6 if kind == "one line" else 7, end="\r\n" if kind == "crlf" else "\n")
    path = packed(path, "bgzip") if kind == "bgzip" else path
    genome, store = IndexedGenome(path), open_genome(path, tmp_path / "store")
    assert [(c.name, c.length) for c in genome.contigs] == [(c.name, c.length) for c in store.contigs]
    assert genome.bases == store.bases and genome.fingerprint is None
    random = np.random.default_rng(1)
    for number, contig in enumerate(store.contigs):
        np.testing.assert_array_equal(
            genome.read(contig.name, 0, contig.length), store.read(contig.name, 0, contig.length)
        )
        for _ in range(20):
            start, end = np.sort(random.integers(0, contig.length + 1, 2)).tolist()
            assert genome.read(contig.name, start, end).tolist() == store.read(contig.name, start, end).tolist()
            assert genome.n_count(contig.name, start, end) == store.n_count(contig.name, start, end)
            sparse = genome.read_sparse(contig.name, np.array([[start, end]]))
            assert sparse.size == contig.length
            assert sparse[start:end].tolist() == store.read_sparse(contig.name, np.empty((0, 2)))[start:end].tolist()
        positions = random.integers(0, contig.length, 9)
        where = np.full(9, number)
        assert genome.tokens_at(where, positions).tolist() == store.tokens_at(where, positions).tolist()
    again = pickle.loads(pickle.dumps(genome))
    assert again.read("chr2", 0, 4).tolist() == genome.read("chr2", 0, 4).tolist()


def test_a_genome_is_like_a_dictionary_of_strings(fasta):
    genome = Genome(str(fasta))
    assert isinstance(genome.source, IndexedGenome) and not fasta.with_name("g.fa.dnamamba").exists()
    assert (list(genome), len(genome), genome.contigs) == (["chr1", "chr2", "chrM"], 3, ("chr1", "chr2", "chrM"))
    assert genome["chr1", 3:12] == "TNNNacgtn"  # the codes R and Y are N
    assert genome["2"] == genome["chr2", :] == "acgT" and genome["chr2", -2:] == "gT" and genome["chr2", 2:2] == ""
    assert genome.length("MT") == 77 and "MT" in genome and "chr9" not in genome and 1 not in genome
    assert genome.read("chr2", 0, 4).tolist() == [128, 129, 130, 3]
    for part in (slice(0, 5), slice(3, 2), slice(-9, 2), slice(0, 4, 2)):
        with pytest.raises(InputError):
            genome["chr2", part]
    with pytest.raises(KeyError, match="no contig 'chr9'; the contigs are chr1, chr2, chrM"):
        genome["chr9"]
    store = open_genome(fasta)
    assert isinstance(Genome(fasta).source, TokenStore) and isinstance(Genome(store.path).source, TokenStore)
    assert Genome(fasta)["chr1"] == genome["chr1"]


@pytest.mark.parametrize("by", ["gzip", "bgzip"])
def test_what_cannot_be_indexed_gets_a_store(fasta, by):
    assert isinstance(open_for(packed(fasta, by)), TokenStore if by == "gzip" else IndexedGenome)


@pytest.mark.parametrize("text", [">a\nACGT\n\nAC\nACGT\n", ">a\nAC\nACGT\nA\n", ">a\nACGT\n>a\nAC\n"])
def test_lines_of_no_one_length_and_two_names_are_left_to_the_store(tmp_path, text):
    (tmp_path / "odd.fa").write_text(text)
    assert indexed.index_of(tmp_path / "odd.fa") is None


@pytest.mark.parametrize("kind", ["fasta", "bgzip"])
@pytest.mark.parametrize("name", ["a\x1fb", "\x85b", "a\xa0b", "a\u2028", "a\0b"])
def test_names_that_the_index_would_cut_are_left_to_the_store(tmp_path, name, kind):
    path = tmp_path / "odd.fa"
    path.write_text(f">chr1 first\nACGT\n>{name} second\nAC\n", encoding="utf-8")
    path = path if kind == "fasta" else packed(path, "bgzip")
    assert indexed.index_of(path) is None or "\0" in name  # which a block of bgzip hides


def test_names_of_any_description_are_indexed(tmp_path):
    path = tmp_path / "any.fa"
    path.write_text(">chr1\tx y\r\nACGT\r\n>\u00e9|2 \u2028\x1f\r\nAC\r\n", encoding="utf-8", newline="")
    assert [contig.name for contig in IndexedGenome(path).contigs] == ["chr1", "\u00e9|2"]


def test_much_to_read_gets_a_store(fasta, monkeypatch):
    monkeypatch.setattr(indexed, "LITTLE", 100)
    assert isinstance(open_for(fasta, bases=lambda genome: genome.bases - 215), IndexedGenome)
    assert isinstance(open_for(fasta, bases=lambda genome: 101), TokenStore)


def test_an_old_index_is_built_again(fasta):
    before = IndexedGenome(fasta)
    index = fasta.with_name("g.fa.fai")
    write(fasta, {"chr1": "TTTTT", "chr3": "A" * 70})
    with pytest.raises(InputError, match="was changed while it is in use"):
        before.read("chr1", 0, 3)
    os.utime(fasta, (1, 1))  # older than the index, as a copy that keeps its time: the size shows it
    assert [c.name for c in IndexedGenome(fasta).contigs] == ["chr1", "chr3"]
    write(fasta, {"chr1": "TTTTT", "chr4": "C" * 70})
    os.utime(index, (1, 1))
    assert [c.name for c in IndexedGenome(fasta).contigs] == ["chr1", "chr4"]


def test_an_index_that_lies_is_reported(fasta):
    IndexedGenome(fasta)
    index = fasta.with_name("g.fa.fai")
    lines = index.read_text().splitlines()
    name, length, offset, bases, width = lines[1].split("\t")
    lines[1] = "\t".join((name, length, str(int(offset) - 6), bases, width))
    index.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="delete the index"):
        IndexedGenome(fasta).read("chr2", 0, 4)


def test_in_a_folder_that_is_read_only_the_index_lies_in_the_cache(fasta, tmp_path, monkeypatch):
    folder = tmp_path / "fixed"
    folder.mkdir()
    shutil.copy(fasta, folder)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda _: tmp_path / "cache")
    folder.chmod(0o555)
    try:
        assert Genome(folder / "g.fa")["chr2"] == "acgT"
    finally:
        folder.chmod(0o755)
    assert [path.name for path in folder.iterdir()] == ["g.fa"]
    assert len(list((tmp_path / "cache").rglob("*.fai"))) == 1


def test_half_a_letter_is_reported(tmp_path):
    (tmp_path / "p.fa").write_bytes(">p\nACGT\u00e9CGT\n".encode())
    genome = IndexedGenome(tmp_path / "p.fa")
    with pytest.raises(InputError, match=r"record 'p': 0-5 are not all nucleotides"):
        genome.read("p", 0, 5)


def test_a_letter_that_is_no_nucleotide_is_reported(tmp_path):
    (tmp_path / "p.fa").write_text(">p\nACGT!CGT\n")
    genome = IndexedGenome(tmp_path / "p.fa")
    assert genome.read("p", 0, 4).size == 4
    with pytest.raises(InputError, match="not all nucleotides"):
        genome.read("p", 3, 6)


@pytest.mark.parametrize("verb", ["likelihood", "mutagenesis", "score", "embed", "predict"])
def test_every_job_gives_the_same_files_by_index_and_by_store(tmp_path, capsys, verb):
    random = np.random.default_rng(3)
    records = {f"chr{n}": "".join(random.choice(list("ACGTacgtN"), 700, p=[0.12] * 8 + [0.04])) for n in (1, 2)}
    fasta = write(tmp_path / "g.fa", records)
    model = tiny_model(embedding=12, out_proj=24)
    if verb != "predict":
        save_checkpoint(model, tmp_path / "model", {"settings": {"length": 64}})
    else:
        head = HeadConfig("multiclass", ("no", "yes"), "mean", "mean")
        save_classifier(SequenceClassifier(model.config, head), tmp_path / "model", {"task": "sequences"})
    bed = tmp_path / "in.bed"
    bed.write_text("2\t0\t300\ta\t0\t-\nchr1\t100\t350\n")
    (tmp_path / "in.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        + "".join(
            f"{name[3:]}\t{at + 1}\t.\t{records[name][at : at + size].upper()}\tA,CC\t.\t.\t.\n"
            for name in records
            for at in range(0, 690, 60)
            for size in (1, 2)
        )
    )
    words = {
        "likelihood": ("--regions", bed, "--format", "npz", "--context", 64),
        "mutagenesis": ("--region", "2:1-40", "--format", "npz"),
        "score": ("--vcf", tmp_path / "in.vcf"),
        "embed": ("--input", bed, "--pool", "position"),
        "predict": ("--input", bed, "--window", 100),
    }[verb]
    name = {"score": "out.vcf", "embed": "out.npz", "predict": "out.csv"}.get(verb, "out")
    main = importlib.import_module(f"dnamamba.{verb}").main
    written = []
    for how in ("read by its index", "token store"):
        folder = tmp_path / how.split()[0]
        folder.mkdir()
        if how == "token store":
            open_genome(fasta)
        flags = (*words, "--checkpoint", tmp_path / "model", "--genome", fasta, "--out", folder / name)
        assert cli.run(main, [str(word) for word in flags]) == 0
        reported = capsys.readouterr().out
        assert how in reported and "2 is chr2" in reported
        files = sorted(path for path in folder.iterdir() if path.suffix != ".json")
        written.append([(path.name, contents(path)) for path in files])
        assert fasta.with_name("g.fa.dnamamba").exists() == (how == "token store")
    assert written[0] and written[0] == written[1]


def contents(path):
    if path.suffix != ".npz":
        return re.sub(rb',genome_fingerprint="\w+"', b"", path.read_bytes())  # that of all bases, which an index lacks
    with np.load(path) as arrays:
        return {name: (array.shape, array.tobytes()) for name, array in arrays.items()}
