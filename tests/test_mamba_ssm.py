"""Next to mamba-ssm itself, where it and a GPU are: folders that its own code writes, and its module."""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from foreign_folders import SEQUENCE, ours, theirs

import dnamamba
from dnamamba.formats import load_checkpoint
from dnamamba_kernels import compat

pytestmark = pytest.mark.gpu

UNUSED = {
    "transformers": (),
    "transformers.generation": ("GenerateDecoderOnlyOutput", "TextStreamer"),
    "transformers.utils": ("CONFIG_NAME", "WEIGHTS_NAME"),
    "transformers.utils.hub": ("cached_file",),
}
"""What mamba-ssm's models import for generation and downloads."""


@pytest.fixture
def mamba_ssm():
    return pytest.importorskip("mamba_ssm", reason="mamba-ssm is not installed")


@pytest.fixture
def models(mamba_ssm, monkeypatch):
    """The module of its language model."""
    if importlib.util.find_spec("transformers") is None:
        for name, attributes in UNUSED.items():
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
            for attribute in attributes:
                setattr(sys.modules[name], attribute, None)
    return importlib.import_module("mamba_ssm.models.mixer_seq_simple")


def off_the_start(module):
    """Not at its initial values, so that no parameter is without effect."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith("A_log"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_embeddings": False, "ssm_cfg": {"d_state": 8, "d_conv": 3, "expand": 1}},
        {"fused_add_norm": False, "residual_in_fp32": False, "ssm_cfg": {"layer": "Mamba1", "dt_rank": 5}},
    ],
)
def test_folders_that_it_writes_give_its_logits(models, tmp_path, options):
    torch.manual_seed(0)
    config = models.MambaConfig(**{"d_model": 64, "n_layer": 3, "vocab_size": 12} | options)
    model = off_the_start(models.MambaLMHeadModel(config, device="cuda"))
    model.save_pretrained(str(tmp_path / "theirs"))
    loaded, provenance = load_checkpoint(tmp_path / "theirs", "cuda")
    assert provenance["source_format"] == "state-spaces/mamba, token ids of HyenaDNA"
    with torch.no_grad():
        expected = model(theirs().cuda()).logits[..., 7:11]
        found = loaded(ours().cuda()).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    ready = dnamamba.load(tmp_path / "theirs", device="gpu", precision="fp32")
    by_base = ready.log_likelihood(SEQUENCE, context="unlimited")
    next_base = ours()[0, 1:]
    wanted = expected[0, :-1].log_softmax(-1).cpu().gather(1, next_base.clamp(max=3)[:, None])[:, 0]
    torch.testing.assert_close(torch.from_numpy(by_base)[1:][next_base < 4], wanted[next_base < 4], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 64, 16), (2, 128, 384), (3, 37, 24)])
def test_ours_takes_its_place(mamba_ssm, shape):
    torch.manual_seed(0)
    options = {"d_state": 8, "dt_rank": 6, "d_conv": 3}
    peer = off_the_start(mamba_ssm.Mamba(shape[-1], **options, device="cuda"))
    module = compat.Mamba(shape[-1], **options, device="cuda")
    module.load_state_dict(peer.state_dict())
    x, direction = torch.randn(shape, device="cuda"), torch.randn(shape, device="cuda")
    found, expected = module(x), peer(x)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    pairs = {name: (value.grad, module.get_parameter(name).grad) for name, value in peer.named_parameters()}
    for name, (wanted, ours_) in {"y": (expected, found), **pairs}.items():
        scale = wanted.detach().abs().max().item()
        torch.testing.assert_close(ours_, wanted, rtol=1e-3, atol=1e-4 * scale, msg=name)
