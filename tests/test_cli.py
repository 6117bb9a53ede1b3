"""The command line's common part: one line and exit code 2 for bad input, flags over YAML, verbs."""

import errno
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from dnamamba import cli
from dnamamba.__main__ import VERBS
from dnamamba.errors import InputError


@dataclass
class Inner:
    """A group."""

    preset: Literal["demo", "1.4m"] = "demo"
    """Its size."""
    width: int | None = None
    """Its width."""


@dataclass
class Settings:
    """Some flags."""

    length: int = 1024
    """Context in bases."""
    rate: float | None = None
    """Peak rate,
    unitless."""
    model: Inner = field(default_factory=Inner)
    """The group."""


@pytest.fixture
def parser():
    parser = cli.Parser(prog="test")
    parser.add_argument("--config", action="config", help="YAML")
    parser.add_argument("--genome", nargs="+", type=Path, help="files")
    parser.add_argument("--contigs", nargs="+", help="names")
    parser.add_argument("--resume", action="store_true", help="go on")
    parser.add_class_arguments(Settings, as_group=False)
    return parser


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--lenght 3", "unknown flag --lenght; did you mean --length? (see --help)"),
        ("--lenght=3", "unknown flag --lenght; did you mean --length? (see --help)"),
        ("--len 3", "unknown flag --len; did you mean --length? (see --help)"),
        ("--model.wdith 3", "unknown flag --model.wdith; did you mean --model.width"),
        ("--xyzzy", "unknown flag --xyzzy (see --help)"),
        ("hg38.fa", "unexpected argument 'hg38.fa': every value stands behind its flag"),
        ("--length abc", "--length: expected int, got 'abc'"),
        ("--length=2.5", "--length: expected int, got '2.5'"),
        ("--length", "--length: expected one argument"),
        ("--genome", "--genome: expected at least one argument"),
        ("--rate fast", "--rate: expected float or null, got 'fast'"),
        ("--model.preset big", "--model.preset: expected one of 'demo', '1.4m', got 'big'"),
        ("--model.width wide", "--model.width: expected int or null, got 'wide'"),
        ("--config absent.yaml", "--config: File does not exist: "),
        ("--config", "--config: expected one argument"),
    ],
)
def test_bad_flags_are_told_in_one_line(parser, line, told):
    with pytest.raises(InputError) as error:
        parser.parse_args(line.split())
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"lenght: 3\n", "unknown key 'lenght'; did you mean length?"),
        (b"model:\n  wdith: 3\n", "unknown key 'model.wdith'; did you mean model.width?"),
        (b"length: abc\n", "length: expected int, got 'abc'"),
        (b"genome: {a: b}\n", "genome: expected a value or a list of values"),
        (b"genome: [[a]]\n", "genome: expected a value or a list of values"),
        (b"length: [\n", "not a YAML mapping of flags to values"),
        (b"- length\n", "not a YAML mapping of flags to values"),
        (b"\xff\xfe\x00\x01", "not a text file"),
    ],
)
def test_bad_yaml_is_told_with_its_file(parser, tmp_path, content, told):
    config = tmp_path / "run.yaml"
    config.write_bytes(content)
    with pytest.raises(InputError) as error:
        parser.parse_args(["--config", str(config)])
    assert str(error.value).startswith(f"{config}: {told}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", [["--length", "5", "--config", "{}"], ["--config={}", "--length", "5"]])
def test_flags_win_over_the_config_wherever_they_stand(parser, tmp_path, order):
    config = tmp_path / "run.yaml"
    config.write_text("length: 77\nrate: 1e-3\nmodel:\n  width: 9\n")
    parsed = parser.parse_args([token.format(config) for token in order])
    assert (parsed.length, parsed.rate, parsed.model.width) == (5, 1e-3, 9)


def test_later_configs_win_over_earlier_ones(parser, tmp_path):
    for name, length in (("a", 1), ("b", 2)):
        (tmp_path / name).write_text(f"length: {length}\n")
    assert parser.parse_args(["--config", f"{tmp_path}/a", "--config", f"{tmp_path}/b"]).length == 2


def test_lists_take_one_value_or_many_from_flags_and_yaml(parser, tmp_path):
    assert parser.parse_args(["--genome", "a.fa", "b.fa"]).genome == [Path("a.fa"), Path("b.fa")]
    assert parser.parse_args(["--contigs", "20"]).contigs == ["20"]
    assert parser.parse_args([]).genome is None
    config = tmp_path / "run.yaml"
    config.write_text("genome: hg38.fa\ncontigs: [20, X]\n")
    parsed = parser.parse_args(["--config", str(config)])
    assert (parsed.genome, parsed.contigs) == ([Path("hg38.fa")], ["20", "X"])


def test_help_tells_texts_and_defaults_without_types(parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    assert end.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "usage: test [--flag VALUE ...]" in told
    assert "files" in told
    assert "null" not in told
    assert "type:" not in told


def test_attribute_docstrings_become_help():
    assert cli.attribute_docstrings(Settings) == {
        "length": "Context in bases.",
        "rate": "Peak rate, unitless.",
        "model": "The group.",
    }


def raising(error):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("x.fa: record 'a'\n  is empty"), 2, "error: x.fa: record 'a' is empty\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.fa"), 2, "error: x.fa: No such file\n"),
        (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), 2, "error: a -> b: Cross-device link\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run_turns_what_the_user_can_mend_into_one_line(error, code, line, capsys):
    assert cli.run(raising(error)) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [ValueError("ours"), AssertionError(), OSError("no errno")])
def test_run_keeps_the_traceback_of_our_own_faults(error):
    with pytest.raises(type(error)):
        cli.run(raising(error))


def test_run_passes_the_arguments_on_and_returns_zero():
    seen = []
    assert cli.run(seen.append, ["--a", "b"]) == 0
    assert seen == [["--a", "b"]]


def test_a_reader_that_has_gone_ends_quietly():
    code = "import sys; from dnamamba import cli; sys.exit(cli.run(lambda _: [print('x' * 999) for _ in range(9999)]))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == cli.BROKEN_PIPE


def dnamamba(*arguments):
    return subprocess.run([sys.executable, "-m", "dnamamba", *arguments], capture_output=True, text=True, check=False)


class TestVerbs:
    def test_help_lists_them_and_imports_nothing_heavy(self):
        code = "import sys; sys.argv[1:] = ['--help']; import dnamamba.__main__ as m\n"
        code += "try: m.main()\nexcept SystemExit: pass\n"
        heavy = "print([name for name in ('torch', 'numpy', 'jsonargparse', 'lightning') if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True)
        assert "pretrain" in done.stdout
        assert done.stdout.endswith("[]\n")

    def test_unknown_verb(self):
        done = dnamamba("pretrian")
        assert (done.returncode, done.stdout) == (2, "")
        verbs = ", ".join(VERBS)
        assert done.stderr == f"error: unknown verb 'pretrian': expected one of {verbs} (see dnamamba --help)\n"

    def test_no_verb_prints_the_list_and_fails(self):
        done = dnamamba()
        assert done.returncode == 2
        assert "verbs:" in done.stdout

    def test_version(self):
        from dnamamba import __version__

        assert dnamamba("--version").stdout == f"dnamamba {__version__}\n"

    def test_every_verb_has_a_main(self):
        import importlib

        from dnamamba.__main__ import VERBS

        for verb in VERBS:
            assert callable(importlib.import_module(f"dnamamba.{verb}").main)
