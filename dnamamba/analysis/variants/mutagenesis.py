"""All single-base changes of a region, scored like the variants of a VCF (`variants`), as a matrix."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dnamamba.alphabet import BASES, TOKEN_BITS, decode
from dnamamba.analysis.variants.mutagenesis_settings import FORMATS, MutagenesisSettings
from dnamamba.analysis.variants.plan import Plan, plan_for, scoring_provenance
from dnamamba.analysis.variants.score_job import describe_truncation
from dnamamba.analysis.variants.scores import AllelesScored, Scores
from dnamamba.errors import InputError
from dnamamba.genome.alleles import Alleles
from dnamamba.genome.indexed import open_for
from dnamamba.genome.intervals import Interval
from dnamamba.genome.regions import parse_region
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference, load_for_inference
from dnamamba.outputs import (
    provenance_file,
    refuse_existing,
    refuse_missing_library,
    whole_files,
    write_arrays,
    write_provenance,
    write_table,
)
from dnamamba.pictures.mutagenesis import plot_mutagenesis
from dnamamba.runs.lines import Line, caution_lines, genome_line, print_lines
from dnamamba.runs.progress import job_bar, si

if TYPE_CHECKING:
    import polars

LETTERS = "ACGT"


class Saturation(NamedTuple):
    """ln p(change) − ln p(reference) of every single-base change of a region, in nats.

    The arrays are (positions, 4) float32, columns A, C, G, T of the forward strand; 0 for the reference base itself,
    NaN at N and for a base that a strand begins with.
    """

    region: Interval
    tokens: np.ndarray
    """(positions,) uint8, the reference"""
    llr: np.ndarray
    """Mean of both strands"""
    llr_forward: np.ndarray
    llr_reverse: np.ndarray
    scores: Scores
    """As the plan gives them, three changes a base"""


def mutagenesis(settings: MutagenesisSettings) -> Saturation:
    """Computes and writes as the settings say. Raises `InputError` for whatever the user can fix."""
    formats = check_settings(settings)
    paths = {kind: settings.out.with_name(f"{settings.out.name}.{kind}") for kind in formats}
    card = provenance_file(settings.out)
    refuse_existing([*paths.values(), card], settings.overwrite)
    with job_bar("reading the genome", "B") as progress:
        store = open_for(
            settings.genome, settings.store, lambda genome: parse_region(settings.region, genome).length, progress
        )
    region = parse_region(settings.region, store)
    if store.n_count(region.contig, region.start, region.end) == region.length:
        raise InputError(f"--region: {settings.region} holds no A, C, G or T to change; choose one with bases")
    inference = load_for_inference(settings.checkpoint, settings.accelerator, settings.precision)
    plan = plan_for(
        inference,
        context=settings.context,
        suffix=settings.suffix,
        state_every=settings.state_every,
        batch_tokens=settings.batch_tokens,
        check=settings.check,
    )
    print_lines(_header(settings, inference, store, region, plan))
    began = time.perf_counter()
    with job_bar("mutagenesis", "changes, each strand counted") as report:
        found = saturate(inference, store, region, plan, report)
    seconds = time.perf_counter() - began
    with whole_files([card, *paths.values()], settings.overwrite) as (card_name, *partials):
        write(found, dict(zip(paths, partials, strict=True)))
        write_provenance(card_name, scoring_provenance(settings, inference, store, plan))
    print_lines(_summary(found, plan, seconds, paths))
    return found


def saturate(
    inference: Inference, store: GenomeView, region: Interval, plan: Plan, progress: AllelesScored | None = None
) -> Saturation:
    """Every change of a region. The values are those that the plan gives the same variants in a VCF."""
    tokens = store.read(region.contig, region.start, region.end) & TOKEN_BITS
    index = next(index for index, contig in enumerate(store.contigs) if contig.name == region.contig)
    alleles, offset, base = all_changes(tokens, index, region.start)
    scores = plan.score(inference, store, alleles, progress)
    matrices = []
    for strand in (scores.forward, scores.reverse):
        matrix = np.full((tokens.size, BASES), np.nan, np.float32)
        matrix[offset, base] = strand.llr
        # A base is itself as likely as itself, where its changes have a score.
        known = np.flatnonzero((~np.isnan(matrix)).any(1))
        matrix[known, tokens[known]] = 0.0
        matrices.append(matrix)
    forward, reverse = matrices
    return Saturation(region, tokens, (forward + reverse) / 2, forward, reverse, scores)


def all_changes(tokens: np.ndarray, contig: int, start: int) -> tuple[Alleles, np.ndarray, np.ndarray]:
    """The three other bases at each base of a region, with their positions in it and their tokens, (alleles,) int64."""
    offset, base = np.nonzero((tokens[:, None] < BASES) & (tokens[:, None] != np.arange(BASES)))
    count = offset.size
    alleles = Alleles(
        first=np.arange(count + 1),
        contig=np.full(count, contig, np.int32),
        start=start + offset,
        ref_length=np.ones(count, np.int64),
        alt=[LETTERS[token] for token in base.tolist()],
        reason=np.zeros(count, np.uint8),
    )
    return alleles, offset, base


def saturation_table(found: Saturation) -> "polars.DataFrame":
    """A row a base: contig, position (0-based), ref, then llr, llr_forward and llr_reverse of each base (fp32,
    nats)."""
    import polars

    region = found.region
    matrices = {"llr": found.llr, "llr_forward": found.llr_forward, "llr_reverse": found.llr_reverse}
    columns = {
        f"{name}_{letter}": polars.Series(matrix[:, base], dtype=polars.Float32)
        for name, matrix in matrices.items()
        for base, letter in enumerate(LETTERS)
    }
    return polars.DataFrame(
        {
            "contig": polars.repeat(region.contig, region.length, dtype=polars.String, eager=True),
            "position": np.arange(region.start, region.end, dtype=np.int64),
            "ref": polars.Series(list(decode(found.tokens)), dtype=polars.String),
            **columns,
        }
    ).with_columns(polars.col(*columns).fill_nan(None))


def write(found: Saturation, paths: dict[str, Path]) -> None:
    """The files of `paths`, by format; those that exist are replaced."""
    region = found.region
    sequence = decode(found.tokens)
    matrices = {"llr": found.llr, "llr_forward": found.llr_forward, "llr_reverse": found.llr_reverse}
    if "npz" in paths:
        interval = {"contig": np.array(region.contig), "start": np.array(region.start), "sequence": np.array(sequence)}
        write_arrays({**interval, **matrices}, paths["npz"], overwrite=True)
    if tables := [paths[kind] for kind in ("parquet", "tsv") if kind in paths]:
        table = saturation_table(found)
        for path in tables:
            write_table(table, path, overwrite=True)
    if "png" in paths:
        plot_mutagenesis(saturation_table(found), paths["png"])


def check_settings(settings: MutagenesisSettings) -> list[str]:
    """The formats; `InputError` for what can be refused before anything is read."""
    if not settings.genome:
        raise InputError("--genome: give the FASTA file that the region is of")
    formats = [word for text in settings.format or ["parquet,npz,png"] for word in text.replace(",", " ").split()]
    for word in formats:
        if word not in FORMATS:
            raise InputError(f"--format: unknown {word!r}, choose among {', '.join(FORMATS)}")
    if not formats:
        raise InputError(f"--format: nothing is chosen; choose among {', '.join(FORMATS)}")
    if {"parquet", "tsv", "png"} & {*formats}:
        refuse_missing_library("polars", "--format parquet, tsv and png")
    return formats


def _header(
    settings: MutagenesisSettings, inference: Inference, store: GenomeView, region: Interval, plan: Plan
) -> list[Line]:
    return [
        *inference.header(),
        genome_line(settings.genome, store),
        ("contigs", store.names.matched()),
        ("region", f"{region.contig}:{region.start + 1:,}-{region.end:,}, {region.length:,} bases"),
        *plan.lines(),
        ("to run", f"about {si(plan.bases_of_region(region.length))}b: 3 changes a base, on both strands"),
        *caution_lines(inference, store, plan.context),
    ]


def _summary(found: Saturation, plan: Plan, seconds: float, paths: dict[str, Path]) -> list[Line]:
    tokens = found.scores.tokens
    missing = int(np.isnan(found.llr).all(1).sum())
    return [
        ("scored", f"{3 * (found.tokens.size - missing):,} changes on both strands in {seconds:.1f} s"),
        ("missing", f"{missing:,} positions: N, or where a strand begins" if missing else ""),
        ("bases run", plan.describe_run(tokens) if tokens.tiles else ""),
        ("--suffix", describe_truncation(found.scores.truncation)),
        ("lowest", _lowest(found)),
        ("written", ", ".join(map(str, paths.values()))),
    ]


def _lowest(found: Saturation, count: int = 3) -> str:
    """The least likely changes, as HGVS would write them on the contig."""
    filled = np.where(np.isnan(found.llr), np.inf, found.llr)
    shown = []
    for flat in np.argsort(filled, axis=None)[:count].tolist():
        offset, base = divmod(flat, BASES)
        if np.isfinite(filled[offset, base]):
            change = f"{LETTERS[found.tokens[offset]]}>{LETTERS[base]}"
            shown.append(f"{found.region.contig}:{found.region.start + offset + 1}{change} {filled[offset, base]:.2f}")
    return ", ".join(shown)
