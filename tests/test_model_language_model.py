"""The model's promises: causal, the same in steps, chunks, packs and whole; counted losses; outside references."""

import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from dnamamba.model.config import ModelConfig
from dnamamba.model.embedding import _Lookup
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.loss import next_base_nll
from dnamamba.model.parameters import parameter_groups

VARIANTS = {
    "euler": {},
    "zoh": {"discretization": "zoh"},
    "broadcast": {"dt_rank": "broadcast"},
    "k-mers": {"kmer": 6},
    "k-mers of two": {"kmer": 2, "tie_embeddings": False},
    "odd sizes, no conv bias, untied": {
        "d_model": 13, "d_state": 5, "d_conv": 3, "expand": 3, "dt_rank": 2, "conv_bias": False, "tie_embeddings": False
    },
}  # fmt: skip


def make_model(seed=0, **overrides):
    torch.manual_seed(seed)
    model = LanguageModel(ModelConfig(**({"d_model": 24, "n_layer": 3} | overrides)))
    with torch.no_grad():  # embeddings of 0.02 make all logits nearly equal; tests want them apart
        model.backbone.embedding.weight.normal_()
        if model.backbone.context is not None:
            model.backbone.context.weight.normal_()
    return model


def random_tokens(batch, length, seed=1, high=5):
    return torch.randint(0, high, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models: on a busy machine threads that wait for one another cost ten times the arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=VARIANTS)
def model(request):
    return make_model(**VARIANTS[request.param])


def assert_states_close(state, expected, **tolerance):
    for block, expected_block in zip(state, expected, strict=True):
        for value, expected_value in zip(block, expected_block, strict=True):
            torch.testing.assert_close(value, expected_value, **tolerance)


@torch.no_grad()
@pytest.mark.parametrize("position", [0, 1, 36, 72])
def test_a_base_changes_nothing_before_it(model, position):
    tokens = random_tokens(2, 73)
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % 4
    before, after = model(tokens).logits, model(changed).logits
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position:], after[:, position:])


@torch.no_grad()
def test_steps_equal_the_whole_pass(model):
    tokens = random_tokens(2, 41)
    whole = model(tokens)
    state = model.init_state(2)
    for t in range(tokens.shape[1]):
        logits, state = model.step(tokens[:, t], state)
        torch.testing.assert_close(logits, whole.logits[:, t], atol=1e-5, rtol=1e-5)
    assert_states_close(state, whole.state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cuts", [(1, 1, 71), (2, 3, 68), (36, 37), (72, 1)])
def test_chunks_equal_the_whole_pass_values_and_gradients(model, cuts):
    tokens = random_tokens(2, 74)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    whole = model.loss(inputs, targets)
    whole.nll_sum.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    state, nll_sum, counted = None, torch.zeros(()), 0
    for chunk, chunk_targets in zip(inputs.split(cuts, dim=1), targets.split(cuts, dim=1), strict=True):
        sums = model.loss(chunk, chunk_targets, state)
        state, nll_sum, counted = sums.state, nll_sum + sums.nll_sum, counted + sums.counted
    nll_sum.backward()
    torch.testing.assert_close(nll_sum, whole.nll_sum, atol=1e-4, rtol=1e-5)
    assert counted == whole.counted
    assert_states_close(state, whole.state, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        scale = expected[name].abs().max()
        torch.testing.assert_close(parameter.grad, expected[name], atol=float(scale) * 1e-4, rtol=1e-4, msg=name)


@torch.no_grad()
def test_packed_sequences_equal_separate_ones(model):
    lengths = (1, 2, 30, 17, 3)
    tokens = random_tokens(1, sum(lengths))
    ids = torch.repeat_interleave(torch.tensor([7, 2, 9, 2, 0], dtype=torch.int32), torch.tensor(lengths))[None]
    start = model(random_tokens(1, 9, seed=2)).state
    packed = model(tokens, start, ids)
    first = 0
    for index, segment in enumerate(tokens.split(lengths, dim=1)):
        alone = model(segment, start if index == 0 else None)  # the given state belongs to the first sequence
        logits = packed.logits[:, first : first + segment.shape[1]]
        torch.testing.assert_close(logits, alone.logits, atol=1e-5, rtol=1e-5)
        first += segment.shape[1]
    assert_states_close(packed.state, alone.state, atol=1e-5, rtol=1e-5)  # the returned one to the last


def test_gradients_reach_every_parameter(model):
    tokens = random_tokens(2, 50)
    model.loss(tokens[:, :-1], tokens[:, 1:]).nll_sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_the_gradient_of_the_embedding_is_a_product():
    """As on a GPU, where the bits are the same in every run."""
    tokens = random_tokens(3, 50).int()
    weight = torch.randn(11, 7, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(3, 50, 7, dtype=torch.float64)
    expected, found = (
        torch.autograd.grad(lookup(tokens, weight), weight, gradient)[0] for lookup in (F.embedding, _Lookup.apply)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_recomputing_blocks_changes_rounding_alone():
    tokens = random_tokens(2, 50)
    plain, recomputing = make_model(), make_model()
    recomputing.backbone.recompute = "all"
    for each in (plain, recomputing):
        start = tree_map(torch.ones_like, each.init_state(2))
        each.loss(tokens[:, :-1], tokens[:, 1:], start).nll_sum.backward()
    for (name, expected), parameter in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("residual_in_fp32", [True, False])
def test_bf16_autocast_stays_close_to_fp32(residual_in_fp32):
    model = make_model(d_model=64, residual_in_fp32=residual_in_fp32)
    tokens = random_tokens(2, 65)
    exact = model.loss(tokens[:, :-1], tokens[:, 1:])
    exact.nll_sum.backward()
    exact_grad = model.backbone.layers[0].mixer.A_log.grad.clone()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        zeros = model.init_state(2)
        sums = model.loss(tokens[:, :-1], tokens[:, 1:], zeros)
        logits, _ = model.step(tokens[:, -1], sums.state)
        output = model(tokens)
    sums.nll_sum.backward()
    for conv_state, ssm_state in (*zeros, *sums.state):
        assert (conv_state.dtype, ssm_state.dtype) == (torch.bfloat16, torch.float32)
    assert (output.hidden.dtype, output.logits.dtype, sums.nll.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(logits, output.logits[:, -1], atol=0.1, rtol=0.05)
    torch.testing.assert_close(sums.nll_sum, exact.nll_sum, atol=0, rtol=5e-3)
    grad = model.backbone.layers[0].mixer.A_log.grad
    assert grad.dtype == torch.float32
    assert (grad - exact_grad).norm() < 0.05 * exact_grad.norm()


def test_the_head_in_parts_equals_the_head_at_once(monkeypatch):
    model = make_model()
    hidden = torch.randn(3, 11, 24).bfloat16().requires_grad_()
    (expected,) = torch.autograd.grad(model.base_logits(hidden).square().sum(), hidden)
    monkeypatch.setattr("dnamamba.model.language_model._HEAD_POSITIONS", 7)
    logits = model.base_logits(hidden)
    torch.testing.assert_close(logits, F.linear(hidden.float(), model.lm_head.weight[:4]))
    assert torch.equal(torch.autograd.grad(logits.square().sum(), hidden)[0], expected)


def test_only_bases_count():
    logits = torch.randn(2, 6, 4, requires_grad=True)
    targets = torch.tensor([[0, 1, 2, 3, 4, 5], [4, 4, 7, 10, 3, 0]], dtype=torch.uint8)
    nll = next_base_nll(logits, targets)
    log_p = logits.log_softmax(-1)
    for row, column in itertools.product(range(2), range(6)):
        target = targets[row, column]
        if target < 4:
            torch.testing.assert_close(nll[row, column], -log_p[row, column, int(target)])
        else:
            assert nll[row, column].isnan()


def test_a_batch_without_bases_has_zero_loss_and_finite_gradients():
    model = make_model()
    sums = model.loss(torch.full((2, 9), 4), torch.full((2, 9), 4, dtype=torch.uint8))
    sums.nll_sum.backward()
    assert (sums.nll_sum.item(), sums.counted.item()) == (0.0, 0)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_untrained_model_is_near_two_bits_a_base():
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(d_model=64, n_layer=4))
    tokens = random_tokens(4, 129, high=4).to(torch.uint8)
    sums = model.loss(tokens[:, :-1], tokens[:, 1:])
    assert sums.nll_sum.item() / sums.counted.item() / math.log(2) == pytest.approx(2, abs=0.1)


def test_a_short_sequence_is_learnt_by_heart():
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(d_model=32, n_layer=1))
    tokens = random_tokens(1, 33, high=4)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=3e-2)
    for _ in range(30):
        sums = model.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        (sums.nll_sum / sums.counted).backward()
        optimizer.step()
    assert sums.nll_sum.item() / sums.counted.item() < 0.1


def test_initial_weights_are_the_papers():
    torch.manual_seed(0)
    config = ModelConfig(d_model=64, n_layer=9, d_state=8)
    model = LanguageModel(config)
    mixer = model.backbone.layers[4].mixer
    torch.testing.assert_close(mixer.A, -torch.arange(1.0, 9).repeat(128, 1))
    dt = F.softplus(mixer.dt_proj.bias.detach())
    assert dt.min() >= 0.999e-3
    assert dt.max() <= 0.1001
    assert dt.log().std().item() == pytest.approx(math.log(100) / math.sqrt(12), rel=0.2)
    assert mixer.dt_proj.weight.abs().max() <= 4**-0.5
    assert torch.equal(mixer.D, torch.ones(128))
    assert model.backbone.embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    bound = 1 / math.sqrt(128) / math.sqrt(9)  # kaiming-uniform with a = √5 is ± 1/√fan_in
    assert 0.98 * bound < mixer.out_proj.weight.abs().max() <= bound
    assert model.lm_head.weight is model.backbone.embedding.weight


@pytest.mark.filterwarnings("ignore")
def test_compiles_into_one_graph():
    model = make_model(n_layer=1)
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    tokens = random_tokens(2, 34)
    expected = model.loss(tokens[:, :-1], tokens[:, 1:])
    sums = compiled(tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(sums.nll_sum, expected.nll_sum)
    gradients = [torch.autograd.grad(each.nll_sum, model.parameters()) for each in (sums, expected)]
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-4)


def test_scales_and_time_constants_do_not_decay():
    model = make_model()
    decayed, kept = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed_names = {names[id(parameter)].rpartition("layers.")[2] for parameter in decayed["params"]}
    per_layer = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
    assert decayed_names == {"backbone.embedding.weight"} | {
        f"{layer}.mixer.{name}.weight" for layer in range(3) for name in per_layer
    }
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_logits_equal_hugging_faces_mamba():
    transformers = pytest.importorskip("transformers")
    model = make_model(d_model=32, n_layer=2)
    with warnings.catch_warnings(action="ignore"):
        reference = transformers.MambaForCausalLM(
            transformers.MambaConfig(
                vocab_size=16, hidden_size=32, state_size=16, num_hidden_layers=2, conv_kernel=4, expand=2,
                time_step_rank=2, use_bias=False, use_conv_bias=True, residual_in_fp32=True, use_mambapy=False,
            )
        ).eval()  # fmt: skip
        weights = {name.replace(".embedding.", ".embeddings."): value for name, value in model.state_dict().items()}
        reference.load_state_dict(weights)
        tokens = random_tokens(2, 37, high=11)
        with torch.no_grad():
            expected = reference(tokens, use_cache=False).logits
    with torch.no_grad():
        output = model(tokens)
    torch.testing.assert_close(model.lm_head(output.hidden), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logits, expected[..., :4], atol=1e-5, rtol=1e-5)
