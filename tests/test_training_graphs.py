"""Micro-batches as recordings: the same run as without, whatever the shapes, faults and interruptions."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dnamamba import cli, pretrain
from dnamamba.errors import InputError
from dnamamba.inference.graphs import Work
from dnamamba.model.config import ModelConfig, preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.mixers import MIXERS, mixer_class
from dnamamba.model.settings import ModelSettings
from dnamamba.parallel.gradients import Gradients
from dnamamba.training import estimate, run
from dnamamba.training.backprop import MicroBatch
from dnamamba.training.backprop.captured import Captured
from dnamamba.training.backprop.whole import whole
from dnamamba.training.resolve import why_no_graph
from dnamamba.training.settings import ResolvedPretrainSettings
from tests.full_disk import disk_is_full

LENGTH = 2048
MASKED = {"objective": "masked_base"}


class Recorder:
    """Recordings without a GPU: a replay calls the work again. Counts both."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Work, pool: Any) -> Work:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


class Counted:
    """A gradient function that remembers the shapes it was called with."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, model: LanguageModel, batch: MicroBatch, scale: Tensor) -> Tensor:
        self.shapes.append(tuple(batch.inputs.shape))
        return whole(model, batch, scale)


def tiny(device: str = "cpu", **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(preset("demo", **({"n_layer": 2, "d_model": 16, "d_state": 4} | options))).to(device)


def micro_batch(windows: int, length: int, seed: int, device: str = "cpu", packed: bool = False) -> MicroBatch:
    """With weights of 0.5 and 0 here and there, and segments of different lengths."""
    chance = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 5, (windows, length + 1), generator=chance).to(torch.uint8).to(device)
    weights = torch.tensor([0.0, 0.5, 1.0])[torch.randint(0, 3, (windows, length), generator=chance)].to(device)
    ids = None
    if packed:
        ids = (torch.rand(windows, length, generator=chance) < 0.05).cumsum(1).to(torch.int32).to(device)
    return MicroBatch(tokens[:, :-1], tokens[:, 1:], weights * (tokens[:, 1:] < 4), ids)


def gradients_of(model: LanguageModel, function: Callable[..., Tensor], batches: list[MicroBatch]) -> list[Any]:
    """After each micro-batch: Σ nats, and the gradients, which are zeroed after every second."""
    gradients = Gradients(model.parameters())
    seen = []
    for number, batch in enumerate(batches):
        if number % 2 == 0:
            gradients.zero()
        scale = torch.tensor(1 / (1 + number), device=gradients.values.device)
        seen.append((function(model, batch, scale).item(), gradients.values.clone()))
    return seen


def same(found: list[Any], expected: list[Any]) -> bool:
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_a_replay_reads_what_is_new_and_adds_to_the_gradients(packed: bool) -> None:
    shapes = [(3, 40), (3, 40), (2, 40), (3, 40), (2, 40), (3, 40), (2, 40)]
    batches = [micro_batch(*shape, seed, packed=packed) for seed, shape in enumerate(shapes)]
    recorder, counted = Recorder(), Counted()
    found = gradients_of(tiny(), Captured(counted, recorder), batches)
    assert same(found, gradients_of(tiny(), whole, batches))
    assert (recorder.recorded, recorder.replayed) == (2, 5), "the first of each shape is computed, all others replayed"


def test_recordings_of_another_length_are_given_up() -> None:
    recorder, counted = Recorder(), Counted()
    captured = Captured(counted, recorder)
    batches = [micro_batch(2, length, seed) for seed, length in enumerate([20, 20, 20, 30, 30, 20, 20])]
    found = gradients_of(tiny(), captured, batches)
    assert same(found, gradients_of(tiny(), whole, batches))
    assert (recorder.recorded, recorder.replayed) == (3, 4)
    assert len(captured._recordings) == 1


def test_gradients_are_parts_of_one_array_that_stays() -> None:
    model = tiny()
    gradients = Gradients(model.parameters())
    gradients.zero()
    addresses = [parameter.grad.data_ptr() for parameter in model.parameters() if parameter.grad is not None]
    assert len(addresses) == len(list(model.parameters())) and all(a % 16 == 0 for a in addresses)
    whole(model, micro_batch(2, 20, 0), torch.tensor(1.0))
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert norm > 0 and norm.item() == pytest.approx(gradients.values.norm().item())
    model.zero_grad(set_to_none=True)
    gradients.zero()
    assert [p.grad.data_ptr() for p in model.parameters() if p.grad is not None] == addresses
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chromosomes with repeats and N, and thirty scaffolds too short for a window."""
    chance = np.random.default_rng(2)
    sizes = [150_000, 40_000, *chance.integers(2, LENGTH + 1, 30)]
    path = tmp_path_factory.mktemp("graphs") / "short.fa"
    path.write_text("".join(f">c{n}\n{''.join(chance.choice(list('ACGTacgtN'), k))}\n" for n, k in enumerate(sizes)))
    return path


def train(*arguments: object) -> int:
    return cli.run(pretrain.main, [str(argument) for argument in arguments])


def flags(fasta: Path, accelerator: str) -> list[object]:
    """All that changes a step: lengths 1024 and 2048, 5 + 3 and 2 + 2 windows in micro-batches, weights, packing."""
    return [
        *("--genome", fasta, "--contigs", "*", "--pack", "--max_n_fraction", 0.5, "--soft_mask_weight", 0.25),
        *("--length", LENGTH, "--batch_tokens", 8192, "--micro_tokens", 5120, "--length_warmup", 0.4),
        *("--model.preset", "demo", "--model.n_layer", 2, "--model.d_model", 16, "--model.d_state", 4),
        *("--accelerator", accelerator, "--precision", "fp32", "--markov_order", 0, "--validation_tokens", 4096),
        *("--max_steps", 20, "--validation_every", 10, "--log_every", 1, "--save_every", 7),
    ]


def outcome(folder: Path) -> tuple[bytes, list[tuple[str, ...]]]:
    """Weights, and each step's loss, gradient norm and validation."""
    kept = ("step", "tokens", "train_bits_per_base", "gradient_norm", "validation_bits_per_base")
    with (folder / "metrics.csv").open() as file:
        rows = [tuple(row[name] for name in kept) for row in csv.DictReader(file)]
    return (folder / "checkpoints" / "last" / "model.safetensors").read_bytes(), rows


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Runs on the CPU record, unless with --cuda_graph off."""
    recorder = Recorder()
    monkeypatch.setattr(run, "Captured", partial(Captured, record=recorder))
    monkeypatch.setattr(run, "why_no_graph", lambda settings: "" if settings.cuda_graph == "auto" else "off")
    return recorder


@pytest.fixture(scope="module")
def eager(fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without recordings."""
    out = tmp_path_factory.mktemp("graphs") / "eager"
    assert train(*flags(fasta, "cpu"), "--cuda_graph", "off", "--out", out) == 0
    return out


def test_a_recorded_run_is_the_run(fasta: Path, eager: Path, tmp_path: Path, recorder: Recorder) -> None:
    assert train(*flags(fasta, "cpu"), "--out", tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == outcome(eager)
    assert recorder.recorded == 3, "5 and 3 windows of 1024, then 2 of 2048"
    assert recorder.replayed == 7 * 2 + 12 * 2 - 1


@pytest.mark.parametrize("way", ["auto", "off"])
def test_a_recorded_run_is_resumed_in_either_way(
    way: str, fasta: Path, eager: Path, tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        disk_is_full(patch, lambda step: step > 7)
        assert train(*flags(fasta, "cpu"), "--out", tmp_path / "run") == 2
    recorded = recorder.recorded
    assert train("--resume", "--out", tmp_path / "run", "--cuda_graph", way) == 0
    assert outcome(tmp_path / "run") == outcome(eager)
    assert recorder.recorded == recorded + (way == "auto")


def test_a_fault_in_a_replay_is_seen_and_not_applied(
    fasta: Path, tmp_path: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*flags(fasta, "cpu"), "--gradient_outlier", 0.5, "--on_fault", "skip"]
    said = []
    for way in ("off", "auto"):
        assert train(*arguments, "--cuda_graph", way, "--out", tmp_path / way) == 0
        said.append([line for line in capsys.readouterr().out.splitlines() if "was not applied" in line])
    assert said[0] == said[1] and len(said[0]) > 2
    assert outcome(tmp_path / "off") == outcome(tmp_path / "auto")


def test_the_header_says_whether_and_why_not(
    fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*flags(fasta, "cpu"), "--dry_run", "--out", tmp_path / "run"]
    assert train(*arguments) == 0
    assert "CUDA graph  none: it needs a GPU" in capsys.readouterr().out
    assert train(*arguments, "--cuda_graph", "off") == 0
    assert "CUDA graph  none: --cuda_graph off" in capsys.readouterr().out
    assert train(*arguments, "--cuda_graph", "on") == 2
    assert "--cuda_graph on: it needs a GPU" in capsys.readouterr().err
    assert train(*arguments, "--cuda_graph", "always") == 2
    assert "cuda_graph" in capsys.readouterr().err


def test_the_estimate_is_of_recorded_passes(
    fasta: Path, tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Captured", "why_no_graph"):
        monkeypatch.setattr(estimate, name, getattr(run, name))
    assert train(*flags(fasta, "cpu"), "--dry_run", "--out", tmp_path / "run") == 0
    assert recorder.recorded == recorder.replayed > 0


@pytest.mark.parametrize(
    ("options", "packed", "expected"),
    [
        ({}, True, ""),
        ({"mixer": "hyena"}, False, ""),
        ({"mixer": "hyena"}, True, "hyena cuts packed windows on the host"),
        ({"pattern": "mamba,s4d"}, True, "s4d cuts packed windows on the host"),
        ({"mixer": "h3", "s4d_init": "real"}, True, ""),
        (
            {"mixer": "s4d", "rc_equivariant": True, "objective": "masked_base"},
            False,
            "s4d cuts off padding on the host",
        ),
        ({"mixer": "bimamba", "objective": "masked_base"}, True, ""),
    ],
)
def test_what_waits_for_the_host_is_not_recorded(options: dict[str, Any], packed: bool, expected: str) -> None:
    settings = ResolvedPretrainSettings(model=ModelSettings(preset="demo", **options), pack=packed, accelerator="gpu")
    assert why_no_graph(settings) == expected
    settings.cuda_graph = "on"
    if expected:
        with pytest.raises(InputError, match=expected):
            why_no_graph(settings)
    else:
        assert why_no_graph(settings) == ""


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # Lightning's on loaders and pinned memory differ between versions
@pytest.mark.parametrize("way", ["whole", "resumed"])
def test_a_run_on_a_gpu_is_the_same_to_the_bit(
    way: str, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*flags(fasta, "gpu"), "--gradient_outlier", 0.5, "--on_fault", "skip"]
    assert train(*arguments, "--cuda_graph", "off", "--out", tmp_path / "eager") == 0
    assert "was not applied" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        if way == "resumed":
            disk_is_full(patch, lambda step: step > 7)
        ends_with = 2 if way == "resumed" else 0
        assert train(*arguments, "--cuda_graph", "on", "--out", tmp_path / "run") == ends_with
    assert "CUDA graph  each micro-batch is replayed" in capsys.readouterr().out
    if way == "resumed":
        assert train("--resume", "--out", tmp_path / "run", "--cuda_graph", "on") == 0
    (weights, rows), (others, expected) = outcome(tmp_path / "run"), outcome(tmp_path / "eager")
    assert rows == expected
    assert weights == others


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_is_recorded(mixer: str, packed: bool, precision: str, device: str) -> None:
    options = {"mixer": mixer, "objective": "next_base" if mixer_class(mixer).causal else "masked_base"}
    if packed and mixer_class(mixer).packs_on_host(ModelConfig(**options)):
        pytest.skip("not recorded")
    batches = [micro_batch(3, 300, seed, device, packed) for seed in range(5)]
    captured = Captured(whole, Recorder()) if device == "cpu" else Captured(whole)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        found = gradients_of(tiny(device, **options), captured, batches)
        expected = gradients_of(tiny(device, **options), whole, batches)
    assert len(captured._recordings) == 1
    if device == "cpu" or mixer in ("mamba", "bimamba", "gated_mlp"):
        assert same(found, expected)
    for (nll, gradient), (other_nll, other) in zip(found, expected, strict=True):
        assert nll == pytest.approx(other_nll, rel=1e-5)
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_memory_is_not_taken_twice() -> None:
    model = tiny("cuda", d_model=64, n_layer=4)
    batches = [micro_batch(64, 1024, seed, "cuda") for seed in range(6)]
    for function in (whole, Captured(whole)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        gradients_of(model, function, batches)
        peak = torch.cuda.max_memory_reserved()
        if function is whole:
            least = peak
    assert peak < 1.2 * least
