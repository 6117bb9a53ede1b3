"""bigWig files as two independent readers see them."""

import numpy as np
import pybigtools
import pyBigWig
import pytest

from dnamamba.pictures import bigwig
from dnamamba.pictures.bigwig import BINS, BigWigWriter


def write(path, lengths, data, step):
    """`data`: contig -> (length,) with NaN where there is no value; given `step` bases at a time."""
    writer = BigWigWriter(path, lengths)
    for name in sorted(data):
        for start in range(0, data[name].size, step):
            values = data[name][start : start + step]
            there = ~np.isnan(values)
            writer.add(name, start + np.flatnonzero(there), values[there])
    writer.close()


def random_values(length, seed, gaps):
    rng = np.random.default_rng(seed)
    values = rng.normal(-1, 1, length).astype(np.float32)
    for start in rng.integers(0, length, gaps):
        values[start : start + int(rng.integers(1, 1 + length // 20))] = np.nan
    return values


@pytest.fixture(scope="module")
def data():
    return {
        "chr10": random_values(30_011, 1, 5),
        "chr2": random_values(150_000, 2, 40),
        "chr2_x": np.full(70, np.nan, np.float32),
        "chrM": random_values(3, 3, 0),
    }


@pytest.fixture(params=[1 << 20, 5000, 77])
def path(request, data, tmp_path, monkeypatch):
    monkeypatch.setattr(bigwig, "BLOCK_SIZE", 4)  # trees of many levels
    monkeypatch.setattr(bigwig, "SECTION_ITEMS", 700)
    monkeypatch.setattr(bigwig, "ZOOM_ITEMS", 16)
    write(tmp_path / "x.bw", {name: values.size for name, values in data.items()}, data, request.param)
    return tmp_path / "x.bw"


def test_every_value_is_read_back(path, data):
    ours, theirs = pyBigWig.open(str(path)), pybigtools.open(str(path))
    lengths = {name: values.size for name, values in data.items()}
    assert ours.chroms() == lengths and theirs.chroms() == lengths
    rng = np.random.default_rng(0)
    for name, values in data.items():
        for _ in range(20):
            start, end = np.sort(rng.choice(values.size + 1, 2, replace=False)).tolist()
            np.testing.assert_array_equal(ours.values(name, start, end, numpy=True), values[start:end])
            read = theirs.values(name, start, end, fillna=np.nan)
            np.testing.assert_array_equal(read.astype(np.float32), values[start:end])


def test_zoom_levels_and_summary(path, data):
    theirs = pybigtools.open(str(path))
    everything = np.concatenate(list(data.values()))
    there = everything[~np.isnan(everything)].astype(np.float64)
    summary = theirs.info()["summary"]
    assert summary["basesCovered"] == there.size
    assert summary["min"] == there.min() and summary["max"] == there.max()
    assert summary["sum"] == pytest.approx(there.sum()) and summary["std"] == pytest.approx(there.std(ddof=1), rel=1e-4)
    assert [zoom for zoom in BINS if zoom < 150_000] == [64, 256, 1024, 4096, 16384, 65536]
    for zoom in (64, 256, 1024, 4096, 16384, 65536):
        for name, values in data.items():
            count = 0
            last = 0
            for start, end, record in theirs.zoom_records(zoom, name):
                assert start >= last and end - start <= zoom and start // zoom == (end - 1) // zoom
                last = end
                part = values[start:end]
                part = part[~np.isnan(part)].astype(np.float64)
                assert record["bases_covered"] == part.size
                assert record["min_val"] == part.min() and record["max_val"] == part.max()
                assert record["sum"] == pytest.approx(part.sum(), rel=1e-5, abs=1e-5)
                assert record["sum_squares"] == pytest.approx((part**2).sum(), rel=1e-5)
                count += record["bases_covered"]
            assert count == (~np.isnan(values)).sum()


def test_means_from_zoom_levels(path, data):
    means = pyBigWig.open(str(path)).stats("chr2", 0, 150_000, type="mean", nBins=3)
    expected = [np.nanmean(part.astype(np.float64)) for part in np.split(data["chr2"], 3)]
    np.testing.assert_allclose(means, expected, atol=0.02)


def test_many_contigs(tmp_path):
    rng = np.random.default_rng(0)
    data = {f"scaffold_{n}": rng.random(int(rng.integers(1, 30))).astype(np.float32) for n in range(1500)}
    write(tmp_path / "x.bw", {name: values.size for name, values in data.items()}, data, 100)
    theirs, others = pybigtools.open(str(tmp_path / "x.bw")), pyBigWig.open(str(tmp_path / "x.bw"))
    lengths = {name: values.size for name, values in data.items()}
    assert theirs.chroms() == lengths and others.chroms() == lengths
    for name in list(data)[::97]:
        np.testing.assert_array_equal(others.values(name, 0, lengths[name], numpy=True), data[name])
        read = theirs.values(name, 0, lengths[name], fillna=np.nan)
        np.testing.assert_array_equal(read.astype(np.float32), data[name])


def test_a_file_without_values_is_a_bigwig(tmp_path):
    write(tmp_path / "x.bw", {"chr1": 100}, {}, 1)
    reader = pybigtools.open(str(tmp_path / "x.bw"))
    assert reader.chroms() == {"chr1": 100}
    assert np.isnan(reader.values("chr1", 0, 100, fillna=np.nan)).all()


def test_nothing_is_left_in_the_folder_but_the_file(tmp_path):
    writer = BigWigWriter(tmp_path / "x.bw", {"chr1": 100_000})
    writer.add("chr1", np.arange(90_000), np.zeros(90_000, np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["x.bw"]
    writer.abandon()
