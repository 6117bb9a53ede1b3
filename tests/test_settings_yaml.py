"""YAML of people and strangers: one reader, plain values, every refusal short and at once."""

import math
import time

import pytest
import yaml

from dnamamba.errors import InputError
from dnamamba.settings.yaml_files import MOST_NODES, read_yaml
from dnamamba.training.mixture_file import read_mixture
from dnamamba.training.settings import PretrainSettings
from dnamamba.verbs import parser

NINES = "a: &a [1,2,3,4,5,6,7,8,9]\n"
NINES += "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9))

REFUSED = {
    "brackets": ("[" * 1200, "line 1: not YAML: more than 32 mappings and lists within each other"),
    "closed brackets": ("a: " + "[" * 1200 + "]" * 1200, "line 1: not YAML: more than 32"),
    "braces": ("{a: " * 1200, "line 1: not YAML: more than 32"),
    "dashes": ("- " * 1200, "line 1: not YAML: more than 32"),
    "code": ("a: !!python/object/apply:os.system [id]", "line 1: not YAML: the tag 'python/object/apply:os.system'"),
    "own tag": ("x: 1\na: !mine 5", "line 2: not YAML: the tag '!mine'"),
    "bytes": ("a: !!binary aGVsbG8=", "line 1: not YAML: the tag 'binary'"),
    "a wrong number": ("a: !!int abc", "line 1: not YAML: the tag 'int'"),
    "cycle": ("a: &x [*x]", "line 1: not YAML: *x stands within what it stands for"),
    "cycle of mappings": ("a: &x {b: {c: *x}}", "line 1: not YAML: *x stands within"),
    "merged cycle": ("a: &x {<<: *x}", "line 1: not YAML: *x stands within"),
    "unknown alias": ("a: *y", "line 1: not YAML: found undefined alias 'y'"),
    "nested aliases": (NINES, "line 5: not YAML: more than 50,000 values"),
    "many values": ("[" + "1," * (MOST_NODES + 1) + "]", "line 1: not YAML: more than 50,000 values"),
    "twice": ("a: 1\nb:\n  c: 1\n  c: 2", "line 4: not YAML: 'c' stands there twice"),
    "a list for a key": ("? [a]\n: 1", "line 1: not YAML: a key that is a list or a mapping"),
    "two documents": ("a: 1\n---\nb: 2", "line 2: not YAML: but found another document"),
    "an open quote": ("a: 'x\n", "not YAML: found unexpected end of stream"),
    "escape sequences": ("a: \x1b[31mred", "not YAML: unacceptable character #x001b"),
    "a merge of a number": ("<<: 5", "line 1: not YAML: only mappings can be merged"),
    "length": ("a: " + "x" * (1 << 20), "longer than 1 MiB"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("reader", ["config", "mixture"])
def test_what_is_refused_is_one_short_line_at_once(tmp_path, case, reader):
    text, expected = REFUSED[case]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    began = time.perf_counter()
    with pytest.raises(InputError) as refused:
        read_mixture(path) if reader == "mixture" else parser("pretrain").parse(["--config", str(path)])
    assert time.perf_counter() - began < 30
    message = str(refused.value)
    assert message.startswith(str(path)) and expected in message
    assert len(message) < len(str(path)) + 160 and "\n" not in message and "\x1b" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"max_steps: {'5' * 5000}", "max_steps: expected int or null, got '555"),
        (f"max_steps: {'9' * 19}", f"max_steps: expected int or null, got '{'9' * 19}'"),
        ("max_steps: 2024-01-01", "max_steps: expected int or null, got '2024-01-01'"),
        ("max_steps: 1:30", "max_steps: expected int or null, got '1:30'"),
        ("max_steps: 0x10", "max_steps: expected int or null, got '0x10'"),
        ("max_steps: [[1]]", "max_steps: expected int or null, got [[1]]"),
        (f"max_steps: [{'a, ' * 9000}]", "max_steps: expected int or null, got ['a', 'a', 'a', 'a', 'a', 'a', ...]"),
        (f"? {'k' * 900}\n: 1", "unknown key 'kkkk"),
        ("model: 5", "model: expected a mapping of its settings, got 5"),
        ("[1, 2]", "not a YAML mapping of flags to values: [1, 2]"),
    ],
)
def test_odd_values_of_settings_are_one_short_line(tmp_path, text, expected):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        parser("pretrain").parse(["--config", str(path)])
    assert str(refused.value).startswith(f"{path}: {expected}") and len(str(refused.value)) < len(str(path)) + 160


def test_merges_and_aliases_work_in_both(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        "first: &usual\n  genome: a.fa\n  contigs: &names [1, 007, 1.10, 1e5, 2024-01-01]\n  weight: 1e-3\n"
        "second:\n  <<: [*usual, {weight: 7, exclude: x.bed}]\n  genome: b.fa\n  train: *names\n"
    )
    first, second = read_mixture(path)
    names = ["1", "007", "1.10", "1e5", "2024-01-01"]
    assert first.contigs == second.contigs == second.train == names
    assert first.weight == second.weight == 0.001  # of several merged mappings the first one counts
    assert [second.genome, second.exclude] == [[tmp_path / "b.fa"], [tmp_path / "x.bed"]]
    path.write_text("model: &m {d_model: 32}\n---\n".replace("---\n", "learning_rate: 1e-3\n"))
    settings = parser("pretrain").parse(["--config", str(path)])
    assert isinstance(settings, PretrainSettings)
    assert (settings.model.d_model, settings.learning_rate) == (32, 1e-3)
    path.write_text("base: &b {n_layer: 3, d_model: 32}\n".replace("base: &b", "model:"))
    assert parser("pretrain").parse(["--config", str(path)]).model.n_layer == 3


def test_what_a_run_writes_is_read_back_as_it_was(tmp_path):
    values = [1e-5, 0.1, 1e22, 123456.789, math.inf, -3, 0, True, None, 10**17, 1e-300, 3.0, -0.0]
    texts = [
        "1.10",
        "1e5",
        "x: y",
        "2024-01-01",
        "yes",
        "",
        "1:30",
        "0x1f",
        "1_0",
        "~",
        ".inf",
        "<<",
        "ü\n\t'\"",
        "=",
        "5",
    ]
    content = {"values": values, "texts": texts, "19": {"007": texts}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    found = read_yaml(path)
    assert found == content
    assert list(map(type, found["values"])) == list(map(type, values))
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(path) == {"a": 1}
    path.write_text("")
    assert read_yaml(path) is None
    path.write_bytes(b"a: \xff")
    with pytest.raises(InputError, match="not a text file in UTF-8"):
        read_yaml(path)
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(tmp_path)
