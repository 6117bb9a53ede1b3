"""The selective scan: operator, phases, reference and backends."""
