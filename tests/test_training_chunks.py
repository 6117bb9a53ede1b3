"""Gradients by chunks: those of whole windows, whatever the mixer, the chunk, the strand, the mask and the packing."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from tiny_models import random_bases
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dnamamba import cli, pretrain
from dnamamba.alphabet import PAD, SOFT_MASK_BIT
from dnamamba.inference.device import Compute, chunk_length
from dnamamba.model import chunked_backward
from dnamamba.model.blocks import MambaBlock
from dnamamba.model.chunked_backward import KeptBorders, backward_in_chunks, bytes_on_device
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.training import window_parts
from dnamamba.training.backprop import micro_batch
from dnamamba.training.backprop.chunked import chunked
from dnamamba.training.backprop.chunks import Chunks
from dnamamba.training.backprop.truncated import truncated
from dnamamba.training.backprop.whole import whole
from dnamamba.training.data import WindowBatch
from dnamamba.training.loss_weights import LossWeights
from dnamamba.training.window_parts import WindowParts

CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "mamba": {},
    "mamba zoh": {"discretization": "zoh", "dt_rank": "broadcast"},
    "mamba B": {"selective": "B", "d_conv": 8},
    "mamba2": {"mixer": "mamba2"},
    "s4d complex": {"mixer": "s4d"},
    "s4d real": {"mixer": "s4d", "s4d_init": "real"},
    "h3": {"mixer": "h3"},
    "hybrid": {"pattern": "mamba,gated_mlp,mamba2,h3", "n_layer": 4},
    "recomputed": {},
    "partly recomputed": {},
}


def model_of(kind: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """With weights far from those of the start, so that every base matters to those after it."""
    torch.manual_seed(4)
    model = LanguageModel(ModelConfig(**({"n_layer": 2, "d_model": 8, "d_state": 4} | KINDS[kind]))).to(dtype)
    model.backbone.recompute = {"recomputed": "all", "partly recomputed": "cheap"}.get(kind)
    with torch.no_grad():
        model.backbone.embedding.weight.mul_(30)
    return model


def windows_of(
    model: LanguageModel, count: int, length: int, packed: bool = False, at: int = 0, classed: bool = False
) -> WindowParts:
    """Random ones with N and soft mask, every other one on the other strand; packed ones of segments, one of which
    begins at position `at` on either strand, with padding behind; `classed` ones of three region classes."""
    chance = np.random.default_rng(length)
    tokens = torch.from_numpy(chance.integers(0, 5, (count, length + 1), np.uint8))
    tokens |= torch.from_numpy(chance.random(tokens.shape) < 0.3) * SOFT_MASK_BIT
    flags, ids = torch.arange(count) % 2 == 1, None
    if packed:
        begins = torch.zeros(count, length + 1, dtype=torch.int32)
        begins[:, chance.choice(np.arange(1, length - 20), 5)] = 1
        begins[:, [at, (length + 1 - at) % length, length - 9]] = 1
        ids = begins.cumsum(1, dtype=torch.int32)
        tokens[:, length - 9 :] = PAD
    classes = torch.from_numpy(chance.integers(0, 3, tokens.shape, np.uint8)) if classed else None
    return WindowParts(WindowBatch(tokens, flags, ids, classes), model.objective, CPU)


def gradients(model: LanguageModel, run: Any) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    nll = run()
    return float(nll), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


WEIGHTS = LossWeights(0.5, (1.0, 0.1, 0.0))
"""Of three region classes"""


def of_whole(model: LanguageModel, windows: WindowParts, weight: float | None, scale: Tensor) -> Any:
    weights = WEIGHTS if weight is None else LossWeights(weight)
    return gradients(model, lambda: whole(model, micro_batch(windows.whole(), weights), scale))


def assert_equal(found: Any, expected: Any, tolerance: float) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.norm() > 0
        assert (found[1][name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(kind: str, packed: bool) -> None:
    model, scale = model_of(kind), torch.tensor(0.3, dtype=torch.float64)
    for weight, length, chunk in ((1.0, 331, 110), (0.25, 331, 83), (None, 331, 83), (0.25, 60, 2), (1.0, 64, 64)):
        windows = windows_of(model, 2, length, packed, at=chunk % length, classed=weight is None)
        expected = of_whole(model, windows, weight, scale)
        chunks = Chunks(windows, chunk, WEIGHTS if weight is None else LossWeights(weight))
        found = gradients(model, lambda c=chunks: chunked(model, c, scale))
        assert_equal(found, expected, 1e-10)


def test_one_chunk_is_the_whole_to_the_bit() -> None:
    model, scale = model_of("mamba", torch.float32), torch.tensor(0.3)
    windows = windows_of(model, 3, 200)
    for way in (chunked, truncated):
        nll, found = gradients(model, lambda way=way: way(model, Chunks(windows, 200, LossWeights(0.5)), scale))
        expected = of_whole(model, windows, 0.5, scale)
        assert nll == expected[0]
        assert all(torch.equal(found[name], gradient) for name, gradient in expected[1].items())


@pytest.mark.parametrize(
    ("length", "dtype", "tolerance"),
    [
        (1_000, torch.float64, 1e-10),
        (20_011, torch.float64, 1e-10),
        pytest.param(100_003, torch.float64, 1e-10, marks=pytest.mark.slow),
        (1_000, torch.float32, 2e-5),
        (100_003, torch.float32, 2e-5),
    ],
)
def test_long_windows(length: int, dtype: torch.dtype, tolerance: float) -> None:
    model, scale = model_of("mamba", dtype), torch.tensor(1 / length, dtype=dtype)
    windows = windows_of(model, 1, length)
    expected = of_whole(model, windows, 1.0, scale)
    found = gradients(model, lambda: chunked(model, Chunks(windows, length // 7), scale))
    assert_equal(found, expected, tolerance)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "h3"])
def test_chunks_are_as_exact_as_the_whole_under_autocast(kind: str) -> None:
    """If autocast kept casts of weights from the pass without a graph, gradients of matrices would be missing."""
    model, scale = model_of(kind, torch.float32), torch.tensor(0.01)
    windows = windows_of(model, 2, 500)
    exact = of_whole(model, windows, 1.0, scale)[1]
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, lambda: chunked(model, Chunks(windows, 99), scale))[1]
        rounded = of_whole(model, windows, 1.0, scale)[1]
    for name, gradient in exact.items():
        allowed = 1.5 * (rounded[name] - gradient).norm() + 0.03 * gradient.norm()
        assert (found[name] - gradient).norm() < allowed, name


def test_truncated_gradients_are_those_of_each_chunk_from_a_constant_state() -> None:
    model, scale = model_of("mamba"), torch.tensor(1.0, dtype=torch.float64)
    windows = windows_of(model, 2, 100)
    batch = micro_batch(windows.whole())

    def plain() -> Tensor:
        state, total = None, torch.zeros((), dtype=torch.float64)
        for inputs, targets in zip(batch.inputs.split(30, 1), batch.targets.split(30, 1), strict=True):
            loss = model.loss(inputs, targets, state)
            loss.nll_sum.backward()
            total, state = total + loss.nll_sum.detach(), chunked_backward.detached(loss.state)
        return total

    found = gradients(model, lambda: truncated(model, Chunks(windows, 30), scale))
    assert_equal(found, gradients(model, plain), 1e-12)
    exact = of_whole(model, windows, 1.0, scale)[1]
    assert any((found[1][name] - gradient).norm() > 0.01 * gradient.norm() for name, gradient in exact.items())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_model_of_ones_own_in_chunks(count: int) -> None:
    """Blocks between layers of others; the inputs get their gradients, too, and frozen parameters none."""
    torch.manual_seed(1)
    blocks = nn.ModuleList(MambaBlock(d_model=6, d_state=4, mixer=mixer) for mixer in ("mamba", "s4d")).double()
    head = nn.Linear(6, 2).double()
    head.bias.requires_grad_(False)
    x = torch.randn(2, 101, 6, dtype=torch.float64, requires_grad=True)

    def run(part: Tensor, states: Any) -> tuple[Tensor, Any]:
        after = []
        for number, block in enumerate(blocks):
            part, state = block.scan(part, None if states is None else states[number])
            after.append(state)
        return head(part).square().sum(), tuple(after)

    def gradients_now() -> list[Tensor | None]:
        wanted = [x, *blocks.parameters(), *head.parameters()]
        found = [each.grad for each in wanted]
        for each in wanted:
            each.grad = None
        return found

    run(x, None)[0].backward()
    expected = gradients_now()
    chunks = x.chunk(count, dim=1)
    backward_in_chunks(lambda number, states: run(chunks[number], states), len(chunks))
    torch.testing.assert_close(gradients_now(), expected, rtol=1e-10, atol=1e-12)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that any operation gives, but views of the tokens."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.dtype != torch.uint8:
                self.elements = max(self.elements, leaf.numel())
        return found


def test_nothing_of_the_whole_length_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_parts, "COUNTED_AT_ONCE", 500)
    model, chunk = model_of("mamba", torch.float32), 200
    widest = max(2 * p.shape[0] for p in model.parameters() if p.ndim == 2) * chunk
    sizes = []
    for length in (4 * chunk, 60 * chunk):
        windows = windows_of(model, 1, length)
        with Largest() as largest:
            windows.counts()
            chunked(model, Chunks(windows, chunk, LossWeights(0.5)), torch.tensor(1.0))
        sizes.append(largest.elements)
    # The borders grow by a state of some hundred numbers a chunk, and nothing else.
    assert sizes[0] == sizes[1] <= widest < 60 * chunk * 8


def test_counts_are_sums_over_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_parts, "COUNTED_AT_ONCE", 7)
    model = model_of("mamba")
    for packed in (False, True):
        windows = windows_of(model, 3, 100, packed, at=50)
        prepared = windows.whole()
        counted = prepared.targets < 4
        plain, masked = int((counted & ~prepared.soft_mask).sum()), int((counted & prepared.soft_mask).sum())
        read = int((prepared.inputs != PAD).sum())
        assert windows.counts(LossWeights(0.3)).tolist() == [plain + masked, read, plain + 0.3 * masked]
        classed = windows_of(model, 3, 100, packed, at=50, classed=True)
        weights = WEIGHTS.of(classed.whole())
        assert weights is not None
        assert classed.counts(WEIGHTS)[2] == pytest.approx(float(weights.double().sum()), rel=1e-6)


def test_chunks_of_windows_are_slices_of_the_whole() -> None:
    model = model_of("mamba")
    windows = windows_of(model, 4, 50, packed=True, at=20, classed=True)
    prepared = windows.whole()
    assert prepared.sequence_ids is not None
    for first, last in ((0, 50), (0, 1), (49, 50), (13, 37)):
        for part, of_all in zip(windows.chunk(first, last), prepared, strict=True):
            assert part is not None and of_all is not None and torch.equal(part, of_all[:, first:last])
    assert prepared.classes is not None
    for position in range(1, 50):
        same = prepared.sequence_ids[:, position - 1] == prepared.sequence_ids[:, position]
        found = windows.continues(position)
        assert same.all() if found is None else torch.equal(found, same)


def test_states_that_need_too_much_go_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    state = model_of("mamba", torch.float32).init_state(1)
    each = sum(leaf.numel() * 4 for leaf in tree_leaves(state))
    monkeypatch.setattr(chunked_backward, "BYTES_ON_DEVICE", 10 * each)
    assert bytes_on_device(10, state) == 10 * each and bytes_on_device(11, state) == 0
    assert not KeptBorders(11, state).on_host  # there is but one memory here


@pytest.mark.gpu
def test_states_on_the_host_are_the_same_states(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("mamba", torch.float32).cuda()
    batch = windows_of(model, 1, 5000).batch
    pinned = WindowBatch(batch.tokens.pin_memory(), batch.reverse_complement.pin_memory())
    windows = WindowParts(pinned, model.objective, torch.device("cuda"))
    scale, found = torch.tensor(1.0, device="cuda"), []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(chunked_backward, "BYTES_ON_DEVICE", limit)
        found.append(gradients(model, lambda: chunked(model, Chunks(windows, 700), scale))[1])
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())


def test_the_default_chunk_fits_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, memory = torch.device("cuda"), {"gib": 139.0}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=int(memory["gib"] * 2**30))
    )
    small, large = ModelConfig(n_layer=8, d_model=256), ModelConfig(n_layer=48, d_model=1024)
    bf16, fp32 = Compute(gpu, "bf16", 1), Compute(gpu, "fp32", 1)
    assert [chunk_length(each, small) for each in (bf16, fp32)] == [262_144, 131_072]
    memory["gib"] = 23.6
    assert [chunk_length(each, small) for each in (bf16, fp32)] == [65_536, 32_768]
    assert chunk_length(bf16, large) == 16_384
    assert chunk_length(Compute(CPU, "fp32", 1), large) == 16_384


# Runs


TINY = ["--model.preset", "demo", "--model.n_layer", "2", "--model.d_model", "16", "--model.d_state", "4"]
QUICK = [*TINY, "--length", "512", "--batch_tokens", "2048", "--accelerator", "cpu", "--markov_order", "0"]
QUICK += ["--validation_tokens", "2048", "--max_steps", "4", "--log_every", "1"]
CHUNKED = ["--backprop", "chunked", "--chunk", "150", "--micro_tokens", "300"]


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Soft-masked in part; a contig of 2,001 bases, and scaffolds too short for a window."""
    path = tmp_path_factory.mktemp("chunks") / "g.fa"
    texts = [random_bases(n, n) for n in (40_000, 2_001, 300, 200, 120, 90)]
    texts[0] = texts[0][:9_000] + texts[0][9_000:20_000].lower() + texts[0][20_000:]
    path.write_text("".join(f">chr{n}\n{text}\n" for n, text in enumerate(texts, start=1)))
    return path


def train(*arguments: object) -> int:
    return cli.run(pretrain.main, [str(argument) for argument in arguments])


def rows(run: Path, table: str) -> list[dict[str, str]]:
    with (run / table).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_in_chunks_is_the_run_of_whole_windows(
    fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packed, soft-masked bases weighed down, several passes a step, validated by class; and resumed with other
    chunks."""
    data = ["--genome", fasta, "--pack", "true", "--soft_mask_weight", 0.3, *QUICK]
    assert train(*data, "--out", tmp_path / "whole") == 0
    assert train(*data, *CHUNKED, "--out", tmp_path / "chunked") == 0
    assert "exact, from 4 chunks of 150 bases a window and " in capsys.readouterr().out
    for one, other in zip(*(rows(tmp_path / run, "metrics.csv") for run in ("whole", "chunked")), strict=True):
        for name in ("tokens", "train_bits_per_base", "gradient_norm", "validation_bits_per_base"):
            assert float(one[name] or 0) == pytest.approx(float(other[name] or 0), rel=1e-4)
    tables = (rows(tmp_path / run, "validation_by_class.csv") for run in ("whole", "chunked"))
    for one, other in zip(*tables, strict=True):
        assert (one["group"], one["class"], one["bases"]) == (other["group"], other["class"], other["bases"])
        assert float(one["bits_per_base"]) == pytest.approx(float(other["bits_per_base"]), rel=1e-4)
    again = ["--resume", "--out", tmp_path / "chunked", "--max_steps", 5]
    assert train(*again, "--chunk", 200) == 0
    assert "exact, from 3 chunks of 200 bases a window" in capsys.readouterr().out
    assert train(*again[:-1], 6, "--backprop", "whole") == 0
    assert "exact, from" not in capsys.readouterr().out
    assert train(*data, "--chunk", 200, "--out", tmp_path / "no") == 2
    assert "--chunk: --backprop whole has no chunks" in capsys.readouterr().err


def test_a_truncated_run_keeps_its_chunks(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    chunks = ["--backprop", "truncated", "--chunk", 128]
    assert train("--genome", fasta, *QUICK, "--max_steps", 1, *chunks, "--out", out) == 0
    assert "truncated at the ends of 4 chunks of 128 bases a window" in capsys.readouterr().out
    for changed in (["--chunk", 256], ["--backprop", "chunked"]):
        assert train("--resume", "--out", out, "--max_steps", 2, *changed) == 2
        message = capsys.readouterr().err
        assert f"a resumed run with truncated gradients keeps its settings; changed: {changed[0]} (was" in message
    copy = shutil.copytree(out, tmp_path / "copy", symlinks=True)
    assert train("--resume", "--out", copy, "--max_steps", 2) == 0
    whole = tmp_path / "whole"
    assert train("--genome", fasta, *QUICK, "--max_steps", 1, "--out", whole) == 0
    assert train("--resume", "--out", whole, "--max_steps", 2, *chunks) == 2
    assert "with truncated gradients" in capsys.readouterr().err


def test_a_whole_contig_is_one_window(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of length + 1 bases, so that every base of it but the first is predicted once; validated on shorter ones."""
    splits = ["--train", "chr2", "--validation", "chr1", "--contigs", "chr1", "chr2", "--max_n_fraction", 1]
    sizes = ["--length", 2000, "--batch_tokens", 2000, *CHUNKED]
    out = tmp_path / "run"
    assert train("--genome", fasta, *QUICK, *splits, *sizes, "--validation_length", 450, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "1 of 2,000 bases an epoch" in printed and " of 450 to validate on" in printed
    assert [int(row["tokens"]) for row in rows(out, "metrics.csv")] == [2000, 4000, 6000, 8000]
    validated = {row["class"]: int(row["bases"]) for row in rows(out, "validation_by_class.csv") if row["step"] == "4"}
    assert validated["all"] == 5 * 450 and "256-450" in validated
    short = ["--train", "chr1", "--validation", "chr2", "--contigs", "chr1", "chr2"]
    long = ["--length", 4000, "--batch_tokens", 4000]
    assert train("--genome", fasta, *QUICK, *short, *long, "--out", tmp_path / "x") == 2
    assert "give a smaller --length, or intervals for it" in capsys.readouterr().err
    assert train("--genome", fasta, *QUICK, *short, "--validation_length", 4000, "--out", tmp_path / "x") == 2
    assert "give a smaller --validation_length" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.mixer", "attention"], "keeps no state of constant size"),
        (["--model.pattern", "mamba,hyena"], "keeps no state of constant size"),
        (["--chunk", "15"], "--chunk: 15 is below 16"),
    ],
)
def test_what_has_no_chunks_is_refused(
    flags: list[str], message: str, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--genome", fasta, *QUICK, "--backprop", "chunked", *flags, "--out", tmp_path / "run") == 2
    reported = capsys.readouterr().err
    assert message in reported and reported.count("\n") == 1
    if "--chunk" not in flags:
        assert "take one with mixer mamba or mamba2 or s4d or h3 or gated_mlp; or take --backprop whole" in reported
    assert not (tmp_path / "run").exists()


def test_the_estimate_measures_some_chunks(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = ["--train", "chr1", "--validation", "chr2", "--validation_length", 2000, "--contigs", "chr1", "chr2"]
    sizes = ["--length", 39_999, "--batch_tokens", 39_999, "--backprop", "chunked", "--chunk", 64]
    assert train("--genome", fasta, *QUICK, *splits, *sizes, "--dry_run", "true", "--out", tmp_path / "run") == 0
    assert "625 chunks of 64 bases" in (printed := capsys.readouterr().out) and "estimate" in printed


def test_whole_windows_have_the_classes_of_their_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And on a device the host does not wait for it, as it would to cut them window by window."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 4, (3, 41), generator=generator, dtype=torch.uint8)
    classes = torch.randint(0, 5, (3, 41), generator=generator, dtype=torch.uint8)
    batch = WindowBatch(tokens, torch.tensor([False, True, False]), classes=classes)
    parts = WindowParts(batch, model_of("mamba").objective, CPU)
    chunks = [parts.chunk(first, min(first + 16, 40)) for first in (0, 16, 32)]
    monkeypatch.setattr(WindowParts, "_cut", None)
    prepared = parts.whole()
    assert prepared.classes is not None
    expected = torch.stack([classes[0, 1:], classes[1].flip(0)[1:], classes[2, 1:]])
    assert prepared.classes.equal(expected)
    assert torch.cat([part.classes for part in chunks if part.classes is not None], 1).equal(expected)
