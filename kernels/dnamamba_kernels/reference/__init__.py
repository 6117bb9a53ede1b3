"""Plain PyTorch versions of every kernel: readable, fp64-capable, the oracle of the tests."""
