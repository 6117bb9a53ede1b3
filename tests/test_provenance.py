"""Results say where they come from: weights, genome, training; and warn of a genome that it was not."""

import hashlib
import json
import re

import polars
import pysam
import pytest
from test_score import write_fasta, write_vcf
from tiny_models import random_bases, tiny_model

import dnamamba
from dnamamba import cli, mutagenesis, pretrain, score
from dnamamba.formats.checkpoint import read_card, save_checkpoint
from dnamamba.genome.store import open_genome
from dnamamba.inference.provenance import genome_warning, trained_on, vcf_note
from dnamamba.tables import table_rows

CONTIGS = {"chr1": 4000, "chr2": 3000, "chrM": 500}
SOURCE = [{"path": "/data/train.fa", "size": 1, "mtime_ns": 1, "sha256": "ab" * 32}]


def genome(folder, name, contigs):
    return write_fasta(folder / name, {contig: random_bases(length, length) for contig, length in contigs.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("provenance")
    genome(folder, "g.fa", CONTIGS)
    genome(folder, "other.fa", {"chr1": 4100, "chr2": 2900, "chrM": 500})
    genome(folder, "ensembl.fa", {"1": 4000, "2": 3000, "MT": 500, "KI270728.1": 300})
    trained = [{"name": "", "source": SOURCE, "fingerprint": "cd" * 32, "weight": 1.0, "contigs": CONTIGS}]
    save_checkpoint(tiny_model(), folder / "model", {"settings": {"length": 128}, "genomes": trained})
    first = random_bases(4000, 4000)[99]
    write_vcf(folder / "v.vcf", [("chr1", 100, first, "ACGT"[("ACGT".index(first) + 1) % 4])])
    return folder


def scored(folder, out, *arguments, genome="g.fa"):
    flags = ["--checkpoint", folder / "model", "--genome", folder / genome, "--vcf", folder / "v.vcf", "--out", out]
    assert cli.run(score.main, [*map(str, flags), "--accelerator", "cpu", "--max_mismatches", "1", *arguments]) == 0


def notes(header, verb):
    line = next(line for line in str(header).splitlines() if line.startswith(f"##dnamamba_{verb}="))
    return dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', line))


def test_scores_carry_their_provenance_in_vcf_and_parquet(folder, tmp_path):
    scored(folder, tmp_path / "out.vcf.gz", "--suffix", "20")
    with pysam.VariantFile(str(tmp_path / "out.vcf.gz")) as file:
        found = notes(file.header, "score")
    digest = hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert found["weights_sha256"] == digest
    assert found["checkpoint"] == str(folder / "model") and found["genome"] == str(folder / "g.fa")
    assert (found["context"], found["suffix"]) == ("128", "20")
    assert found["trained_on"] == f"/data/train.fa (sha256 {'ab' * 8})"
    scored(folder, tmp_path / "out.parquet", "--exact")
    table = json.loads(polars.read_parquet_metadata(tmp_path / "out.parquet")["dnamamba"])
    assert (table["weights_sha256"], table["context"], table["suffix"]) == (digest, 128, "to the tile's end")


def test_text_has_its_provenance_in_a_file_next_to_it(folder, tmp_path, capsys):
    """The table itself stays one that pandas, polars and R read as it is."""
    digest = hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()
    for out in (tmp_path / "out.tsv", tmp_path / "out.csv"):
        scored(folder, out, "--suffix", "20")
        header, rows = table_rows(out)
        assert header[0] == "record" and len(list(rows)) == 1
        found = json.loads((tmp_path / f"{out.name}.json").read_text())
        assert (found["weights_sha256"], found["context"], found["suffix"]) == (digest, 128, 20)
        assert found["genome"] == [str(folder / "g.fa")]
    flags = ["--checkpoint", folder / "model", "--genome", folder / "g.fa", "--region", "chr1:50-60", "--suffix", 20]
    flags += ["--out", tmp_path / "m", "--format", "tsv", "--accelerator", "cpu"]
    assert cli.run(mutagenesis.main, list(map(str, flags))) == 0
    assert found == json.loads((tmp_path / "m.json").read_text())
    (tmp_path / "m.tsv").unlink()
    assert cli.run(mutagenesis.main, list(map(str, flags))) == 2
    assert "m.json: exists already" in capsys.readouterr().err


def test_a_second_scoring_replaces_the_first_ones_line(folder, tmp_path):
    scored(folder, tmp_path / "one.vcf", "--suffix", "20")
    flags = ["--checkpoint", folder / "model", "--genome", folder / "g.fa", "--vcf", tmp_path / "one.vcf"]
    flags += ["--suffix", "30", "--out", tmp_path / "two.vcf", "--accelerator", "cpu"]
    assert cli.run(score.main, list(map(str, flags))) == 0
    lines = [line for line in (tmp_path / "two.vcf").read_text().splitlines() if line.startswith("##dnamamba")]
    assert len(lines) == 1 and 'suffix="30"' in lines[0]


def test_another_assembly_is_warned_about(folder, tmp_path, capsys):
    scored(folder, tmp_path / "a.vcf", genome="g.fa")
    scored(folder, tmp_path / "b.vcf", genome="ensembl.fa")
    assert "warning" not in capsys.readouterr().out
    scored(folder, tmp_path / "c.vcf", genome="other.fa")
    told = capsys.readouterr().out
    assert "   warning  not the genome that the model was trained on" in told
    assert "chr1 has 4,100 bases, in training 4,000" in told
    flags = ["--checkpoint", folder / "model", "--genome", folder / "other.fa", "--region", "chr1:50-60"]
    flags += ["--out", tmp_path / "m", "--format", "npz", "--accelerator", "cpu"]
    assert cli.run(mutagenesis.main, list(map(str, flags))) == 0
    assert "   warning  not the genome" in capsys.readouterr().out


def test_python_warns_of_another_assembly_where_the_verbs_do(folder, recwarn):
    model = dnamamba.load(folder / "model", device="cpu")
    variant = [("chr1", 100, random_bases(4000, 4000)[99], "ACGT")]
    calls = {
        "score_variants": lambda genome: model.score_variants(variant, genome=genome, suffix=20, max_mismatches=1),
        "mutagenesis": lambda genome: model.mutagenesis("chr1:50-60", genome=genome, suffix=20),
        "log_likelihood": lambda genome: model.log_likelihood(genome=genome, regions="chr1:50-60"),
        "base_probabilities": lambda genome: model.base_probabilities(genome=genome, regions="chr1:50-60"),
        "likelihood_table": lambda genome: model.likelihood_table(genome=genome, regions="chr1:50-60"),
    }
    for call in calls.values():
        call(folder / "g.fa")
        assert not recwarn.list
        call(folder / "other.fa")
        warning = recwarn.pop(dnamamba.GenomeWarning)
        assert warning.filename == __file__  # the line that called, not one of ours
        assert "not the genome that the model was trained on" in str(warning.message)
    model.embed(genome=folder / "other.fa", regions="chr1:50-60")  # as `dnamamba embed`
    assert not recwarn.list


def test_what_counts_as_the_same_genome(folder, tmp_path):
    def warning(*trained, store="g.fa"):
        genomes = [{"name": str(number), "contigs": contigs} for number, contigs in enumerate(trained)]
        return genome_warning({"genomes": genomes}, open_genome(folder / store))

    assert warning(CONTIGS) == warning(CONTIGS, store="ensembl.fa") == ""
    assert warning({"chr2": 3000}) == ""  # trained on one chromosome
    assert warning({**CONTIGS, "chr3": 5000}) == ""  # a genome file that lacks one
    assert warning({"chr1": 9}, CONTIGS) == ""  # a mixture that holds it
    assert "it has no contig of the names NC_000913.3" in warning({"NC_000913.3": 4_641_652})
    assert "chr1 has 4,000 bases, in training 3,999" in warning({"chr1": 3999, "chrM": 500}, {"x": 3})
    assert genome_warning({"genomes": [{"name": ""}]}, open_genome(folder / "g.fa")) == ""  # an earlier version's
    path = write_fasta(folder / "cut.fa", {"1:1001-1500": random_bases(500, 4)})  # of samtools faidx
    assert warning(CONTIGS, store=path.name) == warning({"chr1": 1500}, store=path.name) == ""
    assert "no contig of the names chr1" in warning({"chr1": 1499}, store=path.name)  # reaches over its end
    assert "no contig of the names chr2" in warning({"chr2": 3000}, store=path.name)
    write_fasta(path, {"chr1:1001-1400": random_bases(500, 4)})
    assert "no contig of the names chr1" in warning({"chr1": 4000}, store=path.name)  # is not as long as it says
    classifier = {"genomes": [], "pretraining": {"genomes": [{"contigs": {"chr1": 9}, "source": SOURCE}]}}
    assert genome_warning(classifier, open_genome(folder / "g.fa"))
    assert trained_on({**classifier, "data": {"data": "v.tsv"}}) == ["v.tsv", f"/data/train.fa (sha256 {'ab' * 8})"]


def test_a_run_records_the_contigs_that_it_was_trained_on(tmp_path):
    path = write_fasta(tmp_path / "g.fa", {"chr1": random_bases(20_000, 1), "chr2": random_bases(15_000, 2)})
    flags = ["--genome", path, "--model.preset", "demo", "--model.n_layer", 1, "--model.d_model", 16, "--length", 128]
    flags += ["--batch_tokens", 256, "--max_steps", 1, "--markov_order", 0, "--validation_tokens", 256]
    assert cli.run(pretrain.main, [*map(str, flags), "--accelerator", "cpu", "--out", str(tmp_path / "run")]) == 0
    provenance = read_card(tmp_path / "run")["provenance"]
    assert provenance["genomes"][0]["contigs"] == {"chr1": 20_000, "chr2": 15_000}
    assert genome_warning(provenance, open_genome(path)) == ""


def test_a_header_line_holds_any_text():
    note = vcf_note("score", {"checkpoint": 'a"b\\c', "genome": ["x.fa", "y.fa"], "trained_on": [], "suffix": 0})
    assert note == '##dnamamba_score=<ID=score,checkpoint="a\\"b\\\\c",genome="x.fa, y.fa",suffix="0">'
