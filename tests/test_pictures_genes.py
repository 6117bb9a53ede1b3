"""Figures of loci, sites, variants, classifiers and embeddings: what they compute, and that they draw any table."""

import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dnamamba.analysis.likelihood.gene_tables import (
    class_table,
    classes_of,
    gene_table,
    in_bits,
    interval_table,
    profile_table,
    rows_within,
)
from dnamamba.genome.genes import Gene
from dnamamba.genome.intervals import Interval
from dnamamba.pictures.embedding_map import plot_embedding_map, principal_components
from dnamamba.pictures.figures import Picture, save_png
from dnamamba.pictures.gene_models import pack_rows, runs_of
from dnamamba.pictures.locus import plot_locus, running_mean
from dnamamba.pictures.profiles import plot_profiles
from dnamamba.pictures.roc import plot_roc_and_calibration
from dnamamba.pictures.variant_landscape import plot_variant_landscape

NONE = np.empty((0, 2), np.int64)


def pairs(*values: tuple[int, int]) -> np.ndarray:
    return np.array(values, np.int64)


GENES = [
    Gene("ALPHA", "c", False, pairs((100, 160), (300, 420), (800, 900)), pairs((130, 160), (300, 350))),
    Gene("BETA", "c", True, pairs((380, 500), (950, 1200)), NONE),
    Gene("GAMMA", "c", False, pairs((5000, 6000)), NONE),
]


def size_of(path: Path) -> tuple[int, int]:
    """Width and height that a whole PNG claims."""
    data = Picture(path)._repr_png_()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def track(length: int = 1400, start: int = 50) -> pl.DataFrame:
    values = -np.random.default_rng(0).gamma(2.0, 0.6, length)
    values[600:640] = np.nan
    return pl.DataFrame({"contig": ["c"] * length, "position": np.arange(start, start + length), "ll": values})


def test_running_mean_is_that_of_the_values_there() -> None:
    values = np.random.default_rng(1).normal(size=40)
    values[[3, 17, 18, 19]] = np.nan
    for window in (1, 2, 5, 51):
        found = running_mean(values, window)
        for index in range(40):
            first = max(index - window // 2, 0)
            around = values[first : index - window // 2 + window]
            expected = np.nan if np.isnan(values[index]) else np.nanmean(around)
            np.testing.assert_allclose(found[index], expected, atol=1e-12)


def test_missing_intervals() -> None:
    missing = np.array([True, False, False, True, True])
    assert runs_of(np.arange(10, 15), missing) == [(10, 11), (13, 15)]


def test_genes_that_overlap_get_rows_of_their_own() -> None:
    rows = pack_rows(gene_table(GENES), 0, 2000)
    assert {name: drawn[0] for name, drawn in rows.items()} == {"ALPHA": 0, "BETA": 1}  # GAMMA lies outside
    assert rows["BETA"][1:] == (380, 1200)


def test_gene_table_has_a_row_a_box() -> None:
    table = gene_table(GENES[:1])
    assert table.rows() == [
        ("ALPHA", False, "exon", 100, 160),
        ("ALPHA", False, "exon", 300, 420),
        ("ALPHA", False, "exon", 800, 900),
        ("ALPHA", False, "coding", 130, 160),
        ("ALPHA", False, "coding", 300, 350),
    ]
    assert gene_table([]).columns == table.columns


def test_profile_reads_in_the_direction_of_the_gene() -> None:
    """Each base's value is its position, so the mean says which positions were read."""
    position = np.arange(0, 1300)
    table = pl.DataFrame({"contig": ["c"] * 1300, "position": position, "v": position.astype(float)})
    table = table.filter(pl.col("position") != 161).with_columns(
        v=pl.when(pl.col("position") == 420).then(None).otherwise(pl.col("v"))
    )
    forward = profile_table(table, GENES[:1], {"v": "v"}, flank=3)
    donor = forward.filter(pl.col("site") == "donor")
    assert donor["offset"].to_list() == [-3, -2, -1, 0, 1, 2]
    # Donors at 160 and 420; 161 is no row and 420 has no value.
    assert donor["mean"].to_list() == [(157 + 417) / 2, (158 + 418) / 2, (159 + 419) / 2, 160.0, 421.0, (162 + 422) / 2]
    assert donor["count"].to_list() == [2, 2, 2, 1, 1, 2]
    assert donor["standard_error"][0] == pytest.approx(np.std([157, 417], ddof=1) / np.sqrt(2))
    assert np.isnan(donor["standard_error"][3])
    assert forward.filter(pl.col("site") == "start codon")["mean"].to_list() == [127, 128, 129, 130, 131, 132]
    reverse = profile_table(table, GENES[1:2], {"v": "v"}, flank=2)
    assert reverse.filter(pl.col("site") == "donor")["mean"].to_list() == [951, 950, 949, 948]
    assert reverse.filter(pl.col("site") == "acceptor")["mean"].to_list() == [501, 500, 499, 498]
    assert "start codon" not in reverse["site"].to_list()
    assert len(profile_table(table, [], {"v": "v"})) == 0


def test_classes_and_their_bits() -> None:
    table = pl.DataFrame({"contig": ["c"] * 1300 + ["d"] * 10, "position": [*range(1300), *range(10)]})
    classes = classes_of(table, GENES, {"c": pairs((0, 120), (200, 250)), "d": pairs((4, 6))})
    expected = np.full(1300, "between genes", "<U32")
    expected[100:1200] = "intron"
    for gene in GENES[:2]:
        for start, end in gene.exons:
            expected[start:end] = "exon, not coding"
    expected[130:160] = expected[300:350] = "coding"
    expected[:100], expected[200:250] = "between genes, repeat", "intron, repeat"
    assert classes[:1300].tolist() == expected.tolist()
    assert classes[1300:].tolist() == ["between genes"] * 4 + ["between genes, repeat"] * 2 + ["between genes"] * 4
    values = -np.random.default_rng(0).gamma(2.0, 0.6, len(table))
    values[[0, 140, 700]] = np.nan
    track = table.with_columns(mean_log_likelihood=pl.Series(values, dtype=pl.Float64))
    found = {row[0]: row[1:] for row in class_table(track, classes).iter_rows()}
    assert sum(bases for bases, _ in found.values()) == len(table) - 3
    for name, (bases, bits) in found.items():
        own = values[classes == name]
        assert bases == (~np.isnan(own)).sum()
        assert bits == pytest.approx(-np.nanmean(own) / np.log(2))
    assert in_bits(track.fill_nan(None))["gain"][0] is None
    assert in_bits(track)["gain"][5] == pytest.approx(2 + values[5] / np.log(2))
    assert rows_within(track, Interval("d", 2, 5))["position"].to_list() == [2, 3, 4]


def test_principal_components() -> None:
    rng = np.random.default_rng(2)
    hidden = rng.normal(size=(200, 2)) * (5, 1)
    vectors = hidden @ np.linalg.qr(rng.normal(size=(6, 2)))[0].T * 3 + rng.normal(size=6)
    coordinates, share = principal_components(vectors)
    assert coordinates.shape == (200, 2)
    assert share.sum() == pytest.approx(1)
    assert abs(np.corrcoef(coordinates[:, 0], hidden[:, 0])[0, 1]) > 0.9
    assert principal_components(np.ones((3, 1)))[0].shape == (3, 2)


def test_locus(tmp_path: Path) -> None:
    for name, repeats in (("with", interval_table(pairs((200, 260), (700, 900)))), ("without", None)):
        path = tmp_path / f"{name}.png"
        plot_locus(track(), gene_table(GENES), path, title="t", columns={"ll": "both strands"}, repeats=repeats)
        assert size_of(path)[0] == 1320
    plot_locus(track(9), gene_table([]), tmp_path / "small.png", title="t", columns={"ll": "a"}, window=1)
    empty = track(5).with_columns(ll=pl.lit(None, pl.Float32))
    plot_locus(empty, gene_table([]), tmp_path / "none.png", title="t", columns={"ll": "a"})
    assert not list(tmp_path.glob(".*"))


def test_profiles(tmp_path: Path) -> None:
    table = profile_table(track(), GENES, {"log₂ p": "ll"}, flank=20)
    marks = {"donor": {0: "G", 1: "T"}}
    plot_profiles(table, tmp_path / "p.png", title="t", ylabel="bits", marks=marks)
    assert size_of(tmp_path / "p.png")[0] > 1500  # three panels


def test_variant_landscape(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    start = np.sort(rng.integers(100, 1200, 500))
    variants = pl.DataFrame({"contig": ["c"] * 500, "start": start, "llr": rng.normal(size=500)})
    variants = variants.with_columns(
        effect=pl.Series(rng.choice(["missense", "synonymous"], 500)),
        llr=pl.when(pl.col("start") < 150).then(None).otherwise(pl.col("llr")),
    )
    plot_variant_landscape(variants, gene_table(GENES), tmp_path / "v.png", title="t", group="effect")
    plot_variant_landscape(variants, gene_table([]), tmp_path / "w.png", title="t")
    plot_variant_landscape(variants[:0], gene_table([]), tmp_path / "x.png", title="t")
    assert size_of(tmp_path / "v.png")[0] == 1440


def test_roc_and_calibration(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    label = rng.integers(0, 2, 400)
    score = label + rng.normal(size=400)
    table = pl.concat(
        [
            pl.DataFrame(
                {"predictor": "model", "label": label, "score": score, "probability": 1 / (1 + np.exp(-score))}
            ),
            pl.DataFrame({"predictor": "other", "label": label, "score": -score}).with_columns(
                probability=pl.lit(None, pl.Float64)
            ),
            pl.DataFrame({"predictor": "one class", "label": label * 0, "score": score, "probability": 0.5}),
        ]
    )
    plot_roc_and_calibration(table, tmp_path / "r.png", title="t", positive="pathogenic", negative="benign")
    both = size_of(tmp_path / "r.png")
    plot_roc_and_calibration(table.drop("probability"), tmp_path / "s.png", title="t")
    assert size_of(tmp_path / "s.png")[0] < both[0]


def test_embedding_map(tmp_path: Path) -> None:
    vectors = np.random.default_rng(5).normal(size=(60, 4))
    columns = [f"e{number}" for number in range(4)]
    table = pl.DataFrame(vectors, columns).with_columns(species=pl.Series(["yeast", "fly", "human"] * 20))
    plot_embedding_map(table, tmp_path / "a.png", title="t", columns=columns, label="species")
    lists = table.select("species", embedding=pl.concat_list(columns))
    plot_embedding_map(lists, tmp_path / "b.png", title="t", columns=["embedding"], label="species")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("name", ["a$b$c", "c$\\frac$", "$", "$$"])
def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    """matplotlib takes what stands between two of them for a formula, and raises for most of them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    def drawn(path: Path) -> bytes:
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [1, 1000], label=name)
        axes.set(title=name, xlabel=name, xticks=[0, 1], xticklabels=[name, "x"])
        axes.text(0.5, 500, name)
        axes.legend()
        save_png(figure, path)
        return path.read_bytes()

    found = drawn(tmp_path / "found.png")
    with rc_context({"text.parse_math": False}):
        assert drawn(tmp_path / "expected.png") == found
