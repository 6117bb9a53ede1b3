"""`dnamamba export`: read again with equal logits; and by transformers, where that is installed."""

import warnings

import numpy as np
import pytest
import torch
from foreign_folders import SEQUENCE, make_model, ours, write_state_spaces

from dnamamba import cli, export
from dnamamba.alphabet import decode, encode
from dnamamba.formats import load_checkpoint
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.inference.load import load_for_inference
from dnamamba.inference.sampling import Generator, Sampling


def run_export(tmp_path, model, *flags, provenance=None):
    save_checkpoint(model, tmp_path / "ours", provenance or {})
    flags = flags or ("--out", str(tmp_path / "hf"))
    return cli.run(export.main, ["--checkpoint", str(tmp_path / "ours"), *flags])


@pytest.mark.parametrize("overrides", [{}, {"tie_embeddings": False, "conv_bias": False, "d_conv": 7, "dt_rank": 3}])
def test_is_read_again(tmp_path, overrides):
    model = make_model(**overrides)
    assert run_export(tmp_path, model, provenance={"settings": {"length": 4096}}) == 0
    loaded, provenance = load_checkpoint(tmp_path / "hf")
    expected = model.config.__dict__ | {"dt_rank": model.config.rank}
    assert loaded.config.__dict__ == expected
    for name, value in model.state_dict().items():
        rows = 11 if value.shape[0] == 16 else None  # what lies beyond the tokens is no part of the model
        assert torch.equal(loaded.state_dict()[name][:rows], value[:rows]), name
    assert provenance["settings"] == {"length": 4096}
    assert load_for_inference(tmp_path / "hf", "cpu").trained_length == 4096
    assert provenance["exported_from"] != provenance["weights_sha256"]


def test_a_broadcast_step_is_a_projection_by_ones(tmp_path):
    model = make_model(dt_rank="broadcast")
    assert run_export(tmp_path, model) == 0
    loaded, _ = load_checkpoint(tmp_path / "hf")
    torch.testing.assert_close(loaded(ours()).logits, model(ours()).logits, rtol=0, atol=1e-6)


def test_foreign_models_become_ours(tmp_path):
    model = make_model()
    folder = write_state_spaces(tmp_path / "theirs", model)
    flags = ["--checkpoint", str(folder), "--format", "dnamamba", "--out", str(tmp_path / "ours")]
    assert cli.run(export.main, flags) == 0
    loaded, provenance = load_checkpoint(tmp_path / "ours")
    assert torch.equal(loaded(ours()).logits, model(ours()).logits)
    assert provenance["source_format"] == "state-spaces/mamba, token ids of HyenaDNA"


def test_what_transformers_cannot_hold_is_refused(tmp_path, capsys):
    assert run_export(tmp_path, make_model(discretization="zoh")) == 2
    expected = "model.discretization: 'zoh' cannot be exported: MambaForCausalLM has 'euler' alone"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "hf").mkdir()
    assert run_export(tmp_path, make_model()) == 2
    assert "exists already; choose another --out" in capsys.readouterr().err


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed (the extra dev has it)")


@pytest.fixture(params=[{"tie_embeddings": False}, {"dt_rank": "broadcast", "conv_bias": False, "d_conv": 8}], ids=str)
def exported(request, transformers, tmp_path):
    """Our model, transformers' of it, and the tokenizer; the folder alone decides what they are."""
    model = make_model(**request.param)
    assert run_export(tmp_path, model) == 0
    with warnings.catch_warnings(action="ignore"):
        other, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert type(other) is transformers.MambaForCausalLM
    assert not any(report.values()), report
    return model, other.eval(), tokenizer, tmp_path / "ours"


@pytest.mark.filterwarnings("ignore")
def test_exported_tokens_logits_and_generations_are_equal(exported):
    model, other, tokenizer, folder = exported
    tokens = tokenizer(SEQUENCE, return_tensors="pt")
    assert torch.equal(tokens.input_ids, ours())
    assert tokenizer("acgtuURyn[MASK]").input_ids == [0, 1, 2, 3, 3, 3, 4, 4, 4, 6]
    assert tokenizer.decode(tokens.input_ids[0]) == SEQUENCE
    with torch.no_grad():
        torch.testing.assert_close(other(**tokens).logits[..., :4], model(ours()).logits, rtol=0, atol=1e-4)
    prompts = [SEQUENCE[:40], SEQUENCE[5:22]]
    inference = load_for_inference(folder, "cpu", "fp32")
    expected = Generator(inference, Sampling(0.0, 4, 0)).generate([encode(p) for p in prompts], [0, 1], 150)
    texts = [decode(np.asarray(each)) for each in expected]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)  # on the left: the shorter one starts later
    found = other.generate(**batch, max_new_tokens=150, do_sample=False, use_cache=True)[:, 40:]
    assert tokenizer.batch_decode(found) == texts
    assert len(set(texts[0])) > 2
