"""What a model is made of, as plain data: no torch here, so that `--help` is instant.

`ModelConfig` is written to a checkpoint's config.json and alone decides the shapes of all parameters. `PRESETS` are the
sizes of the Mamba paper's genomics experiments (arXiv 2312.00752, Appendix E.3), named by their parameter counts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from dnamamba.alphabet import BASES, VOCABULARY_SIZE
from dnamamba.errors import InputError

Discretization = Literal["euler", "zoh"]
DtRank = int | Literal["auto", "broadcast"]
Kind = Literal["multiclass", "multilabel", "regression"]
"""Of a classifier's outputs: one of the classes, any of the labels, a number for each target."""
Pooling = Literal["last", "mean", "alleles"]
"""What a head sees: the last state, the mean, or what two alleles differ in (`dnamamba.model.alleles`)."""
Strands = Literal["one", "mean", "both"]
"""What a classifier's head sees: the strand as given, the mean of the two strands' features, or both side by side."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a Mamba language model; raises `InputError` on values that no model can have."""

    d_model: int = 128
    """Width of the residual stream."""
    n_layer: int = 12
    """Number of blocks."""
    d_state: int = 16
    """Numbers of recurrent state a channel carries (N), 1 to 256."""
    d_conv: int = 4
    """Width of the causal depthwise convolution in bases, 2 to 8."""
    expand: int = 2
    """Channels of the scan (D) a unit of d_model."""
    dt_rank: DtRank = "auto"
    """Rank R of the projection of the step Δ; "auto" is ceil(d_model / 16); "broadcast" is the paper's
    Δ = softplus(dt_bias + Broadcast_D(Linear_1(x)))."""
    dt_min: float = 1e-3
    """Smallest step Δ at initialisation (log-uniform up to dt_max)."""
    dt_max: float = 0.1
    """Largest step Δ at initialisation."""
    dt_init_floor: float = 1e-4
    """Steps Δ drawn below this are raised to it at initialisation."""
    discretization: Discretization = "euler"
    """Input map of the recurrence: "euler" is Δ·B, as in mamba-ssm's code; "zoh" is (ΔA)⁻¹(exp(ΔA) − I)·ΔB, the exact
    zero-order hold of the paper."""
    residual_in_fp32: bool = True
    """Keep the residual stream in fp32 under mixed precision."""
    norm_epsilon: float = 1e-5
    """Added to the mean square inside RMSNorm."""
    conv_bias: bool = True
    """Give the convolution a bias."""
    tie_embeddings: bool = True
    """Let the output head share the embedding's weights."""
    vocabulary_size: int = VOCABULARY_SIZE
    """Rows of the embedding: the alphabet's tokens, padded."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: about a third more time, memory of one block instead of n_layer."""

    @property
    def channels(self) -> int:
        """D: the channels of the convolution and the scan."""
        return self.expand * self.d_model

    @property
    def rank(self) -> int:
        """R: columns of x_proj's output that make the step Δ."""
        if self.dt_rank == "auto":
            return math.ceil(self.d_model / 16)
        return 1 if self.dt_rank == "broadcast" else int(self.dt_rank)

    def __post_init__(self) -> None:
        def require(name: str, kind: type | tuple[type, ...], holds: Callable[[Any], bool], expected: str) -> None:
            value = getattr(self, name)
            is_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if not is_kind or not holds(value):
                raise InputError(f"model.{name}: {value!r} is not possible, expected {expected}")

        for name in ("d_model", "n_layer", "expand"):
            require(name, int, lambda value: value >= 1, "a whole number of at least 1")
        require("d_state", int, lambda value: 1 <= value <= 256, "a whole number from 1 to 256")
        require("d_conv", int, lambda value: 2 <= value <= 8, "a whole number from 2 to 8")
        require(
            "dt_rank",
            (int, str),
            lambda value: value in ("auto", "broadcast") if isinstance(value, str) else value >= 1,
            '"auto", "broadcast" or a whole number of at least 1',
        )
        for name in ("dt_min", "dt_init_floor", "norm_epsilon"):
            require(name, (int, float), lambda value: 0 < value < math.inf, "a number above 0")
        require(
            "dt_max", (int, float), lambda value: self.dt_min <= value < math.inf, f"at least dt_min = {self.dt_min}"
        )
        choices = get_args(Discretization)
        require("discretization", str, lambda value: value in choices, " or ".join(map(repr, choices)))
        for name in ("residual_in_fp32", "conv_bias", "tie_embeddings", "activation_checkpointing"):
            require(name, bool, lambda value: True, "true or false")
        require("vocabulary_size", int, lambda value: value > BASES, f"a whole number above {BASES}, the bases")


PRESETS: dict[str, ModelConfig] = {
    "demo": ModelConfig(n_layer=3, d_model=64, d_state=8, d_conv=8),
    "250k": ModelConfig(n_layer=8, d_model=64),
    "700k": ModelConfig(n_layer=10, d_model=96),
    "1.4m": ModelConfig(n_layer=12, d_model=128),
    "3.5m": ModelConfig(n_layer=14, d_model=192),
    "7m": ModelConfig(n_layer=16, d_model=256),
    "19m": ModelConfig(n_layer=20, d_model=384),
    "41m": ModelConfig(n_layer=24, d_model=512),
}
"""Blocks × width by name: the paper's sizes, and `demo`, which learns E. coli on two CPU cores in minutes."""


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The preset of this name with some fields replaced; raises `InputError` naming the choices otherwise."""
    if name not in PRESETS:
        raise InputError(f"model.preset: unknown preset {name!r}, choose one of {', '.join(PRESETS)}")
    known = [field.name for field in fields(ModelConfig)]
    for key in overrides:
        if key not in known:
            raise InputError(f"model.{key}: no such option, choose among {', '.join(known)}")
    return replace(PRESETS[name], **overrides)
