"""What the command line can say of a model: a preset and changes to it. Torch-free."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from dnamamba.model.config import ModelConfig, preset


@dataclass
class ModelSettings:
    """Which model to train: a preset, and what to change in it."""

    preset: str | None = None
    """Size: demo, 250k, 700k, 1.4m, 3.5m, 7m, 19m or 41m (parameters). Default: demo for the demo genome, else 1.4m."""
    d_model: int | None = None
    """Width of the residual stream, in place of the preset's."""
    n_layer: int | None = None
    """Number of Mamba blocks, in place of the preset's."""
    d_state: int | None = None
    """States a channel, in place of the preset's 16."""
    discretization: Literal["euler", "zoh"] | None = None
    """Discretisation of B: euler as in Mamba's released code (the preset's), or the exact zero-order hold."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""


def model_config(settings: ModelSettings) -> ModelConfig:
    """The preset with the changes that were asked for. Raises `InputError`."""
    changes = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    return preset(changes.pop("preset"), **changes)
