"""Residual addition and RMSNorm: operator, reference and backends."""
