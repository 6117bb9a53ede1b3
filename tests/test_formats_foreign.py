"""Models of other programs: read with equal logits in our token ids, written so that transformers loads them; hostile
and damaged files are refused in one line. Where transformers is installed, it is the other side."""

import json
import struct

import numpy as np
import pytest
import torch
from foreign_folders import SEQUENCE, make_model, ours, theirs, write_state_spaces

import dnamamba
from dnamamba import cli, info, predict
from dnamamba.errors import InputError
from dnamamba.formats import load_checkpoint
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.formats.vocabulary import HYENADNA

A_LOG = "backbone.layers.1.mixer.A_log"


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed (the extra dev has it)")


@pytest.mark.parametrize("pickled", [True, False])
@pytest.mark.parametrize(
    ("overrides", "config"),
    [
        ({}, {}),
        ({"tie_embeddings": False}, {"tie_embeddings": False}),
        (
            {"d_conv": 3, "expand": 1, "dt_rank": 4, "conv_bias": False},
            {"ssm_cfg": {"d_state": 5, "d_conv": 3, "expand": 1, "dt_rank": 4, "conv_bias": False, "layer": "Mamba1"}},
        ),
    ],
)
def test_state_spaces_folders_are_read(tmp_path, pickled, overrides, config):
    model = make_model(**overrides)
    random_state = torch.get_rng_state()
    loaded, provenance = load_checkpoint(write_state_spaces(tmp_path / "m", model, pickled, **config))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert loaded.config == model.config
    assert provenance["source_format"] == "state-spaces/mamba, token ids of HyenaDNA"
    assert len(provenance["weights_sha256"]) == 64
    assert torch.equal(loaded(ours()).logits, model(ours()).logits)
    assert (loaded.lm_head.weight is loaded.backbone.embedding.weight) == model.config.tie_embeddings
    for path in (tmp_path / "m").iterdir():  # nothing is still read from the file
        path.write_bytes(b"")
    assert torch.equal(loaded(ours()).logits, model(ours()).logits)


def test_half_precision_is_read_as_fp32(tmp_path):
    model = make_model().bfloat16().float()
    loaded, _ = load_checkpoint(write_state_spaces(tmp_path / "m", model, dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded(ours()).logits, model(ours()).logits)


def test_verbs_and_python_take_them(tmp_path, capsys):
    model = make_model()
    save_checkpoint(model, tmp_path / "ours", {})
    folder = write_state_spaces(tmp_path / "theirs", model)
    found, expected = (dnamamba.load(tmp_path / name, device="cpu") for name in ("theirs", "ours"))
    likelihoods = [each.log_likelihood(SEQUENCE, context="unlimited") for each in (found, expected)]
    np.testing.assert_array_equal(*likelihoods)
    assert found.generate("ACGT", length=30, seed=1) == expected.generate("ACGT", length=30, seed=1)
    assert cli.run(info.main, [str(folder)]) == 0
    assert "state-spaces/mamba" in capsys.readouterr().out
    assert cli.run(predict.main, ["--checkpoint", str(folder), "--input", "x.fa", "--out", "y.csv"]) == 2
    assert "a language model without classes" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["tokens.json", "tokenizer.json"])
def test_ids_that_a_folder_says_are_taken(tmp_path, how):
    model = make_model()
    folder = write_state_spaces(tmp_path / "m", model, pad_vocab_size_multiple=1, vocab_size=9)
    ids = {"C": 0, "A": 8, "T": 3, "G": 5, "[UNK]": 2}
    (folder / how).write_text(json.dumps(ids if how == "tokens.json" else {"model": {"type": "BPE", "vocab": ids}}))
    tensors = torch.load(folder / "pytorch_model.bin")
    for name in ("backbone.embedding.weight", "lm_head.weight"):
        old = tensors[name]
        tensors[name] = torch.full((9, 24), 7.0)
        for token, row in {**ids, "N": 2}.items():
            if token != "[UNK]":  # N has none of its own: it is the unknown token
                tensors[name][row] = old[HYENADNA[token]]
    torch.save(tensors, folder / "pytorch_model.bin")
    loaded, provenance = load_checkpoint(folder)
    assert provenance["source_format"] == f"state-spaces/mamba, token ids of {how}"
    assert torch.equal(loaded(ours()).logits, model(ours()).logits)
    assert torch.equal(loaded.backbone.embedding.weight[5], torch.zeros(24))  # no such token


class Rude:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def edit_config(**changes):
    def damage(folder):
        values = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({key: v for key, v in values.items() if v != "absent"}))

    return damage


def edit_weights(change):
    def damage(folder):
        tensors = torch.load(folder / "pytorch_model.bin")
        change(tensors)
        torch.save(tensors, folder / "pytorch_model.bin")

    return damage


def flip_byte(folder):
    """Of a number, which no other check can see."""
    path = folder / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    data[data.index(torch.load(path)["backbone.norm_f.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(data)


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def huge_header(folder):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_config(rms_norm=False), "config.json: rms_norm False is not supported, only True"),
        (edit_config(ssm_cfg={"layer": "Mamba2"}), "config.json: layer 'Mamba2' is not supported, only 'Mamba1'"),
        (edit_config(ssm_cfg={"bias": True}), "config.json: bias True is not supported"),
        (edit_config(ssm_cfg={"headdim": 64}), "config.json: unknown key ssm_cfg.headdim"),
        (edit_config(ssm_cfg=[]), r"config.json: ssm_cfg: expected a JSON object, found \[\]"),
        (edit_config(attn_layer_idx=[1]), r"config.json: attn_layer_idx \[1\] is not supported"),
        (edit_config(depth=3), "config.json: unknown key depth"),
        (edit_config(vocab_size="absent"), "config.json: lacks vocab_size"),
        (edit_config(vocab_size=10**400), "embedding.weight has shape"),
        (edit_config(vocab_size=True), "config.json: vocab_size: True is not possible"),
        (edit_config(d_model="wide"), "config.json: model.d_model: 'wide' is not possible"),
        (edit_config(n_layer=10**12), "n_layer: 1000000000000 is not possible, expected a whole number from 1 to 1024"),
        (edit_config(n_layer=1000), "lacks the parameters backbone.layers.2"),
        (edit_config(n_layer=1), "holds backbone.layers.1"),
        (edit_config(ssm_cfg={"d_state": 5, "expand": 10**30}), "sizes that no tensor can have"),
        (edit_config(ssm_cfg={"d_state": 6}), r"mixer.\w+(.weight)? has shape .* config.json makes it"),
        (edit_config(model_type="gpt2"), "model_type 'gpt2', which none of"),
        (write("config.json", b"[" * 100_000), "config.json: not readable as JSON"),
        (write("config.json", b'{"n_layer": ' + b"9" * 5000 + b"}"), "config.json: not readable as JSON"),
        (edit_weights(lambda tensors: tensors.pop(A_LOG)), f"lacks the parameter {A_LOG} that config.json"),
        (
            edit_weights(lambda tensors: tensors.update({"backbone.extra": torch.ones(1)})),
            "holds backbone.extra, which",
        ),
        (edit_weights(lambda tensors: tensors[A_LOG][3].fill_(torch.nan)), f"{A_LOG} holds NaN"),
        (edit_weights(lambda tensors: tensors.update({A_LOG: tensors[A_LOG].long()})), f"{A_LOG} is torch.int64"),
        (
            edit_weights(lambda tensors: tensors.update({A_LOG: torch.zeros(1).expand(1 << 40, 5)})),
            f"{A_LOG} has shape",
        ),
        (edit_weights(lambda tensors: tensors.update({A_LOG: [1]})), f"found '{A_LOG}': list"),
        (
            edit_weights(lambda tensors: tensors["lm_head.weight"].add_(1)),
            "lm_head.weight is not backbone.embedding.weight, with",
        ),
        (edit_weights(lambda tensors: tensors.update({"b\nc": torch.ones(1)})), r"holds 'b\\nc', which the model"),
        (
            edit_weights(lambda t: t.update({f"backbone.layers.{'9' * 5000}.x": torch.ones(1)})),
            "holds backbone.layers.9",
        ),
        (
            edit_weights(lambda tensors: tensors.update({"lm_head.weight": torch.zeros(1).expand(1 << 40)})),
            "lm_head.weight has shape",
        ),
        (lambda folder: torch.save([1], folder / "pytorch_model.bin"), "expected names and their tensors, found list"),
        (lambda folder: (folder / "pytorch_model.bin").unlink(), "lacks model.safetensors or pytorch_model.bin"),
        (write("pytorch_model.bin", b"\x80\x02garbage"), "not weights that torch reads without running code"),
        (flip_byte, "pytorch_model.bin: damaged, the checksum of '.*' in it is another; copy it again"),
        (write("pytorch_model.bin", b""), "not weights that torch reads without running code"),
        (write("model.safetensors", b"\xff" * 100), "not a readable safetensors file"),
        (huge_header, "not a readable safetensors file"),
        (edit_config(vocab_size=17), "embedding.weight has shape .* makes it"),
        (write("tokens.json", b'{"A": 1, "C": 2, "G": 3}'), "tokens.json: no token T; .* single bases"),
        (write("tokens.json", b'{"A": 1, "C": 2, "G": 3, "T": 16}'), "id 16 of the token T is none of .* 16 rows"),
        (write("tokens.json", b'{"A": 1, "C": 2, "G": 3, "T": "4"}'), "id '4' of the token T"),
        (write("tokens.json", b'{"A": 1, "C": 2, "G": 3, "T": 3}'), "share an id"),
        (write("tokenizer.json", b'{"model": {"vocab": {"A": 0, "ACG": 1}}}'), r"tokens of several bases \(ACG\)"),
        (write("tokenizer.json", b'{"model": 3}'), "tokenizer.json: expected model.vocab"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    folder = write_state_spaces(tmp_path / "m", make_model())
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_nothing_explains_is_refused(tmp_path):
    folder = write_state_spaces(tmp_path / "m", make_model(), vocab_size=40)
    names = ("backbone.embedding.weight", "lm_head.weight")
    edit_weights(lambda tensors: tensors.update(dict.fromkeys(names, torch.ones(40, 24))))(folder)
    with pytest.raises(InputError, match=r"a vocabulary of 40 tokens, and no tokenizer.json .*; add tokens.json with"):
        load_checkpoint(folder)


def test_no_code_in_a_file_is_run(tmp_path):
    folder = write_state_spaces(tmp_path / "m", make_model())
    torch.save({A_LOG: Rude(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="without running code"):
        load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_many_missing_parameters_are_counted(tmp_path):
    folder = write_state_spaces(tmp_path / "m", make_model())
    edit_weights(lambda t: [t.pop(name) for name in list(t) if "layers.1" in name and "A_log" not in name])(folder)
    with pytest.raises(InputError, match=r"lacks the parameter backbone.layers.1.\S+(, \S+){3} and 5 more that"):
        load_checkpoint(folder)


@pytest.mark.filterwarnings("ignore")
class TestWithTransformers:
    """transformers itself loads what we write, and we what it writes."""

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"tie_word_embeddings": False, "use_conv_bias": False, "vocab_size": 12, "conv_kernel": 3},
            {"time_step_rank": 5, "expand": 3, "layer_norm_epsilon": 1e-2, "residual_in_fp32": False},
        ],
    )
    def test_logits_of_its_models_are_equal(self, transformers, tmp_path, options):
        torch.manual_seed(0)
        config = transformers.MambaConfig(
            **({"vocab_size": 16, "hidden_size": 24, "num_hidden_layers": 3, "state_size": 5} | options)
        )
        model = transformers.MambaForCausalLM(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "A_log" not in name and "norm" not in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
            expected = model(theirs()).logits[..., 7:11]
        model.save_pretrained(tmp_path / "hf")
        loaded, provenance = load_checkpoint(tmp_path / "hf")
        assert provenance["source_format"] == "Hugging Face MambaForCausalLM, token ids of HyenaDNA"
        assert expected.std() > 0.1
        torch.testing.assert_close(loaded.eval()(ours()).logits, expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"use_bias": True}, "config.json: use_bias True is not supported, only False"),
            ({"hidden_act": "gelu"}, "config.json: hidden_act 'gelu' is not supported"),
            ({"state_size": 300}, "config.json: model.state_size: 300 is not possible, expected a whole number from 1"),
        ],
    )
    def test_what_our_models_cannot_hold_is_refused(self, transformers, tmp_path, options, message):
        options = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1} | options
        transformers.MambaForCausalLM(transformers.MambaConfig(**options)).save_pretrained(tmp_path / "hf")
        with pytest.raises(InputError, match=message):
            load_checkpoint(tmp_path / "hf")

    def test_a_model_without_its_head_is_refused_by_name(self, transformers, tmp_path):
        options = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1}
        transformers.MambaModel(transformers.MambaConfig(**options)).save_pretrained(tmp_path / "hf")
        with pytest.raises(InputError, match=r"lacks the parameter backbone\.embeddings\.weight"):
            load_checkpoint(tmp_path / "hf")
