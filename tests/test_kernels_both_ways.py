"""Blocks that read both ways, or both strands, as one operator: against the composition of the single operators."""

import block_models
import pytest
import torch
from block_models import assert_backward_keeps_the_backends, packed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dnamamba.alphabet import COMPLEMENT
from dnamamba.model.language_model import LanguageModel
from dnamamba.runs.recompute import kept_bytes
from dnamamba_kernels.block import both_ways, slices

MODELS = {
    "both ways": {"mixer": "bimamba"},
    "both ways, both strands": {"mixer": "bimamba", "rc_equivariant": True},
    "both strands": {"rc_equivariant": True},
}
OPTIONS = {
    "plain": {},
    "zoh": {"discretization": "zoh"},
    "constant B and C": {"selective": "dt"},
    "constant C": {"selective": "dt,B"},
    "bf16 residual, no bias": {"residual_in_fp32": False, "conv_bias": False},
}
ALONE = {
    "constant step": {"selective": "B,C"},
    "broadcast step": {"dt_rank": "broadcast"},
    "untied": {"bidirectional_weight_tie": False},
    "product": {"bidirectional_strategy": "ew_multiply"},
}
"""What is left to the single operators"""
RECOMPUTE = pytest.mark.parametrize("recompute", ["none", "cheap", "all"])
EACH = pytest.mark.parametrize("which", MODELS.values(), ids=MODELS)


def model_of(recompute: str | None, dtype: torch.dtype = torch.float64, **options) -> LanguageModel:
    return block_models.model_of(recompute, dtype, objective="masked_base", **options)


def tokens_of(batch: int, length: int) -> Tensor:
    return torch.randint(0, 4, (batch, length), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def gradients(model: LanguageModel, tokens: Tensor, ids: Tensor | None = None) -> list[Tensor]:
    """Logits and their gradients with respect to all parameters, of a loss in which every position counts otherwise."""
    logits = model(tokens, None, ids).logits
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = torch.autograd.grad((logits * weight.to(logits.dtype)).sum(), list(model.parameters()))
    return [logits.detach(), *found]


def assert_same(found: list[Tensor], expected: list[Tensor], **close) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **close)


@pytest.fixture(autouse=True)
def calls(monkeypatch) -> list[int]:
    """The batches that the operator has been called with; slices of one sequence."""
    monkeypatch.setattr(slices, "LARGEST", dict.fromkeys(slices.LARGEST, 1))
    found: list[int] = []
    run = both_ways._forward
    monkeypatch.setattr(both_ways, "_forward", lambda *given: found.append(len(given[1])) or run(*given))
    return found


@EACH
@RECOMPUTE
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("with_ids", [False, True], ids=["", "packed"])
def test_gradients_are_those_of_the_single_operators(which, recompute, options, with_ids, calls):
    tokens = tokens_of(3, 83)
    ids = packed(3, 83) if with_ids else None
    expected = gradients(model_of(None, **which, **options), tokens, ids)
    assert not calls
    assert_same(gradients(model_of(recompute, **which, **options), tokens, ids), expected, rtol=1e-9, atol=1e-11)
    assert calls == 2 * [6 if "rc_equivariant" in which else 3]


@EACH
@RECOMPUTE
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 2), (5, 40), (1, 64)])
def test_any_shape_is_cut(which, recompute, batch, length, monkeypatch):
    monkeypatch.setattr(slices, "LARGEST", dict.fromkeys(slices.LARGEST, 24 * 100))
    tokens = tokens_of(batch, length)
    expected = gradients(model_of(None, **which), tokens)
    assert_same(gradients(model_of(recompute, **which), tokens), expected, rtol=1e-9, atol=1e-11)


@EACH
@RECOMPUTE
def test_fp32_on_the_kernels_of_the_cpu(which, recompute):
    """The scan's own kernels, whose kept states stand at other distances than the reference's; the same bits twice."""
    tokens, ids = tokens_of(2, 210), packed(2, 210)
    expected = gradients(model_of(None, torch.float32, **which), tokens, ids)
    found, again = (gradients(model_of(recompute, torch.float32, **which), tokens, ids) for _ in range(2))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@EACH
@RECOMPUTE
def test_autocast(which, recompute):
    """bf16 products on the CPU: the same roundings but for the sums over directions and halves."""
    tokens = tokens_of(2, 83)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(model_of(None, torch.float32, **which), tokens)
        found = gradients(model_of(recompute, torch.float32, **which), tokens)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).norm() <= 0.03 * other.norm()


@pytest.mark.parametrize("which", [each for each in MODELS.values() if "rc_equivariant" in each])
@RECOMPUTE
@pytest.mark.parametrize("length", [1, 2, 83])
def test_the_reverse_complement_gives_the_reverse_complement(which, recompute, length):
    """Every bit of it, whether gradients are wanted or not, in bf16, too."""
    model, tokens = model_of(recompute, torch.float32, **which), tokens_of(2, length)
    other = torch.from_numpy(COMPLEMENT)[tokens.long()].flip(1)
    for with_gradients in (True, False):
        for half in (True, False):
            with torch.set_grad_enabled(with_gradients), torch.autocast("cpu", torch.bfloat16, enabled=half):
                here, there = model(tokens).logits, model(other).logits
            assert torch.equal(there, here.flip(1, 2))


@EACH
@RECOMPUTE
def test_without_gradients_nothing_changes_and_nothing_is_kept(which, recompute, calls, monkeypatch):
    tokens, model = tokens_of(3, 83), model_of(recompute, torch.float32, **which)
    expected = model(tokens).logits
    kept = []
    run = both_ways._OneStrand.run
    monkeypatch.setattr(both_ways._OneStrand, "run", lambda *given: kept.append(run(*given)) or kept[-1])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected)
    assert len(calls) == 4 and kept and not any(each.states or each.values for each in kept)


@RECOMPUTE
@pytest.mark.parametrize("options", ALONE.values(), ids=ALONE)
def test_what_is_left_to_the_single_operators(recompute, options, calls):
    tokens = tokens_of(2, 20)
    expected = gradients(model_of(None, mixer="bimamba", **options), tokens)
    assert_same(gradients(model_of(recompute, mixer="bimamba", **options), tokens), expected, rtol=1e-9, atol=1e-11)
    assert not calls


@EACH
@RECOMPUTE
def test_what_sees_inside_gets_the_single_operators(which, recompute, calls):
    """torch.func, where one operator could not be taken apart; and counters of operations."""
    tokens, model = tokens_of(1, 20), model_of(recompute, **which)
    parameters = dict(model.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (tokens,)).logits.square().sum()

    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    calls.clear()
    for one, other in zip(torch.func.grad(loss)(parameters).values(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    assert counter.get_total_flops() > 0 and not calls


@EACH
@RECOMPUTE
def test_the_backward_pass_takes_the_backends_of_the_forward_pass(which, recompute, monkeypatch):
    assert_backward_keeps_the_backends(model_of(recompute, torch.float32, **which), tokens_of(1, 200), monkeypatch)


def held(model: LanguageModel, batch: int, length: int) -> float:
    """Bytes a position: what the graph of the logits holds, but for parameters."""
    return block_models.held(model, lambda: model(tokens_of(batch, length)).logits) / (batch * length)


@EACH
def test_what_is_kept(which):
    """The mixers know how many bytes a position: the difference of models of two blocks and one."""
    options = {"d_model": 64, "d_state": 16, "dt_rank": 4} | which
    matrices, decay, strands = 3 * 128 * 64 + 2 * 128 * (2 * 4 + 2 * 16), 128 * 16, 1 + ("rc_equivariant" in which)
    directions = 1 + ("mixer" in which)
    small = (2 * matrices + 4 * 4 * directions * decay) / 4096 + 4  # weights in bf16, A and what it is made of

    def of_a_block(recompute: str | None) -> float:
        two, one = (model_of(recompute, torch.float32, **options, n_layer=blocks) for blocks in (2, 1))
        return held(two, 1, 4096) - held(one, 1, 4096)

    backbone = model_of(None, **options, n_layer=1).backbone
    states = strands * directions * (4 * decay / 32 - 4 * decay / 64)  # which the CPU's scan keeps at every 64th
    found = {recompute: of_a_block(recompute) for recompute in ("none", "cheap", "all")}
    for recompute, fewer in (("all", 0), ("cheap", states), ("none", states)):
        expected = kept_bytes(backbone, recompute) - fewer
        assert expected <= found[recompute] <= expected + small, recompute
    assert 2 * found["all"] < found["cheap"] < 0.5 * found["none"]
    assert found["none"] < of_a_block(None) + small
