"""The demo genome: there, whole, and what data/ says about it."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from dnamamba import demo

ROOT = Path(__file__).resolve().parent.parent
RECORD = json.loads((ROOT / "data" / "demo_genome.json").read_text())


def test_the_shipped_file_is_the_recorded_one():
    compressed = demo.genome_path().read_bytes()
    assert (ROOT / RECORD["path"]).name == demo.FILE_NAME
    assert len(compressed) == RECORD["bytes"] < 2_000_000
    assert hashlib.sha256(compressed).hexdigest() == RECORD["sha256"]


def test_it_holds_one_complete_chromosome_of_bases_alone():
    header, *lines = gzip.decompress(demo.genome_path().read_bytes()).splitlines()
    bases = b"".join(lines)
    assert header.decode() == f">{RECORD['contig']}"
    assert {base: bases.count(base.encode()) for base in "ACGT"} == RECORD["bases"]
    assert len(bases) == sum(RECORD["bases"].values()) == 4_639_675
    assert hashlib.sha256(bases).hexdigest() == RECORD["bases_sha256"]


def test_data_readme_quotes_the_same_sums():
    reported = (ROOT / "data" / "README.md").read_text()
    source = RECORD["source"]
    for value in (RECORD["sha256"], RECORD["bases_sha256"], source["deb_sha256"], source["version"], source["member"]):
        assert value in reported


def test_an_installation_without_it_says_so(monkeypatch):
    monkeypatch.setattr(demo, "FILE_NAME", "lost.fa.gz")
    with pytest.raises(FileNotFoundError, match="reinstall dnamamba"):
        demo.genome_path()
