"""Times sampling from a Mamba model and from a Hugging Face causal Transformer of the same size with static KV cache.

    python pipelines/generation_speed.py [--preset 7m] [--batch 64] [--prompt 16384] [--bases 512] [--out FILE.csv]

Sequences at a time may be several numbers; `figure_8.py` draws them.

Both have fresh weights: time does not depend on them. The Transformer is transformers' Llama (head size 64, as many
parameters as the Mamba model to 1 %, half as many layers: attention and MLP are two blocks) in bf16 with PyTorch's
scaled dot product attention. It is timed step by step as its `generate` works, and with the whole step, sampling
included, as a CUDA graph, which is more than `generate` does and the figure to compare with. Mamba runs as
`python -m dnamamba.generate` runs it. Prompts are different random bases in every row. On a CPU (for trying the script)
there are no graphs.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measured import write_rows
from torch import Tensor

from dnamamba.alphabet import BASES, VOCABULARY_SIZE
from dnamamba.inference.device import MICRO_TOKENS_GPU, Compute
from dnamamba.inference.graphs import record
from dnamamba.inference.load import Inference, Precision
from dnamamba.inference.sampling import Generator, Sampling, draw
from dnamamba.model.config import ModelConfig, preset
from dnamamba.model.kernels import describe_kernels
from dnamamba.model.language_model import LanguageModel

HEAD = 64
"""Width of an attention head"""
WARM_UP = 16
"""Bases sampled before the clock starts"""
Row = dict[str, Any]


def transformer_of(parameters: int, d_model: int, n_layer: int, positions: int) -> transformers.LlamaForCausalLM:
    """Its MLP as wide as it takes to have so many parameters."""
    rest = parameters - d_model * VOCABULARY_SIZE - n_layer * (4 * d_model**2 + 2 * d_model)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=d_model,
        intermediate_size=8 * round(rest / n_layer / 3 / d_model / 8),
        num_hidden_layers=n_layer,
        num_attention_heads=max(d_model // HEAD, 1),
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def seconds_of(device: torch.device, function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, the device's work included, and what it returns."""
    synchronize(device)
    began = time.perf_counter()
    value = function()
    synchronize(device)
    return time.perf_counter() - began, value


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device, reset: bool = False) -> float:
    """GiB since the last reset."""
    if device.type != "cuda":
        return float("nan")
    value = torch.cuda.max_memory_allocated(device) / 2**30
    if reset:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return value


def time_ours(
    name: str, model: LanguageModel, precision: Precision, prompts: np.ndarray, bases: int, device: torch.device
) -> Row:
    peak(device, reset=True)
    assert precision != "auto"
    generator = Generator(Inference(model, Compute(device, precision, MICRO_TOKENS_GPU), {}, Path("fresh")), Sampling())
    samples = range(len(prompts))
    rows = list(prompts)
    generator.read([row[:256] for row in rows])  # compile
    read, position = seconds_of(device, lambda: generator.read(rows))
    prepare, _ = seconds_of(device, lambda: generator.continue_from(position, samples, WARM_UP))
    sample, _ = seconds_of(device, lambda: generator.continue_from(position, samples, bases))
    how = "CUDA graph" if device.type == "cuda" else "steps"
    return row_of(f"{name} {precision}", how, model, prompts, bases, read, prepare, sample, peak(device))


class TransformerSteps:
    """A base for every row of a static cache, again and again, at addresses that stay."""

    def __init__(self, model: transformers.LlamaForCausalLM, cache: transformers.StaticCache, logits: Tensor) -> None:
        self.model, self.cache = model, cache
        self.first = logits.clone()
        self.logits = logits
        self.read = int(cache.get_seq_length())
        self.advance = self.step
        self.uniforms = torch.zeros(len(logits), device=logits.device)
        self.tokens = torch.zeros(len(logits), dtype=torch.uint8, device=logits.device)

    def step(self) -> None:
        self.tokens.copy_(draw(self.logits, self.uniforms, 1.0, BASES))
        output = self.model(self.tokens.long()[:, None], past_key_values=self.cache, use_cache=True)
        self.logits.copy_(output.logits[:, -1, :BASES].float())

    def rewind(self) -> None:
        self.logits.copy_(self.first)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.read)

    def record(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.advance = record(self.step)

    def sample(self, uniforms: Tensor) -> Tensor:
        """(count, rows) uniform numbers to tokens, from the prompts on."""
        self.rewind()
        out = torch.empty(uniforms.shape, dtype=torch.uint8, device=uniforms.device)
        for tokens, numbers in zip(out, uniforms, strict=True):
            self.uniforms.copy_(numbers)
            self.advance()
            tokens.copy_(self.tokens)
        return out


def time_transformer(
    model: transformers.LlamaForCausalLM, prompts: np.ndarray, bases: int, device: torch.device
) -> list[Row]:
    """Two rows on a GPU: single steps, fewer of them, and the graph of a step."""
    peak(device, reset=True)
    tokens = torch.from_numpy(prompts).to(device)
    length = prompts.shape[1] + max(bases, WARM_UP) + 1
    length = -(-length // 64) * 64  # attention's kernels want it even

    def read() -> tuple[transformers.StaticCache, Tensor]:
        cache = transformers.StaticCache(config=model.config, max_cache_len=length)
        output = model(tokens.long(), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache, output.logits[:, -1, :BASES].float()

    model(tokens[:, :256].long(), use_cache=False)  # libraries are loaded
    reading, (cache, logits) = seconds_of(device, read)
    steps = TransformerSteps(model, cache, logits)
    uniforms = torch.rand(bases, len(prompts), device=device, generator=torch.Generator(device).manual_seed(0))
    rows = []
    prepare, _ = seconds_of(device, lambda: steps.sample(uniforms[:WARM_UP]))
    one_by_one = uniforms if device.type == "cpu" else uniforms[: max(bases // 8, WARM_UP)]  # slow, and even in time
    sample, eager = seconds_of(device, lambda: steps.sample(one_by_one))
    name = "Transformer bf16"
    rows.append(row_of(name, "steps", model, prompts, len(one_by_one), reading, prepare, sample, peak(device)))
    if device.type == "cuda":
        prepare, _ = seconds_of(device, steps.record)
        steps.sample(uniforms[:WARM_UP])
        sample, recorded = seconds_of(device, lambda: steps.sample(uniforms))
        rows.append(row_of(name, "CUDA graph", model, prompts, bases, reading, prepare, sample, peak(device)))
        same = (recorded[: len(eager)] == eager).float().mean().item()
        print(f"Transformer: {same:.2%} of the graph's bases are those of single steps")
    return rows


def row_of(
    name: str,
    how: str,
    model: Any,
    prompts: np.ndarray,
    bases: int,
    read: float,
    prepare: float,
    sample: float,
    gib: float,
) -> Row:
    batch, length = prompts.shape
    return {
        "model": name,
        "how": how,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch": batch,
        "prompt": length,
        "bases": bases,
        "prompt_s": read,
        "prepare_s": prepare,
        "ms_per_step": 1e3 * sample / bases,
        "tokens_per_s": batch * bases / sample,
        "with_prompt_tokens_per_s": batch * bases / (sample + read),
        "peak_gib": gib,
    }


def compare_generation(
    preset_name: str, batch: int, prompt: int, bases: int, device: torch.device, precisions: Sequence[Precision]
) -> list[Row]:
    """Rows of Mamba in each precision, then of the Transformer."""
    torch.manual_seed(0)
    config = preset(preset_name)
    mamba = LanguageModel(config).to(device).eval().requires_grad_(False)
    positions = prompt + bases + 64
    size = sum(parameter.numel() for parameter in mamba.parameters())
    transformer = transformer_of(size, config.d_model, config.n_layer // 2, positions).to(device, torch.bfloat16)
    prompts = np.random.default_rng(0).integers(0, BASES, (batch, prompt), dtype=np.uint8)
    with torch.inference_mode():
        # A copy for each, so that none finds the other's memory or casts.
        mambas = [
            time_ours("Mamba", copy.deepcopy(mamba), precision, prompts, bases, device) for precision in precisions
        ]
        return [*mambas, *time_transformer(transformer, prompts, bases, device)]


def report(rows: Sequence[Row], config: ModelConfig, device: torch.device) -> None:
    """Prints the rows of one batch, their ratios, and what a step of the Transformer must read at least."""
    for row in rows:
        print(
            f"{row['model']:17} {row['how']:11} {row['parameters']:>10,} parameters  {row['batch']} x {row['prompt']:,}"
            f"  prompt {row['prompt_s']:6.2f} s  {row['ms_per_step']:7.3f} ms a step"
            f"  {row['tokens_per_s']:>10,.0f} tokens/s  ({row['with_prompt_tokens_per_s']:>9,.0f} with the prompt)"
            f"  peak {row['peak_gib']:5.1f} GiB  prepared in {row['prepare_s']:.2f} s"
        )
    mambas, others = ([row for row in rows if row["model"].startswith(name)] for name in ("Mamba", "Transformer"))
    for one, other in itertools.product(mambas, others):
        ratio = one["tokens_per_s"] / other["tokens_per_s"]
        whole = one["with_prompt_tokens_per_s"] / other["with_prompt_tokens_per_s"]
        print(f"{one['model']} to {other['model']} ({other['how']}): {ratio:.1f}x; with the prompt {whole:.1f}x")
    if device.type == "cuda":
        keys = 2 * 2 * (rows[0]["prompt"] + rows[0]["bases"] // 2) * config.d_model * (config.n_layer // 2)
        gb = keys * rows[0]["batch"] / 1e9
        print(f"the Transformer's cache, which every step reads, is {gb:.1f} GB: {gb / 3.35:.2f} ms at 3.35 TB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="7m", help="of the Mamba model")
    parser.add_argument("--batch", type=int, nargs="+", default=[64], help="sequences at a time")
    parser.add_argument("--prompt", type=int, default=16_384, help="bases of each prompt")
    parser.add_argument("--bases", type=int, default=512, help="bases sampled a sequence")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    began = time.perf_counter()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, transformers {transformers.__version__}, {describe_kernels(device)}")
    rows: list[Row] = []
    for batch in arguments.batch:
        own = compare_generation(arguments.preset, batch, arguments.prompt, arguments.bases, device, ("fp32", "bf16"))
        report(own, preset(arguments.preset), device)
        rows += own
    print(f"{time.perf_counter() - began:.0f} s in all")
    if arguments.out is not None:
        write_rows(rows, arguments.out)


if __name__ == "__main__":
    main()
