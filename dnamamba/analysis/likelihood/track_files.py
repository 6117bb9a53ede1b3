"""Files of tracks, written contig by contig in constant memory: bigWig, bedGraph, Parquet, npz.

Each `open_*` gives a function that is called with every contig's `ContigTracks` in the files' order. Polars is
imported by the formats that need it.
"""

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dnamamba.alphabet import TOKEN_TO_ASCII
from dnamamba.analysis.likelihood.contig_tracks import Column, ContigTracks
from dnamamba.outputs import bgzip_file, refuse_missing_library, scratch_folder
from dnamamba.pictures.bigwig import BigWigWriter

if TYPE_CHECKING:
    import polars

Write = Callable[[ContigTracks], None]
Lengths = dict[str, int]
"""Contig -> length, in the order in which they will be written"""

DECIMALS = 5
"""Of bedGraph's values; the other formats hold fp32."""


@contextmanager
def open_bigwig(path: Path, column: Column, lengths: Lengths) -> Iterator[Write]:
    """A column as bigWig, a value a base."""
    file = BigWigWriter(path, lengths)
    try:

        def write(contig: ContigTracks) -> None:
            for block in contig.blocks():
                values = contig.values(column, block)
                there = ~np.isnan(values)
                file.add(contig.name, contig.positions(block)[there], values[there])

        yield write
        file.close()
    finally:
        file.abandon()


@contextmanager
def open_bedgraph(path: Path, column: Column) -> Iterator[Write]:
    """A column as bedGraph text, compressed with bgzip (tabix can index it); equal neighbours share a line."""
    import polars as pl

    with bgzip_file(path) as append:

        def write(contig: ContigTracks) -> None:
            for block in contig.blocks():
                values = contig.values(column, block)
                there = ~np.isnan(values)
                values, positions = np.round(values[there].astype(np.float64), DECIMALS), contig.positions(block)[there]
                if not values.size:
                    continue
                begins = np.flatnonzero(np.concatenate(([True], (np.diff(positions) != 1) | (np.diff(values) != 0))))
                ends = np.concatenate((begins[1:], [values.size])) - 1
                starts = pl.Series("start", positions[begins])
                table = pl.DataFrame(
                    [
                        pl.repeat(contig.name, starts.len(), eager=True).alias("contig"),
                        starts,
                        pl.Series("end", positions[ends] + 1),
                        pl.Series("value", values[begins]),
                    ]
                )
                append(table.write_csv(separator="\t", include_header=False, quote_style="never").encode())

        yield write


@contextmanager
def open_npz(path: Path, columns: Sequence[Column], lengths: Lengths) -> Iterator[Write]:
    """All columns as npz: for each contig CONTIG/start and CONTIG/end (intervals, int64), and of the bases in them one
    after another CONTIG/tokens (uint8: A 0, C 1, G 2, T 3, N 4) and CONTIG/STRAND_TRACK (fp32). CONTIG is
    `member_name` of the contig."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def write(contig: ContigTracks) -> None:
            folder = member_name(contig.name)
            for name, pairs in (("start", contig.pairs[:, 0]), ("end", contig.pairs[:, 1])):
                _add_array(archive, f"{folder}/{name}", len(pairs), [pairs])
            blocks = list(contig.blocks())
            _add_array(archive, f"{folder}/tokens", contig.bases, map(contig.tokens, blocks))
            for column in columns:
                values = (contig.values(column, block) for block in blocks)
                _add_array(archive, f"{folder}/{column}", contig.bases, values)

        yield write


@contextmanager
def open_parquet(path: Path, columns: Sequence[Column], lengths: Lengths) -> Iterator[Write]:
    """All columns as Parquet, a row a base: contig, position (0-based), ref, then STRAND_TRACK."""
    import polars as pl

    schema = table_schema(columns, lengths)
    # In parts, which polars then joins by itself. It could also pull our tables, but Python called from its threads
    # while other threads wait for polars has ended in a deadlock.
    with scratch_folder(path) as folder:
        parts: list[Path] = []

        def write(contig: ContigTracks) -> None:
            for block in contig.blocks():
                parts.append(folder / f"{len(parts):09}.parquet")
                table_of(contig, block, columns, schema).write_parquet(parts[-1], compression="lz4")

        yield write
        pl.scan_parquet(parts, glob=False).sink_parquet(
            path, maintain_order=True, engine="streaming", row_group_size=1 << 18
        )


def table_schema(columns: Sequence[Column], contigs: Iterable[str]) -> "polars.Schema":
    """Of a table with a row a base: contig, position (0-based), ref, then STRAND_TRACK."""
    import polars as pl

    schema: dict[str, Any] = {
        "contig": pl.Enum(list(contigs)),
        "position": pl.Int64(),
        "ref": pl.Enum(["A", "C", "G", "T", "N"]),
    }
    return pl.Schema(schema | {str(column): pl.Float32() for column in columns})


def table_of(
    contig: ContigTracks, block: slice, columns: Sequence[Column], schema: "polars.Schema"
) -> "polars.DataFrame":
    """Some bases of a contig as a table; null where there is no value."""
    import polars as pl

    ref = TOKEN_TO_ASCII[contig.tokens(block)].view("S1").astype("U1")
    return pl.DataFrame(
        [
            pl.repeat(contig.name, block.stop - block.start, dtype=schema["contig"], eager=True).alias("contig"),
            pl.Series("position", contig.positions(block)),
            pl.Series("ref", ref, pl.String).cast(schema["ref"]),
            *(pl.Series(str(column), contig.values(column, block)).fill_nan(None) for column in columns),
        ]
    )


def open_files(
    prefix: Path, formats: Sequence[str], columns: Sequence[Column], lengths: Lengths
) -> list[tuple[Path, Callable[[Path], AbstractContextManager[Write]]]]:
    """Every file that a choice of formats means, and what opens it under a given (temporary) name."""
    files: list[tuple[Path, Callable[[Path], AbstractContextManager[Write]]]] = []
    for kind in formats:
        if kind == "bigwig":
            files += [(_name(prefix, c, ".bw"), lambda path, c=c: open_bigwig(path, c, lengths)) for c in columns]  # type: ignore[misc]
        elif kind == "bedgraph":
            files += [(_name(prefix, c, ".bedgraph.gz"), lambda path, c=c: open_bedgraph(path, c)) for c in columns]  # type: ignore[misc]
        elif kind == "parquet":
            files.append((_suffixed(prefix, ".parquet"), lambda path: open_parquet(path, columns, lengths)))
        else:
            files.append((_suffixed(prefix, ".npz"), lambda path: open_npz(path, columns, lengths)))
    return files


WRITTEN_BY_POLARS = ("bedgraph", "parquet")


def refuse_missing_libraries(formats: Sequence[str]) -> None:
    """Called before the long work begins. Raises `InputError` for a format whose library is missing."""
    for kind in formats:
        if kind in WRITTEN_BY_POLARS:
            refuse_missing_library("polars", f"--format {kind}")


def _name(prefix: Path, column: Column, suffix: str) -> Path:
    return _suffixed(prefix, f".{column}{suffix}")


def _suffixed(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def member_name(contig: str) -> str:
    """A contig's name as one part of a path: slashes, control characters and `%` percent-encoded, and what means a
    folder. So nothing is unpacked outside its folder, and no two contigs share a name."""
    name = re.sub(r"[%/\\\x00-\x1f\x7f]", lambda found: f"%{ord(found[0]):02X}", contig)
    return name.replace(".", "%2E") if name in (".", "..") else name


def _add_array(archive: zipfile.ZipFile, name: str, length: int, parts: Any) -> None:
    """An array as a member of an npz, from its parts one after another."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        is_first = True
        for part in parts:
            if is_first:
                header = {"descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False, "shape": (length,)}
                np.lib.format.write_array_header_2_0(member, header)
                is_first = False
            member.write(np.ascontiguousarray(part).data)
