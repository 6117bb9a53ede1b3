"""What a model is made of, as plain data: no torch here, so that `--help` is instant.

`ModelConfig` is written to a checkpoint's config.json and alone decides the shapes of all parameters. `PRESETS` are the
sizes of the Mamba paper's genomics experiments (arXiv 2312.00752, Appendix E.3), named by their parameter counts.
"""

import math
import sys
from collections import ChainMap, Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, get_args

from dnamamba.alphabet import BASES, VOCABULARY_SIZE
from dnamamba.errors import InputError, quoted
from dnamamba.model.mixers import MIXERS, MOST_BLOCKS, PATTERNS, mixers_of
from dnamamba.model.objectives import OBJECTIVES

Discretization = Literal["euler", "zoh"]
DtRank = int | Literal["auto", "broadcast"]
Kind = Literal["multiclass", "multilabel", "regression"]
"""Of a classifier's outputs: one of the classes, any of the labels, a number for each target."""
Recompute = Literal["none", "cheap", "all"]
"""What a backward pass computes again rather than keeps (`Backbone.recompute`)"""
Pooling = Literal["last", "mean", "alleles"]
"""What a head sees: the last state, the mean, or what two alleles differ in (`dnamamba.model.alleles`)."""
Strands = Literal["one", "mean", "both"]
"""What a classifier's head sees: the strand as given, the mean of the two strands' features, or both side by side."""


class Bounds(NamedTuple):
    """What a field's values may be."""

    kinds: tuple[type, ...]
    holds: Callable[[Any], bool]
    expected: str

    def refuse_others(self, name: str, value: Any) -> None:
        """Raises `InputError` naming the field unless the value lies within."""
        is_kind = isinstance(value, self.kinds) and (bool in self.kinds or not isinstance(value, bool))
        if not is_kind or not self.holds(value):
            raise InputError(f"model.{name}: {quoted(value)} is not possible, expected {self.expected}")


def whole(least: int, most: int | None = None) -> Bounds:
    """Whole numbers from `least` to `most`, both included."""
    span = f"of at least {least}" if most is None else f"from {least} to {most}"
    return Bounds((int,), lambda value: least <= value <= (value if most is None else most), f"a whole number {span}")


def one_of(choices: Collection[str]) -> Bounds:
    """Names; those that `choices` holds when the value is checked."""
    return Bounds((str,), lambda value: value in choices, " or ".join(map(repr, choices)))


POSITIVE = Bounds((int, float), lambda value: 0 < value <= sys.float_info.max, "a number above 0")
TRUTH = Bounds((bool,), lambda value: True, "true or false")
MIXER = one_of(ChainMap(MIXERS, PATTERNS))
PATTERN = Bounds((str,), lambda value: value == "" or bool(mixers_of(value)), "a pattern")
SELECTIVE = Bounds(
    (str,),
    lambda value: value == "none" or Counter(value.split(",")) <= Counter(("dt", "B", "C")),
    'some of dt, B and C, such as "dt,B", or "none"',
)
WIDTH = Bounds(
    (int, str), lambda value: value == "auto" if isinstance(value, str) else value >= 1, '"auto" or a whole number'
)
DT_RANK = Bounds(
    (int, str),
    lambda value: value in ("auto", "broadcast") if isinstance(value, str) else value >= 1,
    '"auto", "broadcast" or a whole number of at least 1',
)


def option(default: Any, bounds: Bounds, *, of: Collection[str] = (), **growth: Any) -> Any:
    """A field with its bounds.

    Args:
        of: the mixers that read it; empty for what many of them do.
        growth: of a field that is newer than checkpoint format 1 `since`, the format's version that brought it, and
            `older`, the value that files without it mean (see `dnamamba.formats.fields`).
    """
    return field(default=default, metadata={"bounds": bounds, "of": of, **growth})


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a language model; raises `InputError` on values that no model can have."""

    d_model: int = option(128, whole(1))
    """Width of the residual stream."""
    n_layer: int = option(12, whole(1, MOST_BLOCKS))
    """Number of blocks, 1 to 1024: to make one takes time even where its sizes, which a checkpoint's header has to
    have, are nothing."""
    d_state: int = option(16, whole(1, 256))
    """Numbers of recurrent state a channel carries (N), 1 to 256."""
    d_conv: int = option(4, whole(2, 8))
    """Width of the causal depthwise convolution in bases, 2 to 8."""
    expand: int = option(2, whole(1))
    """Channels of the scan (D) a unit of d_model."""
    dt_rank: DtRank = option("auto", DT_RANK)  # noqa: RUF009
    """Rank R of the projection of the step Δ; "auto" is ceil(d_model / 16); "broadcast" is the paper's
    Δ = softplus(dt_bias + Broadcast_D(Linear_1(x)))."""
    dt_min: float = option(1e-3, POSITIVE)
    """Smallest step Δ at initialisation (log-uniform up to dt_max)."""
    dt_max: float = option(0.1, POSITIVE)
    """Largest step Δ at initialisation, at least dt_min."""
    dt_init_floor: float = option(1e-4, POSITIVE)
    """Steps Δ drawn below this are raised to it at initialisation."""
    discretization: Discretization = option("euler", one_of(get_args(Discretization)))  # noqa: RUF009
    """Input map of the recurrence: "euler" is Δ·B, as in mamba-ssm's code; "zoh" is (ΔA)⁻¹(exp(ΔA) − I)·ΔB, the exact
    zero-order hold of the paper."""
    residual_in_fp32: bool = option(True, TRUTH)
    """Keep the residual stream in fp32 under mixed precision."""
    norm_epsilon: float = option(1e-5, POSITIVE)
    """Added to the mean square inside RMSNorm."""
    conv_bias: bool = option(True, TRUTH)
    """Give the convolution a bias."""
    tie_embeddings: bool = option(True, TRUTH)
    """Let the output head share the embedding's weights."""
    vocabulary_size: int = option(VOCABULARY_SIZE, whole(BASES + 1))
    """Rows of the embedding: the alphabet's tokens, padded."""
    mixer: str = option("mamba", MIXER, since=2, older="mamba")
    """Sequence mixer of every block: mamba, mamba2, s4d, h3, hyena, attention, gated_mlp (which mixes no positions);
    bimamba, which sees both sides; or a pattern of two: transformer (attention, gated_mlp), hyenadna (hyena,
    gated_mlp)."""
    objective: str = option("next_base", one_of(OBJECTIVES), since=2, older="next_base")
    """What the model is trained to predict: next_base, from the bases before it; masked_base, from those on both sides,
    as models that see both sides need it."""
    pattern: str = option("", PATTERN, since=3, older="")
    """Mixers of successive blocks, in place of one mixer, such as mamba:3,attention: three blocks of Mamba, one of
    attention, and again from the start until there are n_layer."""
    selective: str = option("dt,B,C", SELECTIVE, of=("mamba", "bimamba"), since=3, older="dt,B,C")
    """What of Mamba's state space model depends on the input: any of dt, B and C, with commas, or none. The others are
    parameters of each channel, as in S4D."""
    kmer: int = option(1, whole(1, 64), since=4, older=1)
    """Bases that are embedded at a position, 1 to 64: its own and the kmer - 1 before it, each by a table of its own.
    More than one help a model to find earlier copies of what it reads."""
    s4d_init: Literal["lin", "inv", "real"] = option(
        "lin", one_of(("lin", "inv", "real")), of=("s4d", "h3"), since=3, older="lin"
    )
    """S4D's A at initialisation: lin, −1/2 + iπn, and inv are complex, with d_state / 2 states; real is −(n + 1)."""

    d_ff: int | Literal["auto"] = option("auto", WIDTH, of=("gated_mlp",), since=3, older="auto")
    """Inner width of a gated MLP; "auto" is 8/3 d_model, up to a multiple of 8."""

    head_dim: int | Literal["auto"] = option("auto", WIDTH, of=("attention", "mamba2"), since=3, older="auto")
    """Width of a head, of attention or Mamba-2; "auto" is the largest even divisor up to 64 of what is divided."""
    rope_base: float = option(10_000.0, POSITIVE, of=("attention",), since=3, older=10_000.0)
    """Base of the wavelengths of attention's rotary positions."""
    rope: bool = option(True, TRUTH, of=("attention",), since=4, older=True)
    """Rotate attention's queries and keys by their positions. Without, what is found does not depend on the distance:
    for copies anywhere in a long window, in models whose other blocks know the order of bases."""
    filter_length: int = option(32_768, whole(1), of=("hyena",), since=3, older=32_768)
    """Bases over which Hyena's filters fade at initialisation; in training the default is --length."""
    filter_width: int = option(64, whole(1), of=("hyena",), since=3, older=64)
    """Inner width of the networks that make Hyena's filters."""
    bidirectional_strategy: Literal["add", "ew_multiply"] = option(
        "add", one_of(("add", "ew_multiply")), of=("bimamba",), since=4, older="add"
    )
    """How bimamba joins its two directions: their sum, or their element-wise product."""
    bidirectional_weight_tie: bool = option(True, TRUTH, of=("bimamba",), since=4, older=True)
    """Let bimamba's two directions share in_proj and out_proj."""
    rc_equivariant: bool = option(False, TRUTH, since=4, older=False)
    """Read both strands with the same weights, as Caduceus-PS: the output for the reverse complement is the reverse
    complement of the output, exactly. Twice the work; hidden states are 2 · d_model wide; no position sees one side
    alone."""

    @property
    def mixers(self) -> tuple[str, ...]:
        """The mixer of each block."""
        period = mixers_of(self.pattern or self.mixer)
        return tuple(period[block % len(period)] for block in range(self.n_layer))

    @property
    def channels(self) -> int:
        """D: the channels of the convolution and the scan."""
        return self.expand * self.d_model

    @property
    def mlp_width(self) -> int:
        """Inner width of a gated MLP."""
        return -(-self.d_model // 3) * 8 if self.d_ff == "auto" else int(self.d_ff)

    def head_width(self, width: int) -> int:
        """Channels of a head, an even number, where all heads are `width` wide. Raises `InputError`."""
        sizes = [size for size in range(2, width + 1, 2) if width % size == 0]
        if self.head_dim != "auto" and self.head_dim not in sizes:
            raise InputError(f"model.head_dim: {self.head_dim} is not possible, expected an even divisor of {width}")
        if not sizes:
            raise InputError(f"model.d_model: heads need an even width, {width} is odd")
        return max(size for size in sizes if size <= 64) if self.head_dim == "auto" else int(self.head_dim)

    @property
    def rank(self) -> int:
        """R: columns of x_proj's output that make the step Δ."""
        if self.dt_rank == "auto":
            return math.ceil(self.d_model / 16)
        return 1 if self.dt_rank == "broadcast" else int(self.dt_rank)

    def __post_init__(self) -> None:
        for each in fields(self):
            each.metadata["bounds"].refuse_others(each.name, getattr(self, each.name))
        if self.dt_max < self.dt_min:
            raise InputError(f"model.dt_max: {self.dt_max!r} is not possible, expected at least dt_min = {self.dt_min}")
        if self.pattern and self.mixer != "mamba":
            raise InputError(f"model.pattern: it names the mixers of all blocks, leave out model.mixer {self.mixer}")
        if self.kmer > 1 and self.rc_equivariant:
            raise InputError(f"model.kmer: {self.kmer} is not possible with rc_equivariant: k-mers end on one strand")


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
    known = {field.name: field for field in fields(ModelConfig)}
    for key in overrides:
        if key not in known:
            raise InputError(f"model.{key}: no such option, choose among {', '.join(known)}")
    config = replace(PRESETS[name], **overrides)
    for key in overrides:
        readers = known[key].metadata["of"]
        if readers and not set(readers) & set(config.mixers):
            mixers = ", ".join(dict.fromkeys(config.mixers))
            raise InputError(f"model.{key}: an option of {' and '.join(readers)}, but the blocks are of {mixers}")
    return config
