"""The scan of Mamba-2 by matrix products (SSD): operator, reference and backends."""
