"""Attention against sums written out, its cache, and Transformer++ as a pattern of blocks."""

import cmath

import pytest
import torch

from dnamamba.errors import InputError
from dnamamba.model.config import ModelConfig, preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.mixers import attention, mixer_class, mixers_of
from dnamamba.model.parameters import parameter_count


def make(**options):
    torch.manual_seed(0)
    config = ModelConfig(**({"mixer": "attention", "d_model": 8, "head_dim": 4, "rope_base": 30.0} | options))
    return mixer_class("attention")(config).double()


def inputs(length, batch=2):
    return torch.randn(batch, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_it_is_softmax_of_rotated_products():
    """RoPE as the paper's equation 12: a pair of numbers is a complex one, and position m rotates it by e^{i m θ}."""
    mixer, x = make(), inputs(11, batch=1)
    query, key, value = mixer.in_proj(x)[0].unflatten(-1, (3, 2, 2, 2)).unbind(1)  # (length, heads, parts, pairs)

    def rotated(vectors, position, head):
        real, imaginary = vectors[position, head]
        angles = [position * 30.0 ** (-2 * pair / 4) for pair in range(2)]
        return [complex(a, b) * cmath.exp(1j * w) for a, b, w in zip(real, imaginary, angles, strict=True)]

    outputs = torch.zeros(11, 2, 4, dtype=torch.float64)
    for head in range(2):
        for m in range(11):
            scores = [
                sum(
                    (q * k.conjugate()).real
                    for q, k in zip(rotated(query, m, head), rotated(key, n, head), strict=True)
                )
                for n in range(m + 1)
            ]
            weights = torch.softmax(torch.tensor(scores, dtype=torch.float64) / 2, 0)
            outputs[m, head] = (weights[:, None] * value[: m + 1, head].flatten(1)).sum(0)
    torch.testing.assert_close(mixer(x)[0][0], mixer.out_proj(outputs.flatten(1)), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("packed", [False, True])
def test_queries_attend_in_blocks(monkeypatch, packed):
    mixer, x = make(), inputs(29)
    ids = torch.arange(29).div(6, rounding_mode="floor").int().expand(2, -1) if packed else None
    _, start = mixer(inputs(3))
    expected, _ = mixer(x, start, ids)
    monkeypatch.setattr(attention, "QUERIES", 4)
    torch.testing.assert_close(mixer(x, start, ids)[0], expected)


@torch.no_grad()
def test_a_million_positions_on_products_are_the_same():
    """They depend on distances alone: the angles keep their digits."""
    mixer, x = make(head_dim=8, rope_base=10_000.0).float(), inputs(20).float()
    near, far = (mixer._project(x, torch.arange(20) + offset) for offset in (0, 1_000_000))
    products = [torch.einsum("bqhd,bkhd->bhqk", query, key) for query, key, _ in (near, far)]
    torch.testing.assert_close(*products, atol=2e-6, rtol=1e-5)


def test_a_step_fills_free_positions_and_leaves_the_earlier_state():
    mixer, x = make(), inputs(6)
    _, start = mixer(x[:, :4])
    with torch.no_grad():
        state = mixer.reserve(start, 2)
        y, once = mixer.step(x[:, 4], state)
        assert once.values[0].data_ptr() == state.values[0].data_ptr()
        assert (once.end - state.end).tolist() == [[1], [1]]
        torch.testing.assert_close(mixer.step(x[:, 4], state)[0], y)  # what lies behind the end is not seen
        mixer.step(x[:, 5], once)
        with pytest.raises(IndexError):
            mixer.step(x[:, 5], mixer.step(x[:, 5], once)[1])  # none is free for a third
    assert start.positions == 4


def test_transformer_is_attention_and_gated_mlps():
    config = preset("1.4m", mixer="transformer")
    assert config.mixers == ("attention", "gated_mlp") * 6
    ours, mamba = (parameter_count(LanguageModel(each)) for each in (config, preset("1.4m")))
    assert ours == 16 * 128 + 12 * 128 + 128 + 6 * (4 * 128**2 + 3 * 128 * 344)
    assert 0.8 < ours / mamba < 1  # two blocks of either have 12 d_model² weights; Mamba has x_proj besides


def test_patterns_repeat():
    config = ModelConfig(n_layer=10, pattern="mamba:3,attention")
    assert config.mixers == ("mamba", "mamba", "mamba", "attention") * 2 + ("mamba", "mamba")
    assert mixers_of("s4d, gated_mlp:2") == ("s4d", "gated_mlp", "gated_mlp")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("mamba:0", "'mamba:0' is not possible, expected NAME or NAME:COUNT"),
        ("mamba,", "'' is not possible"),
        ("mamba:x", "'mamba:x'"),
        ("mamba:٣", "'mamba:٣'"),
        ("mamba:9999999999", "'mamba:9999999999' is not possible, expected at most 1,024 blocks"),
        ("mamba:1024,mamba", "'mamba' is not possible, expected at most 1,024 blocks"),
        ("mambo", "'mambo' .* one of mamba, "),
        ("transformer,mamba", "'transformer'"),
    ],
)
def test_impossible_patterns_are_refused(pattern, message):
    with pytest.raises(InputError, match=rf"model\.pattern: {message}"):
        ModelConfig(pattern=pattern)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "attention", "head_dim": 3}, r"model\.head_dim: 3 is not possible, expected an even divisor of 128"),
        ({"mixer": "attention", "head_dim": 48}, r"model\.head_dim: 48"),
        ({"mixer": "attention", "d_model": 13}, r"model\.d_model: heads need an even width, 13 is odd"),
        ({"mixer": "attention", "d_ff": 300}, r"model\.d_ff: an option of gated_mlp, but the blocks are of attention"),
        ({"mixer": "s4d", "pattern": "mamba"}, r"model\.pattern: it names the mixers of all blocks, leave out"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LanguageModel(preset("1.4m", **options))


@pytest.mark.parametrize(("width", "head"), [(64, 64), (96, 48), (128, 64), (192, 64), (384, 64), (20, 20), (2, 2)])
def test_heads_are_as_wide_as_they_can_be_up_to_64(width, head):
    assert ModelConfig(d_model=width, mixer="attention").head_width(width) == head
