"""From which length on is Mamba faster than attention? Throughput, memory and bits per base of both, on one GPU.

    python pipelines/crossover.py --out runs/crossover [--d_model 128 256] [--lengths 512 ... 131072]
    python pipelines/show_classification.py runs/crossover/quality.yaml --minutes 9

Mamba of 16 blocks and a Transformer++ of as many (8 of attention, 8 gated MLPs; parameters equal to 1 %), 262 144 bases
a step whatever their length, bf16, AdamW. Both at their fastest: Mamba's step is captured as a CUDA graph; the
Transformer's mixers are compiled by torch.compile, each length anew, then captured, too (--whole compiles all of it at
once, to see whether that is faster; give it an --out of its own). Before a way to run is timed, its loss and gradients
are compared with those of plain steps. Rows that are there already are kept: to go on, or to measure again without
them, give the same or another --out.

Writes speed.csv, speed.md, speed.png, and quality.yaml: a workflow that trains both on equal tokens, and the
Transformer on as many as take it the time that Mamba's took, by the rates measured here.
"""

import argparse
import copy
import gc
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from measured import Row, captured, conditions, kept_rows, markdown, median_ms, write_rows
from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.mixers.mamba import MambaMixer
from dnamamba.model.parameters import parameter_count, parameter_groups
from dnamamba.outputs import write_atomically
from dnamamba.pictures.figures import save_png

TOKENS = 262_144
"""Bases a step."""
BLOCKS = 16
LENGTHS = tuple(1 << power for power in range(9, 18))
SYSTEMS = {"Mamba": "captured", "Transformer++": "compiled, captured"}
"""And how each is run."""
LIMITS = 2e-3, 1e-1
"""Largest relative differences of the loss, and of a parameter's gradient (norms), of a bf16 step run in two ways."""
QUALITY_TOKENS, QUALITY_BATCH = 33_554_432, 65_536
QUALITY_LENGTHS = (1024, 8192, 32_768)


def config_of(system: str, d_model: int) -> ModelConfig:
    """Of `BLOCKS` blocks; the Transformer's gated MLPs are as wide as it takes to have as many parameters as Mamba."""
    mamba = ModelConfig(d_model=d_model, n_layer=BLOCKS)
    if system == "Mamba":
        return mamba
    pair = 2 * sum(parameter.numel() for parameter in MambaMixer(mamba).parameters())
    return replace(mamba, mixer="transformer", d_ff=8 * round((pair - 4 * d_model**2) / (3 * d_model) / 8))


class Step:
    """A training step of a language model on random bases, and its forward pass alone."""

    def __init__(self, model: LanguageModel, length: int, whole: bool = False) -> None:
        """`whole` compiles all that the loss is made of at once."""
        self.model = model
        self.sums_of = torch.compile(model.loss, dynamic=False) if whole else model.loss
        self.optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-4, fused=True, capturable=True)
        generator = torch.Generator("cuda").manual_seed(0)
        shape = TOKENS // length, length + 1
        tokens = torch.randint(0, 4, shape, dtype=torch.uint8, device="cuda", generator=generator)
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def loss(self) -> Tensor:
        # Casts of a recording must not come from a cache; and code compiled with one would be compiled anew within it.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            sums = self.sums_of(self.inputs, self.targets)
        return sums.nll_sum / sums.counted

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """The loss and every parameter's gradient."""
        loss = self.loss()
        return loss.detach(), list(torch.autograd.grad(loss, list(self.model.parameters())))

    def train(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def forward(self) -> Tensor:
        return self.loss()


def measure(system: str, d_model: int, length: int, repeats: int, whole: bool = False) -> Row:
    """A row of the table; `whole` compiles what is compiled as a whole. Raises `ValueError` where the fast way does not
    give what plain steps give."""
    torch.manual_seed(0)
    plain = LanguageModel(config_of(system, d_model)).cuda()
    fast = copy.deepcopy(plain)
    fast.backbone.recompute = "none"  # as pretraining has it where the memory suffices
    whole = whole and "compiled" in SYSTEMS[system]
    if "compiled" in SYSTEMS[system] and not whole:
        for block in fast.backbone.layers:
            block.mixer.compile(dynamic=False)  # the norm between is a kernel already
    expected = Step(plain, length).gradients()
    release()
    replay, found = captured(Step(fast, length, whole).gradients)
    replay()
    compare(expected, found)
    del plain, expected, replay, found

    step = Step(fast, length, whole)
    step.train()
    release()
    step.train()
    peak = torch.cuda.max_memory_allocated() / 2**30
    train, _ = captured(step.train)
    milliseconds = median_ms(train, repeats)
    del train
    step.optimizer.zero_grad(set_to_none=True)
    release()
    forward, loss = captured(step.forward)
    forward_ms = median_ms(forward, repeats)
    if not math.isfinite(loss.item()):
        raise ValueError("not timed: the loss after training is not finite")
    return {
        "d_model": d_model,
        "length": length,
        "system": system,
        "how": ("as a whole " if whole else "") + SYSTEMS[system],
        "parameters": parameter_count(fast),
        "mtoken_per_s": round(TOKENS / milliseconds / 1e3, 3),
        "forward_mtoken_per_s": round(TOKENS / forward_ms / 1e3, 3),
        "peak_gib": round(peak, 2),
    }


def compare(expected: tuple[Tensor, list[Tensor]], found: tuple[Tensor, list[Tensor]]) -> None:
    """Raises `ValueError` where a loss or gradient is not the expected one to `LIMITS`."""
    errors = [(expected[0] - found[0]).abs() / expected[0]]
    errors += [(a - b).norm() / a.norm() for a, b in zip(expected[1], found[1], strict=True)]
    loss, *gradients = torch.stack(errors).tolist()
    if not (loss <= LIMITS[0] and max(gradients) <= LIMITS[1]):
        raise ValueError(f"not timed: the loss is off by {loss:.1e}, a gradient by {max(gradients):.1e}")


def release() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def crossing(lengths: Sequence[int], ratios: Sequence[float]) -> float | None:
    """The length from which on the ratio stays at 1 or above, interpolated over the logarithms of both; 0 where it is
    so at all lengths, None where it is not at the last."""
    if not ratios or ratios[-1] < 1:
        return None
    below = [index for index, ratio in enumerate(ratios) if ratio < 1]
    if not below:
        return 0.0
    one, other = below[-1], below[-1] + 1
    share = math.log(ratios[one]) / (math.log(ratios[one]) - math.log(ratios[other]))
    return lengths[one] * (lengths[other] / lengths[one]) ** share


def rates(rows: Sequence[Row], d_model: int, column: str) -> tuple[list[int], list[float], list[float]]:
    """Lengths at which both were measured, and both's values there, Mamba's first."""
    by_key = {(row["system"], int(row["length"])): float(row[column]) for row in rows if int(row["d_model"]) == d_model}
    lengths = sorted({length for _, length in by_key if all((system, length) in by_key for system in SYSTEMS)})
    mamba, other = ([by_key[system, length] for length in lengths] for system in SYSTEMS)
    return lengths, mamba, other


def crossings(rows: Sequence[Row]) -> list[str]:
    """A sentence a width and column."""
    lines = []
    for d_model in sorted({int(row["d_model"]) for row in rows}):
        for column, name in (("mtoken_per_s", "training"), ("forward_mtoken_per_s", "forward only")):
            lengths, mamba, other = rates(rows, d_model, column)
            if not lengths:
                continue
            found = crossing(lengths, [a / b for a, b in zip(mamba, other, strict=True)])
            where = "at none" if found is None else f"from {found:,.0f} bases on" if found else "at all"
            lines.append(
                f"d_model {d_model}, {name}, of lengths {lengths[0]:,} to {lengths[-1]:,}: Mamba is faster {where}"
            )
    return lines


def table(rows: Sequence[Row]) -> str:
    """A line a width and length; ratios are Mamba's rate over the Transformer's."""
    lines = []
    for d_model in sorted({int(row["d_model"]) for row in rows}):
        lengths, *training = rates(rows, d_model, "mtoken_per_s")
        forward, memory = (rates(rows, d_model, column)[1:] for column in ("forward_mtoken_per_s", "peak_gib"))
        for length, *values in zip(lengths, *training, *forward, *memory, strict=True):
            ratios = values[0] / values[1], values[2] / values[3]
            cells = [*values[:2], ratios[0], *values[2:4], ratios[1], *values[4:]]
            lines.append([str(d_model), f"{length:,}", *(f"{cell:.2f}" for cell in cells)])
    training, forward = ([f"Mamba{which}", f"Transformer++{which}", "ratio"] for which in ("", " forward"))
    return markdown(["d_model", "length", *training, *forward, "Mamba GiB", "Transformer++ GiB"], lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Rates and memory by length; a dotted line where Mamba overtakes the Transformer."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    panels = {"mtoken_per_s": "training, million bases/s", "forward_mtoken_per_s": "forward only, million bases/s"}
    panels["peak_gib"] = "peak memory of training, GiB"
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for d_model, style in zip(sorted({int(row["d_model"]) for row in rows}), ("-", "--", ":"), strict=False):
            lengths, *pair = rates(rows, d_model, column)
            for system, values, color in zip(SYSTEMS, pair, ("C0", "C1"), strict=True):
                label = f"{system}, {d_model} wide"
                axes.plot(lengths, values, style, color=color, marker="o", markersize=4, label=label)
            found = column != "peak_gib" and crossing(lengths, [a / b for a, b in zip(*pair, strict=True)])
            if found:
                axes.axvline(found, color="0.5", linestyle=":", linewidth=1)
                at = axes.get_xaxis_transform()
                axes.text(found, 0.98, f" {found:,.0f}", transform=at, va="top", fontsize=8, rotation=90)
        axes.set_xscale("log", base=2)
        if column == "peak_gib":
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log")
        axes.set_xticks(lengths, [f"{n >> 10}k" if n >= 1024 else str(n) for n in lengths])
        axes.xaxis.set_minor_formatter(NullFormatter())
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
        axes.set(xlabel="bases a sequence", title=title)
        axes.grid(alpha=0.3, which="both")
        if column == "mtoken_per_s":
            axes.legend(fontsize=8, loc="lower left")
    save_png(figure, path)


def quality(rows: Sequence[Row], d_model: int, genome: str) -> dict[str, Any]:
    """The workflow that trains both: on equal tokens, and for equal seconds by the rates of the table."""
    lengths, mamba, other = rates(rows, d_model, "mtoken_per_s")
    systems: dict[str, Row] = {}
    for length, one, two in zip(lengths, mamba, other, strict=True):
        if length not in QUALITY_LENGTHS:
            continue
        shared = {"length": length, "tokens": QUALITY_TOKENS}
        transformer = {**shared, "model.mixer": "transformer", "model.d_ff": config_of("Transformer++", d_model).d_ff}
        tokens = max(round(QUALITY_TOKENS * two / one / QUALITY_BATCH), 1) * QUALITY_BATCH
        systems[f"mamba-{length}"] = shared
        systems[f"transformer-{length}"] = transformer
        systems[f"transformer-{length}-seconds"] = {**transformer, "tokens": tokens}
    pretrain = {"genome": genome, "model.d_model": d_model, "model.n_layer": BLOCKS, "model.preset": "1.4m"}
    pretrain |= {"batch_tokens": QUALITY_BATCH, "markov_order": 0, "validation_every": 256}
    pretrain |= {"validation_tokens": 2_000_000}
    return {"pretrain": pretrain, "learning_rates": [0.002, 0.004], "systems": systems}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/crossover"), help="folder to write to")
    parser.add_argument("--d_model", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each")
    parser.add_argument(
        "--whole", action="store_true", help="compile the Transformer as a whole: takes minutes a length"
    )
    parser.add_argument(
        "--genome", default="$DNAMAMBA_TEST_DATA/genomes/human_chr20_GRCh37.fa.gz", help="in quality.yaml"
    )
    given = parser.parse_args()
    where, file = conditions(), given.out / "speed.csv"
    print(*(f"{key} {value}" for key, value in where.items()), sep=" · ", flush=True)
    rows = kept_rows(file)
    for d_model in given.d_model:
        for length in given.lengths:
            for system in SYSTEMS:
                if any((r["system"], int(r["d_model"]), int(r["length"])) == (system, d_model, length) for r in rows):
                    continue
                torch.compiler.reset()
                release()
                try:
                    rows.append({**measure(system, d_model, length, given.repeats, given.whole), **where})
                except (ValueError, RuntimeError) as error:  # such as that there is too little memory
                    print(f"{system}, {d_model} wide, {length}: {str(error).partition(chr(10))[0]}", flush=True)
                    continue
                print(*list(rows[-1].values())[: -len(where)], flush=True)
                rows.sort(key=lambda row: (int(row["d_model"]), int(row["length"]), row["system"]))
                write_rows(rows, file)
    write_atomically(given.out / "speed.md", table(rows) + "\n" + "".join(f"- {line}\n" for line in crossings(rows)))
    workflow = {"out": str(given.out / "quality"), **quality(rows, given.d_model[0], given.genome)}
    write_atomically(given.out / "quality.yaml", yaml.safe_dump(workflow, sort_keys=False))
    draw(rows, given.out / "speed.png")
    print((given.out / "speed.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
