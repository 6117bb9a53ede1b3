"""The job behind `python -m dnamamba.embed`: read, embed, write, and say what was done."""

import os
import shutil
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dnamamba.alphabet import TOKEN_TO_ASCII
from dnamamba.analysis.embedding.compute import Pool, check_pool, embed_sequences, position_offsets
from dnamamba.analysis.embedding.settings import EmbedSettings
from dnamamba.errors import InputError
from dnamamba.genome.sequences import NamedSequence, open_for_sequences, read_sequences
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference, load_for_inference
from dnamamba.outputs import refuse_existing, refuse_missing_library, scratch_folder, whole_file
from dnamamba.runs.lines import Line, genome_line, print_lines
from dnamamba.runs.progress import by_count, job_bar, si

if TYPE_CHECKING:
    import polars

SUFFIXES = (".parquet", ".npz")
PART = 1 << 16
"""Rows that are made into Parquet at a time"""


def embed(settings: EmbedSettings) -> None:
    """Embeds what the settings say. Raises `InputError` for whatever the user can fix."""
    _check_settings(settings)
    store = None
    if settings.genome:
        with job_bar("reading the genome", "B") as progress:
            store = open_for_sequences(settings.input, settings.genome, settings.store, progress)
    sequences = [sequence for path in settings.input for sequence in read_sequences(path, store)]
    inference = load_for_inference(settings.checkpoint, settings.accelerator, settings.precision)
    check_pool(inference.model, settings.pool)
    print_lines(_header(settings, inference, store, sequences))

    width = inference.model.config.d_model
    bases = sum(map(len, sequences))
    rows = bases if settings.pool == "position" else len(sequences)
    passes = 2 if settings.both_strands else 1
    # In a file and not in memory: an embedding a position is a thousand bytes a base.
    with whole_file(settings.out, settings.overwrite) as partial, scratch_folder(partial) as folder:
        array = _array_on_disk(folder / "embedding.npy", (rows, width))
        began = time.perf_counter()
        with job_bar("embedding", "b") as report:
            embed_sequences(
                inference,
                sequences,
                settings.pool,
                array,
                batch_tokens=settings.batch_tokens or inference.compute.micro_tokens,
                both_strands=settings.both_strands,
                progress=by_count(report, passes * bases),
            )
        seconds = time.perf_counter() - began
        if settings.out.suffix == ".npz":
            _write_npz(folder, array, sequences, settings.pool, partial)
        else:
            _write_parquet(folder, array, sequences, settings.pool, partial)
        del array
    print(f"  embedded  {si(passes * bases)}b in {seconds:.1f} s, {si(passes * bases / seconds)}b/s")
    print(f"   written  {settings.out}: {rows:,} embeddings of {width} numbers")


def _array_on_disk(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A new fp32 array in a file. Raises `OSError` where the disk has no space for it."""
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        # All its space at once: a disk that fills up under a mapped file ends the process by SIGBUS.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _write_npz(folder: Path, array: np.ndarray, sequences: Sequence[NamedSequence], pool: Pool, path: Path) -> None:
    """name, contig, start, end, strand of the sequences; embedding; offset of each sequence's first position."""
    array.flush()  # type: ignore[attr-defined]
    columns: dict[str, Any] = {name: np.array(values) for name, values in _columns(sequences).items()}
    if pool == "position":
        columns["offset"] = position_offsets(sequences)
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values)
    # Not compressed: numbers like these hardly shrink.
    with zipfile.ZipFile(path, "w") as archive:
        for name in [*columns, "embedding"]:
            with (
                (folder / f"{name}.npy").open("rb") as source,
                archive.open(f"{name}.npy", "w", force_zip64=True) as to,
            ):
                shutil.copyfileobj(source, to, 16 << 20)


def _write_parquet(folder: Path, array: np.ndarray, sequences: Sequence[NamedSequence], pool: Pool, path: Path) -> None:
    """A row a sequence, or a row a position; `embedding` is an array of d_model fp32."""
    import polars

    kind = polars.Array(polars.Float32, array.shape[1])
    table = polars.DataFrame(_columns(sequences))
    parts = []
    for first in range(0, len(array), PART):
        last = min(first + PART, len(array))
        rows = table[first:last] if pool != "position" else _positions(table, sequences, first, last)
        part = rows.with_columns(polars.Series("embedding", array[first:last], dtype=kind))
        parts.append(folder / f"{first:012d}.parquet")
        part.write_parquet(parts[-1], compression="lz4")
    polars.scan_parquet(parts, glob=False).sink_parquet(path)  # polars appends to no Parquet file


def _positions(
    table: "polars.DataFrame", sequences: Sequence[NamedSequence], first: int, last: int
) -> "polars.DataFrame":
    """name, contig, strand, position (0-based, of the forward strand) and base (of the strand that is read) of rows."""
    import polars

    offsets = position_offsets(sequences)
    number = np.searchsorted(offsets, np.arange(first, last), side="right") - 1
    position, letters = [], []
    for index in range(int(number[0]), int(number[-1]) + 1):
        sequence, offset = sequences[index], int(offsets[index])
        here = slice(max(first - offset, 0), last - offset)
        position.append(np.arange(sequence.start, sequence.end)[:: -1 if sequence.reverse else 1][here])
        letters.append(TOKEN_TO_ASCII[sequence.tokens()[here]])
    return table[number].select(
        "name",
        "contig",
        "strand",
        polars.Series("position", np.concatenate(position), dtype=polars.Int64),
        polars.Series("base", list(np.concatenate(letters).tobytes().decode("ascii")), dtype=polars.String),
    )


def _columns(sequences: Sequence[NamedSequence]) -> dict[str, list[Any]]:
    return {
        "name": [sequence.name for sequence in sequences],
        "contig": [sequence.contig for sequence in sequences],
        "start": [sequence.start for sequence in sequences],
        "end": [sequence.end for sequence in sequences],
        "strand": [sequence.strand for sequence in sequences],
    }


def _check_settings(settings: EmbedSettings) -> None:
    """What can be refused before anything is read."""
    if not settings.input:
        raise InputError("--input: give FASTA files, or BED files and their --genome")
    if settings.out.suffix not in SUFFIXES:
        raise InputError(f"{settings.out}: unknown kind of file {settings.out.suffix!r}; expected .parquet or .npz")
    if settings.out.suffix == ".parquet":
        refuse_missing_library("polars", str(settings.out))
    refuse_existing([settings.out], settings.overwrite)


def _header(
    settings: EmbedSettings, inference: Inference, store: GenomeView | None, sequences: Sequence[NamedSequence]
) -> list[Line]:
    lengths = [len(sequence) for sequence in sequences]
    strands = "mean of both strands" if settings.both_strands else "the strand that is given"
    trained = inference.trained_length
    is_longer = trained is not None and max(lengths) > trained
    note = f"some sequences are longer than the {trained:,} bases that the model was trained at" if is_longer else ""
    return [
        *inference.header(),
        *([] if store is None else [genome_line(settings.genome or [], store), ("contigs", store.names.matched())]),
        (
            "input",
            f"{', '.join(map(str, settings.input))}: {len(lengths):,} sequences of {min(lengths):,} to "
            f"{max(lengths):,} bases",
        ),
        ("pool", f"{settings.pool}, {strands}"),
        ("note", note),
    ]
