"""Benchmarks: `python -m benchmarks`. No timing is asserted in a test."""
