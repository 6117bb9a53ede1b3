"""From stored windows to inputs and targets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnamamba.alphabet import COMPLEMENT, SOFT_MASK_BIT
from dnamamba.model.tokens import prepare_batch


def test_shift_and_soft_mask():
    window = torch.tensor([[0, 1 | SOFT_MASK_BIT, 4, 3 | SOFT_MASK_BIT, 5]], dtype=torch.uint8)
    inputs, targets, soft_mask = prepare_batch(window)
    assert inputs.tolist() == [[0, 1, 4, 3]]
    assert targets.tolist() == [[1, 4, 3, 5]]
    assert soft_mask.tolist() == [[True, False, True, False]]
    assert inputs.dtype == targets.dtype == torch.uint8


@given(st.integers(1, 4), st.integers(1, 33), st.integers(0, 2**32 - 1))
def test_reverse_complement_is_that_of_the_whole_window(batch, length, seed):
    random = np.random.default_rng(seed)
    window = random.integers(0, 11, (batch, length + 1), dtype=np.uint8)
    window |= random.integers(0, 2, window.shape, dtype=np.uint8) * np.uint8(SOFT_MASK_BIT)
    flags = random.integers(0, 2, batch).astype(bool)
    turned = np.where(flags[:, None], COMPLEMENT[window][:, ::-1], window)

    mixed = prepare_batch(torch.from_numpy(window), torch.from_numpy(flags))
    expected = prepare_batch(torch.from_numpy(turned))
    for got, want in zip(mixed, expected, strict=True):
        assert torch.equal(got, want)


def test_only_bytes_are_windows():
    with pytest.raises(AssertionError, match="uint8"):
        prepare_batch(torch.zeros(1, 4, dtype=torch.int64))
