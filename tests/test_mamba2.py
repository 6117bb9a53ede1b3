"""Mamba-2's block against its formulas written out; the scan itself is tested in `test_kernels_ssd.py`."""

import pytest
import torch
import torch.nn.functional as F
from test_kernels_ssd import recurrence

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers import mixer_class


@torch.no_grad()
@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_the_block_is_the_papers(discretization):
    torch.manual_seed(0)
    config = ModelConfig(
        mixer="mamba2", d_model=6, d_state=5, head_dim=4, discretization=discretization, conv_bias=False
    )
    mixer = mixer_class("mamba2")(config).double()
    mixer.norm.weight.normal_()
    mixer.D.normal_()
    x = torch.randn(2, 23, 6, dtype=torch.float64)
    z, inside, dt = mixer.in_proj(x).split([12, 12 + 10, 3], -1)
    taps = mixer.conv1d.weight[:, 0]
    inside = F.silu(F.pad(inside, (0, 0, 3, 0)).unfold(1, 4, 1).mul(taps).sum(-1))
    values, B, C = inside[..., :12].unflatten(-1, (3, 4)), inside[..., 12:17], inside[..., 17:]
    delta, A = F.softplus(dt + mixer.dt_bias), -mixer.A_log.exp()
    weight = delta if discretization == "euler" else ((delta * A).exp() - 1) / A
    start = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    y, _ = recurrence(values, delta * A, weight, B[:, :, None], C[:, :, None], mixer.D, start, None)
    y = y.flatten(2) * F.silu(z)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    torch.testing.assert_close(mixer(x)[0], mixer.out_proj(y), atol=1e-10, rtol=1e-10)


def test_half_precision_computes_the_norm_twice_and_keeps_its_output_nowhere(monkeypatch):
    """Gradients of training in bf16 are those without recomputation, to the bit; and less is saved."""
    torch.manual_seed(0)
    mixer = mixer_class("mamba2")(ModelConfig(mixer="mamba2", d_model=32, d_state=8))
    x = torch.randn(2, 70, 32)
    found = []
    for recomputed in (True, False):
        if not recomputed:
            monkeypatch.setattr(mixer, "_output", lambda y, z: mixer._gated_projection(y.flatten(-2), z))
        saved: dict[int, int] = {}

        def pack(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda each: each):
            y, _ = mixer(x)
        gradients = torch.autograd.grad(y.float().square().sum(), list(mixer.parameters()))
        found.append((gradients, sum(saved.values())))
    (gradients, less), (expected, more) = found
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))
    assert more - less >= 2 * 70 * 64 * 2  # the norm's output: positions, channels, bytes
