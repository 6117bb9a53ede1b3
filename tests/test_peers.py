"""The peers of `pipelines/side_by_side.py`, with our stand-in for mamba-ssm's module in place of its own."""

import math
import sys
import types
from pathlib import Path

import pytest
import torch

from dnamamba.model.config import ModelConfig
from dnamamba_kernels.compat import Mamba

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"


def plain_add_norm(x, weight, bias, residual=None, *, eps, **options):
    """What mamba-ssm's fused kernel computes with these options."""
    assert bias is None and options == {"prenorm": True, "residual_in_fp32": True, "is_rms_norm": True}
    residual = x if residual is None else x + residual
    return residual * torch.rsqrt(residual.square().mean(-1, keepdim=True) + eps) * weight, residual


@pytest.fixture
def side_by_side(monkeypatch):
    """The script, with a package of mamba-ssm's names."""
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.ops.triton.layer_norm"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["mamba_ssm"].Mamba = Mamba
    sys.modules["mamba_ssm.ops.triton.layer_norm"].layer_norm_fn = plain_add_norm
    monkeypatch.syspath_prepend(str(PIPELINES))
    monkeypatch.delitem(sys.modules, "peers", raising=False)
    import side_by_side

    yield side_by_side
    sys.modules.pop("peers", None)


@pytest.mark.parametrize("rcps", [False, True], ids=["ph", "ps"])
def test_a_peer_is_the_model_that_its_folder_gives(side_by_side, tmp_path, rcps):
    torch.manual_seed(1)
    ours, peer = side_by_side.caduceus(rcps, tmp_path, "cpu", d_model=16, n_layer=4)
    assert ours.model.config.rc_equivariant is rcps and ours.model.config.mixers == ("bimamba",) * 4
    assert max(side_by_side.check(ours, peer, 2, 50)) < 1e-4
    inputs, targets = side_by_side.batch_of(ours.model, 2, 50)
    assert 0 < (targets < 4).sum() < targets.numel() / 2, "some bases are to be predicted"
    # Over all rows of its vocabulary, of which twelve are never right, the peer's loss is the larger one.
    assert ours.loss(inputs, targets) < peer.loss(inputs, targets) < ours.loss(inputs, targets) + 1.5


def test_ours_takes_the_weights_of_a_causal_peer_by_their_names(side_by_side):
    torch.manual_seed(1)
    config = ModelConfig(d_model=16, n_layer=2)
    ours, peer = side_by_side.causal([Mamba(16), Mamba(16)], config, "cpu")
    assert max(side_by_side.check(ours, peer, 2, 50)) < 1e-4


def test_the_peer_whose_steps_are_timed_predicts_the_next_base(side_by_side):
    from training_step import peer_loss, peer_model

    torch.manual_seed(1)
    model, tokens = peer_model(16), torch.randint(0, 4, (2, 51), dtype=torch.uint8)
    loss = peer_loss(model, tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    assert abs(loss.item() - math.log(16)) < 0.2, "one row of its vocabulary is as likely as another at first"
    gradients = [parameter.grad for parameter in model.parameters()]
    assert len(gradients) > 8 * 8 and all(gradient.isfinite().all() for gradient in gradients)


def test_another_model_is_found_out(side_by_side, tmp_path):
    torch.manual_seed(1)
    ours, peer = side_by_side.caduceus(True, tmp_path, "cpu", d_model=16, n_layer=2)
    with torch.no_grad():
        peer.model.caduceus.backbone["layers"][1].norm.weight.mul_(1.1)
    assert max(side_by_side.check(ours, peer, 2, 50)) > side_by_side.TOLERANCE
