"""What every registered mixer promises: saved and loaded, compiled, answering for its parameters; a causal one leaks
nothing, is the same in steps, chunks, packs and whole, is sampled from. A new mixer is tested by its line in `MIXERS`;
those that see both sides also in test_bimamba.py."""

import math
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import dnamamba
from dnamamba.alphabet import decode
from dnamamba.errors import InputError
from dnamamba.formats import load_checkpoint
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.inference.device import choose_compute
from dnamamba.inference.kept_states import pass_and_keep
from dnamamba.inference.load import Inference
from dnamamba.inference.sampling import Generator, Sampling, _Steps, _with_matrices_in
from dnamamba.model.abilities import NEEDS, Ability, mixer_abilities, require
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.mixers import MIXERS, PATTERNS, mixer_class
from dnamamba.model.parameters import parameter_groups, training_flops_per_token
from dnamamba.training.module import BETAS

D_MODEL = 8
OPTIONS = {
    "zoh": {"mixer": "mamba", "discretization": "zoh"},
    "constant dt": {"mixer": "mamba", "selective": "B,C"},
    "selective dt": {"mixer": "mamba", "selective": "dt", "dt_rank": "broadcast", "discretization": "zoh"},
    "selective B": {"mixer": "mamba", "selective": "B"},
    "selective C": {"mixer": "mamba", "selective": "C"},
    "selective none": {"mixer": "mamba", "selective": "none"},
    "heads": {"mixer": "attention", "head_dim": 2, "rope_base": 50.0},
    "no positions": {"mixer": "attention", "rope": False, "kmer": 3},
    "short filters": {"mixer": "hyena", "filter_length": 10, "filter_width": 5},
    "mamba2-heads": {"mixer": "mamba2", "head_dim": 4, "discretization": "zoh"},
    "s4d-inv": {"mixer": "s4d", "s4d_init": "inv", "discretization": "zoh"},
    "s4d-real": {"mixer": "s4d", "s4d_init": "real"},
}
"""Options of mixers that change what they compute."""
CASES = {name: {"mixer": name} for name in MIXERS if mixer_class(name).causal} | OPTIONS
BOTH_SIDES = {
    "bimamba": {"mixer": "bimamba"},
    "bimamba untied": {"mixer": "bimamba", "bidirectional_weight_tie": False, "discretization": "zoh"},
    "bimamba product": {"mixer": "bimamba", "bidirectional_strategy": "ew_multiply", "selective": "dt,B"},
    "bimamba equivariant": {"mixer": "bimamba", "rc_equivariant": True},
    "mamba equivariant": {"mixer": "mamba", "rc_equivariant": True},
}
"""Models in which a position sees those after it."""
BOTH_SIDES = {name: options | {"objective": "masked_base"} for name, options in BOTH_SIDES.items()}
PATTERN_CASES = {name: {"mixer": name} for name in PATTERNS} | {
    "hybrid": {"pattern": "mamba,attention"},
    "hybrid with k-mers": {"pattern": "mamba,attention", "kmer": 5, "rope": False},
    "hybrid of three": {"pattern": "s4d:2,attention,gated_mlp", "n_layer": 4},
}
"""Blocks of several mixers, states and caches next to each other."""


def make_config(**options):
    return ModelConfig(**({"d_model": D_MODEL, "n_layer": 2, "d_state": 4, "filter_length": 32} | options))


def make_mixer(seed=0, dtype=torch.float64, **options):
    """In fp64, so that orders of summation do not show; larger weights, so that every position matters."""
    torch.manual_seed(seed)
    mixer = mixer_class(options["mixer"])(make_config(**options)).to(dtype)
    with torch.no_grad():
        for parameter in mixer.parameters():
            if parameter.ndim > 1 and not any(parameter is each for each in mixer.undecayed_parameters()):
                parameter.mul_(1.5)
    return mixer


def inputs(batch, length, seed=1, dtype=torch.float64):
    return torch.randn(batch, length, D_MODEL, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def started(mixer, batch, length=5):
    """A state as it is after some positions."""
    return mixer(inputs(batch, length, seed=7))[1]


def make_model(seed=0, **options):
    torch.manual_seed(seed)
    model = LanguageModel(make_config(**options))
    with torch.no_grad():
        model.backbone.embedding.weight.normal_()
    return model


def tokens_of(batch, length, seed=1, high=5):
    return torch.randint(0, high, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CASES)
def options(request):
    return CASES[request.param]


@pytest.fixture(params=CASES | BOTH_SIDES)
def any_options(request):
    return (CASES | BOTH_SIDES)[request.param]


@pytest.fixture
def mixer(options):
    return make_mixer(**options)


@pytest.mark.parametrize("length", [1, 2, 37])
def test_no_gradient_comes_from_later_positions(mixer, length):
    x = inputs(2, length).requires_grad_()
    y, _ = mixer(x, started(mixer, 2))
    assert y.shape == x.shape
    for position in {0, length // 2, length - 1}:
        (gradient,) = torch.autograd.grad(y[:, position].sin().sum(), x, retain_graph=True)
        later = gradient[:, position + 1 :]
        assert later.numel() == 0 or later.abs().max() <= 1e-12 * gradient.abs().max()
        assert gradient[:, position].abs().min(-1).values.gt(0).all()


def test_steps_equal_the_whole(mixer):
    x, start = inputs(2, 41), started(mixer, 2)
    whole, whole_state = mixer(x, start)
    state, parts = start, []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        parts.append(y)
    torch.testing.assert_close(torch.stack(parts, 1), whole, atol=1e-10, rtol=1e-10)
    same_behaviour(mixer, state, whole_state)


def test_steps_from_a_reserved_state_equal_the_whole(mixer):
    x, start = inputs(2, 12), started(mixer, 2)
    whole, _ = mixer(x, start)
    with torch.no_grad():
        state = mixer.reserve(mixer.reserve(start, 5), 7)
        shapes = [leaf.shape for leaf in tree_leaves(state)]
        for t in range(x.shape[1]):
            y, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], atol=1e-10, rtol=1e-10)
            assert [leaf.shape for leaf in tree_leaves(state)] == shapes
    torch.testing.assert_close(mixer(x, start)[0], whole)  # what was reserved is a copy


@pytest.mark.parametrize("cuts", [(1, 1, 71), (2, 3, 68), (36, 37), (72, 1)])
def test_chunks_equal_the_whole_in_values_and_gradients(mixer, cuts):
    x, start = inputs(2, 73), tree_map(lambda leaf: leaf.detach(), started(mixer, 2))
    weight = inputs(2, 73, seed=5)

    def run(*lengths):
        state, parts = start, []
        for chunk in x.split(lengths, dim=1):
            y, state = mixer(chunk, state)
            parts.append(y)
        y = torch.cat(parts, 1)
        return y, state, torch.autograd.grad((y * weight).sum(), mixer.parameters())

    y, state, gradients = run(*cuts)
    expected, expected_state, expected_gradients = run(73)
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=1e-10)
    same_behaviour(mixer, state, expected_state)
    for (name, _), gradient, other in zip(mixer.named_parameters(), gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-10 * float(other.abs().max()), rtol=1e-9, msg=name)
        assert other.abs().sum() > 0, name


def same_behaviour(mixer, state, expected):
    """Later positions see the same: of caches that hold different amounts of what nobody sees, all that counts."""
    x = inputs(len(tree_leaves(state)[0]) if tree_leaves(state) else 2, 3, seed=11)
    torch.testing.assert_close(mixer(x, state)[0], mixer(x, expected)[0], atol=1e-9, rtol=1e-9)


def test_packed_segments_equal_separate_ones_in_values_and_gradients(mixer):
    lengths = [(1, 2, 30, 17, 3), (20, 1, 1, 30, 1)]
    names = torch.tensor([7, 2, 9, 2, 0], dtype=torch.int32)
    ids = torch.stack([torch.repeat_interleave(names, torch.tensor(row)) for row in lengths])
    x, start = inputs(2, 53), tree_map(lambda leaf: leaf.detach(), started(mixer, 2))
    packed, packed_state = mixer(x, start, ids)
    weight = inputs(2, 53, seed=5)
    gradients = torch.autograd.grad((packed * weight).sum(), mixer.parameters(), retain_graph=True)
    parts, rows = [], []
    for row, sizes in enumerate(lengths):
        outputs = []
        for number, segment in enumerate(x[row : row + 1].split(sizes, dim=1)):
            first = tree_map(lambda leaf, row=row: leaf[row : row + 1], start)
            y, state = mixer(segment, first if number == 0 else None)  # the given state belongs to the first segment
            outputs.append(y)
        rows.append(torch.cat(outputs, 1))
        here = tree_map(lambda leaf, row=row: leaf[row : row + 1], packed_state)
        parts.append((here, state))  # the returned one to the last
    expected = torch.cat(rows)
    torch.testing.assert_close(packed, expected, atol=1e-10, rtol=1e-10)
    for here, state in parts:
        same_behaviour(mixer, here, state)
    separate = torch.autograd.grad((expected * weight).sum(), mixer.parameters())
    for (name, _), gradient, other in zip(mixer.named_parameters(), gradients, separate, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-10 * float(other.abs().max()), rtol=1e-9, msg=name)


def test_gradients_are_those_of_differences(options):
    """Against finite differences in fp64, with a state in and out, of x, state and every parameter."""
    mixer = make_mixer(**{"filter_width": 8} | options | {"d_model": 4})  # a pass or two for each weight
    x = torch.randn(1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start = mixer(x.flip(1))[1]
    leaves = [leaf.detach().clone().requires_grad_(leaf.is_floating_point()) for leaf in tree_leaves(start)]
    floats = [leaf for leaf in leaves if leaf.requires_grad]
    names = [name for name, _ in mixer.named_parameters()]

    def run(x, *values):
        given, parameters = iter(values[: len(floats)]), values[len(floats) :]
        flat = iter([next(given) if leaf.requires_grad else leaf for leaf in leaves])
        state = tree_map(lambda _: next(flat), start)
        arguments = (x, state)
        y, after = torch.func.functional_call(mixer, dict(zip(names, parameters, strict=True)), arguments)
        return y, *[leaf for leaf in tree_leaves(after) if leaf.is_floating_point()]

    parameters = [parameter.detach().clone().requires_grad_() for parameter in mixer.parameters()]
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *floats, *parameters), atol=1e-6, rtol=1e-4)


def test_bf16_autocast_stays_close_to_fp32(options):
    mixer, x = make_mixer(dtype=torch.float32, **options), inputs(2, 65, dtype=torch.float32)
    exact, _ = mixer(x)
    scale = float(exact.detach().abs().max())
    wanted = torch.autograd.grad(exact.square().sum(), mixer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x, mixer.init_state(2))
        step, _ = mixer.step(x[:, -1], mixer(x[:, :-1])[1])
    assert (y.dtype, step.dtype) == (torch.bfloat16, torch.bfloat16)
    assert {leaf.dtype for leaf in tree_leaves(state)} <= {torch.bfloat16, torch.float32, torch.int64}
    assert (y - exact).norm() < 0.03 * exact.norm()
    torch.testing.assert_close(step, y[:, -1], atol=0.03 * scale, rtol=0.05)
    gradients = torch.autograd.grad(y.square().sum(), mixer.parameters())
    for (name, parameter), gradient, other in zip(mixer.named_parameters(), gradients, wanted, strict=True):
        assert gradient.dtype == parameter.dtype
        assert (gradient - other).norm() < 0.1 * other.norm() + 1e-3, name


@pytest.mark.filterwarnings("ignore")
def test_compiles_and_is_the_same(any_options):
    mixer, x = make_mixer(dtype=torch.float32, **any_options), inputs(1, 34, dtype=torch.float32)
    y, _ = torch.compile(mixer, fullgraph=True, backend="aot_eager")(x)
    expected, _ = mixer(x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(each.square().sum(), mixer.parameters()) for each in (y, expected)]
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-4 * float(wanted.abs().max()) + 1e-6, rtol=1e-4)


@pytest.fixture(params=CASES | PATTERN_CASES)
def model_options(request):
    return (CASES | PATTERN_CASES)[request.param]


@pytest.mark.parametrize("case", CASES | BOTH_SIDES | PATTERN_CASES)
def test_a_model_is_saved_and_loaded_bit_for_bit(case, tmp_path):
    model = make_model(**(CASES | BOTH_SIDES | PATTERN_CASES)[case])
    save_checkpoint(model, tmp_path / "model", {})
    loaded, _ = load_checkpoint(tmp_path / "model")
    assert loaded.config == model.config
    tokens = tokens_of(2, 19)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_a_model_learns_a_sequence_by_heart(model_options):
    torch.manual_seed(0)
    model = LanguageModel(make_config(**model_options, d_model=32, d_conv=2))
    tokens = tokens_of(1, 25, high=4)
    if not tree_leaves(model.init_state(1)):  # it mixes no positions: each base follows from the one before
        tokens = torch.arange(25)[None] % 4
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=5e-3, betas=BETAS)
    for _ in range(100):
        sums = model.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        (sums.nll_sum / sums.counted).backward()
        optimizer.step()
    assert sums.nll_sum.item() / sums.counted.item() < 0.4 * math.log(4)  # with one base of context 1.01 at best


def test_a_model_is_sampled_from_its_state(model_options, tmp_path):
    """The most probable base each time, from the state, is that of a whole pass over what is there so far; prompts of
    different lengths go together."""
    model = make_model(**model_options).eval().requires_grad_(False)
    inference = Inference(model, choose_compute("cpu", "fp32"), {}, tmp_path)
    prompts = [tokens_of(1, length, seed=length, high=4)[0].byte().numpy() for length in (3, 9, 3, 1)]
    generator = Generator(inference, Sampling(temperature=0.0))
    position = generator.read(prompts)
    found = [generator.continue_from(position, range(4), 11), generator.continue_from(position, range(4), 11)]
    assert np.array_equal(*found)  # a position is read, not used up
    for prompt, bases in zip(prompts, found[0], strict=True):
        sequence = np.concatenate([prompt, bases])
        logits = model(torch.from_numpy(sequence)[None]).logits[0]
        best, second = logits.topk(2, dim=-1).values[len(prompt) - 1 : -1].unbind(-1)
        agree = logits.argmax(-1)[len(prompt) - 1 : -1].numpy() == bases
        assert (agree | (best - second < 1e-4).numpy()).all()


def test_a_mixer_answers_for_its_parameters(any_options):
    torch.manual_seed(0)
    model, single = LanguageModel(make_config(**any_options, n_layer=9)), make_config(**any_options)
    mixer = model.backbone.layers[0].mixer
    torch.manual_seed(0)
    drawn = [weight.detach().std() for weight in mixer_class(any_options["mixer"])(single).output_weights()]
    for weight, usual in zip(mixer.output_weights(), drawn, strict=True):
        assert any(weight is parameter for parameter in mixer.parameters())
        assert weight.detach().std().item() == pytest.approx(float(usual) / 3, rel=0.3)  # divided by √n_layer
    decayed, kept = ({id(each) for each in group["params"]} for group in parameter_groups(model, 0.1))
    for name, parameter in mixer.named_parameters():
        is_time_constant = bool(re.search(r"A_log|A_imag|log_dt|bias$|filter", name)) or parameter.ndim < 2
        assert (id(parameter) in kept, id(parameter) in decayed) == (is_time_constant, not is_time_constant), name
    matrices = 2 * sum(weight.numel() for weight in mixer.castable_parameters())
    assert mixer.flops_per_token(1000) >= matrices > 0
    assert training_flops_per_token(model, 1000) >= 3 * 9 * mixer.flops_per_token(1000)
    assert mixer.describe(single)


@torch.no_grad()
def test_matrices_may_be_held_in_bf16(options, tmp_path):
    model = make_model(**options)
    cast = _with_matrices_in(torch.bfloat16, model)
    tokens = tokens_of(2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = cast(tokens).logits, model(tokens).logits
        assert torch.equal(found, expected)
        state = model.init_state(2)
        assert torch.equal(cast.step(tokens[:, 0], state)[0], model.step(tokens[:, 0], state)[0])


def test_verbs_take_what_they_need(model_options):
    model = make_model(**model_options)
    grows = any(mixer_class(name).state_grows for name in model.config.mixers)
    assert model.abilities == mixer_abilities(*model.config.mixers) | Ability.PREDICTS_NEXT_BASE
    for verb, needs in NEEDS.items():
        if grows and all(Ability.CONSTANT_STATE in each for each in needs):
            with pytest.raises(InputError, match=rf"{verb}: this model keeps no state of constant size .* mixer mamba"):
                require(model, verb)
        else:
            require(model, verb)


def test_verbs_read_long_sequences_in_chunks(model_options, tmp_path):
    """Likelihoods and embeddings, some bases at a time with states or caches handed on, are those of one pass."""
    model = make_model(**model_options)
    save_checkpoint(model, tmp_path / "model", {"settings": {"length": 64}})
    tokens = tokens_of(1, 61, high=4)
    with torch.no_grad():
        whole = model(tokens)
    loaded, sequence = dnamamba.load(tmp_path / "model", device="cpu"), decode(tokens[0].byte().numpy())
    found = loaded.base_probabilities(sequence, batch_tokens=9)
    np.testing.assert_allclose(found[1:], whole.logits[0, :-1].softmax(-1), atol=2e-5)
    np.testing.assert_allclose(loaded.embed(sequence, pool="last", batch_tokens=9), whole.hidden[0, -1], atol=2e-4)
    assert len(loaded.generate(sequence, length=3)) == 3
    if Ability.CONSTANT_STATE in model.abilities:
        loaded.log_likelihood(sequence, context="unlimited")
    else:
        with pytest.raises(InputError, match=r"likelihood --context unlimited: this model keeps no state"):
            loaded.log_likelihood(sequence, context="unlimited")


@torch.no_grad()
def test_alleles_resume_from_kept_states(model_options, tmp_path):
    """States after 16 bases of one sequence and 8 of another go on together."""
    model = make_model(**model_options).eval()
    if Ability.CONSTANT_STATE not in model.abilities:
        pytest.skip("it keeps a cache")
    sequences = list(tokens_of(2, 40, high=4).byte().numpy())
    kept = pass_and_keep(Inference(model, choose_compute("cpu", "fp32"), {}, tmp_path), sequences, 8, [0, 8, 16])
    rest = torch.from_numpy(np.stack([sequences[0][16:32], sequences[1][8:24]]))
    logits = model(rest, kept.start(np.arange(2), np.array([16, 8]))).logits
    for found, sequence, begin in zip(logits, sequences, (16, 8), strict=True):
        whole = model(torch.from_numpy(sequence)[None]).logits[0]
        torch.testing.assert_close(found, whole[begin : begin + 16], atol=1e-4, rtol=1e-4)
        log_p = whole[:-1].log_softmax(-1)
        row = kept.log_likelihood[0 if begin == 16 else 1, 1:]
        torch.testing.assert_close(
            row, log_p.gather(1, torch.from_numpy(sequence[1:, None]).long())[:, 0], atol=1e-4, rtol=1e-4
        )


def test_recomputing_blocks_changes_rounding_alone(model_options):
    tokens, gradients = tokens_of(2, 30), []
    for recompute in (None, "none", "cheap", "all"):
        model = make_model(**model_options)
        model.backbone.recompute = recompute
        start = model(tokens_of(2, 3, seed=2)).state
        loss = model.loss(tokens[:, :-1], tokens[:, 1:], start).nll_sum
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for expected, *others in zip(*gradients, strict=True):
        for found in others:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
def test_bf16_on_a_gpu_stays_close_to_fp32_on_the_cpu(model_options, packed):
    """Losses and gradients, from a state, at a length of several chunks and blocks."""
    model = make_model(**model_options, d_model=32)
    tokens, before = tokens_of(2, 1301), tokens_of(2, 70, seed=2)
    ids = torch.arange(1300).div(300, rounding_mode="floor").int().expand(2, -1).contiguous() if packed else None

    def run(model, device):
        given, ids_there = tokens.to(device), None if ids is None else ids.to(device)
        state = tree_map(lambda leaf: leaf.detach(), model(before.to(device)).state)
        sums = model.loss(given[:, :-1], given[:, 1:], state, ids_there)
        gradients = torch.autograd.grad(sums.nll_sum, list(model.parameters()))
        return float(sums.nll_sum.detach()), [gradient.cpu() for gradient in gradients]

    nll, gradients = run(model, "cpu")
    model.cuda()
    for context, tolerance in ((nullcontext(), 2e-3), (torch.autocast("cuda", torch.bfloat16), 0.15)):
        with context:
            found, others = run(model, "cuda")
        assert found == pytest.approx(nll, rel=tolerance / 10)
        for (name, _), gradient, other in zip(model.named_parameters(), gradients, others, strict=True):
            assert (gradient - other).norm() <= tolerance * gradient.norm() + 1e-3, name


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_graph_of_steps_equals_steps(model_options, precision, tmp_path, monkeypatch):
    model = make_model(**model_options).eval().requires_grad_(False).cuda()
    inference = Inference(model, choose_compute("gpu", precision), {}, tmp_path)
    prompts = [tokens_of(1, length, seed=length, high=4)[0].byte().numpy() for length in (3, 9, 3, 1)]
    generator = Generator(inference, Sampling(seed=1, top_k=3))
    by_graph = [generator.generate(prompts, range(4), length) for length in (37, 37, 11)]

    def steps(start, count):
        return _Steps(generator.model, generator.sampling, start._replace(state=model.reserve(start.state, count)))

    monkeypatch.setattr(generator, "_stepper", steps)
    by_steps = [generator.generate(prompts, range(4), length) for length in (37, 37, 11)]
    for one, other in zip(by_graph, by_steps, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.filterwarnings("ignore")
def test_training_of_a_transformer_compiles_without_graph_breaks():
    model, tokens, found = make_model(mixer="transformer"), tokens_of(2, 30), []
    for loss_of in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        loss = loss_of(tokens[:, :-1], tokens[:, 1:]).nll_sum
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    for gradient, other in zip(*found, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-4)
