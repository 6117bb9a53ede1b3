"""Labelled variants: rows of both alleles, splits without leaks, a run from VCF and table to its report."""

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef, roc_auc_score
from tiny_models import tiny_bimamba

import dnamamba
from dnamamba import cli, finetune, info
from dnamamba.alphabet import CLS, SEP, N, decode
from dnamamba.errors import InputError
from dnamamba.finetuning.tasks.groups import joined_groups, names_in
from dnamamba.finetuning.tasks.variant_report import (
    at_threshold,
    best_threshold,
    calibration,
    effect_rates,
    leave_one_out,
    ranking,
)
from dnamamba.finetuning.tasks.variants import assign, read_rows, window, without_overlaps
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.alleles import Alleles
from dnamamba.genome.store import open_genome
from dnamamba.model.alleles import allele_features, allele_width, split_alleles
from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.tokens import reverse_complement
from dnamamba.runs.summary import comparison_lines, comparisons


def random_tokens(length, seed):
    return np.random.default_rng(seed).integers(4, size=length).astype(np.uint8)


def row_of(reference, alternate):
    return np.concatenate(([CLS], reference, [SEP], alternate)).astype(np.uint8)


def stacked(rows):
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max()) + 3), 5, dtype=torch.uint8)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = torch.from_numpy(row)
    return tokens, lengths


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    model = LanguageModel(preset("demo", n_layer=2, d_model=16, d_state=4))
    with torch.no_grad():
        model.backbone.embedding.weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def pairs():
    reference = random_tokens(40, 0)
    changed = reference.copy()
    changed[20] = (changed[20] + 1) % 4
    return [
        (reference, changed),
        (reference, np.concatenate((reference[:20], random_tokens(5, 1), reference[20:]))),
        (reference, np.concatenate((reference[:20], reference[27:]))),
        (random_tokens(31, 2), random_tokens(31, 3)),
    ]


@pytest.mark.parametrize("reverse", [False, True])
def test_sequences_hold_both_windows_on_either_strand(pairs, reverse):
    tokens, lengths = stacked([row_of(*pair) for pair in pairs])
    if reverse:
        tokens = reverse_complement(tokens, lengths)
    windows, sizes = split_alleles(tokens, lengths)
    for number, pair in enumerate(pairs):
        for which, allele in enumerate(pair):
            expected = 3 - allele[::-1] if reverse else allele
            assert windows[which, number, : sizes[which, number]].tolist() == expected.tolist()
            assert (windows[which, number, sizes[which, number] :] == 5).all()


def test_features_are_those_of_plain_passes(model, pairs):
    tokens, lengths = stacked([row_of(*pair) for pair in pairs])
    with torch.no_grad():
        found = allele_features(model.backbone, tokens, lengths)
    assert found.shape == (len(pairs), allele_width(model.config))
    for row, (reference, alternate) in zip(found, pairs, strict=True):
        differs = next(i for i, (a, b) in enumerate(zip(reference, alternate, strict=False)) if a != b)
        means, log_likelihoods = [], []
        for allele in (reference, alternate):
            with torch.no_grad():
                output = model(torch.from_numpy(allele)[None])
            logp = output.logits[0].log_softmax(1)[torch.arange(len(allele) - 1), torch.from_numpy(allele[1:]).long()]
            means.append([output.hidden[0, differs : differs + 16].mean(0), output.hidden[0, differs:].mean(0)])
            log_likelihoods.append((float(logp[differs - 1]) if differs else 0.0, float(logp[differs:].sum())))
        changes = [other - one for one, other in zip(*means, strict=True)]
        assert row[-4:-2].tolist() == pytest.approx([float(change.norm().log()) for change in changes], abs=1e-3)
        assert row[-2:].tolist() == pytest.approx([b - a for a, b in zip(*log_likelihoods, strict=True)], abs=1e-3)
        for number, vector in enumerate((*changes, means[0][0])):
            assert torch.corrcoef(torch.stack((row[16 * number : 16 * (number + 1)], vector)))[0, 1] > 0.9999


def test_features_do_not_depend_on_the_batch(model, pairs):
    with torch.no_grad():
        together = allele_features(model.backbone, *stacked([row_of(*pair) for pair in pairs]))
        for number, pair in enumerate(pairs):
            alone = allele_features(model.backbone, *stacked([row_of(*pair)]))
            torch.testing.assert_close(alone[0], together[number], atol=1e-4, rtol=1e-4)


def test_gradients_reach_all_weights(model, pairs):
    model.zero_grad()
    allele_features(model.backbone, *stacked([row_of(*pair) for pair in pairs])).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())
    model.zero_grad()


def test_windows_hold_the_variant_in_their_middle_and_n_beyond_the_contig(tmp_path):
    sequence = decode(random_tokens(50, 4))
    (tmp_path / "g.fa").write_text(f">c\n{sequence}\n")
    store = open_genome(tmp_path / "g.fa")
    start, ref_length, alt = np.array([25, 2, 48]), np.array([1, 0, 2]), ["G", "TTT", ""]
    alleles = Alleles(np.arange(4), np.zeros(3, np.int32), start, ref_length, alt, np.zeros(3, np.uint8))
    for index in range(3):
        row = window(store, alleles, index, 20)
        assert row[0] == CLS and row[21] == SEP
        reference, alternate = row[1:21], row[22:]
        left = int(start[index]) - (20 - int(ref_length[index])) // 2
        expected = "".join(sequence[i] if 0 <= i < 50 else "N" for i in range(left, left + 20))
        assert decode(reference) == expected
        offset = int(start[index]) - left
        assert decode(alternate) == expected[:offset] + alt[index] + expected[offset + int(ref_length[index]) :]
    assert (window(store, alleles, 2, 20) == N).sum() == 18


def test_groups_are_assigned_whole_and_by_their_shares():
    sizes = Counter({f"gene{i}": 1 + i % 37 for i in range(400)})
    chosen = assign(sizes)
    assert chosen == assign(Counter(dict(reversed(sizes.items()))))
    shares = Counter()
    for gene, split in chosen.items():
        shares[split] += sizes[gene] / sizes.total()
    assert shares["train"] == pytest.approx(0.7, abs=0.02) and shares["test"] == pytest.approx(0.15, abs=0.02)


def shares_of(sizes):
    found = Counter()
    for gene, split in assign(sizes).items():
        found[split] += sizes[gene] / sizes.total()
    return [found[split] for split in ("train", "dev", "test")]


def test_shares_are_of_variants_however_unequal_the_genes():
    few_large = Counter({"BRCA1": 4000, "BRCA2": 3500, **{f"g{i}": 10 for i in range(100)}})
    assert shares_of(few_large) == pytest.approx([0.882, 0.059, 0.059], abs=0.001)  # neither fits into dev or test
    falling = Counter({f"g{i}": 3000 // (i + 1) + 1 for i in range(200)})
    assert shares_of(falling) == pytest.approx([0.7, 0.15, 0.15], abs=0.002)
    three = Counter({"A": 400, "B": 300, "C": 200, **{f"g{i}": 1 for i in range(100)}})
    assert shares_of(three) == pytest.approx([0.7, 0.2, 0.1])
    for count in (3, 4, 5):
        assert all(shares_of(Counter({f"g{i}": 7 for i in range(count)})))


def test_no_two_splits_windows_overlap():
    rng = np.random.default_rng(0)
    contig, position = rng.integers(3, size=2000), rng.integers(60_000, size=2000)
    split = rng.choice(["train", "dev", "test"], 2000, p=[0.8, 0.1, 0.1])
    kept, dropped = without_overlaps(contig, position, split, 30)
    assert (kept == "test").sum() == (split == "test").sum() and set(dropped) == {"train", "dev"}
    assert sum(dropped.values()) == (kept == "").sum()
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        for c in range(3):
            one, other = position[(kept == a) & (contig == c)], position[(kept == b) & (contig == c)]
            assert np.abs(one[:, None] - other[None]).min() >= 30
    # Nothing is taken out without need.
    for index in np.flatnonzero(kept == ""):
        near = (contig == contig[index]) & (np.abs(position - position[index]) < 30)
        assert np.isin(split[near], ["dev", "test"]).any()


def test_ranking_is_scikit_learns_with_intervals_around_it():
    rng = np.random.default_rng(0)
    positive = rng.random(600) < 0.4
    score, group = positive + rng.normal(size=600), rng.integers(30, size=600).astype(str)
    found = ranking(positive, score, group)
    value = found["auroc"]
    assert value["value"] == roc_auc_score(positive, score) and value["low"] < value["value"] < value["high"]
    own = [
        roc_auc_score(positive[group == g], score[group == g])
        for g in sorted(set(group))
        if min(positive[group == g].sum(), (~positive[group == g]).sum()) >= 5
    ]
    assert found["mean_auroc_by_group"] == {"value": pytest.approx(np.mean(own)), "groups": len(own)}
    assert "auroc" not in ranking(np.ones(5, bool), score[:5], group[:5])


def test_calibration_of_honest_probabilities_is_good_and_of_boasts_is_bad():
    rng = np.random.default_rng(0)
    probability = rng.random(20_000)
    positive = rng.random(20_000) < probability
    assert calibration(positive, probability)["expected_calibration_error"] < 0.02
    assert calibration(positive, (probability > 0.5).astype(float))["expected_calibration_error"] > 0.2


def test_the_threshold_is_the_best_of_dev():
    rng = np.random.default_rng(0)
    positive = rng.random(300) < 0.3
    probability = np.round(np.clip(positive * 0.3 + rng.random(300) * 0.6, 0, 1), 2)
    chosen = best_threshold(positive, probability)
    scores = {t: matthews_corrcoef(positive, probability >= t) for t in np.unique(probability)}
    assert scores[chosen] == pytest.approx(max(scores.values()))
    found = at_threshold(positive, probability, chosen)
    assert found["mcc"] == pytest.approx(scores[chosen]) and found["chosen_on_dev"] == chosen
    assert found["sensitivity"] == (probability[positive] >= chosen).mean()


def test_figures_of_an_absent_class_are_missing():
    found = at_threshold(np.array([True, True]), np.array([0.9, 0.2]), 0.5)
    assert found == {"chosen_on_dev": 0.5, "accuracy": 0.5, "mcc": 0.0, "sensitivity": 0.5, "specificity": None}


def test_shortcuts():
    positive = np.array([True, True, False, False])
    assert effect_rates(["a", "a", "b", "b"], np.array([1, 0, 0, 0]), ["a", "b", "c"]).tolist() == [0.5, 0.0, 0.25]
    assert leave_one_out(positive, np.array(["g", "g", "h", "i"])).tolist() == [1.0, 1.0, 0.5, 0.5]


# The command line.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("variants")


@pytest.fixture(scope="module")
def genome(folder):
    """30 contigs; a variant is harmful if its alternate base is C or G."""
    path = folder / "genome.fa"
    path.write_text("".join(f">c{i}\n{decode(random_tokens(1000, 100 + i))}\n" for i in range(30)))
    return path


@pytest.fixture(scope="module")
def variants(genome):
    rng = np.random.default_rng(8)
    store = open_genome(genome)
    rows = []
    for contig in store.contigs:
        for position in sorted(rng.choice(1000, 12, replace=False).tolist()):
            ref = int(store.read(contig.name, position, position + 1)[0])
            alt = (ref + int(rng.integers(1, 4))) % 4
            effect = "missense_variant" if rng.random() < 0.5 else "synonymous"
            rows.append(
                (contig.name, position, "ACGT"[ref], "ACGT"[alt], "BP"[alt in (1, 2)], f"G{contig.name}", effect)
            )
    return rows


@pytest.fixture(scope="module")
def table(folder, variants):
    path = folder / "variants.tsv"
    lines = ["contig\tpos\tref\talt\tlabel\tgene\teffect"]
    lines += [f"{c}\t{p + 1}\t{r}\t{a}\t{label}\t{gene}\t{effect}" for c, p, r, a, label, gene, effect in variants]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def checkpoint(folder):
    torch.manual_seed(0)
    save_checkpoint(LanguageModel(preset("demo", n_layer=1, d_model=16, d_state=4)), folder / "model", {})
    return folder / "model"


def run(*arguments):
    return cli.run(finetune.main, ["--task", "variants", *map(str, arguments)])


def test_a_table_and_a_vcf_of_the_same_variants_are_the_same(folder, table, variants):
    path = folder / "variants.vcf"
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for c, p, r, a, label, gene, effect in variants:
        lines.append(f"{c}\t{p + 1}\t.\t{r}\t{a}\t.\t.\tLABEL={label};GENE={gene};EFFECT={effect}")
    path.write_text("\n".join(lines) + "\n")
    for one, other in zip(read_rows(table), read_rows(path), strict=True):
        assert one[1:5] == other[1:5]
        assert {name: one.columns[name] for name in ("label", "gene", "effect")} == other.columns


@pytest.mark.parametrize("mode", ["full", "probe"])
def test_a_run_learns_reports_and_keeps_genes_apart(mode, folder, genome, table, checkpoint, capsys):
    out = folder / f"run-{mode}"
    arguments = ["--variants", table, "--genome", genome, "--checkpoint", checkpoint, "--length", 32, "--mode", mode]
    assert run(*arguments, "--epochs", 20, "--batch_size", 32, "--learning_rate", "3e-2", "--out", out) == 0
    message = capsys.readouterr().out
    assert "no gene in two splits" in message
    summary = json.loads((out / "summary.json").read_text())
    found = summary["variants"]
    assert found["all"]["auroc"]["value"] > 0.9, found["all"]
    assert found["all"]["auroc"]["low"] <= found["all"]["auroc"]["value"] <= found["all"]["auroc"]["high"]
    assert found["missense"]["positives"] < found["all"]["positives"]
    assert 0.3 < found["shortcuts"]["effect_class"] < 0.7
    assert found["calibration"]["brier"] < 0.2
    assert 0 < found["threshold"]["chosen_on_dev"] < 1 and found["threshold"]["mcc"] > 0.5
    assert summary["split_by"] == "gene" and summary["baselines"]["majority"]
    with (out / "test_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == summary["splits"]["test"]["examples"]
    genes = [summary["splits"][name]["groups"] for name in ("train", "dev", "test")]
    assert sum(genes) == 30 and {row["group"] for row in rows} < {f"Gc{i}" for i in range(30)}


@pytest.mark.parametrize("rc_equivariant", [False, True])
def test_a_model_of_both_sides_learns_variants_too(rc_equivariant, genome, table, variants, tmp_path):
    save_checkpoint(tiny_bimamba(rc_equivariant=rc_equivariant), tmp_path / "model", {})
    arguments = ["--variants", table, "--genome", genome, "--checkpoint", tmp_path / "model", "--length", 33]
    arguments += ["--epochs", 12, "--batch_size", 32, "--learning_rate", "3e-2", "--mode", "probe", "--out"]
    assert run(*arguments, tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["variants"]["all"]["auroc"]["value"] > 0.8
    contig, position, ref, alt = variants[0][:4]
    model = dnamamba.load(tmp_path / "run", device="cpu")
    found = model.predict(variants=[(contig, position + 1, ref, alt)], genome=genome)
    assert sum(found[f"p_{name}"][0] for name in model.classes) == pytest.approx(1)


def test_shortcuts_that_beat_the_model_are_named_on_the_screen_and_by_info(folder, genome, variants, tmp_path, capsys):
    """The effect class is the label; the model, hardly trained, knows nothing."""
    path = tmp_path / "v.tsv"
    lines = ["contig\tpos\tref\talt\tlabel\tgene\teffect"]
    lines += [
        f"{c}\t{p + 1}\t{r}\t{a}\t{y}\t{g}\t{'stop' if y == 'P' else 'intron'}" for c, p, r, a, y, g, _ in variants
    ]
    path.write_text("\n".join(lines) + "\n")
    flags = ["--checkpoint", "none", "--model.preset", "demo", "--model.n_layer", 1, "--model.d_model", 16]
    flags += ["--length", 32, "--steps", 1, "--learning_rate", "1e-6", "--out", tmp_path / "run"]
    assert run("--variants", path, "--genome", genome, *flags) == 0
    screen = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    model = summary["variants"]["all"]["auroc"]["value"]
    gene_mean = summary["variants"]["shortcuts"]["group_mean"]
    mean = "the mean of the other variants of the same gene"
    effect = f"the effect class alone: auroc 1.0000, the model {model:.4f}"
    assert summary["variants"]["shortcuts"]["effect_class"] == 1.0 > model
    assert cli.run(info.main, [str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "linear on the difference of the embeddings with either allele, mean of both strands" in shown
    assert screen.count("mean of both strands in dev and test") == 2 and "conjoin" not in screen
    for told in (screen, shown):
        assert f"shortcut  {effect}\n" in told
        assert f"shortcut  {mean}: auroc {gene_mean:.4f}, the model {model:.4f}\n" in told
        warning = next(line for line in told.splitlines() if line.lstrip().startswith("warning  "))
        assert "  the model is not better than " in warning and effect in warning
        assert (mean in warning) == (gene_mean >= model)
        accuracy, majority = summary["test"]["accuracy"]["mean"], summary["baselines"]["majority"]["accuracy"]
        assert (f"majority: accuracy {majority:.4f}, the model {accuracy:.4f}" in warning) == (majority >= accuracy)
        assert f"auroc {model:.4f} [" in told


def test_a_model_that_beats_all_is_not_warned_about():
    summary = {
        "test": {"accuracy": {"mean": 0.9, "std": None}, "mcc": {"mean": 0.8, "std": None}},
        "baselines": {"majority": {"accuracy": 0.5}, "5-mer": {"accuracy": 0.95, "mcc": 0.7}},
        "variants": {"all": {"auroc": {"value": 0.9}}, "shortcuts": {"group_mean": None, "effect_class": 0.8}},
    }
    assert [str(each) for each in comparisons(summary)] == [
        "majority: accuracy 0.5000, the model 0.9000",
        "5-mer: mcc 0.7000, the model 0.8000",
        "the effect class alone: auroc 0.8000, the model 0.9000",
    ]
    assert comparison_lines(summary) == [("shortcut", "the effect class alone: auroc 0.8000, the model 0.9000")]
    summary["baselines"]["5-mer"]["mcc"] = 0.8
    assert comparison_lines(summary)[-1] == (
        "warning",
        "the model is not better than 5-mer: mcc 0.8000, the model 0.8000",
    )


def test_variants_are_split_by_contig_whatever_its_column_is_called(table, genome, checkpoint, tmp_path, capsys):
    renamed = tmp_path / "variants.tsv"
    renamed.write_text(table.read_text().replace("contig", "chrom", 1))
    arguments = ["--variants", renamed, "--genome", genome, "--checkpoint", checkpoint, "--split_by", "contig"]
    assert run(*arguments, "--dry_run", "--out", tmp_path / "run") == 0
    assert f"{renamed}: label label, split by contig" in capsys.readouterr().out


BAD = {
    "no table": (["--variants", "absent.tsv"], "no such file"),
    "no genome": (["--genome", "absent.fa"], "absent.fa: no such file"),
    "label": (["--label_columns", "verdict"], "no column 'verdict'"),
    "two labels": (["--label_columns", "label", "gene"], "--label_columns: --task variants takes one column"),
    "split column": (["--split_by", "exon"], "no column 'exon'"),
    "effects": (["--effects", "nonsense"], "no variant is left (360 another effect)"),
    "k-mers": (["--kmer", "4"], "--kmer: not a flag of --task variants"),
    "pooling": (["--pooling", "mean"], "--pooling: not a flag of --task variants"),
    "flag of another task": (["--intervals_by_name"], "--intervals_by_name: not a flag of --task variants"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags(case, genome, table, checkpoint, tmp_path, capsys):
    changes, message = BAD[case]
    arguments = ["--variants", table, "--genome", genome, "--checkpoint", checkpoint, "--out", tmp_path / "run"]
    assert run(*arguments, *changes) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("columns", ["A\t", "\tC", "A\t<DEL\u00be", "\u00e9\tC"])
def test_records_that_the_specification_forbids_are_refused(tmp_path, columns):
    path = tmp_path / "v.vcf"
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    path.write_text(f"{header}1\t5\trs1\tA\tC\t.\t.\t.\n1\t7\t.\t{columns}\t.\t.\t.\n", encoding="utf-8")
    rows = read_rows(path)
    assert next(rows)[1:5] == ("1", 4, "A", "C")
    with pytest.raises(InputError, match=r"v\.vcf, line 4: '1 7 .* is no VCF record"):
        next(rows)


BAD_TABLES = {
    "no columns": ("a\tb\n1\t2\n", "expected contig (or chrom), pos (1-based) or start (0-based), ref and alt"),
    "empty": ("", "its columns are none"),
    "header alone": ("contig\tpos\tref\talt\tlabel\n", "no variants"),
    "short line": ("contig\tpos\tref\talt\tlabel\nc0\t3\n", "line 2: 2 columns, the header has 5"),
    "position": ("contig\tpos\tref\talt\tlabel\nc0\tx\tA\tC\tB\n", "line 2: position 'x' is no whole number"),
    "two alleles": ("contig\tpos\tref\talt\tlabel\nc0\t3\tA\tC,G\tB\n", "expected one alternate allele a row"),
    "REF": ("contig\tpos\tref\talt\tlabel\n" + "".join(f"c0\t{p}\tA\tC\tB\n" for p in range(1, 40)), "REF is not the"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables(case, genome, checkpoint, tmp_path, capsys):
    content, message = BAD_TABLES[case]
    (tmp_path / "v.tsv").write_text(content)
    arguments = ["--variants", tmp_path / "v.tsv", "--genome", genome, "--checkpoint", checkpoint]
    assert run(*arguments, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err


HEADER = b"contig\tpos\tref\talt\tlabel\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.tsv.gz", gzip.compress(HEADER + b"c0\t3\tA\tC\tB\n" * 2000, mtime=0)[:-9], "the gzip data are truncated"),
        ("v.tsv", HEADER + b"c0\t3\tA\tC\t\0\n", "line 2, column 10: binary data (a NUL byte)"),
    ],
    ids=["truncated", "binary"],
)
def test_damaged_tables(name, content, message, genome, checkpoint, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    arguments = ["--variants", tmp_path / name, "--genome", genome, "--checkpoint", checkpoint]
    assert run(*arguments, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_gene_in_two_splits_is_refused(table, genome, checkpoint, tmp_path, capsys):
    lines = table.read_text().splitlines()
    marked = [f"{lines[0]}\tsplit", *(f"{line}\t{('train', 'dev', 'test')[i % 3]}" for i, line in enumerate(lines[1:]))]
    (tmp_path / "v.tsv").write_text("\n".join(marked) + "\n")
    arguments = ["--variants", tmp_path / "v.tsv", "--genome", genome, "--checkpoint", checkpoint]
    assert run(*arguments, "--out", tmp_path / "run") == 2
    assert "is both in train and in dev" in capsys.readouterr().err


# Files as people have them


INFO = (
    '##INFO=<ID=LABEL,Number={},Type=String,Description="x">\n##INFO=<ID=GENE,Number={},Type=String,Description="y">\n'
)
COLUMN_LINE = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def write_vcf(path, records, label=1, gene="."):
    """`records`: CHROM, POS, REF, ALT, INFO."""
    lines = [f"{c}\t{p}\t.\t{r}\t{a}\t.\t.\t{info}\n" for c, p, r, a, info in records]
    path.write_text("##fileformat=VCFv4.2\n" + INFO.format(label, gene) + COLUMN_LINE + "".join(lines))
    return path


def test_info_of_alleles_is_by_number(tmp_path):
    path = write_vcf(tmp_path / "v.vcf", [("c0", 5, "A", "C,G", "LABEL=0,1;GENE=g0,ovg0")], label="A")
    assert [row.columns for row in read_rows(path)] == [
        {"label": "0", "gene": "g0,ovg0"},
        {"label": "1", "gene": "g0,ovg0"},
    ]
    write_vcf(path, [("c0", 5, "A", "C,G", "LABEL=.;GENE=.,g1"), ("c0", 6, "A", "C", "LABEL=NA;GENE=.")], gene="A")
    assert [row.columns for row in read_rows(path)] == [{}, {"gene": "g1"}, {}]


def test_genes_that_share_a_variant_or_a_site_stay_together():
    names = [["a"], ["a", "b"], ["c"], ["d"], ["e"], ["f"], ["b", "g", "h"]]
    sites = [("1", 1), ("1", 2), ("1", 3), ("1", 3), ("2", 3), ("1", 5), ("1", 9)]
    assert joined_groups(names, sites) == [
        "a,b,g and 1 more",
        "a,b,g and 1 more",
        "c,d",
        "c,d",
        "e",
        "f",
        "a,b,g and 1 more",
    ]
    assert names_in("g0,ovg0; g1 ,.,NA") == ["g0", "ovg0", "g1"] and names_in(".") == []


@pytest.mark.parametrize(("gene", "joined"), [(".", True), ("A", True), ("1", False)])
def test_no_gene_of_any_alternate_is_in_two_splits(gene, joined, variants, genome, checkpoint, tmp_path, capsys):
    """Genes overlap: each site has one of its contig and one that spans two contigs' numbers."""
    records = []
    for number, (c, p, r, a, label, name, _) in enumerate(variants):
        other = next(base for base in "ACGT" if base not in (r, a))
        genes = f"{name},ov{int(c[1:]) // 2}" if joined else name
        records.append(
            (c, p + 1, r, f"{a},{other}" if joined else a, f"LABEL={label};GENE={genes if number % 9 else '.'}")
        )
    path = write_vcf(tmp_path / "v.vcf", records, gene=gene)
    out = tmp_path / "run"
    arguments = ["--variants", path, "--genome", genome, "--checkpoint", checkpoint, "--length", 32, "--mode", "probe"]
    assert run(*arguments, "--epochs", 1, "--out", out) == 0
    said = capsys.readouterr().out
    assert "no gene in two splits" in said and "no gene" in said.partition("left out")[2]
    assert ("genes in 15: those that share a variant or its site stay together" in said) == joined
    groups = [json.loads((out / "summary.json").read_text())["splits"][s]["groups"] for s in ("train", "dev", "test")]
    assert sum(groups) == (15 if joined else 30)
    genes = {
        name
        for row in csv.DictReader((out / "test_predictions.csv").read_text().splitlines())
        for name in row["group"].split(",")
    }
    assert "." not in genes and len(genes) == (3 if joined else 1) * groups[2]


def test_a_shared_gene_in_given_splits_is_refused(genome, checkpoint, tmp_path, capsys):
    store = open_genome(genome)
    at = [("c0", 10, "train"), ("c1", 10, "dev"), ("c2", 10, "test"), ("c3", 10, "train")]
    lines = ["contig\tpos\tref\talt\tlabel\tgene\tsplit"]
    for (contig, position, split), gene in zip(at, ("a", "b", "c", "d;c"), strict=True):
        ref = "ACGT"[int(store.read(contig, position - 1, position)[0])]
        lines.append(f"{contig}\t{position}\t{ref}\t{'A' if ref != 'A' else 'C'}\tB\t{gene}\t{split}")
    (tmp_path / "v.tsv").write_text("\n".join(lines) + "\n")
    arguments = ["--variants", tmp_path / "v.tsv", "--genome", genome, "--checkpoint", checkpoint]
    assert run(*arguments, "--out", tmp_path / "run") == 2
    assert "gene 'c,d' is both in test and in train" in capsys.readouterr().err


@pytest.mark.parametrize(
    "header",
    [
        "chrom\tstart\tend\tref\talt",
        "Chromosome\tStart_Position\tEnd_Position\tReference_Allele\tTumor_Seq_Allele2",
        "chrom\tpos\tend\tref\talt",
    ],
)
def test_maf_counts_from_1(tmp_path, header):
    path = tmp_path / "v.tsv"
    path.write_text(f"{header}\nc0\t5\t5\tA\tC\nc0\t7\t9\tACG\tA\n")
    assert [(row.start, row.ref) for row in read_rows(path)] == [(4, "A"), (6, "ACG")]
    path.write_text("chrom\tstart\tend\tref\talt\nc0\t5\t6\tA\tC\nc0\t7\t10\tACG\tA\n")
    assert [row.start for row in read_rows(path)] == [5, 7]
    path.write_text("chrom\tstart\tref\talt\nc0\t5\tA\tC\n")
    assert [row.start for row in read_rows(path)] == [5]


@pytest.mark.parametrize("text", ["9" * 20, "1²", "--5", "+5", "1_0", "٥", "1.0", ""])
def test_odd_positions_have_their_line(tmp_path, text):
    (tmp_path / "v.tsv").write_text(f"chrom\tpos\tref\talt\nc0\t1\tA\tC\nc0\t{text}\tA\tC\n")
    with pytest.raises(InputError, match=r"v\.tsv, line 3: position '.*' is no whole number"):
        list(read_rows(tmp_path / "v.tsv"))


def test_a_column_twice_is_named(tmp_path):
    (tmp_path / "v.tsv").write_text("chrom\tpos\tref\talt\tLabel\tlabel\nc0\t1\tA\tC\t0\t1\n")
    with pytest.raises(InputError, match=r"v\.tsv: several columns are called label; rename all but one"):
        list(read_rows(tmp_path / "v.tsv"))


def test_the_values_of_a_label_that_is_no_pair_are_listed(variants, genome, checkpoint, tmp_path, capsys):
    lines = [f"{c}\t{p + 1}\t{r}\t{a}\t{'xyz'[n % 3]}\n" for n, (c, p, r, a, *_) in enumerate(variants)]
    (tmp_path / "v.tsv").write_text("contig\tpos\tref\talt\tlabel\n" + "".join(lines))
    arguments = ["--variants", tmp_path / "v.tsv", "--genome", genome, "--checkpoint", checkpoint]
    assert run(*arguments, "--out", tmp_path / "run") == 2
    assert "column label has 3 values (x, y, z); expected two classes" in capsys.readouterr().err


def test_variants_come_through_a_pipe(table, tmp_path):
    code = "import sys, pathlib; from dnamamba.finetuning.tasks.variants import read_rows as rows; "
    code += "print(len(list(rows(pathlib.Path(sys.argv[1])))))"
    for file in (table, write_vcf(tmp_path / "v.vcf", [("c0", 5, "A", "C,G", "LABEL=0;GENE=g")])):
        line = f"{sys.executable} -c '{code}' <(gzip -c {file})"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert int(done.stdout) == len(list(read_rows(file)))
