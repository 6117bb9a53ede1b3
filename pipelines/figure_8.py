"""Speed as in figure 8 of the Mamba paper (arXiv 2312.00752): the scan against its rivals, and generation.

    python pipelines/figure_8.py --out runs/figure_8

Left: the operation that mixes positions alone, batch 1, 1024 channels, bf16, 512 to 524 288 positions, forward and with
the backward pass: our fused selective scan (16 states); the same as a parallel scan in PyTorch, which holds every state
in memory; a convolution as long as the sequence, by FFT; causal flash attention, 16 heads of 64. Right: bases sampled
a second after prompts of 2048 bases by Mamba (preset 7m) and by a Transformer of as many parameters with a KV cache,
both as CUDA graphs (`generation_speed.py`), batches of 1 to 128. Each operation is compared with a plain formula first,
and not timed where it differs. Up to 16 384 positions calls are captured: times are the GPU's, not Python's.

Writes operations.csv, generation.csv, figure_8.md and figure_8.png.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from generation_speed import compare_generation
from measured import Row, captured, conditions, markdown, median_ms, write_rows
from torch import Tensor

from dnamamba.model.mixers.long_convolution import causal_convolution
from dnamamba.outputs import write_atomically
from dnamamba.pictures.figures import save_png
from dnamamba_kernels import selective_scan

DEVICE = "cuda"
CHANNELS, STATE, HEADS = 1024, 16, 16
LENGTHS = tuple(1 << power for power in range(9, 20))
BATCHES = tuple(1 << power for power in range(8))
CAPTURED = 16_384
"""Positions up to which the host could be the limit."""
LIMIT = 0.02
"""Largest relative difference (of norms) of a bf16 result from the plain formula in fp32."""
Operation = Callable[..., Tensor]


def scan(x: Tensor, dt: Tensor, z: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    return selective_scan(x, dt, A, B, C, D=D, z=z, dt_bias=bias)[0]


def scan_in_pytorch(
    x: Tensor, dt: Tensor, z: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """The same, every state in memory: a parallel scan of (Ā, B̄x), (batch, length, channels, state) each."""
    delta = F.softplus(dt.float() + bias)
    decay = torch.exp(delta[..., None] * A)
    inputs = (delta * x)[..., None] * B[:, :, None]
    y = (parallel_scan(decay, inputs) * C[:, :, None]).sum(-1) + D * x
    return (y * F.silu(z.float())).to(x.dtype)


def parallel_scan(decay: Tensor, inputs: Tensor) -> Tensor:
    """h_t = decay_t h_{t−1} + inputs_t along dimension 1, of a power of two: pairs are merged, scanned, and spread
    again, in O(length) work (Blelloch's scan)."""
    if inputs.shape[1] == 1:
        return inputs
    merged = decay[:, 1::2] * inputs[:, ::2] + inputs[:, 1::2]
    odd = parallel_scan(decay[:, 1::2] * decay[:, ::2], merged)
    even = torch.cat((inputs[:, :1], decay[:, 2::2] * odd[:, :-1] + inputs[:, 2::2]), dim=1)
    return torch.stack((even, odd), dim=2).flatten(1, 2)


def convolution(x: Tensor, taps: Tensor) -> Tensor:
    return causal_convolution(x, taps)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def recurrence(x: Tensor, dt: Tensor, z: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """The scan, one position after the other."""
    delta = F.softplus(dt + bias)
    state, y = x.new_zeros(len(x), CHANNELS, STATE), []
    for t in range(x.shape[1]):
        state = torch.exp(delta[:, t, :, None] * A) * state + (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        y.append((state * C[:, t, None]).sum(-1))
    return (torch.stack(y, 1) + D * x) * F.silu(z)


def products(x: Tensor, taps: Tensor) -> Tensor:
    """The convolution, as a sum over shifts."""
    shifts = range(x.shape[1])
    return sum((F.pad(x, (0, 0, shift, 0))[:, : x.shape[1]] * taps[:, shift] for shift in shifts), torch.zeros_like(x))


def softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention, all weights in memory."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    ahead = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, -torch.inf).softmax(-1) @ value


OPERATIONS: dict[str, tuple[Operation, Operation]] = {
    "scan (ours)": (scan, recurrence),
    "scan in PyTorch": (scan_in_pytorch, recurrence),
    "convolution (FFT)": (convolution, products),
    "attention (flash)": (attention, softmax),
}
"""Name → what is timed, and the plain formula."""


def inputs_of(operation: Operation, length: int) -> list[Tensor]:
    """What a layer gives it at first, which all want gradients."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype)

    if operation is attention:
        tensors = [normal(1, HEADS, length, CHANNELS // HEADS) for _ in range(3)]
    elif operation is convolution:
        tensors = [normal(1, length, CHANNELS), normal(CHANNELS, length, dtype=torch.float32) / length]
    else:
        step = torch.exp(torch.rand(CHANNELS, generator=generator, device=DEVICE) * 4.6 - 6.9)  # 1e-3 to 0.1
        tensors = [normal(1, length, CHANNELS) for _ in range(3)] + [normal(1, length, STATE) for _ in range(2)]
        tensors.append(-torch.arange(1, STATE + 1, device=DEVICE, dtype=torch.float32).repeat(CHANNELS, 1))
        tensors += [torch.ones(CHANNELS, device=DEVICE), step + torch.log(-torch.expm1(-step))]
    return [tensor.requires_grad_() for tensor in tensors]


def check(name: str) -> None:
    """Raises `ValueError` where result or gradients are not those of the plain formula."""
    operation, plain = OPERATIONS[name]
    inputs = inputs_of(operation, LENGTHS[0])
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    y, expected = operation(*inputs), plain(*exact)
    dy = torch.randn_like(expected)
    found = [y, *torch.autograd.grad(y, inputs, dy.to(y.dtype))]
    for a, b in zip(found, [expected, *torch.autograd.grad(expected, exact, dy)], strict=True):
        error = ((a.float() - b).norm() / b.norm()).item()
        if not error <= LIMIT:
            raise ValueError(f"{name}: off by {error:.1e}")


def time_operation(name: str, length: int, repeats: int) -> Row:
    """Times in ms; NaN where the memory does not suffice."""
    operation, _ = OPERATIONS[name]
    inputs = inputs_of(operation, length)
    dy = torch.randn_like(inputs[0])

    @torch.no_grad()
    def forward() -> Tensor:
        return operation(*inputs)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(operation(*inputs), inputs, dy)

    row: Row = {"operation": name, "length": length}
    for column, run in (("forward_ms", forward), ("forward_backward_ms", both)):
        try:
            row[column] = round(median_ms(captured(run)[0] if length <= CAPTURED else run, repeats), 4)
        except torch.OutOfMemoryError:
            row[column] = math.nan
        torch.cuda.empty_cache()
    return row


def draw(operations: Sequence[Row], generation: Sequence[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, column, title in zip(
        axes, ("forward_ms", "forward_backward_ms"), ("forward", "forward and backward"), strict=False
    ):
        for name in OPERATIONS:
            own = [row for row in operations if row["operation"] == name and math.isfinite(row[column])]
            axis.plot(
                [row["length"] for row in own], [row[column] for row in own], marker="o", markersize=4, label=name
            )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set(xlabel="positions", ylabel="ms (lower is better)", title=f"{title}, batch 1, {CHANNELS} channels")
    for name in dict.fromkeys(row["model"] for row in generation):
        own = [row for row in generation if row["model"] == name]
        axes[2].plot([row["batch"] for row in own], [row["tokens_per_s"] for row in own], marker="o", label=name)
    axes[2].set_xscale("log", base=2)
    axes[2].set_yscale("log")
    axes[2].set(xlabel="sequences at a time", ylabel="bases/s (higher is better)", title="generation after 2048 bases")
    for axis in axes:
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    save_png(figure, path)


def tables(operations: Sequence[Row], generation: Sequence[Row]) -> str:
    """A line a length: forward / with backward in ms; and a line a batch."""
    cells = {
        (row["operation"], row["length"]): " / ".join(
            f"{row[column]:.3g}" if math.isfinite(row[column]) else "–"
            for column in ("forward_ms", "forward_backward_ms")
        )
        for row in operations
    }
    lengths = sorted({row["length"] for row in operations})
    left = [[f"{length:,}", *(cells.get((name, length), "") for name in OPERATIONS)] for length in lengths]
    rates = {(row["model"], row["batch"]): row["tokens_per_s"] for row in generation}
    models = list(dict.fromkeys(row["model"] for row in generation))
    right = []
    for batch in sorted({row["batch"] for row in generation}):
        values = [rates[model, batch] for model in models]
        right.append([str(batch), *(f"{value:,.0f}" for value in values), f"{values[0] / values[-1]:.2f}"])
    return markdown(["positions", *OPERATIONS], left) + "\n" + markdown(["batch", *models, "ratio"], right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/figure_8"), help="folder to write to")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="powers of two")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--prompt", type=int, default=2048, help="bases read before the sampled ones")
    parser.add_argument("--bases", type=int, default=512, help="bases sampled a sequence")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each operation")
    given = parser.parse_args()
    where = conditions()
    print(*(f"{key} {value}" for key, value in where.items()), sep=" · ", flush=True)
    operations: list[Row] = []
    for name in OPERATIONS:
        check(name)
        for length in given.lengths:
            operations.append(time_operation(name, length, given.repeats))
            print(*operations[-1].values(), flush=True)
    write_rows([{**row, **where} for row in operations], given.out / "operations.csv")
    generation: list[Row] = []
    for batch in given.batches:
        found = compare_generation("7m", batch, given.prompt, given.bases, torch.device("cuda"), ("bf16",))
        generation += [row for row in found if row["how"] == "CUDA graph"]
        print(*((row["model"], row["batch"], round(row["tokens_per_s"])) for row in generation[-2:]), flush=True)
    write_rows([{**row, **where} for row in generation], given.out / "generation.csv")
    text = tables(operations, generation)
    write_atomically(given.out / "figure_8.md", text)
    draw(operations, generation, given.out / "figure_8.png")
    print(text)


if __name__ == "__main__":
    main()
