"""The waist through which every use of a model goes: batches, chunks, pooling, likelihoods, loading."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model

from dnamamba.alphabet import BASES, PAD, N
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint, save_classifier
from dnamamba.inference.batches import batches_by_length, padded
from dnamamba.inference.device import MICRO_TOKENS_CPU, Compute, choose_compute
from dnamamba.inference.kept_states import pass_and_keep
from dnamamba.inference.load import Inference, load_classifier_for_inference, load_for_inference
from dnamamba.inference.pooling import pool_last, pool_mean
from dnamamba.inference.stream import stream
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.loss import next_base_log_likelihood, next_base_nll


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 2000), st.integers(1, 3))
def test_batches_hold_each_row_once_within_the_budget(lengths, tokens, at_least):
    lengths = np.array(lengths, np.int64)
    found = list(batches_by_length(lengths, tokens, at_least))
    assert sorted(row for batch in found for row in batch.tolist()) == list(range(lengths.size))
    for number, batch in enumerate(found):
        longest = int(lengths[batch].max())
        assert batch.size * longest <= tokens or batch.size <= at_least
        if number + 1 < len(found):  # full: one row more would be too much
            assert batch.size >= at_least and (batch.size + 1) * max(longest, 1) > tokens
            assert lengths[batch].min() >= lengths[found[number + 1]].max()


def test_rows_of_one_length_keep_their_order():
    assert [batch.tolist() for batch in batches_by_length(np.array([5, 7, 5, 7, 5]), 14)] == [[1, 3], [0, 2], [4]]


def test_padding_stands_behind():
    rows = padded([np.array([0, 1], np.uint8), np.array([], np.uint8), np.array([3, 2, 1], np.uint8)])
    assert rows.dtype == np.uint8 and rows.tolist() == [[0, 1, PAD], [PAD, PAD, PAD], [3, 2, 1]]


@pytest.mark.parametrize("chunk", [1, 3, 16, 49, 50, 1000])
def test_a_stream_in_chunks_is_the_whole_pass(chunk):
    model = tiny_model()
    tokens = torch.randint(0, 5, (3, 50), dtype=torch.uint8)
    with torch.no_grad():
        whole = model(tokens)
        chunks = list(stream(model.backbone, tokens.split(chunk, dim=1)))
    assert [(part.begin, part.end) for part in chunks] == [(b, min(b + chunk, 50)) for b in range(0, 50, chunk)]
    assert torch.equal(torch.cat([part.tokens for part in chunks], 1), tokens)
    torch.testing.assert_close(torch.cat([part.hidden for part in chunks], 1), whole.hidden, rtol=0, atol=1e-4)
    for found, expected in zip(chunks[-1].state, whole.state, strict=True):
        torch.testing.assert_close(found.ssm_state, expected.ssm_state, rtol=1e-4, atol=1e-4)


def test_a_stream_continues_from_a_state():
    model = tiny_model()
    tokens = torch.randint(0, 4, (2, 40), dtype=torch.uint8)
    with torch.no_grad():
        (first,) = stream(model.backbone, [tokens[:, :13]])
        (second,) = stream(model.backbone, [tokens[:, 13:]], first.state)
        expected = model(tokens).hidden[:, 13:]
        (afresh,) = stream(model.backbone, [tokens[:, 13:]])
    torch.testing.assert_close(second.hidden, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(afresh.hidden, expected, atol=1e-2)


def test_gradients_and_precision_are_those_of_whoever_takes_the_chunks():
    model = tiny_model()
    tokens = torch.randint(0, 4, (2, 12), dtype=torch.uint8)
    chunks = stream(model.backbone, tokens.split(4, dim=1))
    assert next(chunks).hidden.requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        part = next(chunks)
    assert not part.hidden.requires_grad and part.state[0].conv_state.dtype == torch.bfloat16
    sum(part.hidden.sum() for part in stream(model.backbone, tokens.split(4, dim=1))).backward()
    assert model.backbone.embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_pooling_is_over_each_rows_own_positions(chunk):
    model = tiny_model()
    tokens, lengths = torch.randint(0, 4, (3, 20), dtype=torch.uint8), torch.tensor([20, 7, 1])
    tokens[0, :5] = N
    tokens[2, 0] = N
    for row, length in zip(tokens, lengths.tolist(), strict=True):
        row[length:] = PAD
    with torch.no_grad():
        hidden = model(tokens, logits=False).hidden

        def chunks():
            return stream(model.backbone, tokens.split(chunk, dim=1))

        last = pool_last(chunks(), lengths)
        mean = pool_mean(chunks(), lengths)
        of_bases = pool_mean(chunks(), lengths, bases_only=True, dtype=torch.float64)
    assert last.dtype == mean.dtype == torch.float32 and of_bases.dtype == torch.float64
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(last[row], hidden[row, length - 1], rtol=0, atol=1e-4)
        torch.testing.assert_close(mean[row], hidden[row, :length].mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(of_bases[0], hidden[0, 5:].double().mean(0), rtol=0, atol=1e-4)
    assert of_bases[2].isnan().all()


def test_the_log_likelihood_of_what_is_no_base_is_missing():
    logits = torch.randn(2, 8, BASES, requires_grad=True)
    targets = torch.tensor([[0, 1, 2, 3, N, PAD, 6, 10], [3, 3, 3, 3, 0, 0, 0, 0]], dtype=torch.uint8)
    found = next_base_log_likelihood(logits, targets)
    assert found.dtype == torch.float32 and torch.equal(found.isnan(), targets >= BASES)
    log_p = torch.log_softmax(logits.detach().double(), -1)
    for index in (targets < BASES).nonzero().tolist():
        assert found[tuple(index)].item() == pytest.approx(log_p[(*index, int(targets[tuple(index)]))].item(), abs=1e-6)
    assert torch.equal(found.nan_to_num(0), -next_base_nll(logits, targets).nan_to_num(0))
    torch.where(targets < BASES, found, 0.0).sum().backward()
    assert logits.grad.isfinite().all() and (logits.grad[0, 4:] == 0).all() and logits.grad[1].abs().sum() > 0


@pytest.mark.parametrize("every", [1, 7, 33, 40])
def test_kept_states_and_likelihoods_are_those_of_the_whole_pass(every):
    model = tiny_model().requires_grad_(False)
    inference = Inference(model, Compute(torch.device("cpu"), "fp32", 1000), {}, None)
    rng = np.random.default_rng(every)
    sequences = [rng.integers(0, 5, length).astype(np.uint8) for length in (33, 20)]
    needed = list(range(0, 33, every))
    kept = pass_and_keep(inference, sequences, every, needed)
    for row, sequence in enumerate(sequences):
        tokens = torch.from_numpy(sequence)[None]
        expected = next_base_log_likelihood(model(tokens).logits[:, :-1], tokens[:, 1:])[0]
        torch.testing.assert_close(
            kept.log_likelihood[row, 1 : sequence.size], expected, atol=1e-4, rtol=0, equal_nan=True
        )
        assert kept.log_likelihood[row, 0].isnan() and kept.log_likelihood[row, sequence.size :].isnan().all()
        for read in [count for count in needed if 0 < count <= sequence.size]:
            state = kept.start(np.array([row]), np.array([read]))
            torch.testing.assert_close(
                state[1].ssm_state, model(tokens[:, :read]).state[1].ssm_state, rtol=1e-4, atol=1e-4
            )
    assert (kept.start(np.array([0]), np.array([0]))[0].ssm_state == 0).all()


def test_a_model_and_a_classifier_are_loaded_alike(tmp_path):
    save_checkpoint(tiny_model(), tmp_path / "model", {"settings": {"length": 512}})
    head = HeadConfig("multiclass", ("a", "b"))
    config = tiny_model().config
    save_classifier(SequenceClassifier(config, head), tmp_path / "classifier", {})
    model = load_for_inference(tmp_path / "model", "cpu")
    classifier = load_classifier_for_inference(tmp_path / "classifier", "cpu", "bf16", 77)
    for inference in (model, classifier):
        assert not inference.model.training and not any(p.requires_grad for p in inference.model.parameters())
        assert inference.device.type == "cpu"
        labels = [label for label, _ in inference.header()]
        assert labels == ["checkpoint", "model", "device", "kernels"]
    assert model.precision == "fp32" and model.compute.micro_tokens == MICRO_TOKENS_CPU and model.trained_length == 512
    assert classifier.precision == "bf16" and classifier.compute.micro_tokens == 77
    assert classifier.model.head_config == head and classifier.trained_length is None
    with classifier.autocast():
        assert torch.is_autocast_enabled("cpu")
    with model.autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_where_a_model_cannot_run_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_compute() == Compute(torch.device("cpu"), "fp32", MICRO_TOKENS_CPU)
    with pytest.raises(InputError, match="--accelerator gpu: torch sees no CUDA device"):
        choose_compute("gpu")
    with pytest.raises(InputError, match="--micro_tokens: 0 is below 1"):
        choose_compute("cpu", micro_tokens=0)


def test_arrays_are_put_on_the_device_as_they_are():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    tensor = choose_compute("cpu").put(array)
    assert tensor.dtype == torch.uint8 and tensor.tolist() == array.tolist()
