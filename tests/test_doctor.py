"""`dnamamba doctor`: the report, whole and damaged stores."""

import numpy as np
import pytest

from dnamamba import __version__, cli, doctor, info
from dnamamba.genome.store import TokenStore, open_genome


@pytest.fixture
def store(tmp_path):
    fasta = tmp_path / "small.fa"
    bases = np.array(list("ACGT"))[np.random.default_rng(0).integers(0, 4, 5000)]
    fasta.write_text(">one\n" + "".join(bases) + "\n")
    return open_genome([fasta]).path


def test_report_names_versions_devices_and_kernels(capsys):
    assert cli.run(doctor.main, []) == 0
    out = capsys.readouterr().out
    assert f"dnamamba      {__version__}" in out
    for word in ("torch", "numpy", "cpu", "kernels"):
        assert word in out


def test_a_package_that_is_missing_is_said_so(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    assert doctor.describe_versions()[-1] == "no-such-package not installed"


def test_whole_store(store, capsys):
    doctor.verify_stores([store])
    assert capsys.readouterr().out == f"{store}: whole, 5,000 bases\n"


def test_damaged_store_ends_with_exit_code_2_after_the_others_were_checked(store, tmp_path, capsys):
    import shutil

    damaged = tmp_path / "damaged.dnamamba"
    shutil.copytree(store, damaged)
    tokens = max(damaged.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(tokens.read_bytes())
    content[-1000] ^= 1
    tokens.write_bytes(content)
    assert cli.run(lambda _: doctor.verify_stores([damaged, store])) == 2
    out, err = capsys.readouterr()
    assert out == f"{store}: whole, 5,000 bases\n"
    assert err.startswith(f"error: {damaged}")
    assert err.count("\n") == 1


def test_something_else_than_a_store(tmp_path, capsys):
    assert cli.run(lambda _: doctor.verify_stores([tmp_path])) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_info_of_a_store(store, capsys):
    assert cli.run(info.main, [str(store)]) == 0
    out = capsys.readouterr().out
    assert "5,000 bases in 1 contigs: 0 N, 0 soft-masked, 0 other codes read as N" in out
    assert f"fingerprint  {TokenStore(store).fingerprint}" in out
    (store / "index.json").write_bytes((store / "index.json").read_bytes().replace(b"5000", b"5001"))
    assert cli.run(info.main, [str(store)]) == 2
    assert "index.json: damaged (its checksum is another)" in capsys.readouterr().err
