"""Models that see both sides of a position: bidirectional Mamba and reverse-complement equivariance, against plain code
with real flips; packed, padded, odd lengths, gradients, parameters."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from dnamamba.alphabet import COMPLEMENT, MASK, PAD, VOCABULARY_SIZE
from dnamamba.errors import InputError
from dnamamba.formats.fields import format_needed
from dnamamba.inference.sampling import _with_matrices_in
from dnamamba.model.abilities import NEEDS, Ability, require
from dnamamba.model.config import ModelConfig, preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.mixers.bimamba import BiMambaMixer
from dnamamba.model.parameters import parameter_count, parameter_groups, training_flops_per_token
from dnamamba.model.strands import averaged_logits

TINY = {"mixer": "bimamba", "objective": "masked_base", "d_model": 8, "n_layer": 3, "d_state": 4, "d_conv": 3}
CASES = {
    "tied": {},
    "untied": {"bidirectional_weight_tie": False},
    "product": {"bidirectional_strategy": "ew_multiply"},
    "untied product": {"bidirectional_weight_tie": False, "bidirectional_strategy": "ew_multiply"},
}
EQUIVARIANT = {f"equivariant {name}": options | {"rc_equivariant": True} for name, options in CASES.items()} | {
    "equivariant mamba": {"mixer": "mamba", "rc_equivariant": True},
    "equivariant hybrid": {"mixer": "mamba", "pattern": "bimamba,attention,s4d,gated_mlp", "rc_equivariant": True},
}


def make_model(seed=0, dtype=torch.float64, **options):
    """Weights larger than at initialisation, so that every position matters to every other."""
    torch.manual_seed(seed)
    model = LanguageModel(ModelConfig(**TINY | options)).to(dtype)
    with torch.no_grad():
        model.backbone.embedding.weight.normal_()
        for block in model.backbone.layers:
            block.norm.weight.uniform_(0.5, 2)
            for weight in block.mixer.output_weights():
                weight.mul_(2)
        model.backbone.norm_f.weight.uniform_(0.5, 2)
    return model


def make_mixer(seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    return BiMambaMixer(ModelConfig(**TINY | options)).to(dtype)


def inputs(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens_of(batch, length, seed=1):
    """A, C, G, T, N and MASK."""
    tokens = torch.randint(0, 6, (batch, length), generator=torch.Generator().manual_seed(seed))
    return torch.where(tokens == PAD, MASK, tokens).to(torch.uint8)


def reverse_complement(tokens):
    return torch.from_numpy(COMPLEMENT)[tokens.long()].flip(1)


# The reference: nothing of the package, loops and real flips, from the papers' equations and Caduceus' layout.


def plain_mamba(weights, x, prefix):
    """One Mamba mixer, x (batch, length, d_model), position by position."""
    w = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    channels, state = w["A_log"].shape
    xs, z = F.linear(x, w["in_proj.weight"]).split(channels, dim=-1)
    taps, past = w["conv1d.weight"][:, 0], []
    h, outputs = x.new_zeros(len(x), channels, state), []
    rank = w["dt_proj.weight"].shape[1]
    for t in range(x.shape[1]):
        past = [*past, xs[:, t]][-taps.shape[1] :]
        u = F.silu(w["conv1d.bias"] + sum(tap * value for tap, value in zip(taps.T.flip(0), past[::-1], strict=False)))
        dt, B, C = F.linear(u, w["x_proj.weight"]).split([rank, state, state], dim=-1)
        step = F.softplus(F.linear(dt, w["dt_proj.weight"]) + w["dt_proj.bias"])[..., None]
        h = torch.exp(step * -w["A_log"].exp()) * h + step * B[:, None] * u[..., None]
        y = (h * C[:, None]).sum(-1) + w["D"] * u
        outputs.append(F.linear(y * F.silu(z[:, t]), w["out_proj.weight"]))
    return torch.stack(outputs, 1)


def plain_bimamba(weights, x, prefix, product=False):
    w = {name: value for name, value in weights.items() if name.startswith(prefix)}
    for name in ("in_proj.weight", "out_proj.weight"):
        w.setdefault(f"{prefix}mamba_rev.{name}", w[f"{prefix}mamba_fwd.{name}"])
    fwd = plain_mamba(w, x, f"{prefix}mamba_fwd.")
    rev = plain_mamba(w, x.flip(1), f"{prefix}mamba_rev.").flip(1)
    return fwd * rev if product else fwd + rev


def plain_norm(x, weight):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def rc(hidden):
    """Of what has channels of both strands: positions and channels flipped."""
    return hidden.flip(1, 2)


def plain_equivariant_model(weights, tokens, swaps=False):
    """Caduceus-PS: hidden states of 2 · d_model channels, and logits (batch, length, vocabulary). `swaps`: each block's
    add and norm exchanges the halves, as the released code's fused path does."""
    embedding = weights["backbone.embedding.weight"]
    permutation = torch.from_numpy(COMPLEMENT[:VOCABULARY_SIZE]).long()
    tokens = tokens.long()
    hidden = torch.cat((embedding[tokens], rc(embedding[permutation[tokens.flip(1)]])), dim=-1)
    residual = torch.zeros_like(hidden)
    for index in range(1 + max(int(name.split(".")[2]) for name in weights if ".layers." in name)):
        prefix, weight = f"backbone.layers.{index}.mixer.", weights[f"backbone.layers.{index}.norm.weight"]
        residual = hidden + residual
        first, second = residual.chunk(2, dim=-1)
        if swaps:
            first, second = second, first
        residual = torch.cat((first, second), dim=-1)
        first, second = plain_norm(first, weight), plain_norm(rc(second), weight)
        hidden = torch.cat((plain_bimamba(weights, first, prefix), rc(plain_bimamba(weights, second, prefix))), dim=-1)
    first, second = (hidden + residual).chunk(2, dim=-1)
    weight = weights["backbone.norm_f.weight"]
    first, second = plain_norm(first, weight), rc(plain_norm(rc(second), weight))
    head = weights["lm_head.weight"]
    logits = F.linear(first, head) + F.linear(second.flip(-1), head[permutation])
    return torch.cat((first, second), dim=-1), logits


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, 2, 37])
def test_a_mixer_equals_two_flipped_by_hand(case, length):
    mixer = make_mixer(**CASES[case])
    x = inputs(2, length, 8).requires_grad_()
    y, state = mixer(x)
    assert state is None
    expected = plain_bimamba(dict(mixer.named_parameters()), x, "", product="product" in case)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-10)
    arguments = [x, *mixer.parameters()]
    weight = inputs(*x.shape, seed=4)
    for one, other in zip(
        torch.autograd.grad((y * weight).sum(), arguments),
        torch.autograd.grad((expected * weight).sum(), arguments),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(mixer.reverse(x), mixer(x.flip(1))[0].flip(1), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_differences(case):
    mixer = make_mixer(**CASES[case] | {"d_model": 2, "d_state": 2, "d_conv": 2})
    names = [name for name, _ in mixer.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x,))[0]

    parameters = [parameter.detach().clone().requires_grad_() for parameter in mixer.parameters()]
    assert torch.autograd.gradcheck(run, (inputs(1, 4, 2).requires_grad_(), *parameters), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_every_position_sees_every_other(case):
    mixer, x = make_mixer(**CASES[case]), inputs(1, 9, 8).requires_grad_()
    y, _ = mixer(x)
    for position in (0, 4, 8):
        (gradient,) = torch.autograd.grad(y[:, position].sin().sum(), x, retain_graph=True)
        assert gradient.abs().amax(-1).gt(1e-9).all()


@pytest.mark.parametrize("length", [1, 2, 3, 64, 129, 1037])
@pytest.mark.parametrize("case", EQUIVARIANT)
def test_the_reverse_complement_gives_the_reverse_complement(case, length):
    model, tokens = make_model(**EQUIVARIANT[case]), tokens_of(2, length)
    here, there = model(tokens), model(reverse_complement(tokens))
    assert here.hidden.shape == (2, length, 16) == (2, length, 2 * model.config.d_model)
    torch.testing.assert_close(there.logits, here.logits.flip(1, 2), atol=1e-12, rtol=1e-12)
    streams = here.hidden.flip(1).chunk(2, dim=-1)
    torch.testing.assert_close(there.hidden, torch.cat(streams[::-1], dim=-1), atol=1e-12, rtol=1e-12)
    assert length == 1 or here.logits.std() > 0.1


def test_equivariance_in_fp32_and_of_gradients():
    """A sequence and its reverse complement give the same gradient of every weight."""
    model, tokens = make_model(rc_equivariant=True, dtype=torch.float32), tokens_of(1, 301)
    here, there = model(tokens).logits, model(reverse_complement(tokens)).logits
    assert (there - here.flip(1, 2)).abs().max() <= 1e-5 * here.abs().max()
    gradients = [torch.autograd.grad(each.logsumexp(-1).sum(), list(model.parameters())) for each in (here, there)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(one.abs().max()), rtol=1e-3)


def test_an_equivariant_model_equals_plain_code():
    model, tokens = make_model(rc_equivariant=True), tokens_of(2, 23)
    hidden, logits = plain_equivariant_model(model.state_dict(), tokens)
    found = model(tokens)
    torch.testing.assert_close(found.logits, logits[..., :4], atol=1e-11, rtol=1e-10)
    first, second = hidden.chunk(2, dim=-1)
    torch.testing.assert_close(found.hidden, torch.cat((first, second.flip(-1)), dim=-1), atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("options", [CASES["tied"], CASES["untied"]])
@pytest.mark.parametrize("blocks", [2, 3])
def test_halves_that_change_places_are_other_weights(options, blocks):
    """Released Caduceus-PS models exchange the halves in each block's norm. Seen without the exchange, every second
    block, from the first on, has the two directions' roles exchanged and its channels flipped: a model of ours, whose
    head, after an odd number of blocks, is not that of the embedding."""
    model = make_model(rc_equivariant=True, n_layer=blocks, tie_embeddings=False, **options)
    theirs = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = tokens_of(2, 17)
    assert (plain_equivariant_model(theirs, tokens)[1] - plain_equivariant_model(theirs, tokens, True)[1]).std() > 0.1
    ours = without_exchange(theirs, blocks)
    model.load_state_dict(ours)
    expected = plain_equivariant_model(theirs, tokens, swaps=True)[1][..., :4]
    torch.testing.assert_close(model(tokens).logits, expected, atol=1e-11, rtol=1e-10)


def without_exchange(weights, blocks):
    ours = dict(weights)
    for index in range(0, blocks, 2):
        prefix = f"backbone.layers.{index}."
        ours[f"{prefix}norm.weight"] = weights[f"{prefix}norm.weight"].flip(0)
        for name, value in weights.items():
            if not name.startswith(f"{prefix}mixer."):
                continue
            tied = f"{prefix}mixer.mamba_rev.in_proj.weight" not in weights
            other = name.replace("mamba_fwd", "mamba_rev") if "fwd" in name else name.replace("mamba_rev", "mamba_fwd")
            if name.endswith("in_proj.weight"):
                ours[name if tied else other] = value.flip(1)
            elif name.endswith("out_proj.weight"):
                ours[name if tied else other] = value.flip(0)
            else:
                ours[other] = value
    if blocks % 2:
        ours["backbone.norm_f.weight"] = weights["backbone.norm_f.weight"].flip(0)
        complement = torch.from_numpy(COMPLEMENT[:VOCABULARY_SIZE]).long()
        ours["lm_head.weight"] = weights["lm_head.weight"][complement].flip(1)
    return ours


@pytest.mark.parametrize("case", CASES | EQUIVARIANT)
def test_packed_segments_equal_separate_ones(case):
    model, lengths = make_model(**(CASES | EQUIVARIANT)[case]), (1, 2, 30, 17, 3)
    names = torch.tensor([7, 2, 9, 2, 0], dtype=torch.int32)
    ids = torch.repeat_interleave(names, torch.tensor(lengths))[None]
    tokens = tokens_of(1, 53)
    packed = model(tokens, None, ids).logits
    separate = torch.cat([model(segment).logits for segment in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, separate, atol=1e-10, rtol=1e-10)
    weight = inputs(1, 53, 4, seed=5)
    gradients = [torch.autograd.grad((each * weight).sum(), list(model.parameters())) for each in (packed, separate)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9 * float(other.abs().max()), rtol=1e-8)


@pytest.mark.parametrize("case", ["tied", "equivariant tied"])
def test_padding_changes_nothing(case):
    model, tokens = make_model(**(CASES | EQUIVARIANT)[case]), tokens_of(2, 19)
    padded = F.pad(tokens, (0, 11), value=PAD)
    torch.testing.assert_close(model(padded).logits[:, :19], model(tokens).logits, atol=1e-11, rtol=1e-10)


def test_both_strands_averaged_are_equivariant():
    """Caduceus-Ph, of padded sequences too; an equivariant model is its own average."""
    model, lengths = make_model(), torch.tensor([23, 9])
    rows = [tokens_of(1, int(length), seed=int(length)) for length in lengths]
    padded = torch.cat([F.pad(row, (0, 23 - row.shape[1]), value=PAD) for row in rows])
    averaged = averaged_logits(model, padded, lengths)
    for row, found in zip(rows, averaged, strict=True):
        expected = (model(row).logits + model(reverse_complement(row)).logits.flip(1, 2)) / 2
        torch.testing.assert_close(found[: row.shape[1]], expected[0], atol=1e-11, rtol=1e-10)
        assert (expected - model(row).logits).abs().max() > 1e-2
    equivariant = make_model(rc_equivariant=True)
    torch.testing.assert_close(
        averaged_logits(equivariant, padded, lengths)[0], equivariant(padded[:1]).logits[0], atol=1e-11, rtol=1e-10
    )


@torch.no_grad()
@pytest.mark.parametrize("case", CASES | EQUIVARIANT)
def test_matrices_may_be_held_in_bf16(case):
    model = make_model(dtype=torch.float32, **(CASES | EQUIVARIANT)[case])
    tokens, exact = tokens_of(2, 65), model(tokens_of(2, 65)).logits
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(tokens).logits
        assert torch.equal(_with_matrices_in(torch.bfloat16, model)(tokens).logits, expected)
    assert expected.dtype == torch.float32
    assert (expected - exact).norm() < 0.05 * exact.norm()


def test_sizes():
    """Tied projections: hardly larger than one Mamba; two strands: the same weights, twice the work, to the last
    operation."""
    single, tied, equivariant, untied = (
        LanguageModel(preset("1.4m", objective="masked_base", **options))
        for options in (
            {},
            {"mixer": "bimamba"},
            {"mixer": "bimamba", "rc_equivariant": True},
            {"mixer": "bimamba", "bidirectional_weight_tie": False},
        )
    )
    counts = [parameter_count(model) for model in (single, tied, equivariant, untied)]
    assert counts[0] < counts[1] == counts[2] < 1.2 * counts[0] < 1.8 * counts[0] < counts[3] < 2 * counts[0]
    flops = [training_flops_per_token(model, 1000) for model in (single, tied, equivariant, untied)]
    assert flops[0] < flops[1] < flops[3] < 2 * flops[0]
    assert flops[2] == 2 * flops[1]


def test_only_what_needs_the_newest_format_has_it():
    assert format_needed([ModelConfig(**TINY)]) == 2
    for changed in ({"rc_equivariant": True}, {"bidirectional_weight_tie": False}):
        assert format_needed([ModelConfig(**TINY | changed)]) == 4


def test_what_a_masked_model_cannot_do_is_one_line():
    model = make_model()
    assert model.abilities == Ability.PREDICTS_MASKED_BASE
    message = "generate: this model carries no state from base to base and does not predict the next base; take one "
    with pytest.raises(InputError, match=message + "with mixer mamba or mamba2 .* and objective next_base$"):
        require(model, "generate")
    equivariant = make_model(rc_equivariant=True, mixer="mamba")
    for verb, needs in NEEDS.items():
        if Ability.PREDICTS_MASKED_BASE in needs:
            require(equivariant, verb)
        else:
            with pytest.raises(InputError, match="without rc_equivariant"):
                require(equivariant, verb)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mixer": "bimamba"},
            "bimamba sees what the objective next_base wants predicted; take --model.objective m",
        ),
        ({"pattern": "bimamba,attention"}, "model.mixer: bimamba and attention see "),
        ({"rc_equivariant": True}, "model.rc_equivariant: it sees what .* take --model.objective masked_base"),
    ],
)
def test_the_next_base_is_not_learnt_by_what_sees_it(options, message):
    with pytest.raises(InputError, match=message):
        LanguageModel(ModelConfig(**options))


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("recompute", [None, "none", "cheap", "all"])
@pytest.mark.parametrize("case", CASES | EQUIVARIANT)
def test_bf16_on_a_gpu_stays_close_to_fp32_on_the_cpu(case, recompute, packed):
    """Losses and gradients, at a length of several chunks and blocks; the same bases are masked."""
    model = make_model(dtype=torch.float32, d_model=32, **(CASES | EQUIVARIANT)[case])
    model.backbone.recompute = recompute
    tokens = tokens_of(2, 1301)
    ids = torch.arange(1301).div(300, rounding_mode="floor").int().expand(2, -1).contiguous() if packed else None

    def run(model, device):
        given = (None if part is None else part.to(device) for part in (tokens, None, ids, torch.arange(2)))
        batch = model.objective.prepare_batch(*given, training=True)
        sums = model.loss(batch.inputs, batch.targets, sequence_ids=batch.sequence_ids)
        gradients = torch.autograd.grad(sums.nll_sum, list(model.parameters()))
        return batch.inputs.cpu(), float(sums.nll_sum.detach()), [gradient.cpu() for gradient in gradients]

    inputs, nll, gradients = run(model, "cpu")
    model.cuda()
    for context, tolerance in ((nullcontext(), 2e-3), (torch.autocast("cuda", torch.bfloat16), 0.15)):
        with context:
            same, found, others = run(model, "cuda")
        assert torch.equal(same, inputs)
        assert found == pytest.approx(nll, rel=tolerance / 10)
        for (name, _), gradient, other in zip(model.named_parameters(), gradients, others, strict=True):
            assert (gradient - other).norm() <= tolerance * gradient.norm() + 1e-3, name


@pytest.mark.parametrize("options", [{}, {"rc_equivariant": True}])
def test_a_model_learns_to_fill_in(options):
    """A sequence by heart, on both strands, other bases masked at each step; then some never masked together."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(**TINY | {"d_model": 32, "n_layer": 2, "d_conv": 4} | options))
    sequence, flags = torch.randint(0, 4, (1, 41), dtype=torch.uint8).expand(8, -1), torch.arange(8) % 2 == 1
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=1e-2)
    for step in range(100):
        batch = model.objective.prepare_batch(sequence, flags, None, torch.arange(8) + 8 * step, training=True)
        sums = model.loss(batch.inputs, batch.targets)
        optimizer.zero_grad()
        (sums.nll_sum / sums.counted).backward()
        optimizer.step()
    batch = model.objective.prepare_batch(sequence, flags, None, torch.arange(8) + 10**6)
    sums = model.loss(batch.inputs, batch.targets)
    assert sums.counted > 20
    assert sums.nll_sum.item() / sums.counted.item() < 0.4 * math.log(4)
