"""Caduceus folders give the logits of a plain evaluation that shares no code with the reader; damage is named."""

import json

import numpy as np
import plain_caduceus
import pytest
import torch
from safetensors.torch import load_file, save_file

import dnamamba
from dnamamba import cli, info
from dnamamba.alphabet import MASK, encode
from dnamamba.errors import InputError
from dnamamba.formats import load_checkpoint

SEQUENCE = "ACGGTNATTGCCATAGGACTTACCA"
MASKED = 6
KINDS = [{"rcps": False}, {"rcps": True}, {"rcps": True, "fused": False}]


def both_ids():
    ours = torch.tensor(encode(SEQUENCE).astype(np.int64))
    theirs = torch.tensor([plain_caduceus.IDS[base] for base in SEQUENCE])
    ours[MASKED], theirs[MASKED] = MASK, plain_caduceus.IDS["[MASK]"]
    return ours, theirs


@pytest.mark.parametrize("n_layer", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_plain_evaluation(tmp_path, kind, n_layer):
    tensors, config = plain_caduceus.write_folder(tmp_path / "m", n_layer=n_layer, seed=n_layer, **kind)
    model, provenance = load_checkpoint(tmp_path / "m")
    ours, theirs = both_ids()
    expected = plain_caduceus.logits(tensors, config, theirs)[:, 7:11]
    with torch.no_grad():
        found = model.double()(ours[None]).logits[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    name = "Caduceus-PS" if config["rcps"] else "Caduceus-Ph"
    assert provenance["source_format"] == f"{name}, token ids of HyenaDNA"


@pytest.mark.parametrize("kind", KINDS)
def test_in_fp32_they_agree_to_rounding(tmp_path, kind):
    tensors, config = plain_caduceus.write_folder(tmp_path / "m", **kind)
    ours, theirs = both_ids()
    with torch.no_grad():
        found = load_checkpoint(tmp_path / "m")[0](ours[None]).logits[0]
    expected = plain_caduceus.logits(tensors, config, theirs)[:, 7:11].float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_tied_tensors_may_be_stored_once_or_in_half_precision(tmp_path, kind):
    tensors, _ = plain_caduceus.write_folder(tmp_path / "m", **kind)
    ours, _ = both_ids()
    path = tmp_path / "m" / "model.safetensors"
    once = {k: v for k, v in tensors.items() if "lm_head" not in k and not ("mamba_rev" in k and "_proj.weight" in k)}
    once |= {k: v for k, v in tensors.items() if "mamba_rev" in k and ("x_proj" in k or "dt_proj" in k)}
    with torch.no_grad():
        expected = load_checkpoint(tmp_path / "m")[0](ours[None]).logits
        save_file(once, path)
        assert torch.equal(load_checkpoint(tmp_path / "m")[0](ours[None]).logits, expected)
        halves = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}
        save_file(halves, path)
        half = load_checkpoint(tmp_path / "m")[0](ours[None]).logits
        save_file({k: v.float() if v.is_floating_point() else v for k, v in halves.items()}, path)
        assert torch.equal(load_checkpoint(tmp_path / "m")[0](ours[None]).logits, half)


def test_untied_directions_and_products_are_read(tmp_path):
    tensors, _ = plain_caduceus.write_folder(tmp_path / "m", rcps=True, bidirectional_weight_tie=False)
    for name in tensors:
        if "mamba_rev.in_proj" in name:
            tensors[name] = tensors[name] * 0.5
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    ours, theirs = both_ids()
    with torch.no_grad():
        found = load_checkpoint(tmp_path / "m")[0].double()(ours[None]).logits[0]
    torch.testing.assert_close(found, plain_caduceus.logits(tensors, config, theirs)[:, 7:11], rtol=1e-9, atol=1e-9)


def test_python_and_verbs_take_them(tmp_path, capsys):
    plain_caduceus.write_folder(tmp_path / "m", rcps=True)
    dnamamba.load(tmp_path / "m", device="cpu")
    assert cli.run(info.main, [str(tmp_path / "m")]) == 0
    assert "Caduceus-PS" in capsys.readouterr().out


def edit_config(**changes):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def edit_weights(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


LAYER = "caduceus.backbone.layers.1.mixer.submodule"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_config(rms_norm=False), "rms_norm False is not supported, only True"),
        (edit_config(bidirectional=False), "bidirectional False is not supported, only True"),
        (edit_config(bidirectional_strategy="concat"), "bidirectional_strategy: 'concat' is not possible"),
        (edit_config(rcps="yes"), "rcps: 'yes' is not possible"),
        (edit_config(complement_map={"7": 8}), "complement_map: expected A to pair with T"),
        (edit_config(complement_map=[7]), "complement_map: expected A to pair with T"),
        (edit_config(ssm_cfg={"d_state": 5}), "has shape .* config.json makes it"),
        (edit_config(ssm_cfg={"headdim": 5}), "unknown key ssm_cfg.headdim"),
        (edit_config(n_layer=4), "lacks the parameters caduceus.backbone.layers.3"),
        (edit_config(vocab_size=None), "embeddings.embedding.weight has shape|word_embeddings.* has shape"),
        (edit_config(rcps=False), "lacks the parameter caduceus.backbone.embeddings.word_embeddings.weight"),
        (
            edit_weights(lambda t: t[f"{LAYER}.mamba_rev.in_proj.weight"].add_(1)),
            f"{LAYER}.mamba_rev.in_proj.weight is not {LAYER}.mamba_fwd.in_proj.weight, with which config.json ties it",
        ),
        (edit_weights(lambda t: t.pop(f"{LAYER}.mamba_rev.A_log")), f"lacks the parameter {LAYER}.mamba_rev.A_log"),
        (edit_weights(lambda t: t.update({f"{LAYER}.extra": torch.ones(1)})), f"holds {LAYER}.extra, which"),
        (
            edit_weights(lambda t: t["lm_head.lm_head.weight"].add_(1)),
            "lm_head.lm_head.weight is not caduceus",
        ),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    plain_caduceus.write_folder(tmp_path / "m", rcps=True)
    damage(tmp_path / "m")
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(tmp_path / "m")
    assert str(tmp_path / "m") in str(caught.value)
