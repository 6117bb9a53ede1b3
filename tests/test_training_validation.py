"""Validation by class, against a plain loop over windows and positions; throughput's arithmetic."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dnamamba.alphabet import SOFT_MASK_BIT, TOKEN_BITS, decode
from dnamamba.genome.annotation import Annotation, read_annotation
from dnamamba.genome.intervals import Interval
from dnamamba.genome.region_classes import read_region_classes
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import Window, WindowPlan
from dnamamba.model.config import ModelConfig, preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.parameters import training_flops_per_token
from dnamamba.model.tokens import on_strand
from dnamamba.pictures.validation_by_class import plot_validation_by_class
from dnamamba.runs.folder import RunFolder
from dnamamba.training.data import EvaluationSet, FixedWindows
from dnamamba.training.mixture_file import read_mixture
from dnamamba.training.throughput import peak_by_name
from dnamamba.training.validation import (
    ANNOTATION_CLASSES,
    ClassScore,
    annotation_labels,
    evaluate,
    in_cpg,
    position_bins,
    report_lines,
)
from dnamamba.training.validation_windows import WindowTable

LENGTH = 45


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Two contigs with N, soft-masked intervals and many CG; a third that no annotation knows."""
    generator = np.random.default_rng(5)
    text = []
    for name, size in (("chr1", 700), ("chr2", 300), ("chr3", 200)):
        letters = generator.choice(list("ACGT"), size)
        letters[100:104] = "N"
        sequence = "".join(letters)
        text.append(f">{name}\n{sequence[:60]}{sequence[60:150].lower()}{sequence[150:]}\n")
    path = tmp_path_factory.mktemp("genome") / "three.fa"
    path.write_text("".join(text))
    return open_genome(path)


@pytest.fixture(scope="module")
def annotation(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Annotation:
    path = tmp_path_factory.mktemp("annotation") / "genes.gff3"
    rows = [("1", 31, 90), ("1", 200, 417), ("chr2", 1, 1), ("chr2", 46, 46)]
    path.write_text("".join(f"{name}\tx\texon\t{first}\t{last}\t.\t+\t.\tID=e\n" for name, first, last in rows))
    return read_annotation(path, store)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(3)
    made = LanguageModel(ModelConfig(d_model=8, n_layer=1, d_state=4))
    with torch.no_grad():
        made.lm_head.weight.mul_(40)  # far from the uniform distribution, or all classes would look alike
    return made


def plan_of(store: TokenStore, *contigs: str) -> WindowPlan:
    intervals = tuple(Interval(name, 0, store.contig(name).length) for name in contigs)
    return WindowPlan(store, intervals, LENGTH, seed=0, max_n_fraction=0.5)


def windows_of(
    plan: WindowPlan, annotation: Annotation | None = None, rank: int = 0, world: int = 1, name: str = ""
) -> FixedWindows:
    return FixedWindows(EvaluationSet(name, plan, np.arange(plan.epoch_size(0)), annotation), 4, rank, world)


def plain(
    model: LanguageModel, plan: WindowPlan, exons: dict[str, set[int]]
) -> dict[tuple[str, str], tuple[float, int]]:
    """(nats, bases) by (group, class): one window and one base at a time, from the letters."""
    sums: dict[tuple[str, str], tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for index in range(plan.epoch_size(0)):
        window = plan.window(0, index)
        raw = plan.read(0, index)
        letters = decode(raw & TOKEN_BITS)
        logits = model(torch.from_numpy(raw & TOKEN_BITS)[None, :-1]).logits
        for at in range(1, LENGTH + 1):
            if letters[at] == "N":
                continue
            nats = -torch.log_softmax(logits[0, at - 1].double(), -1)["ACGT".index(letters[at])].item()
            low = 2 ** int(math.log2(at))
            high = min(2 * low - 1, LENGTH)
            cpg = letters[at - 1 : at + 1] == "CG" or letters[at : at + 2] == "CG"
            names = [
                ("all", "all"),
                ("position", str(low) if low == high else f"{low}-{high}"),
                ("repeat", "soft-masked" if raw[at] >= SOFT_MASK_BIT else "unique"),
                ("cpg", "CpG" if cpg else "other"),
                ("contig", window.contig),
            ]
            known = window.contig in exons
            inside = window.start + at in exons.get(window.contig, ())
            names.append(("annotation", ANNOTATION_CLASSES[2 if not known else 0 if inside else 1]))
            for key in names:
                sums[key] = sums[key][0] + nats, sums[key][1] + 1
    return sums


EXONS = {"chr1": {*range(30, 90), *range(199, 417)}, "chr2": {0, 45}}


def as_dict(scores: Sequence[ClassScore]) -> dict[tuple[str, str], tuple[float, int]]:
    return {(score.group, score.name): (score.nll, score.bases) for score in scores}


@torch.no_grad()
def test_every_class_equals_a_plain_loop(store: TokenStore, annotation: Annotation, model: LanguageModel) -> None:
    plan = plan_of(store, "chr1", "chr2", "chr3")
    scores = evaluate(model, [windows_of(plan, annotation)]).classes
    expected = plain(model, plan, EXONS)
    found = as_dict(scores)
    assert found.keys() == expected.keys()
    for key, (nats, bases) in expected.items():
        assert found[key][1] == bases, key
        assert found[key][0] == pytest.approx(nats, rel=1e-5), key
    assert scores[0].name == "all"
    assert scores[0].bits_per_base == pytest.approx(expected["all", "all"][0] / scores[0].bases / math.log(2), rel=1e-5)
    assert found["repeat", "soft-masked"][1] > 100 and found["cpg", "CpG"][1] > 100


def test_the_classes_of_a_group_share_all_bases(
    store: TokenStore, annotation: Annotation, model: LanguageModel
) -> None:
    scores = evaluate(model, [windows_of(plan_of(store, "chr1", "chr2", "chr3"), annotation)]).classes
    groups = {score.group for score in scores}
    assert len(groups) > 2
    for group in groups:
        parts = [score for score in scores if score.group == group]
        assert sum(score.bases for score in parts) == scores[0].bases, group
        assert sum(score.nll for score in parts) == pytest.approx(scores[0].nll), group


@pytest.mark.parametrize("world", [2, 3, 40])
def test_ranks_summed_equal_one(store: TokenStore, annotation: Annotation, model: LanguageModel, world: int) -> None:
    """The last has more ranks than windows: some have nothing to score."""
    plan = plan_of(store, "chr1", "chr3")
    shares: dict[torch.Size, list[Tensor]] = defaultdict(list)

    def gather(sums: Tensor) -> Tensor:
        shares[sums.shape].append(sums.clone())
        return torch.stack(shares[sums.shape]).sum(0)

    for rank in range(world):
        together = evaluate(model, [windows_of(plan, annotation, rank, world)], sum_over_ranks=gather)
    alone = evaluate(model, [windows_of(plan, annotation)])
    assert len(shares) == 2 and {len(each) for each in shares.values()} == {world}
    assert [score[:2] for score in together.classes] == [score[:2] for score in alone.classes]
    assert [score.bases for score in together.classes] == [score.bases for score in alone.classes]
    nats = [score.nll for score in alone.classes]
    assert [score.nll for score in together.classes] == pytest.approx(nats, rel=1e-6)
    torch.testing.assert_close(together.windows, alone.windows, rtol=1e-6, atol=0)


def one_by_one(model: LanguageModel, plan: WindowPlan) -> list[tuple[float, int]]:
    """(nats, bases) of each window, scored alone, from its letters."""
    found = []
    for index in range(plan.epoch_size(0)):
        letters = decode(plan.read(0, index) & TOKEN_BITS)
        p = torch.softmax(model(torch.from_numpy(plan.read(0, index) & TOKEN_BITS)[None, :-1]).logits[0].double(), -1)
        nats = [-math.log(p[at, "ACGT".index(base)]) for at, base in enumerate(letters[1:]) if base != "N"]
        found.append((sum(nats), len(nats)))
    return found


@torch.no_grad()
@pytest.mark.parametrize("chunk", [None, 7])
def test_windows_one_by_one(store: TokenStore, model: LanguageModel, tmp_path: Path, chunk: int | None) -> None:
    """Each window's own sums, whatever its batch and chunks; and what the table says of where it lies."""
    plans = [plan_of(store, "chr1", "chr2"), plan_of(store, "chr3")]
    (tmp_path / "classes.bed").write_text("chr3\t0\t100\tfirst\nchr3\t100\t140\tsecond\n")
    regions = read_region_classes([tmp_path / "classes.bed"], store)
    some = np.arange(0, plans[0].epoch_size(0), 2)
    evaluated = [
        EvaluationSet("a", plans[0], some),
        EvaluationSet("b", plans[1], np.arange(plans[1].epoch_size(0)), regions=regions),
    ]
    scores = evaluate(model, [FixedWindows(each, 4, 0, 1) for each in evaluated], chunk=chunk)
    expected = [*(one_by_one(model, plans[0])[index] for index in some), *one_by_one(model, plans[1])]
    assert [int(bases) for bases in scores.windows[:, 1]] == [bases for _, bases in expected]
    assert scores.windows[:, 0].tolist() == pytest.approx([nats for nats, _ in expected], rel=1e-5)
    assert scores.windows.sum(0).tolist() == pytest.approx([scores.classes[0].nll, scores.classes[0].bases])
    folder = RunFolder(tmp_path)
    assert folder.read_windows() == []
    folder.write_windows(WindowTable(evaluated).rows(scores.windows, step=9))
    rows = folder.read_windows()
    assert [row["genome"] for row in rows] == ["a"] * len(some) + ["b"] * plans[1].epoch_size(0)
    for row, (nats, bases) in zip(rows, expected, strict=True):
        assert row["step"] == "9" and int(row["bases"]) == bases
        assert float(row["bits_per_base"]) == pytest.approx(nats / bases / math.log(2), rel=1e-5)
        tokens = store.read(row["contig"], int(row["start"]), int(row["end"]))
        assert len(tokens) == LENGTH + 1
        assert float(row["soft_masked"]) == pytest.approx((tokens >= SOFT_MASK_BIT).mean(), rel=1e-5)
        if row["genome"] == "a":
            assert row["region"] == row["region_share"] == ""
            continue
        start, end = int(row["start"]), int(row["end"])
        count = {"first": max(0, min(end, 100) - start), "second": max(0, min(end, 140) - max(start, 100))}
        count["no class"] = end - start - sum(count.values())
        assert count[row["region"]] == max(count.values())
        assert float(row["region_share"]) == pytest.approx(max(count.values()) / (end - start), rel=1e-5)
    assert {"first", "no class"} <= {row["region"] for row in rows}


@torch.no_grad()
def test_windows_of_a_model_of_both_sides(store: TokenStore) -> None:
    """Their sums are of the masked bases alone, and add up to all."""
    masked = LanguageModel(preset("demo", d_model=8, n_layer=2, d_state=4, mixer="bimamba", objective="masked_base"))
    scores = evaluate(masked.eval(), [windows_of(plan_of(store, "chr1", "chr3"))])
    assert 0 < scores.windows[:, 1].sum() < 0.3 * len(scores.windows) * LENGTH
    assert scores.windows.sum(0).tolist() == pytest.approx([scores.classes[0].nll, scores.classes[0].bases])


def test_genomes_of_a_mixture_stay_apart(store: TokenStore, annotation: Annotation, model: LanguageModel) -> None:
    sets = [windows_of(plan_of(store, "chr1"), annotation, name="a"), windows_of(plan_of(store, "chr1"), name="b")]
    found = as_dict(evaluate(model, sets).classes)
    alone = as_dict(evaluate(model, sets[:1]).classes)
    assert found["genome", "a"] == found["genome", "b"] == found["contig", "a:chr1"] == alone["all", "all"]
    assert found["all", "all"] == tuple(2 * value for value in alone["all", "all"])
    assert found["annotation", "exon"] == alone["annotation", "exon"], "the second genome has no annotation"
    assert ("genome", "a") not in alone


def test_a_broken_model_shows(store: TokenStore, model: LanguageModel) -> None:
    """A prediction that is no number makes the score none, instead of being taken for an uncounted base."""
    broken = LanguageModel(model.config)
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    scores = evaluate(broken, [windows_of(plan_of(store, "chr1"))]).classes
    assert math.isnan(scores[0].bits_per_base) and scores[0].bases > 0


def test_cpg_reads_the_same_on_both_strands() -> None:
    tokens = torch.randint(0, 5, (20, 40), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    reverse = in_cpg(on_strand(tokens, torch.ones(20, dtype=torch.bool), None)[0])
    plain = in_cpg(tokens)
    # Of the window's 40 bases, targets are the last 39, or read on the other strand the first 39, backwards.
    assert plain.any()
    assert torch.equal(plain[:, :-1], reverse[:, :-1].flip(1))


def test_annotation_labels_turn_with_the_window(annotation: Annotation) -> None:
    forward, backward = (Window("chr1", 20, 100, flag) for flag in (False, True))
    labels = annotation_labels(annotation, [forward, backward])
    assert labels[0].tolist() == [0 if position in EXONS["chr1"] else 1 for position in range(21, 100)]
    assert labels[1].tolist() == [0 if position in EXONS["chr1"] else 1 for position in range(98, 19, -1)]


def test_position_bins() -> None:
    assert position_bins(9).tolist() == [0, 1, 1, 2, 2, 2, 2, 3, 3]
    assert position_bins(8).tolist() == [0, 1, 1, 2, 2, 2, 2, 2]
    assert position_bins(1).tolist() == [0]
    assert position_bins(1 << 20).max() == 19
    assert position_bins(9, causal=False).tolist() == [0, 1, 1, 2, 2, 2, 1, 1, 0]
    assert position_bins(16, causal=False).tolist() == [0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 0]
    assert position_bins(1, causal=False).tolist() == [0]


@pytest.mark.parametrize("length", [2, 3, 8, 9, 16])
def test_position_classes_are_called_what_they_hold(store: TokenStore, model: LanguageModel, length: int) -> None:
    plan = WindowPlan(store, (Interval("chr2", 120, 300),), length, seed=0)
    scores = evaluate(model, [windows_of(plan)]).classes
    found = [(score.name, score.bases) for score in scores if score.group == "position"]
    assert len(found) == len(set(position_bins(length).tolist()))
    for name, bases in found:
        first, _, last = name.partition("-")
        assert bases == plan.epoch_size(0) * (int(last or first) - int(first) + 1)


def test_each_genome_of_a_mixture_has_its_annotation(tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text("a:\n  genome: a.fa\n  annotation: a.gff3.gz\nb:\n  genome: b.fa\n")
    assert [genome.annotation for genome in read_mixture(path)] == [tmp_path / "a.gff3.gz", None]


def test_table_figure_and_lines(
    store: TokenStore, annotation: Annotation, model: LanguageModel, tmp_path: Path
) -> None:
    scores = evaluate(model, [windows_of(plan_of(store, "chr1", "chr2", "chr3"), annotation)]).classes
    folder = RunFolder(tmp_path)
    folder.write_validation(score.row(7) for score in [*scores, ClassScore("contig", "diverged", 1e9, 1)])
    rows = folder.read_validation()
    assert rows[0]["step"] == "7" and rows[0]["class"] == "all"
    assert float(rows[0]["bits_per_base"]) == pytest.approx(scores[0].bits_per_base, rel=1e-5)
    assert float(rows[0]["perplexity"]) == pytest.approx(2 ** scores[0].bits_per_base, rel=1e-4)
    assert float(rows[-1]["perplexity"]) == math.inf
    lines = report_lines(rows)
    assert [line.split("  ")[-2].strip() for line in lines] == ["by context", "by mask", "by CpG", "by gene"]
    assert "CpG " in lines[2] and "exon " in lines[3]
    plot_validation_by_class(rows[:-1], folder.validation_plot, title="test", markov=1.95)
    assert folder.validation_plot.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("bits", ["nan", "inf"])
def test_a_diverged_model_has_a_figure_too(bits: str, tmp_path: Path) -> None:
    groups = {"all": ["all"], "position": ["1", "2-3"], "repeat": ["unique", "soft-masked"], "contig": ["chr1"]}
    rows = [
        {"group": group, "class": name, "bits_per_base": bits, "bases": "5"}
        for group, names in groups.items()
        for name in names
    ]
    plot_validation_by_class(rows, tmp_path / "empty.png", title="diverged")
    assert (tmp_path / "empty.png").is_file()


def test_flops_follow_the_shapes() -> None:
    config = ModelConfig(d_model=16, n_layer=3, d_state=4, d_conv=4, dt_rank=2)
    channels = 32
    matrices = 16 * 2 * channels + channels * (2 + 2 * 4) + 2 * channels + channels * 16
    block = 2 * matrices + 2 * 4 * channels + 7 * channels * 4
    assert training_flops_per_token(LanguageModel(config), 100) == 3 * (3 * block + 2 * 4 * 16)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("NVIDIA A1000", None),
    ],
)
def test_peak_by_name(name: str, tera: float | None) -> None:
    assert peak_by_name(name) == (None if tera is None else tera * 1e12)
