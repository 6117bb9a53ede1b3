"""Gate and RMSNorm, as Mamba-2 has them before its last projection: operator, reference and backends."""
