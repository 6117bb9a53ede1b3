"""The job behind `python -m dnamamba.score`: read, check, score, write, and say what was done."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from dnamamba.analysis.variants.neutral import neutral_scores
from dnamamba.analysis.variants.plan import Plan, plan_for, scoring_provenance
from dnamamba.analysis.variants.score_output import ScoreColumns, combine, scored_table, write_scored_vcf
from dnamamba.analysis.variants.score_settings import ScoreSettings
from dnamamba.analysis.variants.scores import Scores, Truncation
from dnamamba.analysis.variants.shards import KeptScores, joined
from dnamamba.errors import InputError
from dnamamba.genome import vcf
from dnamamba.genome.allele_output import checked_lines, refuse_output, skipped_lines
from dnamamba.genome.alleles import Checked, check, refuse_mismatches
from dnamamba.genome.indexed import open_for
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference, load_for_inference
from dnamamba.inference.shards import Shard, made_with
from dnamamba.outputs import refuse_existing, table_files, write_table
from dnamamba.runs.card import ranking_line
from dnamamba.runs.lines import Line, caution_lines, genome_line, print_lines
from dnamamba.runs.progress import job_bar

STRANDS = 2


def score(settings: ScoreSettings) -> None:
    """Scores a VCF as the settings say. Raises `InputError` for whatever the user can fix."""
    _check_settings(settings)
    with job_bar("reading the VCF", "B") as progress:
        records = vcf.read_vcf(settings.vcf, progress)
    inference = load_for_inference(settings.checkpoint, settings.accelerator, settings.precision)
    plan = plan_for(
        inference,
        context=settings.context,
        suffix=settings.suffix,
        state_every=settings.state_every,
        batch_tokens=settings.batch_tokens,
        check=settings.check,
        exact=settings.exact,
        embedding_distance=settings.embedding_distance,
        flank=settings.flank,
        mask_every=settings.mask_every,
    )
    most = 2 * STRANDS * plan.context * len(records)  # tiles that no two variants share
    with job_bar("reading the genome", "B") as progress:
        store = open_for(settings.genome, settings.store, lambda _: most, progress)
    checked = check(records, store, longest=plan.context // 2)
    mismatches = refuse_mismatches(checked, records, store, settings.max_mismatches, str(settings.vcf))
    print_lines(_header(settings, inference, store, records, checked, plan))
    print_lines(("mismatch", line) for line in mismatches)

    made_by = {"alleles": checked.alleles.fingerprint, "plan": repr(plan)}
    kept = KeptScores(settings.out, made_with(inference, store, settings.genome) | made_by)

    def of_shard(shard: Shard | None) -> Scores:
        with job_bar("scoring", "alleles, each strand counted") as progress:
            return replace(plan, shard=shard).score(inference, store, checked.alleles, progress)

    began = time.perf_counter()
    if settings.shard is not None:
        kept.scores(Shard(settings.shard), of_shard)
        print_lines([("written", f"{kept.folder}; when all shards are there, the same command without --shard")])
        return
    shards = kept.shards()
    scores = joined([kept.scores(shard, of_shard) for shard in shards]) if shards else of_shard(None)
    seconds = time.perf_counter() - began
    columns = combine(checked.alleles, scores)
    if settings.percentile:
        neutral = neutral_scores(inference, store, plan)
        percentile = neutral.percentile(checked.alleles, columns.values["llr"])
        columns = columns._replace(values=columns.values | {"percentile": percentile})
    provenance = scoring_provenance(settings, inference, store, plan)
    if vcf.is_vcf_name(settings.out):
        write_scored_vcf(settings, store, records, checked, columns, provenance)
    else:
        write_table(
            scored_table(records, vcf.read_ids(settings.vcf, records), checked, columns),
            settings.out,
            settings.overwrite,
            provenance,
        )
    kept.remove()
    print_lines(_summary(settings.out, plan, columns, scores, seconds))


def _check_settings(settings: ScoreSettings) -> None:
    """What can be refused before anything is read."""
    if settings.shard is not None:
        Shard(settings.shard)
    if not settings.genome:
        raise InputError("--genome: give the FASTA file that the VCF was made with")
    refuse_output(settings.out, settings.vcf)
    outputs = [settings.out] if vcf.is_vcf_name(settings.out) else table_files(settings.out)
    refuse_existing(outputs, settings.overwrite)


def _header(
    settings: ScoreSettings,
    inference: Inference,
    store: GenomeView,
    records: vcf.Records,
    checked: Checked,
    plan: Plan,
) -> list[Line]:
    return [
        *inference.header(),
        *ranking_line(inference.provenance),
        genome_line(settings.genome, store),
        *checked_lines(records, store, checked),
        *plan.lines(),
        *caution_lines(inference, store, plan.context),
    ]


def _summary(out: Path, plan: Plan, columns: ScoreColumns, scores: Scores, seconds: float) -> list[tuple[str, str]]:
    lines = [
        ("scored", f"{int((columns.reason == 0).sum()):,} alleles in {seconds:.1f} s"),
        *skipped_lines(columns.reason),
    ]
    if scores.tokens.tiles:
        lines.append(("bases run", plan.describe_run(scores.tokens)))
    if text := describe_truncation(scores.truncation):
        lines.append(("--suffix", text))
    return [*lines, ("written", str(out))]


def describe_truncation(truncation: Truncation) -> str:
    """How the scores of the sample change when they count all bases to the tile's end; "" without a sample."""
    truncated, exact = truncation
    if not len(exact):
        return ""
    error = np.abs(truncated - exact)
    line = (
        f"against all bases to the tile's end, {len(exact)} scores: "
        f"|error| mean {error.mean():.2g}, max {error.max():.2g} nats"
    )
    if len(exact) < 3 or np.ptp(exact) == 0 or np.ptp(truncated) == 0:
        return line
    from scipy.stats import spearmanr  # half a second

    return f"{line}, Spearman {spearmanr(truncated, exact).statistic:.4f}"
