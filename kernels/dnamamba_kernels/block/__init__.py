"""A whole Mamba block as one operator that keeps little for its backward pass."""
