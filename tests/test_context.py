"""The embedding of a k-mer: what it adds of each base before, and of none beyond a sequence's start."""

import pytest
import torch

from dnamamba.alphabet import BASES, MASK, PAD, N
from dnamamba.errors import InputError
from dnamamba.model.config import ModelConfig
from dnamamba.model.context import ContextEmbedding
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.parameters import training_flops_per_token

KMER = 5


@pytest.fixture
def context():
    torch.manual_seed(0)
    made = ContextEmbedding(KMER, d_model=7).double()
    torch.nn.init.normal_(made.weight)
    return made


def by_hand(context, tokens):
    """Base by base, from the definition."""
    tables = context.weight.view(-1, KMER - 1, BASES)
    added = torch.zeros(*tokens.shape, len(context.weight), dtype=torch.float64)
    for b, t in torch.cartesian_prod(*map(torch.arange, tokens.shape)).tolist():
        for back in range(1, KMER):
            if t >= back and tokens[b, t - back] < BASES:
                added[b, t] += tables[:, -back, tokens[b, t - back]]
    return added


@pytest.mark.parametrize("length", [1, 3, 4, 23])
def test_each_base_before_adds_its_row(context, length):
    tokens = torch.randint(0, BASES, (3, length), generator=torch.Generator().manual_seed(1))
    tokens[0, length // 2], tokens[1, 0], tokens[2, length // 3] = N, PAD, MASK
    torch.testing.assert_close(context(tokens, None, None)[0], by_hand(context, tokens))


def test_the_same_k_mer_has_the_same_key(context):
    tokens = torch.randint(0, BASES, (1, 40), generator=torch.Generator().manual_seed(1))
    tokens[0, 30:34] = tokens[0, 10:14]
    added = context(tokens, None, None)[0][0]
    torch.testing.assert_close(added[34], added[14])
    assert not torch.allclose(added[33], added[13])


def test_an_empty_chunk_keeps_the_state(context):
    tokens = torch.randint(0, BASES, (2, 9))
    _, state = context(tokens, None, None)
    added, same = context(tokens[:, :0], state, None)
    assert added.shape == (2, 0, 7)
    assert torch.equal(same, state)
    assert torch.equal(state, tokens[:, -(KMER - 1) :])


def test_a_model_without_it_is_drawn_as_before():
    torch.manual_seed(0)
    plain = LanguageModel(ModelConfig(d_model=16, n_layer=2))
    torch.manual_seed(0)
    kmers = LanguageModel(ModelConfig(d_model=16, n_layer=2, kmer=4))
    assert plain.backbone.context is None
    extra = set(kmers.state_dict()) - set(plain.state_dict())
    assert extra == {"backbone.context.weight"}
    assert training_flops_per_token(kmers, 64) - training_flops_per_token(plain, 64) == 3 * 2 * 3 * BASES * 16


@pytest.mark.parametrize("kmer", [0, 65, 2.5])
def test_bounds(kmer):
    with pytest.raises(InputError, match=r"model\.kmer: .* is not possible, expected a whole number from 1 to 64"):
        ModelConfig(kmer=kmer)


def test_no_equivariant_model_embeds_k_mers():
    with pytest.raises(InputError, match=r"model\.kmer: 4 is not possible with rc_equivariant"):
        ModelConfig(kmer=4, rc_equivariant=True)


def test_attention_by_content_starts_with_words_of_both_strands():
    """Keys are queries, and in half of the channels a word has the sum of its reverse complement."""
    torch.manual_seed(0)
    config = ModelConfig(pattern="mamba,attention", n_layer=2, d_model=64, kmer=16, rope=False, head_dim=32)
    backbone = LanguageModel(config).backbone
    query, key, value = backbone.layers[1].mixer.in_proj.weight.chunk(3)
    assert torch.equal(query, key)
    assert not torch.equal(query, value)
    word = torch.randint(BASES, (12,), dtype=torch.uint8)
    # Three bases before a word, the base whose embedding it is, and the same of the other strand.
    window, other = (torch.randint(BASES, (1, 16), dtype=torch.uint8) for _ in range(2))
    window[0, 3:15], other[0, 3:15] = word, (3 - word).flip(0)
    other[0, :3] = window[0, :3]
    (seen, _), (reverse, _) = (backbone.context(tokens, None, None) for tokens in (window, other))
    torch.testing.assert_close(seen[0, -1, ::2], reverse[0, -1, ::2])
    assert (seen[0, -1, 1::2] - reverse[0, -1, 1::2]).abs().mean() > 0.2


@pytest.mark.parametrize("changed", [{"rope": True}, {"kmer": 1}, {"pattern": "mamba"}])
def test_other_models_are_drawn_as_they_were(changed):
    fields = {"pattern": "mamba,attention", "n_layer": 2, "d_model": 64, "kmer": 16, "rope": False, "head_dim": 32}
    model = LanguageModel(ModelConfig(**fields | changed))
    for block in model.backbone.layers:
        if hasattr(block.mixer, "start_with_equals"):
            query, key, _ = block.mixer.in_proj.weight.chunk(3)
            assert not torch.equal(query, key)
    context = model.backbone.context
    assert context is None or abs(float(context.weight.detach().std()) - 0.02) < 0.002
