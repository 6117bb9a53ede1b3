"""The block that keeps little for its backward pass, against the composition of the single operators."""

from itertools import pairwise

import pytest
import torch
from block_models import assert_backward_keeps_the_backends, held, model_of, packed
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from dnamamba.model.language_model import LanguageModel
from dnamamba_kernels.block import slices
from dnamamba_kernels.block.slices import Slice, borders, cut, joined, only

OPTIONS = {
    "plain": {},
    "zoh": {"discretization": "zoh"},
    "constant B": {"selective": "dt,C"},
    "constant C": {"selective": "dt,B"},
    "constant B and C": {"selective": "dt"},
    "constant step": {"selective": "B,C"},
    "broadcast step": {"dt_rank": "broadcast"},
    "bf16 residual, no bias": {"residual_in_fp32": False, "conv_bias": False},
}


def tokens_of(batch: int, length: int) -> Tensor:
    return torch.randint(0, 4, (batch, length + 1), generator=torch.Generator().manual_seed(1))


def gradients(model: LanguageModel, batch: int, length: int, ids: Tensor | None = None, stateful: bool = True):
    """Loss, states and gradients with respect to all parameters and the states before, of a loss in which the states
    after count, too."""
    tokens = tokens_of(batch, length)
    before = None
    if stateful:
        own = torch.Generator().manual_seed(2)
        before = tree_map(
            lambda leaf: torch.randn(leaf.shape, generator=own, dtype=torch.float64).to(leaf.dtype).requires_grad_(),
            model.init_state(batch),
        )
    sums = model.loss(tokens[:, :-1], tokens[:, 1:], before, ids)
    after = [leaf for state in sums.state for leaf in state]
    loss = sums.nll_sum + sum((leaf * torch.linspace(0.5, 1.5, leaf.numel()).view(leaf.shape)).sum() for leaf in after)
    wanted = [*model.parameters(), *(leaf for state in before or () for leaf in state)]
    return loss.detach(), after, torch.autograd.grad(loss, wanted)


def assert_same(found, expected, **close) -> None:
    for one, other in zip((found[0], *found[1], *found[2]), (expected[0], *expected[1], *expected[2]), strict=True):
        torch.testing.assert_close(one, other, **close)


@pytest.fixture
def short_slices(monkeypatch) -> None:
    """Slices of 16 positions, so that a sequence has many."""
    monkeypatch.setattr(slices, "LARGEST", dict.fromkeys(slices.LARGEST, 1))


@pytest.mark.parametrize("recompute", ["none", "cheap", "all"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("with_ids", [False, True], ids=["", "packed"])
def test_gradients_are_those_of_the_single_operators(recompute, options, with_ids, short_slices):
    batch, length = 2, 83
    ids = packed(batch, length) if with_ids else None
    expected = gradients(model_of(None, **options), batch, length, ids)
    assert_same(gradients(model_of(recompute, **options), batch, length, ids), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("recompute", ["none", "cheap", "all"])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 2), (5, 40), (1, 64)])
def test_any_shape_is_cut(recompute, batch, length, monkeypatch):
    monkeypatch.setattr(slices, "LARGEST", dict.fromkeys(slices.LARGEST, 24 * 100))
    expected = gradients(model_of(None), batch, length, stateful=False)
    assert_same(gradients(model_of(recompute), batch, length, stateful=False), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("recompute", ["none", "cheap", "all"])
def test_fp32_on_the_kernels_of_the_cpu(recompute, short_slices):
    """The scan's own kernels, whose kept states stand at other distances than the reference's."""
    length = 3 * 70
    ids = packed(2, length)
    expected = gradients(model_of(None, torch.float32), 2, length, ids)
    assert_same(gradients(model_of(recompute, torch.float32), 2, length, ids), expected, rtol=2e-4, atol=2e-4)
    one, other = (gradients(model_of(recompute, torch.float32), 2, length, ids)[2] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("recompute", ["none", "cheap", "all"])
def test_autocast(recompute, short_slices):
    """bf16 products on the CPU: the same roundings but for the sums over halves and slices."""
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(model_of(None, torch.float32), 2, 83, stateful=False)
        found = gradients(model_of(recompute, torch.float32), 2, 83, stateful=False)
    for one, other in zip(found[2], expected[2], strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).norm() <= 0.03 * other.norm()


def test_what_sees_inside_gets_the_single_operators():
    """torch.compile and torch.func, where one operator could not be taken apart; and counters of operations."""
    tokens = tokens_of(1, 20)
    for recompute in ("none", "cheap", "all"):
        model = model_of(recompute)
        parameters = dict(model.named_parameters())

        def loss(parameters, model=model):
            return torch.func.functional_call(model, parameters, (tokens,)).logits.square().sum()

        expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
        for one, other in zip(torch.func.grad(loss)(parameters).values(), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
        if recompute != "all":
            whole = torch.compile(model, fullgraph=True, backend="aot_eager")
            compiled = lambda whole=whole: whole(tokens).logits.square().sum()  # noqa: E731
            for one, other in zip(torch.autograd.grad(compiled(), list(parameters.values())), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
        with FlopCounterMode(display=False) as counter:
            model(tokens)
        assert counter.get_total_flops() > 0


@pytest.mark.parametrize("recompute", ["none", "cheap", "all"])
def test_the_backward_pass_takes_the_backends_of_the_forward_pass(recompute, monkeypatch):
    assert_backward_keeps_the_backends(model_of(recompute, torch.float32), tokens_of(1, 200), monkeypatch)


def test_second_derivatives_are_refused():
    model = model_of("cheap")
    loss = model(tokens_of(1, 20)).logits.square().sum()
    (gradient,) = torch.autograd.grad(loss, [model.backbone.layers[0].mixer.D], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def kept_bytes(model: LanguageModel, batch: int, length: int) -> float:
    """A position: what the graph of a loss holds, but for parameters."""
    tokens = tokens_of(batch, length)
    return held(model, lambda: model.loss(tokens[:, :-1], tokens[:, 1:]).nll_sum) / (batch * length)


def test_what_is_kept():
    """The mixers know how many bytes a position: the difference of models of two blocks and one."""
    options = {"d_model": 64, "d_state": 16, "dt_rank": 4}
    matrices, decay = 3 * 128 * 64 + 128 * (2 * 4 + 2 * 16), 128 * 16
    small = (2 * matrices + 3 * 4 * decay) / 4096 + 4  # weights in bf16, A and what it is made of; borders of slices

    def of_a_block(recompute: str | None) -> float:
        two, one = (model_of(recompute, torch.float32, **options, n_layer=blocks) for blocks in (2, 1))
        return kept_bytes(two, 1, 4096) - kept_bytes(one, 1, 4096)

    mixer = model_of(None, **options).backbone.layers[0].mixer
    states = 4 * decay / 32 - 4 * decay / 64  # which the scan of a CPU keeps at every 64th position
    for recompute, fewer in (("all", 0), ("cheap", states), ("none", states)):
        expected = mixer.kept_bytes(recompute, 2) - fewer
        assert expected <= of_a_block(recompute) <= expected + small, recompute
    assert of_a_block("none") < of_a_block(None) + small


def test_an_id_that_comes_back_begins_a_segment():
    ids = torch.tensor([[1, 2, 1, 1, 1]], dtype=torch.int32)
    border = Slice(0, 1, 4, 5)
    assert joined(ids, border, 3).tolist() == [[False, True, True]]
    assert joined(torch.tensor([[1, 1, 2, 1, 1]]), border, 3).tolist() == [[False, False, True]]
    assert joined(torch.tensor([[1, 1, 1, 1, 2]]), border, 3).tolist() == [[False, False, False]]
    assert joined(None, border, 3) is None
    kept = only(torch.tensor([[False, True]]), torch.tensor([[[torch.nan], [2.0]]]))
    assert kept.tolist() == [[[0.0], [2.0]]]


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (7, 10), (2, 1000), (3, 1 << 20), (1, (1 << 20) + 1)])
@pytest.mark.parametrize("most", [1, 100, 4_000, 1 << 19, 1 << 22])
def test_slices_cover_every_position_once(batch, length, most):
    found = cut(batch, length, most, 32)
    covered = [(each.first + n, each.start, each.stop) for each in found for n in range(each.last - each.first)]
    for sequence in range(batch):
        own = [(start, stop) for number, start, stop in covered if number == sequence]
        assert own[0][0] == 0
        assert own[-1][1] == length
        assert all(before[1] == after[0] for before, after in pairwise(own))
    for each in found:
        positions = (each.last - each.first) * (each.stop - each.start)
        assert positions <= max(most, 32) or (each.last - each.first == 1 and length <= 32)
        assert each.start % 32 == 0
    assert all(each.last - each.first == 1 for _, each in borders(found))
