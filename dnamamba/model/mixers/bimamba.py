"""The BiMamba mixer (Caduceus, arXiv 2403.03234): one Mamba reads forward, another in reverse.

    y = out_proj(mix_fwd(in_proj(x)) + mix_rev(in_proj(x)))

`mix` is the convolution, the selective scan and the gate; that of the reverse direction runs from the last position to
the first, so that nothing is flipped. The projections hold most of the parameters: shared, they make this hardly larger
than one Mamba.
"""

from collections.abc import Iterable

from torch import Tensor

from dnamamba.model.config import ModelConfig, Recompute
from dnamamba.model.mixers.mamba import MambaMixer, both_ways
from dnamamba.model.mixers.mixer import Mixer
from dnamamba.model.norm import RMSNorm


class BiMambaMixer(Mixer):
    """Each position sees all others; no state is carried. Parameters have Caduceus' names, those that are tied once,
    in `mamba_fwd`."""

    causal = False
    carries_state = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.mamba_fwd, self.mamba_rev = MambaMixer(config), MambaMixer(config)
        self.multiplies = config.bidirectional_strategy == "ew_multiply"
        self.is_tied = config.bidirectional_weight_tie
        if self.is_tied:
            del self.mamba_rev.in_proj, self.mamba_rev.out_proj

    @classmethod
    def describe(cls, config: ModelConfig) -> str:
        tied = "tied" if config.bidirectional_weight_tie else "separate"
        product = ", multiplied" if config.bidirectional_strategy == "ew_multiply" else ""
        return f"bidirectional {MambaMixer.describe(config)}, {tied} projections{product}"

    def forward(self, x: Tensor, state: None = None, sequence_ids: Tensor | None = None) -> tuple[Tensor, None]:
        """x (batch, length, d_model) → y of the same shape, and no state."""
        assert state is None
        return self._both_directions(x, sequence_ids, reverse=False), None

    def reverse(self, x: Tensor, sequence_ids: Tensor | None = None) -> Tensor:
        return self._both_directions(x, sequence_ids, reverse=True)

    def _both_directions(self, x: Tensor, sequence_ids: Tensor | None, reverse: bool) -> Tensor:
        """With `reverse` the two directions change roles."""
        fwd, rev = self.mamba_fwd, self.mamba_rev
        xz = fwd.in_proj(x)
        y_fwd, _ = fwd.mix(xz, None, sequence_ids, reverse)
        y_rev, _ = rev.mix(xz if self.is_tied else rev.in_proj(x), None, sequence_ids, not reverse)
        if self.is_tied and not self.multiplies:
            return fwd.out_proj(y_fwd + y_rev)
        out_fwd, out_rev = fwd.out_proj(y_fwd), (fwd if self.is_tied else rev).out_proj(y_rev)
        return out_fwd * out_rev if self.multiplies else out_fwd + out_rev

    def recomputing(
        self,
        norm: RMSNorm,
        hidden: Tensor,
        residual: Tensor | None,
        state: None,
        sequence_ids: Tensor | None,
        recompute: Recompute,
        both_strands: bool,
    ) -> tuple[Tensor, Tensor, None] | None:
        if self.multiplies or not self.is_tied:
            return None
        directions = [self.mamba_fwd, self.mamba_rev]
        found = both_ways(directions, norm, hidden, residual, sequence_ids, recompute, both_strands)
        return None if found is None else (*found, None)

    def output_weights(self) -> Iterable[Tensor]:
        return [each.out_proj.weight for each in self._with_projections()]

    def undecayed_parameters(self) -> Iterable[Tensor]:
        return [*self.mamba_fwd.undecayed_parameters(), *self.mamba_rev.undecayed_parameters()]

    def castable_parameters(self) -> Iterable[Tensor]:
        return [*self.mamba_fwd.castable_parameters(), *self.mamba_rev.castable_parameters()]

    def kept_bytes(self, recompute: Recompute, width: int) -> int:
        """See `dnamamba_kernels.block.both_ways`: the stream and y once, what else Mamba keeps for each direction."""
        if self.multiplies or not self.is_tied:
            return 0
        first = self.mamba_fwd
        stream, channels = first.kept_bytes("all", width), len(first.D)
        if recompute == "all":
            return stream
        cheap = 2 * first.kept_bytes("cheap", width) - stream - width * channels
        return cheap if recompute == "cheap" else cheap + width * (first.in_proj.in_features + 6 * channels)

    def flops_per_token(self, length: int) -> int:
        """Of both directions, tied projections once; a product needs out_proj's output of each."""
        again = 2 * self.mamba_fwd.out_proj.weight.numel() if self.is_tied and self.multiplies else 0
        return self.mamba_fwd.flops_per_token(length) + self.mamba_rev.flops_per_token(length) + again

    def _with_projections(self) -> list[MambaMixer]:
        return [self.mamba_fwd] if self.is_tied else [self.mamba_fwd, self.mamba_rev]
