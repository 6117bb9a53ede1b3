"""Scores by models that predict masked bases: equal to one masked pass a base, alike on both strands."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from plain_caduceus import write_folder
from tiny_models import random_bases, tiny_bimamba, tiny_model

import dnamamba
from dnamamba import cli, likelihood, mutagenesis, score
from dnamamba.alphabet import COMPLEMENT, MASK, TOKEN_BITS, decode, encode
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.alleles import trim

GENOME = {"a": random_bases(70, 2), "b": f"NN{random_bases(45, 0)}NNN{random_bases(30, 1).lower()}", "c": "ACGTACG"}
CONTEXT, FLANK = 40, 5
KINDS = {"plain": {}, "equivariant": {"rc_equivariant": True}}


def reverse_complement(sequence):
    return decode(COMPLEMENT[encode(sequence)[::-1] & TOKEN_BITS])


def variants():
    """SNVs (all alternates of some), insertions, deletions and other changes: inside, beside N, at contigs' ends."""
    found = []
    for contig, position, ref_length, alt in (
        *(("a", position, 1, base) for position in (1, 2, 35, 70) for base in "ACGT"),
        ("a", 30, 1, "{0}TTGAC"),
        ("a", 70, 1, "{0}GT"),
        ("a", 1, 4, "{0}"),
        ("a", 66, 5, "{0}"),
        ("a", 20, 3, "ACCGT"),
        ("a", 40, 2, "TG"),
        ("b", 3, 1, "T"),
        ("b", 47, 1, "{0}CC"),
        ("b", 52, 3, "{0}"),
        ("b", 80, 1, "A"),
        ("c", 2, 1, "T"),
        ("c", 4, 3, "{0}"),
    ):
        ref = GENOME[contig][position - 1 :][:ref_length].upper()
        assert len(ref) == ref_length and "N" not in ref
        alt = alt.format(ref[0])
        if alt != ref:
            found.append((contig, position, ref, alt))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    for kind, options in KINDS.items():
        save_checkpoint(tiny_bimamba(**options), folder / kind, {"settings": {"length": CONTEXT}})
    for name, turn in (("genome", str), ("turned", reverse_complement)):
        (folder / f"{name}.fa").write_text("".join(f">{contig}\n{turn(text)}\n" for contig, text in GENOME.items()))
    rows = [f"{contig}\t{position}\t.\t{ref}\t{alt}\t.\t.\t.\n" for contig, position, ref, alt in variants()]
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (folder / "variants.vcf").write_text(head + "".join(rows))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def model(request, folder):
    return dnamamba.load(folder / request.param, device="cpu")


@pytest.fixture(scope="module")
def scores(model, folder):
    return model.score_variants(variants(), genome=folder / "genome.fa", flank=FLANK)


def log_p(model, tokens, position):
    """(4,) of one base, masked alone."""
    tokens = torch.from_numpy(tokens.copy())
    tokens[position] = MASK
    with torch.inference_mode():
        return torch.log_softmax(model.module(tokens[None]).logits[0, position].double(), -1).numpy()


def naive(model, contig, position, ref, alt, *, reverse=False):
    """at and after, by the module's formulas."""
    genome = encode(GENOME[contig]) & TOKEN_BITS
    start, ref, alt = position - 1, encode(ref), encode(alt)
    while ref.size and alt.size and ref[-1] == alt[-1]:
        ref, alt = ref[:-1], alt[:-1]
    while ref.size and alt.size and ref[0] == alt[0]:
        start, ref, alt = start + 1, ref[1:], alt[1:]
    reach = (CONTEXT - max(ref.size, alt.size)) // 2
    begin, end = start - reach, start + ref.size + reach
    if begin < 0:
        begin, end = 0, end - begin
    if end > genome.size:
        begin, end = max(begin - (end - genome.size), 0), genome.size
    left, right = genome[begin:start], genome[start + ref.size : end]
    if reverse:
        left, ref, alt, right = (COMPLEMENT[part[::-1]] for part in (right, ref, alt, left))
    if ref.size == alt.size == 1:
        p = log_p(model, np.concatenate((left, ref, right)), left.size)
        return p[alt[0]] - p[ref[0]], 0.0, 0
    sums = []
    for allele in (ref, alt):
        tokens = np.concatenate((left, allele, right))
        inside = range(left.size, left.size + allele.size)
        near = [
            *range(max(left.size - FLANK, 0), left.size),
            *range(inside.stop, min(inside.stop + FLANK, tokens.size)),
        ]
        near = [base for base in near if tokens[base] < 4]
        sums.append([sum(log_p(model, tokens, base)[tokens[base]] for base in part) for part in (inside, near)])
    return sums[1][0] - sums[0][0], sums[1][1] - sums[0][1], len(near)


def test_scores_are_those_of_a_pass_for_each_base(model, scores):
    equivariant = model.module.config.rc_equivariant
    assert scores["llr"].null_count() == 0
    for row, variant in zip(scores.iter_rows(named=True), variants(), strict=True):
        forward = naive(model, *variant)
        reverse = forward if equivariant else naive(model, *variant, reverse=True)
        for strand, (at, after, _) in (("forward", forward), ("reverse", reverse)):
            np.testing.assert_allclose(
                [row[f"at_{strand}"], row[f"after_{strand}"], row[f"llr_{strand}"]], [at, after, at + after], atol=3e-5
            )
        assert row["bases_after"] == forward[2] + reverse[2]
        np.testing.assert_allclose(row["llr"], (sum(forward[:2]) + sum(reverse[:2])) / 2, atol=3e-5)
    assert scores["llr"].abs().median() > 0.01  # the alleles are told apart


def test_the_other_strand_of_a_turned_genome_scores_the_same(model, scores, folder):
    turned = [
        (contig, len(GENOME[contig]) - (position - 1) - len(ref) + 1, reverse_complement(ref), reverse_complement(alt))
        for contig, position, ref, alt in variants()
    ]
    found = model.score_variants(turned, genome=folder / "turned.fa", flank=FLANK)
    # An indel that may stand in several places is put to the left end, on either strand: those that stay are compared.
    places = [[trim(ref, alt)[:2] for _, _, ref, alt in both] for both in (variants(), turned)]
    stays = [len(ref) - a - n == b for (_, _, ref, _), (a, n), (b, _) in zip(variants(), *places, strict=True)]
    same = np.array(stays)
    assert same.sum() > 18
    other = {"forward": "reverse", "reverse": "forward"}
    for strand in other:
        here, there = scores[f"llr_{strand}"].to_numpy()[same], found[f"llr_{other[strand]}"].to_numpy()[same]
        np.testing.assert_allclose(here, there, atol=3e-5)


@pytest.mark.parametrize("batch_tokens", [1, 130])
def test_batches_change_nothing(model, scores, folder, batch_tokens):
    found = model.score_variants(variants(), genome=folder / "genome.fa", flank=FLANK, batch_tokens=batch_tokens)
    np.testing.assert_allclose(found["llr"], scores["llr"], atol=3e-5)


def test_masks_far_apart_in_one_pass_are_near(model, scores, folder):
    found = model.score_variants(variants(), genome=folder / "genome.fa", flank=FLANK, mask_every=6)
    single = np.array([len(ref) == len(alt) == 1 for _, _, ref, alt in variants()])
    np.testing.assert_allclose(found["llr"].filter(single), scores["llr"].filter(single), atol=3e-5)
    difference = (found["llr"] - scores["llr"]).abs().filter(~single)
    assert 0 < difference.max() < scores["llr"].abs().max()
    alone = model.score_variants(variants(), genome=folder / "genome.fa", flank=FLANK, mask_every=100)
    np.testing.assert_allclose(alone["llr"], scores["llr"], atol=3e-5)


def test_the_command_line_and_mutagenesis_have_the_same(model, scores, folder, tmp_path, capsys):
    common = ["--checkpoint", str(model.checkpoint), "--genome", str(folder / "genome.fa"), "--accelerator", "cpu"]
    for name in ("scores.parquet", "scores.vcf"):
        arguments = ["--vcf", str(folder / "variants.vcf"), "--out", str(tmp_path / name), "--flank", str(FLANK)]
        assert cli.run(score.main, [*common, *arguments]) == 0
    assert "each side, masked alone" in capsys.readouterr().out
    table = pl.read_parquet(tmp_path / "scores.parquet")
    np.testing.assert_allclose(table["llr"], scores["llr"], atol=3e-5)
    assert table["at_reverse"].null_count() == 0
    assert "DNAMAMBA_LLR=" in (tmp_path / "scores.vcf").read_text()

    arguments = ["--region", "a:1-70", "--out", str(tmp_path / "changes"), "--format", "npz"]
    assert cli.run(mutagenesis.main, [*common, *arguments]) == 0
    changes = np.load(tmp_path / "changes.npz")
    for row, (contig, position, ref, alt) in zip(scores.iter_rows(named=True), variants(), strict=True):
        if contig == "a" and len(ref) == len(alt) == 1:
            np.testing.assert_allclose(
                changes["llr_reverse"][position - 1, "ACGT".index(alt)], row["llr_reverse"], atol=3e-5
            )
    assert not np.isnan(changes["llr"]).any()  # a base at a contig's end has the other side
    card = json.loads((tmp_path / "changes.json").read_text())
    assert (card["context"], card["flank"], card["mask_every"]) == (CONTEXT, 16, "alone")
    found = model.mutagenesis("a:1-70", genome=folder / "genome.fa")
    np.testing.assert_allclose(found["llr_G"], changes["llr"][:, 2], atol=3e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suffix": 4}, "--suffix: this model predicts masked bases"),
        ({"exact": True}, "--exact: this model predicts masked bases"),
        ({"embedding_distance": True}, "--embedding_distance: this model predicts masked bases"),
        ({"mask_every": 1}, "--mask_every: 1 is not possible"),
        ({"flank": -1}, "--flank: -1 is not possible"),
        ({"context": 1}, "--context: 1 is not possible"),
    ],
)
def test_what_cannot_be_is_refused(folder, options, message):
    with pytest.raises(InputError, match=message):
        dnamamba.load(folder / "plain", device="cpu").score_variants(variants(), genome=folder / "genome.fa", **options)


@pytest.mark.parametrize("options", [{"flank": 4}, {"mask_every": 8}])
def test_a_causal_model_has_no_flanks(folder, tmp_path, options):
    save_checkpoint(tiny_model(), tmp_path / "causal", {"settings": {"length": CONTEXT}})
    with pytest.raises(InputError, match="this model predicts the next base and masks none"):
        dnamamba.load(tmp_path / "causal", device="cpu").score_variants(
            variants(), genome=folder / "genome.fa", **options
        )


@pytest.mark.parametrize("rcps", [False, True])
def test_folders_of_caduceus_have_likelihoods_and_scores(folder, tmp_path, rcps):
    write_folder(tmp_path / "caduceus", rcps=rcps)
    common = ["--checkpoint", str(tmp_path / "caduceus"), "--genome", str(folder / "genome.fa"), "--accelerator", "cpu"]
    common += ["--context", str(CONTEXT)]
    scored = ["--vcf", str(folder / "variants.vcf"), "--out", str(tmp_path / "scores.parquet"), "--flank", str(FLANK)]
    assert cli.run(score.main, [*common, *scored]) == 0
    tracks = ["--region", "a:35-35", "--out", str(tmp_path / "tracks"), "--format", "parquet", "--mask_every", "alone"]
    assert cli.run(likelihood.main, [*common, *tracks]) == 0
    model = dnamamba.load(tmp_path / "caduceus", device="cpu")
    table = pl.read_parquet(tmp_path / "scores.parquet")
    for row, variant in zip(table.iter_rows(named=True), variants(), strict=True):
        if variant[0] == "a" and variant[1] > 30:
            assert row["llr_forward"] == pytest.approx(sum(naive(model, *variant)[:2]), abs=1e-4)
    p = pl.read_parquet(tmp_path / "tracks.parquet").row(0, named=True)
    assert sum(p[f"forward_p_{base}"] for base in "ACGT") == pytest.approx(1, abs=1e-5)
