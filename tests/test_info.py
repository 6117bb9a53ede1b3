"""Cards of strangers: of whatever JSON, `info` reports what it can, in lines that a terminal may show."""

import itertools
import json
from dataclasses import asdict

from dnamamba import cli, info
from dnamamba.formats.checkpoint import save_checkpoint, save_classifier
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.runs.card import card_lines
from tests.tiny_models import tiny_model

ODD = [None, True, 5, -1.5, "text", [], {}, [1], ["x"], [{}], {"a": 1}, {"a": [1]}, {"a": {"a": 1}}, [[["x"]]], 10**400]
CLASSIFIER_KEYS = ["task", "length", "data", "metrics", "baselines", "learning_rate", "seed", "epoch", "pretraining"]
USUAL = {
    "settings": {"length": 128, "batch_tokens": 256, "learning_rate": 0.01, "train": ["chr1"]},
    "genomes": [{"name": "", "weight": 1.0, "source": [{"path": "g.fa", "sha256": "a" * 64}]}],
    "splits": "b" * 64,
    "step": 2,
    "metrics": {"bits": 1.9},
    "versions": {"torch": "2"},
    "command": ["python", "-m", "dnamamba.pretrain", "--out", "my run"],
    "written": "2026",
}
DEPENDS = {
    "settings": {"train", "trained"},
    "splits": {"splits", "trained"},
    "genomes": {"genome"},
    "step": {"trained"},
    "metrics": {"validation"},
}
"""Key → the lines that may be missing with it"""


def card(provenance, head=None):
    config = asdict(tiny_model().config)
    classifier = (
        None if head is None else {"kind": "multiclass", "names": ("x", "y"), "pooling": "last", "strands": "one"}
    )
    return {"folder": "there", "config": config, "classifier": classifier, "provenance": provenance}


def test_the_usual_lines():
    lines = dict(card_lines(card(USUAL)))
    assert lines["genome"] == f"g.fa (sha256 {'a' * 16}…)" and lines["validation"] == "bits 1.9000"
    assert lines["trained"] == "at length 128, 2 steps, 512 bases, learning rate 0.01"
    assert lines["command"] == "python -m dnamamba.pretrain --out 'my run'"


def test_what_has_another_shape_is_left_out_and_the_rest_reported():
    whole = {label for label, _ in card_lines(card(USUAL))}
    for key, odd in itertools.product(USUAL, ODD):
        labels = {label for label, _ in card_lines(card({**USUAL, key: odd}))}
        assert whole - labels <= {*DEPENDS.get(key, ()), key}, (key, odd)


def test_of_a_classifier_too():
    usual = {**USUAL, "pretraining": USUAL, "data": {"data": "files"}}
    for key, odd in itertools.product([*usual, *CLASSIFIER_KEYS], ODD):
        labels = {label for label, _ in card_lines(card({**usual, key: odd}, "classifier"))}
        assert labels >= {"checkpoint", "kind", "outputs", "head", "model"}
    for key, inner, odd in itertools.product(("data", "metrics", "baselines"), ("splits", "species", "overlaps"), ODD):
        assert card_lines(card({**usual, key: {inner: odd, "x": odd}}, "classifier"))


def test_info_of_a_stranger_is_short_lines_without_escape_sequences(tmp_path, capsys):
    nasty = {
        "written": "x\x1b[31m\nerror: none\u2028" + "y" * 10**6,
        "versions": {"a\x1b]0;b\x07": "\r"},
        "command": ["\x9b2J"],
    }
    save_checkpoint(tiny_model(), tmp_path / "lm", nasty)
    head = HeadConfig("multiclass", ("\x1b[2J", "z" * 10**6))
    save_classifier(SequenceClassifier(tiny_model().config, head), tmp_path / "head", {**nasty, "pretraining": nasty})
    for name in ("lm", "head"):
        assert cli.run(info.main, [str(tmp_path / name)]) == 0
        printed = capsys.readouterr().out
        assert all(line.isprintable() and len(line) < 1300 for line in printed.split("\n"))
        assert cli.run(info.main, [str(tmp_path / name), "--json"]) == 0
        printed = capsys.readouterr().out
        assert json.loads(printed)["provenance"]["written"] == nasty["written"]
        assert all(line.isprintable() for line in printed.split("\n"))
