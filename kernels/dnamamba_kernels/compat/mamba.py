"""mamba-ssm's module `Mamba`: constructor, parameters and calls of the same names.

Shapes (the legend of this file):
    batch, length   sequences and positions
    d_model         width in and out
    channels (D)    expand · d_model
    state    (N)    d_state
    rank     (R)    dt_rank
    width    (W)    d_conv
"""

import math
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional

from dnamamba_kernels import causal_conv1d, causal_conv1d_step, selective_scan, selective_scan_step
from dnamamba_kernels.checks import compute_dtype


class Mamba(nn.Module):
    """in_proj → [causal convolution, SiLU, selective scan] ⊙ SiLU(gate) → out_proj.

    A state dict of mamba-ssm's `Mamba` loads, and the other way round. Runs on the CPU and in fp64 too. Where it
    differs: a recurrent state that it allocates is fp32 for parameters of any dtype, and a cache may be continued by
    several positions at once.

    Args:
        d_model, d_state, d_conv (2 to 8), expand: the sizes above.
        dt_rank: R; "auto" is ceil(d_model / 16).
        dt_min, dt_max, dt_init, dt_scale, dt_init_floor: the first steps Δ are log-uniform in [dt_min, dt_max], none
            below dt_init_floor; the first dt_proj.weight is "random", uniform within ± dt_scale · R^−½, or "constant",
            all of them that.
        conv_bias: whether the convolution has a bias.
        bias: whether in_proj and out_proj have one.
        use_fast_path: taken and ignored: there is one path.
        layer_idx: the key of this layer's states in `inference_params.key_value_memory_dict`.
        device, dtype: of the parameters; A_log and D are fp32.

    Raises:
        NotImplementedError: another `dt_init`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = channels = int(expand * d_model)
        self.dt_rank = rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.in_proj = nn.Linear(d_model, 2 * channels, bias, device, dtype)  # x first, then the gate z
        # A holder of the taps and their bias, with torch's initialisation; the kernel does the work.
        self.conv1d = nn.Conv1d(
            channels, channels, d_conv, padding=d_conv - 1, groups=channels, bias=conv_bias, device=device, dtype=dtype
        )
        self.x_proj = nn.Linear(channels, rank + 2 * d_state, False, device, dtype)  # dt, then B, then C
        self.dt_proj = nn.Linear(rank, channels, True, device, dtype)
        A = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(A.log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels, device=device))
        self.out_proj = nn.Linear(channels, d_model, bias, device, dtype)
        self._initialise_step(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        # Marks that optimisers and initialisers written for mamba-ssm look for.
        self.A_log._no_weight_decay = self.D._no_weight_decay = True  # type: ignore[attr-defined]
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _initialise_step(self, low: float, high: float, kind: str, scale: float, floor: float) -> None:
        width = scale * self.dt_rank**-0.5
        if kind == "constant":
            nn.init.constant_(self.dt_proj.weight, width)
        elif kind == "random":
            nn.init.uniform_(self.dt_proj.weight, -width, width)
        else:
            raise NotImplementedError(f"dt_init must be 'constant' or 'random', got {kind!r}")
        dt = torch.empty(self.d_inner, device=self.D.device).uniform_(math.log(low), math.log(high)).exp()
        dt = dt.clamp(min=floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus⁻¹

    def _A(self, x: Tensor) -> Tensor:
        """(channels, state), negative, in the dtype of a scan of x."""
        return -torch.exp(self.A_log.to(compute_dtype(x)))

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """(batch, length, d_model) → the same shape.

        With `inference_params` (attributes `seqlen_offset` and `key_value_memory_dict`) the states after the last
        position go into its dictionary; where `seqlen_offset` is above 0, those before the first come from it.

        Raises:
            ValueError: `inference_params` without a `layer_idx` of this module, or with states of another batch.
        """
        if inference_params is None:
            return self._forward(hidden_states, None)
        states = self._cached(inference_params, hidden_states.shape[0])
        if inference_params.seqlen_offset == 0:
            for state in states:
                state.zero_()
        elif hidden_states.shape[1] == 1:
            return self.step(hidden_states, *states)[0]
        return self._forward(hidden_states, states)

    def _forward(self, hidden_states: Tensor, states: tuple[Tensor, Tensor] | None) -> Tensor:
        """`states` as of `step`, changed in place; None starts from zeros and keeps none."""
        inputs, z = self.in_proj(hidden_states).chunk(2, dim=-1)
        A = self._A(inputs)
        before = None if states is None else self._before(inputs, states[0])
        x, _ = causal_conv1d(inputs, self.conv1d.weight.squeeze(1), self.conv1d.bias, initial_state=before)
        dt, B, C = self._projected(x)
        entering = None if states is None else states[1].to(A.dtype, copy=True)
        y, last = selective_scan(x, dt, A, B, C, D=self.D, z=z, dt_bias=self.dt_proj.bias, initial_state=entering)
        if states is not None:
            self._keep(states, inputs, last)
        return self.out_proj(y)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (…, channels) → dt (…, channels) before bias and softplus, B and C (…, state)."""
        dt, B, C = self.x_proj(x).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        return functional.linear(dt, self.dt_proj.weight), B, C

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One position: (batch, 1, d_model) → the same shape, and the states, changed in place.

        Args:
            conv_state: (batch, channels, width), the convolution's last inputs, the newest last.
            ssm_state: (batch, channels, state).
        """
        if hidden_states.shape[1] != 1:
            raise ValueError(f"step takes one position, got {tuple(hidden_states.shape)}: call forward for several")
        inputs, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)
        A, before = self._A(inputs), self._before(inputs, conv_state)
        x, _ = causal_conv1d_step(inputs, self.conv1d.weight.squeeze(1), self.conv1d.bias, before)
        dt, B, C = self._projected(x)
        entering = ssm_state.to(A.dtype, copy=True)
        y, last = selective_scan_step(x, dt, A, B, C, entering, D=self.D, z=z, dt_bias=self.dt_proj.bias)
        self._keep((conv_state, ssm_state), inputs.unsqueeze(1), last)
        return self.out_proj(y).unsqueeze(1), conv_state, ssm_state

    def _before(self, x: Tensor, conv_state: Tensor) -> Tensor:
        """A cache's last inputs as the convolution takes them: (batch, width − 1, channels) in x's dtype."""
        return conv_state[:, :, 1:].transpose(1, 2).to(x.dtype).contiguous()

    def _keep(self, states: tuple[Tensor, Tensor], inputs: Tensor, last: Tensor) -> None:
        """Put into the cache what the convolution read, (batch, length, channels), and the state after it. No gradient
        goes through a cache, as it is written in place."""
        conv_state, ssm_state = states
        seen = torch.cat([conv_state, inputs.detach().transpose(1, 2).to(conv_state.dtype)], dim=-1)
        conv_state.copy_(seen[:, :, -self.d_conv :])
        ssm_state.copy_(last.detach())

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The states before the first position, zeros: (batch, channels, width) in `dtype`, by default that of the
        parameters, and (batch, channels, state) fp32. `max_seqlen` does not matter."""
        weight = self.conv1d.weight
        conv_state = weight.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype or weight.dtype)
        shape = batch_size, self.d_inner, self.d_state
        return conv_state, weight.new_zeros(shape, dtype=compute_dtype(conv_state))

    def _cached(self, inference_params: Any, batch: int) -> tuple[Tensor, Tensor]:
        """This layer's states in the cache, made where there are none."""
        if self.layer_idx is None:
            raise ValueError("inference_params needs a layer_idx, by which this layer's states are kept")
        cache = inference_params.key_value_memory_dict
        if self.layer_idx not in cache:
            cache[self.layer_idx] = self.allocate_inference_cache(batch, 0)
        states = cache[self.layer_idx]
        if states[0].shape[0] != batch:
            raise ValueError(f"the cached states are of {states[0].shape[0]} sequences, hidden_states of {batch}")
        return states
