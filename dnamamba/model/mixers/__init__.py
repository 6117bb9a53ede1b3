"""Sequence mixers: modules that carry information along the length.

All have the same three methods, on channels-last data of width d_model:

    init_state(batch) -> state                                        before the first position
    forward(x, state=None, sequence_ids=None) -> (y, state)           x, y (batch, length, d_model)
    step(x, state) -> (y, state)                                      x, y (batch, d_model): one position, O(1) work

A state is a pytree of tensors, batch first, so that chunked training, generation and variant scoring treat every mixer
alike. A forward pass in chunks, each entered with the state of the one before, equals the pass over the whole.
`sequence_ids` (batch, length) int32 packs several sequences into a row: nothing crosses a change of id; the given state
belongs to the first id, the returned one to the last.
"""
