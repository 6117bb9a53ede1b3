"""What tests of blocks that keep little for their backward pass share: models, packed windows, what is kept."""

from collections.abc import Callable

import torch
from torch import Tensor

from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel
from dnamamba_kernels import backends


def model_of(recompute: str | None, dtype: torch.dtype = torch.float64, **options) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(preset("demo", **{"n_layer": 2, "d_model": 12, "d_state": 4, "d_conv": 4} | options))
    model.backbone.recompute = recompute
    return model.to(dtype)


def packed(batch: int, length: int) -> Tensor:
    """Segments that change at borders of slices, just before and after them, and within."""
    changes = torch.zeros(batch, length, dtype=torch.int32)
    for sequence in range(batch):
        for position in (5, 15, 16, 31, 33, 46, 47, 63, 79)[sequence::2]:
            changes[sequence, position % length] = 1
    return changes.cumsum(1).int()


def held(model: LanguageModel, forward: Callable[[], Tensor]) -> int:
    """Bytes that the graph of a forward pass in bf16 holds, but for parameters."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        assert forward().requires_grad
    return sum(found.values())


def assert_backward_keeps_the_backends(model: LanguageModel, tokens: Tensor, monkeypatch) -> None:
    """Also where another is preferred by then, whose kept states stand elsewhere."""
    chosen, choose = [], backends.choose
    monkeypatch.setattr(backends, "choose", lambda name, *rest: chosen.append((name, rest[0])) or choose(name, *rest))
    with backends.preferred("scan", "reference"), backends.preferred("conv", "reference"):
        loss = model(tokens).logits.square().sum()
    loss.backward()
    assert {backend for name, backend in chosen if name != "norm"} == {"reference"}
