"""The causal depthwise convolution: operator, reference and backends."""
