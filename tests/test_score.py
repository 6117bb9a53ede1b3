"""Zero-shot variant scores: equal to whole windows computed plainly, symmetric, in order; reasons where impossible."""

import shutil
import subprocess
import sys
from dataclasses import replace

import cyvcf2
import numpy as np
import polars
import pytest
import torch
from tiny_models import random_bases, tiny_model

from dnamamba import cli, score
from dnamamba.alphabet import COMPLEMENT, TOKEN_BITS, decode, encode
from dnamamba.analysis.variants.plan import default_suffix, plan_for
from dnamamba.analysis.variants.score_output import combine
from dnamamba.analysis.variants.scores import ScorePlan, score_alleles
from dnamamba.analysis.variants.tiles import Tiling, on_reverse_strand
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.alleles import REASON_NAMES, check, trim
from dnamamba.genome.store import open_genome
from dnamamba.genome.vcf import read_vcf
from dnamamba.inference.load import load_for_inference
from dnamamba.model.abilities import Ability
from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel

CONTEXT, SUFFIX = 128, 24


def write_vcf(path, records, contigs=()):
    lines = ["##fileformat=VCFv4.2", *(f"##contig=<ID={name}>" for name in contigs)]
    lines.append("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO")
    lines += [f"{c}\t{p}\t.\t{r}\t{a}\t.\t.\t." for c, p, r, a in records]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_fasta(path, contigs):
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in contigs.items()))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("score")


@pytest.fixture(scope="module")
def checkpoint(folder):
    save_checkpoint(tiny_model(), folder / "model", {"settings": {"length": CONTEXT}})
    return folder / "model"


@pytest.fixture(scope="module")
def inference(checkpoint):
    return load_for_inference(checkpoint, "cpu", "fp32")


@pytest.fixture(scope="module")
def contigs():
    first = random_bases(1000, 0)
    return {"chr1": f"{first[:300]}NNNNN{first[305:600].lower()}{first[600:]}", "chr2": random_bases(90, 1)}


@pytest.fixture(scope="module")
def fasta(folder, contigs):
    return write_fasta(folder / "genome.fa", contigs)


@pytest.fixture(scope="module")
def store(fasta):
    return open_genome(fasta)


def some_records(contigs, count=60, seed=5):
    """SNVs, MNVs, insertions and deletions in random order, with one and two alternate alleles."""
    rng = np.random.default_rng(seed)
    records = []
    for name, sequence in contigs.items():
        for position in rng.choice(np.arange(1, len(sequence) - 12), count if name == "chr1" else 8, replace=False):
            length = int(rng.choice([1, 1, 1, 2, 5, 11]))
            ref = sequence[position : position + length].upper()
            alts = {ref[0] + random_bases(int(rng.integers(0, 7)), rng) for _ in range(2)} | {random_bases(1, rng)}
            alts = [alt for alt in sorted(alts) if alt != ref][: int(rng.integers(1, 3))]
            records.append((name, int(position) + 1, ref, ",".join(alts)))
    rng.shuffle(records)
    return [(c, int(p), r, a) for c, p, r, a in records if "N" not in r]


@pytest.fixture(scope="module")
def records(folder, contigs):
    return read_vcf(write_vcf(folder / "some.vcf", some_records(contigs)))


def plan(**changes):
    values = {"state_every": 16, "batch_tokens": 1000, **changes}
    return ScorePlan(Tiling(values.pop("context", CONTEXT), values.pop("suffix", SUFFIX)), **values)


def log_likelihoods(model, tokens):
    """ln p of each base given those before it, by one plain pass; the first has none, N counts 0."""
    with torch.inference_mode():
        logits = model(torch.from_numpy(tokens.copy())[None]).logits[0].double()
    logp = torch.log_softmax(logits, 1).numpy()
    log_likelihood = np.where(tokens[1:] < 4, logp[np.arange(len(tokens) - 1), np.minimum(tokens[1:], 3)], 0.0)
    return np.concatenate(([np.nan], log_likelihood))


def plain_scores(model, sequence, start, ref_length, alt, exact=False):
    """(at, after) as they are defined: two whole passes over the tile."""
    tile = max(start // (CONTEXT // 2) - 1, 0) * (CONTEXT // 2)
    end = start + ref_length + SUFFIX
    if exact:
        end = max(end, tile + CONTEXT + SUFFIX)
    end = min(end, len(sequence))
    before, ref, after = sequence[tile:start], sequence[start : start + ref_length], sequence[start + ref_length : end]
    parts = []
    for allele in (alt, ref):
        found = log_likelihoods(model, np.concatenate((before, allele, after)))
        cut = len(before) + len(allele)
        parts.append((found[len(before) : cut].sum(), found[cut:].sum()))
    return parts[0][0] - parts[1][0], parts[0][1] - parts[1][1]


@pytest.mark.parametrize("exact", [False, True])
def test_scores_are_those_of_whole_windows(inference, store, records, exact):
    alleles = check(records, store, CONTEXT).alleles
    scores = score_alleles(inference, store, alleles, plan(exact=exact))
    assert (alleles.reason == 0).all() and len(alleles) > 60
    kinds = {(min(r, 2), min(len(a), 2)) for r, a in zip(alleles.ref_length.tolist(), alleles.alt, strict=True)}
    assert {(1, 1), (0, 1), (0, 2), (1, 0), (2, 0)} <= kinds
    for allele in range(len(alleles)):
        contig = store.contigs[alleles.contig[allele]]
        sequence = store.read(contig.name, 0, contig.length) & TOKEN_BITS
        start, ref_length = int(alleles.start[allele]), int(alleles.ref_length[allele])
        alt = encode(alleles.alt[allele])
        got = (scores.forward.at[allele], scores.forward.after[allele])
        assert got == pytest.approx(plain_scores(inference.model, sequence, start, ref_length, alt, exact), abs=2e-4)
        other_start = len(sequence) - start - ref_length
        sequence, alt = COMPLEMENT[sequence[::-1]], COMPLEMENT[alt[::-1]]
        got = (scores.reverse.at[allele], scores.reverse.after[allele])
        assert got == pytest.approx(
            plain_scores(inference.model, sequence, other_start, ref_length, alt, exact), abs=2e-4
        )


@pytest.mark.parametrize("mixer", ["transformer", "hyenadna", "mamba,attention"])
def test_models_whose_state_grows_score_whole_windows(mixer, store, records, folder):
    """No state is kept of them: every allele starts from its tile's first base."""
    options = {"pattern": mixer} if "," in mixer else {"mixer": mixer}
    model = tiny_model(**options)
    assert Ability.CONSTANT_STATE not in model.abilities
    save_checkpoint(model, folder / mixer, {"settings": {"length": CONTEXT}})
    inference = load_for_inference(folder / mixer, "cpu", "fp32")
    alleles = check(records, store, CONTEXT).alleles
    scores = score_alleles(inference, store, alleles, plan_for(inference, suffix=SUFFIX, batch_tokens=1000))
    for allele in range(0, len(alleles), 5):
        contig = store.contigs[alleles.contig[allele]]
        sequence = store.read(contig.name, 0, contig.length) & TOKEN_BITS
        start, ref_length = int(alleles.start[allele]), int(alleles.ref_length[allele])
        expected = plain_scores(inference.model, sequence, start, ref_length, encode(alleles.alt[allele]))
        assert (scores.forward.at[allele], scores.forward.after[allele]) == pytest.approx(expected, abs=2e-4)


def test_how_the_work_is_cut_changes_nothing(inference, store, records):
    alleles = check(records, store, CONTEXT).alleles
    expected = score_alleles(inference, store, alleles, plan())
    for changes in ({"state_every": 1}, {"state_every": 7}, {"state_every": 128}, {"batch_tokens": 1}, {"check": 5}):
        other = score_alleles(inference, store, alleles, plan(**changes))
        for strand in ("forward", "reverse"):
            np.testing.assert_allclose(getattr(other, strand).at, getattr(expected, strand).at, atol=1e-4)
            np.testing.assert_allclose(getattr(other, strand).after, getattr(expected, strand).after, atol=1e-4)


@pytest.mark.parametrize(("context", "every"), [(4, 4), (512, 64), (2048, 256), (16_384, 1024), (131_072, 1024)])
def test_states_are_kept_more_often_at_short_contexts(inference, context, every):
    assert plan_for(inference, context=context).state_every == every
    assert plan_for(inference, context=context, state_every=3).state_every == 3


def test_a_score_does_not_depend_on_the_other_records(inference, store, folder, contigs):
    many = some_records(contigs)
    alone = read_vcf(write_vcf(folder / "one.vcf", many[7:8]))
    together = check(read_vcf(folder / "one.vcf"), store, CONTEXT)
    one = score_alleles(inference, store, check(alone, store, CONTEXT).alleles, plan())
    everything = check(read_vcf(write_vcf(folder / "many.vcf", many)), store, CONTEXT).alleles
    at = everything.first[7]
    scores = score_alleles(inference, store, everything, plan())
    assert scores.forward.llr[at : at + len(together.alleles)] == pytest.approx(one.forward.llr, abs=1e-4)
    assert scores.reverse.llr[at : at + len(together.alleles)] == pytest.approx(one.reverse.llr, abs=1e-4)


def test_the_reverse_complement_of_everything_swaps_the_strands(inference, folder, contigs, store, records):
    complements = {name: decode(COMPLEMENT[encode(s)[::-1]]) for name, s in contigs.items()}
    other = open_genome(write_fasta(folder / "complements.fa", complements))
    alleles = check(records, store, CONTEXT).alleles
    lengths = np.array([len(contigs[c.name]) for c in store.contigs])[alleles.contig]
    mirrored = replace(
        alleles,
        start=on_reverse_strand(alleles.start, alleles.ref_length, lengths),
        alt=[decode(COMPLEMENT[encode(alt)[::-1]]) for alt in alleles.alt],
    )
    scores = score_alleles(inference, store, alleles, plan())
    swapped = score_alleles(inference, other, mirrored, plan())
    np.testing.assert_array_equal(scores.forward.at, swapped.reverse.at)
    np.testing.assert_array_equal(scores.reverse.after, swapped.forward.after)


@pytest.mark.parametrize(
    ("ref", "alt", "trimmed"),
    [
        ("A", "C", (0, 1, "C")),
        ("AC", "AG", (1, 1, "G")),
        ("CA", "GA", (0, 1, "G")),
        ("A", "ATG", (1, 0, "TG")),
        ("ATG", "A", (1, 2, "")),
        ("A", "AA", (0, 0, "A")),
        ("ACAC", "AC", (0, 2, "")),
        ("ACGT", "TGCA", (0, 4, "TGCA")),
        ("ACGTT", "AGGT", (1, 3, "GG")),
        ("A", "A", (0, 0, "")),
    ],
)
def test_shared_bases_are_taken_off(ref, alt, trimmed):
    begin, length, left = trim(ref, alt)
    assert (begin, length, left) == trimmed
    assert ref[:begin] + left + ref[begin + length :] == alt


def test_spelling_of_an_allele_does_not_matter(inference, store, contigs, folder):
    bases = contigs["chr1"].upper()
    p, other = 700, "G" if bases[700] != "G" else "T"
    padded = [
        ("chr1", p + 1, bases[p], other),
        ("chr1", p - 2, bases[p - 3 : p + 4], bases[p - 3 : p] + other + bases[p + 1 : p + 4]),
        ("chr1", p + 1, bases[p].lower(), other.lower()),
    ]
    alleles = check(read_vcf(write_vcf(folder / "padded.vcf", padded)), store, CONTEXT).alleles
    llr = score_alleles(inference, store, alleles, plan()).forward.llr
    assert llr == pytest.approx([llr[0]] * 3, abs=1e-5)


def test_tiles_are_fixed_and_leave_half_a_context_to_the_left():
    start = np.arange(1000)
    tiled = Tiling(CONTEXT, SUFFIX).locate(start, np.ones(1000, np.int64), np.full(1000, 1000))
    assert (tiled.tile_start + tiled.offset == start).all()
    assert (tiled.offset[start >= CONTEXT // 2] >= CONTEXT // 2).all()
    assert (tiled.offset < CONTEXT).all()
    assert (tiled.tile_start % (CONTEXT // 2) == 0).all()
    assert (tiled.end - tiled.offset == np.minimum(1 + SUFFIX, 1000 - start)).all()
    assert (tiled.exact_end >= tiled.end).all()
    assert (tiled.exact_end + tiled.tile_start <= 1000).all()


def test_the_truncation_is_measured_on_the_same_alleles(inference, store, records):
    alleles = check(records, store, CONTEXT).alleles
    suffix = score_alleles(inference, store, alleles, plan(check=10))
    exact = score_alleles(inference, store, alleles, plan(exact=True))
    sampled = np.linspace(0, len(alleles) - 1, 10).round().astype(int)
    for scores, whole in ((suffix.truncation.truncated, suffix), (suffix.truncation.exact, exact)):
        expected = np.concatenate((whole.forward.llr[sampled], whole.reverse.llr[sampled]))
        np.testing.assert_allclose(np.sort(scores), np.sort(expected), atol=1e-4)
    assert np.abs(suffix.truncation.truncated - suffix.truncation.exact).max() > 1e-4


def test_the_count_of_tokens_is_what_the_model_saw(inference, store, records, monkeypatch):
    alleles = check(records, store, CONTEXT).alleles
    seen = []
    hook = inference.model.backbone.embedding.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].numel())
    )
    try:
        tokens = score_alleles(inference, store, alleles, plan(check=3)).tokens
    finally:
        hook.remove()
    assert sum(seen) == tokens.tiles + tokens.alleles + tokens.check
    assert tokens.full == 4 * CONTEXT * len(alleles)


def test_embedding_distances_are_those_of_whole_windows(inference, store, records):
    alleles = check(records, store, CONTEXT).alleles
    scores = score_alleles(inference, store, alleles, plan(embedding_distance=True))
    np.testing.assert_allclose(
        scores.forward.after, score_alleles(inference, store, alleles, plan()).forward.after, atol=1e-4
    )
    for allele in range(0, len(alleles), 7):
        contig = store.contigs[alleles.contig[allele]]
        sequence = store.read(contig.name, 0, contig.length) & TOKEN_BITS
        start, r, alt = int(alleles.start[allele]), int(alleles.ref_length[allele]), encode(alleles.alt[allele])
        tile, end = max(start // 64 - 1, 0) * 64, min(start + r + SUFFIX, contig.length)
        hidden = []
        for middle in (alt, sequence[start : start + r]):
            tokens = np.concatenate((sequence[tile:start], middle, sequence[start + r : end]))
            with torch.inference_mode():
                hidden.append(inference.model(torch.from_numpy(tokens)[None]).hidden[0, start - tile + len(middle) :])
        expected = (hidden[0] - hidden[1]).norm(dim=1).mean().item()
        assert scores.forward.distance[allele] == pytest.approx(expected, abs=1e-3)


def test_contig_edges_and_n(inference, store, contigs, folder):
    one, two = contigs["chr1"].upper(), contigs["chr2"]

    def other(base):
        return "A" if base != "A" else "C"

    rows = [
        ("chr2", 1, two[0], other(two[0])),  # nothing predicts it on the forward strand
        ("chr2", 90, two[-1], other(two[-1])),  # nor this on the reverse strand
        ("chr2", 2, two[1], other(two[1])),
        ("chr1", 300, one[299], other(one[299])),  # N follows
        ("chr1", 306, one[305], other(one[305])),  # N before
        ("chr1", 301, "N", "A"),
        ("chr1", 299, one[298:302], "A"),
    ]
    checked = check(read_vcf(write_vcf(folder / "edges.vcf", rows)), store, CONTEXT)
    columns = combine(checked.alleles, score_alleles(inference, store, checked.alleles, plan()))
    assert REASON_NAMES[columns.reason].tolist() == ["contig_edge"] * 2 + [""] * 3 + ["ref_not_acgt"] * 2
    assert np.isfinite(columns.values["llr_forward"]).tolist() == [False, True, True, True, True, False, False]
    assert np.isfinite(columns.values["llr_reverse"]).tolist() == [True, False, True, True, True, False, False]
    assert np.isfinite(columns.values["llr"]).tolist() == [False, False, True, True, True, False, False]


# The command line.


def run(*arguments):
    return cli.run(score.main, [str(argument) for argument in arguments])


@pytest.fixture
def command(checkpoint, fasta):
    return ["--checkpoint", checkpoint, "--genome", fasta, "--suffix", SUFFIX, "--state_every", 32]


@pytest.fixture
def mixed(tmp_path, contigs):
    """A VCF with something of everything, unsorted, and for each alternate allele whether and why it has no score."""
    one, two = contigs["chr1"].upper(), contigs["chr2"]
    good = "ACGT".replace(one[649], "")
    rows = [
        ("1", 650, one[649], f"{good[0]},{good[1]}", ["", ""]),
        ("2", 5, two[4], f"*,<DEL>,{two[4]}TT", ["spanning_deletion", "symbolic", ""]),
        ("1", 100, one[99], f"G]2:5],.{one[99]},N", ["breakend", "breakend", "alt_not_acgt"]),
        ("X", 7, "A", "C", ["no_contig"]),
        ("1", 20, one[19], ".", []),
        ("1", 400, one[399:410], one[399], [""]),
        ("1", 302, "N", "A", ["ref_not_acgt"]),
        ("2", 1, two[0], "T" if two[0] != "T" else "G", ["contig_edge"]),
        ("1", 500, one[499:600], one[499], ["too_long"]),
        ("1", 30, one[29], one[29].lower(), ["same_as_ref"]),
        *(("1", p, one[p - 1], "A" if one[p - 1] != "A" else "C", [""]) for p in range(700, 600, -1)),
        ("1", 10, one[9].translate(str.maketrans("ACGT", "CGTA")), one[9], ["ref_mismatch"]),
    ]
    path = write_vcf(tmp_path / "mixed.vcf", [row[:4] for row in rows], contigs=["1", "2", "X"])
    return path, [row[4] for row in rows]


def test_every_record_comes_out_in_order_scored_or_with_a_reason(command, mixed, tmp_path, capsys):
    path, reasons = mixed
    outs = [tmp_path / name for name in ("out.vcf.gz", "out.parquet", "out.tsv")]
    for out in outs:
        assert run(*command, "--vcf", path, "--out", out) == 0
    message = capsys.readouterr().out
    assert "1 is chr1" in message and "1:10 REF" in message and "times fewer than four windows an allele" in message

    table = polars.read_parquet(outs[1])
    other = polars.read_csv(outs[2], separator="\t", schema=table.schema)
    assert other.select(polars.exclude(polars.Float64)).equals(table.select(polars.exclude(polars.Float64)))
    assert table["skipped"].to_list() == [why or None for whys in reasons for why in (whys or ["no_alternate"])]
    assert table["record"].unique(maintain_order=True).to_list() == list(range(len(reasons)))
    assert (table["llr"].is_null() == table["skipped"].is_not_null()).all()
    assert table["llr"].to_numpy() == pytest.approx((table["at"] + table["after"]).to_numpy(), abs=1e-9, nan_ok=True)

    read = cyvcf2.VCF(str(outs[0]))
    before = cyvcf2.VCF(str(path))
    rows = iter(table.iter_rows(named=True))
    for record, original, whys in zip(read, before, reasons, strict=True):
        assert (record.CHROM, record.POS, record.REF, record.ALT) == (
            original.CHROM,
            original.POS,
            original.REF,
            original.ALT,
        )
        llr = record.INFO.get("DNAMAMBA_LLR")
        values = list(llr) if isinstance(llr, tuple) else [llr] * max(len(whys), 1)
        for value, row in zip(values, rows, strict=False):
            assert (value is None) == (row["llr"] is None)
            assert value is None or value == pytest.approx(row["llr"], rel=1e-4, abs=1e-5)
        assert (record.INFO.get("DNAMAMBA_SKIPPED") or "") == ",".join(why or "." for why in whys if any(whys))
        assert bool(record.INFO.get("DNAMAMBA_NO_ALT")) == (not whys)
    assert next(rows, None) is None
    read.close()
    before.close()


def test_telomeres_are_no_mismatches(command, contigs, tmp_path):
    """VCF places them at POS 0 and one behind the last base."""
    good = ("chr2", 40, contigs["chr2"][39].upper(), "A" if contigs["chr2"][39].upper() != "A" else "C")
    rows = [("chr2", 0, "N", ".[chr1:20["), good, ("2", 91, "N", "]chr1:30]."), ("2", 91, "A", "C")]
    out = tmp_path / "out.tsv"
    assert run(*command, "--vcf", write_vcf(tmp_path / "in.vcf", rows), "--out", out) == 0
    table = polars.read_csv(out, separator="\t")
    assert table["skipped"].to_list() == ["beyond_contig", None, "beyond_contig", "beyond_contig"]
    assert table["start"].to_list() == [-1, 39, 90, 90] and table["llr"].is_null().to_list() == [
        True,
        False,
        True,
        True,
    ]


def test_the_output_can_be_scored_again(command, mixed, tmp_path):
    first, second = tmp_path / "first.vcf", tmp_path / "second.vcf"
    assert run(*command, "--vcf", mixed[0], "--out", first) == 0
    assert run(*command, "--vcf", first, "--out", second) == 0
    assert first.read_bytes() == second.read_bytes()


def test_no_records_give_an_empty_output(command, tmp_path):
    path = write_vcf(tmp_path / "none.vcf", [])
    assert run(*command, "--vcf", path, "--out", tmp_path / "out.vcf") == 0
    assert (tmp_path / "out.vcf").read_text().splitlines()[-1].startswith("#CHROM")
    assert run(*command, "--vcf", path, "--out", tmp_path / "out.parquet") == 0
    assert polars.read_parquet(tmp_path / "out.parquet").is_empty()


def shifted(contigs, by):
    one = contigs["chr1"].upper()
    return [("chr1", p + by, one[p - 1], "A" if one[p - 1] != "A" else "C") for p in range(20, 200)]


BAD = {
    "another assembly": (lambda c: shifted(c, 40), [], "another assembly than the genome's?"),
    "0-based": (lambda c: shifted(c, -1), [], "its positions seem to be 0-based"),
    "counted from 2": (lambda c: shifted(c, 1), [], "counted from 2"),
    "beyond the contig": (lambda c: [("chr2", 92, "A", "C")], [], "lies beyond the contig, which has 90 bases"),
    "no contig": (
        lambda c: [("chr7", 1, "A", "C"), ("chr8", 1, "A", "C")],
        [],
        "(chr7, chr8) are none of the genome's",
    ),
    "checkpoint": (None, ["--checkpoint", "absent"], "no such folder, expected a checkpoint or run folder"),
    "genome": (None, ["--genome", "absent.fa"], "absent.fa: no such file"),
    "vcf": (None, ["--vcf", "absent.vcf"], "absent.vcf: no such file"),
    "vcf is a FASTA": (None, ["--vcf", "FASTA"], "no VCF header"),
    "kind of output": (None, ["--out", "scores.xls"], "unknown kind of table '.xls'"),
    "no folder": (None, ["--out", "absent/scores.vcf"], "there is no folder"),
    "suffix": (None, ["--suffix", "65"], "--suffix: 65 is not possible, expected 0 to 64"),
    "context": (None, ["--context", "7"], "--context: 7 is not possible"),
    "state_every": (None, ["--state_every", "0"], "--state_every: 0 is below 1"),
    "check": (None, ["--check", "-1"], "--check: -1"),
    "max_mismatches": (None, ["--max_mismatches", "2"], "--max_mismatches: 2"),
    "batch_tokens": (None, ["--batch_tokens", "0"], "--batch_tokens: 0"),
    "gpu": (None, ["--accelerator", "gpu"], "torch sees no CUDA device"),
    "flag": (None, ["--vfc", "x"], "unknown flag --vfc; did you mean --vcf?"),
}


@pytest.mark.parametrize(("context", "suffix"), [(128, 64), (16_384, 2048), (131_072, 4096), (1_048_576, 32_768)])
def test_default_suffix_grows_with_the_context(context, suffix):
    assert default_suffix(context) == suffix


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(case, command, contigs, fasta, tmp_path, capsys):
    rows, changes, message = BAD[case]
    if case == "gpu" and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    path = write_vcf(tmp_path / "in.vcf", rows(contigs) if rows else shifted(contigs, 0))
    out = tmp_path / "out.vcf"
    given = [str(fasta) if change == "FASTA" else change for change in changes]
    if given[:1] == ["--out"]:
        given[1] = str(tmp_path / given[1])
    assert run(*command, "--vcf", path, "--out", out, *given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.vcf"]


def test_outputs_are_not_replaced_without_a_flag(command, contigs, tmp_path, capsys):
    path = write_vcf(tmp_path / "in.vcf", shifted(contigs, 0)[:3])
    out = tmp_path / "out.tsv"
    out.write_text("mine")
    assert run(*command, "--vcf", path, "--out", out) == 2
    assert "exists already" in capsys.readouterr().err and out.read_text() == "mine"
    assert run(*command, "--vcf", path, "--out", path, "--overwrite") == 2
    assert "is the input VCF itself" in capsys.readouterr().err
    assert run(*command, "--vcf", path, "--out", out, "--overwrite") == 0
    assert out.read_text().startswith("record\t")


def test_few_mismatches_are_reported_and_left_out(command, contigs, tmp_path, capsys):
    rows = shifted(contigs, 0)
    rows[5] = ("chr1", 100, "ACGT".replace(contigs["chr1"][99], "")[0], contigs["chr1"][99])
    path = write_vcf(tmp_path / "in.vcf", rows)
    assert run(*command, "--vcf", path, "--out", tmp_path / "out.parquet") == 0
    assert "chr1:100 REF" in capsys.readouterr().out
    assert polars.read_parquet(tmp_path / "out.parquet")["skipped"].drop_nulls().to_list() == ["ref_mismatch"]
    assert run(*command, "--vcf", path, "--out", tmp_path / "o.vcf", "--max_mismatches", "0.001") == 2


def test_an_interrupted_job_leaves_nothing(command, contigs, tmp_path, monkeypatch):
    path = write_vcf(tmp_path / "in.vcf", shifted(contigs, 0))
    calls = []

    def interrupted(*arguments, **named):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr("dnamamba.analysis.variants.scores.score_resumed", interrupted)
    assert run(*command, "--vcf", path, "--out", tmp_path / "out.vcf") == cli.INTERRUPTED
    assert calls and sorted(p.name for p in tmp_path.iterdir()) == ["in.vcf"]


def test_a_checkpoint_that_does_not_say_its_length_needs_context(command, folder, tmp_path, contigs, capsys):
    torch.manual_seed(0)
    save_checkpoint(LanguageModel(preset("demo", n_layer=1, d_model=8, d_state=2)), tmp_path / "model", {})
    path = write_vcf(tmp_path / "in.vcf", shifted(contigs, 0)[:3])
    rest = [*command, "--checkpoint", tmp_path / "model", "--vcf", path, "--out", tmp_path / "o.vcf"]
    assert run(*rest) == 2
    assert "does not say what length it was trained at; give --context" in capsys.readouterr().err
    assert run(*rest, "--context", "200") == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokens.json", '{"A": 0, "B": 1}', "another alphabet than this program's"),
        ("config.json", '{"model_type": "gpt2"}', "made by another program"),
        ("classifier.json", "{}", "a fine-tuned classifier"),
        ("model.safetensors", "x", "damaged"),
    ],
)
def test_checkpoints_of_other_kinds_are_refused(command, checkpoint, contigs, tmp_path, capsys, name, content, message):
    other = shutil.copytree(checkpoint, tmp_path / "model")
    (other / name).write_text(content)
    path = write_vcf(tmp_path / "in.vcf", shifted(contigs, 0)[:3])
    assert run(*command, "--checkpoint", other, "--vcf", path, "--out", tmp_path / "out.vcf") == 2
    assert message in capsys.readouterr().err


def test_help_needs_no_torch():
    code = (
        "import sys; from dnamamba import verbs; verbs.parser('score').format_help();"
        "assert not {'torch', 'polars', 'pysam'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
