"""Checkpoint folders: whole or refused."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from dnamamba import outputs
from dnamamba.errors import InputError
from dnamamba.formats import checkpoint
from dnamamba.formats.checkpoint import load_checkpoint, save_checkpoint
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel


def make_model(**overrides):
    return LanguageModel(ModelConfig(**({"d_model": 16, "n_layer": 2} | overrides)))


@pytest.fixture
def saved(tmp_path):
    model = make_model()
    save_checkpoint(model, tmp_path / "model", {"command": "test", "metrics": {"bits": 1.9}})
    return tmp_path / "model", model


@pytest.mark.parametrize("overrides", [{}, {"tie_embeddings": False, "dt_rank": "broadcast", "conv_bias": False}])
def test_what_is_saved_is_loaded(tmp_path, overrides):
    model = make_model(**overrides)
    save_checkpoint(model, tmp_path / "a" / "model", {"command": "test"})
    random_state = torch.get_rng_state()
    loaded, provenance = load_checkpoint(str(tmp_path / "a" / "model"))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert provenance["command"] == "test"
    assert loaded.config == model.config
    tokens = torch.randint(0, 5, (2, 33))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    loaded.loss(tokens[:, :-1], tokens[:, 1:]).nll_sum.backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    assert len(list(loaded.parameters())) == len(list(model.parameters()))  # the head is tied again
    assert os.listdir(tmp_path / "a") == ["model"]
    assert sorted(os.listdir(tmp_path / "a" / "model")) == [
        "config.json", "model.safetensors", "provenance.json", "tokens.json"
    ]  # fmt: skip


def test_nothing_is_overwritten_unless_allowed(saved):
    folder, model = saved
    with pytest.raises(InputError, match="exists already"):
        save_checkpoint(make_model(), folder, {})
    assert torch.equal(load_checkpoint(folder)[0].lm_head.weight, model.lm_head.weight)
    new = make_model()
    save_checkpoint(new, folder, {}, overwrite=True)
    assert torch.equal(load_checkpoint(folder)[0].lm_head.weight, new.lm_head.weight)
    assert os.listdir(folder.parent) == ["model"]


def test_a_save_that_fails_leaves_the_old_checkpoint_and_can_be_repeated(saved, monkeypatch):
    folder, model = saved

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "sync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(make_model(), folder, {}, overwrite=True)
    assert torch.equal(load_checkpoint(folder)[0].lm_head.weight, model.lm_head.weight)
    save_checkpoint(make_model(), folder, {}, overwrite=True)
    assert os.listdir(folder.parent) == ["model"]


def test_a_run_folder_stands_for_its_best_checkpoint(tmp_path):
    best, last = make_model(), make_model()
    save_checkpoint(last, tmp_path / "checkpoints" / "last", {})
    with pytest.raises(InputError, match=r"no validated checkpoint yet; give .*last"):
        load_checkpoint(tmp_path)
    save_checkpoint(best, tmp_path / "checkpoints" / "step-1", {})
    (tmp_path / "checkpoints" / "best").symlink_to("step-1")
    assert torch.equal(load_checkpoint(tmp_path)[0].lm_head.weight, best.lm_head.weight)


def edit_json(name, **changes):
    def damage(folder):
        values = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return damage


def edit_weights(change):
    """Change the tensors and their recorded checksum: a file that is whole, but not this model's."""

    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        edit_json("provenance.json", weights_sha256=checkpoint.sha256(folder / "model.safetensors"))(folder)

    return damage


def flip_a_bit(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def truncate_with_checksum(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    edit_json("provenance.json", weights_sha256=checkpoint.sha256(path))(folder)


def many_layers(folder):
    """A header with as many blocks as there may be, all but two of them a name and nothing behind it."""
    edit_weights(lambda tensors: tensors.update({f"backbone.layers.{n}.x": torch.zeros(1) for n in range(2, 1024)}))(
        folder
    )
    edit_json("config.json", n_layer=1024)(folder)


def deep(name):
    return lambda folder: (folder / name).write_text('{"a": ' * 5000 + "1" + "}" * 5000)


ZERO = torch.zeros(1)
A_LOG = "backbone.layers.1.mixer.A_log"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokens.json").unlink(), "lacks tokens.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not readable as JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json: not readable as JSON"),
        (lambda folder: (folder / "provenance.json").write_text("[]"), "provenance.json: expected a JSON object"),
        (edit_json("config.json", format_version="2"), "format_version '2'; expected 'dnamamba', 1 to 4"),
        (edit_json("config.json", model_type="mamba"), "model_type 'mamba'"),
        (edit_json("config.json", d_model="wide"), r"config.json: model.d_model: 'wide'"),
        (edit_json("config.json", d_model=None), "config.json: lacks d_model"),
        (edit_json("config.json", heads=3), "config.json: unknown key heads"),
        (edit_json("tokens.json", A=7), "tokens.json: another alphabet"),
        (edit_json("config.json", d_state=8), r"layers.0.mixer.\w+(.weight)? has shape .* makes it"),
        (edit_json("config.json", n_layer=3), "lacks the parameters backbone.layers.2"),
        (edit_json("config.json", n_layer=1), "holds backbone.layers.1"),
        (edit_json("config.json", n_layer=10**5), "model.n_layer: 100000 is not possible, expected .* from 1 to 1024"),
        (edit_json("config.json", norm_epsilon=10**400), r"model.norm_epsilon: 10+\.\.\.0+ is not possible"),
        (
            edit_json("config.json", d_model=2**16, expand=256),
            r"embedding.weight has shape \(16, 16\), .* \(16, 65536\)",
        ),
        (edit_json("config.json", expand=256), r"layers.0.mixer.\w+(.weight)? has shape .* makes it"),
        (edit_weights(lambda tensors: tensors.update({f"backbone.layers.{'9' * 5000}.x": ZERO})), "holds backbone"),
        (many_layers, r"lacks the parameter|holds backbone.layers.\d+.x, which|has shape"),
        (deep("config.json"), "config.json: not readable as JSON"),
        (deep("tokens.json"), "tokens.json: not readable as JSON"),
        (deep("provenance.json"), "provenance.json: not readable as JSON"),
        (lambda folder: (folder / "config.json").write_text('{"d_model": ' + "9" * 5000 + "}"), "not readable as JSON"),
        (edit_json("config.json", dnamamba_version="other"), "config.json: changed since it was saved"),
        (edit_json("provenance.json", config_sha256=None), "config.json: changed since it was saved"),
        (edit_json("provenance.json", config_sha256=[1]), "config.json: changed since it was saved"),
        (edit_weights(lambda tensors: tensors.pop(A_LOG)), f"lacks the parameter {A_LOG}"),
        (edit_weights(lambda tensors: tensors.update({A_LOG: tensors[A_LOG].half()})), f"{A_LOG} is torch.float16"),
        (edit_weights(lambda tensors: tensors[A_LOG][3].fill_(torch.nan)), f"{A_LOG} holds NaN"),
        (flip_a_bit, "model.safetensors: damaged"),
        (truncate_with_checksum, "not a readable safetensors file"),
    ],
)
def test_damage_is_named(saved, damage, message):
    folder, _ = saved
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_missing_or_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"no checkpoint, it lacks config.json"):
        load_checkpoint(tmp_path)
    save_checkpoint(make_model(), tmp_path / ".model.replaced", {})
    with pytest.raises(InputError, match=r"a save was interrupted, rename .*\.model\.replaced"):
        load_checkpoint(tmp_path / "model")
