"""`dnamamba finetune` from the command line: what it trains, selects, reads, writes and refuses."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dnamamba import cli, finetune, info
from dnamamba.errors import InputError
from dnamamba.finetuning import run
from dnamamba.finetuning.tasks import species
from dnamamba.finetuning.trial import Trial
from dnamamba.formats.checkpoint import load_classifier, save_checkpoint
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.runs.summary import summary_lines

TINY = ["--model.preset", "demo", "--model.n_layer", "1", "--model.d_model", "16", "--model.d_state", "4"]
SCRATCH = ["--checkpoint", "none", *TINY, "--accelerator", "cpu", "--kmer", "0"]


def sequence(generator, gc, length=40):
    return "".join(generator.choice(list("ACGT"), length, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]))


def write_csv(path, rows, header=("sequence", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def data(tmp_path):
    """Two classes that GC distinguishes: learnt in a few steps."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 96), ("dev", 32), ("test", 40)):
        rows = [(sequence(generator, (0.25, 0.75)[n % 2], 30 + n % 20), ("AT", "GC")[n % 2]) for n in range(count)]
        write_csv(folder / f"{split}.csv", rows)
    return folder


def finetuned(out, *arguments):
    assert cli.run(finetune.main, [*arguments, "--out", str(out)]) == 0
    return json.loads((out / "summary.json").read_text())


SEQUENCES = ["--task", "sequences", "--batch_size", "16", "--epochs", "4", "--learning_rate", "0.01"]


def test_a_run_from_files_to_summary(tmp_path, data, capsys):
    out = tmp_path / "run"
    summary = finetuned(
        out, *SEQUENCES, *SCRATCH, "--data", str(data), "--seeds", "2", "--conjoin", "test", "--kmer", "2"
    )
    assert summary["classes"] == ["AT", "GC"] and summary["seeds"] == [0, 1]
    assert summary["test"]["mcc"]["mean"] > 0.9
    assert summary["baselines"]["composition"]["accuracy"] > 0.9  # and the shortcut is reported
    assert summary["baselines"]["2-mer"]["mcc"] > 0.9
    assert set(summary["baselines"]["2-mer"]) == {"accuracy", "mcc", "f1", "auroc"}  # all of the test split

    with (out / "test_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 40
    for seed, accuracy in enumerate(summary["test"]["accuracy"]["by_seed"]):
        mine = [row for row in rows if row["seed"] == str(seed)]
        assert np.mean([row["label"] == row["predicted"] for row in mine]) == pytest.approx(accuracy)
        assert all(abs(float(row["p_AT"]) + float(row["p_GC"]) - 1) < 1e-5 for row in mine)
    with (out / "metrics.csv").open() as file:
        epochs = list(csv.DictReader(file))
    assert [(row["seed"], row["epoch"]) for row in epochs] == [(str(s), str(e)) for s in (0, 1) for e in (1, 2, 3, 4)]
    best = {s: max(float(r["dev_mcc"]) for r in epochs if r["seed"] == str(s)) for s in (0, 1)}
    assert summary["dev"]["mcc"]["by_seed"] == pytest.approx(list(best.values()), abs=1e-5)

    _, card = load_classifier(out)
    assert card["task"] == "sequences" and card["metrics"]["test"]["mcc"] > 0.9 and card["pretraining"] is None
    read = json.loads((out / "test_read.json").read_text())
    assert read["selection"] == summary["selection"]
    capsys.readouterr()
    assert cli.run(info.main, [str(out)]) == 0
    shown = capsys.readouterr().out
    for text in ("multiclass classifier, task sequences", "2: AT, GC", "AT 48, GC 48", "mcc", "composition", "scratch"):
        assert text in shown


def test_test_sequences_that_train_holds_are_left_out_of_a_second_figure(tmp_path, data):
    """Labels of the shared ones are swapped, so that only they can be wrong."""
    with (data / "train.csv").open() as file:
        shared = [(text, {"AT": "GC", "GC": "AT"}[label]) for text, label in list(csv.reader(file))[1:21]]
    with (data / "test.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    write_csv(data / "test.csv", rows + shared)
    flags = [*SEQUENCES, *SCRATCH, "--data", str(data)]
    summary = finetuned(tmp_path / "run", *flags)
    unseen = summary["test_without_overlap"]
    assert unseen["examples"] == 40 and summary["overlaps"]["train_test"]["sequences"] == 20
    assert unseen["accuracy"]["mean"] > summary["test"]["accuracy"]["mean"] + 0.2
    # All metrics over all of them come back from the table of predictions.
    with (tmp_path / "run" / "test_predictions.csv").open() as file:
        right = [row["label"] == row["predicted"] for row in csv.DictReader(file)]
    assert np.mean(right[:40]) == pytest.approx(unseen["accuracy"]["mean"])


@pytest.mark.gpu
def test_the_gpu_trains_and_predicts_alike(tmp_path, data):
    from dnamamba import predict

    flags = [*SEQUENCES, *SCRATCH, "--data", str(data), "--accelerator", "gpu", "--conjoin", "concatenate"]
    assert finetuned(tmp_path / "run", *flags)["test"]["mcc"]["mean"] > 0.8
    tables = []
    for accelerator in ("cpu", "gpu"):
        out = tmp_path / f"{accelerator}.csv"
        arguments = ["--checkpoint", str(tmp_path / "run"), "--input", str(data / "test.csv"), "--out", str(out)]
        assert cli.run(predict.main, [*arguments, "--accelerator", accelerator, "--precision", "fp32"]) == 0
        with out.open() as file:
            tables.append([float(row["p_AT"]) for row in csv.DictReader(file)])
    np.testing.assert_allclose(tables[0], tables[1], rtol=0, atol=1e-3)


def weights(folder, seed=0):
    return load_file(folder / f"seed-{seed}" / "checkpoint" / "model.safetensors")


def test_the_test_split_has_no_say(tmp_path, data):
    """Weights, learning rate and epoch are the same bits whatever the test split holds."""
    flags = [*SEQUENCES, *SCRATCH, "--data", str(data), "--learning_rate", "1e-5", "1e-2", "--seeds", "2"]
    first = finetuned(tmp_path / "a", *flags)
    assert first["selection"]["learning_rate"] == 0.01
    with (data / "test.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    write_csv(data / "test.csv", [(text, {"AT": "GC", "GC": "AT"}[label]) for text, label in rows[:10]])
    second = finetuned(tmp_path / "b", *flags)
    assert first["selection"] == second["selection"] and first["dev"] == second["dev"]
    assert second["test"]["accuracy"]["mean"] < 0.2 < first["test"]["accuracy"]["mean"]
    for seed in (0, 1):
        one, other = weights(tmp_path / "a", seed), weights(tmp_path / "b", seed)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_interrupted_run_continues_as_if_nothing_had_happened(tmp_path, data, monkeypatch, capsys):
    flags = [*SEQUENCES, *SCRATCH, "--data", str(data), "--seeds", "2"]
    finetuned(tmp_path / "whole", *flags)
    count = 0
    report = run._report

    def stop_in_the_second_seed(*arguments):
        nonlocal count
        count += 1
        report(*arguments)
        if count == 6:
            raise KeyboardInterrupt

    out = tmp_path / "cut"
    monkeypatch.setattr(run, "_report", stop_in_the_second_seed)
    assert cli.run(finetune.main, [*flags, "--out", str(out)]) == cli.INTERRUPTED
    assert not (out / "summary.json").exists() and not (out / "test_read.json").exists()
    assert f"--resume --out {out}" in capsys.readouterr().out
    reached = json.loads((out / "summary.unfinished.json").read_text())
    with (out / "metrics.csv").open() as file:
        epochs = list(csv.DictReader(file))
    assert [(row["seed"], row["epoch"]) for row in epochs] == [*(("0", e) for e in "1234"), ("1", "1"), ("1", "2")]
    assert (reached["finished"], reached["stopped_by"], reached["epoch"], reached["epochs"]) == (False, "SIGINT", 6, 8)
    assert reached["last_epoch"]["dev_mcc"] == float(epochs[-1]["dev_mcc"])
    assert "stopped by SIGINT after 6 of 8 epochs" in dict(summary_lines(reached))["unfinished"]

    trained = []
    train_epoch = Trial._train_epoch

    def counted(self, model, optimizer, state, features):
        trained.append((self.seed, state.epoch))
        return train_epoch(self, model, optimizer, state, features)

    monkeypatch.setattr(Trial, "_train_epoch", counted)
    assert cli.run(finetune.main, ["--resume", "--out", str(out)]) == 0
    assert trained == [(1, 2), (1, 3)]  # the first seed stays, the second continues
    for seed in (0, 1):
        whole, resumed = weights(tmp_path / "whole", seed), weights(out, seed)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert cli.run(finetune.main, ["--resume", "--out", str(out)]) == cli.USER_ERROR  # finished
    assert not (out / "summary.unfinished.json").exists()


def test_micro_batches_change_nothing(tmp_path, data):
    flags = [*SEQUENCES, *SCRATCH, "--data", str(data), "--epochs", "2"]
    finetuned(tmp_path / "a", *flags)
    finetuned(tmp_path / "b", *flags, "--micro_tokens", "100")
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_chunks_change_nothing(tmp_path, data, pooling, capsys):
    flags = [*SEQUENCES, *SCRATCH, "--data", str(data), "--epochs", "2", "--pooling", pooling, "--conjoin", "always"]
    finetuned(tmp_path / "a", *flags)
    finetuned(tmp_path / "b", *flags, "--backprop", "chunked", "--chunk", "16")
    assert "chunked, 16 bases a chunk" in capsys.readouterr().out
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def test_a_model_without_a_state_is_not_trained_in_chunks(tmp_path, data, capsys):
    flags = [*SEQUENCES, *SCRATCH, "--data", str(data), "--model.mixer", "hyena", "--backprop", "chunked"]
    assert cli.run(finetune.main, [*flags, "--out", str(tmp_path / "run")]) == 2
    assert "finetune --backprop chunked: this model keeps no state of constant size" in capsys.readouterr().err


def test_whether_the_strand_matters_is_found_out_on_dev(tmp_path):
    """The class is the strand on which a word stands: the mean of both strands hides it, both side by side show it."""
    generator = np.random.default_rng(0)

    def flank():
        return sequence(generator, 0.5, 5)

    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 256), ("dev", 64), ("test", 64)):
        rows = [(flank() + ("AAAAAA", "TTTTTT")[n % 2] + flank(), str(n % 2)) for n in range(count)]
        write_csv(folder / f"{split}.csv", rows)
    flags = [*SEQUENCES, *SCRATCH, "--data", str(folder), "--epochs", "3", "--pooling", "mean"]
    summary = finetuned(tmp_path / "run", *flags, "--conjoin", "test", "concatenate")
    assert summary["selection"]["conjoin"] == "concatenate" and summary["test"]["accuracy"]["mean"] > 0.9
    with (tmp_path / "run" / "metrics.csv").open() as file:
        best = {row["conjoin"]: float(row["dev_accuracy"]) for row in csv.DictReader(file)}
    assert best["test"] < 0.7


@pytest.fixture
def pretrained(tmp_path):
    torch.manual_seed(1)
    model = LanguageModel(ModelConfig(n_layer=2, d_model=16, d_state=4))
    save_checkpoint(model, tmp_path / "lm", {"settings": {"length": 64}, "genomes": []})
    return tmp_path / "lm", model


@pytest.mark.parametrize("conjoin", ["no", "always", "concatenate"])
def test_a_probe_trains_the_head_alone(tmp_path, data, pretrained, conjoin, monkeypatch):
    folder, model = pretrained
    flags = [*SEQUENCES, "--data", str(data), "--checkpoint", str(folder), "--mode", "probe", "--kmer", "0"]
    flags += ["--conjoin", conjoin, "--accelerator", "cpu"]
    finetuned(tmp_path / "a", *flags)
    trained = weights(tmp_path / "a")
    for name, value in model.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(trained[name], value)
    # Features looked up are those computed.
    monkeypatch.setattr("dnamamba.finetuning.trial.FixedSet", type("Other", (), {}))
    finetuned(tmp_path / "b", *flags)
    torch.testing.assert_close(weights(tmp_path / "b")["head.weight"], trained["head.weight"], rtol=1e-3, atol=1e-5)
    assert load_classifier(tmp_path / "a")[1]["pretraining"]["settings"]["length"] == 64


def test_pretrained_weights_are_where_training_begins(tmp_path, data, pretrained):
    """One step of a vanishing learning rate leaves them; with an ordinary one they move; a classifier's serve too."""
    folder, model = pretrained
    flags = ["--task", "sequences", "--data", str(data), "--checkpoint", str(folder), "--steps", "1", "--kmer", "0"]
    finetuned(tmp_path / "still", *flags, "--learning_rate", "1e-12")
    finetuned(tmp_path / "moved", *flags, "--learning_rate", "1e-2")
    name = "backbone.layers.0.mixer.in_proj.weight"
    start = model.state_dict()[name]
    torch.testing.assert_close(weights(tmp_path / "still")[name], start)
    assert not torch.allclose(weights(tmp_path / "moved")[name], start, atol=1e-4)
    flags[5] = str(tmp_path / "moved")
    finetuned(tmp_path / "further", *flags, "--learning_rate", "1e-12")
    torch.testing.assert_close(weights(tmp_path / "further")[name], weights(tmp_path / "moved")[name])


def test_a_changed_preset_is_not_called_by_its_name(tmp_path, data, pretrained):
    flags = ["--task", "sequences", "--data", str(data), "--steps", "1", "--kmer", "0"]
    plain = finetuned(tmp_path / "plain", *flags, "--checkpoint", "none", "--model.preset", "demo")
    assert plain["preset"] == "demo"
    changes = ["--model.n_layer", "1", "--model.d_state", "8"]  # the preset's own d_state
    changed = finetuned(tmp_path / "changed", *flags, "--checkpoint", "none", "--model.preset", "demo", *changes)
    assert changed["preset"] == "demo with n_layer 1"
    assert finetuned(tmp_path / "tuned", *flags, "--checkpoint", str(pretrained[0]))["preset"] is None


def test_several_labels_and_numbers(tmp_path, capsys):
    generator = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 160), ("test", 40)):
        gcs = generator.random(count)
        rows = [(sequence(generator, gc), int(gc > 0.5), int(gc < 0.3), f"{100 * gc:.2f}") for gc in gcs]
        write_csv(folder / f"{split}.csv", rows, ("sequence", "rich", "poor", "percent"))
    flags = [*SEQUENCES, *SCRATCH, "--data", str(folder), "--pooling", "mean", "--dev_fraction", "0.2"]
    labels = finetuned(tmp_path / "labels", *flags, "--label_columns", "rich", "poor", "--kmer", "2")
    assert labels["baselines"]["2-mer"]["auroc"] > 0.9
    assert labels["kind"] == "multilabel" and labels["test"]["auroc"]["mean"] > 0.9
    assert labels["dev_carved_from_train"]
    assert labels["splits"]["train"]["examples"] + labels["splits"]["dev"]["examples"] == 160
    numbers = finetuned(tmp_path / "x", *flags, "--label_columns", "percent", "--kind", "regression")
    assert numbers["test"]["pearson"]["mean"] > 0.9 and numbers["test"]["mse"]["mean"] < 300


def test_two_learning_rates_that_hardly_differ_are_two_trials(tmp_path, data):
    rates = ["0.01", "0.0100000001"]
    flags = [*SEQUENCES, *SCRATCH, "--data", str(data), "--epochs", "1"]
    finetuned(tmp_path / "run", *flags, "--learning_rate", *rates)
    assert {path.name for path in (tmp_path / "run" / "trials").iterdir()} == {
        f"seed-0-lr-{rate}-test" for rate in rates
    }
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["peak_learning_rate"] for row in csv.DictReader(file)] == rates


@pytest.mark.parametrize(("last", "by"), [("5", "dev loss (pearson is undefined on dev)"), ("6", "dev pearson")])
def test_what_selected_is_named(tmp_path, capsys, last, by):
    """On a dev split whose labels are all the same, no correlation is defined, and the loss decides."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for split, labels in (("train", "123456"), ("dev", "5555" + last), ("test", "1357")):
        write_csv(folder / f"{split}.csv", [(sequence(generator, int(label) / 10), label) for label in labels])
    flags = [*SEQUENCES, *SCRATCH, "--data", str(folder), "--kind", "regression"]
    assert finetuned(tmp_path / "run", *flags)["selection"]["by"] == by
    said = capsys.readouterr().out
    assert f"best {by} " in said and "best dev pearson nan" not in said


def fasta(path, records):
    path.write_text("".join(f">{name}\n{text}\n" for name, text in records))


@pytest.fixture
def two_species(tmp_path):
    generator = np.random.default_rng(0)
    for name, gc in (("high", 0.7), ("low", 0.3)):
        text = sequence(generator, gc, 60_000)
        fasta(
            tmp_path / f"{name}.fa", [("chr1", text[:30_000] + "N" * 500 + text[30_000:].lower()), ("chrM", "A" * 99)]
        )
    (tmp_path / "two.tsv").write_text("name\tfasta\nlow\tlow.fa\nhigh\thigh.fa\n")
    return tmp_path / "two.tsv"


def test_species_from_genomes_to_summary(tmp_path, two_species, capsys):
    flags = ["--task", "species", "--species", str(two_species), *SCRATCH, "--length", "64", "--examples", "256"]
    flags += ["--batch_size", "32", "--epochs", "3", "--learning_rate", "0.01", "--evaluation_examples", "50"]
    summary = finetuned(tmp_path / "run", *flags)
    shown = capsys.readouterr().out
    assert "high: 60.60 kb in 2 contigs" in shown and "GC 7" in shown and "1 mitochondrial (chrM)" in shown
    assert summary["classes"] == ["high", "low"] and summary["test"]["accuracy"]["mean"] > 0.75
    interval = summary["test_intervals"]["accuracy"]
    assert interval["low"] <= interval["value"] <= interval["high"] and interval["groups"] > 4
    assert summary["baselines"]["composition"]["accuracy"] > 0.9
    with (tmp_path / "run" / "test_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100 and {row["contig"] for row in rows} == {"chr1"}
    for row in rows:
        interval = row["group"].split(":")[2]
        start, end = map(int, interval.split("-"))
        assert start <= int(row["start"]) and int(row["end"]) <= end and int(row["end"]) - int(row["start"]) == 64


def test_fixed_windows_can_be_memorised(tmp_path, two_species):
    """Of two names for one genome, whose windows nothing else distinguishes: new windows teach nothing."""
    one = tmp_path / "one.tsv"
    one.write_text("name\tfasta\nfirst\tlow.fa\nsecond\tlow.fa\n")
    flags = ["--task", "species", "--species", str(one), *SCRATCH, "--length", "64", "--examples", "32"]
    flags += ["--batch_size", "32", "--epochs", "36", "--learning_rate", "0.01", "--evaluation_examples", "8"]
    losses = {}
    for name, more in (("new", []), ("fixed", ["--fixed_windows"])):
        finetuned(tmp_path / name, *flags, *more)
        with (tmp_path / name / "metrics.csv").open() as file:
            losses[name] = [float(row["train_loss"]) for row in csv.DictReader(file)][-10:]
    assert max(losses["fixed"]) < 0.5 and min(losses["new"]) > 0.6


def test_given_splits_of_species_are_kept(tmp_path, two_species):
    for split, start, end in (("train", 0, 20_000), ("validation", 20_000, 25_000), ("test", 25_000, 30_000)):
        (tmp_path / f"{split}.bed").write_text(f"chr1\t{start}\t{end}\n")
    beds = "train.bed\tvalidation.bed\ttest.bed"
    two_species.write_text(f"name\tfasta\ttrain\tvalidation\ttest\nlow\tlow.fa\t{beds}\nhigh\thigh.fa\t{beds}\n")
    settings = run.resolve(run.FinetuneSettings(task="species", species=two_species, checkpoint="none", length=100))
    task = species.build(settings)
    assert len(task.dev.origins) and len(task.train.species) == 2
    assert all(20_000 <= p.start < p.end <= 25_000 for p in task.dev.origins)
    assert all(25_000 <= p.start < p.end <= 30_000 for p in task.test.read({}).origins)
    for found in task.train.species:
        assert found.bounds.min() == 0 and found.bounds.max() == 20_000


def test_given_splits_of_homologous_species_may_not_part_a_locus(tmp_path, two_species, capsys):
    generator = np.random.default_rng(0)
    table = ["name\tfasta\ttrain\tvalidation\ttest"]
    for name in ("ape", "man"):
        fasta(tmp_path / f"{name}.fa", [(f"locus{n}", sequence(generator, 0.5, 300)) for n in range(6)])
        for split, loci in (("train", (0, 1, 2)), ("validation", (3,)), ("test", (4, 5))):
            (tmp_path / f"{name}.{split}.bed").write_text("".join(f"locus{n}\t0\t300\n" for n in loci))
        table.append("\t".join([name, f"{name}.fa", *(f"{name}.{s}.bed" for s in ("train", "validation", "test"))]))
    two_species.write_text("\n".join(table) + "\n")
    flags = ["--task", "species", "--species", str(two_species), *SCRATCH, "--length", "100", "--intervals_by_name"]
    assert cli.run(finetune.main, [*flags, "--dry_run"]) == 0
    assert "windows a species in 2 groups of neighbours" in capsys.readouterr().out  # two loci, not two times two
    (tmp_path / "man.test.bed").write_text("locus0\t0\t300\n")
    (tmp_path / "man.train.bed").write_text("locus1\t0\t300\n")
    assert cli.run(finetune.main, [*flags, "--dry_run"]) == cli.USER_ERROR
    assert "locus0 is in train of ape and in test of man: homologous records belong" in capsys.readouterr().err


def test_memory_that_runs_out_is_reported(tmp_path, data, monkeypatch, capsys):
    def full(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Trial, "_step", full)
    flags = [*SEQUENCES, *SCRATCH, "--data", str(data), "--out", str(tmp_path / "run")]
    assert cli.run(finetune.main, flags) == cli.USER_ERROR
    assert "out of memory: give less than --micro_tokens 16384" in capsys.readouterr().err
    monkeypatch.undo()
    again = ["--resume", "--out", str(tmp_path / "run"), "--recompute", "all"]
    assert cli.run(finetune.main, again) == 0


def test_a_length_warm_up_trains_on_shorter_windows(tmp_path, two_species, monkeypatch):
    lengths = []
    step = Trial._step

    def noted(self, model, optimizer, epoch, indices, length, features):
        lengths.append(length)
        return step(self, model, optimizer, epoch, indices, length, features)

    monkeypatch.setattr(Trial, "_step", noted)
    flags = ["--task", "species", "--species", str(two_species), *SCRATCH, "--length", "4096", "--length_warmup", "0.5"]
    finetuned(tmp_path / "run", *flags, "--batch_size", "2", "--steps", "8", "--evaluation_examples", "2")
    assert lengths == [1024, 1024, 2048, 2048, None, None, None, None]


def test_a_dry_run_leaves_nothing(tmp_path, data, capsys):
    assert (
        cli.run(finetune.main, [*SEQUENCES, *SCRATCH, "--data", str(data), "--dry_run", "--out", str(tmp_path / "x")])
        == 0
    )
    assert "AT 48, GC 48" in capsys.readouterr().out and not (tmp_path / "x").exists()


def test_help_is_quick():
    code = "import sys; from dnamamba import verbs; verbs.parser('predict').format_help(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'torch'" not in done.stdout and "'dnamamba.finetuning.settings'" in done.stdout


# What users get wrong

GOOD = [(f"ACGT{'ACGT'[n % 4]}{'ACGT'[n // 4]}CC", "xy"[n % 2]) for n in range(16)] + [("AACCTT", "x")] * 4


def bad(name, train=GOOD, test=GOOD, flags=(), message="", header=("sequence", "label")):
    return pytest.param(train, test, list(flags), header, message, id=name)


@pytest.mark.parametrize(
    ("train", "test", "flags", "header", "message"),
    [
        bad(
            "one class",
            [("ACGTACGT", "x")] * 4,
            message=r"train.csv, line 2: all 4 training examples have one label, 'x'",
        ),
        bad(
            "unseen label", test=[*GOOD, ("ACG", "z")], message=r"test.csv, line 22: label 'z' is not among the classes"
        ),
        bad("empty sequence", [*GOOD, ("", "x")], message=r"train.csv, line 22: the sequence is empty"),
        bad("empty label", [*GOOD, ("ACG", "")], message=r"train.csv, line 22: the label is empty; take the row out"),
        bad(
            "protein",
            [("MKVLE", "x"), *GOOD],
            message=r"train.csv, line 2: 'L' at position 4 is no nucleotide",
        ),
        bad("short row", [*GOOD, ("ACGT",)], message=r"train.csv, line 22: 1 columns, the header has 2"),
        bad("long row", [*GOOD, ("ACGT", "x", "1")], message=r"train.csv, line 22: 3 columns, the header has 2"),
        bad(
            "no label column", header=("sequence", "colour"), message=r"no label column label or labels among sequence"
        ),
        bad("no such column", flags=["--label_columns", "z"], message=r"no label column 'z' among sequence, label"),
        bad(
            "overlap", flags=["--refuse_overlap"], message=r"18 of 20 sequences are in both train and test: test.csv, l"
        ),
        bad("numbers", flags=["--kind", "regression"], message=r"value is '[xy]', expected a number"),
        bad(
            "many numbers",
            [("ACGT", f"{n / 7}") for n in range(300)],
            message=r"300 different numbers as labels \(.* and 290 more\); take -",
        ),
        bad("no test", test=None, message=r"no test split; expected test.csv"),
        bad("empty test", test=[], message=r"test.csv: no sequences"),
    ],
)
def test_bad_data_is_refused_in_one_line(tmp_path, capsys, train, test, flags, header, message):
    import re

    folder = tmp_path / "data"
    folder.mkdir()
    write_csv(folder / "train.csv", train, header)
    if test is not None:
        write_csv(folder / "test.csv", test, header)
    out = tmp_path / "run"
    code = cli.run(finetune.main, [*SEQUENCES, *SCRATCH, "--data", str(folder), "--out", str(out), *flags])
    error = capsys.readouterr().err
    assert code == cli.USER_ERROR and error.count("\n") == 1 and error.startswith("error: ")
    assert re.search(message, error), error
    assert not out.exists()


def test_overlaps_and_unequal_classes_are_reported(tmp_path, capsys):
    generator = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [(sequence(generator, 0.5), "rare" if n % 20 == 0 else "common") for n in range(80)]
    write_csv(folder / "train.csv", rows)
    write_csv(folder / "test.csv", [*rows[:3], (sequence(generator, 0.5), "rare")])
    assert cli.run(finetune.main, [*SEQUENCES, *SCRATCH, "--data", str(folder), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "sequences are in both train and test: test.csv, line " in shown
    assert "wildly unequal" in shown


@pytest.mark.parametrize(
    ("table", "flags", "message"),
    [
        ("", [], "empty; expected a header line"),
        ("name\tfile\nlow\tlow.fa\n", [], "no column fasta in the header name, file"),
        ("name\tfasta\tcolour\nlow\tlow.fa\tred\n", [], "unknown column 'colour'"),
        ("name\tfasta\nlow\tlow.fa\n", [], "1 species; two are needed"),
        ("name\tfasta\nlow\tlow.fa\nlow\thigh.fa\n", [], "line 3: species 'low' stands there twice"),
        ("name\tfasta\nlow\tlow.fa\nhigh\n", [], "line 3: 1 columns, the header has 2"),
        ("name\tfasta\nlow\tlow.fa\nhigh\tnone.fa\n", [], "high: .*none.fa: no such file"),
        ("name\tfasta\nlow\tlow.fa\nhigh\thigh.fa\n", ["--length", "50000"], "high: .*50000"),
        ("name\tfasta\nlow\tlow.fa\nshort\tshort.fa\n", ["--length", "64"], "short: .*64"),
        ("name\tfasta\nlow\tlow.fa\nshort\tshort.fa\n", ["--intervals_by_name"], "no record name is in all species"),
        ("name\tfasta\tcontigs\nlow\tlow.fa\tchr9\nhigh\thigh.fa\t\n", [], "low: no contig of .* matches 'chr9'"),
    ],
)
def test_bad_species_are_refused_in_one_line(tmp_path, two_species, capsys, table, flags, message):
    import re

    fasta(tmp_path / "short.fa", [("tiny", "ACGTACGTAC")])
    two_species.write_text(table)
    flags = ["--task", "species", "--species", str(two_species), *SCRATCH, "--out", str(tmp_path / "run"), *flags]
    assert cli.run(finetune.main, flags) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_settings(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(run, "_train", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    out = tmp_path / "run"
    assert cli.run(finetune.main, [*SEQUENCES, *SCRATCH, "--data", str(data), "--out", str(out)]) == cli.INTERRUPTED
    capsys.readouterr()
    assert cli.run(finetune.main, ["--resume", "--out", str(out), "--epochs", "5"]) == cli.USER_ERROR
    assert "changed: --epochs (was 4, now 5)" in capsys.readouterr().err
    assert cli.run(finetune.main, [*SEQUENCES, *SCRATCH, "--data", str(data), "--out", str(out)]) == cli.USER_ERROR
    assert "the run folder exists" in capsys.readouterr().err


def test_a_test_split_that_was_read_is_not_read_for_another_selection(tmp_path, data, monkeypatch):
    flags = [*SEQUENCES, *SCRATCH, "--data", str(data), "--epochs", "1", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(run, "simple_models", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.run(finetune.main, flags) == cli.INTERRUPTED
    record = tmp_path / "run" / "test_read.json"
    assert json.loads(record.read_text())["selection"]["by"] == "dev mcc"
    with pytest.raises(InputError, match="whose test split was read keeps its settings; changed: --seeds"):
        finetune.main(["--resume", "--out", str(tmp_path / "run"), "--seeds", "3"])
    changed = json.loads(record.read_text())
    changed["selection"]["learning_rate"] = 0.5
    record.write_text(json.dumps(changed))
    with pytest.raises(InputError, match="read for another selection; begin a new run"):
        finetune.main(["--resume", "--out", str(tmp_path / "run")])


def test_a_resumed_run_finds_the_data_it_began_with(tmp_path, data, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(run, "_train", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        flags = [*SEQUENCES, *SCRATCH, "--data", str(data), "--epochs", "1", "--out", str(out)]
        assert cli.run(finetune.main, flags) == cli.INTERRUPTED
    kept = (data / "train.csv").read_text()
    (data / "train.csv").write_text(kept + "ACGTACGTACGT,AT\n")
    capsys.readouterr()
    assert cli.run(finetune.main, ["--resume", "--out", str(out)]) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert "data.json: other data than the run began with (splits); begin a new run" in error and error.count("\n") == 1
    (data / "train.csv").write_text(kept)
    assert cli.run(finetune.main, ["--resume", "--out", str(out)]) == 0


@pytest.fixture
def diverging(monkeypatch):
    """Trainings at a learning rate of 0.5 lose their numbers in the epochs from `first` on."""

    def diverge(first):
        train_epoch = Trial._train_epoch

        def broken(self, model, optimizer, state, features):
            found = train_epoch(self, model, optimizer, state, features)
            if self.candidate.learning_rate == 0.5 and state.epoch >= first:
                with torch.no_grad():
                    model.head.weight[0, 0] = np.nan
            return found

        monkeypatch.setattr(Trial, "_train_epoch", broken)

    return diverge


def test_a_training_that_diverges_keeps_its_best_epoch(tmp_path, data, diverging, capsys):
    diverging(2)
    summary = finetuned(tmp_path / "run", *SEQUENCES, *SCRATCH, "--data", str(data), "--learning_rate", "0.5")
    assert "no longer finite in epoch 3: stopped" in capsys.readouterr().out
    assert summary["selection"]["epochs"]["0"] in (1, 2)
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_a_training_that_diverges_at_once_is_left_out_or_reported(tmp_path, data, diverging, capsys):
    diverging(0)
    flags = [*SEQUENCES, *SCRATCH, "--data", str(data)]
    summary = finetuned(tmp_path / "both", *flags, "--learning_rate", "0.5", "0.01")
    assert summary["selection"]["learning_rate"] == 0.01
    capsys.readouterr()
    code = cli.run(finetune.main, [*flags, "--learning_rate", "0.5", "--out", str(tmp_path / "one")])
    error = capsys.readouterr().err
    assert code == cli.USER_ERROR and "a lower --learning_rate" in error and error.count("\n") == 1
    assert not (tmp_path / "one" / "test_read.json").exists()
