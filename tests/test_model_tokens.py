"""From stored windows to inputs and targets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnamamba.alphabet import COMPLEMENT, PAD, SOFT_MASK_BIT
from dnamamba.model.objectives.next_base import NextBase


def test_shift_and_soft_mask():
    window = torch.tensor([[0, 1 | SOFT_MASK_BIT, 4, 3 | SOFT_MASK_BIT, 5]], dtype=torch.uint8)
    found = NextBase().prepare_batch(window)
    assert found.inputs.tolist() == [[0, 1, 4, 3]]
    assert found.targets.tolist() == [[1, 4, 3, 5]]
    assert found.soft_mask.tolist() == [[True, False, True, False]]
    assert found.inputs.dtype == found.targets.dtype == torch.uint8


@given(st.integers(1, 4), st.integers(1, 33), st.integers(0, 2**32 - 1))
def test_reverse_complement_is_that_of_the_whole_window(batch, length, seed):
    random = np.random.default_rng(seed)
    window = random.integers(0, 11, (batch, length + 1), dtype=np.uint8)
    window |= random.integers(0, 2, window.shape, dtype=np.uint8) * np.uint8(SOFT_MASK_BIT)
    flags = random.integers(0, 2, batch).astype(bool)
    complements = np.where(flags[:, None], COMPLEMENT[window][:, ::-1], window)

    mixed = NextBase().prepare_batch(torch.from_numpy(window), torch.from_numpy(flags))
    expected = NextBase().prepare_batch(torch.from_numpy(complements))
    for got, want in zip(mixed[:3], expected[:3], strict=True):
        assert torch.equal(got, want)


def test_only_bytes_are_windows():
    with pytest.raises(AssertionError, match="uint8"):
        NextBase().prepare_batch(torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize("reverse", [False, True])
def test_no_base_is_predicted_over_the_border_of_two_sequences(reverse: bool) -> None:
    """ACG and GT in one row of 7: the first base of each, and what pads the row, are nobody's targets."""
    tokens = torch.tensor([[0, 1, 2, 2 | SOFT_MASK_BIT, 3, PAD, PAD]], dtype=torch.uint8)
    ids = torch.tensor([[0, 0, 0, 1, 1, 2, 2]], dtype=torch.int32)
    batch = NextBase().prepare_batch(tokens, torch.tensor([reverse]), ids)
    if reverse:  # PAD, PAD, AC, CGT
        assert batch.inputs.tolist() == [[PAD, PAD, 0, 1, 1, 2]]
        assert batch.targets.tolist() == [[PAD, PAD, 1, PAD, 2, 3]]
        assert batch.sequence_ids.tolist() == [[2, 2, 1, 1, 0, 0]]
    else:
        assert batch.inputs.tolist() == [[0, 1, 2, 2, 3, PAD]]
        assert batch.targets.tolist() == [[1, 2, PAD, 3, PAD, PAD]]
        assert batch.sequence_ids.tolist() == [[0, 0, 0, 1, 1, 2]]
