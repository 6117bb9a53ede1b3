"""`dnamamba doctor`: the report, kernels that are wrong, what is missing, whole and damaged stores."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from dnamamba import __version__, cli, doctor, info
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.model import kernels
from dnamamba_kernels import backends, self_test, speed

ROOT = Path(__file__).resolve().parent.parent
OPERATORS = ["scan", "conv", "norm", "block", "ssd", "gated_norm", "rotary"]


@pytest.fixture
def store(tmp_path):
    fasta = tmp_path / "small.fa"
    bases = np.array(list("ACGT"))[np.random.default_rng(0).integers(0, 4, 5000)]
    fasta.write_text(">one\n" + "".join(bases) + "\n")
    return open_genome([fasta]).path


class Wrong:
    """A backend with one result of one of its passes changed."""

    def __init__(self, backend, method, number, change):
        self.backend, self.method, self.number, self.change = backend, method, number, change

    def __getattr__(self, name):
        found = getattr(self.backend, name)
        return self.changed(found) if name == self.method else found

    def changed(self, compute):
        def computed(*arguments, **options):
            results, form = tree_flatten(compute(*arguments, **options))
            at = [index for index, value in enumerate(results) if isinstance(value, torch.Tensor)][self.number]
            results[at] = self.change(results[at])
            return tree_unflatten(results, form)

        return computed


def inject(monkeypatch, operator, method, number, change):
    """Whatever loads this operator's backends gets a wrong one; the reference stays as it is."""
    load = backends.load

    def wrong(name, backend):
        found = load(name, backend)
        return found if name != operator or backend == "reference" else Wrong(found, method, number, change)

    monkeypatch.setattr(backends, "load", wrong)


def one_position(values):
    """A tenth added to a single number, as a wrong border of a tile would."""
    changed = values.clone(memory_format=torch.contiguous_format)
    changed.view(-1)[-1] += 0.1
    return changed


def not_a_number(values):
    return torch.full_like(values, float("nan"))


def test_report_names_versions_devices_and_kernels(capsys, monkeypatch):
    """On a machine whose kernels are right: exit code 0."""
    monkeypatch.setattr(self_test, "SIZES", ((33, 7),))
    monkeypatch.setattr(speed, "REPEATS", 1)
    assert cli.run(doctor.main, []) == 0
    out = capsys.readouterr().out
    assert f"dnamamba      {__version__}" in out
    for word in ("torch", "numpy", "cpu", "kernels", "published"):
        assert word in out
    assert re.findall(r"^  (\w+) .* ok$", out, re.MULTILINE) == [*OPERATORS[:3], *["block"] * 3, *OPERATORS[4:]]
    assert "WRONG" not in out and "FAILED" not in out


def test_every_operator_is_right_at_all_sizes():
    found = list(self_test.compare(torch.device("cpu")))
    assert [each.operator for each in found if each.passed] == [*OPERATORS[:3], *["block"] * 3, *OPERATORS[4:]]
    assert all(0 < error < 1e-6 for each in found for error in (each.outputs, each.gradients))


@pytest.mark.parametrize("change", [one_position, not_a_number])
@pytest.mark.parametrize("method", ["forward", "backward"])
@pytest.mark.parametrize("operator", [name for name in OPERATORS if name != "block"])
def test_a_kernel_that_returns_wrong_numbers_is_found(operator, method, change, monkeypatch, capsys):
    monkeypatch.setattr(self_test, "SIZES", ((33, 7),))
    monkeypatch.setattr(self_test, "PROBLEMS", {operator: self_test.PROBLEMS[operator]})
    inject(monkeypatch, operator, method, 0, change)
    assert doctor.check_kernels("cpu") == 1
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert line.split()[:3] == [operator, "cpu", "fp32"]
    assert "WRONG: more than 1e-05" in line


@pytest.mark.parametrize("number", range(9))
def test_every_gradient_of_the_scan_is_looked_at(number, monkeypatch):
    monkeypatch.setattr(self_test, "SIZES", ((33, 7),))
    monkeypatch.setattr(self_test, "PROBLEMS", {"scan": self_test.PROBLEMS["scan"]})
    inject(monkeypatch, "scan", "backward", number, one_position)
    (found,) = self_test.compare(torch.device("cpu"))
    assert found.outputs < 1e-6 and found.gradients > 1e-4 and not found.passed


def test_a_block_of_wrong_operators_is_wrong(monkeypatch):
    monkeypatch.setattr(self_test, "SIZES", ((33, 7),))
    monkeypatch.setattr(self_test, "PROBLEMS", {"block": self_test.PROBLEMS["block"]})
    inject(monkeypatch, "conv", "forward", 0, one_position)
    assert [each.passed for each in self_test.compare(torch.device("cpu"))] == [False] * 3


def test_wrong_and_failing_kernels_end_with_exit_code_1(monkeypatch, capsys):
    """Nothing wrong is timed; what a compiler says is one line of the report."""

    def no_compiler(values):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(self_test, "SIZES", ((33, 7),))
    monkeypatch.setattr(self_test, "PROBLEMS", {name: self_test.PROBLEMS[name] for name in ("conv", "norm")})
    inject(monkeypatch, "norm", "backward", 0, no_compiler)
    monkeypatch.setattr(kernels, "timings", lambda device: pytest.fail("timed"))
    with pytest.raises(SystemExit) as ended:
        cli.run(doctor.main, [])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "  norm        cpu     fp32  FAILED: Failed to find C compiler.\n" in out
    assert out.endswith("1 kernels are wrong or do not run on this machine\n")


def test_a_device_whose_kernels_are_right_is_timed_whatever_another_is_like(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "devices", lambda: ["cpu", "cuda:0"])
    monkeypatch.setattr(doctor, "describe_device", str)
    monkeypatch.setattr(doctor, "check_kernels", lambda device: int(device == "cpu"))
    timed: list[str] = []
    monkeypatch.setattr(doctor, "show_speed", timed.append)
    with pytest.raises(SystemExit):
        doctor.doctor(doctor.DoctorSettings())
    assert timed == ["cuda:0"]


def test_published_figures_are_those_of_the_documents():
    readme, guide = ((ROOT / name).read_text() for name in ("kernels/README.md", "docs/figures.md"))
    scan, conv, norm = speed.PUBLISHED["cuda"]
    figures = [f"{value:.3g}" for row in (scan, conv, norm) for value in (row.forward, row.both - row.forward)]
    assert f"| 1, 512, 131,072 | {figures[0]} " in readme and f"| 1, 512, 131,072 | {figures[1]} " in readme
    for label, figure in zip(("conv forward, 512", "conv backward, 512"), figures[2:4], strict=True):
        assert re.search(rf"^\| {label} channels \| [\d.]+× \({figure} ms\)", readme, re.MULTILINE)
    for label, figure in zip(("norm forward, d_model 256", "norm backward"), figures[4:], strict=True):
        assert re.search(rf"^\| {label},.*× \({figure} ms\)", readme, re.MULTILINE)
    (cpu,) = speed.PUBLISHED["cpu"]
    assert f"On two CPU cores it takes {cpu.forward} ns forward, {cpu.both} ns forward and backward" in guide


def test_what_is_missing_is_named_with_what_needs_it(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {"numpy": "everything", "no-such-pack": "wonders"})
    monkeypatch.setattr(doctor, "PROGRAMS", {"a shell": (("sh",), "this"), "a wand": (("no-such-program",), "magic")})
    assert doctor.describe_missing() == ["no-such-pack  for wonders", "a wand        for magic"]
    assert not any("no-such-pack" in line for line in doctor.describe_versions())


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
