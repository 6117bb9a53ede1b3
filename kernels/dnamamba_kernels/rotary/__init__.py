"""Rotary positions of attention's queries and keys: operator, reference and backends."""
