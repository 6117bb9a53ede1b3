"""Parquet whose pages are not as its footer says."""

import io
import struct
from pathlib import Path

import polars
import pytest

from dnamamba.errors import InputError
from dnamamba.parquet import Damage, check_values, read_groups
from dnamamba.tables import read_table, table_rows

FIXTURE = Path(__file__).parent / "fixtures/page_checksums.parquet"
"""Four rows of name, sequence, label and score, not compressed, as pyarrow 26 writes them with write_page_checksum"""


def file_of(table, **options):
    file = io.BytesIO()
    table.write_parquet(file, **options)
    return file.getvalue()


def refused(tmp_path, data):
    path = tmp_path / "x.parquet"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: not readable as Parquet, it is damaged (")
    assert str(caught.value).endswith("); copy or make it again")
    return str(caught.value)


def test_values_are_within_what_the_footer_says(tmp_path):
    data = file_of(polars.DataFrame({"x": [1.5, -2.25, 8.0]}), compression="uncompressed")
    page = struct.pack("<3d", 1.5, -2.25, 8.0)
    assert data.count(page) == 1
    message = refused(tmp_path, data.replace(page, struct.pack("<3d", 1.5, 2.25, 8.0)))
    assert "the least value of column 'x' is 1.5, by its statistics -2.25" in message
    message = refused(tmp_path, data.replace(page, struct.pack("<3d", 1.5, -2.25, 9.0)))
    assert "the greatest value of column 'x' is 9.0, by its statistics 8.0" in message
    within = data.replace(page, struct.pack("<3d", 3.5, -2.25, 8.0))  # beyond any reader
    (tmp_path / "x.parquet").write_bytes(within)
    assert read_table(tmp_path / "x.parquet")["x"].to_list() == [3.5, -2.25, 8.0]


def test_every_row_group_has_statistics_of_its_own(tmp_path):
    table = polars.DataFrame({"x": range(10)})
    groups = read_groups(io.BytesIO(file_of(table, row_group_size=4)))
    assert [group.rows for group in groups] == [4, 4, 2]
    check_values(table, groups)
    with pytest.raises(Damage, match="the greatest value of column 'x' is 9, by its statistics 7"):
        check_values(table.with_columns(x=polars.Series([*range(7), 9, 8, 9])), groups)
    with pytest.raises(Damage, match="column 'x' has 1 nulls, by its statistics 0"):
        check_values(table.with_columns(x=polars.Series([*range(9), None])), groups)
    with pytest.raises(Damage, match="11 rows, where its footer has 10"):
        check_values(polars.DataFrame({"x": [*range(10), 9]}), groups)


def test_every_bit_of_a_page_is_covered_by_its_checksum(tmp_path):
    data = FIXTURE.read_bytes()
    (tmp_path / "x.parquet").write_bytes(data)
    assert table_rows(tmp_path / "x.parquet")[0] == ["name", "sequence", "label", "score"]
    at = data.index(struct.pack("<d", 0.5))  # between the least and the greatest
    for bit in range(64):
        byte = at + bit // 8
        assert "the checksum of the page at byte" in refused(
            tmp_path, data[:byte] + bytes([data[byte] ^ 1 << bit % 8]) + data[byte + 1 :]
        )


def test_whole_files_of_all_types_are_read(tmp_path):
    """NaN, zeros of both signs, texts that writers cut in statistics, and columns without any value."""
    import datetime

    table = polars.DataFrame(
        {
            "nan": [float("nan"), 1.0, -1.0],
            "only_nan": [float("nan")] * 3,
            "zeros": [0.0, -0.0, 0.0],
            "long": ["Z" * 5000, "\U0010ffff" * 90, ""],
            "none": polars.Series([None] * 3, dtype=polars.String),
            "small": polars.Series([-128, 127, None], dtype=polars.Int8),
            "large": polars.Series([2**64 - 1, 0, 2**63], dtype=polars.UInt64),
            "u32": polars.Series([2**32 - 1, 0, 5], dtype=polars.UInt32),
            "flags": [True, None, False],
            "bytes": [b"\xff\xfe", b"", None],
            "kind": polars.Series(["b", "a", "b"], dtype=polars.Enum(["b", "a"])),
            "labels": [[0, 1], [], None],
            "vector": polars.Series([[0.5, 1.5]] * 3, dtype=polars.Array(polars.Float32, 2)),
            "nested": [{"a": 1}, {"a": None}, {"a": 3}],
            "day": [datetime.date(2026, 11, 29), None, datetime.date(1970, 1, 1)],
        }
    )
    path = tmp_path / "x.parquet"
    for compression in ("zstd", "uncompressed", "snappy"):
        for rows in (table, table[:0], table[:1]):
            rows.write_parquet(path, compression=compression, row_group_size=2, statistics="full")
            assert read_table(path).equals(rows, null_equal=True)


def test_texts_are_not_shorter_than_their_bound(tmp_path):
    """A bound is a value or the start of one; the greatest is then the next text of its length."""
    table = polars.DataFrame({"x": ["ACGT", "acgtn"]})
    groups = read_groups(io.BytesIO(file_of(table)))
    for bound in (b"acgtn", b"acgu", b"b"):
        groups[0].chunks[0].statistics[5] = bound
        check_values(table, groups)
    for bound in (b"acgtnn", b"acg", b"acgtm"):
        groups[0].chunks[0].statistics[5] = bound
        with pytest.raises(Damage, match="the greatest value of column 'x' is 'acgtn'"):
            check_values(table, groups)
