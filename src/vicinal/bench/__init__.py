"""Benchmarks: problems (`cases`), what runs them (`peers`), checked timing (`measure`), limits (`roofline`)."""
