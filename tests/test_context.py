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
