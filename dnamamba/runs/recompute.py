"""What the backward pass of a training computes again rather than keeps, where nobody has said so."""

import torch

from dnamamba.model.config import Recompute
from dnamamba.model.language_model import Backbone
from dnamamba.model.settings import ModelSettings

SHARES: dict[Recompute, float] = {"none": 0.5, "cheap": 0.75}
"""Of a GPU's memory that may be filled by what each keeps; beyond it the next is taken. The rest is for the gradients
of one block, whatever else the GPU holds, and parameters."""


def choose_recompute(
    backbone: Backbone, given: Recompute | None, settings: ModelSettings, positions: int, device: torch.device
) -> Recompute | None:
    """As `given` by --recompute; else as an older run had it; else the fastest that fits into the device's memory, with
    `positions` in one pass. On a CPU, which has memory enough, None: autograd keeps what it likes."""
    if given is not None:
        return given
    if settings.activation_checkpointing:
        return "all"
    if device.type != "cuda":
        return None
    memory = torch.cuda.get_device_properties(device).total_memory
    for recompute, share in SHARES.items():
        if positions * kept_bytes(backbone, recompute) <= share * memory:
            return recompute
    return "all"


def kept_bytes(backbone: Backbone, recompute: Recompute) -> int:
    """A position, on a GPU and in bf16, of all blocks whose mixers know it; of both strands where they are read."""
    of_a_strand = sum(block.mixer.kept_bytes(recompute, 2) for block in backbone.layers)
    return (1 + backbone.reads_both_strands) * of_a_strand
