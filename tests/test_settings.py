"""Settings and their command line: types, bounds, groups, YAML below flags, and every kind of bad input in one line."""

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Literal

import pytest

from dnamamba.errors import InputError
from dnamamba.settings.fields import Settings, attribute_docstrings, named_fields, setting
from dnamamba.settings.parser import Parser


@dataclass
class Inner:
    """A group."""

    preset: Literal["demo", "1.4m"] = "demo"
    """Its size."""
    width: int | None = None
    """Its width."""
    cheap: bool = False
    """Less memory."""


@dataclass(kw_only=True)
class Shared(Settings):
    """What several have."""

    length: int = setting(1024, at_least=3)
    """Context in bases."""
    rate: float | None = setting(None, inside=(0, 1))
    """Rate of all."""


@dataclass(kw_only=True)
class Flags(Shared):
    """Some flags."""

    rate: float | None = setting(None, above=0)
    """Peak rate,
    unitless."""
    genome: list[Path] | None = None
    """files"""
    contigs: list[str] | None = None
    """names"""
    rates: list[float] | None = setting(None, inside=(0, 1))
    """rates"""
    share: float = setting(0.5, between=(0, 1), at_most=0.75)
    """100 % of it"""
    context: int | Literal["unlimited"] | None = None
    """Bases."""
    resume: bool = False
    """go on"""
    reverse: bool = True
    """both strands"""
    model: Inner = field(default_factory=Inner)
    """The group."""


@dataclass(kw_only=True)
class Needy(Settings):
    """What has to be given."""

    folder: Path = setting(positional=True)
    """where"""
    out: Path
    """where to"""
    genome: list[Path]
    """files"""
    json: bool = False
    """as JSON"""


@pytest.fixture
def parser():
    return Parser("test", Flags)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--lenght 3", "unknown flag --lenght; did you mean --length? (see --help)"),
        ("--lenght=3", "unknown flag --lenght; did you mean --length? (see --help)"),
        ("--len 3", "unknown flag --len; did you mean --length? (see --help)"),
        ("--model.wdith 3", "unknown flag --model.wdith; did you mean --model.width"),
        ("--xyzzy", "unknown flag --xyzzy (see --help)"),
        ("hg38.fa", "unexpected argument 'hg38.fa': every value stands behind its flag"),
        ("--length abc", "--length: expected int, got 'abc'"),
        ("--length=2.5", "--length: expected int, got '2.5'"),
        ("--length 2", "--length: 2 is below 3"),
        ("--rate 0", "--rate: 0.0 is not above 0"),
        ("--rate nan", "--rate: nan is not above 0"),
        ("--rates 0.1 1", "--rates: 1.0 is not between 0 and 1"),
        ("--rates 0.1 fast", "--rates: expected float, got 'fast'"),
        ("--share 2", "--share: 2.0 is above 0.75"),
        ("--share -0.5", "--share: -0.5 is not between 0 and 1"),
        ("--context some", "--context: expected int or one of 'unlimited' or null, got 'some'"),
        ("--resume now", "unexpected argument 'now': every value stands behind its flag"),
        ("--resume=now", "--resume: expected true or false, got 'now'"),
        ("--reverse", "--reverse: expected one argument"),
        ("--length", "--length: expected one argument"),
        ("--genome", "--genome: expected at least one argument"),
        ("--rate fast", "--rate: expected float or null, got 'fast'"),
        ("--model.preset big", "--model.preset: expected one of 'demo', '1.4m', got 'big'"),
        ("--model.width wide", "--model.width: expected int or null, got 'wide'"),
        ("--config absent.yaml", "absent.yaml: cannot be read (No such file or directory)"),
        ("--config", "--config: expected one argument"),
    ],
)
def test_bad_flags_are_reported_in_one_line(parser, line, message):
    with pytest.raises(InputError) as error:
        parser.parse(line.split())
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lenght: 3\n", "unknown key 'lenght'; did you mean length?"),
        (b"model:\n  wdith: 3\n", "unknown key 'model.wdith'; did you mean model.width?"),
        (b"length: abc\n", "length: expected int, got 'abc'"),
        (b"genome: {a: b}\n", "genome: expected a value or a list of values"),
        (b"genome: [[a]]\n", "genome: expected a value or a list of values"),
        (b"length: true\n", "length: expected int, got True"),
        ("length: '\u0661\u0662'\n".encode(), "length: expected int, got '\u0661\u0662'"),
        (b"rate: -1\n", "--rate: -1.0 is not above 0"),
        (b"model: 3\n", "model: expected a mapping of its settings, got 3"),
        (b"length: [", "not YAML: expected the node content"),
        (b"- length\n", "not a YAML mapping of flags to values"),
        (b"\xff\xfe\x00\x01", "not a text file"),
    ],
)
def test_bad_yaml_is_reported_with_its_file(parser, tmp_path, content, message):
    config = tmp_path / "run.yaml"
    config.write_bytes(content)
    with pytest.raises(InputError) as error:
        parser.parse(["--config", str(config)])
    assert str(error.value).startswith((f"{config}: {message}", f"{config}, line 1: {message}"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", [["--length", "5", "--config", "{}"], ["--config={}", "--length", "5"]])
def test_flags_win_over_the_config_wherever_they_stand(parser, tmp_path, order):
    config = tmp_path / "run.yaml"
    config.write_text("length: 77\nrate: 1e-3\nmodel:\n  width: 9\n")
    parsed = parser.parse([token.format(config) for token in order])
    assert (parsed.length, parsed.rate, parsed.model.width) == (5, 1e-3, 9)


def test_later_configs_win_over_earlier_ones(parser, tmp_path):
    for name, length in (("a", 11), ("b", 12)):
        (tmp_path / name).write_text(f"length: {length}\n")
    assert parser.parse(["--config", f"{tmp_path}/a", "--config", f"{tmp_path}/b"]).length == 12


def test_lists_take_one_value_or_many_from_flags_and_yaml(parser, tmp_path):
    assert parser.parse(["--genome", "a.fa", "b.fa"]).genome == [Path("a.fa"), Path("b.fa")]
    assert parser.parse(["--contigs", "20"]).contigs == ["20"]
    assert parser.parse([]).genome is None
    config = tmp_path / "run.yaml"
    config.write_text("genome: hg38.fa\ncontigs: [20, X]\n")
    parsed = parser.parse(["--config", str(config)])
    assert (parsed.genome, parsed.contigs) == ([Path("hg38.fa")], ["20", "X"])


def test_flags_that_are_false_by_default_stand_alone(parser):
    assert parser.parse([]).resume is False
    parsed = parser.parse(["--resume", "--model.cheap", "--length", "5"])
    assert (parsed.resume, parsed.model.cheap, parsed.length) == (True, True, 5)
    parsed = parser.parse(["--resume", "false", "--model.cheap", "TRUE", "--reverse", "false"])
    assert (parsed.resume, parsed.model.cheap, parsed.reverse) == (False, True, False)


def test_values_are_what_the_types_say(parser):
    parsed = parser.parse(["--context", "unlimited", "--rate", "null", "--length", "10_000", "--rates", "1e-3"])
    assert (parsed.context, parsed.rate, parsed.length, parsed.rates) == ("unlimited", None, 10_000, [1e-3])
    assert isinstance(parsed, Flags)


def test_what_has_to_be_given():
    parser = Parser("test", Needy)
    parsed = parser.parse(["--json", "x", "--out", "y"])
    assert (parsed.folder, parsed.json, parsed.genome) == (Path("x"), True, [])
    with pytest.raises(InputError, match="required: --out"):
        parser.parse(["x"])
    with pytest.raises(InputError, match="required: FOLDER"):
        parser.parse(["--out", "y"])


def test_help_shows_texts_and_defaults_without_types(parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse(["--help"])
    assert end.value.code == 0
    message = " ".join(capsys.readouterr().out.split())
    assert "usage: test [--flag VALUE ...]" in message
    assert "files" in message and "100 % of it (0.5)" in message and "Context in bases. (1024)" in message
    assert "null" not in message
    assert "type:" not in message


def test_attribute_docstrings_become_help_a_class_own_over_its_bases():
    assert {name: attribute_docstrings(Flags)[name] for name in ("length", "rate", "model")} == {
        "length": "Context in bases.",
        "rate": "Peak rate, unitless.",
        "model": "The group.",
    }


def test_fields_that_are_made_have_their_help_in_their_metadata():
    made = make_dataclass("Made", [("d_state", int | None, field(default=None, metadata={"help": "States."}))])
    outer = make_dataclass("Outer", [("model", made, setting(factory=made, on_resume=("d_state",)))], bases=(Settings,))
    assert named_fields(outer)["model.d_state"].help == "States."
    assert named_fields(outer)["model.d_state"].on_resume == "free"
    assert Parser("test", outer).parse(["--model.d_state", "4"]).model.d_state == 4


def test_the_markov_order_is_that_of_the_tables():
    from dnamamba.genome.markov import MAX_ORDER
    from dnamamba.training.settings import PretrainSettings

    assert PretrainSettings(markov_order=MAX_ORDER).markov_order == MAX_ORDER
    with pytest.raises(InputError, match=f"--markov_order: {MAX_ORDER + 1} is above {MAX_ORDER}"):
        PretrainSettings(markov_order=MAX_ORDER + 1)
