"""A sequence over several ranks: losses and all gradients are those of one device, for every mixer with a state."""

import json
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from rank_group import run_ranks
from tiny_models import tiny_bimamba, tiny_model

from dnamamba.alphabet import BASES, N
from dnamamba.model.chunked_backward import backward_in_chunks
from dnamamba_kernels import Ranks, context_parallel


class Case(NamedTuple):
    """A model, and how it is trained."""

    options: dict[str, Any]
    recompute: str | None = None
    packed: bool = False
    chunk: int | None = None


MASKED = {"mixer": "bimamba", "objective": "masked_base"}
CASES = {
    "mamba": Case({}),
    "mamba, one operator a block": Case({}, recompute="none"),
    "mamba, cheap": Case({"discretization": "zoh"}, recompute="cheap"),
    "mamba, all": Case({}, recompute="all"),
    "mamba, packed": Case({}, packed=True),
    "mamba, packed, cheap": Case({}, packed=True, recompute="cheap"),
    "mamba, in chunks": Case({}, chunk=48),
    "mamba, in chunks, all": Case({"kmer": 5}, chunk=48, recompute="all"),
    "mamba, not selective": Case({"selective": "none"}),
    "5-mers": Case({"kmer": 5}, packed=True),
    "bimamba": Case(MASKED),
    "bimamba, packed, cheap": Case(MASKED, packed=True, recompute="cheap"),
    "Caduceus-PS": Case(MASKED | {"rc_equivariant": True}),
    "Caduceus-PS, all": Case(MASKED | {"rc_equivariant": True}, recompute="all"),
    "mamba2": Case({"mixer": "mamba2", "head_dim": 8}),
    "mamba2, all": Case({"mixer": "mamba2", "head_dim": 8}, recompute="all"),
    "mamba2, packed": Case({"mixer": "mamba2", "head_dim": 8}, packed=True),
    "mamba2, in chunks": Case({"mixer": "mamba2", "head_dim": 8}, chunk=48),
    "s4d": Case({"mixer": "s4d"}),
    "s4d, in chunks": Case({"mixer": "s4d"}, chunk=48),
    "s4d, real": Case({"mixer": "s4d", "s4d_init": "real"}),
    "s4d, real, packed": Case({"mixer": "s4d", "s4d_init": "real"}, packed=True),
    "h3": Case({"mixer": "h3"}),
    "mamba and MLP": Case({"pattern": "mamba,gated_mlp"}),
}
LENGTH = 131
PARTS = {1: (131,), 2: (121, 10), 3: (40, 8, 83), 4: (32, 33, 33, 33)}
"""Ranks → positions of each; one rank takes the same path, and has nobody to hear from"""


def model_of(case: Case) -> Any:
    make = tiny_bimamba if case.options.get("mixer") == "bimamba" else tiny_model
    model = make(**case.options).double()
    model.backbone.recompute = case.recompute
    return model


def batch_of(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Inputs, targets and ids (2, LENGTH); an id changes at a border of parts, within parts, and twice in one. One part
    is nothing but N."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, BASES + 1, (2, LENGTH + 1), generator=generator, dtype=torch.uint8)
    tokens[:, 38:50] = N
    ids = None
    if case.packed:
        ids = torch.zeros(2, LENGTH, dtype=torch.int32)
        ids[0, 40:] = 1
        ids[0, 48:] = 2
        ids[1, 70:] = 5
        ids[1, 90:] = 6
    return tokens[:, :-1], tokens[:, 1:], ids


def gradients(
    case: Case, parts: tuple[int, ...], rank: int, device: str = "cpu"
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and all gradients of one rank's part; of a chunk each rank has a share. On a GPU in fp32."""
    model, batch = model_of(case), batch_of(case)
    if device == "cuda":
        model.float().cuda()
    inputs, targets, ids = (None if each is None else each.to(device) for each in batch)
    assert inputs is not None and targets is not None
    length = case.chunk or LENGTH
    total = 0.0

    def part(number: int, state: Any) -> tuple[torch.Tensor, Any]:
        nonlocal total
        here = slice(number * length, min((number + 1) * length, LENGTH))
        size = here.stop - here.start
        ends = list(accumulate(parts)) if size == LENGTH else [size * (r + 1) // len(parts) for r in range(len(parts))]
        own, stop = ends[rank - 1] if rank else 0, ends[rank]
        x, y, i = (None if v is None else v[:, here][:, own:stop] for v in (inputs, targets, ids))
        loss = model.loss(x, y, state, i)
        if torch.is_grad_enabled():
            total += loss.nll_sum.item()
        return loss.nll_sum, loss.state

    backward_in_chunks(part, -(-LENGTH // length))
    return total, {name: parameter.grad for name, parameter in model.named_parameters()}


class CountedRanks(Ranks):
    """Counts the bytes that this rank sends."""

    sent = 0

    def gather(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        self.sent += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return super().gather(*tensors)


def sent_bytes(length: int, rank: int, group: Any) -> int:
    """Of a training pass over one sequence of so many bases, on two ranks."""
    model, ranks = model_of(Case({}, recompute="none")), CountedRanks(group)
    tokens = torch.zeros(1, length // 2, dtype=torch.uint8)
    with context_parallel(ranks):
        model.loss(tokens, tokens).nll_sum.backward()
    return ranks.sent


def compare(rank: int) -> tuple[list[str], list[int]]:
    """Each case on 2, 3 and 4 ranks with one: what differs, of rank 0. And the bytes sent for sequences of 64 and 256
    bases."""
    wrong = []
    groups = {size: torch.distributed.new_group(range(size)) for size in PARTS}
    for name, case in CASES.items():
        alone, expected = gradients(case, (LENGTH,), 0) if rank == 0 else (1.0, {})
        for size, parts in PARTS.items():
            if rank >= size:
                continue
            with context_parallel(Ranks(groups[size])):
                loss, found = gradients(case, parts, rank)
            total = torch.tensor(loss, dtype=torch.float64)
            torch.distributed.all_reduce(total, group=groups[size])
            if rank == 0 and abs(total.item() / alone - 1) > 1e-12:
                wrong.append(f"{name}, {size} ranks: loss {total.item()} is not {alone}")
            for parameter, gradient in found.items():
                torch.distributed.all_reduce(gradient, group=groups[size])
                if rank:
                    continue
                difference = (gradient - expected[parameter]).norm() / expected[parameter].norm()
                if not difference < 1e-10:
                    wrong.append(f"{name}, {size} ranks: gradient of {parameter} differs by {difference:.1e}")
    return wrong, [sent_bytes(length, rank, groups[2]) for length in (64, 256) if rank < 2]


def compare_on_gpu(rank: int) -> list[float]:
    """The largest difference of a gradient of each case, on two ranks that share a GPU, of rank 0."""
    found = []
    for case in CASES.values():
        expected = gradients(case, (LENGTH,), 0, "cuda")[1]
        with context_parallel(Ranks(torch.distributed.group.WORLD)):
            parts = gradients(case, PARTS[2], rank, "cuda")[1]
        found.append(0.0)
        for name, gradient in parts.items():
            whole = gradient.cpu()
            torch.distributed.all_reduce(whole)
            found[-1] = max(found[-1], float((whole - expected[name].cpu()).norm() / expected[name].cpu().norm()))
    return found


@pytest.mark.gpu
def test_kernels_of_a_gpu_give_the_same() -> None:
    differences = dict(zip(CASES, run_ranks(2, compare_on_gpu)[0], strict=True))
    assert all(difference < 2e-3 for difference in differences.values()), differences


@pytest.fixture(scope="module")
def compared() -> tuple[list[str], list[int]]:
    return run_ranks(4, compare)[0]


def test_losses_and_gradients_are_those_of_one_device(compared: tuple[list[str], list[int]]) -> None:
    differences, _ = compared
    assert not differences, "\n".join(differences)


def test_what_is_sent_does_not_depend_on_the_length(compared: tuple[list[str], list[int]]) -> None:
    """Of a layer forward and backward: of the scan (1 + states) numbers a channel each way, of the convolution its
    state, once more for the backward pass, which makes it anew."""
    short, long = compared[1]
    d_state, layers, channels, back = 4, 2, 32, 7
    assert short == long == layers * 8 * channels * (2 * (1 + d_state) + 3 * back)


def test_the_measurements_of_several_gpus_run_on_the_cpu(tmp_path: Path) -> None:
    """`pipelines/context_parallel.py` with a tiny model on gloo: its faults are found without a GPU."""
    out, script = tmp_path / "measured.json", Path(__file__).parents[1] / "pipelines" / "context_parallel.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    options = ["--accelerator", "cpu", "--seconds", "0.1", "--out", str(out)]
    subprocess.run([*command, *options], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200)
    found = json.loads(out.read_text())
    assert {"DDP", "FSDP2", "mamba, in chunks, the last one odd"} < found["check"].keys()
    for name, row in found["check"].items():
        assert row["fp32"]["loss"] < 1e-6 and row["fp32"]["gradient"] < 2e-6, name
    assert len(found["steps"]) == 4 and len(found["longest"]) == 2
    assert all("error" not in row for part in ("steps", "longest") for row in found[part].values())
