"""Models that come with the package: found by name, listed, stored in bf16, and honest about what they rank."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dnamamba
from dnamamba import bundled, cli, demo, export, models, score
from dnamamba.alphabet import TOKEN_BITS, decode
from dnamamba.errors import InputError
from dnamamba.formats import load_checkpoint
from dnamamba.formats.checkpoint import read_card, save_checkpoint
from dnamamba.genome.store import open_genome
from dnamamba.runs.card import bundled_lines, ranking_line, ranking_lines
from tests.tiny_models import random_bases, tiny_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
import bundle_model

RANKED = {"Set": [{"variants": name, "auroc": value, "low": value - 0.02, "high": value + 0.02}
                  for name, value in (("nonsense", 0.8), ("missense", 0.51), ("intron", 0.4))]}  # fmt: skip
MISSENSE = "pathogenic against benign, missense"
PROVENANCE = {"about": "For tests.", "settings": {"length": 64}, "ranking": RANKED}


@pytest.fixture
def box(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "FOLDER", tmp_path / "box")
    save_checkpoint(tiny_model(), tmp_path / "box" / "tiny", PROVENANCE, dtype="bf16")
    return tmp_path / "box"


def test_a_name_is_a_checkpoint_unless_a_folder_has_it(box, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sequence = random_bases(50, 0)
    by_name = dnamamba.load("tiny", device="cpu").log_likelihood(sequence)
    by_folder = dnamamba.load(box / "tiny", device="cpu").log_likelihood(sequence)
    np.testing.assert_array_equal(by_name, by_folder)
    save_checkpoint(tiny_model(seed=9), tmp_path / "tiny", PROVENANCE)
    assert np.nanmax(np.abs(by_name - dnamamba.load("tiny", device="cpu").log_likelihood(sequence))) > 0.1


def test_an_unknown_name_is_answered_with_those_there_are(box):
    with pytest.raises(InputError, match=r"tinny: no such folder, .*, or a bundled model: tiny"):
        load_checkpoint("tinny")


def test_models_lists_them(box, capsys):
    assert cli.run(models.main, []) == 0
    text = capsys.readouterr().out
    assert "tiny\n" in text and "For tests." in text and "missense at chance (0.51 [0.49, 0.53])" in text


def test_ranking_is_said_in_words():
    [(_, text)] = ranking_lines({"ranking": RANKED})
    assert text == (
        "Set: nonsense above chance (0.80 [0.78, 0.82]), missense at chance (0.51 [0.49, 0.53]), "
        "intron below chance (0.40 [0.38, 0.42])"
    )
    assert ranking_lines({}) == []


def test_score_says_one_line_of_the_most_variants():
    figures = {"auroc": 0.7, "low": 0.65, "high": 0.75}
    many = [{"variants": "LOF against the rest, Missense", **figures, "positives": 90, "negatives": 30}]
    few = [{"variants": "pathogenic against benign, missense", **figures, "auroc": 0.4, "positives": 9, "negatives": 3},
           {"variants": "deletions of 3", **figures, "auroc": 0.71}]  # fmt: skip
    [(_, text)] = ranking_line({"ranking": {"a": few, "b": many}, "ranking_context": 512})
    assert text == (
        "zero shot at a context of 512: missense above chance (0.70 [0.65, 0.75]), "
        "deletions above chance (0.71 [0.65, 0.75]); AUROC, all of it: dnamamba info"
    )
    others = {"ranking": {"a": [{"variants": "introns", **figures}]}}
    assert ranking_line(others) == ranking_lines(others) != []
    assert ranking_line({}) == []


def test_score_prints_it(box, tmp_path, capfd):
    bases = random_bases(300, 1)
    (tmp_path / "g.fa").write_text(f">c\n{bases}\n")
    alt = "ACGT"[("ACGT".index(bases[149]) + 1) % 4]
    head = "##fileformat=VCFv4.2\n##contig=<ID=c>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "in.vcf").write_text(f"{head}c\t150\t.\t{bases[149]}\t{alt}\t.\t.\t.\n")
    flags = ["--checkpoint", "tiny", "--genome", str(tmp_path / "g.fa"), "--vcf", str(tmp_path / "in.vcf")]
    assert cli.run(score.main, [*flags, "--out", str(tmp_path / "out.vcf"), "--accelerator", "cpu"]) == 0
    assert "nonsense above chance (0.80 [0.78, 0.82])" in "".join(capfd.readouterr())


def test_bf16_rounds_matrices_and_nothing_else(tmp_path):
    model = tiny_model()
    save_checkpoint(model, tmp_path / "fp32", {"settings": {"length": 64}})
    flags = ["--checkpoint", str(tmp_path / "fp32"), "--format", "dnamamba", "--out", str(tmp_path / "bf16")]
    assert cli.run(export.main, [*flags, "--dtype", "bf16"]) == 0
    loaded, provenance = load_checkpoint(tmp_path / "bf16")
    matrices = {"embedding", "in_proj", "x_proj", "dt_proj", "out_proj", "lm_head"}
    for name, value in model.state_dict().items():
        is_matrix = name.split(".")[-2] in matrices and name.endswith("weight")
        stored = loaded.state_dict()[name]
        expected = value.bfloat16().float() if is_matrix and "dt_proj" not in name else value
        assert stored.dtype == torch.float32 and torch.equal(stored, expected), name
    assert provenance["settings"] == {"length": 64}
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("fp32", "bf16")]
    assert sizes[1] < 0.7 * sizes[0]


def test_bf16_is_refused_where_a_format_has_none(tmp_path, capsys):
    save_checkpoint(tiny_model(), tmp_path / "ours", {})
    flags = ["--checkpoint", str(tmp_path / "ours"), "--out", str(tmp_path / "hf"), "--dtype", "bf16"]
    assert cli.run(export.main, flags) == cli.USER_ERROR
    assert "--dtype bf16: --format hf stores fp32" in capsys.readouterr().err


def test_a_run_becomes_a_bundled_model_without_its_folders(box, tmp_path, capsys):
    provenance = {
        "genomes": [{"source": [{"path": "/data/genomes/a.fa", "sha256": "0"}]}],
        "command": ["/bin/python"],
    }
    save_checkpoint(tiny_model(), tmp_path / "run", provenance)
    (tmp_path / "results").mkdir()
    header = "set,contrast,score,auroc,auroc_low,auroc_high,positives,negatives\n"
    rows = (
        f'clinvar,"{MISSENSE}",-llr,0.6,0.55,0.65,10,20\nclinvar,"{MISSENSE}",|llr|,0.5,0.4,0.6,10,20\n'
        "clinvar,unknown,-llr,0.6,0.55,0.65,10,20\nbrca1,LOF against the rest,-llr,,,,0,9\n"
        f'clinvar,"{MISSENSE}",probe,0.7,0.66,0.74,10,20\n'
    )
    classes = "step,group,class,bits_per_base\n1,region,CDS,1.99\n2,mask,unique,1.8\n2,region,CDS,1.91234\n"
    (tmp_path / "run" / "validation_by_class.csv").write_text(classes)
    genomes = {"yeast": {"validation_bits_per_base": 1.8801364, "markov_bits_per_base": 1.9292}, "none": {}}
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"genomes": genomes}))
    (tmp_path / "results" / "results.csv").write_text(header + rows)
    flags = ["--checkpoint", str(tmp_path / "run"), "--name", "new", "--about", "One.", "--licence", "Two."]
    (box / "__init__.py").touch()
    recall = "model,variant,distance,copy_advantage,ci_lo,ci_hi,n\n"
    recall += "m,exact,256,1.0012,0.9,1.1,8\nm,exact,1024,-0.0,-0.0,0.01,8\nm,reverse complement,256,0.5,0.4,0.6,8\n"
    (tmp_path / "recall.csv").write_text(recall)
    flags += ["--results", str(tmp_path / "results"), "--context", "64", "--recall", str(tmp_path / "recall.csv")]
    assert cli.run(bundle_model.main, flags) == 0
    written = json.loads((box / "new" / "provenance.json").read_text())
    assert written["genomes"][0]["source"][0]["path"] == "a.fa" and written["command"] == ["python"]
    assert written["ranking"] == {
        "ClinVar 2017": [
            {"variants": MISSENSE, "auroc": 0.6, "low": 0.55, "high": 0.65, "positives": 10, "negatives": 20}
        ]
    }
    lines = ranking_lines(written)
    assert lines == [
        ("ranks", f"ClinVar 2017 (context 64): {MISSENSE} above chance (0.60 [0.55, 0.65])"),
        ("probe", f"ClinVar 2017 (context 64): {MISSENSE} above chance (0.70 [0.66, 0.74])"),
    ]
    assert ranking_line(written) == [
        (
            "ranks",
            "zero shot at a context of 64, ClinVar 2017: missense above chance (0.60 [0.55, 0.65]); AUROC, all of it: "
            "dnamamba info",
        )
    ]
    assert written["bits_by_region"] == {"CDS": 1.9123}
    assert written["bits_by_genome"] == {"yeast": {"model": 1.8801, "markov": 1.9292}}
    assert written["copy_advantage"]["exact"][0] == {"distance": 256, "nats": 1.0012, "low": 0.9, "high": 1.1}
    copies = "what a copy gains, nats a base, after 256, 1,024 bases: exact 1.00, 0.00; reverse complement 0.50"
    assert ("copies", copies) in bundled_lines(read_card(box / "new"))
    bits = "a base of what was held out of each genome (the best Markov model): yeast 1.880 (1.929)"
    assert ("bits", bits) in bundled_lines(read_card(box / "new"))
    assert bundled.names() == ["new", "tiny"]
    (tmp_path / "recall.csv").write_text(recall + "other,exact,256,0.0,0.0,0.0,8\n")
    assert cli.run(bundle_model.main, flags) == cli.USER_ERROR
    assert "2 models; leave the rows of one" in capsys.readouterr().err


def test_every_model_in_the_package_has_a_whole_card_and_is_small():
    total = 0
    for name in bundled.names():
        _, provenance = load_checkpoint(name)
        assert provenance["about"] and provenance["licence"] and provenance["settings"]["length"], name
        size = sum(path.stat().st_size for path in bundled.folder(name).iterdir())
        assert size <= bundle_model.MOST_BYTES, name
        total += size
    assert total <= 45_000_000


def test_the_model_of_compact_genomes_reads_what_it_has_not_seen_of_ecoli(tmp_path):
    """2,000 bases of its test split in the demo genome, below the best Markov model's bits there."""
    store = open_genome(demo.genome_path(), store=tmp_path / "ecoli.dnamamba")
    sequence = decode(store.read(store.contigs[0].name, 1_680_000, 1_682_000) & TOKEN_BITS)
    log_p = dnamamba.load("compact-genomes", device="cpu").log_likelihood(sequence)
    _, provenance = load_checkpoint("compact-genomes")
    bits = provenance["bits_by_genome"]
    assert -np.nanmean(log_p) / np.log(2) < bits["ecoli"]["markov"]
    assert len(bits) == 6 and all(each["model"] < each["markov"] for each in bits.values())


def test_the_human_model_reads_a_locus_that_it_has_not_seen(tmp_path):
    """2,000 bases of the locus in the package, by its name alone; one that knows nothing needs 2 bits a base."""
    store = open_genome(demo.locus_path(), store=tmp_path / "locus.dnamamba")
    sequence = decode(store.read(store.contigs[0].name, 15_000, 17_000) & TOKEN_BITS)
    log_p = dnamamba.load("human-7m", device="cpu").log_likelihood(sequence)
    assert -np.nanmean(log_p) / np.log(2) < 1.9
    _, provenance = load_checkpoint("human-7m")
    assert provenance["ranking_context"] == 512 and provenance["bits_by_region"]["codon2"] > 1.9
    assert set(provenance["ranking"]) == set(provenance["probe_ranking"]) == set(list(bundle_model.SETS.values())[:3])
