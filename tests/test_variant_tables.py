"""Effects of changes against Biopython's translation, and the tables and probabilities made of scored variants."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from Bio.Seq import Seq
from sklearn.linear_model import LogisticRegression

from dnamamba import demo
from dnamamba.alphabet import TOKEN_BITS, decode, encode
from dnamamba.analysis.variants.tables import changes_table, cross_fitted, predictor_table, with_effects
from dnamamba.genome.effects import EFFECTS, effects_of_changes, translate
from dnamamba.genome.genes import Gene, open_reading_frames
from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import TokenStore, open_genome


@pytest.fixture(scope="module")
def store() -> TokenStore:
    return open_genome(demo.genome_path())


def test_translation_is_biopythons(store: TokenStore) -> None:
    tokens = store.read(store.contigs[0].name, 5_000, 8_000) & np.uint8(TOKEN_BITS)
    assert translate(tokens) == str(Seq(decode(tokens)).translate())
    assert translate(encode("ATGNNATAACC")) == "MX*"
    assert translate(encode("AT")) == ""


def protein(store: TokenStore, gene: Gene, position: int = -1, alt: str = "") -> str:
    """The gene's protein, perhaps after a change, by text and Biopython alone."""
    whole = decode(store.read(gene.contig, 0, gene.end) & np.uint8(TOKEN_BITS))
    if position >= 0:
        whole = whole[:position] + alt + whole[position + 1 :]
    coding = Seq("".join(whole[start:end] for start, end in gene.coding.tolist()))
    return str((coding.reverse_complement() if gene.reverse else coding).translate())


@pytest.mark.parametrize("reverse", [False, True])
def test_effects_are_those_on_the_protein(store: TokenStore, reverse: bool) -> None:
    """A gene in three exons, the coding part beginning in the first and ending in the last, codons over introns."""
    contig = store.contigs[0].name
    exons = np.array([[1000, 1060], [1100, 1150], [1200, 1290]], np.int64)
    coding = np.array([[1010, 1060], [1100, 1150], [1200, 1220]], np.int64)
    gene = Gene("g", contig, reverse, exons, coding)
    start = np.repeat(np.arange(990, 1300), 4)
    alt = np.tile(np.arange(4, dtype=np.uint8), 310)
    found = effects_of_changes(store, [gene], contig, start, alt)
    before = protein(store, gene)
    for position, base, effect in zip(start.tolist(), alt.tolist(), found.tolist(), strict=True):
        in_coding = any(a <= position < b for a, b in coding.tolist())
        if not in_coding:
            in_exon = any(a <= position < b for a, b in exons.tolist())
            at_splice = position in (1060, 1061, 1098, 1099, 1150, 1151, 1198, 1199)
            inside = 1000 <= position < 1290
            expected = "between genes" if not inside else "exon, not coding" if in_exon else "intron"
            assert effect == ("splice site" if at_splice else expected), position
            continue
        after = protein(store, gene, position, "ACGT"[base])
        changes = [(a, b, index) for index, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        if effect == "start lost":
            first = range(1217, 1220) if reverse else range(1010, 1013)
            assert position in first
        elif not changes:
            assert effect == "synonymous"
        else:
            ((old, new, _),) = changes
            assert effect == ("nonsense" if new == "*" else "stop lost" if old == "*" else "missense")
    assert set(found) >= {"nonsense", "missense", "synonymous", "splice site", "intron"}


def test_the_most_severe_transcript_counts(store: TokenStore) -> None:
    contig = store.contigs[0].name
    none = np.empty((0, 2), np.int64)
    one = Gene("a", contig, False, np.array([[100, 200], [300, 400]]), none)
    two = Gene("b", contig, False, np.array([[150, 500]]), none)
    start, alt = np.array([50, 120, 200, 250, 450]), np.zeros(5, np.uint8)
    expected = ["between genes", "exon, not coding", "splice site", "exon, not coding", "exon, not coding"]
    assert effects_of_changes(store, [one, two], contig, start, alt).tolist() == expected
    assert effects_of_changes(store, [two, one], contig, start, alt).tolist() == expected
    assert len(EFFECTS) == len(set(EFFECTS))


def test_tables_of_changes_and_effects(store: TokenStore) -> None:
    contig = store.contigs[0].name
    (gene, *_) = open_reading_frames(store, Interval(contig, 300, 3_000))
    position = np.arange(gene.start, gene.start + 30)
    ref = list(decode(store.read(contig, gene.start, gene.start + 30) & np.uint8(TOKEN_BITS)))
    llr = {
        f"llr_{base}": [0.0 if letter == base else 1.0 + number for letter in ref] for number, base in enumerate("ACGT")
    }
    saturation = pl.DataFrame({"contig": [contig] * 30, "position": position, "ref": ref, **llr})
    changes = changes_table(saturation)
    assert len(changes) == 90
    assert (changes["ref"] != changes["alt"]).all()
    assert changes.filter(pl.col("alt") == "G")["llr"].unique().to_list() == [3.0]
    effects = with_effects(changes, store, [gene])
    assert effects["effect"].null_count() == 0
    assert set(effects["effect"]) <= {"start lost", "synonymous", "missense", "nonsense"}
    odd = pl.DataFrame({"contig": [contig] * 3, "start": [1, 2, 3], "ref": ["A", "AC", None], "alt": ["T", "A", "*"]})
    assert with_effects(odd, store, [gene])["effect"].to_list() == ["between genes", None, None]


def test_probabilities_come_from_other_groups() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(2), 100)
    label = rng.integers(0, 2, 200)
    score = label * 5.0 + rng.normal(size=200) * 3
    found = cross_fitted(score, label, group)
    assert found is not None
    for own in (0, 1):
        other = score[group != own]
        model = LogisticRegression().fit(((other - other.mean()) / other.std())[:, None], label[group != own])
        scaled = (score[group == own] - other.mean()) / other.std()
        np.testing.assert_allclose(found[group == own], model.predict_proba(scaled[:, None])[:, 1])
    assert cross_fitted(score, label, np.zeros(200)) is None
    assert cross_fitted(score, (group == 0).astype(int), group) is None
    table = predictor_table("x", label, score, group)
    assert table["probability"].to_list() == found.tolist()
    assert predictor_table("x", label, score)["probability"].null_count() == 200


def test_demo_species_are_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dnamamba import examples as demo_material

    monkeypatch.setattr(demo_material, "SPECIES_BASES", 20_000)
    table = demo_material.demo_species(tmp_path / "species")
    assert table.read_text().splitlines()[0] == "name\tfasta"
    stores = {name: open_genome(tmp_path / "species" / f"{name}.fa") for name in ("ecoli", "backwards", "chain")}
    tokens = {name: store.read(name, 0, 20_000).astype(np.int64) for name, store in stores.items()}

    def triplets(values: np.ndarray) -> np.ndarray:
        return np.bincount(values[:-2] * 16 + values[1:-1] * 4 + values[2:], minlength=64) / len(values)

    assert np.abs(triplets(tokens["ecoli"]) - triplets(tokens["chain"])).max() < 0.006
    longest = [
        max(len(part) for part in translate(tokens[name].astype(np.uint8)).split("*")) for name in ("ecoli", "chain")
    ]
    assert longest[0] > longest[1]
    assert demo_material.demo_species(tmp_path / "species") == table
