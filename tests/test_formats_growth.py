"""Checkpoints of older and newer formats, files that were changed by hand, and configurations of impossible size."""

import dataclasses
import json
import time
from dataclasses import dataclass

import pytest
import torch

from dnamamba import formats
from dnamamba.errors import InputError
from dnamamba.formats import fields, load_checkpoint, recognise
from dnamamba.formats.checkpoint import load_classifier, read_card, save_checkpoint, save_classifier
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.config import ModelConfig, option, whole
from dnamamba.model.language_model import LanguageModel

TOKENS = torch.arange(40).view(2, 20) % 5


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(d_model=16, n_layer=2))
    save_checkpoint(model, tmp_path / "model", {})
    return tmp_path / "model", model


def edit(path, **changes):
    """None removes a key."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def as_format_1(folder):
    edit(folder / "config.json", format_version=1, activation_checkpointing=True,
         mixer=None, objective=None, dnamamba_version=None)  # fmt: skip
    edit(folder / "provenance.json", config_sha256=None, classifier_sha256=None)


def test_a_file_of_the_first_format_is_read(saved):
    folder, model = saved
    as_format_1(folder)
    loaded, _ = load_checkpoint(folder)
    assert loaded.config == model.config
    assert loaded.backbone.recompute is None
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


def test_a_classifier_of_the_first_format_is_read(tmp_path):
    config = ModelConfig(d_model=16, n_layer=1)
    save_classifier(SequenceClassifier(config, HeadConfig("multiclass", ("a", "b"))), tmp_path / "model", {})
    assert "classifier_sha256" in json.loads((tmp_path / "model" / "provenance.json").read_text())
    as_format_1(tmp_path / "model")
    assert load_classifier(tmp_path / "model")[0].head_config.names == ("a", "b")
    edit(tmp_path / "model" / "classifier.json", colour=1)
    with pytest.raises(
        InputError, match=r"classifier.json: unknown key colour: written in format 1 by dnamamba \(unkn"
    ):
        load_classifier(tmp_path / "model")


def test_a_file_of_its_own_format_lacks_nothing(saved):
    edit(saved[0] / "config.json", mixer=None)
    with pytest.raises(InputError, match=r"config\.json: lacks mixer"):
        load_checkpoint(saved[0])


def test_a_newer_dnamamba_is_named(saved):
    path, next_version = saved[0] / "config.json", fields.FORMAT_VERSION + 1
    all_fields = fields.to_json(saved[1].config, next_version)
    edit(path, **all_fields, format_version=next_version, dnamamba_version="9.9.9")
    message = rf"format {next_version} by dnamamba 9\.9\.9, which this dnamamba .* does not know"
    with pytest.raises(InputError, match=message):
        load_checkpoint(saved[0])
    edit(path, heads=3)
    with pytest.raises(InputError, match=rf"unknown key heads: written in format {next_version} by dnamamba 9\.9\.9"):
        load_checkpoint(saved[0])


@dataclass(frozen=True)
class Next(ModelConfig):
    """The configuration of a hand-made next version, with one more field."""

    heads: int = option(8, whole(1), since=fields.FORMAT_VERSION + 1, older=1)


def test_a_new_field_leaves_older_programs_their_files(tmp_path):
    """A field at its older value is not written, and the format stays; otherwise the format rises."""
    older, newer = Next(heads=1), Next(heads=8)
    next_version = fields.FORMAT_VERSION + 1
    assert [fields.format_needed([each]) for each in (older, newer)] == [2, next_version]
    assert fields.to_json(older, fields.FORMAT_VERSION) == dataclasses.asdict(ModelConfig())
    assert fields.to_json(older, 2).keys() < dataclasses.asdict(ModelConfig()).keys()
    for each, version in ((older, 2), (newer, next_version)):
        values = fields.to_json(each, version)
        assert fields.from_json(Next, values, version, "dnamamba", tmp_path) == each


@pytest.mark.parametrize("kind", [ModelConfig, HeadConfig])
def test_a_field_newer_than_format_1_says_what_older_files_mean(kind):
    for each in dataclasses.fields(kind):
        assert fields.since(each) <= fields.FORMAT_VERSION
        assert fields.since(each) == 1 or "older" in each.metadata


@pytest.mark.parametrize("name", ["config.json", "classifier.json"])
def test_a_file_changed_by_hand_is_found(tmp_path, name):
    config = ModelConfig(d_model=16, n_layer=1)
    save_classifier(SequenceClassifier(config, HeadConfig("multiclass", ("a", "b"))), tmp_path / "model", {})
    changes = {"config.json": {"norm_epsilon": 1e-3}, "classifier.json": {"names": ["b", "a"]}}[name]
    edit(tmp_path / "model" / name, **changes)
    for read in (load_classifier, read_card):
        with pytest.raises(InputError, match=f"{name}: changed since it was saved"):
            read(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 10**9}, r"embedding.weight has shape \(16, 16\), config.json makes it \(16, 1000000000\)"),
        ({"n_layer": 1000}, r"lacks the parameters backbone.layers.2.\* that"),
        ({"n_layer": 10**5}, "model.n_layer: 100000 is not possible, expected a whole number from 1 to 1024"),
        ({"n_layer": 10**30}, "model.n_layer: 10+ is not possible"),
        ({"vocabulary_size": 10**12}, "embedding.weight has shape"),
        ({"expand": 10**9}, "has shape .* makes it"),
        ({"expand": 10**18}, "sizes that no tensor can have"),
        ({"expand": 10**30}, "sizes that no tensor can have"),
        ({"dt_rank": 10**12}, "has shape .* makes it"),
    ],
)
def test_impossible_sizes_are_refused_before_a_model_is_made(saved, changes, message):
    edit(saved[0] / "config.json", **changes)
    began = time.process_time()
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(saved[0])
    assert time.process_time() - began < 1
    assert str(saved[0]) in str(caught.value)


def test_another_format_is_a_reader_and_a_line(saved, monkeypatch):
    folder, model = saved
    assert recognise(folder).__name__ == "dnamamba.formats.checkpoint"
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba3"}))
    with pytest.raises(InputError, match=r"config\.json: model_type 'mamba3', which none of dnamamba\.formats\."):
        load_checkpoint(folder)
    monkeypatch.setitem(formats.READERS, __name__, lambda config: config.get("model_type") == "mamba3")
    monkeypatch.setitem(globals(), "load_checkpoint", lambda folder, device: (model, {"from": str(folder)}))
    assert formats.load_checkpoint(folder) == (model, {"from": str(folder)})
