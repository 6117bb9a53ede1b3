"""The ablation's regions against the reading frames they come from; its contrasts, probe and table."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "pipelines"))

import chr20_regions
import region_ablation
import variant_probe
import variant_sets

from dnamamba.genome.vcf import Records


def test_codons_and_ends_of_introns_are_those_of_the_transcripts(tmp_path: Path) -> None:
    """Forward: exons of 7 and 8 bases; reverse: 4 and 5 bases, read from their right ends."""

    def write(name: str, text: str) -> None:
        with gzip.open(tmp_path / name, "wt") as file:
            file.write(text)

    rows = [
        ("plus", 100, 107, "+", 0),
        ("plus", 200, 208, "+", 1),
        ("minus", 404, 409, "-", 0),
        ("minus", 300, 304, "-", 2),
    ]
    cds = "".join(f"20\t{start}\t{end}\t{gene}\t1\t{strand}\t{mod}\t9\n" for gene, start, end, strand, mod in rows)
    write("chr20_GRCh37_cds_from_spliceai_orf.bed.gz", cds)
    write("chr20_hg19_RefSeqExon.bed.gz", "chr20\t90\t107\nchr20\t200\t230\n")
    write("chr20_hg19_RefSeqGene.bed.gz", "chr20\t90\t230\n")
    write("chr20_hg19_RefSeqTSS.bed.gz", "chr20\t90\t91\n")
    write("chr20_GRCh37_windowmasker_repeats.bed.gz", "20\t120\t140\n")
    found: dict[str, set[int]] = {}
    for line in chr20_regions.chr20_regions(tmp_path).splitlines():
        _, start, end, name = line.split("\t")
        found.setdefault(name, set()).update(range(int(start), int(end)))
    order = {"plus": [*range(100, 107), *range(200, 208)], "minus": [*range(408, 403, -1), *range(303, 299, -1)]}
    for base in range(3):
        assert found[f"codon{base + 1}"] == {at for bases in order.values() for at in bases[base::3]}
    assert found["CDS"] == {at for bases in order.values() for at in bases}
    assert found["donor"] == {107, 108, 402, 403} and found["acceptor"] == {198, 199, 304, 305}
    assert found["exon"] == {*range(90, 100), *range(208, 230)} and {87, 126, 181, 219} <= found["splice"]


def test_contrasts_are_of_one_consequence_or_between_two() -> None:
    kind = np.array(["a"] * 30 + ["b"] * 30 + ["c"] * 5)
    positive = np.arange(65) % 2 == 0
    positive[30:55] = True
    assert [each.name for each in variant_sets.within("x", kind, positive)] == ["x, a"]
    found = variant_sets.between("b against c", np.ones(65, bool), kind, "b", "c")
    assert found.used.sum() == 35 and found.positive[found.used].sum() == 30


def test_the_probe_of_a_gene_is_fitted_without_it() -> None:
    """Labels that only the gene's own variants could teach are not learnt; those of a feature are."""
    chance = np.random.default_rng(0)
    genes = np.repeat([f"gene{number}" for number in range(40)], 25)
    label = chance.random(1000) < 0.5
    private = np.zeros((1000, 40), np.float32)
    private[np.arange(1000), np.repeat(np.arange(40), 25)] = np.where(label, 1, -1)
    shared = (label + chance.normal(0, 1.0, 1000)).astype(np.float32)[:, None]

    def auroc(x: np.ndarray) -> float:
        records = Records(("1",), np.zeros(1000, np.int32), np.arange(1000), ["A"] * 1000, ["C"] * 1000)
        variants = variant_sets.VariantSet("clinvar", [], records, [], genes, label=label)
        score = variant_probe.probe_scores(
            {"clinvar": variants}, {"clinvar": torch.from_numpy(x)}, torch.device("cpu")
        )["clinvar"]
        return float((score[label][:, None] > score[~label][None]).mean())

    assert auroc(shared) > 0.7
    assert auroc(private) < 0.6


def test_a_table_has_a_column_a_run() -> None:
    key = "brca1: LOF against the rest, zero shot"
    rows = [
        {
            "run": "one",
            f"{key}, auroc": 0.5,
            f"{key}, auroc_low": 0.45,
            f"{key}, auroc_high": 0.55,
            f"{key}, auprc": 0.2,
        }
    ]
    rows.append({"run": "two", "bits codon1": 1.9})
    text = region_ablation.markdown(rows)
    assert "| measure | one | two |" in text and f"| {key} | 0.500 [0.450, 0.550], 0.200 |  |" in text
    assert "| bits a base, codon1 |  | 1.9000 |" in text


@pytest.mark.parametrize("command", ["score", "table", "differences"])
def test_without_runs_it_says_so(command: str, tmp_path: Path) -> None:
    from dnamamba.errors import InputError

    with pytest.raises(InputError, match="no finished run"):
        region_ablation.main([command, "--data", str(tmp_path), "--runs", str(tmp_path)])


def test_differences_are_those_of_runs_with_the_same_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One system tells all variants apart where the other knows nothing; other seeds and unscored runs are left out."""
    label = np.arange(40) % 2 == 0
    name = "LOF against the rest"
    contrast = variant_sets.Contrast(name, np.ones(40, bool), label)
    records = Records(("17",), np.zeros(40, np.int32), np.arange(40), ["A"] * 40, ["C"] * 40)
    variants = variant_sets.VariantSet("brca1", [], records, [contrast], np.arange(40).astype(str), label=label)
    monkeypatch.setattr(region_ablation, "SETS", {"brca1": lambda _: variants})
    for run, llr in (
        ("whole-0", np.zeros(40)),
        ("good-0", -label.astype(float)),
        ("good-1", np.zeros(40)),
        ("new-0", None),
    ):
        (tmp_path / run).mkdir()
        (tmp_path / run / "summary.json").write_text("{}")
        if llr is not None:
            (tmp_path / "scores" / run).mkdir(parents=True)
            np.savez(tmp_path / "scores" / run / "scores-brca1.npz", llr=llr)
    region_ablation.main(["differences", "--data", ".", "--runs", str(tmp_path), "--sets", "brca1"])
    assert (tmp_path / "differences.csv").read_text().splitlines() == [
        "run,against,set,contrast,score,auroc,low,high",
        f"good-0,whole,brca1,{name},zero shot,0.5,0.5,0.5",
    ]


def test_aligned_blocks_become_one_record(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "blocks.fa.gz", "wt") as file:
        file.write(">a one\nACGT\nAC\n>b\nGG\n>a one\nTT\n")
    path = region_ablation.joined(tmp_path / "blocks.fa.gz", tmp_path / "hen.fa")
    assert path.read_text() == ">hen\nACGTACNGGNTT\n"


def test_seeds_of_a_system_are_one_column_with_the_widest_interval() -> None:
    rows = [
        {"run": "whole-8192-0", "tokens": 1, "a, auroc": 0.5, "a, auroc_low": 0.4, "a, auroc_high": 0.6},
        {"run": "whole-8192-1", "tokens": 1, "a, auroc": 0.7, "a, auroc_low": 0.6, "a, auroc_high": 0.8},
        {"run": "whole-0", "tokens": 1},
    ]
    first, second = region_ablation.by_system(rows)
    assert first == {
        "run": "whole-8192 (2)", "tokens": 1, "a, auroc": 0.6, "a, auroc_low": 0.4, "a, auroc_high": 0.8
    }  # fmt: skip
    assert second == {"run": "whole (1)", "tokens": 1}
