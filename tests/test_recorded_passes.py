"""Passes of inference as recordings: the same results as without, and how many are kept."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import dnamamba
from dnamamba.alphabet import decode
from dnamamba.analysis.variants.plan import plan_for
from dnamamba.formats.checkpoint import save_checkpoint, save_classifier
from dnamamba.inference import recorded_passes
from dnamamba.inference.device import MICRO_TOKENS_GPU
from dnamamba.inference.graphs import Work
from dnamamba.inference.load import load_for_inference
from dnamamba.inference.recorded_passes import RecordedPasses, record_no_passes, record_passes
from dnamamba.inference.stream import stream
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.mixers import MIXERS, mixer_class

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"
SEEN_BEFORE = 4
"""In these tests"""
THE_RULES = recorded_passes.SEEN_BEFORE


@pytest.fixture(autouse=True)
def recorded_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_passes, "SEEN_BEFORE", SEEN_BEFORE)


class Recorder:
    """As `record` without a GPU: what a replay leaves stands where the first one left it, and is overwritten by the
    next. Counts replays by recording."""

    def __init__(self) -> None:
        self.replays: list[int] = []
        self.recordings: list[weakref.ref] = []

    def __call__(self, work: Work, pool: Any) -> Work:
        number = len(self.replays)
        self.replays.append(0)
        first: list[Tensor] = []
        recording = next(cell.cell_contents for cell in work.__closure__ if hasattr(cell.cell_contents, "inputs"))
        self.recordings.append(weakref.ref(recording))

        def replay() -> None:
            self.replays[number] += 1
            work()
            found = self.recordings[number]()
            leaves = [leaf for leaf in tree_leaves(found.outputs) if isinstance(leaf, Tensor)]
            if not first:
                first.extend(leaves)
                found.kept = found.outputs
            for kept, new in zip(first, leaves, strict=True):
                kept.copy_(new)
            found.outputs = found.kept

        return replay


def tiny(device: str = "cpu", **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    options = {"n_layer": 2, "d_model": 16, "d_state": 4} | options
    return LanguageModel(preset("demo", **options)).to(device).eval().requires_grad_(False)


def of_mixer(mixer: str, **options: Any) -> dict[str, Any]:
    return {"mixer": mixer, "objective": "next_base" if mixer_class(mixer).causal else "masked_base", **options}


def batch(sequences: int, length: int, seed: int = 0, device: str = "cpu") -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(0, 6, (sequences, length), generator=chance).to(torch.uint8).to(device)


@torch.inference_mode()
def passes_of(model: LanguageModel, batches: list[Tensor], chunk: int) -> list[Tensor]:
    """Hidden states and states of all chunks, looked at after all passes."""
    found = [part for tokens in batches for part in stream(model.backbone, tokens.split(chunk, dim=1))]
    return [leaf for part in found for leaf in tree_leaves((part.hidden, part.state)) if isinstance(leaf, Tensor)]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_what_a_replay_gives_is_the_callers_own() -> None:
    batches = [batch(3, 40, seed) for seed in range(6)]
    expected = passes_of(tiny(), batches, 10)
    model, recorder = tiny(), Recorder()
    record_passes(model, recorder)
    assert same(passes_of(model, batches, 10), expected)
    # Of 4 chunks each: a first one has no state before it.
    assert recorder.replays == [3 * 6 - SEEN_BEFORE, 6 - SEEN_BEFORE]


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_gives_the_same(mixer: str) -> None:
    options = of_mixer(mixer)
    batches = [batch(2, 30, seed) for seed in range(SEEN_BEFORE + 2)]
    model, recorder = tiny(**options), Recorder()
    chunk = 10 if model.backbone.is_causal and mixer_class(mixer).carries_state else 30
    expected = passes_of(model, batches, chunk)
    record_passes(model, recorder)
    assert same(passes_of(model, batches, chunk), expected)
    waits = mixer_class(mixer).packs_on_host(model.config) and not model.backbone.is_causal
    assert bool(recorder.replays) == (not waits)


def test_what_waits_for_the_host_is_not_recorded() -> None:
    model, recorder = tiny(mixer="s4d", rc_equivariant=True, objective="masked_base"), Recorder()
    record_passes(model, recorder)
    passes_of(model, [batch(2, 30)] * 6, 30)
    assert not recorder.replays
    packing, ids = tiny(mixer="s4d"), torch.zeros(2, 30, dtype=torch.int32)
    record_passes(packing, recorder)
    with torch.inference_mode():
        for _ in range(6):
            packing(batch(2, 30), sequence_ids=ids)
    assert not recorder.replays
    passes_of(packing, [batch(2, 30)] * 6, 30)
    assert recorder.replays == [6 - SEEN_BEFORE]


def test_gradients_go_by_passes_of_their_own() -> None:
    model, recorder = tiny().requires_grad_(True), Recorder()
    record_passes(model, recorder)
    for _ in range(6):
        model(batch(2, 30)).logits.sum().backward()
    assert not recorder.replays and model.lm_head.weight.grad is not None


def test_precision_and_mode_have_recordings_of_their_own() -> None:
    model, recorder = tiny(), Recorder()
    record_passes(model, recorder)
    tokens, found = batch(2, 30), {}
    for mode in (torch.inference_mode, torch.no_grad):
        for is_bf16 in (False, True):
            with mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
                found[mode, is_bf16] = [model(tokens).hidden for _ in range(6)]
            assert same(found[mode, is_bf16][1:], [found[mode, is_bf16][0]] * 5)
    assert len(recorder.replays) == 4
    assert not torch.equal(found[torch.no_grad, True][0].float(), found[torch.no_grad, False][0])


def test_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LARGEST": 16 * 200, "ALL": 16 * 300, "MOST": 3, "UNUSED": 15}.items():
        monkeypatch.setattr(recorded_passes, name, value)
    model, recorder = tiny(), Recorder()
    record_passes(model, recorder)
    passes: RecordedPasses = model.backbone.forward

    def read(length: int, count: int = SEEN_BEFORE + 1) -> list[int]:
        """Lengths that have a recording."""
        passes_of(model, [batch(1, length, seed) for seed in range(count)], length)
        return [recording.inputs[0].shape[1] for recording in passes._recordings.values()]

    assert read(201, 20) == []
    assert [read(length) for length in (100, 90, 80)][-1] == [100, 90, 80]
    assert read(70, 4) == [100, 90, 80], "all are in use"
    assert read(100, 15) == [100, 90, 80]
    assert read(70, 6) == [100, 80, 70], "90 had not come for longest"
    assert read(200, 8) == [100, 80, 70], "80 alone is not enough"
    assert read(200, 4) == [70, 200]
    gc.collect()
    assert sum(recording() is not None for recording in recorder.recordings) == 2


def test_shapes_that_do_not_come_again_cost_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_passes, "MOST_SHAPES", 5)
    model, recorder = tiny(), Recorder()
    record_passes(model, recorder)
    for _ in range(3):
        passes_of(model, [batch(1, length) for length in range(10, 20)], 20)
    assert not recorder.replays and len(model.backbone.forward._seen) <= 5


def test_scoring_a_thousand_variants_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a recording took as long as a dozen of its passes, which hardly one of the same shape followed."""
    monkeypatch.setattr(recorded_passes, "SEEN_BEFORE", THE_RULES)
    monkeypatch.syspath_prepend(str(PIPELINES))
    from variant_benchmarks import random_variants

    store, alleles = random_variants(tmp_path, 300_000, 1000)
    save_checkpoint(tiny(n_layer=1, d_model=8), tmp_path / "model", {})
    inference = load_for_inference(tmp_path / "model", "cpu")
    recorder, passes = Recorder(), 0

    def counted(*arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        return replayable(*arguments)

    record_passes(inference.model, recorder)
    replayable = inference.model.backbone.forward
    inference.model.backbone.forward = counted  # type: ignore[method-assign]
    plan = plan_for(inference, context=2048, batch_tokens=MICRO_TOKENS_GPU)
    scores = plan.score(inference, store, alleles)
    assert np.isfinite(scores.forward.llr).all()
    assert passes > 10 and recorder.replays == []


def test_a_copy_records_for_itself_and_nothing_keeps_a_model() -> None:
    model, recorder = tiny(), Recorder()
    record_passes(model, recorder)
    batches = [batch(2, 30, seed) for seed in range(6)]
    expected = passes_of(model, batches, 30)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert same(passes_of(other, batches, 30), expected)
    assert len(recorder.replays) == 2
    record_no_passes(other.backbone)
    assert same(passes_of(other, batches, 30), expected)
    assert sum(recorder.replays) == 2 * (6 - SEEN_BEFORE)
    gone = weakref.ref(model.backbone)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


QUERIES = {
    "likelihood": lambda model, texts: model.log_likelihood(texts, batch_tokens=600),
    "embed": lambda model, texts: model.embed(texts, batch_tokens=600),
    "predict": lambda model, texts: model.predict(texts, batch_tokens=600).to_numpy()[:, 6:].astype(float),
}


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("likelihood", {}),
        ("likelihood", of_mixer("bimamba")),
        ("embed", {}),
        ("embed", of_mixer("bimamba")),
        ("predict", {}),
    ],
)
def test_queries_of_a_loaded_model_replay(query: str, options: dict[str, Any], tmp_path: Path) -> None:
    language_model, folder = tiny(**options), tmp_path / "checkpoint"
    if query == "predict":
        head = HeadConfig("multiclass", ("a", "b"))
        save_classifier(SequenceClassifier(language_model.config, head), folder, {"settings": {"length": 512}})
    else:
        save_checkpoint(language_model, folder, {"settings": {"length": 512}})
    texts = [decode(batch(1, 300, seed)[0].numpy() % 4) for seed in range(10)]
    model, recorder = dnamamba.load(folder, device="cpu"), Recorder()
    expected = QUERIES[query](model, texts)
    record_passes(model._loaded.model, recorder)
    np.testing.assert_array_equal(QUERIES[query](model, texts), expected)
    assert sum(recorder.replays)
    before = list(recorder.replays)
    assert model.module is model._loaded.model, "which its user may change"
    np.testing.assert_array_equal(QUERIES[query](model, texts), expected)
    assert recorder.replays == before


def test_a_recording_that_fails_costs_nothing_but_itself() -> None:
    def out_of_memory(work: Work, pool: Any) -> Work:
        raise torch.OutOfMemoryError("no memory for it")

    batches = [batch(2, 30, seed) for seed in range(8)]
    expected = passes_of(tiny(), batches, 30)
    model = tiny()
    record_passes(model, out_of_memory)
    with pytest.warns(UserWarning, match="without CUDA graphs: no memory for it") as warned:
        assert same(passes_of(model, batches, 30), expected)
    assert len(warned) == 1


def test_a_recording_that_fails_frees_the_others() -> None:
    recorder = Recorder()

    def second_fails(work: Work, pool: Any) -> Work:
        if recorder.recordings:
            raise torch.OutOfMemoryError("no memory for it")
        return recorder(work, pool)

    batches = [batch(2, length, seed) for length in (30, 40) for seed in range(SEEN_BEFORE + 1)]
    expected = passes_of(tiny(), batches, 40)
    model = tiny()
    record_passes(model, second_fails)
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        assert same(passes_of(model, batches, 40), expected)
    assert recorder.replays == [1]
    assert not model.backbone.forward._recordings


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_gpu_replays_the_same_bits(mixer: str, precision: str) -> None:
    options = of_mixer(mixer, d_model=64, d_state=16)
    batches = [batch(3, 300, seed, "cuda") for seed in range(SEEN_BEFORE + 3)]
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        expected = passes_of(tiny("cuda", **options), batches, 300)
        model = tiny("cuda", **options)
        record_passes(model)
        assert same(passes_of(model, batches, 300), expected)
    waits = mixer_class(mixer).packs_on_host(model.config) and not model.backbone.is_causal
    assert len(model.backbone.forward._recordings) == (0 if waits else 1)


@pytest.mark.gpu
def test_a_gpu_replays_chunks_and_both_strands() -> None:
    for options, chunk in (({}, 100), ({"rc_equivariant": True, **of_mixer("bimamba")}, 300)):
        batches = [batch(3, 300, seed, "cuda") for seed in range(5)]
        expected = passes_of(tiny("cuda", d_model=64, **options), batches, chunk)
        model = tiny("cuda", d_model=64, **options)
        record_passes(model)
        assert same(passes_of(model, batches, chunk), expected)
        assert model.backbone.forward._recordings


@pytest.mark.gpu
@torch.inference_mode()
def test_recordings_take_the_memory_of_one_pass_and_of_their_results() -> None:
    def reserved() -> int:
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    model = tiny("cuda", d_model=256, n_layer=8, d_state=16)
    shapes = [(16, 1024 - 64 * number) for number in range(6)]
    passes_of(model, [batch(*shape, 0, "cuda") for shape in shapes], 1024)
    before, allocated = reserved(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    passes_of(model, [batch(*shapes[0], 0, "cuda")], 1024)
    of_a_pass = torch.cuda.max_memory_allocated() - allocated
    record_passes(model)
    for shape in shapes:
        passes_of(model, [batch(*shape, seed, "cuda") for seed in range(5)], 1024)
    assert len(model.backbone.forward._recordings) == len(shapes)
    results = 4 * 256 * sum(sequences * length for sequences, length in shapes)
    assert reserved() - before < 1.5 * of_a_pass + results + (100 << 20)
    record_no_passes(model.backbone)
    assert reserved() - before < 100 << 20
