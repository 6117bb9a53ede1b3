"""Whole training steps on sequences of up to a chromosome's length, with exact gradients, on one GPU.

    python pipelines/long_sequences.py [--genome chr20.fa.gz] [--lengths 1048576 4194304 16777216 contig 268435456]
        [--chunk 262144] [--recompute none] [--backprop chunked] [--check] [--out long_sequences.csv]

Each length is **one** sequence and one optimiser step: counts, gradients by chunks, clipping, fused AdamW. 8 layers,
d_model 256, expand 2, 16 states, bf16 autocast. `contig` is the whole first contig of --genome; the other lengths are
random bases. The tokens lie in the host's memory. Rows that --out holds already are not measured again.
--check compares gradients by chunks with those of the whole sequence first, in fp32 and bf16.
"""

import argparse
import csv
import io
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from measured import kept_rows

from dnamamba.genome.store import open_genome
from dnamamba.model.chunked_backward import bytes_on_device, state_bytes
from dnamamba.model.config import ModelConfig, Recompute
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.parameters import parameter_groups
from dnamamba.outputs import write_atomically
from dnamamba.training.backprop.chunked import chunked
from dnamamba.training.backprop.chunks import Chunks
from dnamamba.training.backprop.truncated import truncated
from dnamamba.training.data import WindowBatch
from dnamamba.training.window_parts import WindowParts
from dnamamba_kernels import backends

CUDA = torch.device("cuda")
SETTINGS = ("d_model", "n_layer", "backprop", "recompute", "chunk", "precision")
"""What is the same for all rows of a call"""


def windows_of(tokens: np.ndarray, model: LanguageModel) -> WindowParts:
    """One sequence of length + 1 uint8 tokens as a step's only window, in pinned memory."""
    batch = WindowBatch(torch.from_numpy(tokens)[None].pin_memory(), torch.zeros(1, dtype=torch.bool).pin_memory())
    return WindowParts(batch, model.objective, CUDA)


class Stepper:
    """A model, its optimiser, and whole steps."""

    def __init__(
        self, d_model: int, n_layer: int, backprop: str, recompute: Recompute, chunk: int, precision: str
    ) -> None:
        torch.manual_seed(0)
        self.model = LanguageModel(ModelConfig(d_model=d_model, n_layer=n_layer)).to(CUDA)
        self.model.backbone.recompute = recompute
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 0.1), lr=1e-4, fused=True)
        self.gradient = {"chunked": chunked, "truncated": truncated}[backprop]
        self.chunk, self.precision = chunk, precision

    def gradients(self, windows: WindowParts, chunk: int) -> torch.Tensor:
        """Adds the mean's gradient up; () fp64 bits a base."""
        counted = windows.counts()[0].float()
        with torch.autocast("cuda", torch.bfloat16, enabled=self.precision == "bf16"):
            nll = self.gradient(self.model, Chunks(windows, chunk), 1 / counted)
        return nll / counted / np.log(2)

    def step(self, windows: WindowParts) -> torch.Tensor:
        bits = self.gradients(windows, self.chunk)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return bits


def check(d_model: int, n_layer: int, recompute: Recompute, length: int) -> None:
    """The largest difference of a gradient by chunks from the whole sequence's, of its own norm: against the same
    difference of bf16 from fp32."""
    tokens = np.random.default_rng(1).integers(0, 4, length + 1).astype(np.uint8)
    found = {}
    for precision in ("fp32", "bf16"):
        for chunk in (length, length // 5 + 1):
            stepper = Stepper(d_model, n_layer, "chunked", recompute, chunk, precision)
            stepper.gradients(windows_of(tokens, stepper.model), chunk)
            found[precision, chunk] = {name: p.grad.double() for name, p in stepper.model.named_parameters()}

    def difference(one: tuple[str, int], other: tuple[str, int]) -> float:
        a, b = found[one], found[other]
        return max(float((a[name] - b[name]).norm() / b[name].norm()) for name in b)

    part = length // 5 + 1
    print(
        f"gradients of {length:,} bases by chunks of {part:,} against whole: fp32 "
        f"{difference(('fp32', part), ('fp32', length)):.1e}, bf16 {difference(('bf16', part), ('bf16', length)):.1e}; "
        f"against whole fp32: bf16 by chunks {difference(('bf16', part), ('fp32', length)):.1e}, "
        f"bf16 whole {difference(('bf16', length), ('fp32', length)):.1e}",
        flush=True,
    )


def measure(stepper: Stepper, windows: WindowParts) -> dict[str, str]:
    """Of one step."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    bits = float(stepper.step(windows))
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    state, borders = stepper.model.init_state(1), -(-windows.length // stepper.chunk) - 1
    return {
        "bases": str(windows.length),
        "mtoken_per_s": f"{windows.length / seconds / 1e6:.2f}",
        "seconds": f"{seconds:.2f}",
        "peak_gib": f"{torch.cuda.max_memory_allocated() / 2**30:.2f}",
        "borders_gib": f"{state_bytes(state) * borders / 2**30:.3f}",
        "borders_on": "device" if bytes_on_device(borders, state) else "host",
        "bits_per_base": f"{bits:.4f}",
    }


def warm_up(length: int, chunk: int) -> int:
    """Bases of a step that compiles the kernels of another: its first two chunks and one as long as its last. Those for
    an odd number of bases, or for few, are others."""
    return min(2 * chunk + (length - 1) % chunk + 1, length)


def tokens_of(length: str, genome: Path | None) -> np.ndarray:
    """(length + 1,) uint8"""
    if length != "contig":
        return np.random.default_rng(0).integers(0, 4, int(length) + 1, dtype=np.uint8)
    assert genome is not None, "--lengths contig needs --genome"
    store = open_genome([genome])
    contig = store.contigs[0]
    return np.array(store.read(contig.name, 0, contig.length))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genome", type=Path, help="FASTA whose first contig is the length `contig`")
    parser.add_argument("--lengths", nargs="+", default=["1048576", "4194304", "16777216", "contig", "268435456"])
    parser.add_argument("--chunk", type=int, default=262_144, help="bases of a chunk")
    parser.add_argument("--recompute", default="none", choices=get_args(Recompute))
    parser.add_argument("--backprop", default="chunked", choices=["chunked", "truncated"])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--d_model", type=int, default=256)
    parser.add_argument("--n_layer", type=int, default=8)
    parser.add_argument("--check", action="store_true", help="compare the gradients first")
    parser.add_argument("--out", type=Path, help="CSV file to write; rows that it holds are kept")
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {backends.describe('cuda')}", flush=True)
    if arguments.check:
        check(arguments.d_model, arguments.n_layer, arguments.recompute, 200_001)
    done = kept_rows(arguments.out)
    settings = {name: str(getattr(arguments, name)) for name in SETTINGS}
    keys = [{"sequence": length, **settings} for length in arguments.lengths]
    keys = [key for key in keys if not any(key.items() <= row.items() for row in done)]
    stepper = Stepper(**{name: getattr(arguments, name) for name in SETTINGS})
    for key in keys:
        tokens = tokens_of(key["sequence"], arguments.genome)
        stepper.step(windows_of(tokens[: warm_up(len(tokens) - 1, arguments.chunk) + 1], stepper.model))
        done.append(key | measure(stepper, windows_of(tokens, stepper.model)))
        print("  ".join(f"{name} {value}" for name, value in done[-1].items()), flush=True)
        if arguments.out:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(done[-1]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(done)
            write_atomically(arguments.out, text.getvalue())


if __name__ == "__main__":
    main()
