"""The job behind `python -m dnamamba.likelihood`: contig by contig, compute both strands, then write every file."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from dnamamba.analysis.likelihood.compute import (
    BATCH_TOKENS,
    STRANDS,
    LikelihoodSums,
    Tiling,
    fill_tracks,
    spans_read,
    strands_to_read,
)
from dnamamba.analysis.likelihood.contig_tracks import Column, ContigTracks
from dnamamba.analysis.likelihood.masked_tiles import MaskedTiling, masking_differences
from dnamamba.analysis.likelihood.settings import LikelihoodSettings
from dnamamba.analysis.likelihood.shards import KeptContigs
from dnamamba.analysis.likelihood.strand_tiles import StrandTiling
from dnamamba.analysis.likelihood.strand_values import TRACKS
from dnamamba.analysis.likelihood.track_files import Write, open_files, refuse_missing_libraries
from dnamamba.errors import InputError
from dnamamba.genome.indexed import IndexedGenome, open_for
from dnamamba.genome.intervals import ByContig
from dnamamba.genome.regions import bases_of, merged_regions, read_regions
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference, load_for_inference
from dnamamba.inference.masked import mask_every_of
from dnamamba.inference.provenance import result_provenance
from dnamamba.inference.shards import Shard, made_with
from dnamamba.model.abilities import Ability, require
from dnamamba.outputs import provenance_file, refuse_existing, whole_files, write_provenance
from dnamamba.runs.lines import Line, caution_lines, genome_line, print_lines
from dnamamba.runs.progress import by_count, job_bar, si

MASK_EVERY = 16
"""Bases between masks by default: sparser than in training, at a sixteenth of the passes"""
MASKING_SAMPLE = 32
"""Bases that are also masked alone, to measure what masking several at once changes"""
FORMATS = ("bigwig", "bedgraph", "parquet", "npz")


class Choice(NamedTuple):
    """What to compute and write."""

    formats: tuple[str, ...]
    tracks: tuple[str, ...]
    strands: tuple[str, ...]

    @property
    def computed(self) -> tuple[str, ...]:
        """The strands that the model has to read."""
        return strands_to_read(self.strands)

    @property
    def columns(self) -> list[Column]:
        return [Column(strand, track) for strand in self.strands for track in self.tracks]


class Work(NamedTuple):
    """What a job computes, and with what."""

    settings: LikelihoodSettings
    choice: Choice
    inference: Inference
    store: GenomeView
    wanted: ByContig
    """Of all jobs that share the work"""
    tiling: Tiling
    tiles: dict[str, list[Any]]
    """By contig"""
    batch_tokens: int

    def made_by(self) -> dict[str, Any]:
        """All that a contig's values depend on."""
        return {
            **made_with(self.inference, self.store, self.settings.genome),
            "regions": {name: pairs.tolist() for name, pairs in self.wanted.items()},
            "tiling": [type(self.tiling).__name__, *self.tiling],
            "strands": self.choice.computed,
            "tracks": self.choice.tracks,
            "batch_tokens": self.batch_tokens,
        }


def run_likelihood(settings: LikelihoodSettings) -> None:
    """Computes and writes what the settings say. Raises `InputError` for whatever the user can fix."""
    choice = choose(settings)
    shard = None if settings.shard is None else Shard(settings.shard)
    if not settings.genome:
        raise InputError("--genome: give a FASTA file, GenBank file or token store")
    if not settings.out.name:
        raise InputError(f"--out: {settings.out} is no beginning of a file's name")
    card = provenance_file(settings.out)
    refuse_missing_libraries(choice.formats)
    planned = [path for path, _ in open_files(settings.out, choice.formats, choice.columns, {})]
    refuse_existing([*planned, card], settings.overwrite)

    with job_bar("reading the genome", "B") as progress:
        store = _open(settings, progress)
    merged = merged_regions(store, read_regions(store, settings.region, settings.regions, settings.contigs))
    wanted = dict(sorted(merged.items()))  # by name, the order in which UCSC's tools look contigs up in a bigWig
    inference = load_for_inference(settings.checkpoint, settings.accelerator, settings.precision)
    check_bases(store, wanted, at_ends=Ability.PREDICTS_MASKED_BASE in inference.model.abilities)
    tiling = tiling_for(inference, settings.context, settings.overlap, settings.mask_every)
    batch_tokens = settings.batch_tokens or BATCH_TOKENS[inference.device.type]
    lengths = {name: store.contig(name).length for name in wanted}
    tiles: dict[str, list[Any]] = {
        name: tiling.tiles(choice.computed, pairs, lengths[name]) for name, pairs in wanted.items()
    }
    work = Work(settings, choice, inference, store, wanted, tiling, tiles, batch_tokens)
    kept = KeptContigs(settings.out, work.made_by())
    sizes = {name: tiling.bases_read(tiles[name]) for name in wanted}
    here = list(wanted) if shard is None else shard.largest_first(sizes)
    there = {name for name in here if kept.holds(name)}
    to_read = sum(sizes[name] for name in here if name not in there)
    print_lines(_header(work, here, to_read, shard))
    print_lines([("computed", f"{len(there)} of {len(here)} contigs before, in {kept.folder}" if there else "")])

    if shard is not None:
        with job_bar("likelihood", "b") as report:
            advance = by_count(report, to_read)
            for name in wanted:
                if name in here and name not in there:
                    with _computed(work, name, advance) as (tracks, own, _):
                        kept.keep(tracks, own)
        print_lines([("written", f"{kept.folder}; when all shards are there, the same command without --shard")])
        return
    sums = LikelihoodSums()
    files = open_files(settings.out, choice.formats, choice.columns, lengths)
    with whole_files([card, *planned], settings.overwrite) as (card_name, *partials):
        names = [(partial, open_it) for partial, (_, open_it) in zip(partials, files, strict=True)]
        compute_seconds, write_seconds = _compute_and_write(work, names, sums, kept, to_read)
        write_provenance(card_name, _card(work, sums))
    kept.remove()
    speed = f"{si(to_read)}b in {compute_seconds:.1f} s, {si(to_read / compute_seconds)}b/s{_peak_memory(inference)}"
    bits = ", ".join(f"{strand} {value:.4f}" for strand, value in sums.bits_per_base().items())
    shown = ", ".join(str(path) for path in planned[:2])
    written = f"{len(planned)} files in {write_seconds:.1f} s: {shown}{', …' if planned[2:] else ''}"
    print_lines([("computed", speed), ("bits/base", bits), ("masks", sums.describe_masking()), ("written", written)])


def _open(settings: LikelihoodSettings, progress: Callable[[int, int], None]) -> TokenStore | IndexedGenome:
    """By its index if only some regions are wanted."""
    if not settings.region and settings.regions is None:
        return open_genome(settings.genome, settings.store, progress=progress)

    def bases(genome: GenomeView) -> int:
        return sum(interval.length for interval in read_regions(genome, settings.region, settings.regions))

    return open_for(settings.genome, settings.store, bases, progress)


def _compute_and_write(
    work: Work,
    names: Sequence[tuple[Path, Callable[[Path], AbstractContextManager[Write]]]],
    sums: LikelihoodSums,
    kept: KeptContigs,
    to_read: int,
) -> tuple[float, float]:
    """Contig by contig, those apart that are `kept`; seconds of computing and of writing."""
    compute_seconds = write_seconds = 0.0
    with contextlib.ExitStack() as writers, job_bar("likelihood", "b") as report:
        advance = by_count(report, to_read)
        writes = [writers.enter_context(open_it(name)) for name, open_it in names]
        for name in work.wanted:
            with _computed(work, name, advance, kept) as (tracks, own, seconds):
                sums.join(own)
                began = time.perf_counter()
                _write_all(tracks, writes)
                compute_seconds += seconds
                write_seconds += time.perf_counter() - began
        closing = time.perf_counter()
    return compute_seconds, write_seconds + time.perf_counter() - closing


@contextlib.contextmanager
def _computed(
    work: Work, name: str, advance: Callable[[int], None], kept: KeptContigs | None = None
) -> Iterator[tuple[ContigTracks, LikelihoodSums, float]]:
    """The tracks of a contig, their sums, and the seconds that they took; those that are `kept` already from there."""
    began = time.perf_counter()
    sums = LikelihoodSums()
    choice, inference, tiling, tiles, pairs = (
        work.choice,
        work.inference,
        work.tiling,
        work.tiles[name],
        work.wanted[name],
    )
    tokens = work.store.read_sparse(name, spans_read(tiles, pairs, work.store.contig(name).length))
    folder = work.settings.out.absolute().parent
    with ContigTracks(name, tokens, pairs, choice.computed, choice.tracks, folder) as tracks:
        if kept is not None and kept.holds(name):
            kept.restore(tracks, sums)
        else:
            fill_tracks(inference, tracks, tokens, tiling, tiles, work.batch_tokens, sums, advance)
            if isinstance(tiling, MaskedTiling) and tiling.mask_every is not None:
                share = -(-MASKING_SAMPLE // len(work.wanted))
                sums.masking.append(masking_differences(inference, tokens, tiles, tiling.mask_every, share))
        yield tracks, sums, time.perf_counter() - began


def _write_all(tracks: ContigTracks, writes: Sequence[Write]) -> None:
    """A contig into all files: a thread each, for most of the time goes into compression, which needs no lock."""
    with ThreadPoolExecutor(min(len(writes), os.cpu_count() or 1)) as pool:
        futures = [pool.submit(write, tracks) for write in writes]
        try:
            for future in futures:
                future.result()
        except BaseException:
            tracks.give_up()
            raise


def choose(settings: LikelihoodSettings) -> Choice:
    """Formats, tracks and strands in a fixed order. Raises `InputError` for one that is unknown."""
    return Choice(
        _among("format", settings.format or ["bigwig"], FORMATS),
        _among("tracks", settings.tracks or list(TRACKS), TRACKS),
        _among("strands", settings.strands or list(STRANDS), STRANDS),
    )


def tiling_for(
    inference: Inference,
    context: int | Literal["unlimited"] | None,
    overlap: int | None,
    mask_every: int | Literal["alone"] | None = None,
) -> Tiling:
    """Context, overlap and masks with their defaults. Raises `InputError` for values that do not go together."""
    require(inference.model, "likelihood --context unlimited" if context == "unlimited" else "likelihood")
    masks = Ability.PREDICTS_MASKED_BASE in inference.model.abilities
    if mask_every is not None and not masks:
        raise InputError("--mask_every: this model predicts the next base and masks none")
    every = mask_every_of(mask_every, MASK_EVERY)
    if context == "unlimited":
        if overlap is not None:
            raise InputError(
                "--overlap: whole contigs are read with --context unlimited, there are no tiles to overlap"
            )
        return StrandTiling(None, 0)
    context = inference.trained_length if context is None else context
    if context is None:
        unlimited = "" if masks else " or unlimited"
        raise InputError(
            f"{inference.checkpoint}: does not say what length it was trained at; give --context BASES{unlimited}"
        )
    if context < 1:
        raise InputError(f"--context: {context} is not possible, expected at least 1 base, or unlimited")
    most = (context - 1) // 2 if masks else context - 1
    overlap = min(context // 4 if masks else context // 2, most) if overlap is None else overlap
    if not 0 <= overlap <= most:
        below = "half of --context" if masks else "--context"
        raise InputError(f"--overlap: {overlap} is not possible, expected 0 to {most}, below {below}")
    if not masks:
        return StrandTiling(context, overlap)
    return MaskedTiling(context, overlap, every, inference.model.config.rc_equivariant)


def check_bases(store: GenomeView, wanted: ByContig, at_ends: bool = False) -> None:
    """Raises `InputError` where no wanted base can have a value on both strands; `at_ends`: those that a contig begins
    and ends with can."""
    for name, pairs in wanted.items():
        margin = 0 if at_ends else 1
        for start, end in np.clip(pairs, margin, store.contig(name).length - margin).tolist():
            if start < end and store.n_count(name, start, end) < end - start:
                return
    raise InputError("nothing to compute: the chosen regions have no base but N and contigs' ends")


def _among(flag: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    names = {name.strip() for text in given for name in text.split(",") if name.strip()}
    for name in sorted(names - set(known)):
        raise InputError(f"--{flag}: unknown {name!r}, expected one or several of {', '.join(known)}")
    if not names:
        raise InputError(f"--{flag}: expected one or several of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _header(work: Work, contigs: Sequence[str], to_read: int, shard: Shard | None) -> list[Line]:
    """`contigs`: those of this job."""
    wanted = [work.wanted[name] for name in contigs]
    regions = f"{si(sum(map(bases_of, wanted)))}b in {sum(map(len, wanted)):,} on {len(wanted):,} contigs"
    return [
        *work.inference.header(),
        genome_line(work.settings.genome, work.store),
        ("contigs", work.store.names.matched()),
        ("regions", f"{regions}, {si(to_read)}b to read"),
        ("context", _describe(work.tiling)),
        ("shard", "" if shard is None else str(shard)),
        *caution_lines(work.inference, work.store, work.tiling.context),
    ]


def _describe(tiling: Tiling) -> str:
    if isinstance(tiling, MaskedTiling):
        masks = "each masked alone" if tiling.mask_every is None else f"every {tiling.mask_every}th masked in a pass"
        return f"tiles of {tiling.context:,} bases, {tiling.overlap:,} at least on both sides of a base; {masks}"
    if tiling.context is None:
        return "unlimited: each strand from its start, the state handed on"
    return f"tiles of {tiling.context:,} bases, {tiling.overlap:,} at least before a base"


def _peak_memory(inference: Inference) -> str:
    if inference.device.type != "cuda":
        return ""
    return f", {torch.cuda.max_memory_allocated(inference.device) / 2**30:.2f} GiB at most"


def _card(work: Work, sums: LikelihoodSums) -> dict[str, Any]:
    """What the tracks are and where they come from: the formats themselves have no field for it."""
    choice, inference, tiling = work.choice, work.inference, work.tiling
    return {
        **result_provenance(inference, work.settings.genome, work.store),
        "strands": choice.strands,
        "tracks": choice.tracks,
        "units": "log_likelihood and entropy in nats; probabilities in letters of the forward strand",
        "context": "unlimited" if tiling.context is None else tiling.context,
        "overlap": tiling.overlap,
        "precision": inference.precision,
        **({"mask_every": tiling.mask_every or "alone"} if isinstance(tiling, MaskedTiling) else {}),
        **({"masking_difference_nats": sums.masking_difference} if sums.masking_difference is not None else {}),
        "bits_per_base": sums.bits_per_base(),
        "bases": sums.bases,
    }
