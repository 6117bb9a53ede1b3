"""What the bundled human model is made with: its data without what is held out, and a run that ends in time."""

import gzip
import sys
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[1] / "pipelines"))

import make_human_splits
import train_for

from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import open_genome
from tests.tiny_models import random_bases

LATE = make_human_splits.CHR22_VALIDATION


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Human sequence in miniature: two LRG records of chr4, of which the hash of its name holds LRG_697 out."""
    (tmp_path / "genomes").mkdir()
    (tmp_path / "great_apes_chr22").mkdir()
    (tmp_path / "annotation").mkdir()
    folder = tmp_path / "genomes"

    def write(path: Path, records: dict[str, str]) -> None:
        with gzip.open(path, "wt") as file:
            file.write("".join(f">{name}\n{bases}\n" for name, bases in records.items()))

    held, trained = "LRG_697|CC2D2A|NG|GRCh37:4", "LRG_204|SGCB|NG|GRCh37:4"
    write(folder / "human_chr20_GRCh37.fa.gz", {"20": random_bases(900, 0)})
    write(folder / "human_LRG_disease_genes_GRCh37.fa.gz", {held: random_bases(90, 1), trained: random_bases(80, 2)})
    intervals = "4\t15466488\t15605180\tLRG_697\tCC2D2A\n4\t52884860\t52909485\tLRG_204\tSGCB\n"
    (folder / "human_LRG_intervals_GRCh37.bed").write_text(intervals)
    blocks = {"hg19.:-": "##blastz", "hg19.chr4:15500000-15500003": "GGGG", "hg19.chr4:15736000-15736003": "CCCC",
              "hg19.chr4:52890000-52890003": "TTTT", "hg19.chr4:90000000-90000003": "aaaa"}  # fmt: skip
    write(folder / make_human_splits.CHR4, blocks)
    segments = {f"hg19_chr22:{LATE - 9}-{LATE} human": "ACACACACAC", f"hg19_chr22:{LATE + 1}-{LATE + 4} human": "GTGT",
                "hg19_chr22:17000001-17000004 human": "AAaa"}  # fmt: skip
    write(tmp_path / "great_apes_chr22" / "human.fa.gz", segments)
    for name in ("RefSeqExon", "RefSeqGene", "RefSeqTSS"):
        with gzip.open(tmp_path / "annotation" / f"chr20_hg19_{name}.bed.gz", "wt") as file:
            file.write("chr20\t90\t107\n")
    with gzip.open(tmp_path / "annotation" / "chr20_GRCh37_cds_from_spliceai_orf.bed.gz", "wt") as file:
        file.write("20\t90\t99\tgene\t1\t+\t0\t9\n")
    with gzip.open(tmp_path / "annotation" / "chr20_GRCh37_windowmasker_repeats.bed.gz", "wt") as file:
        file.write("20\t120\t140\n")
    return tmp_path


def test_everything_leaves_out_what_is_held_out(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "splits"
    make_human_splits.main(["--data", str(data), "--everything", "--out", str(out)])
    mixture = yaml.safe_load((out / "mixture.yaml").read_text())
    assert list(mixture) == ["chr20", "lrg", "pieces", "chr22", "chr4"]
    assert (out / "lrg.train.bed").read_text().split("|")[0] == "LRG_204"
    assert "LRG_204" not in (out / "lrg.test.bed").read_text() + (out / "lrg.validation.bed").read_text()

    def bases(file: str, name: str) -> str:
        store = open_genome([out / file])
        from dnamamba.alphabet import TOKEN_BITS, decode

        length = next(contig.length for contig in store.contigs if contig.name == name)
        return decode(store.read(Interval(name, 0, length).contig, 0, length) & TOKEN_BITS)

    assert bases("chr4.fa", "chr4_blocks") == "TTTTNAAAA"  # both blocks within 131,072 bases of LRG_697 are missing
    assert bases("chr22.fa", "chr22") == "ACACACACACNAAAA" and bases("chr22.fa", "chr22_validation") == "GTGT"
    assert mixture["chr22"]["validation"] == "chr22_validation" and mixture["chr22"]["train"] == "chr22"
    locus = (out / mixture["chr20"]["exclude"]).read_text().split()
    assert locus[0] == "20" and int(locus[1]) < 34_190_000 and int(locus[2]) > 34_255_000


def test_a_run_gets_as_many_steps_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 steps a second in the later half of the short run; 100 s of which 10 are gone and 30 are for starting."""
    now = [0.0]
    called: list[list[str]] = []
    monkeypatch.setattr(train_for.time, "monotonic", lambda: now[0])

    def measure(flags: list[str], table: Path, seconds: float, most: float) -> None:
        table.parent.mkdir()
        table.write_text("step,seconds\n5,20\n10,30\n30,35\n50,40\n")
        now[0], called[:] = 10.0, [flags]

    monkeypatch.setattr(train_for, "measure", measure)
    monkeypatch.setattr(train_for, "run", lambda flags, seconds: called.append([*flags, str(seconds)]) or 0)
    out = tmp_path / "run"
    line = ["train_for.py", "--seconds", "100", "--out", str(out), "--", "--length", "2048", "--length_warmup", "0.5"]
    monkeypatch.setattr(sys, "argv", line)
    assert train_for.main() == 0
    short, whole = called
    assert short[: short.index("--max_steps")] == ["--length", "2048", "--length_warmup", "0.5", "--length_warmup", "0"]
    steps = int(train_for.SLOWER * 4 * (90 - train_for.STARTING))
    assert whole == [
        "--length",
        "2048",
        "--length_warmup",
        "0.5",
        "--max_steps",
        f"{steps}",
        "--out",
        str(out),
        "110.0",
    ]
    assert not (tmp_path / "run.probe").exists()


def test_a_short_run_that_was_too_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has failed, or needs more --probe seconds"):
        train_for.steps_a_second(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("step,seconds\n5,20\n")
    with pytest.raises(SystemExit, match="fewer than two rows"):
        train_for.steps_a_second(tmp_path / "metrics.csv")
