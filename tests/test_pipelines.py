"""Workflows: what a YAML plans, splits that hold, steps done once and resumed, tables; and Snakemake's own opinion."""

import csv
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import yaml

from dnamamba import cli, verbs
from dnamamba.alphabet import TOKEN_BITS, decode, reverse_complement
from dnamamba.demo import genome_path
from dnamamba.errors import InputError
from dnamamba.finetuning.settings import FinetuneSettings
from dnamamba.finetuning.tasks.examples import Examples, Origin
from dnamamba.finetuning.tasks.windows import SpeciesIntervals
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.species_table import read_species
from dnamamba.genome.store import open_genome
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.parameters import parameter_count, training_flops_per_token
from dnamamba.model.settings import model_config
from dnamamba.pictures.accuracy_by_length import plot_accuracy_by_length
from dnamamba.pictures.results_by_task import plot_results_by_task
from dnamamba.training.mixture_file import read_mixture

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"
WORKFLOWS = sorted(PIPELINES.glob("*.yaml"))
DATA = os.environ.get("DNAMAMBA_TEST_DATA")
TINY = """
out: runs/tiny
splits: {species: species.tsv, length: 512, draws: 2}
pretrain: {model.preset: demo, model.n_layer: 1, model.d_model: 16, length: 512, batch_tokens: 2048, max_steps: 2,
  markov_order: 0, accelerator: cpu, validation_tokens: 2048}
simple_models: true
finetune: {task: species, epochs: 1, examples: 32, evaluation_examples: 8, batch_size: 16, accelerator: cpu, kmer: 3}
lengths: [128]
"""


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(PIPELINES))


@pytest.fixture
def two_species(tmp_path):
    """Two genomes of two contigs: the demo genome forwards and backwards; one has a gap."""
    letters = gzip.decompress(genome_path().read_bytes()).decode().split("\n", 1)[1].replace("\n", "")
    forward, backward = letters[:120_000], letters[1_000_000:1_120_000][::-1]
    for name, text in (("forward", forward[:70_000] + "N" * 100 + forward[70_100:]), ("backward", backward)):
        (tmp_path / f"{name}.fa").write_text(f">chr1\n{text[:90_000]}\n>chr2\n{text[90_000:]}\n")
    (tmp_path / "species.tsv").write_text("name\tfasta\nforward\tforward.fa\nbackward\tbackward.fa\n")
    return tmp_path


def python(*arguments, cwd, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, check=False, **options)


def intervals(bed):
    return [(c, int(s), int(e)) for c, s, e in (line.split("\t") for line in bed.read_text().splitlines())]


# Splits


def test_blocks_are_disjoint_with_margins_and_read_back(two_species):
    from make_species_splits import main

    out = two_species / "splits"
    main([str(two_species / "species.tsv"), "--out", str(out), "--length", "512"])
    for name in ("forward", "backward"):
        sets = {split: intervals(out / f"{name}.{split}.bed") for split in ("train", "validation", "test")}
        assert all(sets.values())
        labelled = sorted((*interval, split) for split, found in sets.items() for interval in found)
        for (contig, _, end, split), (after, start, _, other) in itertools.pairwise(labelled):
            assert contig != after or start - end >= (512 if split != other else 0)
    genomes = read_mixture(out / "mixture.yaml")
    assert [(g.name, g.weight, [file.resolve() for file in g.genome]) for g in genomes] == [
        (name, 1, [two_species / f"{name}.fa"]) for name in ("forward", "backward")
    ]
    assert all(Path(bed).exists() for g in genomes for bed in (*g.train, *g.validation, *g.test))
    assert [row.name for row in read_species(out / "species.tsv")] == ["forward", "backward"]
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    main([str(two_species / "species.tsv"), "--out", str(out), "--length", "512", "--overwrite"])
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    main([str(two_species / "species.tsv"), "--out", str(out), "--length", "512", "--overwrite", "--seed", "1"])
    assert (out / "forward.test.bed").read_bytes() != before["forward.test.bed"]


def test_named_contigs_are_taken_whole(tmp_path):
    from make_species_splits import main

    rng = np.random.default_rng(0)
    rows = ["name\tfasta\tvalidation\ttest"]
    for name, suffix in (("a", ""), ("b", "_hap1_hsa")):
        contigs = {f"chr{k}{suffix and suffix + str(k)}": rng.choice(list("ACGT"), 2000 + k) for k in range(1, 6)}
        (tmp_path / f"{name}.fa").write_text("".join(f">{c}\n{''.join(text)}\n" for c, text in contigs.items()))
        rows.append(f"{name}\t{name}.fa\t{'chr4' if name == 'a' else '*_hsa4'}\t{'chr5' if name == 'a' else '*_hsa5'}")
    (tmp_path / "species.tsv").write_text("\n".join(rows))
    main([str(tmp_path / "species.tsv"), "--out", str(tmp_path / "out"), "--length", "1000"])
    assert intervals(tmp_path / "out" / "a.test.bed") == [("chr5", 0, 2005)]
    assert intervals(tmp_path / "out" / "b.validation.bed") == [("chr4_hap1_hsa4", 0, 2004)]
    assert [contig for contig, _, _ in intervals(tmp_path / "out" / "b.train.bed")] == [
        f"chr{k}_hap1_hsa{k}" for k in (1, 2, 3)
    ]


def test_homologous_loci_are_split_by_name_and_joined(tmp_path):
    from make_species_splits import main

    rng = np.random.default_rng(1)
    loci = [f"hg:{100 * k}-{100 * k + 90}" for k in range(120)]
    sequences = {}
    for name in ("ape", "man"):
        for locus in loci:
            text = rng.choice(list("ACGTacgt"), rng.integers(200, 900))
            text[rng.random(len(text)) < 0.01] = "N"
            sequences[name, locus] = "".join(text)
        (tmp_path / f"{name}.fa").write_text("".join(f">{locus} {name}\n{sequences[name, locus]}\n" for locus in loci))
    (tmp_path / "species.tsv").write_text("name\tfasta\nape\tape.fa\nman\tman.fa\n")
    out = tmp_path / "out"
    import make_species_splits

    make_species_splits.SLACK, before = 100, make_species_splits.SLACK
    try:
        main(
            [
                str(tmp_path / "species.tsv"),
                "--out",
                str(out),
                "--length",
                "1000",
                "--homologous",
                "--test_fraction",
                "0.3",
            ]
        )
    finally:
        make_species_splits.SLACK = before
    rows = list(csv.DictReader((out / "loci.tsv").read_text().splitlines(), delimiter="\t"))
    assert sorted(row["record"] for row in rows) == sorted(loci)  # each once
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    for name in ("ape", "man"):
        store = open_genome(out / f"{name}.fa.gz")
        ends = {}
        for row in rows:
            start, end = int(row[f"{name}_start"]), int(row[f"{name}_end"])
            assert start == ends.get(row["contig"], 0)  # no base between the loci
            ends[row["contig"]] = end
            joined = decode(store.read(row["contig"], start, end))
            assert joined == sequences[name, row["record"]].replace("N", "")
        assert ends == {contig.name: contig.length for contig in store.contigs}
        assert not (store.tokens & TOKEN_BITS == 4).any()
        for split in ("train", "validation", "test"):
            found = intervals(out / f"{name}.{split}.bed")
            assert found == [(c.name, 0, c.length) for c in store.contigs if c.name.startswith(split)]
            assert all(end > 1000 for _, _, end in found)


BAD_TABLES = {
    "name fasta\na a.fa\n": "expected the tab-separated columns",
    "name\tfasta\na\tmissing.fa\nb\tb.fa\n": "missing.fa: no such file",
    "name\tfasta\na\ta.fa\n": "two or more species",
    "name\tfasta\na\ta.fa\na\tb.fa\n": "each name once",
    "name\tfasta\ttest\tvalidation\na\ta.fa\tc\t\nb\tb.fa\tc\td\n": "for validation and test, or for none",
}


@pytest.mark.parametrize("table", BAD_TABLES)
def test_unusable_tables_are_reported_in_one_line(tmp_path, capsys, table):
    from make_species_splits import main

    for name in ("a", "b"):
        (tmp_path / f"{name}.fa").write_text(">c\nACGT\n")
    (tmp_path / "species.tsv").write_text(table)
    assert cli.run(main, [str(tmp_path / "species.tsv"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert BAD_TABLES[table] in error and error.count("\n") == 1


def test_records_that_differ_are_not_homologous(two_species, capsys):
    from make_species_splits import main

    (two_species / "backward.fa").write_text(">other\nACGT\n")
    arguments = [str(two_species / "species.tsv"), "--out", str(two_species / "out"), "--homologous"]
    assert cli.run(main, arguments) == 2
    assert "its records are not those of" in capsys.readouterr().err


# Plans


def make(config):
    from plan import make_plan

    return make_plan(config).runs


def plan_of(text):
    from plan import make_plan

    return make_plan(yaml.safe_load(text))


def test_a_plan_knows_its_runs_and_what_they_need():
    plan = plan_of(TINY + "from_scratch: true\nscratch: {model.preset: demo}\n")
    runs = plan.by_name()
    assert list(runs) == ["splits", "pretrain", "0000128-pretrained", "0000128-scratch", "0000128-simple"]
    assert runs["pretrain"].needs == ("splits",) and runs["0000128-pretrained"].needs == ("splits", "pretrain")
    assert "--mixture runs/tiny/splits/mixture.yaml" in " ".join(runs["pretrain"].flags)
    assert "--checkpoint runs/tiny/pretrain" in " ".join(runs["0000128-pretrained"].flags)
    assert "--checkpoint none" in " ".join(runs["0000128-scratch"].flags)
    assert "--model.preset" in runs["0000128-scratch"].flags
    assert "--epochs" not in runs["0000128-simple"].flags  # says nothing about the examples


def test_a_checkpoint_stands_in_for_pretraining_and_a_folder_for_splits():
    plan = plan_of(
        "out: x\nsplits: made\ncheckpoint: CK\npretrain: {length: 1}\nfinetune: {task: species}\nlengths: [8]"
    )
    assert [run.name for run in plan.runs] == ["0000008-pretrained"] and plan.runs[0].needs == ()
    assert "--species made/species.tsv" in " ".join(plan.runs[0].flags)


def test_a_length_has_flags_of_its_own():
    plan = plan_of(
        "out: x\ncheckpoint: c\nfinetune: {epochs: 9}\nlengths: [8, 16]\nby_length: {16: {epochs: 3, x: [1, 2]}}"
    )
    flags = [" ".join(run.flags) for run in plan.runs]
    assert "--epochs 9 --length 8" in flags[0] and "--epochs 3 --length 16 --x 1 2" in flags[1]


def test_each_folder_is_a_task(tmp_path, monkeypatch):
    for name in ("b", "a"):
        (tmp_path / "gue" / name).mkdir(parents=True)
    (tmp_path / "gue" / "README").touch()
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    plan = plan_of("out: x\ncheckpoint: c\ndata: [$SOMEWHERE/gue/*]")
    assert [run.name for run in plan.runs] == ["a-pretrained", "b-pretrained"]
    assert [run.facts["task"] for run in plan.runs] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: x\nlenghts: [8]", "unknown key 'lenghts'"),
        ("lengths: [8]", "`out:`"),
        ("out: x\nlengths: [8]\nby_length: {9: {}}", "9 is none of the lengths"),
        ("out: x\ndata: [nowhere/*]", "no folder matches nowhere/*"),
        ("out: $NOT_SET_ANYWHERE/x", "$NOT_SET_ANYWHERE/x: the environment variable"),
    ],
)
def test_unusable_workflows_are_reported(text, message):
    with pytest.raises(InputError) as error:
        plan_of(text)
    assert message in str(error.value)


# Steps

FAKE = """
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
(out.parent / "calls").open("a").write(" ".join(sys.argv[1:-2]) + "\\n")
if out.exists() and "--resume" not in sys.argv:
    sys.exit("the folder is there")
out.mkdir(exist_ok=True)
(out / "config.yaml").touch()
if "--resume" in sys.argv or "--once" in sys.argv:
    (out / "summary.json").touch()
else:
    sys.exit(3)
"""


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)

    def step(*flags):
        line = (PIPELINES / "run_step.py", "run", "summary.json", "-m", "fake", "--", *flags)
        return python(*line, cwd=tmp_path).returncode

    def calls():
        file = tmp_path / "calls"
        return file.read_text().splitlines() if file.exists() else []

    return tmp_path, step, calls


def test_a_step_is_done_once_and_resumed(fake):
    folder, step, calls = fake
    (folder / "run").mkdir()  # as a workflow engine does; the run itself would refuse it
    assert step("--a", "1") == 3 and step("--a", "1") == 0 and step("--a", "1") == 0
    assert calls() == ["--a 1", "--resume"]


def test_a_step_with_other_flags_is_refused(fake):
    folder, step, calls = fake
    assert step("--once", "1") == 0 and step("--once", "2") == 2
    assert calls() == ["--once 1"]
    shutil.rmtree(folder / "run")
    assert step("--once", "2") == 0


# Tables


def finished(folder, accuracy, contigs, species):
    """A run folder as finetune leaves it, every window of the contigs with this accuracy right."""
    folder.mkdir(parents=True)
    metrics = {"accuracy": {"mean": accuracy, "std": 0.01, "by_seed": [accuracy]}}
    summary = {"task": "species", "classes": species, "test": metrics, "parameters": 7, "seconds": 3.2}
    summary["baselines"] = {"majority": {"accuracy": 0.5}, "6-mer": {"accuracy": 0.6, "penalty": 1}}
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = ["seed,contig,start,end,group,label,predicted"]
    for contig, right in contigs.items():
        rows += [f"0,{contig},0,9,{s}:{contig},{s},{s if right else 'wrong'}" for s in species]
    (folder / "test_predictions.csv").write_text("\n".join(rows) + "\n")


def test_results_are_collected_and_loci_resampled_over_species(tmp_path, monkeypatch, capsys):
    from collect import collect, make_plan

    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load("{out: x, splits: made, checkpoint: c, from_scratch: true, lengths: [8, 16]}")
    finished(tmp_path / "x" / "0000008-pretrained", 0.5, {"l1": True, "l2": False}, ["a", "b"])
    finished(tmp_path / "x" / "0000016-pretrained", 0.5, {"l1": True, "l2": False}, ["a", "b"])
    finished(tmp_path / "x" / "0000008-scratch", 0.25, {"l1": True, "l2": False}, ["a", "b"])
    rows = collect(make_plan(config), config)
    assert "not finished: 0000016-scratch" in capsys.readouterr().out
    assert [(row["length"], row["model"]) for row in rows] == [
        ("8", "pretrained"), ("8", "scratch"), ("8", "6-mer"), ("8", "majority"),
        ("16", "pretrained"), ("16", "6-mer"), ("16", "majority"),
    ]  # fmt: skip
    assert rows == list(csv.DictReader((tmp_path / "x" / "results.csv").read_text().splitlines()))
    assert rows[0]["groups"] == "4" and rows[0]["accuracy"] == "0.5000" and rows[0]["accuracy_std"] == "0.0100"
    assert (tmp_path / "x" / "results.png").read_bytes().startswith(b"\x89PNG")
    grid = (tmp_path / "x" / "results.md").read_text().splitlines()
    assert grid[0] == "| accuracy | pretrained | scratch | 6-mer | majority |" and grid[3].startswith("| 16 | 0.500 ±")
    rows = collect(make_plan({**config, "homologous": True}), {**config, "homologous": True})
    assert rows[0]["groups"] == "2" and (rows[0]["low"], rows[0]["high"]) == ("0.0000", "1.0000")
    assert (rows[0]["mcc_low"], rows[0]["mcc_high"]) == ("0.0000", "1.0000")


def test_published_results_stand_next_to_ours(tmp_path, monkeypatch):
    from collect import collect, make_plan

    monkeypatch.chdir(tmp_path)
    (tmp_path / "d" / "t").mkdir(parents=True)
    config = yaml.safe_load("{out: x, checkpoint: c, data: d/*, published: {P: {metric: mcc, values: {t: 0.7}}}}")
    rows = collect(make_plan(config), config)
    assert [(row["task"], row["model"], row["mcc"]) for row in rows] == [("t", "P", "0.7")]
    assert (tmp_path / "x" / "results.md").read_text() == "| mcc | P |\n|---|---|\n| t | 0.700 |\n"


def test_pictures_take_tables_with_gaps(tmp_path):
    by_length = [
        {"model": "a", "length": "1024", "accuracy": "0.5", "low": "0.55", "high": "0.6"},  # not around the mean
        {"model": "a", "length": "256", "accuracy": "0.4", "low": "", "high": ""},
        {"model": "b", "length": "", "accuracy": "0.4"},
        {"model": "b", "length": "512", "accuracy": ""},
    ]
    by_task = [
        {"task": "x", "model": "a", "mcc": "0.5", "mcc_std": "0.1"},
        {"task": "y", "model": "a", "mcc": ""},
        {"task": "y", "model": "b", "mcc": "-0.1"},
    ]
    plot_accuracy_by_length(by_length, tmp_path / "1.png", title="t", chance=0.25)
    plot_accuracy_by_length([], tmp_path / "2.png", title="t")
    plot_results_by_task(by_task, tmp_path / "3.png", title="t", metric="mcc")
    plot_results_by_task([], tmp_path / "4.png", title="t", metric="mcc")
    assert all((tmp_path / f"{k}.png").read_bytes().startswith(b"\x89PNG") for k in range(1, 5))


# Whole workflows


@pytest.fixture
def workplace(tmp_path):
    """Where the shipped YAML files find what they name: empty folders are enough to plan."""
    for folder in ("data/gue/tf_0", "data/gue/mouse_2", "genomic_benchmarks/human_nontata_promoters"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path, {**os.environ, "DNAMAMBA_TEST_DATA": str(tmp_path / "data"), "SYSTEM": "mamba"}


def snakemake(workflow, *arguments, cwd, env):
    line = ("-m", "snakemake", "-s", PIPELINES / "Snakefile", "--configfile", workflow, "--cores", "2", *arguments)
    return python(*line, cwd=cwd, env=env)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_snakemake_plans_each_workflow(workflow, workplace):
    pytest.importorskip("snakemake")
    folder, env = workplace
    ran = snakemake(workflow, "--dry-run", cwd=folder, env=env)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    shown = ran.stdout + ran.stderr
    config = yaml.safe_load(workflow.read_text())
    first = "run_"
    if "finetune" in config and "pretrain" in config:
        first = "run_pretrain"
    elif "systems" in config:
        first = f"run_{re.sub('[^a-z0-9]', '_', next(iter(config['systems'])))}"
    assert f"rule {first}" in shown and "rule results:" in shown


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_the_flags_of_each_workflow_are_known(workflow, workplace, monkeypatch):
    """Every command parses: a misspelt key would be found after hours of pretraining."""
    import plan
    import simple_models

    folder, env = workplace
    monkeypatch.chdir(folder)
    for name in ("DNAMAMBA_TEST_DATA", "SYSTEM"):
        monkeypatch.setenv(name, env[name])
    config = yaml.safe_load(workflow.read_text())
    task = config.get("finetune", {"task": "sequences"})["task"]
    if task not in get_args(get_type_hints(FinetuneSettings)["task"]):
        pytest.skip(f"finetune has no --task {task} yet")
    runs = plan.make_plan(config).runs
    assert any(run.program[0] == "-m" for run in runs)
    for run in runs:
        if run.program[0] == "-m":
            verbs.parser(run.program[1].removeprefix("dnamamba.")).parse([*run.flags, "--out", "x"])
        elif run.program[0] == str(plan.CARRIED_RATE):
            verbs.parser("pretrain").parse([*run.flags, "--out", "x"])
        elif run.facts.get("model") == "simple":
            assert set(run.flags[::2]) <= {f"--{name}" for name in simple_models.SIMPLE_FLAGS}, run.flags


def test_predictions_of_simple_models_stand_below_their_heads():
    import simple_models

    origins = [Origin("chr1", 5, 9, "g", ("rs1", "A", "C")), Origin("chr2", 0, 4, "h")]
    test = Examples(np.zeros((2, 4), np.uint8), np.full(2, 4), np.array([0, 1]), origins)
    text = simple_models.predictions_csv({("cnn", 3): np.array([[0.1, 0.9], [0.2, 0.8]])}, test, ("no", "yes"))
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["label"] for row in rows] == ["no", "yes"] and {row["predicted"] for row in rows} == {"yes"}
    assert rows[0]["contig"] == "chr1" and rows[0]["group"] == "g" and None not in rows[0]


def test_the_likeliest_of_the_species_markov_models_wins():
    """Species that differ in what follows what, on either strand, and not in their composition."""
    import simple_models

    drawn = np.random.default_rng(0)

    def sequence(likely, size):
        steps = np.where(drawn.random(size) < 0.7, likely, drawn.integers(0, 4, size))
        return (np.cumsum(steps) % 4).astype(np.uint8)

    # After A comes C, or G: steps that are the same on the other strand.
    sources = {"a": 1, "b": 2}
    species = [
        SpeciesIntervals(
            name, sequence(likely, 30_000), np.array([[0, 20_000]]), np.zeros(1, np.int64), ("c",),
            np.zeros(1, np.int64), ("c",),
        )
        for name, likely in sources.items()
    ]  # fmt: skip

    def examples():
        rows = [sequence(likely, 60) for likely in sources.values() for _ in range(40)]
        rows = [reverse_complement(row) if drawn.random() < 0.5 else row for row in rows]
        return Examples(np.stack(rows), np.full(80, 60), np.repeat([0, 1], 40))

    dev, test = examples(), examples()
    order, likelihoods = simple_models.markov_likelihoods(species, dev, test)
    assert order >= 1 and likelihoods.shape == (80, 2)
    assert (likelihoods.argmax(1) == test.labels).mean() > 0.95
    other = replace(test, tokens=np.stack([reverse_complement(row) for row in test.tokens]))
    np.testing.assert_allclose(simple_models.markov_likelihoods(species, dev, other)[1], likelihoods)


def test_a_linear_classifier_of_embeddings(tmp_path):
    """Two kinds of sequences that even random weights tell apart, in a folder as `finetune` reads it."""
    import embedding_probe

    model = LanguageModel(ModelConfig(d_model=16, n_layer=1))
    save_checkpoint(model, tmp_path / "model", {})
    kinds = {"rich": "CCG", "poor": "AAT"}
    drawn = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for split, size in (("train", 60), ("dev", 20), ("test", 20)):
        lines = [f"{''.join(drawn.choice(list(kinds[kind]), 30))},{kind}" for kind in list(kinds) * (size // 2)]
        (tmp_path / "data" / f"{split}.csv").write_text("\n".join(["sequence,label", *lines]))
    splits = embedding_probe.embedded(tmp_path / "model", tmp_path / "data", 40, tmp_path / "kept.npz")
    assert {split: len(labels) for split, (_, labels) in splits.items()} == {"train": 40, "dev": 20, "test": 20}
    found = embedding_probe.probe(splits)
    assert found["mcc"] == found["accuracy"] == 1 and found["C"] in embedding_probe.PENALTIES
    again = embedding_probe.embedded(tmp_path / "gone", tmp_path / "data", 40, tmp_path / "kept.npz")
    assert all((again[split][0] == splits[split][0]).all() for split in splits)


def test_systems_are_pretrained_at_each_rate():
    plan = plan_of(
        "out: x\npretrain: {length: 8, model.preset: demo}\nlearning_rates: [0.002, 1e-3]\n"
        "systems: {mamba: {}, mixed: {model.pattern: 'mamba:3,attention', length: 9}}"
    )
    assert [run.name for run in plan.runs] == ["mamba-0.002", "mixed-0.002", "mamba-0.001", "mixed-0.001"]
    assert " ".join(plan.runs[0].flags) == "--length 8 --model.preset demo --learning_rate 0.002"
    expected = "--length 9 --model.preset demo --model.pattern mamba:3,attention --learning_rate 1e-3"
    assert " ".join(plan.runs[3].flags) == expected
    (run,) = plan_of("out: x\npretrain: {learning_rate: 0.004}\nsystems: {mamba: {length: 9}}").runs
    assert " ".join(run.flags) == "--learning_rate 0.004 --length 9"
    own = plan_of("out: x\npretrain: {learning_rate: 0.004}\nsystems: {mamba: {}, s4d: {learning_rate: 0.002}}")
    assert [run.flags[-1] for run in own.runs] == ["0.004", "0.002"]


def test_the_models_of_a_workflow_are_timed_as_it_trains_them():
    from mixer_rates import workflow_rows

    mixers = {row.system: row for row in workflow_rows(PIPELINES / "mixers.yaml")}
    assert mixers["h3"].options["n_layer"] == 10 and mixers["h3"].options["d_model"] == 128
    assert (mixers["hybrid"].batch, mixers["hybrid"].length) == (8, 32_768)
    strands = [row.options["rc_equivariant"] for row in workflow_rows(PIPELINES / "bidirectional.yaml")]
    assert strands == [False, False, True]


def pretrained(folder, bits, tokens=100, settings=None, **model):
    """A run folder as pretrain leaves it; gives the model."""
    language_model = LanguageModel(ModelConfig(**{"d_model": 8, "n_layer": 1, "d_state": 2} | model))
    (folder / "checkpoints").mkdir(parents=True)
    save_checkpoint(language_model, folder / "checkpoints" / "best", {"settings": settings or {"length": 64}})
    (folder / "summary.json").write_text(json.dumps({"best_validation_bits_per_base": bits, "tokens": tokens}))
    (folder / "metrics.csv").write_text("tokens_per_second,peak_memory_gib\n,1\n1e6,2\n3e6,3.5\n2e6,3.5\n")
    return language_model


def test_systems_are_compared_at_the_best_rate_of_each(tmp_path, monkeypatch, capsys):
    from collect import collect

    monkeypatch.chdir(tmp_path)
    text = "out: x\nsystems: {mamba: {}, s4d: {}, hyena: {}}\nlearning_rates: [0.002, 0.004]"
    plan = plan_of(text)
    for name, value in {"mamba-0.002": 1.92, "mamba-0.004": 1.91, "s4d-0.002": 1.93}.items():
        model = pretrained(plan.out / name, value)
    rows = collect(plan, yaml.safe_load(text))
    assert [(row["system"], row["learning_rate"], row["bits_per_base"]) for row in rows] == [
        ("mamba", "0.004", "1.9100"),
        ("s4d", "0.002", "1.9300"),
    ]
    size = str(parameter_count(model))
    assert rows[0] | {"parameters": size, "mtoken_per_second": "2.00", "peak_memory_gib": "3.5"} == rows[0]
    assert rows[1]["bits_at_0.002"] == "1.9300" and rows[1]["bits_at_0.004"] == ""
    assert list(csv.DictReader((plan.out / "results.csv").read_text().splitlines())) == rows
    expected = f"| mamba | {size} | 2.00 | 3.5 | 0.004 | 1.9100 | 1.9200 | 1.9100 |"
    assert expected in (plan.out / "results.md").read_text()
    assert "not finished: hyena-0.002, s4d-0.004, hyena-0.004" in capsys.readouterr().out


def test_sizes_are_drawn_over_the_operations_of_their_training(tmp_path, monkeypatch):
    """Bits that lie on a line over the logarithm of the operations give that line, with no interval to speak of."""
    from collect import collect

    monkeypatch.chdir(tmp_path)
    text = "out: x\nsystems: {mamba: {}, none: {}}\nsizes: [250k, 700k, 1.4m]"
    plan = plan_of(text)
    assert [run.name for run in plan.runs] == [f"{s}-{z}" for z in ("250k", "700k", "1.4m") for s in ("mamba", "none")]
    assert " ".join(plan.runs[2].flags) == "--model.preset 700k"
    operations = {}
    for width, size in enumerate(("250k", "700k", "1.4m"), start=1):
        model = LanguageModel(ModelConfig(d_model=8 * width, n_layer=1, d_state=2))
        operations[size] = 100 * training_flops_per_token(model, 64)
        pretrained(plan.out / f"mamba-{size}", 2 - 0.1 * math.log10(operations[size] / 1e6), d_model=8 * width)
    pretrained(plan.out / "none-250k", 1.9)
    rows = collect(plan, yaml.safe_load(text))
    assert [(row["system"], row["size"]) for row in rows] == [
        ("mamba", "250k"), ("mamba", "700k"), ("mamba", "1.4m"), ("none", "250k"),
    ]  # fmt: skip
    for row in rows[:3]:
        assert float(row["training_flops"]) == pytest.approx(operations[row["size"]], rel=1e-3)
    assert "| mamba | 3 | -0.1" in (plan.out / "results.md").read_text()
    assert (plan.out / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_rate_of_one_size_is_carried_to_the_others(tmp_path, monkeypatch):
    import carried_rate
    from collect import collect

    monkeypatch.chdir(tmp_path)
    text = "out: x\nsystems: {mamba: {}, s4d: {length: 9}}\nsizes: [250k, 700k]\nlearning_rates: [0.002, 0.004]\n"
    with pytest.raises(InputError, match="sweep: 7m has to be one of `sizes`"):
        plan_of(text + "sweep: 7m")
    plan = plan_of(text + "sweep: 250k")
    swept = [f"{system}-250k-{rate}" for rate in ("0.002", "0.004") for system in ("mamba", "s4d")]
    assert [run.name for run in plan.runs] == [*swept, "mamba-700k", "s4d-700k"]
    last = plan.runs[-1]
    assert last.needs == ("s4d-250k-0.002", "s4d-250k-0.004") and "--learning_rate" not in last.flags
    started = []
    monkeypatch.setattr(carried_rate.os, "execv", lambda program, line: started.append(line[3:]))
    given = [*last.program[1:], *last.flags, "--out", str(plan.folder(last))]
    with pytest.raises(InputError, match=r"s4d-250k-0\.002: not finished"):
        carried_rate.main(given)
    for rate, bits in ((0.002, 1.93), (0.004, 1.92)):
        pretrained(plan.out / f"s4d-250k-{rate}", bits, settings={"length": 64, "learning_rate": rate})
    plan.folder(last).mkdir()  # empty, as a workflow engine makes it
    carried_rate.main(given)
    assert started == [[*last.flags, "--out", str(plan.folder(last)), "--learning_rate", "0.004"]]
    assert not plan.folder(last).exists()
    pretrained(plan.folder(last), 1.9, settings={"length": 64, "learning_rate": 0.004})
    (plan.folder(last) / "config.yaml").touch()
    carried_rate.main(given)
    assert started[1:] == [["--resume", "--out", str(plan.folder(last))]]
    rows = collect(plan, yaml.safe_load(text))
    assert [(row["size"], row["learning_rate"], row["bits_at_0.002"], row["bits_at_0.004"]) for row in rows] == [
        ("250k", "0.004", "1.9300", "1.9200"),
        ("700k", "0.004", "", "1.9000"),
    ]


def test_intervals_of_lines_hold_what_they_say():
    """95 % of lines fitted to noisy points hold the true slope, and the true value inside and outside of the points."""
    from scaling import fit

    rng, held = np.random.default_rng(0), []
    operations = np.array([1e12, 3e12, 1e13, 3e13, 1e14])
    truth = 5 - 0.2 * np.log10(operations)
    for _ in range(2000):
        line = fit(operations, truth + 0.05 * rng.standard_normal(5))
        bits, error = line.at(np.array([13.0, 15.0]))
        errors = [abs(line.slope + 0.2) - line.slope_error, *(abs(bits - (5 - 0.2 * np.array([13.0, 15.0]))) - error)]
        held.append([each <= 0 for each in errors])
    assert np.mean(held, axis=0) == pytest.approx([0.95] * 3, abs=0.02)


def test_the_crossover_is_interpolated_where_the_ratio_passes_one():
    from crossover import crossing

    lengths = [512, 1024, 2048, 4096]
    assert crossing(lengths, [0.25, 0.5, 2.0, 4.0]) == pytest.approx(1024 * math.sqrt(2))
    assert crossing(lengths, [1.5, 2.0, 2.0, 4.0]) == 0 and crossing(lengths, [0.5, 2.0, 2.0, 0.9]) is None
    assert crossing(lengths, [2.0, 0.5, 1.0, 4.0]) == 2048  # it has to stay above


def test_crossover_compares_models_of_one_size():
    import crossover

    for d_model in (64, 128, 256, 512):
        sizes = [parameter_count(LanguageModel(crossover.config_of(name, d_model))) for name in crossover.SYSTEMS]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.01 if d_model >= 128 else 0.03)


def test_equal_seconds_are_as_many_tokens_as_the_rates_say():
    import crossover

    rows = [
        {"system": system, "d_model": 128, "length": length, "mtoken_per_s": rate}
        for length, *pair in ((1024, 4.0, 8.0), (2048, 4.0, 6.0), (32768, 4.0, 1.0))
        for system, rate in zip(crossover.SYSTEMS, pair, strict=True)
    ]
    workflow = {"out": "x", **crossover.quality(rows, 128, "hg.fa")}
    runs = {run.facts["system"]: dict(zip(run.flags[::2], run.flags[1::2], strict=True)) for run in make(workflow)}
    assert set(runs) == {f"{name}-{length}" for length in (1024, 32768) for name in ("mamba", "transformer")} | {
        f"transformer-{length}-seconds" for length in (1024, 32768)
    }
    equal = int(runs["mamba-1024"]["--tokens"])
    assert int(runs["transformer-1024-seconds"]["--tokens"]) == 2 * equal
    assert int(runs["transformer-32768-seconds"]["--tokens"]) == equal / 4
    for run in make(workflow):
        parsed = verbs.parser("pretrain").parse([*run.flags, "--out", "x"])
        expected = crossover.config_of("Mamba" if "mamba" in run.name else "Transformer++", 128)
        assert model_config(parsed.model) == expected


@pytest.mark.parametrize("name", ["scan (ours)", "scan in PyTorch", "convolution (FFT)", "attention (flash)"])
def test_operations_are_checked_before_they_are_timed(name, monkeypatch):
    import figure_8

    for constant, value in {"DEVICE": "cpu", "CHANNELS": 32, "HEADS": 2, "LENGTHS": (64,)}.items():
        monkeypatch.setattr(figure_8, constant, value)
    figure_8.check(name)
    operation, plain = figure_8.OPERATIONS[name]
    monkeypatch.setattr(figure_8, operation.__name__, lambda *inputs: operation(*inputs) * 1.05)
    monkeypatch.setitem(figure_8.OPERATIONS, name, (getattr(figure_8, operation.__name__), plain))
    with pytest.raises(ValueError, match="off by"):
        figure_8.check(name)


def test_the_driver_shows_the_same_commands(workplace):
    folder, env = workplace
    changes = ("distant:checkpoint=CK", "gue:checkpoint=no", "finetune.seeds=2")
    sets = [part for change in changes for part in ("--set", change)]
    line = (PIPELINES / "show_classification.py", PIPELINES / "distant.yaml", "--dry_run", "--only", "0001024", *sets)
    ran = python(*line, cwd=folder, env=env)
    assert ran.returncode == 0, ran.stderr
    commands = [text.strip() for text in ran.stdout.splitlines()[1::2]]
    assert len(commands) == 3 and "make_species_splits.py" in commands[0]
    assert "--length 1024" in commands[1] and "--checkpoint CK" in commands[1] and "--seeds 2" in commands[2]


@pytest.mark.slow
def test_a_tiny_workflow_runs_and_is_finished(two_species):
    pytest.importorskip("snakemake")
    (two_species / "tiny.yaml").write_text(TINY)
    env = {**os.environ, "XDG_CACHE_HOME": str(two_species / "cache")}
    ran = snakemake("tiny.yaml", cwd=two_species, env=env)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = list(csv.DictReader((two_species / "runs" / "tiny" / "results.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["pretrained", "cnn", "3-mer", "composition", "majority"]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    splits = json.loads((two_species / "runs" / "tiny" / "0000128-pretrained" / "summary.json").read_text())["species"]
    assert sorted(splits) == ["backward", "forward"]
    again = snakemake("tiny.yaml", cwd=two_species, env=env)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr
    # Other flags are refused, and what is there stays.
    (two_species / "tiny.yaml").write_text(TINY.replace("epochs: 1", "epochs: 2"))
    changed = snakemake("tiny.yaml", cwd=two_species, env=env)
    assert changed.returncode != 0 and "was made with other flags" in changed.stdout + changed.stderr
    (two_species / "tiny.yaml").write_text(TINY)
    # The driver finds the same runs finished.
    driver = python(PIPELINES / "show_classification.py", "tiny.yaml", "--minutes", "1", cwd=two_species, env=env)
    assert driver.returncode == 0, driver.stderr
    assert "done" not in driver.stdout and "| 128 |" in driver.stdout


# Downloads


@pytest.fixture
def download(monkeypatch):
    monkeypatch.syspath_prepend(str(PIPELINES.parent / "data"))
    import download

    return download


def test_a_download_is_whole_or_not_there(tmp_path, download):
    served = tmp_path / "served"
    served.write_bytes(b"ACGT" * 1_000_000)
    md5 = hashlib.md5(served.read_bytes()).hexdigest()
    assert download.download(served.as_uri(), tmp_path / "copy", md5) == md5
    assert (tmp_path / "copy").read_bytes() == served.read_bytes()
    with pytest.raises(InputError, match="expected 0000"):
        download.download(served.as_uri(), tmp_path / "wrong", "0000")
    with pytest.raises(InputError, match="missing"):
        download.download((tmp_path / "missing").as_uri(), tmp_path / "none")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy", "served"]


def test_sources_are_a_table(download):
    sources = download.read_sources()
    assert {"hg38", "clinvar", "chimp", "gorilla", "orangutan"} <= set(sources)
    for source in sources.values():
        assert source["url"].startswith("https://") and source["file"] and source["note"]
        assert source["md5"] == "" or len(source["md5"]) == 32


def test_a_foretold_peak_is_read_from_what_a_dry_run_prints():
    from pretrain_step import foretold

    said = "  estimate  2 s a step\n--recompute  none more than there is, cheap 30.4, all 12 GiB a device; this run …"
    assert foretold(said) == {"cheap": 30.4, "all": 12.0}
    assert foretold("  estimate  2 s a step\n") == {}


def test_an_error_of_cuda_is_named_without_its_advice(monkeypatch):
    monkeypatch.syspath_prepend(str(PIPELINES.parent / "kernels" / "bench"))
    from long_offsets import error_in

    advice = "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA`.\n"
    error = "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert error_in(f"Traceback:\n{error}\n{advice}") == error
    assert error_in("") == "?" and error_in("Killed\n") == "Killed"


WORKER_THAT_ENDS_EARLY = """
import json, sys, time
from pathlib import Path

for job in json.loads(Path(sys.argv[1]).read_text()):
    Path(job["output"]).write_text("--recompute none 3.5, all 1 GiB")
    if "trace" in job:
        folder = Path(job["settings"]["out"])
        folder.mkdir()
        with Path(__file__).with_suffix(".log").open("a") as file:
            print(folder.name, file=file)
        rate = job["settings"]["model"]["d_model"] * 1e6
        lines = ["tokens_per_second,peak_memory_gib,data_wait_fraction", *(f"{rate},2.0,0" for _ in range(5))]
        (folder / "metrics.csv").write_text(chr(10).join(lines))
        Path(job["trace"][2]).write_text(json.dumps({"idle": 0.01, "waits": 0.0, "gaps": []}))
        if rate == 16e6:
            sys.exit("out of memory")
        (folder / "summary.json").write_text("{}")
"""


def test_steps_are_written_run_by_run_and_not_measured_again(tmp_path, monkeypatch, capsys):
    import pretrain_step

    worker, out = tmp_path / "worker.py", tmp_path / "steps.csv"
    worker.write_text(WORKER_THAT_ENDS_EARLY)
    monkeypatch.setattr(pretrain_step, "WORKER", worker)
    monkeypatch.setattr(pretrain_step, "conditions", lambda: {"gpu": "none"})

    def rates(*runs):
        monkeypatch.setattr(sys, "argv", ["pretrain_step", "x.fa", "--out", str(out), "--runs", *runs])
        pretrain_step.main()
        with out.open(newline="") as file:
            return [
                (pretrain_step.name_of(row), row["mtoken_per_s"], row["foretold_gib"]) for row in csv.DictReader(file)
            ]

    assert rates("8x4x64-none-on", "16x4x64-all-off", "32x4x64-all-off") == [("8x4x64-none-on", "8.0", "3.5")]
    assert "not measured: 16x4x64-all-off 32x4x64-all-off" in capsys.readouterr().out
    found = rates("8x4x64-none-on", "8x4x64-all-on")
    assert found == [("8x4x64-none-on", "8.0", "3.5"), ("8x4x64-all-on", "8.0", "1.0")]
    assert worker.with_suffix(".log").read_text().split() == ["8x4x64-none-on", "16x4x64-all-off", "8x4x64-all-on"]


def test_idle_time_is_what_no_work_covers(tmp_path):
    """Kernels that overlap count once, copies within the GPU as work, those from the host and to it not at all."""
    import observed_training

    spans = [("kernel", "a", 100, 10), ("kernel", "b", 112, 10), ("kernel", "c", 120, 5)]
    spans += [("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 126, 10), ("gpu_memset", "Memset (Device)", 140, 2)]
    spans += [("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 143, 13), ("kernel", "a", 165, 35)]
    keys = ("cat", "name", "ts", "dur")
    events = [dict(zip(keys, span, strict=True)) for span in reversed(spans)]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"traceEvents": [*events, {"ph": "M", "name": "process_name"}]}))
    found = observed_training.idle_time(trace)
    most = found.pop("gaps")[0]
    assert found == pytest.approx({"seconds": 1e-4, "idle": 0.27, "waits": 0.15, "kernels": 4})
    assert most == [pytest.approx(0.15), 1, "c", "Memset (Device)"]
